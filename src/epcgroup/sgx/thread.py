"""Threads in an enclave: EENTER, EEXIT, asynchronous exit, ERESUME, EDECCSSA.

Pure computations on a register set, a TCS and SSA frames; the caller owns the
real registers and threads (SDM: EENTER, ERESUME, EEXIT, EDECCSSA, "Asynchronous
Enclave Exits"). CSSA and AEP live in the TCS page, which is evicted and loaded
like any other. What stays outside is what the processor keeps in internal
registers while a thread is inside: the TCS and the untrusted FS and GS bases.

Every function first does all that can fault or find memory busy and changes
registers last, so a call that raised can simply be made again.
"""

from __future__ import annotations

from dataclasses import dataclass

from epcgroup.sgx import xstate
from epcgroup.sgx.enclave import EnclaveState
from epcgroup.sgx.epcm import page_type
from epcgroup.sgx.faults import EPCM_VIOLATION, GeneralProtection, PageFault
from epcgroup.sgx.layouts import (
    MODIFIED,
    PENDING,
    TCS_AEP_OFFSET,
    TCS_AEXNOTIFY,
    TCS_CSSA_OFFSET,
    TCS_DBGOPTIN,
    Attribute,
    Enclu,
    GprSgx,
    PageType,
    Tcs,
)
from epcgroup.sgx.ssa import Frame, FrameMemory, exception_info, exit_info
from epcgroup.units import PAGE_SIZE

ENCLU_LENGTH = 3
# (& of a number and a member of an IntFlag makes a member, which takes a microsecond.)
_AEX_NOTIFY = int(Attribute.ASYNC_EXIT_NOTIFY)
STATUS = 0x8D5  # CF PF AF ZF SF OF
_RF = 1 << 16
# What ERESUME takes from the frame: status flags, DF, RF, AC, ID. Not TF, IF, IOPL.
_RESTORED = STATUS | 1 << 10 | _RF | 1 << 18 | 1 << 21
GENERAL = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip


@dataclass(slots=True)
class Registers:
    """Registers of one thread, as unsigned 64-bit integers."""

    rax: int = 0
    rcx: int = 0
    rdx: int = 0
    rbx: int = 0
    rsp: int = 0
    rbp: int = 0
    rsi: int = 0
    rdi: int = 0
    r8: int = 0
    r9: int = 0
    r10: int = 0
    r11: int = 0
    r12: int = 0
    r13: int = 0
    r14: int = 0
    r15: int = 0
    rip: int = 0
    rflags: int = 0x202
    fs_base: int = 0
    gs_base: int = 0


@dataclass(frozen=True, slots=True)
class Inside:
    """What the processor remembers while a thread is inside."""

    tcs: int  # linear address
    aep: int
    fs_base: int  # of the untrusted side
    gs_base: int


def _require(condition: object, why: str) -> None:
    if not condition:
        raise GeneralProtection(why)


def _canonical(addr: int) -> bool:
    return addr < 1 << 47 or addr >= (1 << 64) - (1 << 47)


def load_tcs(state: EnclaveState, memory: FrameMemory, addr: int) -> Tcs:
    """The TCS at ``addr``. #GP when misaligned, #PF when it is no usable TCS."""
    _require(
        not addr & (PAGE_SIZE - 1) and state.contains(addr, PAGE_SIZE),
        f"TCS {addr:#x} is not page aligned or outside the enclave",
    )
    word = memory.word(addr)
    if page_type(word) != PageType.TCS or word & (PENDING | MODIFIED):
        raise PageFault(addr, EPCM_VIOLATION)
    return Tcs.unpack(memory.tcs_read(addr))


def _enterable(state: EnclaveState, memory: FrameMemory, regs: Registers) -> Tcs:
    """The checks EENTER and ERESUME share. RBX is the TCS, RCX the AEP."""
    tcs = load_tcs(state, memory, regs.rbx)
    _require(_canonical(regs.rcx), f"AEP {regs.rcx:#x} is not canonical")
    offsets = tcs.ossa | tcs.ofs_base | tcs.ogs_base
    _require(not offsets & (PAGE_SIZE - 1), "OSSA, OFSBASE or OGSBASE is not page aligned")
    _require(not tcs.flags & ~(TCS_DBGOPTIN | TCS_AEXNOTIFY), f"TCS.FLAGS {tcs.flags:#x}")
    _require(state.initialised, "enclave is not initialised")
    notified = bool(state.secs.attributes & _AEX_NOTIFY) == bool(tcs.flags & TCS_AEXNOTIFY)
    _require(tcs.flags & TCS_DBGOPTIN or notified, "AEXNOTIFY of the TCS is not that of the enclave")
    _require(state.index(regs.rbx) not in state.busy, f"TCS {regs.rbx:#x} is busy")
    return tcs


def eenter(state: EnclaveState, memory: FrameMemory, regs: Registers) -> Inside:
    """Enter at the TCS in RBX. ``regs.rip`` is the address of the ENCLU."""
    tcs = _enterable(state, memory, regs)
    _require(tcs.cssa < tcs.nssa, f"no free SSA frame: CSSA {tcs.cssa} of {tcs.nssa}")
    return _enter(state, memory, regs, tcs)


def _enter(state: EnclaveState, memory: FrameMemory, regs: Registers, tcs: Tcs) -> Inside:
    frame = Frame(state, memory, tcs, tcs.cssa)
    frame.probe()
    frame.write_outer_stack(regs.rsp, regs.rbp)
    inside = _set_busy(state, memory, regs)
    regs.rax = tcs.cssa
    regs.rcx = regs.rip + ENCLU_LENGTH
    regs.rip = state.base + tcs.oentry
    regs.fs_base = state.base + tcs.ofs_base
    regs.gs_base = state.base + tcs.ogs_base
    return inside


