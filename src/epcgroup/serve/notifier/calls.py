"""The calls by which a program finds out about its cgroups, and what it is answered."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from epcgroup.live import answers, handover, memory
from epcgroup.live.seccomp import SYS
from epcgroup.serve.notifier import texts
from epcgroup.serve.notifier.numbers import Numbers

if TYPE_CHECKING:
    from epcgroup.cgroupfs import CgroupTree
    from epcgroup.epc.group import Group
    from epcgroup.live.ptrace import UserRegs
    from epcgroup.live.task import Task
    from epcgroup.live.tracer import Tracer
    from epcgroup.live.view import Handler

_FILES = ("mountinfo", "mounts", "cgroup", "cgroups")
_STATFS_SIZE = 56  # of what `texts.statfs` looks at
_BPF_PROG_ATTACH, _BPF_PROG_DETACH, _BPF_PROG_QUERY = 8, 9, 16
_QUERY_FLAGS_AT, _QUERY_COUNT_AT = 12, 24  # attach_flags and prog_cnt in union bpf_attr
_CGROUP2 = b"cgroup2"
_MS_CHANGES = 0x20 | 0x1000 | 0x2000 | 0x1E0000  # remount, bind, move, change of propagation
_CLONE_INTO_CGROUP = 0x200000000
_CLONE_ARGS_CGROUP_AT = 80

_MEMFD = "/memfd:epcgroup-proc"

_libc = ctypes.CDLL(None, use_errno=True)


class Notifier:
    """A `live.view.View`: the machine has a cgroup2, and it is our tree."""

    def __init__(
        self,
        tree: CgroupTree[Group],
        tasks: Mapping[int, Task],
        mount: str,
        source: str,
        *,
        hide: bool,
        rlimits: bool = False,
    ) -> None:
        """``mount``: where the host has the tree; ``source``: what mountinfo calls it.

        ``hide``: do not show programs that place, they have another one.
        ``rlimits``: a resource limit that may not be raised counts as raised.
        """
        self._tree = tree
        self._mount = mount
        self._source = texts.escaped(source)
        self._hidden = texts.escaped(mount) if hide else b""
        self._device: int | None = None
        self._numbers = Numbers(tasks)
        self._calls: dict[int, Handler] = {
            SYS["statfs"]: self._statfs,
            SYS["fstatfs"]: self._statfs,
            SYS["bpf"]: self._bpf,
            SYS["mount"]: self._mount_call,
            SYS["fsopen"]: self._fsopen,
        }
        if rlimits:
            self._calls |= dict.fromkeys((SYS["setrlimit"], SYS["prlimit64"]), _raise_limit)

    @property
    def calls(self) -> Mapping[int, Handler]:
        """By number."""
        return self._calls

    # -- files of /proc ----------------------------------------------------------

    def concerns(self, name: str) -> bool:
        """Its last part decides; /proc/self/fd/N may be such a file, opened again."""
        return name.endswith(_FILES) or "/fd/" in name

    def opened(self, tracer: Tracer, task: Task, fd: int) -> int:
        """If it is a file of /proc that says more of the kernel than of us, another one takes its place."""
        if fd < 0:
            return fd
        link = f"/proc/{task.pid}/fd/{fd}"
        with contextlib.suppress(OSError):
            name = os.readlink(link)  # noqa: PTH115 - a str
            above, _, file = name.rpartition("/")
            if file in _FILES and (above[-1:].isdigit() or file == "cgroups") and _is_proc(link):
                text = self._text(task, link, above, file)
                if text is not None:
                    with _file_of(text) as ours:
                        handover.replace(tracer, task, fd, ours)
        return fd

    def _text(self, task: Task, link: str, above: str, file: str) -> bytes | None:
        if file == "cgroups":
            return texts.controllers(1 + self._tree.root.descendants)
        if file == "cgroup":
            owner = self._process(task, link, above)
            return None if owner is None else texts.cgroup(self._path_of(owner))
        make = texts.mountinfo if file == "mountinfo" else texts.mounts
        return make(Path(link).read_bytes(), self._source, self._hidden)

    def _path_of(self, pid: int) -> str:
        cgroup = self._tree.of(pid)
        return "/" if cgroup is None else cgroup.path

    def _process(self, task: Task, link: str, directory: str) -> int | None:
        """The process, by our number, whose directory of a /proc this is; None if that cannot be told."""
        words = directory.split("/")  # …/PID or …/PID/task/TID
        number = words[-3] if words[-2:-1] == ["task"] else words[-1]
        if not number.isdigit():
            return None
        if os.stat(link).st_dev == _own_proc():
            return int(number)
        return self._numbers.of(task.pid, int(number))

    # -- calls -------------------------------------------------------------------

    def _statfs(self, tracer: Tracer, task: Task, regs: UserRegs) -> None:
        buffer, fd = regs.rsi, regs.rdi if regs.orig_rax == SYS["fstatfs"] else None

        def filled(task: Task, result: int) -> int:
            if result == 0:
                with contextlib.suppress(OSError):
                    before = memory.read(task.pid, buffer, _STATFS_SIZE)
                    after = texts.statfs(before)
                    if after is None and fd is not None and texts.is_tmpfs(before):
                        name = os.readlink(f"/proc/{task.pid}/fd/{fd}")  # noqa: PTH115
                        after = texts.as_proc(before) if name.startswith(_MEMFD) else None
                    if after is not None:
                        memory.write(task.pid, buffer, after)
            return result

        answers.rewrite(tracer, task, regs, {}, filled)

    def _bpf(self, tracer: Tracer, task: Task, regs: UserRegs) -> None:
        """Device programs of runtimes: there is no cgroup of the kernel's to attach them to."""
        command, attributes = regs.rdi, regs.rsi
        if command in (_BPF_PROG_ATTACH, _BPF_PROG_DETACH, _BPF_PROG_QUERY):
            with contextlib.suppress(OSError):
                fd = int.from_bytes(memory.read(task.pid, attributes, 4), "little")
                if self._is_ours(task, fd):
                    if command == _BPF_PROG_QUERY:
                        for at in (_QUERY_FLAGS_AT, _QUERY_COUNT_AT):
                            memory.write(task.pid, attributes + at, bytes(4))
                    answers.emulate(tracer, task, regs, 0)
                    return
        tracer.resume(task)

    def _mount_call(self, tracer: Tracer, task: Task, regs: UserRegs) -> None:
        """A fresh cgroup2 would be the kernel's; refused, a runtime binds the one it has."""
        fresh = regs.rdx != 0 and not regs.r10 & _MS_CHANGES
        self._refuse_cgroup2(tracer, task, regs, regs.rdx if fresh else 0)

    def _fsopen(self, tracer: Tracer, task: Task, regs: UserRegs) -> None:
        self._refuse_cgroup2(tracer, task, regs, regs.rdi)

    def _refuse_cgroup2(self, tracer: Tracer, task: Task, regs: UserRegs, name: int) -> None:
        with contextlib.suppress(OSError):
            if name and memory.read_cstring(task.pid, name, len(_CGROUP2) + 1) == _CGROUP2:
                answers.emulate(tracer, task, regs, -errno.EPERM)
                return
        tracer.resume(task)

    def _is_ours(self, task: Task, fd: int) -> bool:
        if self._device is None:
            self._device = os.stat(self._mount).st_dev
        return os.stat(f"/proc/{task.pid}/fd/{fd}").st_dev == self._device


def _raise_limit(tracer: Tracer, task: Task, regs: UserRegs) -> None:
    """Runtimes raise limits as a matter of course, and give up where even root may not."""
    answers.rewrite(tracer, task, regs, {}, lambda _, result: 0 if result == -errno.EPERM else result)


def _is_proc(path: str) -> bool:
    """Whether a file is one of a /proc."""
    buffer = ctypes.create_string_buffer(120)
    if _libc.statfs(path.encode(), buffer) < 0:
        return False
    return bool(struct.unpack_from("<q", buffer)[0] == texts.PROC_MAGIC)


def _own_proc() -> int:
    return os.stat("/proc").st_dev


@contextlib.contextmanager
def _file_of(text: bytes) -> Iterator[int]:
    """A file in memory, open for reading."""
    made = os.memfd_create(_MEMFD.partition(":")[2], os.MFD_CLOEXEC)
    try:
        os.pwrite(made, text, 0)
        yield made
    finally:
        os.close(made)
