"""The structured log."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from epcgroup.errors import BadInput
from epcgroup.observe import log
from epcgroup.observe.model import Event

EVENTS = [Event(1, 5.0, "limit", "/a\n\x1b[2J\udcff", count=3), Event(2, 6.0, "said", reason="words")]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with log.opened(file) as out:
        write = log.JsonLog(out)
        for event in EVENTS:
            write(event)
    assert len(file.read_text().splitlines()) == 2
    assert list(log.read(file)) == EVENTS


def test_a_line_that_a_crash_cut_off_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with log.opened(file) as out:
        log.JsonLog(out)(EVENTS[0])
        out.write('{"version": 1, "numb')
    assert list(log.read(file)) == EVENTS[:1]


@pytest.mark.parametrize("line", ["words", "[1]", '{"version": 7}', '{"version": 1, "kind": "limit"}'])
def test_what_is_no_log_is_refused_with_file_and_line(tmp_path: Path, line: str) -> None:
    file = tmp_path / "log"
    file.write_text(line + "\n")
    with pytest.raises(BadInput, match=r"log:1: no event"):
        list(log.read(file))


def test_a_full_disk_ends_the_log_and_nothing_else() -> None:
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(28, "No space left on device")

    file = Full()
    write = log.JsonLog(file)
    write(EVENTS[0])
    write(EVENTS[1])
    assert file.getvalue().count("\n") == 1


def test_plain_words_become_lines_of_their_own() -> None:
    said: list[str] = []
    out = log.Said(said.append)
    print("epcgroup: one", file=out)
    print("two\nthree", file=out, end="")
    assert said == ["one", "two"]


def test_names_cannot_break_a_line() -> None:
    out = io.StringIO()
    log.JsonLog(out)(EVENTS[0])
    assert out.getvalue().count("\n") == 1
    assert out.getvalue().isascii()
    assert json.loads(out.getvalue())["group"] == EVENTS[0].group
