"""ENCLAVE_ADD_PAGES (spec 6.5): copy, EADD and measure pages before INIT.

Loaders add hundreds of MiB in one call, mostly zeros, so the source is read in
large pieces and an all-zero piece is noticed as a whole. Between batches of
pages the ioctl lets go of the machine and looks for a signal; the kernel looks
before every page, which no program can tell apart.

Order inside one page: EPC page (reclaiming if need be), VA growth, map entry,
source, EADD, EEXTEND. What was added before an error stays, and ``count``
always says how much that is.
"""

from __future__ import annotations

import errno
from collections.abc import Generator
from typing import TYPE_CHECKING

from epcgroup.driver.numbers import ADD_PAGES, ADD_PAGES_COUNT_AT, PAGE_MEASURE, POINTER, SECINFO_SIZE
from epcgroup.driver.refuse import WriteBack, awaited, check_range, copy_in, require
from epcgroup.driver.seams import UserMemory
from epcgroup.epc import Caller
from epcgroup.errors import Interrupted, Refused
from epcgroup.sgx.layouts import PROT_MASK, TYPE_MASK, TYPE_SHIFT, PageType, R, SecInfo, W
from epcgroup.sgx.leaves import LeafFault, eadd, eextend
from epcgroup.units import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from epcgroup.driver.file import EnclaveFile

BATCH = 16  # pages between two looks at the world
_PIECE = 1 << 20
_ZEROS = bytes(_PIECE)
_ZERO_PAGE = bytes(PAGE_SIZE)
_TCS = PageType.TCS << TYPE_SHIFT


def add_pages(file: EnclaveFile, arg: int, mem: UserMemory, caller: Caller) -> Generator[None, None, int]:
    require(file.created and not file.initialised, errno.EINVAL, "not created yet, or already initialised")
    require(not file.disabled, errno.ENOMEM, "the enclave has lost its memory")
    src, offset, length, secinfo, flags, _ = ADD_PAGES.unpack(copy_in(mem, arg, ADD_PAGES.size))
    require(not src % PAGE_SIZE, errno.EINVAL, f"source {src:#x} is not page aligned")
    check_range(offset, length, file.size)
    yield from awaited(mem, secinfo, SECINFO_SIZE)
    info = _secinfo(copy_in(mem, secinfo, SECINFO_SIZE))
    progress = _Progress()
    with WriteBack(mem, arg + ADD_PAGES_COUNT_AT, lambda: POINTER.pack(progress.done)):
        source = Source(mem, src, length)
        yield from _add(file, caller, source, offset, info, bool(flags & PAGE_MEASURE), progress)
    return 0


class _Progress:
    """Bytes added so far."""

    __slots__ = ("done",)

    def __init__(self) -> None:
        self.done = 0


def _secinfo(raw: bytes) -> int:
    flags = SecInfo.unpack(raw).flags
    kind, prot = (flags & TYPE_MASK) >> TYPE_SHIFT, flags & PROT_MASK
    require(kind in (PageType.REG, PageType.TCS), errno.EINVAL, f"page type {kind} cannot be added")
    require(prot & (R | W) != W, errno.EINVAL, "W without R")
    require(kind == PageType.REG or not prot, errno.EINVAL, "a TCS has no permissions of its own")
    require(not flags & ~(TYPE_MASK | PROT_MASK), errno.EINVAL, f"reserved bits in SECINFO flags {flags:#x}")
    require(SecInfo.canonical(raw), errno.EINVAL, "reserved bytes of SECINFO are not zero")
    return flags


def _add(
    file: EnclaveFile,
    caller: Caller,
    source: Source,
    offset: int,
    flags: int,
    measure: bool,
    progress: _Progress,
) -> Generator[None, None, None]:
    short_count = file.driver.rules.short_count_on_signal
    while progress.done < source.length:
        if caller.signal_pending():
            if not progress.done:
                raise Interrupted("a signal came before the first page")
            return
        end = min(progress.done + BATCH * PAGE_SIZE, source.length)
        try:
            while progress.done < end:
                while source.pending(progress.done):
                    yield
                _add_one(
                    file,
                    caller,
                    source,
                    progress.done,
                    (offset + progress.done) >> PAGE_SHIFT,
                    flags,
                    measure,
                )
                progress.done += PAGE_SIZE
        except Interrupted:
            # Restarting the call would meet its own pages (EBUSY); a short count is resumed.
            if short_count and progress.done:
                return
            raise
        if progress.done < source.length:  # or the answer would wait for a turn
            yield


def _add_one(
    file: EnclaveFile, caller: Caller, source: Source, at: int, index: int, flags: int, measure: bool
) -> None:
    driver, enclave, state = file.driver, file.enclave, file.state
    driver.machine.add_page(caller, enclave, index)
    try:
        contents = eadd(state, index, flags, source.page(at))
        if measure:
            eextend(state, index, contents)
    except (LeafFault, Refused) as error:
        driver.machine.cancel_page(enclave, index)
        if isinstance(error, Refused):
            raise
        raise Refused(str(error), errno.EIO) from error
    try:
        driver.frames.add(enclave.id, index, contents, state.epcm[index])
    except OSError as error:  # no memory for the page: it is not there
        state.epcm.pop(index)
        driver.frames.drop(enclave.id, index)
        driver.machine.cancel_page(enclave, index)
        raise Refused(f"no memory for an enclave page: {error.strerror}", errno.ENOMEM) from error
    file.set_maximum(index, R | W if flags & TYPE_MASK == _TCS else flags & PROT_MASK)


class Source:
    """The calling program's source buffer, read in pieces."""

    __slots__ = ("_at", "_mem", "_ok_until", "_piece", "_start", "_zero", "length")

    def __init__(self, mem: UserMemory, start: int, length: int) -> None:
        self._mem = mem
        self._start = start
        self.length = length
        self._at = 0  # offset of the piece held
        self._piece = b""
        self._zero = False
        self._ok_until = 0  # offset up to which the mapping is known to be good

    def pending(self, offset: int) -> bool:
        """Whether the page at ``offset`` is not there yet."""
        held = self._at <= offset < self._at + len(self._piece)
        return not held and self._mem.pending(self._start + offset, PAGE_SIZE)

    def page(self, offset: int) -> bytes:
        """The page at ``offset``. Raises Refused: EFAULT (not there), EACCES (noexec)."""
        if not self._at <= offset < self._at + len(self._piece):
            self._fetch(offset)
        if self._zero:
            return _ZERO_PAGE
        begin = offset - self._at
        return self._piece[begin : begin + PAGE_SIZE]

    def _fetch(self, offset: int) -> None:
        addr = self._start + offset
        if offset >= self._ok_until:
            state, length = self._mem.source_ok(addr, self.length - offset)
            require(state != "fault", errno.EFAULT, f"source {addr:#x} is not mapped or not readable")
            require(state != "noexec", errno.EACCES, f"source {addr:#x} lies on a noexec mount")
            self._ok_until = offset + length
        wanted = min(_PIECE, self._ok_until - offset)
        wanted -= wanted % PAGE_SIZE
        try:
            self._piece = copy_in(self._mem, addr, max(wanted, PAGE_SIZE))
        except Refused:
            self._piece = copy_in(self._mem, addr, PAGE_SIZE)  # perhaps only the end is missing
        self._at = offset
        piece = self._piece
        self._zero = piece == (_ZEROS if len(piece) == _PIECE else bytes(len(piece)))