def _set_busy(state: EnclaveState, memory: FrameMemory, regs: Registers) -> Inside:
    memory.tcs_write(regs.rbx, TCS_AEP_OFFSET, regs.rcx.to_bytes(8, "little"))
    state.busy.add(state.index(regs.rbx))
    return Inside(regs.rbx, regs.rcx, regs.fs_base, regs.gs_base)


def _leave(state: EnclaveState, regs: Registers, inside: Inside) -> None:
    state.busy.discard(state.index(inside.tcs))
    regs.fs_base, regs.gs_base = inside.fs_base, inside.gs_base


def eexit(state: EnclaveState, regs: Registers, inside: Inside) -> None:
    """Leave for the address in RBX. RSP and RBP are the enclave's own job."""
    _require(_canonical(regs.rbx), f"EEXIT to {regs.rbx:#x}, which is not canonical")
    _leave(state, regs, inside)
    regs.rip = regs.rbx
    regs.rcx = inside.aep


def asynchronous_exit(
    state: EnclaveState,
    memory: FrameMemory,
    regs: Registers,
    host_xstate: bytes,
    inside: Inside,
    *,
    vector: int | None = None,
    addr: int = 0,
    error_code: int = 0,
) -> bytes:
    """Leave because of exception ``vector`` or an interrupt (None).

    Saves the thread in SSA[CSSA], raises CSSA and gives the registers the
    synthetic state: at the AEP, ready for ERESUME. ``addr`` is exact (not page
    masked). Returns the XSTATE for the outside, as long as ``host_xstate``.
    """
    tcs = Tcs.unpack(memory.tcs_read(inside.tcs))
    secs = state.secs
    frame = Frame(state, memory, tcs, tcs.cssa)
    outer = frame.gpr()
    gpr = GprSgx(
        **{name: getattr(regs, name) for name in GENERAL},
        rflags=regs.rflags,
        rip=regs.rip,
        ursp=outer.ursp,
        urbp=outer.urbp,
        exitinfo=exit_info(vector, secs.miscselect),
        aexnotify=outer.aexnotify,
        fs_base=regs.fs_base,
        gs_base=regs.gs_base,
    )
    xsave = xstate.to_frame(host_xstate, secs.xfrm, state.platform)
    frame.save(gpr, xsave, exception_info(vector, addr, error_code))
    _write_cssa(memory, inside.tcs, tcs.cssa + 1)
    _leave(state, regs, inside)
    for name in GENERAL:
        setattr(regs, name, 0)
    regs.rax, regs.rbx, regs.rcx = Enclu.ERESUME, inside.tcs, inside.aep
    regs.rsp, regs.rbp, regs.rip = outer.ursp, outer.urbp, inside.aep
    regs.rflags &= ~(STATUS | _RF)
    return xstate.initial(len(host_xstate))


def eresume(
    state: EnclaveState, memory: FrameMemory, regs: Registers, host_xstate: bytes
) -> tuple[Inside, bytes]:
    """Continue where the last asynchronous exit left the TCS in RBX.

    Returns the processor's memory of the entry and the XSTATE to set. With
    AEX-Notify on for the thread and the frame it enters at OENTRY instead.
    """
    tcs = _enterable(state, memory, regs)
    _require(tcs.cssa > 0, "ERESUME with CSSA 0: nothing to resume")
    frame = Frame(state, memory, tcs, tcs.cssa - 1)
    frame.probe()
    gpr = frame.gpr()
    if _notified(state, tcs, gpr):
        _require(tcs.cssa < tcs.nssa, f"no free SSA frame: CSSA {tcs.cssa} of {tcs.nssa}")
        return _enter(state, memory, regs, tcs), host_xstate
    _require(_canonical(gpr.rip), f"RIP {gpr.rip:#x} in the SSA is not canonical")
    inner = xstate.from_frame(frame.xsave(), host_xstate, state.secs.xfrm, state.platform)
    frame.write_outer_stack(regs.rsp, regs.rbp)
    inside = _set_busy(state, memory, regs)
    _write_cssa(memory, inside.tcs, tcs.cssa - 1)
    for name in GENERAL:
        setattr(regs, name, getattr(gpr, name))
    regs.rip = gpr.rip
    regs.rflags = (regs.rflags & ~_RESTORED) | (gpr.rflags & _RESTORED)
    regs.fs_base, regs.gs_base = gpr.fs_base, gpr.gs_base
    return inside, inner


def _notified(state: EnclaveState, tcs: Tcs, gpr: GprSgx) -> bool:
    return bool(state.secs.attributes & _AEX_NOTIFY and tcs.flags & TCS_AEXNOTIFY and gpr.aexnotify & 1)


def edeccssa(state: EnclaveState, memory: FrameMemory, inside: Inside) -> None:
    """Give up the current SSA frame; #GP when CSSA is 0. Touches no SSA."""
    tcs = load_tcs(state, memory, inside.tcs)
    _require(tcs.cssa > 0, "EDECCSSA with CSSA 0")
    _write_cssa(memory, inside.tcs, tcs.cssa - 1)


def _write_cssa(memory: FrameMemory, tcs: int, cssa: int) -> None:
    memory.tcs_write(tcs, TCS_CSSA_OFFSET, cssa.to_bytes(4, "little"))
