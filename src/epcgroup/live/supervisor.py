"""One emulated SGX machine with real programs on it.

    machine = Supervisor(epc_pages=16384)
    machine.mkdir("/web", limit=16 << 20)
    pid = machine.spawn(["./my-sgx-program"], group="/web")
    statuses = machine.run()
    print(machine.snapshot())

Everything happens in the thread that created the Supervisor. When the process
that holds it ends, for whatever reason, the kernel kills every traced program
(PTRACE_O_EXITKILL): an enclave never outlives the only keeper of its pages.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import secrets
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Self, TextIO

from epcgroup import epc
from epcgroup.driver import Driver
from epcgroup.driver import inject as injection
from epcgroup.errors import BadInput, Refused
from epcgroup.live import members, platform
from epcgroup.live import paranoid as suspicion
from epcgroup.live.devices import DeviceTable
from epcgroup.live.fastpath import programs as fastpath
from epcgroup.live.fastpath.unpatched import parse as parse_unpatched
from epcgroup.live.numa import Numa
from epcgroup.live.paging.express import Express
from epcgroup.live.paging.frames import MemfdFrames
from epcgroup.live.paging.service import END_SIGNAL
from epcgroup.live.paging.spoilt import SpoiltFrames
from epcgroup.live.tracing import attach as attaching
from epcgroup.live.tracing import loader, room, seccomp
from epcgroup.live.tracing.openers import Openers
from epcgroup.live.tracing.tracer import Tracer
from epcgroup.live.world import WAKE_SIGNAL, World
from epcgroup.units import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Mapping, Sequence

    from epcgroup.epc import Caller
    from epcgroup.live.tracing.view import View
    from epcgroup.observe.model import Snapshot

_BLOCKED = (signal.SIGCHLD, WAKE_SIGNAL)


class Supervisor:
    """Runs programs on an emulated machine with ``epc_pages`` pages of EPC."""

    def __init__(
        self,
        epc_pages: int,
        policy: str | epc.Policy = "standard",
        seed: bytes | None = None,
        log: TextIO | None = None,
        inject: Sequence[str] = (),
        paranoid: bool = False,
        resources: Mapping[str, int] | None = None,
        enclu: str = "fast",
        unpatched: Sequence[str] = (),
        page_service: str = "auto",
        sections: Sequence[epc.Section] = (),
    ) -> None:
        """``seed`` (16 bytes) makes the machine's keys reproducible; by default they are random.

        ``sections``: of the EPC where there are several, instead of ``epc_pages``.
        ``resources``: capacities of other misc resources, by key.

        ``inject``: faults to have, "enomem=0.01", "tamper@5" … (see driver.inject).
        ``paranoid``: check every invariant after every operation; ``run`` raises
        InternalError at the first that does not hold. So does EPCGROUP_PARANOID=1 in the environment.
        ``enclu``: "fast" enters and leaves enclaves without a trap where the
        processor allows it, "trap" never does. ``unpatched``: MRENCLAVEs or MRSIGNERs, in hexadecimal
        digits, of enclaves whose code is to stay as it was added; they leave by traps.
        ``page_service``: "python", "compiled" (needs llvmlite and libcrypto), or "auto": compiled
        where that is possible, for processes that fault often (see `express`).

        Raises BadInput for an EPC of no pages or an unknown policy,
        MissingCapability where this machine cannot do what is needed.
        """
        epc_pages = sum(section.pages for section in sections) or epc_pages
        if epc_pages < 1:
            raise BadInput(f"an EPC of {epc_pages} pages cannot hold an enclave")
        room.all_of_ours()
        platform.require()
        chosen = epc.by_name(policy) if isinstance(policy, str) else policy
        plan = injection.parse(inject) if inject else None
        spoilt = plan.at("sigbus") if plan is not None else None
        frames = SpoiltFrames(spoilt) if spoilt else MemfdFrames()
        self._log_file = log if log is not None else sys.stderr
        driver = Driver(
            epc_pages=epc_pages,
            policy=chosen,
            frames=frames,
            root_key=seed if seed is not None else secrets.token_bytes(16),
            platform=platform.sgx(),
            plan=plan,
            resources=resources,
            sections=sections,
            log=self._log,
        )
        self.world = World(driver.machine, driver, frames, DeviceTable(), self._log)
        if len(sections) > 1:
            self.world.sections = [section.pages * PAGE_SIZE for section in sections]
            self.world.numa = Numa([section.node for section in sections])
        if enclu not in ("fast", "trap"):
            raise BadInput(f"enclu={enclu!r}: must be fast or trap")
        self.world.fast = enclu == "fast" and fastpath.supported()
        self.world.unpatched = parse_unpatched(unpatched)
        paranoid = paranoid or bool(os.environ.get("EPCGROUP_PARANOID"))
        if paranoid and page_service == "auto":
            page_service = "python"  # every load is checked by itself
        self.world.express = Express(self.world, page_service)
        self.world.tracer_thread = threading.get_ident()
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
        self._end_handler = signal.signal(END_SIGNAL, lambda *_: None)
        self._tracer = Tracer(self.world)
        if paranoid:
            suspicion.watch(self.world)

    def _log(self, message: str) -> None:
        print(f"epcgroup: {message}", file=self._log_file, flush=True)

    def mkdir(self, path: str, limit: int | None = None) -> None:
        """Create the cgroup ``path`` and its missing parents; ``limit`` in bytes.

        Raises BadInput for a name that no cgroup can have.
        """
        machine = self.world.machine
        parts = [part for part in path.split("/") if part]
        with self.world.lock:
            for depth in range(1, len(parts) + 1):
                below = "/" + "/".join(parts[:depth])
                if below not in machine.groups:
                    machine.groups.mkdir(below)
            if limit is not None:
                if not parts:
                    raise BadInput("the root cgroup has no limit; name a group below it")
                machine.set_max(machine.groups.lookup(path), limit)

    def set_max(self, path: str, limit: int | None) -> None:
        """Change the limit of a group while programs run; bytes, None for none."""
        with self.world.lock:
            self.world.machine.set_max(self.world.machine.groups.lookup(path), limit)

    def spawn(
        self,
        argv: Sequence[str],
        group: str = "/",
        env: Mapping[str, str] | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        cwd: str | None = None,
        *,
        stdin: int | None = None,
        session: bool = False,
        view: View | None = None,
        enter: Callable[[], None] | None = None,
    ) -> int:
        """Start a program in ``group``; its pid. BadInput if it is not found, Refused if killed at once.

        ``session``: in a session of its own, away from our terminal. ``view``: what it
        is shown of its cgroups. ``enter`` is called in the child before it becomes the program.
        """
        member = self.world.machine.groups.lookup(group)
        program = seccomp.base_filter(private=True, int80=True, view=() if view is None else view.calls)
        pid = loader.spawn(
            argv, env, stdout, stderr, cwd, stdin=stdin, session=session, program=program, enter=enter
        )
        try:
            with self.world.lock:
                task = self._tracer.life.adopt(pid, members.caller_of(pid, member))
                try:
                    self.world.members.started(pid, member)
                except BaseException:  # a real cgroup may refuse it
                    os.kill(pid, signal.SIGKILL)
                    raise
        except ProcessLookupError:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
            raise Refused(f"{argv[0]} was killed before it began", errno.ESRCH) from None
        task.command, task.view = Path(argv[0]).name, view
        loader.release(pid)
        return pid

    def attach(
        self,
        pid: int,
        group: str = "/",
        *,
        without: Container[int] = (),
        adopt: Callable[[int], Caller] | None = None,
    ) -> list[int]:
        """Join a running process with its threads and children, in ``group``; the processes joined.

        Until it opens an SGX device it is only watched, and lives on when we end; from then on
        it ends with us (see `live.attach`). ``without``: processes to leave alone. ``adopt``:
        enters a process into its cgroup, other than ``group``, and says who pays for it.
        Raises Refused when it cannot be traced, BadInput when it is none.
        """
        member = self.world.machine.groups.lookup(group)

        def adopt_here(process: int) -> Caller:
            with self.world.lock:
                self.world.members.started(process, member)
            return members.caller_of(process, member)

        return attaching.join(self._tracer, pid, adopt or adopt_here, without=without)

    def take_openers(self, adopt: Callable[[int], Caller]) -> Openers:
        """Have every process of the system that opens a device placeholder join; see `live.openers`.

        The caller watches the files and starts and ends what is returned.
        """
        return Openers(self._tracer, adopt)

    def let_go(self) -> None:
        """Leave the joined processes that hold no device, end all others; `run` then returns soon."""
        self._tracer.let_go()

    def listen(self, heard: Callable[[int, int, bytes], None]) -> None:
        """Be told of each signal that a process is about to get: pid, number, siginfo. By `run`'s thread."""
        self._tracer.heard = heard

    def run(
        self,
        on_tick: Callable[[Snapshot], None] | None = None,
        interval: float = 0.25,
        serving: Callable[[], bool] = lambda: False,
    ) -> dict[int, int]:
        """Serve all programs until the last one has ended; pid → wait status.

        ``on_tick`` is called about every ``interval`` seconds. While ``serving``,
        called every round, says yes, the machine goes on without programs.
        """
        tick = None if on_tick is None else lambda: on_tick(self.snapshot())
        with _rare_collections():
            self._tracer.run(tick, interval, serving)
        return dict(self._tracer.life.statuses)

    @property
    def statuses(self) -> dict[int, int]:
        """pid → wait status of programs and their children that ended; take out what you have seen."""
        return self._tracer.life.statuses

    def snapshot(self) -> Snapshot:
        """Groups, enclaves and processes as they are now; from any thread."""
        return self.world.observer.take()

    def close(self) -> None:
        """End what still runs, release everything, undo what was set in this process."""
        self._tracer.kill_all()
        self.world.devices.close()
        # A thread that is still being told its end would trip a signal that nobody handles any more.
        for thread in threading.enumerate():
            if getattr(thread, "_world", None) is self.world:
                thread.join(5)
        signal.signal(END_SIGNAL, self._end_handler)
        # A wake-up that came when nobody waited any more would end this process once unblocked.
        while signal.sigtimedwait({WAKE_SIGNAL}, 0) is not None:
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def _rare_collections() -> Iterator[None]:
    """A page fault should not wait for the collector to walk a million page descriptors."""
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(100_000, 50, 1000)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
