"""Traces from elsewhere: valgrind's lackey, ``perf script``, CSV, oracleGeneral.

Addresses become page numbers in the order of their first touch: an enclave has
as many pages as its program touched, and no holes. (The engine's rules know no
distance between pages, so nothing is lost.) An access that crosses a page
boundary is two.

A malformed record ends the conversion with the file, line, field and value.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from epcgroup.errors import BadInput
from epcgroup.sim.trace import Trace, Writer
from epcgroup.units import PAGE_SHIFT

_CHUNK = 1 << 18
Part = tuple[npt.NDArray[Any], npt.NDArray[Any]]  # enclaves, pages
Access = tuple[int, int]  # enclave, page frame (any 64-bit number)

_LACKEY = re.compile(rb"(?:I  | [LSM] )([0-9a-fA-F]+),(\d+)\s*\Z")
_PERF = re.compile(r"\s*(\d+)\s+(?:[\d.]+:\s+)?([0-9a-fA-F]{1,16})\s*\Z")


def lackey(path: Path) -> Iterator[Access]:
    """``valgrind --tool=lackey --trace-mem=yes``: one enclave, instruction fetches, loads, stores."""
    with _open(path) as lines:
        for number, line in enumerate(lines, 1):
            if line.startswith(b"==") or not line.strip():
                continue  # valgrind's own words
            match = _LACKEY.match(line)
            if match is None:
                raise BadInput(
                    f"{path}:{number}: access is {_shown(line)}; want 'I  04000000,3' or ' L 1ffe0,8'"
                )
            address, size = int(match[1], 16), int(match[2])
            if not 0 < size <= 4096:
                raise BadInput(f"{path}:{number}: size is {size}; want 1 to 4096")
            first, last = address >> PAGE_SHIFT, (address + size - 1) >> PAGE_SHIFT
            yield 0, first
            if last != first:
                yield 0, last


def perf_script(path: Path) -> Iterator[Access]:
    """``perf script -F pid,time,addr`` (or pid,addr): a process is an enclave."""
    with _open(path) as lines:
        for number, raw in enumerate(lines, 1):
            line = raw.decode("utf-8", "replace").rstrip()
            if not line or line.startswith("#"):
                continue
            match = _PERF.match(line)
            if match is None:
                raise BadInput(f"{path}:{number}: sample is {_shown(raw)}; want 'PID [TIME:] ADDRESS'")
            yield int(match[1]), int(match[2], 16) >> PAGE_SHIFT


def comma_separated(path: Path) -> Iterator[Access]:
    """A table with the columns ``enclave`` (optional) and ``page`` or ``address``."""
    try:
        with path.open(newline="") as file:
            rows = csv.DictReader(file)
            names = rows.fieldnames or []
            column = next((name for name in ("page", "address") if name in names), None)
            if column is None:
                raise BadInput(f"{path}:1: columns are {', '.join(names) or 'none'}; want page or address")
            shift = PAGE_SHIFT if column == "address" else 0
            for row in rows:
                yield (
                    _number(path, rows.line_num, "enclave", row.get("enclave") or "0"),
                    _number(path, rows.line_num, column, row[column]) >> shift,
                )
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None


def oracle_general(path: Path) -> Iterator[Access]:
    """libCacheSim's oracleGeneral: 24 bytes a request; an object is a page."""
    record = np.dtype([("time", "<u4"), ("object", "<u8"), ("size", "<u4"), ("next", "<i8")])
    try:
        size = path.stat().st_size
        if size % record.itemsize:
            raise BadInput(f"{path}: size is {size} bytes; want a multiple of {record.itemsize}")
        requests = np.memmap(path, record, "r") if size else np.zeros(0, record)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    for start in range(0, len(requests), _CHUNK):
        for number in requests["object"][start : start + _CHUNK].tolist():
            yield 0, number


FORMATS: dict[str, Callable[[Path], Iterator[Access]]] = {
    "lackey": lackey,
    "perf": perf_script,
    "csv": comma_separated,
    "oraclegeneral": oracle_general,
}


def convert(source: Path, form: str, target: Path, progress: Callable[[int], None] | None = None) -> int:
    """Read a trace of another format into one of ours; the number of accesses.

    ``progress`` is called now and then with the accesses so far.
    """
    if form not in FORMATS:
        raise BadInput(f"no trace format {form!r}; there are {', '.join(FORMATS)}")
    clock = {"lackey": "instruction", "perf": "sample"}.get(form, "none")
    with Writer(target, f"{form}: {source.name}", clock=clock) as writer:
        _compact(FORMATS[form](source), writer, progress)
        return writer.info.accesses


