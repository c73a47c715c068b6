"""The calls by which a program finds out about its cgroups, and what it is answered."""

from __future__ import annotations

import contextlib
import copy
import errno
import os
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING

from epcgroup.errors import EpcgroupError
from epcgroup.live.tracing import answers, memory, scratch, standins
from epcgroup.live.tracing.seccomp import SYS
from epcgroup.serve.notifier import texts
from epcgroup.serve.notifier.procfiles import ProcFiles
from epcgroup.serve.notifier.where import CgroupNamespaces, Places
from epcgroup.serve.numbers import Numbers

if TYPE_CHECKING:
    from epcgroup.cgroupfs import CgroupTree
    from epcgroup.epc.group import Group
    from epcgroup.live.tracing.ptrace import UserRegs
    from epcgroup.live.tracing.task import Task
    from epcgroup.live.tracing.tracer import Tracer
    from epcgroup.live.tracing.view import Handler
    from epcgroup.live.world import World

_STATFS_SIZE = 56  # of what `texts.statfs` looks at
_BPF_PROG_ATTACH, _BPF_PROG_DETACH, _BPF_PROG_QUERY = 8, 9, 16
_QUERY_FLAGS_AT, _QUERY_COUNT_AT = 12, 24  # attach_flags and prog_cnt in union bpf_attr
_CGROUP2 = b"cgroup2"
_MS_CHANGES = 0x20 | 0x1000 | 0x2000 | 0x1E0000  # remount, bind, move, change of propagation
_MS_ATTRIBUTES = 0x1 | 0x2 | 0x4 | 0x8  # ro, nosuid, nodev, noexec: MOUNT_ATTR_* have the same values
_SYS_CLOSE, _SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_MOUNT_SETATTR = 3, 428, 429, 442
_AT_FDCWD, _AT_EMPTY_PATH = -100, 0x1000
_OPEN_TREE_CLONE = 1
_MOVE_FROM_FD_FOLLOW = 0x4 | 0x10  # MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_SYMLINKS
_MOUNT_ATTR = struct.Struct("<QQQQ")
_CLONE_NEWCGROUP = 0x2000000
_CLONE_INTO_CGROUP = 0x200000000
_CLONE_ARGS_CGROUP_AT = 80


