"""The life of traced tasks: adopted, born, given a new image, gone.

What a thread shares with its parent and what it gets anew follows the kernel:
CLONE_VM shares the mm, fork copies it, exec leaves it. A task's first stop may be
reported before its parent's event: whichever comes second begins its life here.

The parent's event may never come. A thread that is killed (or whose process exits or
execs in another thread) while it waits at its report goes on to its exit, and the
report is void; the child is there, traced, and stopped for as long as nobody knows it.
A new thread shares that fate and only has to be let go (`unknown`). A new process
lives on: it is looked for when its parent stops for the last time (`going`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading
from typing import TYPE_CHECKING

from epcgroup.errors import Refused
from epcgroup.live.enclave import threads
from epcgroup.live.fastpath import programs as fastpath
from epcgroup.live.paging import uffd
from epcgroup.live.paging.mm import AddressSpace
from epcgroup.live.paging.service import PageService
from epcgroup.live.tracing import attach, handover, loader, procfs, ptrace, room
from epcgroup.live.tracing.debugger import lives, waits
from epcgroup.live.tracing.task import Phase, Task
from epcgroup.observe.model import KILLED

if TYPE_CHECKING:
    from epcgroup.epc import Caller
    from epcgroup.live.tracing.tracer import Tracer


#: Calls that make tasks: clone, fork, vfork, clone3; clone, fork, vfork of 32-bit programs.
_BIRTHS = {56, 57, 58, 435, 120, 2, 190}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"  # a real-time signal


class Lifecycle:
    """Begins and ends the tasks of one tracer."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._world = tracer.world
        self.statuses: dict[int, int] = {}  # pid → wait status of processes that ended
        self.joined: set[int] = set()  # processes that ran before they were ours
        self.early: set[int] = set()  # tasks that stopped before their parent's event came
        self._warned = False

    def adopt(self, pid: int, caller: Caller) -> Task:
        """Take over a freshly forked child that waits to be traced. Raises Refused, and ends it."""
        try:
            ptrace.seize(pid, ptrace.OPTIONS)
        except PermissionError:
            why = attach.why_not(pid)
            os.kill(pid, signal.SIGKILL)
            raise Refused(
                f"{why}: programs cannot be run in a machine that is itself traced", errno.EPERM
            ) from None
        task = Task(pid, pid, AddressSpace(pid), self._world.caller_at(caller, pid))
        task.mm.users.add(pid)
        task.phase = Phase.RUNNING
        self._world.tasks[pid] = task
        return task

    def unknown(self, tid: int, event: int) -> None:
        """A task has stopped that no parent has reported yet."""
        if event == ptrace.EVENT_EXIT:  # killed before it ran, maybe together with its parent
            self.early.discard(tid)
            ptrace.cont(tid)
        else:
            self.early.add(tid)

    def going(self, task: Task) -> None:
        """``task`` stops for the last time: children that it could not report begin their life now."""
        if ptrace.getregs(task.tid).orig_rax not in _BIRTHS:
            return
        found = procfs.children(task.pid, task.tid)
        with contextlib.suppress(OSError, KeyError):
            above = int(procfs.status(task.pid)["PPid"])
            for tid in procfs.tasks(above):  # CLONE_PARENT
                found += procfs.children(above, tid)
        for tid in found:
            self.born(task, tid)

    def born(self, parent: Task, tid: int, event: int = 0) -> None:
        """``parent`` reports its new task ``tid`` by PTRACE_EVENT ``event``.

        It may be known from `going`; or have been killed before it ran, and have ended for us.
        """
        try:
            status = procfs.status(tid)
        except OSError:
            return
        if tid in self._world.tasks or int(status["TracerPid"]) != threading.get_native_id():
            return
        pid, shares = int(status["Tgid"]), procfs.same_mm(parent.tid, tid)
        space = parent.mm if shares else parent.mm.forked(pid)
        space.users.add(tid)
        with self._world.lock:  # whoever moves the parent finds this task, or has moved it already
            task = self._world.tasks[tid] = Task(tid, pid, space, self._world.caller_at(parent.caller, tid))
            if tid == pid:
                self._world.members.forked(parent.pid, pid)
        task.vdso = parent.vdso
        fastpath.born(parent, task)
        task.command = parent.command
        task.view = parent.view
        task.leaves = parent.leaves
        if parent.watched:
            attach.born(self._tracer, parent, task)
        self._tracer.injector.inherit(parent.tid, tid)
        self._world.bindings.born(parent.tid, tid)
        if task.view is not None:
            task.view.born(parent, task)
        if event:
            lives.born(parent, task, event)
        if self._tracer.debuggers:
            waits.has_child(self._tracer, parent.pid)
        if tid in self.early:
            self.early.discard(tid)
            with self._tracer.guarded(tid):  # it may be killed meanwhile, which is not its parent's fault
                self.first_stop(task)

    def first_stop(self, task: Task) -> None:
        """A new task has run nothing yet: serve what its mm inherited."""
        task.phase = Phase.STOPPED
        if not task.watched:
            ptrace.setoptions(task.tid, ptrace.OPTIONS)  # its parent may have had fewer, see `attach`
            fastpath.first_stop(self._tracer, task)
        if task.mm.uffd < 0 and task.mm.devices():
            self.serve(task)
            with self._world.lock:
                for vma in task.mm:
                    task.mm.register(vma.start, vma.end)
                for device in task.mm.devices():
                    self._world.frames.join(task.mm, device)
        self._tracer.resume(task)

    def serve(self, task: Task) -> None:
        """Start the page service of the mm of ``task``, which is stopped here."""
        space = task.mm
        if space.uffd < 0:
            with room.in_program(task.tid):
                space.uffd, kernel_faults = uffd.create_in(
                    task.tid,
                    self._tracer.injector,
                    task.syscall_insn(),
                    lambda fd: handover.hand(self._tracer, task, fd),
                )
            if not kernel_faults and not self._warned:
                self._warned = True
                self._world.log(
                    "system calls that are given evicted enclave pages fail with EFAULT; "
                    "run as root or set vm.unprivileged_userfaultfd=1"
                )
            service = PageService(self._world, space, task.caller)
            try:
                room.begin(service)
            except Refused:
                os.close(space.uffd)
                space.uffd = -1
                raise
            space.service = service
            self._tracer.guard.hold(space.uffd)

    def execed(self, task: Task) -> None:
        """A new image: the old mm is left, the new one prepared at the exit of the execve."""
        former = ptrace.reported(task.tid, ptrace.EVENT_EXEC)
        if former is None:
            return  # killed since
        if former != task.tid and former in self._world.tasks:
            # A thread that is not the leader execs: it takes over the leader's id.
            task = self._replace(self._world.tasks.pop(former), task)
        lives.execed(self._tracer, task, former)
        self._tracer.injector.forget(former)
        self._tracer.injector.inherit(former, task.tid)
        self._world.bindings.execed(former, task.tid)
        threads.abandon(self._world, task)
        self._leave(task)
        task.mm = AddressSpace(task.pid)
        task.mm.users.add(task.tid)
        task.vdso = None
        self._tracer.resume_to_exit(task, lambda stopped: loader.prepare(self._tracer, stopped))

    def _replace(self, thread: Task, leader: Task) -> Task:
        thread.mm.users.discard(thread.tid)
        threads.abandon(self._world, leader)
        lives.end(self._tracer, leader)
        lives.replaced(leader)
        leader.mm.users.discard(leader.tid)
        thread.tid = leader.tid
        thread.mm.users.add(thread.tid)
        thread.phase = Phase.STOPPED
        self._world.tasks[thread.tid] = thread
        return thread

    def gone(self, tid: int, status: int) -> None:
        """The task has ended with this wait status."""
        task = self._world.tasks.pop(tid, None)
        self.early.discard(tid)
        self._tracer.injector.forget(tid)
        self._tracer.injector.sandboxed.discard(tid)
        self._tracer.watch.forget(tid)
        if task is None:
            return
        lives.gone(self._tracer, task, status)
        if tid == task.pid:
            self.statuses[tid] = status
            for other in [other for other in task.mm.users if other != tid]:
                peer = self._world.tasks.get(other)
                if peer is not None and peer.pid == tid:  # killed in its exec, which nobody has seen
                    self.forget(peer)
            if os.WIFSIGNALED(status):
                with self._world.lock:
                    self._world.tell(
                        KILLED,
                        pid=tid,
                        command=task.command,
                        group=task.caller.group.path,
                        reason=f"process {tid} was ended by {_signal_name(os.WTERMSIG(status))}",
                    )
        self.forget(task)

    def forget(self, task: Task) -> None:
        """``task`` is none of ours any more."""
        self._world.tasks.pop(task.tid, None)
        self._world.bindings.gone(task.tid)
        lives.end(self._tracer, task)
        lives.gone(self._tracer, task, signal.SIGKILL)
        if task.tid == task.pid:
            self.joined.discard(task.pid)
            with self._world.lock:
                self._world.members.ended(task.pid)
        threads.abandon(self._world, task)
        self._leave(task)
        if task.leaves is not None and all(o.leaves is not task.leaves for o in self._world.tasks.values()):
            task.leaves.end()
        self._tracer.release_closed()

    def _leave(self, task: Task) -> None:
        """``task`` no longer runs in its mm."""
        space = task.mm
        space.users.discard(task.tid)
        if not space.users:
            self._tracer.guard.drop(space)
            self._tracer.guard.release(space.uffd)
            with self._world.lock:
                space.close()
            if space.service is not None:
                space.service.end()
