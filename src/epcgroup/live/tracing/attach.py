"""Joining processes that already run: *watched* first, *bound* once they hold a device.

A process is joined with all its threads and children (PTRACE_SEIZE and INTERRUPT,
until no new ones turn up). While it owns nothing of ours it must be able to live on
when we end, however we end. So a watched process has nothing that needs us:

* no seccomp filter (it could not be taken back, and what it reports fails with
  ENOSYS when the tracer is gone): its calls are stepped (`watched`), which is slow;
* no PTRACE_O_EXITKILL;
* CPUIDs are UD2s, which our end, or the guard after a kill -9, turns back;
* its vDSO gets the enclave call, which stays, and is no use without an enclave.

The first open of a device binds it: from then on it is traced and filtered as a
program that we started, for it may own pages that only we keep, and our end is its
end. A filter is for the whole process (TSYNC); threads that run meanwhile are bound
at their next stop. There is no way back: filters cannot be taken off.

A process may be just in exec, in a thread that we trace or not: then SEIZE waits for
the exec, and the exec for the end of all other threads, some of which may be ours to
bury. So nobody is seized with O_TRACEEXIT, which would have the dying wait for us, and
while we seize, another thread of ours buries the dead (`_Burials`). The option comes
with a thread's first stop.

Rejected: a user-notification filter whose listener a second process could take over
when we die. It outranks our own filter for good, and that process would have to
live as long as the program.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from epcgroup.errors import BadInput, EpcgroupError, Refused
from epcgroup.live.enclave import traps, vdso
from epcgroup.live.fastpath import programs as fastpath
from epcgroup.live.paging import locked
from epcgroup.live.paging.mm import AddressSpace
from epcgroup.live.tracing import filters, loader, memory, procfs, ptrace, room, seccomp, survivor
from epcgroup.live.tracing.task import Phase, Task, Trap

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from epcgroup.epc import Caller
    from epcgroup.live.tracing.ptrace import UserRegs
    from epcgroup.live.tracing.tracer import Tracer

    Adopt = Callable[[int], Caller]

_NEXT_BURIAL = 0.01  # s
_EXECS = 20


def join(tracer: Tracer, pid: int, adopt: Adopt, *, without: Container[int] = ()) -> list[int]:
    """Watch process ``pid``, its threads and its children; the processes that were joined.

    ``adopt(pid)`` enters a process into its cgroup and says who pays for it. ``without``:
    processes that are left alone, with their children. Raises Refused, BadInput when
    ``pid`` itself cannot be joined; a child that cannot is logged and left alone.
    """
    joined: list[int] = []
    waiting = [pid]
    while waiting:
        process = waiting.pop()
        if process in without or process == os.getpid():
            continue
        try:
            tasks = seize(tracer, process, adopt, ptrace.OPTIONS_UNBOUND)
        except (Refused, BadInput) as error:
            if not joined:
                raise
            tracer.world.log(f"process {process} is not joined: {error.args[-1]}")
            continue
        joined.append(process)
        for task in tasks:
            task.on_stop = lambda stopped: _first_look(tracer, stopped)
        for task in tasks:
            with contextlib.suppress(ProcessLookupError):
                ptrace.interrupt(task.tid)
        waiting += children(process)  # only now: those born later are reported
    return joined


def children(pid: int) -> list[int]:
    """Processes whose parent is ``pid``."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                if (entry / "stat").read_text().rpartition(")")[2].split()[1] == str(pid):
                    found.append(int(entry.name))
    return found


def seize(tracer: Tracer, pid: int, adopt: Adopt, options: int) -> list[Task]:
    """Trace every thread of ``pid``, without stopping any, as watched; those that were new.

    Raises Refused: no such process, traced by somebody else, no 64-bit program.
    """
    _again_while_it_execs(lambda: _must_be_possible(tracer, pid))
    space = AddressSpace(pid)
    with _Burials(tracer, pid):
        found = _seize(tracer, space, adopt, options & ~ptrace.O_TRACEEXIT)
    return list(found.values())


class _Burials:
    """While this is open, threads of a process that end are waited for, by a thread of its own."""

    def __init__(self, tracer: Tracer, pid: int) -> None:
        self._tracer = tracer
        self._pid = pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"burials-{pid}", daemon=True)

    def __enter__(self) -> None:
        room.begin(self._thread)

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(_NEXT_BURIAL):
            for tid in _threads(self._pid):
                if tid != self._pid and procfs.state(tid) == "Z":
                    with contextlib.suppress(ChildProcessError):
                        buried, status = os.waitpid(tid, ptrace.WALL | os.WNOHANG)
                        if buried:
                            self._tracer.injector.events.append((tid, status))


