"""ENCLU and CPUID, executed for a thread that stopped at one.

How a thread gets here without an SGX processor:

* Host code: the instruction was replaced by ``int $0x80`` (`traps`), which the
  seccomp filter reports. A site that was not found in advance (generated code)
  raises SIGILL once and is replaced then.
* Enclave code: its bytes are measured and stay as they are; ENCLU raises #UD.
  While a thread is inside, the signals that instructions raise are unblocked
  (`threads.enter`) and the program's own mask comes back when it leaves.

What the instruction does is computed by `sgx.thread` and `sgx.enclu`; here real
registers, real XSTATE and the retries under a full limit are added.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from epcgroup.driver import BusError
from epcgroup.live.enclave import cpuid, exits, spin, traps
from epcgroup.live.enclave.threads import Restart, enter, execute, from_registers, leave, to_registers
from epcgroup.live.fastpath import threads as fastpath
from epcgroup.live.paging.mm import PROT_WRITE
from epcgroup.live.tracing import memory, ptrace
from epcgroup.live.tracing.task import Trap
from epcgroup.sgx import thread
from epcgroup.sgx.faults import PF_P, PF_U, PF_W, VECTOR_GP, GeneralProtection, LeafFault, PageFault
from epcgroup.sgx.layouts import Enclu
from epcgroup.units import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Generator

    from epcgroup.live.devices import Device
    from epcgroup.live.tracing.ptrace import UserRegs
    from epcgroup.live.tracing.task import Task
    from epcgroup.live.tracing.tracer import Job, Tracer

_ZF = 0x40
_OF_A_PAGE = (Enclu.EACCEPT, Enclu.EMODPE, Enclu.EACCEPTCOPY)  # which RCX names


def trapped(tracer: Tracer, task: Task, regs: UserRegs, kind: Trap) -> None:
    """``task`` executed one of our ``int $0x80``."""
    number = regs.orig_rax & 0xFFFFFFFF
    if kind is Trap.CPUID:
        _cpuid(tracer, task, regs, number)
        return
    regs.rax = number
    regs.rip -= len(traps.INT80)
    if kind is Trap.EEXIT:
        page = task.mm.fast.leaving(regs.rip) if task.mm.fast is not None else None
        leave_from(tracer, task, regs, page.sites if page is not None else [])
    else:
        tracer.start(task, _from_host(tracer, task, regs))


def leave_from(tracer: Tracer, task: Task, regs: UserRegs, sites: list[int]) -> None:
    """EEXIT for a thread that could not take the short way out; it stands at one of ``sites``."""
    regs.rax = int(Enclu.EEXIT)
    fastpath.notice(tracer.world, task)
    if task.inside is None:  # the program has jumped here
        exits.force(tracer, task, VECTOR_GP, 0, 0, False)
        return
    regs.rip = sites[0] if sites else regs.rip
    tracer.start(task, from_enclave(tracer, task, regs))


def _cpuid(tracer: Tracer, task: Task, regs: UserRegs, leaf: int) -> None:
    """CPUID, of which ``regs`` already stand behind."""
    answer = cpuid.execute(leaf, regs.rcx & 0xFFFFFFFF, tracer.world.epc_sections)
    regs.rax, regs.rbx, regs.rcx, regs.rdx = answer
    regs.orig_rax = ptrace.NO_SYSCALL
    ptrace.setregs(task.tid, regs)
    tracer.resume(task)


def host_illegal(tracer: Tracer, task: Task, regs: UserRegs) -> bool:
    """SIGILL in host code: a CPUID that we replaced by UD2; or an ENCLU, to execute and replace."""
    if task.mm.traps.get(regs.rip) is Trap.CPUID:
        regs.rip += len(traps.UD2)
        _cpuid(tracer, task, regs, regs.rax & 0xFFFFFFFF)
        return True
    try:
        code = memory.peek_text(task.tid, regs.rip, len(traps.ENCLU))
    except OSError:
        return False
    if code != traps.ENCLU:
        return False
    memory.poke_text(task.tid, regs.rip, traps.ENCLU_TRAP)
    task.mm.traps[regs.rip] = Trap.ENCLU
    tracer.start(task, _from_host(tracer, task, regs))
    return True


def _from_host(tracer: Tracer, task: Task, regs: UserRegs) -> Job:
    """EENTER or ERESUME at ``regs.rip``; any other leaf is #GP outside an enclave."""
    leaf = regs.rax & 0xFFFFFFFF
    values = to_registers(regs)
    try:
        if leaf not in (Enclu.EENTER, Enclu.ERESUME):
            raise GeneralProtection(f"ENCLU leaf {leaf} outside an enclave")
        device = _device_of_tcs(task, values.rbx)
        _reach(task, device, values.rbx, writing=True)
        enter = _eenter if leaf == Enclu.EENTER else _eresume
        yield from enter(tracer, task, device, values)
    except Restart:
        restart(tracer, task, regs, leaf)
        return
    except (LeafFault, BusError) as fault:
        tracer.world.debug(f"task {task.tid}: ENCLU leaf {leaf} at {regs.rip:#x}: {fault}")
        if isinstance(fault, BusError):
            tracer.world.tell_failed(task, device)
        exits.host_fault(tracer, task, regs, leaf, *exits.vector_of(fault))
        return
    from_registers(values, regs)
    ptrace.setregs(task.tid, regs)
    tracer.resume(task)