def cut(trace: Trace, target: Path, first: int, last: int) -> int:
    """Accesses ``first`` to ``last`` (excluded) of a trace; how many."""
    with _like(trace, target, f"cut {first} to {last}") as writer:
        at = 0
        for enclaves, pages in trace.batches():
            begin, end = max(first - at, 0), min(last - at, len(pages))
            if begin < end:
                writer.append(enclaves[begin:end], pages[begin:end])
            at += len(pages)
            if at >= last:
                break
        return writer.info.accesses


def sample(trace: Trace, target: Path, rate: float) -> int:
    """All accesses to a share of the pages, chosen by a hash of their number (SHARDS); how many.

    Miss ratios of the sample at an EPC of ``rate`` times the size approach those of the whole.
    """
    if not 0 < rate <= 1:
        raise BadInput(f"rate is {rate}; want more than 0, at most 1")
    threshold = np.uint64(min(int(rate * 2.0**64), 2**64 - 1))
    with _like(trace, target, f"sample {rate}") as writer:
        for enclaves, pages in trace.batches():
            key = enclaves.astype(np.uint64) << np.uint64(32) | pages.astype(np.uint64)
            chosen = _hash(key) <= threshold
            writer.append(enclaves[chosen], pages[chosen])
        return writer.info.accesses


def merge(traces: list[Trace], target: Path) -> int:
    """Several traces as one machine sees them, each at a constant share of all accesses.

    Enclaves are numbered anew, in the order of the traces.
    """
    total = sum(trace.info.accesses for trace in traces)
    streams = [trace.batches() for trace in traces]
    held: list[list[Part]] = [[] for _ in traces]
    with Writer(target, "merge: " + ", ".join(trace.path.name for trace in traces)) as writer:
        numbers: list[dict[int, int]] = []
        for trace in traces:
            base = len(writer.info.enclaves)
            numbers.append({old: base + at for at, old in enumerate(sorted(trace.info.enclaves))})
            for old, (name, size) in trace.info.enclaves.items():
                writer.name(numbers[-1][old], f"{trace.path.stem}: {name}", size)
        parts = max(1, total // 4096)
        for part in range(parts):
            for at, trace in enumerate(traces):
                count = trace.info.accesses * (part + 1) // parts - trace.info.accesses * part // parts
                for enclaves, pages in _take(streams[at], held[at], count):
                    lookup = np.vectorize(numbers[at].__getitem__, otypes=[np.int32])
                    writer.append(lookup(enclaves), pages)
        return writer.info.accesses


def _take(stream: Iterator[Part], held: list[Part], count: int) -> Iterator[Part]:
    while count > 0:
        enclaves, pages = held.pop() if held else next(stream)
        yield enclaves[:count], pages[:count]
        if len(pages) > count:
            held.append((enclaves[count:], pages[count:]))
        count -= len(pages)


def _like(trace: Trace, target: Path, what: str) -> Writer:
    info = trace.info
    writer = Writer(target, f"{info.source}; {what}", clock=info.clock, page_size=info.page_size)
    writer.info.enclaves = dict(info.enclaves)
    return writer


def _compact(accesses: Iterable[Access], writer: Writer, progress: Callable[[int], None] | None) -> None:
    frames: dict[Access, int] = {}
    counts: dict[int, int] = {}
    numbers: dict[int, int] = {}
    enclaves: list[int] = []
    pages: list[int] = []
    for access in accesses:
        page = frames.get(access)
        if page is None:
            who = access[0]
            if who not in numbers:
                numbers[who] = len(numbers)
                writer.name(numbers[who], str(who))
            page = frames[access] = counts.get(who, 0)
            counts[who] = page + 1
        enclaves.append(numbers[access[0]])
        pages.append(page)
        if len(pages) == _CHUNK:
            writer.append(np.array(enclaves), np.array(pages))
            enclaves.clear()
            pages.clear()
            if progress is not None:
                progress(writer.info.accesses)
    writer.append(np.array(enclaves, np.int32), np.array(pages, np.int32))


def _hash(key: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    # splitmix64: every bit of the key reaches every bit of the hash.
    x = key + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None


def _number(path: Path, line: int, column: str, text: str | None) -> int:
    try:
        value = int(text or "", 0)
    except ValueError:
        value = -1
    if not 0 <= value < 2**64:
        raise BadInput(f"{path}:{line}: {column} is {text!r}; want a number from 0 to 2^64-1")
    return value


def _shown(line: bytes) -> str:
    return repr(line[:60].decode("utf-8", "replace").rstrip("\n"))
