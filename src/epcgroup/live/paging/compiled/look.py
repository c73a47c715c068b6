"""The ages of pages in machine code: which of a batch have a page table entry, which is dropped (`age`).

Pages far apart are asked about in one call of move_pages(2), which tells of each address whether a page
is mapped there, and moves nothing if it is not told where to. It costs a quarter of a read
of the pagemap file for each (16 pages: 4.4 and 18 µs). Where it is not to be had, the file is read.
"""

from __future__ import annotations

from typing import Final

from epcgroup.live.paging.compiled.calls import (
    COLUMN,
    LENGTH,
    OWN,
    errno,
    peek,
    poke,
    pread,
    syscall,
    sysinfo,
)
from epcgroup.live.paging.compiled.evict import neighbours
from epcgroup.sim.compiler.dialect import INT
from epcgroup.sim.compiler.jit import Entry, part

# Words of the block, as byte offsets.
COUNT: Final = 0  # pages
PAGEMAP: Final = 8
PIDFD: Final = 16
MAY_DROP: Final = 24  # whether page table entries may be dropped
BASE: Final = 32  # address of the enclave's page 0
PID: Final = 40
LOOKS: Final = OWN  # columns of a word for each page: index,
PRESENT: Final = LOOKS + COLUMN  # out: whether it has a page table entry
_ADDRESSES: Final = PRESENT + COLUMN
_STATUS: Final = _ADDRESSES + COLUMN  # 32 bits each: what is said of them
_RANGES: Final = _STATUS + COLUMN  # struct iovec, as many as there are pages
_ENTRIES: Final = _RANGES + LENGTH * 16  # entries of the pagemap file; struct sysinfo
SIZE: Final = _ENTRIES + LENGTH * 8
#: What is left to do when a look ends: nothing; the entries are still there.
DROPPED, KEPT = 0, 1

_TOTALSWAP: Final = 64  # bytes into struct sysinfo
_MOVE_PAGES, _PROCESS_MADVISE = 279, 440
_MADV_PAGEOUT: Final = 21


@part
def _ask(job: int) -> bool:
    """Find out which pages have an entry by move_pages(2)."""
    count = peek(job + COUNT)
    for at in range(count):
        row = job + at * 8
        poke(row + PRESENT, 0)
        poke(row + _ADDRESSES, peek(job + BASE) + (peek(row + LOOKS) << 12))
    if syscall(job, _MOVE_PAGES, peek(job + PID), count, job + _ADDRESSES, 0, job + _STATUS, 0):
        return False
    for at in range(count):
        status = peek(job + _STATUS + (at >> 1 << 3)) << (0 if at & 1 else 32)
        if status >= 0:  # the number of a node, and no errno
            poke(job + at * 8 + PRESENT, 1)
    return True


@part
def _read_entries(job: int) -> int:
    """The same from the pagemap file. Pages that are neighbours in the list are looked at together."""
    count, base, entries = peek(job + COUNT), peek(job + BASE), job + _ENTRIES
    at = 0
    while at < count:
        row = job + at * 8
        first, run = peek(row + LOOKS), neighbours(job + LOOKS, at, count)
        found = pread(job, peek(job + PAGEMAP), entries, run << 3, ((base >> 12) + first) << 3)
        for page in range(run):
            if page << 3 < found and peek(entries + (page << 3)) < 0:  # bit 63: present
                poke(row + page * 8 + PRESENT, 1)
        at += run
    return 0


@part
def _present_at(row: int, index: int) -> int:
    """Whether the row of a look is that of page ``index`` and found to have a page table entry."""
    return peek(row + LOOKS) == index and peek(row + PRESENT) != 0  # type: ignore[no-any-return]


@part
def _ranges_of(job: int) -> int:
    """List the ranges that have entries, neighbours in the list together; how many."""
    count, ranges, at = peek(job + COUNT), 0, 0
    while at < count:
        row = job + at * 8
        first, run = peek(row + LOOKS), 0
        while at + run < count and _present_at(row + run * 8, first + run):
            run += 1
        if run:
            poke(job + _RANGES + ranges * 16, peek(job + BASE) + (first << 12))
            poke(job + _RANGES + ranges * 16 + 8, run << 12)
            ranges += 1
        at += max(run, 1)
    return ranges


def _look(job: int) -> int:
    """Find out which pages have a page table entry, and drop these: DROPPED, KEPT, or an errno below 0."""
    if not _ask(job):
        _read_entries(job)
    ranges = _ranges_of(job)
    if not ranges:
        return DROPPED
    if not peek(job + MAY_DROP) or sysinfo(job, job + _ENTRIES) or peek(job + _ENTRIES + _TOTALSWAP):
        return KEPT
    told = syscall(job, _PROCESS_MADVISE, peek(job + PIDFD), job + _RANGES, ranges, _MADV_PAGEOUT, 0)
    return DROPPED if told >= 0 else -errno(job)


look = Entry(_look, (INT,), tell=False)