def _seize(tracer: Tracer, space: AddressSpace, adopt: Adopt, options: int) -> dict[int, Task]:
    pid, us = space.pid, os.getpid()
    found: dict[int, Task] = {}
    others: set[int] = set()
    refused = 0
    caller = None
    while new := [tid for tid in _threads(pid) if tid not in found and tid not in others]:
        for tid in new:
            others.add(tid)
            if tid in tracer.tasks:
                continue
            try:
                ptrace.seize(tid, options)
            except ProcessLookupError:
                continue
            except PermissionError:
                if procfs.tracer_of(tid) == us:
                    continue  # born of one that we had already; its parent's event tells of it
                refused += 1
                if refused < _EXECS:  # who is ending is refused, too
                    others.discard(tid)
                    time.sleep(_NEXT_BURIAL)
                    continue
                for task in found.values():
                    leave(task)
                raise Refused(why_not(tid), 1) from None
            if caller is None:
                caller = adopt(pid)
                tracer.life.joined.add(pid)
            task = found[tid] = Task(tid, pid, space, tracer.world.caller_at(caller, tid))
            task.phase, task.watched = Phase.RUNNING, True
            with contextlib.suppress(OSError):
                task.command = procfs.command(pid)
            space.users.add(tid)
            tracer.tasks[tid] = task
        for tid in [tid for tid in found if procfs.tracer_of(tid) != us]:
            # Buried; or an exec in another thread, under its own number before, has taken its place.
            others.discard(tid)
            space.users.discard(tid)
            tracer.tasks.pop(tid, None)
            del found[tid]
    return found


def forget_replaced(tracer: Tracer) -> None:
    """Forget those that are leaving whose place an exec took, in a thread that had left already: no
    stop of theirs will ever come, nor their end."""
    for task in [task for task in tracer.tasks.values() if task.leaving]:
        if procfs.tracer_of(task.tid) != os.getpid():
            _forget(tracer, task)


def _must_be_possible(tracer: Tracer, pid: int) -> None:
    try:
        leader, state = procfs.tgid(pid), procfs.status(pid)["State"]
        image = Path(f"/proc/{pid}/exe").readlink()
    except FileNotFoundError:
        raise Refused(f"there is no process {pid} with a program", 3) from None
    except PermissionError:
        raise Refused(why_not(pid), 1) from None
    if leader != pid:
        raise BadInput(f"{pid} is a thread; its process is {leader}")
    if pid in tracer.tasks:
        raise Refused(f"process {pid} is in this machine already", 16)
    if state.startswith(("Z", "X")):
        raise Refused(f"process {pid} has ended (or its first thread has, which cannot be joined)", 3)
    other = procfs.tracer_of(pid)
    if other and other != os.getpid():
        raise Refused(why_not(pid), 1)
    if not vdso.supported(pid):
        raise Refused(f"process {pid} ({image}) is no 64-bit program with a vDSO: it cannot use SGX", 8)


def _again_while_it_execs(look: Callable[[], None]) -> None:
    """A process that becomes another program seems to have ended, or to have no program, for a moment."""
    for _ in range(_EXECS):
        with contextlib.suppress(Refused, OSError):
            look()
            return
        time.sleep(_NEXT_BURIAL)
    look()


def _threads(pid: int) -> list[int]:
    try:
        return procfs.tasks(pid)
    except OSError:
        return []


def why_not(tid: int) -> str:
    """Why ptrace refuses thread ``tid``."""
    other = procfs.tracer_of(tid)
    if other:
        with contextlib.suppress(OSError):
            return f"process {tid} is traced by process {other} ({procfs.command(other)}) already"
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    if os.geteuid() and scope.exists() and scope.read_text().strip() != "0":
        return f"process {tid} may not be traced: be root, or sysctl kernel.yama.ptrace_scope=0"
    return f"process {tid} may not be traced by this user"


def _first_look(tracer: Tracer, task: Task) -> None:
    """A watched thread has stopped for the first time: its image is equipped, once."""
    ptrace.setoptions(task.tid, ptrace.OPTIONS_UNBOUND if task.watched else ptrace.OPTIONS)
    try:
        equip(tracer, task)
    except (EpcgroupError, OSError) as error:
        tracer.world.log(f"process {task.pid} ({task.command}) is let go: {error}")
        for peer in _peers(tracer, task):
            leave(peer)
    tracer.resume(task)


def equip(tracer: Tracer, task: Task) -> None:
    """Equip the image of stopped ``task``, which it has in common with its siblings, once."""
    if task.vdso is None:
        loader.equip(tracer, task)
        for peer in _peers(tracer, task):
            peer.vdso = task.vdso


