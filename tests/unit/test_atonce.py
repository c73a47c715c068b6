"""Files that appear at once and whole, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from epcgroup import atonce
from epcgroup.errors import BadInput


def test_a_file_is_whole_or_what_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    atonce.write(path, b"first")
    place = atonce.AtOnce(path)
    place.file.write(b"second")
    place.close()
    assert (path.read_bytes(), [each.name for each in tmp_path.iterdir()]) == (b"first", ["file"])


def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("file")
    atonce.write(tmp_path / "link", b"text")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"text"


def test_a_device_is_written_to_and_never_replaced(tmp_path: Path) -> None:
    """Root could: a trace that is 'written to /dev/null' must not take the place of /dev/null."""
    atonce.write(Path(os.devnull), b"text")
    with pytest.raises(BadInput, match="/dev/full: cannot be written: No space left on device"):
        atonce.write(Path("/dev/full"), b"text")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (fifo, Path(os.devnull)):
        with pytest.raises(BadInput, match="it is no file, and is not replaced by one"):
            atonce.AtOnce(path)
    assert fifo.is_fifo()
    assert Path(os.devnull).is_char_device()


def test_where_nothing_can_be_the_file_is_named(tmp_path: Path) -> None:
    for path, why in ((tmp_path, "Is a directory"), (tmp_path / "none" / "file", "No such file")):
        with pytest.raises(BadInput, match=f"{path}: cannot be written: {why}"):
            atonce.write(path, b"")


def test_where_nothing_can_be_is_told_before_there_is_anything(tmp_path: Path) -> None:
    atonce.check(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []
    for path, why in ((tmp_path, "it is a directory"), (tmp_path / "none" / "file", "there is no such dir")):
        with pytest.raises(BadInput, match=f"{path}: {why}"):
            atonce.check(path)
