"""Entering and leaving enclaves without a trap: the supervisor's part.

A pair of EENTER and EEXIT by traps takes four task switches and about 100 µs. The
code of `fastspace` makes it in half a microsecond without us, for TCSs that are in
the table (`fasttable`). Our part is that nobody can tell the difference:

* An entry is put into the table when a thread has left by a trap with CSSA 0
  (`offer`), and goes before anything else happens to the TCS, to its SSA frame,
  or to their mapping.
* A thread that came in by itself becomes known at its first stop (`notice`): it is
  then inside as if it had trapped, its TCS is out of the table, and it will
  leave by a trap. What EENTER stores in the SSA the program has stored itself.
* No signal finds a thread half way (`caught`). It is stepped to one side, and what
  it had meanwhile is sent again. On the way in it can also go back: the
  ENCLU then traps, and raises the faults that the short way met.
* A thread that blocks a signal that instructions raise never takes the short
  way in (fast_enter.S looks at its mask): inside, we would have to unblock it.

Needs the user-mode instructions for FS and GS base (AT_HWCAP2), and a vDSO.

Not by this way: ERESUME, EENTER with CSSA above 0, code pages that were not
added with X or that EMODPE made executable; they trap as ever. What differs:
who reads an enclave's code (the enclave itself, a debugger) sees the jumps; an
EEXIT to an address that is not canonical faults with a wrong RCX in the SSA.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import struct
from typing import TYPE_CHECKING

from epcgroup.errors import EpcgroupError
from epcgroup.live import enclu, fastcode, fastsites, leaves, memory, procfs, ptrace, scratch, syscalls, vdso
from epcgroup.live.fastspace import ExitPage, Exits, FastSpace, StubPage, free_page
from epcgroup.live.fasttable import SIZE, Table
from epcgroup.live.task import Inside, Trap
from epcgroup.sgx import thread
from epcgroup.sgx.epcm import allows, page_type
from epcgroup.sgx.layouts import MODIFIED, PENDING, TCS_AEP_OFFSET, Enclu, PageType, Tcs
from epcgroup.units import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from epcgroup.live.devices import Device
    from epcgroup.live.ptrace import UserRegs
    from epcgroup.live.task import Task
    from epcgroup.live.tracer import Tracer
    from epcgroup.live.world import World

AT_HWCAP2 = 26
_FSGSBASE = 1 << 1
_SYS_MMAP, _SYS_CLOSE, _SYS_MEMFD_CREATE = 9, 3, 319
_READ, _WRITE, _EXEC = 1, 2, 4
_SHARED, _PRIVATE_ANONYMOUS, _FIXED, _FIXED_NOREPLACE = 0x1, 0x22, 0x10, 0x100000
_MFD_CLOEXEC = 1
_NO_FD = -1 & 0xFFFFFFFFFFFFFFFF
_GPRSGX_SIZE, _URSP_AT = 184, 144
_PROGRAM_WISH = b"EPCGROUP_ENCLU"
_MOST_STEPS = 400
_SIGTRAP_BIT = 1 << (signal.SIGTRAP - 1)
_EENTER = 2


def supported() -> bool:
    """Whether programs may change FS and GS base themselves here."""
    return bool(procfs.auxv(os.getpid()).get(AT_HWCAP2, 0) & _FSGSBASE)


def _wanted(world: World, pid: int) -> bool:
    """Whether the program that ``pid`` has just become shall enter without traps."""
    if not world.fast:
        return False
    with contextlib.suppress(OSError):
        return procfs.environment(pid).get(_PROGRAM_WISH) != b"trap"
    return True


# ---- code in programs ----------------------------------------------------------


def start(tracer: Tracer, task: Task) -> None:
    """The image of stopped ``task`` has our vDSO call, and its ENCLUs trap."""
    if task.vdso is not None and _wanted(tracer.world, task.pid):
        task.mm.fast = FastSpace(task.vdso.enter, vdso.open_fast(task.pid, task.vdso))


def replace(tracer: Tracer, task: Task, places: Iterable[int]) -> None:
    """ENCLUs of the program at these addresses, which trap now: jump where that is possible.

    ``task`` is at a stop where system calls can be run in it.
    """
    fast = task.mm.fast
    if fast is None:
        return
    for place in places:
        if task.vdso is not None and place == task.vdso.enclu:
            continue
        text = max(place - fastsites.LOOK_BACK * 4, place & -PAGE_SIZE)
        code = memory.peek_text(task.pid, text, place - text) + fastsites.ENCLU
        site = fastsites.before(code, place - text, _EENTER)
        page = None if site is None else _stub_page(tracer, task, fast, place)
        if site is not None and page is not None:
            page.add(task.pid, text, site, code, fast.enter)


def _stub_page(tracer: Tracer, task: Task, fast: FastSpace, place: int) -> StubPage | None:
    for page in fast.stubs:
        if page.near(place):
            return page
    start = _map_code(tracer, task, place, place)
    if start is None:
        return None
    fast.stubs.append(StubPage(start))
    return fast.stubs[-1]


def _map_code(tracer: Tracer, task: Task, start: int, end: int) -> int | None:
    """Address of a new page for code near ``[start, end)``, outside of it."""
    flags = _PRIVATE_ANONYMOUS | _FIXED_NOREPLACE
    for address in free_page(task.pid, start, end):
        with contextlib.suppress(OSError):
            return tracer.inject(task, _SYS_MMAP, address, PAGE_SIZE, _READ | _EXEC, flags, _NO_FD, 0)
    return None


def created(tracer: Tracer, task: Task, device: Device) -> None:
    """An enclave has its place: prepare the ways out of it, before its code is added.

    ``task`` is at a stop where system calls can be run in it. Where its limits leave no
    room for that, the enclave is entered and left by traps.
    """
    fast = task.mm.fast
    if fast is None:
        return
    try:
        _prepare(tracer, task, fast, device)
    except ProcessLookupError:
        raise
    except OSError as error:
        tracer.world.debug(f"task {task.tid}: the enclave at {device.base:#x} is left by traps ({error})")


def _prepare(tracer: Tracer, task: Task, fast: FastSpace, device: Device) -> None:
    if fast.table is None:
        _share_table(tracer, task, fast)
    assert fast.table is not None
    # Jumps reach 2 GiB: what lies deeper inside a larger enclave has no way out but the trap.
    base, end = device.base, device.base + device.size
    edges = [(base, end)] if device.size <= 1 << 30 else [(base, end), (base, 1 << 47)]
    pages: list[ExitPage] = []
    for low, high in edges:
        if (page := fast.spare_exit(task.pid, low, high)) is not None:
            pages.append(page)
        elif (start := _map_code(tracer, task, low, high)) is not None:
            pages.append(ExitPage(start))
            _add_exit(task, fast, pages[-1])
    asked = leaves.LEAVES if leaves.listen(tracer, task) else ()
    device.exits = Exits(fast.table, pages, [Enclu.EEXIT, *asked])


def _add_exit(task: Task, fast: FastSpace, page: ExitPage) -> None:
    assert fast.table is not None
    page.install(task.pid, fast.table.address)
    fast.exits.append(page)
    task.mm.traps[page.trap] = Trap.EEXIT


def mapped(tracer: Tracer, task: Task, device: Device) -> None:
    """``task``, stopped at the exit of a call, now maps the enclave: it needs the ways out of it.

    Its creator and that one's children have them; a process that was sent the
    descriptor does not.
    """
    if device.exits is None:
        return
    fast = task.mm.fast
    missing = [page for page in device.exits.pages if fast is None or page not in fast.exits]
    if not missing:
        return
    try:
        if fast is None:
            raise OSError(errno.ENOTSUP, "this process enters by traps")
        if fast.table is None:
            _share_table(tracer, task, fast)
        for page in missing:
            flags = _PRIVATE_ANONYMOUS | _FIXED_NOREPLACE
            tracer.inject(task, _SYS_MMAP, page.start, PAGE_SIZE, _READ | _EXEC, flags, _NO_FD, 0)
            _add_exit(task, fast, page)
    except OSError as error:
        raise EpcgroupError(
            f"the enclave at {device.base:#x} was added by another process, with jumps to code that cannot "
            f"be put into this one ({error}); run with --enclu trap"
        ) from error


def _share_table(tracer: Tracer, task: Task, fast: FastSpace, at: int = 0) -> None:
    """Make a table, for this process and its children."""
    with scratch.page(tracer, task) as name:
        memory.write(task.pid, name, b"sgx-tcs")
        fd = tracer.inject(task, _SYS_MEMFD_CREATE, name, _MFD_CLOEXEC)
    ours = procfs.take_fd(task.pid, fd)
    try:
        table = Table(ours)
    finally:
        os.close(ours)
    flags = _SHARED | (_FIXED if at else 0)
    table.address = tracer.inject(task, _SYS_MMAP, at, SIZE, _READ | _WRITE, flags, fd, 0)
    tracer.inject(task, _SYS_CLOSE, fd)
    word = table.address.to_bytes(8, "little")
    memory.poke_text(task.pid, fast.enter + fastcode.ENTER_TABLE, word)
    fast.table = table
    table.spaces.add(task.mm)
    for other in tracer.tasks.values():
        if other.mm is task.mm:
            other.inner_tid = procfs.inner_tid(other.tid)


def born(parent: Task, child: Task) -> None:
    """A new thread or process, stopped: how does it call itself?"""
    fast = child.mm.fast
    if fast is None or fast.table is None:
        return
    child.inner_tid = procfs.inner_tid(child.tid)
    if child.mm is parent.mm and not _one_namespace(parent, child):
        fast.table.close()  # one table cannot serve two threads of the same number


def first_stop(tracer: Tracer, task: Task) -> None:
    """A child of fork has not run yet. In a pid namespace of its own, numbers mean other threads."""
    fast = task.mm.fast
    if fast is not None and fast.table is not None and task.tid == task.pid:
        namespaces = set()
        for space in fast.table.spaces:
            with contextlib.suppress(OSError):  # just ending
                namespaces.add(procfs.pid_namespace(space.pid))
        if len(namespaces) > 1:
            address = fast.table.address
            fast.close(task.mm)
            fast.table = None
            memory.poke_text(task.pid, fast.enter + fastcode.ENTER_TABLE, bytes(8))
            # Its parent's table is mapped still: an id found there would be another thread's.
            _share_table(tracer, task, fast, address)


def _one_namespace(one: Task, other: Task) -> bool:
    return procfs.pid_namespace(one.pid) == procfs.pid_namespace(other.pid)


# ---- threads -------------------------------------------------------------------


def offer(world: World, task: Task, device: Device, tcs: int) -> None:
    """A thread has left through this TCS by a trap: if CSSA is 0, the next one need not."""
    fast, state = task.mm.fast, device.state
    if fast is None or fast.table is None or state is None or device.file is None or fast.table.closed:
        return
    table = fast.table
    with world.lock:
        index = state.index(tcs)
        word = state.epcm.get(index)
        if index in state.busy or word is None:
            return
        if page_type(word) != PageType.TCS or word & (PENDING | MODIFIED):
            return
        content = Tcs.unpack(world.frames.read(device.file.enclave.id, index, 0, PAGE_SIZE))
        size = state.secs.ssa_frame_size
        pages = range(content.ossa >> PAGE_SHIFT, (content.ossa >> PAGE_SHIFT) + size)
        if content.cssa or not content.nssa or not all(_usable(device, page) for page in pages):
            return
        if any((vma := space.find(tcs)) is not None and vma.device is not device for space in table.spaces):
            return  # the address means another enclave to a relative
        if task.doubted is not task.surprise:
            task.doubted = task.surprise  # does it spin now? Only a stay that we know of tells.
            return
        base = device.base
        entry = table.put(
            device,
            index,
            pages,
            tcs=tcs,
            target=base + content.oentry,
            ursp=base + content.ossa + size * PAGE_SIZE - _GPRSGX_SIZE + _URSP_AT,
            bases=(base + content.ofs_base, base + content.ogs_base),
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
    held = [info]
    at_trap = _step_out(tracer, task, regs, held)
    tracer.injector.send_again(task.tid, held)
    if at_trap:
        syscalls.answer(tracer, task)
    else:
        tracer.resume(task)
    return True


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
        status = ptrace.wait_for(tid)
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
        if at_trap or not half_way(task, regs):
            break
    if mask & _SIGTRAP_BIT:
        ptrace.setsigmask(tid, mask)
    if task.mm.ignored & _SIGTRAP_BIT:
        tracer.ignore_again(task, signal.SIGTRAP)
    if interrupted:
        ptrace.interrupt(tid)
    return at_trap
