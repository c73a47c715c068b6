"""The mount point leaves the file system as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from epcgroup.errors import BadInput
from epcgroup.host import mounts
from epcgroup.serve.mountpoint import MountPoint, real


def test_directories_that_were_made_are_taken_away(tmp_path: Path) -> None:
    point = MountPoint(tmp_path / "a" / "b", ours=False)
    assert (tmp_path / "a" / "b").is_dir()
    point.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_was_there_stays_unless_it_is_ours(tmp_path: Path) -> None:
    """Ours is the default one, which a killed server left."""
    (tmp_path / "cgroup").mkdir()
    MountPoint(tmp_path / "cgroup", ours=False).remove()
    assert (tmp_path / "cgroup").is_dir()
    MountPoint(tmp_path / "cgroup", ours=True).remove()
    assert list(tmp_path.iterdir()) == []


def test_what_somebody_put_there_meanwhile_stays(tmp_path: Path) -> None:
    point = MountPoint(tmp_path / "a" / "b", ours=False)
    (tmp_path / "a" / "file").touch()
    point.remove()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file"]


def test_a_directory_with_something_in_it_is_not_hidden(tmp_path: Path) -> None:
    """/etc was, and whoever looked up a user in it found none."""
    (tmp_path / "passwd").touch()
    with pytest.raises(
        BadInput, match=f"{tmp_path} is not empty: passwd would be hidden; name another --mount"
    ):
        MountPoint(tmp_path, ours=False)
    (tmp_path / "cgroup.controllers").touch()
    MountPoint(tmp_path, ours=False)


def test_a_place_where_no_directory_can_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="file/b: Not a directory; name another --mount"):
        MountPoint(tmp_path / "file" / "b", ours=False)


def test_a_place_is_known_by_its_true_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "true").mkdir()
    (tmp_path / "link").symlink_to("true")
    (tmp_path / "true" / "end").symlink_to("..")
    assert real(tmp_path / "link" / "new") == tmp_path / "true" / "new"
    assert real(tmp_path / "link" / "end") == tmp_path
    there = mounts.Mount(str(tmp_path / "true" / "end"), mounts.TYPE)
    monkeypatch.setattr(mounts, "mounts", lambda: [there])
    assert real(tmp_path / "link" / "end") == tmp_path / "true" / "end", "a mount is not looked into"
