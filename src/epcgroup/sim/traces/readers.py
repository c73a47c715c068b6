"""Records of elsewhere, one access after the other: lackey, ``perf script``, CSV, oracleGeneral.

A malformed record is a BadInput with file, line, field and value.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from epcgroup.errors import BadInput
from epcgroup.units import PAGE_SHIFT

Access = tuple[int, int]  # enclave, page frame (any 64-bit number)

_LACKEY = re.compile(rb"(?:I  | [LSM] )([0-9a-fA-F]{1,16}),(\d{1,9})\s*\Z")
_HEX = re.compile(rb"(?:0x)?[0-9a-fA-F]{1,16}\Z")
_TIME = re.compile(rb"\d+\.\d+:\Z|\d+:\Z")
_RECORD = np.dtype([("time", "<u4"), ("object", "<u8"), ("size", "<u4"), ("next", "<i8")])
_REQUESTS = 1 << 16  # read at once


class Source:
    """A file being read; ``share`` of it that is done."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.file: IO[bytes] = path.open("rb")
            self.size = path.stat().st_size
        except OSError as error:
            raise BadInput(f"{path}: {error.strerror}") from None

    def share(self) -> float:
        """0 to 1; 0 for a pipe, whose end nobody knows."""
        return self.file.tell() / self.size if self.size else 0.0

    def fault(self, line: int, field: str, value: bytes | str | None, want: str) -> BadInput:
        """A field of a line is not as it should be."""
        shown = value[:60].decode("utf-8", "replace").rstrip("\n") if isinstance(value, bytes) else value
        said = "missing" if value is None else repr(shown)
        return BadInput(f"{self.path}:{line}: {field} is {said}; want {want}")


def lackey(source: Source) -> Iterator[Access]:
    """``valgrind --tool=lackey --trace-mem=yes``: one enclave, instruction fetches, loads, stores."""
    for number, line in enumerate(source.file, 1):
        match = _LACKEY.match(line)
        if match is None:
            if line.startswith((b"==", b"--")) or not line.strip():
                continue  # valgrind's own words
            raise source.fault(number, "access", line, "'I  04000000,3' or ' L 1ffe0,8'")
        address, size = int(match[1], 16), int(match[2])
        if not 0 < size <= 4096:
            raise source.fault(number, "size", match[2], "1 to 4096")
        first, last = address >> PAGE_SHIFT, (address + size - 1) >> PAGE_SHIFT
        yield 0, first
        if last != first:
            yield 0, last


def perf_script(source: Source) -> Iterator[Access]:
    """``perf script -F pid,time,addr`` (or pid,addr): a process is an enclave."""
    for number, line in enumerate(source.file, 1):
        words = line.split()
        if not words or words[0].startswith(b"#"):
            continue
        if len(words) not in (2, 3):
            raise source.fault(number, "sample", line, "'PID [TIME:] ADDRESS'")
        if not words[0].isdigit():
            raise source.fault(number, "pid", words[0], "a number")
        if len(words) == 3 and not _TIME.match(words[1]):
            raise source.fault(number, "time", words[1], "seconds and a colon, as 12.345:")
        if not _HEX.match(words[-1]):
            raise source.fault(number, "address", words[-1], "up to 16 hexadecimal digits")
        yield int(words[0]), int(words[-1], 16) >> PAGE_SHIFT


def comma_separated(source: Source) -> Iterator[Access]:
    """A table with the columns ``enclave`` (optional) and ``page`` or ``address``."""
    rows = csv.reader(_lines(source))
    names = [name.strip() for name in next(rows, [])]
    column = next((name for name in ("page", "address") if name in names), None)
    if column is None:
        raise source.fault(1, "columns", ", ".join(names), "page or address")
    shift = PAGE_SHIFT if column == "address" else 0
    what, who = names.index(column), names.index("enclave") if "enclave" in names else None
    try:
        for row in rows:
            if not row:
                continue
            line = rows.line_num
            enclave = 0 if who is None else _number(source, line, "enclave", row, who)
            yield enclave, _number(source, line, column, row, what) >> shift
    except csv.Error as error:
        raise source.fault(rows.line_num, "row", str(error), "comma-separated values") from None


def oracle_general(source: Source) -> Iterator[Access]:
    """libCacheSim's oracleGeneral: 24 bytes a request; an object is a page."""
    each = _RECORD.itemsize
    done = 0
    while block := source.file.read(_REQUESTS * each):
        whole = len(block) // each
        for number in np.frombuffer(block, _RECORD, whole)["object"].tolist():
            yield 0, number
        done += whole
        if len(block) % each:
            cut = f"{len(block) % each} bytes"
            raise BadInput(f"{source.path}: record {done + 1}: size is {cut}; want {each} bytes a record")


FORMATS: dict[str, tuple[Callable[[Source], Iterator[Access]], str]] = {
    "lackey": (lackey, "instruction"),
    "perf": (perf_script, "sample"),
    "csv": (comma_separated, "none"),
    "oraclegeneral": (oracle_general, "none"),
}
"""Reader, and what one of its accesses stands for."""


def _lines(source: Source) -> Iterator[str]:
    """The lines of a text; a byte order mark, as spreadsheets write it, is no part of the first name."""
    for number, line in enumerate(source.file):
        yield (line if number else line.removeprefix(codecs.BOM_UTF8)).decode("utf-8", "replace")


def _number(source: Source, line: int, column: str, row: list[str], at: int) -> int:
    text = row[at] if at < len(row) else None
    try:
        value = int(text or "", 0)
    except ValueError:
        value = -1
    if not 0 <= value < 2**64:
        raise source.fault(line, column, text, "a number from 0 to 2^64-1: 31, 0x1f")
    return value
