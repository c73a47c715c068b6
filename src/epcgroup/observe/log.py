"""The structured log: one event a line, as JSON.

Fields are those of `model.Event`; what has its default is left out, ``version`` is
the codec's. A line is written whole and at once, so that a log that is followed or
cut off by a crash is never half a sentence. What the machine would say in plain
words on stderr becomes an event of kind ``said``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from epcgroup.errors import BadInput
from epcgroup.observe import codec
from epcgroup.observe.model import Event


class JsonLog:
    """Writes events to ``file``; a `Journal` listener. A full disk ends the log, not the machine."""

    def __init__(self, file: TextIO) -> None:
        self._file: TextIO | None = file

    def __call__(self, event: Event) -> None:
        """Write one event."""
        if self._file is None:
            return
        try:
            self._file.write(codec.event_line(event) + "\n")
            self._file.flush()
        except (OSError, ValueError):
            self._file = None


def opened(path: Path) -> TextIO:
    """A log file to append to. Raises BadInput."""
    try:
        return path.open("a", encoding="utf-8", buffering=1)
    except OSError as error:
        raise BadInput(f"{path}: cannot be written: {error.strerror}") from None


class Said:
    """A text file whose lines go to ``say``, without the name of the program before them."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._line = ""

    def write(self, text: str) -> int:
        """Part of a line, or several."""
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self._say(line.removeprefix("epcgroup: "))
        return len(text)

    def flush(self) -> None:
        """Lines are passed on when they are whole."""


def read(path: Path) -> Iterator[Event]:
    """The events of a log; a last line without its end is left out, numbers of several machines begin anew.

    Raises BadInput, with file and line, for what is no log.
    """
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith("\n"):
                    return
                try:
                    data = json.loads(line)
                    codec.check_version(data)
                    yield codec.event_from_json(data)
                except (ValueError, AttributeError) as error:
                    raise BadInput(f"{path}:{number}: no event of `--log json`: {error}") from None
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadInput(f"{path}: it is no UTF-8 text; want a log of `--log json`") from None
