"""Signals and faults of threads that are inside an enclave.

An asynchronous signal makes the thread leave (AEX) and is then delivered at the
AEP, as after any interrupt. An exception makes it leave with a vector (`exits`).

The processor's own words are rebuilt from what ptrace shows:

=============  ===========================================================
SIGILL         #UD (6)
SIGFPE         #DE (0) by si_code; else #MF (16) or #XM (19) by the x87 status
SIGTRAP        #BP (3) after int3, else #DB (1)
SIGBUS         #AC (17) if BUS_ADRALN, else #PF (14)
SIGSEGV        #GP (13) if SI_KERNEL (#UD for IN, OUT …, illegal inside), else #PF
=============  ===========================================================

The page-fault error code is not visible to ptrace. Faults that the page service
reported come with one (`Kick`); for a protection fault of the mapping, a fetch is
known by its address, a fault on a readable page is a write, and else the
instruction tells (`stores`).
"""

from __future__ import annotations

import contextlib
import signal
import struct
from typing import TYPE_CHECKING

from epcgroup.driver import BusError, Fault
from epcgroup.live.enclave import enclu, exits, threads, traps
from epcgroup.live.enclave.exits import (
    BUS_ADRALN,
    FPE_INTDIV,
    FPE_INTOVF,
    SEGV_ACCERR,
    SI_KERNEL,
    VECTOR_AC,
    VECTOR_DE,
    VECTOR_MF,
    VECTOR_XM,
)
from epcgroup.live.enclave.illegal import illegal_inside
from epcgroup.live.fastpath import threads as fastpath
from epcgroup.live.paging import mappings
from epcgroup.live.paging.mm import PROT_EXEC, PROT_READ, PROT_WRITE
from epcgroup.live.paging.stores import writes_memory
from epcgroup.live.tracing import ptrace
from epcgroup.live.tracing.debugger import stops
from epcgroup.sgx.faults import (
    PF_I,
    PF_P,
    PF_U,
    PF_W,
    VECTOR_BP,
    VECTOR_DB,
    VECTOR_GP,
    VECTOR_PF,
    VECTOR_UD,
    LeafFault,
)
from epcgroup.units import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Generator

    from epcgroup.live.tracing.ptrace import UserRegs
    from epcgroup.live.tracing.task import Kick, Task
    from epcgroup.live.tracing.tracer import Job, Tracer

_PAGE_MASK = ~(PAGE_SIZE - 1)
_LONGEST_INSN = 15
_READ_WRITE = PROT_READ | PROT_WRITE


def signal_stop(tracer: Tracer, task: Task, sig: int) -> None:
    """A signal is about to be delivered to ``task``."""
    if task.forced is not None and task.forced[0] == sig:
        _, info = task.forced
        task.forced = None
        ptrace.setsiginfo(task.tid, info)
        tracer.resume(task, sig)
        return
    again = tracer.injector.restore_siginfo(task.tid, sig)
    if again and task.inside is None and task.mm.fast is None:
        tracer.resume(task, sig)
        return
    info = ptrace.getsiginfo(task.tid)
    tracer.heard(task.pid, sig, info)
    _, _, code = struct.unpack_from("<iii", info)
    (addr,) = struct.unpack_from("<Q", info, 16)
    raised = threads.is_raised(info)
    regs = ptrace.getregs(task.tid, ptrace.UserRegs())
    if raised and sig == signal.SIGTRAP and stops.stepped(tracer, task, regs, code):
        return
    if fastpath.caught(tracer, task, regs, info, raised=raised):
        return
    if sig == signal.SIGSEGV and code == SEGV_ACCERR and too_early(task, regs.rip, addr):
        if task.mm.ignored >> (sig - 1) & 1:
            tracer.ignore_again(task, sig)
        tracer.resume(task)
    elif task.inside is None:
        if not (raised and sig == signal.SIGILL and enclu.host_illegal(tracer, task, regs)):
            tracer.resume(task, sig)
    elif raised:
        if task.mm.ignored >> (sig - 1) & 1:
            tracer.ignore_again(task, sig)
        tracer.start(task, _raised(tracer, task, regs, sig, code, addr))
    elif task.saved_mask is not None and task.saved_mask >> (sig - 1) & 1:
        # The program blocks it, only we let it through: it waits until the thread is outside
        # (sent again at once, it would come again at once).
        task.held.append(info)
        tracer.resume(task)
    else:
        tracer.start(task, _interrupted(tracer, task, regs, sig))


def too_early(task: Task, rip: int, addr: int) -> bool:
    """Whether ``addr`` was refused only because its mapping had not its protection yet (see `locked`)."""
    vma = task.mm.find(addr)
    fetch = rip <= addr < rip + _LONGEST_INSN
    return vma is not None and not fetch and vma.real & _READ_WRITE == _READ_WRITE


def _interrupted(tracer: Tracer, task: Task, regs: UserRegs, sig: int) -> Job:
    """AEX for an asynchronous signal, which is then delivered at the AEP."""
    info = ptrace.getsiginfo(task.tid)
    yield from exits.asynchronous_exit(tracer, task, regs, None, 0, 0)
    ptrace.setsiginfo(task.tid, info)
    tracer.resume(task, sig)