class Notifier:
    """A `live.view.View`: the machine has a cgroup2, and it is our tree."""

    def __init__(
        self,
        tree: CgroupTree[Group],
        world: World,
        mount: str,
        source: str,
        *,
        hide: bool,
    ) -> None:
        """``mount``: where the host has the tree; ``source``: what mountinfo calls it.

        ``hide``: do not show programs that place, they have another one.
        """
        self._tree = tree
        name, hidden = texts.escaped(source), texts.escaped(mount) if hide else b""
        self._lock = world.lock
        self._namespaces = CgroupNamespaces(tree)
        self._places = Places(name)
        numbers = Numbers(world.tasks)
        self._files = ProcFiles(name, hidden, self._namespaces, numbers, lambda: 1 + tree.root.descendants)
        self._entering: dict[Task, str] = {}  # who clones → cgroup of the child
        self._calls: dict[int, Handler] = {
            SYS["statfs"]: self._statfs,
            SYS["fstatfs"]: self._statfs,
            SYS["bpf"]: self._bpf,
            SYS["mount"]: self._mount_call,
            SYS["fsopen"]: self._fsopen,
            SYS["unshare"]: self._unshare,
            SYS["clone3"]: self._clone3,
        }

    def lenient(self) -> Notifier:
        """The same, and a resource limit that may not be raised counts as raised."""
        other = copy.copy(self)
        other._calls = self._calls | dict.fromkeys((SYS["setrlimit"], SYS["prlimit64"]), _raise_limit)
        return other

    @property
    def calls(self) -> Mapping[int, Handler]:
        """By number."""
        return self._calls

    def opens(self, tracer: Tracer, task: Task, regs: UserRegs, name: str, flags: int) -> bool:
        """See `procfiles`."""
        return self._files.opens(tracer, task, regs, name, flags)

    # -- calls -------------------------------------------------------------------

    def _statfs(self, tracer: Tracer, task: Task, regs: UserRegs) -> None:
        buffer, fd = regs.rsi, regs.rdi if regs.orig_rax == SYS["fstatfs"] else None

        def filled(task: Task, result: int) -> int:
            if result == 0:
                with contextlib.suppress(OSError):
                    before = memory.read(task.tid, buffer, _STATFS_SIZE)
                    after = texts.statfs(before)
                    if after is None and fd is not None and texts.is_tmpfs(before):
                        name = os.readlink(f"/proc/{task.tid}/fd/{fd}")  # noqa: PTH115
                        after = texts.as_proc(before) if name.startswith(f"/memfd:{standins.MEMFD}") else None
                    if after is not None:
                        memory.write(task.tid, buffer, after)
            return result

        answers.rewrite(tracer, task, regs, {}, filled)

    def _bpf(self, tracer: Tracer, task: Task, regs: UserRegs) -> None:
        """Device programs of runtimes: there is no cgroup of the kernel's to attach them to."""
        command, attributes = regs.rdi, regs.rsi
        if command in (_BPF_PROG_ATTACH, _BPF_PROG_DETACH, _BPF_PROG_QUERY):
            with contextlib.suppress(OSError):
                fd = int.from_bytes(memory.read(task.tid, attributes, 4), "little")
                if self._places.cgroup_of(task, fd) is not None:
                    if command == _BPF_PROG_QUERY:
                        for at in (_QUERY_FLAGS_AT, _QUERY_COUNT_AT):
                            memory.write(task.tid, attributes + at, bytes(4))
                    answers.emulate(tracer, task, regs, 0)
                    return
        tracer.resume(task)

    def _mount_call(self, tracer: Tracer, task: Task, regs: UserRegs) -> None:
        """A fresh cgroup2 shows the tree from the root of the caller's cgroup namespace: so does a bind."""
        if regs.r10 & _MS_CHANGES or not _says_cgroup2(task, regs.rdx):
            tracer.resume(task)
            return
        source = self._places.path_to(task, self._namespaces.root_of(task))
        if source is None:
            answers.emulate(tracer, task, regs, -errno.EPERM)
            return
        try:
            _bind(tracer, task, source, regs.rsi, regs.r10 & _MS_ATTRIBUTES)
            result = 0
        except ProcessLookupError:
            raise
        except OSError as error:
            result = -(error.errno or errno.EINVAL)
        answers.emulate(tracer, task, regs, result)

    def _fsopen(self, tracer: Tracer, task: Task, regs: UserRegs) -> None:
        """As on a kernel without fsopen: who wants a cgroup2 then calls mount."""
        if _says_cgroup2(task, regs.rdi):
            answers.emulate(tracer, task, regs, -errno.ENOSYS)
        else:
            tracer.resume(task)

    def _unshare(self, tracer: Tracer, task: Task, regs: UserRegs) -> None:
        if not regs.rdi & _CLONE_NEWCGROUP:
            tracer.resume(task)
            return

        def made(task: Task, result: int) -> int:
            if result == 0:
                self._namespaces.made(task)
            return result

        answers.rewrite(tracer, task, regs, {}, made)

    def _clone3(self, tracer: Tracer, task: Task, regs: UserRegs) -> None:
        """CLONE_INTO_CGROUP: the kernel makes the child, `born` puts it where it belongs."""
        at = regs.rdi
        try:
            flags = int.from_bytes(memory.read(task.tid, at, 8), "little")
            if not flags & _CLONE_INTO_CGROUP or regs.rsi < _CLONE_ARGS_CGROUP_AT + 8:
                tracer.resume(task)
                return
            fd = int.from_bytes(memory.read(task.tid, at + _CLONE_ARGS_CGROUP_AT, 8), "little")
            cgroup = self._places.cgroup_of(task, fd)
            if cgroup is None:
                tracer.resume(task)
                return
            memory.write(task.tid, at, (flags & ~_CLONE_INTO_CGROUP).to_bytes(8, "little"))
        except OSError:
            tracer.resume(task)
            return
        self._entering[task] = cgroup

        def cloned(task: Task, result: int) -> int:
            self._entering.pop(task, None)
            with contextlib.suppress(OSError):
                memory.write(task.tid, at, flags.to_bytes(8, "little"))
            return result

        answers.rewrite(tracer, task, regs, {}, cloned)

    def born(self, parent: Task, child: Task) -> None:
        """Where the parent wanted it."""
        cgroup = self._entering.get(parent)
        if cgroup is not None and child.tid == child.pid:
            with self._lock, contextlib.suppress(EpcgroupError):
                self._tree.enter(child.pid, self._tree.lookup(cgroup))


def _says_cgroup2(task: Task, address: int) -> bool:
    try:
        return address != 0 and memory.read_cstring(task.tid, address, len(_CGROUP2) + 1) == _CGROUP2
    except OSError:
        return False


def _bind(tracer: Tracer, task: Task, source: str, target: int, attributes: int) -> None:
    """Have ``task`` bind a directory over the path at ``target``, with these MOUNT_ATTR_*.

    Not by two calls of mount: the target may be a /proc/self/fd/N, which after the
    first of them still names what lies below.
    """
    with scratch.page(tracer, task) as page:
        name = os.fsencode(source) + b"\0"
        empty, attr = page + len(name) - 1, page + (len(name) + 7 & ~7)
        memory.write(task.tid, page, name)
        memory.write(task.tid, attr, _MOUNT_ATTR.pack(attributes, 0, 0, 0))
        tree = tracer.inject(task, _SYS_OPEN_TREE, _AT_FDCWD, page, _OPEN_TREE_CLONE | os.O_CLOEXEC)
        try:
            tracer.inject(task, _SYS_MOUNT_SETATTR, tree, empty, _AT_EMPTY_PATH, attr, _MOUNT_ATTR.size)
            tracer.inject(task, _SYS_MOVE_MOUNT, tree, empty, _AT_FDCWD, target, _MOVE_FROM_FD_FOLLOW)
        finally:
            tracer.inject(task, _SYS_CLOSE, tree)


def _raise_limit(tracer: Tracer, task: Task, regs: UserRegs) -> None:
    """Runtimes raise limits as a matter of course, and give up where even root may not."""
    answers.rewrite(tracer, task, regs, {}, lambda _, result: 0 if result == -errno.EPERM else result)