def _peers(tracer: Tracer, task: Task) -> list[Task]:
    return [peer for peer in tracer.tasks.values() if peer.pid == task.pid]


# ---- binding ---------------------------------------------------------------


def is_bound(tracer: Tracer, task: Task) -> bool:
    """Whether another thread has bound the process of ``task``."""
    return any(not peer.watched for peer in _peers(tracer, task))


def born(tracer: Tracer, parent: Task, task: Task) -> None:
    """``parent``, stopped, is watched and made ``task``."""
    task.watched, task.leaving = True, parent.leaving
    if is_bound(tracer, parent):
        bind_thread(parent)
        # A child that was copied just before the filter came has none.
        task.watched = _filters_of(task.tid) < _filters_of(parent.tid)
    if task.watched and task.mm is not parent.mm:
        tracer.guard.keep(task.mm)


def _filters_of(tid: int) -> int:
    try:
        return int(procfs.status(tid)["Seccomp_filters"])
    except (OSError, KeyError):
        return 0


def bind_thread(task: Task) -> None:
    """The process is bound; its stopped thread ``task`` follows."""
    ptrace.setoptions(task.tid, ptrace.OPTIONS)
    task.watched = False


def bind(tracer: Tracer, task: Task, *, siblings: bool = True) -> None:
    """The process of ``task``, stopped at a system call, takes a device: our end will be its end.

    ``siblings``: its other threads have no EXITKILL yet, and are stopped for it.
    OSError, Refused if it cannot be filtered; it is still watched then.
    """
    if not is_bound(tracer, task):
        ptrace.setoptions(task.tid, ptrace.OPTIONS)
        try:
            filters.add(tracer, task, seccomp.base_filter(private=True, int80=True))
        except OSError:
            ptrace.setoptions(task.tid, ptrace.OPTIONS_UNBOUND)
            raise
        equip_owner(tracer, task)
    bind_thread(task)
    for peer in _peers(tracer, task):
        if siblings and peer.watched:  # each is bound at its next stop
            peer.on_stop = lambda stopped: _follow(tracer, stopped)
            with contextlib.suppress(OSError):
                ptrace.interrupt(peer.tid)


def _follow(tracer: Tracer, task: Task) -> None:
    if task.watched:
        bind_thread(task)
    tracer.resume(task)


def equip_owner(tracer: Tracer, task: Task) -> None:
    """The process is filtered: ENCLU may trap by `int $0x80`, and CPUID where nobody can be just there."""
    space = task.mm
    if task.vdso is not None:
        memory.poke_text(task.tid, task.vdso.enclu, traps.ENCLU_TRAP)
        space.traps[task.vdso.enclu] = Trap.ENCLU
    if space.users == {task.tid}:
        for site, kind in space.traps.items():
            if kind is Trap.CPUID:
                memory.poke_text(task.tid, site, traps.INT80)
    space.traps.update(traps.patch(task.pid))
    locked.joined(task)
    fastpath.start(tracer, task)
    tracer.guard.drop(space)


def restart_call(tracer: Tracer, task: Task, regs: UserRegs) -> None:
    """Have ``task`` make the call again at whose entry it was stopped with ``regs``."""
    regs.rip -= 2
    regs.rax, regs.orig_rax = regs.orig_rax, ptrace.NO_SYSCALL
    ptrace.setregs(task.tid, regs)
    tracer.resume(task)


# ---- letting go --------------------------------------------------------------


def leave(task: Task) -> None:
    """Let a watched task go at its next stop, for which it is asked."""
    if not task.leaving:
        task.leaving, task.on_stop = True, None
        with contextlib.suppress(OSError):
            survivor.restore(task.mm.pid, [a for a, kind in task.mm.traps.items() if kind is Trap.CPUID])
    with contextlib.suppress(OSError):
        ptrace.interrupt(task.tid)


def let_go(tracer: Tracer, task: Task, sig: int) -> None:
    """``task`` is leaving, and stopped: it runs on as if we had never been."""
    if not sig and ptrace.getregs(task.tid).rip in task.mm.traps:
        # It may have met our UD2 just before that became a CPUID again: let that signal come.
        ptrace.cont(task.tid)
        ptrace.interrupt(task.tid)
        return
    ptrace.detach(task.tid, sig)
    _forget(tracer, task)


def _forget(tracer: Tracer, task: Task) -> None:
    tracer.injector.forget(task.tid)
    tracer.watch.forget(task.tid)
    tracer.life.forget(task)
