"""The tree at a mount point: FUSE operations over the model.

Every operation takes the machine's lock, asks the model, and is done: there is
no state here but open files. A read from offset 0 takes the text anew, later
reads go on in the same text, as the kernel's seq files do; write offsets mean
nothing. Files report 4096 bytes as their size (as sysfs does), because some
clients read by sendfile(2), which stops at the reported size.

One thread serves all requests (``nothreads``): measured three times as fast
here as a pool, and the lock would serialise them anyway. That thread must never
itself touch the mount.

The writer of tokens (`tokens`) opens files of mode 0444. Where it is not root, its
own looks at a file show it writable; the kernel then opens it, and is told the true
mode again at once. Nobody else can use that moment: `open` asks the true mode.

poll(2) says POLLERR|POLLPRI while a file was announced as changed since this
open file last read it, as kernfs does. libfuse's poll handles are not wrapped by
mfusepy, so the two calls are made through the library it loaded.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mfusepy

from epcgroup.cgroupfs import files
from epcgroup.cgroupfs.access import Attributes, Credentials
from epcgroup.cgroupfs.names import STATFS_MARK
from epcgroup.cgroupfs.triggers import Trigger, Triggers
from epcgroup.errors import Refused

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from epcgroup.cgroupfs.cgroup import Cgroup
    from epcgroup.cgroupfs.tree import CgroupTree
    from epcgroup.misc import Group

SIZE = 4096
_ALWAYS = select.POLLIN | select.POLLOUT | select.POLLRDNORM | select.POLLWRNORM
_CHANGED = select.POLLERR | select.POLLPRI
_WRITABLE = 0o222
_NUMBERS = ("cgroup.procs", "cgroup.threads")  # what they say depends on who reads
_CAP_SYS_RESOURCE = 24
_UNCHANGED_ID = (-1, 2**32 - 1)

_libfuse = mfusepy._libfuse
_libfuse.fuse_notify_poll.argtypes = (ctypes.c_void_p,)
_libfuse.fuse_pollhandle_destroy.argtypes = (ctypes.c_void_p,)


class _File:
    """One open file."""

    __slots__ = ("cgroup", "handle", "name", "own", "path", "seen", "text", "trigger")

    def __init__(self, cgroup: Cgroup[Group], name: str, own: bool) -> None:
        self.cgroup = cgroup
        self.path = cgroup.path
        self.name = name
        self.own = own  # opened to write tokens, which only wake watchers
        self.text = b""
        self.seen = -1  # change number at the last read; poll before any read says "changed"
        self.handle: int | None = None  # libfuse's poll handle: somebody waits
        self.trigger: Trigger | None = None  # of a pressure file


class CgroupFs(mfusepy.Operations):  # type: ignore[misc]  # mfusepy has no types
    """mfusepy operations; paths and names are bytes in disguise (surrogateescape)."""

    use_ns = True

    def __init__(
        self,
        tree: CgroupTree[Any],
        lock: AbstractContextManager[object],
        written: Callable[[], None] = lambda: None,
        removed: Callable[[str], None] = lambda _: None,
    ) -> None:
        """``written()`` after a write that may have queued work; ``removed(path)`` after rmdir."""
        self._tree = tree
        self._lock = lock
        self._written = written
        self._removed = removed
        self._files: dict[int, _File] = {}
        self._polled: dict[str, set[_File]] = {}  # by path, those with a poll handle
        self._next = 1
        self._changes: dict[str, dict[str, int]] = {}  # by path and file: how often it was announced
        self._waiting = threading.Lock()  # of poll handles and change numbers
        self._triggers = Triggers()
        self._born = time.time_ns()
        self.ready = threading.Event()
        self.token_writer = 0  # the process whose writes are tokens
        self._lending = True  # what it looks at seems writable

    def init(self, path: str) -> None:
        """The kernel is connected."""
        self.ready.set()

    # -- names ---------------------------------------------------------------

    def _find(self, path: str) -> tuple[Cgroup[Group], str | None]:
        """(cgroup, file name), the name None for the directory itself."""
        self._tree.sync(path)
        cgroup = self._tree.find(path)
        if cgroup is not None:
            return cgroup, None
        above, _, name = path.rpartition("/")
        self._tree.sync(above or "/")
        cgroup = self._tree.find(above or "/")
        if cgroup is None or not files.exists(self._tree, cgroup, name):
            raise OSError(errno.ENOENT, path)
        return cgroup, name

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        """Owner, mode, size."""
        with self._lock:
            cgroup, name = self._find(path)
            if name is None:
                return self._stat(stat.S_IFDIR, self._tree.directory(cgroup), 2 + len(cgroup.children), 0)
            at = self._tree.attributes(cgroup, name)
            if self._is_token_writer():
                if self._lending:
                    at = Attributes(at.uid, at.gid, at.mode | _WRITABLE)
                self._lending = True
            return self._stat(stat.S_IFREG, at, 1, SIZE)

    def _is_token_writer(self) -> bool:
        return self.token_writer != 0 and mfusepy.fuse_get_context()[2] == self.token_writer

    def _stat(self, kind: int, at: Attributes, links: int, size: int) -> dict[str, Any]:
        return {
            "st_mode": kind | at.mode,
            "st_uid": at.uid,
            "st_gid": at.gid,
            "st_nlink": links,
            "st_size": size,
            "st_mtime": self._born,
            "st_ctime": self._born,
            "st_atime": self._born,
        }

    def readdir(self, path: str, fh: int) -> Iterator[tuple[str, int, int]]:
        """Files first, then child cgroups in order of creation."""
        with self._lock:
            cgroup = self._tree.lookup(path)
            own = files.names(self._tree, cgroup)
            real = self._tree.real
            children = list(cgroup.children) if real is None else real.children(path)
        yield from ((name, stat.S_IFDIR, 0) for name in (".", ".."))
        yield from ((name, stat.S_IFREG, 0) for name in own)
        yield from ((name, stat.S_IFDIR, 0) for name in children)

    def statfs(self, path: str) -> dict[str, int]:
        """A file system without blocks, with a mark by which it is known."""
        return {"f_bsize": SIZE, "f_frsize": SIZE, "f_namemax": 255, "f_files": STATFS_MARK}

    # -- directories ---------------------------------------------------------

    def mkdir(self, path: str, mode: int) -> None:
        """A new cgroup, its maker's own."""
        uid, gid, _ = mfusepy.fuse_get_context()
        with self._lock:
            self._tree.mkdir(path, Credentials(uid, gid))

    def rmdir(self, path: str) -> None:
        """Remove an empty cgroup."""
        with self._lock:
            self._tree.rmdir(path)
        with self._waiting:
            self._changes.pop(path, None)
        self._removed(path)
        self._written()  # a group may now be released

    def chmod(self, path: str, mode: int) -> None:
        """Change permission bits."""
        with self._lock:
            cgroup, name = self._find(path)
            self._tree.set_attributes(cgroup, name, mode=mode)

    def chown(self, path: str, uid: int, gid: int) -> None:
        """Delegate: give a directory or file to somebody else."""
        with self._lock:
            cgroup, name = self._find(path)
            uid, gid = (-1 if number in _UNCHANGED_ID else number for number in (uid, gid))
            self._tree.set_attributes(cgroup, name, uid=uid, gid=gid)

    def truncate(self, path: str, length: int, fh: int | None = None) -> None:
        """What `echo x > file` does first; nothing to do."""

    def utimens(self, path: str, times: object = None) -> None:
        """Times are not kept."""

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        """The kernel makes the files; nobody else can."""
        raise OSError(errno.EACCES, path)

    def mknod(self, path: str, mode: int, dev: int) -> None:
        """As create; no devices, no pipes."""
        raise OSError(errno.EACCES if stat.S_ISREG(mode) else errno.EPERM, path)

    def unlink(self, path: str) -> None:
        """Nor can anybody remove one."""
        raise OSError(errno.EPERM, path)

    def rename(self, old: str, new: str) -> None:
        """A cgroup keeps its name for life."""
        raise OSError(errno.EPERM, old)

    def link(self, target: str, source: str) -> None:
        """No links."""
        raise OSError(errno.EPERM, target)

    def symlink(self, target: str, source: str) -> None:
        """No links."""
        raise OSError(errno.EPERM, target)

    # -- files ---------------------------------------------------------------

    def open(self, path: str, flags: int) -> int:
        """An open file of its own; mode bits are checked by the kernel (default_permissions)."""
        with self._lock:
            cgroup, name = self._find(path)
            if name is None:
                raise OSError(errno.EISDIR, path)
            at = self._tree.attributes(cgroup, name)
        own = self._is_token_writer()
        if own:
            self._lending = False  # its next look is for others to see the true mode
        if not own and flags & os.O_ACCMODE != os.O_RDONLY and not at.mode & _WRITABLE:
            uid, _, _ = mfusepy.fuse_get_context()
            if uid:  # the kernel may know the mode that was lent for tokens
                raise OSError(errno.EACCES, path)
        handle, self._next = self._next, self._next + 1
        self._files[handle] = _File(cgroup, name, own)
        return handle

    def release(self, path: str, fh: int) -> None:
        """Forget an open file."""
        file = self._files.pop(fh)
        self._triggers.remove(file)
        with self._waiting:
            self._drop_handle(file)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        """From offset 0: the text as it is now."""
        file = self._files[fh]
        if offset == 0:
            with self._waiting:
                file.seen = self._changed(file)
            with self._lock:
                if not self._there(file):
                    raise OSError(errno.ENODEV, file.path)
                reader = mfusepy.fuse_get_context()[2] if file.name in _NUMBERS else 0
                file.text = files.read(self._tree, file.cgroup, file.name, reader)
        return file.text[offset : offset + size]

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        """One write is one command, wherever the file position stands."""
        file = self._files[fh]
        if file.own:
            return len(data)
        uid, gid, tid = mfusepy.fuse_get_context()
        writer = files.Writer(tid, Credentials(uid, gid, _groups(tid) if uid else frozenset()))
        with self._lock:
            if not self._there(file):
                raise OSError(errno.ENODEV, file.path)
            elsewhere = files.is_elsewhere(self._tree, file.name)
            done = 0 if elsewhere else files.write(self._tree, file.cgroup, file.name, bytes(data), writer)
        if elsewhere and self._pressure(file) is not None:
            self._set_trigger(file, bytes(data), tid)
            done = len(data)
        elif elsewhere:
            done = files.write_elsewhere(self._tree, file.cgroup, file.name, bytes(data))
        self._written()
        return done

    def _pressure(self, file: _File) -> tuple[float, float] | None:
        """Seconds of waiting that a pressure file tells of; None for any other file."""
        extra, group = files.extra_of(self._tree, file.name), file.cgroup.group
        if extra is None or group is None:
            return None
        with self._lock:
            return extra.pressure(group, file.name)

    def _set_trigger(self, file: _File, data: bytes, tid: int) -> None:
        if file.trigger is not None:
            raise Refused("this open file has a trigger; open it again for another", errno.EBUSY)
        capabilities = int(next(iter(_status(tid, "CapEff:")), "0"), 16)
        trigger = Trigger(
            data, privileged=bool(capabilities >> _CAP_SYS_RESOURCE & 1), now=time.monotonic(),
            sums=self._pressure(file) or (0.0, 0.0),
        )  # fmt: skip
        file.trigger = trigger
        self._triggers.add(
            file, trigger, lambda: self._pressure(file) or (0.0, 0.0), lambda: self._wake_file(file)
        )

    def _wake_file(self, file: _File) -> None:
        with self._waiting:
            self._notify(file)

    def _there(self, file: _File) -> bool:
        """Whether its cgroup was not removed."""
        return self._tree.find(file.path) is file.cgroup

    # -- waiting ---------------------------------------------------------------

    def poll(self, path: str, fh: int, ph: int | None, reventsp: Any) -> None:
        """Ready always; POLLERR and POLLPRI when the file changed since it was read.

        A pressure file: POLLPRI when its trigger fired since it was asked; without one, as if changed.
        """
        file = self._files[fh]
        pressure = self._pressure(file) is not None
        with self._waiting:
            if file.trigger is not None and self._there(file):
                reventsp[0] = _ALWAYS | select.POLLPRI if file.trigger.fired else _ALWAYS
                file.trigger.fired = False
            else:
                changed = pressure or file.seen != self._changed(file) or not self._there(file)
                reventsp[0] = _ALWAYS | _CHANGED if changed else _ALWAYS
            self._drop_handle(file)
            if ph:
                file.handle = ph
                self._polled.setdefault(file.path, set()).add(file)

    def wake(self, path: str, name: str) -> None:
        """The file changed, or its cgroup is gone (no name): wake who polls.

        Not to be called from the thread that serves requests.
        """
        with self._waiting:
            if name:
                names = self._changes.setdefault(path, {})
                names[name] = names.get(name, 0) + 1
            for file in list(self._polled.get(path, ())):
                if not name or file.name == name:
                    self._notify(file)

    def _changed(self, file: _File) -> int:
        return self._changes.get(file.path, {}).get(file.name, 0)

    def _notify(self, file: _File) -> None:
        """Have the kernel ask again, if somebody waits."""
        if file.handle is not None:
            _libfuse.fuse_notify_poll(file.handle)
            self._drop_handle(file)

    def _drop_handle(self, file: _File) -> None:
        if file.handle is not None:
            _libfuse.fuse_pollhandle_destroy(file.handle)
            file.handle = None
            waiting = self._polled[file.path]
            waiting.discard(file)
            if not waiting:
                del self._polled[file.path]


def _groups(tid: int) -> frozenset[int]:
    """Supplementary groups of a task."""
    return frozenset(map(int, _status(tid, "Groups:")))


def _status(tid: int, field: str) -> list[str]:
    """The words of a field of a task's status."""
    with contextlib.suppress(OSError), Path(f"/proc/{tid}/status").open() as status:
        for line in status:
            if line.startswith(field):
                return line.split()[1:]
    return []


def serve(operations: CgroupFs, mountpoint: str, source: str = "epcgroup") -> None:
    """Mount and serve until somebody unmounts; call it in a thread of its own.

    Raises Refused when the mount fails (libfuse says why on stderr).
    """
    options: dict[str, Any] = {"allow_other": True} if os.geteuid() == 0 else {}
    try:
        mfusepy.FUSE(
            operations, mountpoint, foreground=True, nothreads=True, direct_io=True, default_permissions=True,
            fsname=source, subtype="epcgroup", **options,
        )  # fmt: skip
    except RuntimeError as error:
        raise Refused(
            f"{mountpoint}: cannot mount (libfuse error {error}); ask epcgroup doctor", errno.EIO
        ) from error
