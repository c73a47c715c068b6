"""Leaving an enclave involuntarily, and faults at the ENCLU itself.

An exception inside makes the thread leave (AEX) with a vector; if the entry came
through the vDSO call, the kernel would not send a signal but return through the
call's fix-up, so neither do we. Without the vDSO the signal arrives at the AEP,
forced as the kernel forces it.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from epcgroup.driver import BusError, EnclaveMemory, LostMemory
from epcgroup.live.enclave import spin, threads
from epcgroup.live.fastpath import threads as fastpath
from epcgroup.live.tracing import ptrace
from epcgroup.sgx import thread
from epcgroup.sgx.faults import (
    PF_P,
    PF_SGX,
    PF_U,
    VECTOR_BP,
    VECTOR_DB,
    VECTOR_GP,
    VECTOR_PF,
    VECTOR_UD,
    LeafFault,
    PageFault,
)
from epcgroup.units import PAGE_SIZE

if TYPE_CHECKING:
    from epcgroup.live.tracing.ptrace import UserRegs
    from epcgroup.live.tracing.task import Task
    from epcgroup.live.tracing.tracer import Job, Tracer

VECTOR_DE, VECTOR_MF, VECTOR_AC, VECTOR_XM = 0, 16, 17, 19
SI_KERNEL = 0x80
BUS_ADRALN, FPE_INTDIV, FPE_INTOVF = 1, 1, 2
SEGV_ACCERR = 2
_SEGV_MAPERR, _ILL_ILLOPN, _BUS_ADRERR = 1, 2, 2
_PAGE_MASK = ~(PAGE_SIZE - 1)
# Signal and si_code of a vector; the kernel tells an address (that of the AEP) with some.
_SIGNALS = {
    VECTOR_DB: (signal.SIGTRAP, 1),
    VECTOR_BP: (signal.SIGTRAP, SI_KERNEL),
    VECTOR_UD: (signal.SIGILL, _ILL_ILLOPN),
    VECTOR_GP: (signal.SIGSEGV, SI_KERNEL),
    VECTOR_DE: (signal.SIGFPE, FPE_INTDIV),
    VECTOR_MF: (signal.SIGFPE, 3),
    VECTOR_AC: (signal.SIGBUS, BUS_ADRALN),
    VECTOR_XM: (signal.SIGFPE, 3),
}


def vector_of(fault: LeafFault | BusError) -> tuple[int, int, int, bool]:
    """(vector, error code, address, is it a SIGBUS) of a fault raised by a leaf."""
    if isinstance(fault, PageFault):
        return VECTOR_PF, fault.code, fault.addr, False
    if isinstance(fault, LeafFault):
        return fault.vector, 0, 0, False
    return VECTOR_PF, PF_U, fault.addr, True


def in_enclave(task: Task, addr: int) -> bool:
    """Whether ``addr`` lies in the enclave that ``task`` executes."""
    inside = task.inside
    return inside is not None and inside.device.base <= addr < inside.device.base + inside.device.size


def asynchronous_exit(
    tracer: Tracer, task: Task, regs: UserRegs, vector: int | None, code: int, addr: int
) -> Job:
    assert task.inside is not None
    inside = task.inside
    assert inside.device.file is not None
    state = inside.device.file.state
    values = threads.to_registers(regs)
    xstate = ptrace.get_xstate(task.tid)

    def leave(memory: EnclaveMemory) -> bytes:
        return thread.asynchronous_exit(
            state, memory, values, xstate, inside.entry, vector=vector, addr=addr, error_code=code
        )

    try:
        outside = yield from threads.execute(tracer.world, task, inside.device, leave, restartable=False)
        lost = False
    except BusError:
        file = inside.device.file
        if file is None or not file.disabled:
            raise
        with tracer.world.lock, file.driver.pager.at_hand(file.enclave) as contents:
            outside = leave(LostMemory(file, task.caller, contents))
        lost = True
    ptrace.set_xstate(task.tid, outside)
    threads.from_registers(values, regs)
    threads.leave(task, tracer.injector)
    if not lost:  # its handler will enter
        fastpath.offer(tracer.world, task, inside.device, inside.entry.tcs)
    ptrace.setregs(task.tid, regs)


def exception(
    tracer: Tracer,
    task: Task,
    regs: UserRegs,
    vector: int,
    code: int,
    addr: int,
    sigbus: bool,
    leaf: int | None = None,
) -> Job:
    """Leave the enclave with an exception, by the vDSO's fix-up or with a signal.

    ``leaf``: of the ENCLU that raised it, if it was one.
    """
    spin.by_vector(task, vector, regs.rip, leaf)
    tracer.world.debug(
        f"task {task.tid}: vector {vector} code {code:#x} address {addr:#x} at {regs.rip:#x} in the enclave"
    )
    yield from asynchronous_exit(tracer, task, regs, vector, code, addr)
    host_fault(tracer, task, regs, None, vector, code, addr, sigbus)


def host_fault(
    tracer: Tracer,
    task: Task,
    regs: UserRegs,
    leaf: int | None,
    vector: int,
    code: int,
    addr: int,
    sigbus: bool,
) -> None:
    """A fault at the ENCLU at ``regs.rip`` (after an AEX: the AEP), outside the enclave."""
    vdso = task.vdso
    if vdso is not None and regs.rip == vdso.enclu and vector not in (VECTOR_DB, VECTOR_BP):
        regs.rip = vdso.fixup
        regs.rdi, regs.rsi, regs.rdx = vector, code, addr & _PAGE_MASK
        if leaf is not None:
            regs.rax = leaf
        regs.orig_rax = ptrace.NO_SYSCALL
        ptrace.setregs(task.tid, regs)
        tracer.resume(task)
        return
    if leaf is not None:
        regs.rax, regs.orig_rax = leaf, ptrace.NO_SYSCALL
        ptrace.setregs(task.tid, regs)
    force(tracer, task, vector, code, addr, sigbus, at=regs.rip)


def force(tracer: Tracer, task: Task, vector: int, code: int, addr: int, sigbus: bool, at: int = 0) -> None:
    """Deliver the signal of ``vector`` as the kernel forces it: who ignores it dies of it.

    Who blocks it gets it in its handler; the kernel would end that one too.
    """
    if vector == VECTOR_PF:
        sig, si_code = (
            (signal.SIGBUS, _BUS_ADRERR)
            if sigbus
            else (signal.SIGSEGV, SEGV_ACCERR if code & (PF_P | PF_SGX) else _SEGV_MAPERR)
        )
        where = addr & _PAGE_MASK
    else:
        sig, si_code = _SIGNALS[vector]
        where = 0 if si_code == SI_KERNEL or vector == VECTOR_AC else at
    bit, mask = 1 << (sig - 1), ptrace.getsigmask(task.tid)
    if task.mm.ignored & bit:
        tracer.set_action(task, sig, signal.SIG_DFL)
    if mask & bit:
        ptrace.setsigmask(task.tid, mask & ~bit)
    info = ptrace.fault_siginfo(sig, si_code, where)
    if ptrace.signal_at(task.tid):  # (with what the kernel raised for the program's exception)
        ptrace.setsiginfo(task.tid, info)
        tracer.resume(task, sig)
        return
    task.forced = sig, info
    threads.send(task, sig)
    tracer.resume(task)
