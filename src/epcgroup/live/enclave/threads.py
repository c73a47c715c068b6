"""A real thread as the processor's rules see it: registers, retries, signal mask."""

from __future__ import annotations

import ctypes
import operator
import signal
import struct
from dataclasses import fields
from typing import TYPE_CHECKING, TypeVar

from epcgroup.driver import BusError
from epcgroup.errors import Busy
from epcgroup.live.tracing import procfs, ptrace
from epcgroup.live.tracing.task import Inside, Phase
from epcgroup.sgx import thread

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from epcgroup.live.devices import Device
    from epcgroup.live.enclave.processor import Processor
    from epcgroup.live.tracing.inject import Injector
    from epcgroup.live.tracing.ptrace import UserRegs
    from epcgroup.live.tracing.task import Task
    from epcgroup.live.world import World

T = TypeVar("T")

_libc = ctypes.CDLL(None, use_errno=True)
_SYS_TGKILL = 234
_SIGNAL_LOOK = 64
_PATIENCE = 4096

_RAISED_BY_INSTRUCTIONS = (signal.SIGILL, signal.SIGTRAP, signal.SIGBUS, signal.SIGFPE, signal.SIGSEGV)
FORCED = sum(1 << (sig - 1) for sig in _RAISED_BY_INSTRUCTIONS)
_SIGINFO = struct.Struct("<i4xi")  # si_signo, si_code
_NAMES = [field.name for field in fields(thread.Registers) if field.name != "rflags"]
# In the order of thread.Registers: where in struct user_regs_struct.
_WORDS = struct.Struct(f"<{ctypes.sizeof(ptrace.UserRegs) // 8}Q")
_ORDER = [field[0] for field in ptrace.UserRegs._fields_]
_pick = operator.itemgetter(
    *(_ORDER.index("eflags" if field.name == "rflags" else field.name) for field in fields(thread.Registers))
)


def to_registers(regs: UserRegs) -> thread.Registers:
    """The processor's registers as `sgx.thread` wants them."""
    return thread.Registers(*_pick(_WORDS.unpack(regs)))


def from_registers(values: thread.Registers, regs: UserRegs) -> None:
    """Back into what ptrace sets; no system call is to be restarted."""
    for name in _NAMES:
        setattr(regs, name, getattr(values, name))
    regs.eflags = values.rflags
    regs.orig_rax = ptrace.NO_SYSCALL


class Restart(Exception):
    """The instruction cannot complete yet, and a signal waits: execute it again later."""


def attempt(
    world: World, task: Task, action: Callable[[], T], *, restartable: bool = True
) -> Generator[bool, None, T]:
    """``action`` under the lock, again after background work while it is Busy.

    An instruction that needs more pages at once than the limit allows would be
    tried for ever, as on hardware; a signal ends that (Restart), and a policy
    that gives up ends it with a SIGBUS (BusError).
    """
    tries = 0
    while True:
        with world.lock:
            try:
                return action()
            except Busy:
                pass
        tries += 1
        if restartable and not tries % _SIGNAL_LOOK and task.caller.signal_pending():
            raise Restart
        if tries == _PATIENCE and world.machine.policy.give_up:
            world.log(
                f"task {task.tid}: the limit of {task.caller.group.path} does not hold the pages that one "
                "instruction needs at once; it gets a SIGBUS"
            )
            raise BusError(0)
        yield world.slice()


def execute(
    world: World, task: Task, device: Device, action: Callable[[Processor], T], *, restartable: bool = True
) -> Generator[bool, None, T]:
    """``attempt`` of something that ``task`` does to ``device``'s enclave; each try sees its pages anew."""
    return attempt(world, task, lambda: action(world.processor(device, task.caller)), restartable=restartable)


def enter(task: Task, device: Device, entry: thread.Inside, *, resumed: bool = False) -> None:
    """The thread is inside: the signals that instructions raise are let through."""
    task.inside = Inside(device, entry, resumed)
    device.threads += 1
    mask = ptrace.getsigmask(task.tid)
    if mask & FORCED:
        task.saved_mask = mask
        ptrace.setsigmask(task.tid, mask & ~FORCED)


def leave(task: Task, injector: Injector) -> None:
    """The thread is outside again: its own signal mask is back, and blocked signals wait for it."""
    assert task.inside is not None
    task.inside.device.threads -= 1
    task.inside = None
    if task.saved_mask is not None:
        ptrace.setsigmask(task.tid, task.saved_mask)
        task.saved_mask = None
    if task.held:
        held, task.held = task.held, []
        injector.send_again(task.tid, held)


def send(task: Task, sig: int) -> None:
    """Send ``sig`` to this very thread."""
    _libc.syscall(_SYS_TGKILL, task.pid, task.tid, sig)


def is_raised(info: bytes) -> bool:
    """Whether a siginfo_t is of a signal that an instruction has raised, not of one that somebody sent."""
    sig, code = _SIGINFO.unpack_from(info)
    return code > 0 and bool(FORCED >> (sig - 1) & 1)


def raised_waits(task: Task) -> bool:
    """Whether the last instruction of stopped ``task`` has raised a signal that has yet to be delivered.

    What such a signal is about only its instruction tells. A requested stop comes before it, and a thread
    that is moved there (by AEX, or by its debugger) would get it at another instruction.
    """
    if not procfs.pending_signals(task.tid) & FORCED:
        return False
    return any(map(is_raised, ptrace.waiting_siginfo(task.tid)))


def to_raised(task: Task) -> None:
    """Let ``task`` meet that signal: it executes nothing before."""
    task.phase = Phase.RUNNING
    ptrace.cont(task.tid)


def abandon(world: World, task: Task) -> None:
    """The thread ends or execs, perhaps inside an enclave: its TCS is free again."""
    if task.mm.fast is not None:
        with world.lock:
            task.mm.fast.ended(task.inner_tid)
    if task.inside is None:
        return
    with world.lock:
        state = task.inside.device.state
        if state is not None:
            state.busy.discard(state.index(task.inside.entry.tcs))
    task.inside.device.threads -= 1
    task.inside = None
    task.saved_mask = None
