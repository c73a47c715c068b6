"""Entering and leaving enclaves without a trap: what is laid into programs for it.

When a program's image is ready, it gets the code of `space` behind our part of its
vDSO, and a jump where its own ENCLU was if one fits (`sites`). When an enclave has
its place, a page with the ways out of it is mapped near it, and with the first of
them the table of its family of processes (`table`). What threads then do is `threads`.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

from epcgroup.errors import EpcgroupError
from epcgroup.live.enclave import leaves, vdso
from epcgroup.live.fastpath import code as fastcode
from epcgroup.live.fastpath import sites as fastsites
from epcgroup.live.fastpath import unpatched
from epcgroup.live.fastpath.space import WAY_OUT, ExitPage, Exits, FastSpace, StubPage, free_page, room_behind
from epcgroup.live.fastpath.table import SIZE, Table
from epcgroup.live.tracing import filters, memory, procfs, scratch, seccomp
from epcgroup.live.tracing.task import Trap
from epcgroup.sgx.layouts import Enclu
from epcgroup.units import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from epcgroup.live.devices import Device
    from epcgroup.live.tracing.task import Task
    from epcgroup.live.tracing.tracer import Tracer

_FSGSBASE = 1 << 1
_SYS_MMAP, _SYS_MPROTECT, _SYS_CLOSE, _SYS_MEMFD_CREATE = 9, 10, 3, 319
_READ, _WRITE, _EXEC = 1, 2, 4
_SHARED, _PRIVATE_ANONYMOUS, _FIXED, _FIXED_NOREPLACE = 0x1, 0x22, 0x10, 0x100000
_MFD_CLOEXEC = 1
_NO_FD = -1 & 0xFFFFFFFFFFFFFFFF
_PROGRAM_WISH = b"EPCGROUP_ENCLU"
_EENTER = 2


def supported() -> bool:
    """Whether programs may change FS and GS base themselves here."""
    return bool(procfs.auxv(os.getpid()).get(procfs.AT_HWCAP2, 0) & _FSGSBASE)


def _environment(pid: int) -> dict[bytes, bytes]:
    with contextlib.suppress(OSError):
        return procfs.environment(pid)
    return {}


def start(tracer: Tracer, task: Task) -> None:
    """The image of stopped ``task`` has our vDSO call, and its ENCLUs trap."""
    if task.vdso is None or not tracer.world.fast:
        return
    wishes = _environment(task.pid)
    if wishes.get(_PROGRAM_WISH) != b"trap":
        task.mm.fast = FastSpace(task.vdso.enter, vdso.open_fast(task.pid, task.vdso))
        task.mm.fast.unpatched = unpatched.of_program(tracer.world, task.command, wishes)


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
        code = memory.peek_text(task.tid, text, place - text) + fastsites.ENCLU
        site = fastsites.before(code, place - text, _EENTER)
        page = None if site is None else _stub_page(tracer, task, fast, place)
        if site is not None and page is not None:
            page.add(task.tid, text, site, code, fast.enter)


def _stub_page(tracer: Tracer, task: Task, fast: FastSpace, place: int) -> StubPage | None:
    for page in fast.stubs:
        if page.near(place):
            return page
    start = _map_code(tracer, task, place, place)
    if start is None:
        return None
    fast.stubs.append(StubPage(start))
    return fast.stubs[-1]


def _map_code(
    tracer: Tracer, task: Task, start: int, end: int, size: int = PAGE_SIZE, aside: int = 0
) -> int | None:
    """Address of ``size`` new bytes near ``[start, end)``, outside of it: a page for code, then data."""
    for address in free_page(task.tid, start, end, aside):
        with contextlib.suppress(OSError):
            _map_at(tracer, task, address, size)
            return address
    return None


def _map_at(tracer: Tracer, task: Task, address: int, size: int) -> None:
    flags = _PRIVATE_ANONYMOUS | _FIXED_NOREPLACE
    tracer.inject(task, _SYS_MMAP, address, size, _READ | _EXEC, flags, _NO_FD, 0)
    if size > PAGE_SIZE:
        tracer.inject(task, _SYS_MPROTECT, address + PAGE_SIZE, size - PAGE_SIZE, _READ | _WRITE)


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
        if (page := fast.spare_exit(task.tid, low, high)) is not None:
            pages.append(page)
        elif (start := _map_code(tracer, task, low, high, WAY_OUT, room_behind(high))) is not None:
            pages.append(ExitPage(start))
            _add_exit(task, fast, pages[-1])
            if room_behind(start) and start not in fast.watched:
                filters.add(tracer, task, seccomp.place_filter(start, WAY_OUT))  # see `make_way`
                fast.watched.add(start)
    asked = leaves.LEAVES if leaves.listen(tracer, task) else ()
    device.exits = Exits(fast.table, pages, [Enclu.EEXIT, *asked])


def _add_exit(task: Task, fast: FastSpace, page: ExitPage) -> None:
    assert fast.table is not None
    page.install(task.tid, fast.table.address)
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
            _map_at(tracer, task, page.start, WAY_OUT)
            _add_exit(task, fast, page)
    except OSError as error:
        raise EpcgroupError(
            f"the enclave at {device.base:#x} was added by another process, with jumps to code that cannot "
            f"be put into this one ({error}); run with --enclu trap"
        ) from error


def _share_table(tracer: Tracer, task: Task, fast: FastSpace, at: int = 0) -> None:
    """Make a table, for this process and its children."""
    with scratch.page(tracer, task) as name:
        memory.write(task.tid, name, b"sgx-tcs")
        fd = tracer.inject(task, _SYS_MEMFD_CREATE, name, _MFD_CLOEXEC)
    ours = procfs.take_fd(task.tid, fd)
    try:
        table = Table(ours)
    finally:
        os.close(ours)
    flags = _SHARED | (_FIXED if at else 0)
    table.address = tracer.inject(task, _SYS_MMAP, at, SIZE, _READ | _WRITE, flags, fd, 0)
    tracer.inject(task, _SYS_CLOSE, fd)
    word = table.address.to_bytes(8, "little")
    memory.poke_text(task.tid, fast.enter + fastcode.ENTER_TABLE, word)
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
            memory.poke_text(task.tid, fast.enter + fastcode.ENTER_TABLE, bytes(8))
            # Its parent's table is mapped still: an id found there would be another thread's.
            _share_table(tracer, task, fast, address)


def _one_namespace(one: Task, other: Task) -> bool:
    return procfs.pid_namespace(one.pid) == procfs.pid_namespace(other.pid)
