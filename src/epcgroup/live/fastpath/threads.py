"""Entering and leaving enclaves without a trap: threads on their way, and the supervisor's part.

A pair of EENTER and EEXIT by traps takes four task switches and about 100 µs. The
code of `space` makes it in half a microsecond without us, for TCSs that are in
the table (`table`). Our part is that nobody can tell the difference:

* An entry is put into the table when a thread has left by a trap: by EEXIT, or with
  an exception or signal, whose handler may enter next (`offer`). It goes before
  anything else happens to the TCS, to its SSA frame, or to their mapping.
* A thread that came in by itself becomes known at its first stop (`notice`): it is
  then inside as if it had trapped, its TCS is out of the table, and it will
  leave by a trap. What EENTER stores in the SSA the program has stored itself.
* No signal finds a thread half way (`caught`). It is stepped to one side, and what
  it had meanwhile is sent again. On the way in it can also go back: the
  ENCLU then traps, and raises the faults that the short way met.
* A thread that blocks a signal that instructions raise has its mask changed on the way in, and back
  on the way out. One that blocks SIGTRAP traps: it could not be stepped over the change.

Needs the user-mode instructions for FS and GS base (AT_HWCAP2), and a vDSO.

Not by this way: ERESUME, code pages that were not
added with X or that EMODPE made executable; they trap as ever. What differs:
who reads an enclave's code (the enclave itself, a debugger) sees the jumps; an
EEXIT to an address that is not canonical faults with a wrong RCX in the SSA.
"""

from __future__ import annotations

import errno
import os
import signal
import struct
from typing import TYPE_CHECKING

from epcgroup.live.enclave import enclu
from epcgroup.live.fastpath import code as fastcode
from epcgroup.live.paging.mm import PROT_WRITE
from epcgroup.live.tracing import ptrace, syscalls
from epcgroup.live.tracing.task import Inside
from epcgroup.sgx import thread
from epcgroup.sgx.epcm import allows, page_type
from epcgroup.sgx.layouts import MODIFIED, PENDING, TCS_AEP_OFFSET, PageType, Tcs
from epcgroup.units import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from epcgroup.live.devices import Device
    from epcgroup.live.tracing.ptrace import UserRegs
    from epcgroup.live.tracing.task import Task
    from epcgroup.live.tracing.tracer import Tracer
    from epcgroup.live.world import World

_GPRSGX_SIZE, _URSP_AT = 184, 144
_MOST_STEPS = 400
_SIGTRAP_BIT = 1 << (signal.SIGTRAP - 1)


def offer(world: World, task: Task, device: Device, tcs: int) -> None:
    """A thread has left through this TCS by a trap: the next one that enters need not."""
    fast, state = task.mm.fast, device.state
    if fast is None or fast.table is None or state is None or device.file is None or fast.table.closed:
        return
    table = fast.table
    with world.lock:
        vma = task.mm.find(tcs)
        if vma is None or not vma.prot & PROT_WRITE or vma.too_much(tcs):
            return
        index = state.index(tcs)
        word = state.epcm.get(index)
        if index in state.busy or word is None:
            return
        if page_type(word) != PageType.TCS or word & (PENDING | MODIFIED):
            return
        content = Tcs.unpack(world.frames.read(device.file.enclave.id, index, 0, PAGE_SIZE))
        size = state.secs.ssa_frame_size
        first = (content.ossa >> PAGE_SHIFT) + content.cssa * size
        pages = range(first, first + size)
        if content.cssa >= content.nssa or not all(_usable(device, page) for page in pages):
            return
        if any((same := space.find(tcs)) is not None and same.device is not device for space in table.spaces):
            return  # the address means another enclave to a relative
        base = device.base
        entry = table.put(
            device,
            index,
            pages,
            tcs=tcs,
            target=base + content.oentry,
            ursp=base + (pages.stop << PAGE_SHIFT) - _GPRSGX_SIZE + _URSP_AT,
            bases=(base + content.ofs_base, base + content.ogs_base),
            cssa=content.cssa,
        )
        if entry is not None:
            device.enterable.add(entry)


def _usable(device: Device, index: int) -> bool:
    assert device.file is not None
    word = device.file.word(index)
    return allows(word, "r") and allows(word, "w")


