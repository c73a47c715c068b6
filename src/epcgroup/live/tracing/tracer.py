"""The tracer: every stop of every traced thread, answered by one thread.

ptrace(2) calls are only valid from the thread that attached, so all of them are
made here. The loop is driven by signals that are blocked and waited for:
SIGCHLD says that somebody stopped, WAKE_SIGNAL that the page service left a
kick. Blocked signals stay pending, so nothing is lost between a look and the
wait (a self-pipe or a time-out would be the alternatives).

Work that takes long (ADD_PAGES of a gigabyte, an EENTER that must first load
its TCS under a full limit) is a *job*: a generator that does one slice per
`next()` and resumes its thread at the end. Between slices other threads' stops
are answered and background reclaim gets its turn.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING

from epcgroup.errors import EpcgroupError, words_of
from epcgroup.live.enclave import faults, spin, threads
from epcgroup.live.tracing import attach, memory, ptrace, syscalls, watched
from epcgroup.live.tracing.debugger import joining, lives, stops
from epcgroup.live.tracing.guard import Guard
from epcgroup.live.tracing.inject import Injector
from epcgroup.live.tracing.lifecycle import Lifecycle
from epcgroup.live.tracing.task import Phase, Task
from epcgroup.live.world import WAKE_SIGNAL, World
from epcgroup.units import PAGE_SIZE

if TYPE_CHECKING:
    from epcgroup.live.tracing.debugger.state import Debugger

# A job says whether it got anywhere since its last slice.
Job = Generator[bool, None, None]

_SIGTRAP_SYSCALL = signal.SIGTRAP | 0x80
_GROUP_STOPS = {signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
_NEW_TASK = {ptrace.EVENT_FORK, ptrace.EVENT_VFORK, ptrace.EVENT_CLONE}
_WAITED = {signal.SIGCHLD, WAKE_SIGNAL}
_POLL = 0.05  # s; how late the close of an enclave file may be noticed
_BLOCKED_PAUSE = 0.0005
_TURN = 64  # slices; 4 MiB of ADD_PAGES, some 30 ms
_SYS_SIGACTION = 13
_SIGACTION_SIZE = 32  # struct sigaction of the kernel; the handler comes first
_SCRATCH = 64  # bytes of the last page of our part of the vDSO, by thread


class Tracer:
    """Runs traced programs against one World."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.tasks = world.tasks
        self.injector = Injector(world.log)
        self.life = Lifecycle(self)
        self.guard = Guard(world.say_once)
        self.watch = spin.Watch(world.log)
        self.debuggers: dict[int, Debugger] = {}  # by process
        #: Told of each signal that a process is about to get: pid, number, siginfo.
        self.heard: Callable[[int, int, bytes], None] = lambda *_: None
        self._jobs: deque[tuple[Task, Job]] = deque()
        self._slices = 0  # that the first of them has had
        self._posted: deque[Callable[[], None]] = deque()
        self._told = False  # that an invariant broke

    # ---- the loop -------------------------------------------------------

    def run(
        self,
        on_tick: Callable[[], None] | None = None,
        interval: float = 0.25,
        serving: Callable[[], bool] = lambda: False,
    ) -> None:
        """Serve until no traced task is left and ``serving``, called every round, says no.

        Raises InternalError if an invariant broke (`paranoid`).
        WAKE_SIGNAL to this thread ends a wait: the next round begins at once.
        """
        next_tick = time.monotonic() + interval
        next_release = 0.0
        while (more := serving()) or self.tasks:
            self._stop_if_broken()
            progress = self._answer_stops()
            progress |= self._run_jobs() | self._do_posted()
            progress |= self.world.slice()
            now = time.monotonic()
            self.watch.look(self.tasks.values(), now)
            self.world.bindings.look(now)
            if now >= next_release:  # however busy: what waits for EPC may wait for just these pages
                self.release_closed()
                attach.forget_replaced(self)
                next_release = now + _POLL
            if on_tick is not None and time.monotonic() >= next_tick:
                on_tick()
                next_tick = time.monotonic() + interval
            if not progress and (more or self.tasks):
                signal.sigtimedwait(_WAITED, _BLOCKED_PAUSE if self._jobs else _POLL)
                self._deliver_kicks()
        self.release_closed()
        while self.world.slice():
            pass
        self._stop_if_broken()

    def post(self, action: Callable[[], None]) -> None:
        """Have ``action`` done by the tracer's thread, soon; from any thread. It raises nothing."""
        self._posted.append(action)
        with contextlib.suppress(ProcessLookupError):
            signal.pthread_kill(self.world.tracer_thread, WAKE_SIGNAL)

    def _do_posted(self) -> bool:
        done = False
        while self._posted:
            self._posted.popleft()()
            done = True
        return done

    def _stop_if_broken(self) -> None:
        if self.world.broken is not None and not self._told:
            self._told = True
            raise self.world.broken

    def _answer_stops(self) -> bool:
        """Answer every task that is stopped, once.

        The kernel reports the youngest task first. Whoever stops again before the round is over
        waits for the next one, or threads that make calls without end would be all that we see.
        """
        answered: set[int] = set()
        again: dict[int, int] = {}
        while (stop := self._next_stop()) is not None:
            tid, status = stop
            if tid in answered:
                again[tid] = status  # a stop that we left unanswered is void: killed, or exec took its place
                continue
            answered.add(tid)
            with self.guarded(tid):
                self._answer(tid, status)
        self.injector.events.extendleft(reversed(again.items()))
        self._deliver_kicks()
        return bool(answered)

    def _next_stop(self) -> tuple[int, int] | None:
        if self.injector.events:
            return self.injector.events.popleft()
        return ptrace.wait_any()

    @contextlib.contextmanager
    def guarded(self, tid: int) -> Iterator[None]:
        """An error here is the end of ``tid``'s program at most, and never a hang."""
        try:
            yield
        except ProcessLookupError:
            if self._is_left_stopped(tid):  # it was somebody else who was not found
                self._end(tid, f"internal error\n{traceback.format_exc()}")
            # else killed while we looked at it; its exit status follows
        except EpcgroupError as error:
            self._end(tid, words_of(error))
        except Exception as error:
            # What /proc and the memory of a process say that is killed just then, they say in many ways.
            if not isinstance(error, OSError) or not self._was_killed(tid):
                self._end(tid, f"internal error\n{traceback.format_exc()}")

    def _was_killed(self, tid: int) -> bool:
        """Whether it was stopped, and is so no more or for the last time, without us."""
        task = self.tasks.get(tid)
        return task is not None and task.phase is Phase.STOPPED and not self._is_left_stopped(tid)

    def _is_left_stopped(self, tid: int) -> bool:
        """Whether it is alive, and nobody will resume it. At its last stop it is not alive any more."""
        task = self.tasks.get(tid)
        if task is None or task.phase is not Phase.STOPPED:
            return False
        try:
            return ptrace.event_at(tid) != ptrace.EVENT_EXIT
        except OSError:
            return False

    def _end(self, tid: int, why: str) -> None:
        task = self.tasks.get(tid)
        self.world.log(f"task {tid} ({task.command if task else '?'}) is ended: {why}")
        with contextlib.suppress(ProcessLookupError):
            os.kill(task.pid if task is not None else tid, signal.SIGKILL)

    def start(self, task: Task, job: Job) -> None:
        """Do the first slice of ``job`` now, the rest between other stops."""
        if self._advance(task, job) is not None:
            self._jobs.append((task, job))

    def _run_jobs(self) -> bool:
        """One slice of a job that gets anywhere, so that stops are answered in between.

        The jobs take turns of many slices. In lockstep, enclaves that are built at the same time would
        meet their cgroup's limit at the same page, and all of them would lose.
        """
        for _ in range(len(self._jobs)):
            got = self._advance(*self._jobs[0])
            self._slices += 1
            if got is None:
                self._jobs.popleft()
            elif got is False or self._slices >= _TURN:
                self._jobs.rotate(-1)
            else:
                return True
            self._slices = 0
            if got is not False:
                return True
        return False

    def _advance(self, task: Task, job: Job) -> bool | None:
        """One slice; whether it got anywhere, None at its end."""
        if task.tid not in self.tasks:
            job.close()  # killed meanwhile
            return None
        with self.guarded(task.tid):
            return next(job, None)
        return None

    def _deliver_kicks(self) -> None:
        while self.world.kicks:
            tid, kick = self.world.kicks.popleft()
            task = self.tasks.get(tid)
            if task is None or task.kick is not kick:
                continue
            with contextlib.suppress(OSError):
                ptrace.interrupt(tid)

    # ---- stops ----------------------------------------------------------

    def resume(self, task: Task, sig: int = 0) -> None:
        """Let the kernel run ``task`` again, delivering ``sig`` if not 0; or show this to its debugger."""
        if task.tracee is not None:
            stops.resume(self, task, task.tracee, sig)
            return
        task.phase = Phase.RUNNING
        if task.leaving:
            attach.let_go(self, task, sig)
        elif task.watched:
            ptrace.syscall(task.tid, sig)
        else:
            ptrace.cont(task.tid, sig)

    def resume_to_exit(self, task: Task, then: Callable[[Task], None]) -> None:
        """Let the current system call finish, then call ``then`` at its exit."""
        task.on_exit = then
        task.phase = Phase.RUNNING
        ptrace.syscall(task.tid)

    def _answer(self, tid: int, status: int) -> None:
        if not os.WIFSTOPPED(status):
            self.life.gone(tid, status)
            return
        sig, event = (status >> 8) & 0xFF, status >> 16
        task = self.tasks.get(tid)
        if task is None:
            self.life.unknown(tid, event)
            return
        if task.phase is Phase.BORN:
            self.life.first_stop(task)
            return
        task.phase = Phase.STOPPED
        if task.tracee is not None:
            task.tracee.stop = None  # where it was held, only a kill makes it stop again
        if event != ptrace.EVENT_STOP:
            # This stop answers a pending PTRACE_INTERRUPT as well; the fault will come again.
            task.kick = None
        if event in _NEW_TASK:
            child = ptrace.reported(tid, event)
            if child is None:
                return  # killed since; its last stop follows
            self.life.born(task, child, event)
            if task.on_exit is not None and task.tracee is None:
                # Somebody waits for the end of this very call.
                self.resume_to_exit(task, task.on_exit)
            else:
                self.resume(task)
        elif event == ptrace.EVENT_EXEC:
            self.life.execed(task)
        elif event == ptrace.EVENT_EXIT:
            try:
                self.life.going(task)
                threads.abandon(self.world, task)
                lives.end(self, task)
            finally:  # whatever failed: killed it is already, and here it would stay for ever
                if task.tracee is not None:
                    lives.dying(task.tracee, ptrace.geteventmsg(tid))
                self.resume(task)
        elif event == ptrace.EVENT_VFORK_DONE:
            if task.tracee is not None:
                lives.event(task.tracee, event, task.tracee.vforked)
            self.resume(task)
        elif event == ptrace.EVENT_SECCOMP:
            syscalls.answer(self, task)
        elif event == ptrace.EVENT_STOP:
            self._event_stop(task, sig)
        elif sig == _SIGTRAP_SYSCALL:
            then, task.on_exit = task.on_exit, None
            if then is not None:
                then(task)
            elif task.watched:
                watched.syscall_stop(self, task)
            else:
                self.resume(task)
        else:
            faults.signal_stop(self, task, sig)
        if task.on_stop is not None and event != ptrace.EVENT_STOP:
            with contextlib.suppress(OSError):
                ptrace.interrupt(task.tid)  # this stop has answered the request
        if self.debuggers:
            joining.ask_again(self, task)

    def _event_stop(self, task: Task, sig: int) -> None:
        if self.debuggers:
            joining.equip_late(self, task)
        if sig in _GROUP_STOPS and not task.leaving:
            if task.tracee is None or task.tracee.orphaned:
                self.stay(task)
            else:
                stops.group_stop(self, task.tracee, sig)
        elif task.kick is not None:
            kick, task.kick = task.kick, None
            faults.kicked(self, task, kick)
        elif task.on_stop is not None:
            then, task.on_stop = task.on_stop, None
            then(task)
        elif task.tracee is not None:
            stops.arrived(self, task, task.tracee)
        else:
            self.resume(task)

    def stay(self, task: Task) -> None:
        """Leave ``task`` in its group stop, or back into it if a call made in it has taken it out."""
        try:
            ptrace.listen(task.tid)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            ptrace.interrupt(task.tid)
            self.resume(task)

    def release_closed(self) -> None:
        """Release the enclaves whose device file nobody holds any more."""
        for device in self.world.devices.closed():
            self.world.release(device)

    def kill_all(self) -> None:
        """End every traced program, let those go that were only joined, and wait until all are gone."""
        self.let_go()
        self.run()
        self.guard.end()

    def let_go(self) -> None:
        """The same without waiting: what is still traced afterwards is on its way out."""
        for task in list(self.tasks.values()):
            if task.watched and not attach.is_bound(self, task):
                attach.leave(task)
            else:
                if task.tid == task.pid and task.pid in self.life.joined:
                    self.life.joined.discard(task.pid)
                    self.world.log(f"process {task.pid} ({task.command}) holds an SGX device and is ended")
                with contextlib.suppress(ProcessLookupError):
                    os.kill(task.pid, signal.SIGKILL)

    # ---- help for the answers ----------------------------------------------

    def inject(self, task: Task, nr: int, *args: int) -> int:
        """Have the stopped ``task`` make a system call; OSError if it fails."""
        return self.injector.inject(task.tid, nr, *args, syscall_insn=task.syscall_insn())

    def ignore_again(self, task: Task, sig: int) -> None:
        """The kernel forced ``sig`` and thereby forgot that the program ignores it."""
        self.set_action(task, sig, signal.SIG_IGN)

    def set_action(self, task: Task, sig: int, handler: signal.Handlers) -> None:
        """Set the disposition of ``sig`` to SIG_DFL or SIG_IGN."""
        action = self.scratch(task, handler.to_bytes(8, "little").ljust(_SIGACTION_SIZE, b"\0"))
        with contextlib.suppress(OSError):
            self.inject(task, _SYS_SIGACTION, sig, action, 0, 8)

    def scratch(self, task: Task, data: bytes) -> int:
        """Put ``data`` where the program's next system call can read it; its address.

        The vDSO stub has room for it. Elsewhere the stack has: below the red
        zone nothing is alive.
        """
        if task.vdso is not None and len(data) <= _SCRATCH:
            place = task.vdso.end - PAGE_SIZE + task.tid * _SCRATCH % PAGE_SIZE
            memory.poke_text(task.tid, place, data)
            return place
        below = ptrace.getregs(task.tid, ptrace.UserRegs()).rsp - 128 - len(data)
        memory.write(task.tid, below, data)
        return below