def restart(tracer: Tracer, task: Task, regs: UserRegs, leaf: int) -> None:
    """Have the thread execute the ENCLU at ``regs.rip`` once more, signals first."""
    regs.rax, regs.orig_rax = leaf, ptrace.NO_SYSCALL
    ptrace.setregs(task.tid, regs)
    tracer.resume(task)


def _device_of_tcs(task: Task, tcs: int) -> Device:
    vma = task.mm.find(tcs)
    if vma is None or vma.device.file is None:
        raise PageFault(tcs, PF_U)
    return vma.device


def _reach(task: Task, device: Device, addr: int, *, writing: bool = False) -> None:
    """The processor reaches the page an ENCLU is about through the program's mapping of it.

    Raises PageFault if that does not permit the access, BusError if it permits more than the page
    (spec 6.3): a page that has become a TCS, in a mapping with X.
    """
    vma = task.mm.find(addr)
    if vma is None or vma.device is not device or not vma.prot:
        raise PageFault(addr, PF_U)
    if writing and not vma.prot & PROT_WRITE:  # a TCS
        raise PageFault(addr, PF_U | PF_W | PF_P)
    if vma.too_much(addr):
        raise BusError(addr, "its mapping permits more than the page does")


def _eenter(
    tracer: Tracer, task: Task, device: Device, values: thread.Registers
) -> Generator[bool, None, None]:
    inside = yield from execute(
        tracer.world, task, device, lambda access: thread.eenter(access.state, access, values)
    )
    enter(task, device, inside)


def _eresume(
    tracer: Tracer, task: Task, device: Device, values: thread.Registers
) -> Generator[bool, None, None]:
    outside = ptrace.get_xstate(task.tid)
    inside, xstate = yield from execute(
        tracer.world, task, device, lambda access: thread.eresume(access.state, access, values, outside)
    )
    ptrace.set_xstate(task.tid, xstate)
    enter(task, device, inside, resumed=True)


def from_enclave(tracer: Tracer, task: Task, regs: UserRegs) -> Job:
    """The ENCLU at ``regs.rip``, inside the enclave."""
    assert task.inside is not None
    inside = task.inside
    leaf = regs.rax & 0xFFFFFFFF
    values = to_registers(regs)
    try:
        if leaf == Enclu.EEXIT:
            assert inside.device.file is not None
            with tracer.world.lock:
                thread.eexit(inside.device.file.state, values, inside.entry)
            leave(task, tracer.injector)
            fastpath.offer(tracer.world, task, inside.device, inside.entry.tcs)
        else:
            if leaf in _OF_A_PAGE and not values.rcx % PAGE_SIZE and exits.in_enclave(task, values.rcx):
                _reach(task, inside.device, values.rcx)
            result = yield from execute(
                tracer.world, task, inside.device, lambda access: access.leaf(leaf, values, inside.entry)
            )
            values.rip += len(traps.ENCLU)
            if result is not None:
                values.rax = result.rax
                values.rflags = values.rflags & ~thread.STATUS | (_ZF if result.zf else 0)
                if result.zf:
                    spin.by_leaf(task, leaf, result.rax, regs.rip)
    except Restart:
        restart(tracer, task, regs, leaf)
        return
    except (LeafFault, BusError) as fault:
        tracer.world.debug(f"task {task.tid}: ENCLU leaf {leaf} at {regs.rip:#x}: {fault}")
        if isinstance(fault, BusError):
            tracer.world.tell_failed(task, inside.device)
        yield from exits.exception(tracer, task, regs, *exits.vector_of(fault), leaf)
        return
    from_registers(values, regs)
    ptrace.setregs(task.tid, regs)
    tracer.resume(task)
