"""The express lane's loop in machine code: read a fault, open the page, fill it, note it.

The page is evicted and sealed in full, or zero, its row says where, and the engine has granted
room for it beforehand (`express`). Everything else goes back to Python with the event.

The block is shared with other threads, under a spin lock in its first word: the loop holds it from
the look at the credit to the note in the log.
"""

from __future__ import annotations

from typing import Final

from epcgroup.driver.evicted import FLAGS_MASK, MAC, MOST_SHIFT, NO_PLACE, REST, VERSION
from epcgroup.live.paging.compiled.calls import (
    COLUMN,
    LENGTH,
    OWN,
    PAGE_SIZE,
    SCRATCH,
    clock_gettime,
    exchange,
    ioctl,
    peek,
    poke,
    read,
    sched_yield,
)
from epcgroup.live.paging.compiled.rows import row_of, sealed_at
from epcgroup.live.paging.compiled.sealing import unseal
from epcgroup.sgx.layouts import MODIFIED, PENDING, TYPE_MASK, TYPE_SHIFT, PageType, R
from epcgroup.sim.compiler.dialect import INT
from epcgroup.sim.compiler.jit import Entry, part

# Words of the block, as byte offsets.
LOCK: Final = 0
CREDIT: Final = 8  # pages that may still be loaded
NOTED: Final = 16  # entries in the log
START: Final = 24  # the range of addresses
END: Final = 32
BASE: Final = 40  # address of the enclave's page 0
ENCLAVE: Final = 48  # its number
DIRECTORY: Final = 56  # of its rows
PROT: Final = 64  # of the mapping
UFFD: Final = 72
CIPHER: Final = 80  # EVP_CIPHER_CTX for opening
PAGE: Final = 88  # address of a page of scratch memory
BASES: Final = 96  # of the arena
_COPY: Final = SCRATCH + 56  # struct uffdio_copy: 40 bytes
_TIME: Final = SCRATCH + 96  # struct timespec
MESSAGE: Final = OWN  # struct uffd_msg: 32 bytes
LOG_LENGTH: Final = LENGTH
LOG: Final = (
    MESSAGE + 32
)  # columns of a word for each load: index, thread, start, end (ns of CLOCK_MONOTONIC)
SIZE: Final = LOG + 4 * COLUMN
#: How serving ends: reading was interrupted, or there is no more to read; the event in
#: MESSAGE is not answered; the last page was loaded for which there was credit.
NOTHING, UNANSWERED, USED_UP = 0, 1, 2

_UFFDIO_COPY: Final = 0xC028AA03
_COPY_WP: Final = 2
_WRITE, _WP = 1, 2
_W: Final = 2  # of an EPCM word; and
# of that word, what decides whether its page can be read at all (as `epcm.hidden`), and how that must be:
_SHOWN: Final = TYPE_MASK | PENDING | MODIFIED | R
_READABLE: Final = PageType.REG << TYPE_SHIFT | R
_REST: Final = REST << 3
_VERSION: Final = VERSION << 3
_MAC: Final = MAC << 3


def _acquire(block: int) -> int:
    """Take the block's lock; what is in the block holds still then."""
    while exchange(block + LOCK, 1):
        sched_yield(block)
    return 0


@part
def _now(block: int) -> int:
    clock_gettime(block, 1, block + _TIME)
    return peek(block + _TIME) * 1000000000 + peek(block + _TIME + 8)  # type: ignore[no-any-return]


@part
def _fill(block: int, row: int, addr: int, writes: bool) -> bool:
    """Open the page of a row and fill it, if that is all there is to do."""
    place, rest = peek(row), peek(row + _REST)
    flags, writable = rest & FLAGS_MASK, rest & _W
    if place <= 0 or flags & _SHOWN != _READABLE or peek(block + PROT) & ~(rest >> MOST_SHIFT):
        return False
    if writes and not writable:
        return False
    size, sealed = 0, row + _MAC
    if place > NO_PLACE:
        size, sealed = PAGE_SIZE, sealed_at(peek(block + BASES), place - 2)
    page, version, enclave = peek(block + PAGE), peek(row + _VERSION), peek(block + ENCLAVE)
    if not unseal(block, peek(block + CIPHER), version, flags, addr, enclave, page, size, sealed):
        return False
    poke(block + _COPY, addr)
    poke(block + _COPY + 8, page)
    poke(block + _COPY + 16, PAGE_SIZE)
    poke(block + _COPY + 24, 0 if writable else _COPY_WP)
    return ioctl(block, peek(block + UFFD), _UFFDIO_COPY, block + _COPY) == 0  # type: ignore[no-any-return]


def _serve(block: int) -> int:
    """Answer faults as long as there is credit for them; how it ended."""
    message = block + MESSAGE
    while True:
        if read(block, peek(block + UFFD), message, 32) != 32:
            return NOTHING
        started = _now(block)
        flags, addr = peek(message + 8), peek(message + 16)
        while exchange(block + LOCK, 1):
            sched_yield(block)
        served, left = False, 0
        inside = peek(block + START) <= addr and addr < peek(block + END)
        if peek(block + CREDIT) > 0 and inside and not flags & _WP:
            index = (addr - peek(block + BASE)) >> 12
            row = row_of(peek(block + DIRECTORY), index)
            if row:
                served = _fill(block, row, addr & ~(PAGE_SIZE - 1), flags & _WRITE != 0)
            if served:
                poke(row, -peek(row))  # until it is withdrawn
                left = peek(block + CREDIT) - 1
                poke(block + CREDIT, left)
                noted = peek(block + NOTED)
                note = block + LOG + noted * 8
                poke(note, index)
                poke(note + COLUMN, peek(message + 24) & 0xFFFFFFFF)
                poke(note + 2 * COLUMN, started)
                poke(note + 3 * COLUMN, _now(block))
                poke(block + NOTED, noted + 1)
        exchange(block + LOCK, 0)
        if not served:
            return UNANSWERED
        if not left:
            return USED_UP


acquire = Entry(_acquire, (INT,), tell=False)
serve = Entry(_serve, (INT,), tell=False)
