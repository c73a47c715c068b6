"""Traces made of others: converted from elsewhere, cut, merged, sampled.

Addresses become page numbers in the order of their first touch: an enclave has
as many pages as its program touched, and no holes. (The engine's rules know no
distance between pages, so nothing is lost.) An access that crosses a page
boundary is two.

Each function takes a ``progress``, called now and then with the share that is done
and the accesses read so far. Nothing of a conversion that fails, is interrupted
or killed is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from epcgroup.errors import BadInput
from epcgroup.sim.traces.readers import FORMATS, Access, Source
from epcgroup.sim.traces.trace import Trace, Writer

_CHUNK = 1 << 18
Part = tuple[npt.NDArray[Any], npt.NDArray[Any]]  # enclaves, pages
Progress = Callable[[float, int], None]


def silent(_share: float, _accesses: int) -> None:
    """No progress is shown."""


def convert(path: Path, form: str, target: Path, progress: Progress = silent) -> int:
    """Read a trace of another format into one of ours; the number of accesses."""
    if form not in FORMATS:
        raise BadInput(f"no trace format {form!r}; there are {', '.join(FORMATS)}")
    reader, clock = FORMATS[form]
    source = Source(path)
    with source.file, Writer(target, f"{form}: {path.name}", clock=clock) as writer:
        _compact(reader(source), writer, source.share, progress)
        if not writer.info.accesses:
            raise BadInput(f"{path}: there is no access in it; want what {form} records")
    return writer.info.accesses


def cut(trace: Trace, target: Path, first: int, last: int, progress: Progress = silent) -> int:
    """Accesses ``first`` to ``last`` (excluded) of a trace; how many."""
    if first >= trace.info.accesses:
        raise BadInput(f"{trace.path}: it has {trace.info.accesses:,} accesses, none from {first:,} on")
    with _like(trace, target, f"cut {first} to {last}") as writer:
        at = 0
        for enclaves, pages in trace.batches():
            begin, end = max(first - at, 0), min(last - at, len(pages))
            if begin < end:
                writer.append(enclaves[begin:end], pages[begin:end])
            at += len(pages)
            progress(at / min(last, trace.info.accesses), at)
            if at >= last:
                break
    return writer.info.accesses


def sample(trace: Trace, target: Path, rate: float, progress: Progress = silent) -> int:
    """All accesses to a share of the pages, chosen by a hash of their number (SHARDS); how many.

    Miss ratios of the sample at an EPC of ``rate`` times the size approach those of the whole.
    """
    if not 0 < rate <= 1:
        raise BadInput(f"rate is {rate}; want more than 0, at most 1")
    threshold = np.uint64(min(int(rate * 2.0**64), 2**64 - 1))
    with _like(trace, target, f"sample {rate}") as writer:
        at = 0
        for enclaves, pages in trace.batches():
            key = enclaves.astype(np.uint64) << np.uint64(32) | pages.astype(np.uint64)
            chosen = _hash(key) <= threshold
            writer.append(enclaves[chosen], pages[chosen])
            at += len(pages)
            progress(at / trace.info.accesses, at)
    return writer.info.accesses


def merge(traces: list[Trace], target: Path, progress: Progress = silent) -> int:
    """Several traces as one machine sees them, each at a constant share of all accesses.

    Enclaves are numbered anew, in the order of the traces.
    """
    total = sum(trace.info.accesses for trace in traces)
    streams = [trace.batches() for trace in traces]
    held: list[list[Part]] = [[] for _ in traces]
    with Writer(target, "merge: " + ", ".join(trace.path.name for trace in traces)) as writer:
        tables: list[npt.NDArray[np.int32]] = []  # new number of each old one
        for trace in traces:
            base = len(writer.info.enclaves)
            tables.append(np.zeros(max(trace.info.enclaves, default=0) + 1, np.int32))
            for at, (old, (name, size)) in enumerate(sorted(trace.info.enclaves.items())):
                tables[-1][old] = base + at
                writer.name(base + at, f"{trace.path.stem}: {name}", size)
        parts = max(1, total // 4096)
        for part in range(parts):
            for at, trace in enumerate(traces):
                count = trace.info.accesses * (part + 1) // parts - trace.info.accesses * part // parts
                for enclaves, pages in _take(streams[at], held[at], count):
                    writer.append(tables[at][enclaves], pages)
            progress((part + 1) / parts, writer.info.accesses)
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


def _compact(
    accesses: Iterator[Access], writer: Writer, share: Callable[[], float], progress: Progress
) -> None:
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
            progress(share(), writer.info.accesses)
    writer.append(np.array(enclaves, np.int32), np.array(pages, np.int32))


def _hash(key: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    # splitmix64: every bit of the key reaches every bit of the hash.
    x = key + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
