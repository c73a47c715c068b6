"""The SGX2 ioctls: RESTRICT_PERMISSIONS, MODIFY_TYPES, REMOVE_PAGES (spec 6.5).

All three go page by page and say in ``count`` how far they came, whatever ended
them. A page that cannot be loaded just now ends the call with EAGAIN (call
again); any other failure to load it is an EFAULT.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

from epcgroup.driver.numbers import EDMM, REMOVE
from epcgroup.driver.refuse import WriteBack, check_range, copy_in, require
from epcgroup.driver.seams import UserMemory
from epcgroup.epc import Caller, EpcPage
from epcgroup.errors import Busy, Refused
from epcgroup.sgx import leaves
from epcgroup.sgx.epcm import page_type
from epcgroup.sgx.layouts import PROT_MASK, PageType, R, SgxError, W
from epcgroup.units import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from epcgroup.driver.file import EnclaveFile

Steps = Generator[None, None, int]
_BATCH = 16  # pages between two steps


class _Call:
    """One running ioctl: what it has done, and the leaf's code if one failed."""

    __slots__ = ("caller", "done", "file", "result")

    def __init__(self, file: EnclaveFile, caller: Caller) -> None:
        self.file = file
        self.caller = caller
        self.done = 0
        self.result = 0

    def load(self, index: int) -> EpcPage:
        """The page, resident. Raises Refused: EAGAIN, EFAULT."""
        machine = self.file.driver.machine
        machine.edmm_reclaim(self.caller)
        try:
            return machine.fault(self.caller, self.file.enclave, index)
        except Busy as busy:
            raise Refused(f"page {index:#x} cannot be loaded now", errno.EAGAIN) from busy
        except Refused as error:
            raise Refused(f"page {index:#x} cannot be loaded: {error}", errno.EFAULT) from error

    def check(self, code: SgxError) -> None:
        """A leaf's code; non-zero goes into ``result``."""
        if code:
            self.result = code
            raise Refused(f"the leaf failed: {code.name}", errno.EFAULT)

    def show(self, index: int) -> None:
        """The page's EPCM word changed."""
        file = self.file
        file.driver.frames.protect(file.enclave.id, index, file.state.epcm[index])


def _ready(file: EnclaveFile) -> None:
    require(file.driver.platform.sgx2, errno.ENODEV, "this processor has no SGX2")
    require(file.initialised, errno.EINVAL, "the enclave is not initialised")
    require(not file.disabled, errno.ENOMEM, "the enclave has lost its memory")


def _each(call: _Call, offset: int, length: int, act: Callable[[_Call, int, EpcPage], None]) -> Steps:
    while call.done < length:
        index = (offset + call.done) >> PAGE_SHIFT
        act(call, index, (yield from _load(call, index)))
        call.done += PAGE_SIZE
        if not call.done % (_BATCH * PAGE_SIZE):
            yield
    return 0


def _load(call: _Call, index: int) -> Generator[None, None, EpcPage]:
    """The page, resident, after as many retries as the policy's driver makes."""
    for _ in range(call.file.driver.rules.edmm_retries):
        try:
            return call.load(index)
        except Refused as refused:
            if refused.errno != errno.EAGAIN or call.caller.signal_pending():
                raise
        yield
    return call.load(index)


def restrict_permissions(file: EnclaveFile, arg: int, mem: UserMemory, caller: Caller) -> Steps:
    """EMODPR: take permissions of regular pages away, until the enclave accepts."""
    _ready(file)
    offset, length, prot, result, count = EDMM.unpack(copy_in(mem, arg, EDMM.size))
    check_range(offset, length, file.size)
    require(not prot & ~PROT_MASK, errno.EINVAL, f"permissions {prot:#x} are more than R, W, X")
    require(prot & (R | W) != W, errno.EINVAL, "W without R")
    require(not result and not count, errno.EINVAL, "result and count must be zero")

    def act(call: _Call, index: int, _page: EpcPage) -> None:
        state = file.state
        kind = page_type(state.epcm[index])
        require(kind == PageType.REG, errno.EINVAL, f"page {index:#x} has type {kind}, not REG")
        call.check(leaves.emodpr(state, index, prot))
        call.show(index)

    call = _Call(file, caller)
    return (yield from _with_result(call, mem, arg, (offset, length, prot), _each(call, offset, length, act)))


