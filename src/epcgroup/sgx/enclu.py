"""ENCLU: the leaves an enclave calls on itself (SDM; spec 6.9).

Operands are linear addresses inside the enclave and may lie on pages that are
evicted or not there at all, so every access goes through Memory, which brings
pages in as a fault would. Order everywhere: alignment and range (#GP), presence
and EPCM (#PF), then the act. EMODPE and EREPORT leave RAX and the flags alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

from epcgroup.sgx.enclave import EnclaveState
from epcgroup.sgx.epcm import describe, page_type
from epcgroup.sgx.faults import EPCM_VIOLATION, PF_W, GeneralProtection, PageFault, Result
from epcgroup.sgx.keys import KeyRoot, cmac, is_legal
from epcgroup.sgx.layouts import (
    MODIFIED,
    PENDING,
    PR,
    PROT_MASK,
    TYPE_MASK,
    KeyRequest,
    PageType,
    R,
    Report,
    SecInfo,
    SgxError,
    TargetInfo,
    W,
)
from epcgroup.sgx.tcs import check_new_tcs
from epcgroup.units import PAGE_SIZE

_STATES = PENDING | MODIFIED | PR
_FLAGS = TYPE_MASK | PROT_MASK | _STATES
_COMPARED = _FLAGS & ~PR


class Memory(Protocol):
    """An enclave's own memory as its code sees it.

    ``read`` and ``write`` make enclave accesses and raise PageFault where the
    EPCM forbids them, ``check`` only looks; ``word`` makes the page resident and returns its EPCM
    word; ``set_word`` changes it (and what programs may do with the page).
    All may raise Busy: nothing happened, run background work and try again.
    """

    def read(self, addr: int, length: int) -> bytes: ...
    def write(self, addr: int, data: bytes) -> None: ...
    def check(self, addr: int, access: str) -> None: ...
    def word(self, addr: int) -> int: ...
    def set_word(self, addr: int, word: int) -> None: ...
    def copy_page(self, source: int, target: int) -> None: ...
    def tcs_read(self, addr: int) -> bytes: ...


def _operand(state: EnclaveState, addr: int, length: int, align: int) -> None:
    if addr & (align - 1) or not state.contains(addr, length):
        raise GeneralProtection(f"operand {addr:#x}: not {align}-byte aligned or outside the enclave")


def _secinfo(state: EnclaveState, memory: Memory, addr: int, allowed: int) -> int:
    _operand(state, addr, SecInfo.size(), 64)
    raw = memory.read(addr, SecInfo.size())
    flags = int.from_bytes(raw[:8], "little")
    if any(raw[8:]) or flags & ~allowed:
        raise GeneralProtection(f"SECINFO flags {flags:#x} or reserved bytes not acceptable")
    return flags


def eaccept(state: EnclaveState, memory: Memory, secinfo: int, page: int) -> Result:
    """Agree to what the driver did to ``page`` (EAUG, EMODPR, EMODT).

    RAX = 19 when the page is not as ``secinfo`` says.
    """
    _operand(state, page, PAGE_SIZE, PAGE_SIZE)
    flags = _secinfo(state, memory, secinfo, _FLAGS)
    if not _acceptable(flags):
        raise GeneralProtection(f"EACCEPT: {describe(flags)} is nothing to be accepted")
    word = memory.word(page)
    if (word ^ flags) & _COMPARED:
        return Result(SgxError.PAGE_ATTRIBUTES_MISMATCH)
    if page_type(flags) == PageType.TCS:
        check_new_tcs(state, memory.tcs_read(page))
    memory.set_word(page, word & ~_STATES)
    return Result()


def _acceptable(flags: int) -> bool:
    """Whether some change by the driver leaves a page like this (SDM: EACCEPT)."""
    if page_type(flags) == PageType.REG:
        return not flags & MODIFIED and bool(flags & (PR | PENDING))
    return page_type(flags) in (PageType.TCS, PageType.TRIM) and flags & _STATES == MODIFIED


def emodpe(state: EnclaveState, memory: Memory, secinfo: int, page: int) -> None:
    """Give ``page`` more permissions; takes effect at once."""
    _operand(state, page, PAGE_SIZE, PAGE_SIZE)
    flags = _secinfo(state, memory, secinfo, _FLAGS)
    word = memory.word(page)
    if page_type(word) != PageType.REG or word & (PENDING | MODIFIED):
        raise PageFault(page, EPCM_VIOLATION | PF_W)
    if (word | flags) & R == 0 and flags & W:
        raise GeneralProtection("EMODPE: W without R")
    memory.set_word(page, word | (flags & PROT_MASK))


def eacceptcopy(state: EnclaveState, memory: Memory, secinfo: int, page: int, source: int) -> Result:
    """Accept a PENDING page with the contents of ``source`` and new permissions."""
    _operand(state, page, PAGE_SIZE, PAGE_SIZE)
    _operand(state, source, PAGE_SIZE, PAGE_SIZE)
    flags = _secinfo(state, memory, secinfo, TYPE_MASK | PROT_MASK)
    if page_type(flags) != PageType.REG or flags & (R | W) == W:
        raise GeneralProtection(f"EACCEPTCOPY: SECINFO flags {flags:#x}")
    memory.read(source, 1)
    word = memory.word(page)
    if word & (_STATES | PROT_MASK | TYPE_MASK) != PageType.REG << 8 | PENDING | R | W:
        return Result(SgxError.PAGE_ATTRIBUTES_MISMATCH)
    memory.copy_page(source, page)
    memory.set_word(page, (word & ~(PROT_MASK | _STATES)) | (flags & PROT_MASK))
    return Result()


def ereport(
    state: EnclaveState,
    memory: Memory,
    keys: KeyRoot,
    target_info: int,
    report_data: int,
    output: int,
    key_id: Callable[[], bytes] = lambda: os.urandom(32),
) -> None:
    """Write a REPORT on this enclave that only the target can verify."""
    _operand(state, target_info, TargetInfo.size(), 512)
    _operand(state, report_data, 64, 128)
    _operand(state, output, Report.size(), 512)
    memory.check(output, "w")
    raw = memory.read(target_info, TargetInfo.size())
    if not TargetInfo.canonical(raw):
        raise GeneralProtection("EREPORT: reserved bytes of TARGETINFO are not zero")
    target = TargetInfo.unpack(raw)
    secs, fresh = state.secs, key_id()
    report = Report(
        cpu_svn=state.platform.cpu_svn,
        miscselect=secs.miscselect,
        isv_ext_prod_id=state.isv_ext_prod_id,
        attributes=secs.attributes,
        xfrm=secs.xfrm,
        mrenclave=secs.mrenclave,
        mrsigner=secs.mrsigner,
        config_id=secs.config_id,
        isv_prod_id=secs.isv_prod_id,
        isv_svn=secs.isv_svn,
        config_svn=secs.config_svn,
        isv_family_id=state.isv_family_id,
        report_data=memory.read(report_data, 64),
        key_id=fresh,
    ).pack()
    mac = cmac(keys.report_key(target, state.platform.cpu_svn, fresh), report[: Report.BODY])
    memory.write(output, report[:-16] + mac)


def egetkey(state: EnclaveState, memory: Memory, keys: KeyRoot, request: int, output: int) -> Result:
    """Write a 16-byte key; RAX = 2, 32, 64 or 256 when the enclave may not have it."""
    _operand(state, request, KeyRequest.size(), 512)
    _operand(state, output, 16, 16)
    memory.check(output, "w")
    raw = memory.read(request, KeyRequest.size())
    wanted = KeyRequest.unpack(raw)
    if not KeyRequest.canonical(raw) or not is_legal(state, wanted):
        raise GeneralProtection("EGETKEY: reserved bytes, KEYPOLICY or CONFIGSVN not acceptable")
    error, key = keys.get(state, wanted)
    if error:
        return Result(error)
    memory.write(output, key)
    return Result()
