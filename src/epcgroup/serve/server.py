"""The server: one machine that stays, its files at a mount point, commands by socket.

Threads, and what each may touch:

* this one (main): ptrace, the round of `live.tracer`, starting commands;
* fuse: the tree of cgroups, under World.lock;
* announcer: wakes pollers and watchers, the latter through a process of its own;
* control and one a client: only read messages and send signals;
* outsiders: the end of processes that are not traced.

The server's death, however it comes, ends every program in the machine
(PTRACE_O_EXITKILL). What is left on disk is put right by the next start: a
mount without a server is taken away, a socket nobody listens at is replaced,
tree and limits are read back.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import signal
import threading
import time
from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from epcgroup import epc
from epcgroup.cgroupfs import state
from epcgroup.cgroupfs.announce import Announcer
from epcgroup.cgroupfs.mirror import MirroredTree
from epcgroup.cgroupfs.tokens import TokenWriter
from epcgroup.errors import BadInput, EpcgroupError, Refused, words_of
from epcgroup.live import Supervisor
from epcgroup.live.world import WAKE_SIGNAL
from epcgroup.serve import places as places_
from epcgroup.serve import trees
from epcgroup.serve.backing import BackingMemory
from epcgroup.serve.control import Control, Job
from epcgroup.serve.conversation import Conversation
from epcgroup.serve.extra import MachineExtra
from epcgroup.serve.joining import Joining, pid_of
from epcgroup.serve.mountpoint import MountPoint
from epcgroup.serve.notifier import MACHINE_ROOT, MountNamespace, Notifier
from epcgroup.serve.processes import CgroupMembers, Outsiders
from epcgroup.serve.sampler import Sampler
from epcgroup.serve.sources.machine import MachineSource

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TextIO

    from epcgroup.cgroupfs.fuse import CgroupFs
    from epcgroup.observe.journal import Journal

# Saving takes the lock. So what a kill -9 may lose of the tree is what changed in the last
_SAVE_INTERVAL = 0.2  # s,
_SAVE_SHARE = 30  # or in so many times what saving takes, where that is longer (a very large tree).
_ENDED_KEPT = 64  # enclaves that are gone and still shown
_SOURCE = f"epcgroup-{os.getpid()}"  # what mount tables call this tree
_END_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class View(Protocol):
    """Something that shows the machine from inside the server, at an address of its own."""

    @property
    def url(self) -> str:
        """Where it is."""

    def start(self) -> None:
        """Begin, in a thread of its own."""

    def close(self) -> None:
        """End."""


@dataclass(frozen=True, slots=True)
class Options:
    """What `epcgroup serve` was asked for."""

    epc_pages: int
    places: places_.Places
    mount: Path
    sections: Sequence[epc.Section] = ()  # where there are several
    policy: str = "standard"
    resources: dict[str, int] = field(default_factory=dict)
    auto_delegate: bool = False
    extensions: bool = False  # files beyond the kernel's
    memory: bool = False  # a memory controller for what enclaves evict
    seed: bytes | None = None  # the machine's root key; a random one
    page_service: str = "auto"  # this and the next four: see Supervisor
    paranoid: bool = False
    inject: tuple[str, ...] = ()
    enclu: str = "fast"
    unpatched: tuple[str, ...] = ()
    system: bool = False  # any process of this system that opens a device joins
    mirror: Path | None = None  # directory of a real cgroup2 that the tree lies over
    log: TextIO | None = None  # where plain words go; stderr
    follow: Callable[[Journal], None] | None = None  # who listens to the machine's events
    views: Sequence[Callable[[Server], View]] = ()


def policy_with(name: str, resources: dict[str, int], *, extensions: bool = False) -> epc.Policy:
    """The policy, its misc controller knowing these resources too (after its own)."""
    policy = epc.by_name(name)
    if extensions:
        policy = epc.with_soft_limits(policy)
    more = tuple(key for key in resources if key not in policy.misc.resources)
    return replace(policy, misc=replace(policy.misc, resources=policy.misc.resources + more))


class Server:
    """Made and run in the main thread; `run` returns when a signal ends it."""

    def __init__(self, options: Options) -> None:
        """Raises Refused where another server is, BadInput, MissingCapability."""
        self._options = options
        self._lock_fd = places_.take(options.places)
        self._point = MountPoint(options.mount, ours=options.mount == options.places.mount)
        try:
            self._make()
        except BaseException:
            self._point.remove()
            raise

    def _make(self) -> None:
        """All that there is before anything is served."""
        options = self._options
        policy = policy_with(options.policy, options.resources, extensions=options.extensions)
        self._machine = Supervisor(
            options.epc_pages, policy, options.seed, resources=options.resources, log=options.log,
            page_service=options.page_service, paranoid=options.paranoid, inject=options.inject,
            enclu=options.enclu, unpatched=options.unpatched, sections=options.sections,
        )  # fmt: skip
        self._world = self._machine.world
        self._world.ended = deque(maxlen=_ENDED_KEPT)
        self.source = MachineSource(self._machine, str(options.places.directory))
        if options.follow is not None:
            options.follow(self.source.journal)
        self.tree = trees.make(self._world, options.mirror, auto_delegate=options.auto_delegate)
        self._extra = MachineExtra(self._world) if options.extensions else None
        self.tree.extras += [self._extra] if self._extra is not None else []
        self.tree.extras += [BackingMemory(self._world)] if options.memory else []
        self._outsiders = Outsiders(self._world.lock)
        self._outsiders.tree = self.tree
        self._members = CgroupMembers(self._world, self.tree, self._outsiders)
        self._world.members = self._members
        self._joining = Joining(self._machine, self.tree, self._members)
        self._load()
        if isinstance(self.tree, MirroredTree):
            self.tree.sync_all()
        self._saved, self._save_at = self.tree.changes, 0.0
        self._submitted: deque[Job] = deque()
        self._jobs: dict[int, Job] = {}
        self._stopping = False
        self._control = Control(options.places.socket, self._submit, self._converse)
        mount = str(options.mount)
        self._namespace = MountNamespace(mount)
        view = Notifier(self.tree, self._world, mount, _SOURCE, hide=mount != MACHINE_ROOT)
        self._views = (view, view.lenient())
        self.sampler = Sampler(self.source, options.places.history, self._say)
        self._faces = [make(self) for make in options.views]
        self._announcer: Announcer | None = None
        self._fuse_ended: str | None = None

    # -- life ----------------------------------------------------------------

    def run(self) -> None:
        """Serve until SIGTERM, SIGINT or SIGHUP, or until the tree is unmounted."""
        for number in _END_SIGNALS:
            signal.signal(number, self._stop)  # before libfuse, which leaves handlers alone
        tokens = TokenWriter(str(self._options.mount))
        try:
            fs = self._mount()
        except BaseException:
            tokens.end()
            self._point.remove()
            raise
        fs.token_writer = tokens.pid
        announcer = Announcer(fs.wake, tokens)
        self._announcer = announcer
        self.tree.announce = announcer.changed
        announcer.start()
        self._outsiders.start()
        if isinstance(self.tree, MirroredTree):
            self.tree.watcher.start()
        if self._extra is not None:
            self._extra.start()
        self._control.start()
        sampler = self.sampler
        sampler.start()
        try:
            if self._options.system:
                self._joining.whole_system()
            self._say(f"serving {self._options.epc_pages} pages of EPC at {self._options.mount}")
            for view in self._faces:
                view.start()
                self._say(f"{type(view).__name__.lower()} at {view.url}")
            self._machine.run(serving=self._round)
        finally:
            unmounted = self._fuse_ended
            for view in self._faces:
                view.close()
            self._joining.end()
            self._control.close()
            sampler.end()
            announcer.end()
            self._outsiders.end()
            if self._extra is not None:
                self._extra.end()
            if unmounted is None:
                self._point.unmount()
            self._save()
            self._machine.close()
            self._point.remove()
            if isinstance(self.tree, MirroredTree):
                self.tree.close()
            os.close(self._lock_fd)
        if unmounted is not None:
            raise Refused(unmounted)

    def _forget(self, path: str) -> None:
        if self._announcer is not None:
            self._announcer.removed(path)

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _say(self, text: str) -> None:
        self._world.log(text)

    def _wake(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pthread_kill(self._world.tracer_thread, WAKE_SIGNAL)

    def _mount(self) -> CgroupFs:
        from epcgroup.cgroupfs import fuse

        fs = fuse.CgroupFs(self.tree, self._world.lock, self._wake, self._forget)
        failed: list[str] = []

        def serve() -> None:
            try:
                fuse.serve(fs, str(self._options.mount), _SOURCE)
                failed.append("the tree was unmounted; programs in the machine were ended")
            except EpcgroupError as error:
                failed.append(words_of(error))
            self._fuse_ended = failed[0]

        thread = threading.Thread(target=serve, name="fuse", daemon=True)
        thread.start()
        while not fs.ready.wait(0.05):
            if failed:
                raise Refused(failed[0])
        return fs

    def _round(self) -> bool:
        """Called by the tracer every round: start what was asked for, report what ended."""
        statuses = self._machine.statuses
        while statuses:
            pid, status = statuses.popitem()
            job = self._jobs.pop(pid, None)
            if job is not None:
                job.ended(status)
        while self._submitted:
            job = self._submitted.popleft()
            if job.request.get("do") == "attach":
                self._attach(job)
            else:
                self._start(job)
        if not self._world.tasks:
            self._namespace.leave()
        if self.tree.changes != self._saved and time.monotonic() >= self._save_at:
            self._save()
        if self._fuse_ended is not None:
            self._stopping = True
        if self._stopping:
            self._machine.let_go()
        return not self._stopping

    # -- commands --------------------------------------------------------------

    def _submit(self, job: Job) -> None:
        self._submitted.append(job)
        self._wake()

    def _start(self, job: Job) -> None:
        request = job.request
        try:
            if len(job.fds) != 3:
                raise BadInput("an exec comes with three descriptors")
            with self._world.lock:
                cgroup = self._cgroup(request["group"], bool(request.get("create")))
                self.tree.may_enter(cgroup)
            self._members.entering = cgroup
            view = self._view_for(request)
            if view is not None:
                self._namespace.open()
            ignored = [int(number) for number in request.get("ignored", ())]

            def enter() -> None:
                for number in ignored:
                    signal.signal(number, signal.SIG_IGN)
                if view is not None:
                    self._namespace.enter()

            pid = self._machine.spawn(
                request["argv"], cgroup.effective.path, request["env"], job.fds[1], job.fds[2],
                request["cwd"], stdin=job.fds[0], session=True,
                view=view, enter=enter,
            )  # fmt: skip
        except (EpcgroupError, KeyError, TypeError, ValueError, OSError) as error:
            job.refused(error)
            return
        finally:
            job.close_fds()
        if cgroup.frozen:
            self.tree.processes.stop(pid, True)
        self._jobs[pid] = job
        job.started(pid)

    def _attach(self, job: Job) -> None:
        request = job.request
        try:
            if len(job.fds) != 1:
                raise BadInput("an attach comes with one descriptor, of a process")
            cgroup = None
            if request.get("group") is not None:
                with self._world.lock:
                    cgroup = self._cgroup(request["group"], bool(request.get("create")))
                    self.tree.may_enter(cgroup)
            joined = self._joining.attach(pid_of(job.fds[0]), cgroup, {job.client})
        except (EpcgroupError, TypeError, ValueError, OSError) as error:
            job.refused(error)
        else:
            job.answered(joined=joined)
        finally:
            job.close_fds()

    def _view_for(self, request: dict[str, Any]) -> Notifier | None:
        if os.geteuid() != 0 or request.get("host_cgroup"):
            return None
        return self._views[bool(request.get("rlimits"))]

    def _cgroup(self, path: str, create: bool) -> Any:
        if self.tree.find(path) is None and not create:
            where = f"{self._options.mount}{path}"
            raise BadInput(f"no cgroup {path!r} in this machine; make it (mkdir -p {where}) or add --create")
        parts = path.strip("/").split("/")
        for depth in range(1, len(parts) + 1):
            below = "/" + "/".join(parts[:depth])
            if self.tree.find(below) is None:
                parent = self.tree.lookup("/" + "/".join(parts[: depth - 1]))
                self.tree.control(parent, True)
                self.tree.mkdir(below)
        return self.tree.lookup(path)

    def _converse(self) -> Conversation:
        return Conversation(self._world, self.source, str(self._options.mount))

    # -- what survives -----------------------------------------------------------

    def _load(self) -> None:
        file = self._options.places.state
        if not file.exists():
            self.tree.control(self.tree.root, True)
            return
        gc.disable()  # a hundred thousand new objects, none of them garbage: five times as fast
        try:
            state.load(self.tree, json.loads(file.read_text()))
            state.dump(self.tree)  # so that the first change saves one cgroup and not all
        except (OSError, ValueError) as error:
            raise BadInput(f"{file}: {words_of(error)}; remove it to begin with an empty tree") from error
        finally:
            gc.enable()

    def _save(self) -> None:
        started = time.monotonic()
        with self._world.lock:
            self._saved = self.tree.changes
            text = state.dump(self.tree)
        file = self._options.places.state
        new = file.with_suffix(".new")
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
            with open(new, "w", opener=functools.partial(os.open, mode=0o600)) as stream:
                stream.write(text)
            new.replace(file)
        now = time.monotonic()
        self._save_at = now + max(_SAVE_INTERVAL, _SAVE_SHARE * (now - started))