def modify_types(file: EnclaveFile, arg: int, mem: UserMemory, caller: Caller) -> Steps:
    """EMODT: a regular page becomes a TCS, or a page is trimmed for removal."""
    _ready(file)
    offset, length, kind, result, count = EDMM.unpack(copy_in(mem, arg, EDMM.size))
    check_range(offset, length, file.size)
    require(kind <= 0xFF, errno.EINVAL, f"page type {kind:#x}")
    require(not result and not count, errno.EINVAL, "result and count must be zero")
    require(kind in (PageType.TCS, PageType.TRIM), errno.EINVAL, f"a page cannot be made type {kind}")

    def act(call: _Call, index: int, page: EpcPage) -> None:
        _modify_type(call, index, page, kind)

    call = _Call(file, caller)
    return (yield from _with_result(call, mem, arg, (offset, length, kind), _each(call, offset, length, act)))


def _modify_type(call: _Call, index: int, page: EpcPage, kind: int) -> None:
    file = call.file
    old = page_type(file.state.epcm[index])
    allowed = old == PageType.REG or (old == PageType.TCS and kind == PageType.TRIM)
    require(allowed, errno.EINVAL, f"page {index:#x}: type {old} cannot become {kind}")
    before = file.maximum[index]
    if old == PageType.REG and kind == PageType.TCS:
        require(before & (R | W) == R | W, errno.EPERM, f"page {index:#x} may not be both read and written")
        # A TCS is the kernel's to touch, never the enclave's; reclaim must not
        # take the page while its mappings are dropped.
        try:
            file.driver.machine.drop_from_lru(page)
        except Busy as busy:
            raise Refused(f"page {index:#x} is being reclaimed", errno.EAGAIN) from busy
        file.set_maximum(index, R | W)
        file.driver.machine.restore_to_lru(page)
    try:
        call.check(leaves.emodt(file.state, index, kind))
    except (leaves.LeafFault, Refused) as error:
        file.set_maximum(index, before)
        if isinstance(error, Refused):
            raise
        raise Refused(str(error), errno.EFAULT) from error
    call.show(index)


def remove_pages(file: EnclaveFile, arg: int, mem: UserMemory, caller: Caller) -> Steps:
    """Free pages that were trimmed and whose trimming the enclave has accepted."""
    _ready(file)
    offset, length, count = REMOVE.unpack(copy_in(mem, arg, REMOVE.size))
    check_range(offset, length, file.size)
    require(not count, errno.EINVAL, "count must be zero")
    call = _Call(file, caller)
    with WriteBack(mem, arg, lambda: REMOVE.pack(offset, length, call.done)):
        return (yield from _each(call, offset, length, _remove))


def _remove(call: _Call, index: int, _page: EpcPage) -> None:
    file = call.file
    kind = page_type(file.state.epcm[index])
    require(kind == PageType.TRIM, errno.EPERM, f"page {index:#x} has type {kind}, not TRIM")
    try:
        # EMODPR works on a page that waits for EACCEPT, and faults on an accepted one.
        leaves.emodpr(file.state, index, PROT_MASK)
    except leaves.PageFault:
        pass
    else:
        raise Refused(f"page {index:#x}: the enclave has not accepted its removal", errno.EPERM)
    file.driver.machine.remove_page(file.enclave, index)
    file.forget_page(index)


def _with_result(call: _Call, mem: UserMemory, arg: int, head: tuple[int, int, int], steps: Steps) -> Steps:
    with WriteBack(mem, arg, lambda: EDMM.pack(*head, call.result, call.done)):
        return (yield from steps)
