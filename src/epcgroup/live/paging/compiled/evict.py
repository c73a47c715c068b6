"""Pages of an enclave revoked, sealed, and punched out in machine code, a batch as one job.

As `revoke.hide` and `sgx.seal` do it, one after the other. The rows of the pages are ready then, and
negative (`epcgroup.driver.evicted`); nothing else of the machine is touched, so no lock is needed.
"""

from __future__ import annotations

from typing import Final

from epcgroup.driver.evicted import MAC, MOST_SHIFT, NO_PLACE, REST, SLOT_SHIFT, VERSION
from epcgroup.live.paging.compiled.calls import (
    COLUMN,
    OWN,
    PAGE_SIZE,
    SCRATCH,
    errno,
    fallocate,
    ioctl,
    peek,
    poke,
    pread,
)
from epcgroup.live.paging.compiled.rows import row_of, sealed_at
from epcgroup.live.paging.compiled.sealing import seal
from epcgroup.live.paging.compiled.slots import NO_SLOT, take
from epcgroup.sim.compiler.dialect import INT
from epcgroup.sim.compiler.jit import Entry, part

# Words of the block, as byte offsets.
COUNT: Final = 0  # pages
FIRST: Final = 8  # version of the first one, the others follow
MEMFD: Final = 16
UFFD: Final = 24
BASE: Final = 32  # address of the enclave's page 0
ENCLAVE: Final = 40  # its number
DIRECTORY: Final = 48  # of its rows
SEALING: Final = 56  # EVP_CIPHER_CTX
PLAIN: Final = 64  # address of a page of scratch memory
BASES: Final = 72  # of the arena
ZEROS: Final = 80  # out: how many pages are all zero; each left a MAC, and its place unused
VA: Final = 88  # of the words of its VA slots (keep)
_ARGUMENT: Final = SCRATCH + 56  # struct uffdio_writeprotect
PAGES: Final = OWN  # columns of a word for each page: its index,
WORDS: Final = PAGES + COLUMN  # its EPCM word,
MOSTS: Final = WORDS + COLUMN  # the most that a mapping of it may allow,
PLACES: Final = MOSTS + COLUMN  # a place for it; out: negative if it is unused
SIZE: Final = PLACES + COLUMN
#: No page was touched, and one has no row yet.
NO_ROWS: Final = -1

_ENOENT, _ESRCH, _EIO = 2, 3, 5
_PUNCH: Final = 3  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
_UFFDIO_WRITEPROTECT: Final = 0xC018AA06
_REST: Final = REST << 3
_VERSION: Final = VERSION << 3
_MAC: Final = MAC << 3


@part
def neighbours(indices: int, at: int, count: int) -> int:
    """Of a list of ``count`` pages: how many from ``at`` on are in a row."""
    first, run = peek(indices + at * 8), 1
    while at + run < count and peek(indices + (at + run) * 8) == first + run:
        run += 1
    return run


@part
def _protect(job: int, addr: int, pages: int) -> int:
    """Write-protect neighbours; 0 (also where there is nothing to be written to), or the errno."""
    poke(job + _ARGUMENT, addr)
    poke(job + _ARGUMENT + 8, pages << 12)
    poke(job + _ARGUMENT + 16, 1)
    if ioctl(job, peek(job + UFFD), _UFFDIO_WRITEPROTECT, job + _ARGUMENT) == 0:
        return 0
    error = errno(job)
    if error == _ESRCH:
        return 0
    if error == _ENOENT and pages == 1:  # (of several, the request ended at the first that is not mapped)
        return 0
    return error


@part
def _protect_all(job: int) -> int:
    count, base, pages = peek(job + COUNT), peek(job + BASE), job + PAGES
    at = 0
    while at < count:
        first, run = peek(pages + at * 8), neighbours(pages, at, count)
        error = _protect(job, base + (first << 12), run)
        if error == _ENOENT:
            error = 0
            for page in range(first, first + run):
                if not error:
                    error = _protect(job, base + (page << 12), 1)
        if error:
            return error
        at += run
    return 0


@part
def _all_zero(page: int) -> bool:
    word = 0
    while word < PAGE_SIZE and not peek(page + word):
        word += 8
    return word == PAGE_SIZE


@part
def _seal_all(job: int) -> int:
    base, page = peek(job + BASE), peek(job + PLAIN)
    zeros = 0
    for at in range(peek(job + COUNT)):
        column = job + at * 8
        index, flags, place = peek(column + PAGES), peek(column + WORDS), peek(column + PLACES)
        if pread(job, peek(job + MEMFD), page, PAGE_SIZE, index << 12) != PAGE_SIZE:
            return _EIO
        row, version = row_of(peek(job + DIRECTORY), index), peek(job + FIRST) + at
        size, out = PAGE_SIZE, sealed_at(peek(job + BASES), place)
        if _all_zero(page):
            size, out = 0, row + _MAC
        addr = base + (index << 12)
        if not seal(job, peek(job + SEALING), version, flags, addr, peek(job + ENCLAVE), page, size, out):
            return _EIO
        poke(row, -2 - place)
        if not size:
            poke(row, -NO_PLACE)
            poke(column + PLACES, -1)
            zeros += 1
        poke(row + _REST, flags | peek(column + MOSTS) << MOST_SHIFT)
        poke(row + _VERSION, version)
    poke(job + ZEROS, zeros)
    return 0


@part
def _punch_all(job: int) -> int:
    count, pages, at = peek(job + COUNT), job + PAGES, 0
    while at < count:
        first, run = peek(pages + at * 8), neighbours(pages, at, count)
        if fallocate(job, peek(job + MEMFD), _PUNCH, first << 12, run << 12):
            return errno(job)
        at += run
    return 0


def _evict(job: int) -> int:
    """Revoke and seal the pages of a job: 0, NO_ROWS, or an errno and nothing has been taken out yet."""
    for at in range(peek(job + COUNT)):
        if not row_of(peek(job + DIRECTORY), peek(job + PAGES + at * 8)):
            return NO_ROWS
    error = _protect_all(job)
    if not error:
        error = _seal_all(job)
    if not error:
        error = _punch_all(job)
    return error


def _keep(job: int) -> int:
    """The pages of a job that was done have arrived in the store: how many of them have a place.

    Their versions are in VA slots; NO_SLOT if there are too few of these.
    """
    stored = 0
    for at in range(peek(job + COUNT)):
        column = job + at * 8
        row = row_of(peek(job + DIRECTORY), peek(column + PAGES))
        place = -peek(row)
        slot = take(peek(job + VA), peek(row + _VERSION))
        if slot == NO_SLOT:
            return NO_SLOT
        poke(row, place)
        poke(row + _REST, peek(row + _REST) | slot << SLOT_SHIFT)
        if place > NO_PLACE:
            stored += 1
    return stored


evict = Entry(_evict, (INT,), tell=False)
keep = Entry(_keep, (INT,), tell=False)