def _raised(tracer: Tracer, task: Task, regs: UserRegs, sig: int, code: int, addr: int) -> Job:
    """An instruction inside the enclave raised ``sig``."""
    if sig == signal.SIGILL:
        opcode = yield from _code_at(tracer, task, regs.rip, 3)
        if opcode == traps.ENCLU:
            yield from enclu.from_enclave(tracer, task, regs)
            return
        yield from exits.exception(tracer, task, regs, VECTOR_UD, 0, 0, False)
    elif sig == signal.SIGSEGV and code != SI_KERNEL:
        yield from _mapping_fault(tracer, task, regs, addr)
    elif sig == signal.SIGSEGV:
        opcode = yield from _code_at(tracer, task, regs.rip, _LONGEST_INSN)
        vector = VECTOR_UD if illegal_inside(opcode) else VECTOR_GP
        yield from exits.exception(tracer, task, regs, vector, 0, 0, False)
    elif sig == signal.SIGTRAP:
        yield from exits.exception(
            tracer, task, regs, VECTOR_BP if code == SI_KERNEL else VECTOR_DB, 0, 0, False
        )
    elif sig == signal.SIGBUS:
        if code == BUS_ADRALN:
            yield from exits.exception(tracer, task, regs, VECTOR_AC, 0, 0, False)
        else:
            yield from exits.exception(tracer, task, regs, VECTOR_PF, PF_U, addr, True)
    elif code in (FPE_INTDIV, FPE_INTOVF):
        yield from exits.exception(tracer, task, regs, VECTOR_DE, 0, 0, False)
    else:
        x87_pending = ptrace.get_xstate(task.tid)[2] & 0x80
        yield from exits.exception(tracer, task, regs, VECTOR_MF if x87_pending else VECTOR_XM, 0, 0, False)


def _code_at(tracer: Tracer, task: Task, addr: int, length: int) -> Generator[bool, None, bytes]:
    """Up to ``length`` bytes of enclave code; fewer where the next page is missing."""
    assert task.inside is not None
    world, device = tracer.world, task.inside.device
    first = min(length, PAGE_SIZE - addr % PAGE_SIZE)
    code = yield from threads.execute(
        world, task, device, lambda access: access.fetch(addr, first), restartable=False
    )
    if first < length and exits.in_enclave(task, addr + first):
        rest = length - first
        with contextlib.suppress(LeafFault, BusError):
            code += yield from threads.execute(
                world, task, device, lambda access: access.fetch(addr + first, rest), restartable=False
            )
    return code


def _mapping_fault(tracer: Tracer, task: Task, regs: UserRegs, addr: int) -> Job:
    """SIGSEGV of a mapping's protection: grant execution, or a page fault."""
    assert task.inside is not None
    device, vma = task.inside.device, task.mm.find(addr)
    fetch = regs.rip <= addr < regs.rip + _LONGEST_INSN
    if vma is None or vma.device is not device or device.file is None:
        kind = PF_I if fetch else (yield from _store_bit(tracer, task, regs))
        yield from exits.exception(tracer, task, regs, VECTOR_PF, PF_U | kind, addr, False)
        return
    file = device.file
    if fetch and vma.prot & PROT_EXEC:
        fault = Fault.RETRY
        while fault is Fault.RETRY:
            with tracer.world.lock:
                fault = tracer.world.driver.fault(file, addr, "x", task.caller, vma.prot)
            if fault is Fault.RETRY:
                yield tracer.world.slice()
        if fault is Fault.RESIDENT:
            mappings.change_execute(tracer, task, vma, addr & _PAGE_MASK, 1, allow=True)
            tracer.resume(task)
        else:
            yield from exits.exception(tracer, task, regs, VECTOR_PF, fault.code, addr, fault is Fault.SIGBUS)
        return
    present = PF_P if vma.prot and vma.index(addr) in file.maximum else 0
    kind = PF_I if fetch else PF_W if vma.prot & PROT_READ else (yield from _store_bit(tracer, task, regs))
    yield from exits.exception(tracer, task, regs, VECTOR_PF, PF_U | present | kind, addr, False)


def _store_bit(tracer: Tracer, task: Task, regs: UserRegs) -> Generator[bool, None, int]:
    code = yield from _code_at(tracer, task, regs.rip, _LONGEST_INSN)
    return PF_W if writes_memory(code) else 0


def kicked(tracer: Tracer, task: Task, kick: Kick) -> None:
    """The page service refused what ``task`` touched."""
    if threads.raised_waits(task):  # it can touch it by now, and has gone on to its next exception
        threads.to_raised(task)
        return
    regs = ptrace.getregs(task.tid, ptrace.UserRegs())
    if fastpath.go_back(task, regs):
        tracer.resume(task)
        return
    fastpath.notice(tracer.world, task)
    if task.inside is not None:
        # userfaultfd tells writes from reads, not fetches from reads.
        fetch = regs.rip <= kick.addr < regs.rip + _LONGEST_INSN and not kick.code & PF_W
        code = kick.code | (PF_I if fetch else 0)
        tracer.start(task, exits.exception(tracer, task, regs, VECTOR_PF, code, kick.addr, kick.sigbus))
    elif not regs.orig_rax >> 63:
        tracer.resume(task)  # a system call touched it, and now fails with EFAULT
    else:
        exits.force(tracer, task, VECTOR_PF, kick.code, kick.addr, kick.sigbus)


def syscall_inside(tracer: Tracer, task: Task, regs: UserRegs) -> None:
    """`syscall` is illegal in an enclave (#UD); it has not been executed."""
    regs.rip -= 2
    regs.rax, regs.orig_rax = regs.orig_rax, ptrace.NO_SYSCALL
    tracer.start(task, exits.exception(tracer, task, regs, VECTOR_UD, 0, 0, False))