def notice(world: World, task: Task) -> None:
    """``task`` has stopped, not half way: if it came in by itself, it is inside from now on."""
    fast = task.mm.fast
    if fast is None or fast.table is None or task.inside is not None:
        return
    outside = fast.table.outside(task.inner_tid)
    if outside is None:
        return
    entry = outside.entry
    device = entry.device
    with world.lock:
        device.enterable.take_out(entry.index)
        fast.table.forget(task.inner_tid)
        state = device.state
        if state is not None:
            state.busy.add(entry.index)
            if entry.index in state.epcm and device.file is not None:
                aep = outside.aep.to_bytes(8, "little")
                world.frames.write(device.file.enclave.id, entry.index, TCS_AEP_OFFSET, aep)
    task.inside = Inside(device, thread.Inside(entry.tcs, outside.aep, outside.fs_base, outside.gs_base))
    if outside.blocked:
        task.saved_mask = ptrace.getsigmask(task.tid) | outside.blocked
    device.threads += 1


def half_way(task: Task, regs: UserRegs) -> bool:
    """Whether the thread is on its way in or out."""
    fast = task.mm.fast
    return fast is not None and (fast.entering(regs.rip) or fast.leaving(regs.rip) is not None)


def go_back(task: Task, regs: UserRegs) -> bool:
    """If the thread is on its way in, have it execute the ENCLU instead; the caller resumes it."""
    fast = task.mm.fast
    if fast is None or not fast.enter + fastcode.ENTER_BODY <= regs.rip < fast.enter + fastcode.ENTER_COMMIT:
        return False
    regs.rip, regs.orig_rax = fast.enter + fastcode.ENTER_BAIL, ptrace.NO_SYSCALL
    ptrace.setregs(task.tid, regs)
    return True


def caught(tracer: Tracer, task: Task, regs: UserRegs, info: bytes, *, raised: bool) -> bool:
    """A signal is about to be delivered; if the thread is half way, it is dealt with here."""
    fast = task.mm.fast
    if fast is None:
        return False
    if not half_way(task, regs):
        notice(tracer.world, task)
        return False
    if raised:
        page = fast.leaving(regs.rip)
        if page is not None and page.parks(regs.rip):
            enclu.leave_from(tracer, task, regs, page.sites)
            return True
        if go_back(task, regs):
            tracer.resume(task)
            return True
        return False  # the program has broken what it needs to get in or out
    if not step_aside(tracer, task, regs, [info]):
        tracer.resume(task)
    return True


def step_aside(tracer: Tracer, task: Task, regs: UserRegs, held: list[bytes] | None = None) -> bool:
    """Step a thread that is half way to one side; whether it met a trap there, which is answered now.

    ``held`` (siginfo), and signals that come meanwhile, are sent again. ``regs`` are what they are then.
    """
    held = [] if held is None else held
    at_trap = _step_out(tracer, task, regs, held)
    if held:
        tracer.injector.send_again(task.tid, held)
    if at_trap:
        syscalls.answer(tracer, task)
    return at_trap


def _step_out(tracer: Tracer, task: Task, regs: UserRegs, held: list[bytes]) -> bool:
    """Step to the end of the way; whether the thread stopped at a trap there.

    Signals that come meanwhile are added to ``held``.
    """
    tid = task.tid
    mask = ptrace.getsigmask(tid)
    # A blocked or ignored SIGTRAP would lose its disposition.
    if mask & _SIGTRAP_BIT:
        ptrace.setsigmask(tid, mask & ~_SIGTRAP_BIT)
    interrupted = at_trap = False
    for _ in range(_MOST_STEPS):
        go_back(task, regs)
        ptrace.singlestep(tid)
        status = tracer.injector.wait(tid)
        sig, event = ptrace.stop_of(status)
        if not os.WIFSTOPPED(status) or event == ptrace.EVENT_EXIT:
            tracer.injector.events.append((tid, status))
            raise ProcessLookupError(errno.ESRCH, f"thread {tid} was killed on its way into an enclave")
        at_trap = event == ptrace.EVENT_SECCOMP
        interrupted |= event == ptrace.EVENT_STOP
        if not event:
            info = ptrace.getsiginfo(tid)
            if sig != signal.SIGTRAP or struct.unpack_from("<i", info, 8)[0] <= 0:
                held.append(info)
        ptrace.getregs(tid, regs)
        # A requested stop comes before the trap of a step that is done, which must not be left behind.
        if at_trap or (event != ptrace.EVENT_STOP and not half_way(task, regs)):
            break
    if mask & _SIGTRAP_BIT:  # (others it may have changed itself)
        ptrace.setsigmask(tid, ptrace.getsigmask(tid) | _SIGTRAP_BIT)
    if task.mm.ignored & _SIGTRAP_BIT:
        tracer.ignore_again(task, signal.SIGTRAP)
    if interrupted:
        ptrace.interrupt(tid)
    return at_trap
