"""The mount namespace of a machine's programs: the tree over /sys/fs/cgroup, the rest the host's.

All programs of a machine share it, so that a container's mounts are there for
the next command (`podman run -d` now, `podman stop` later). It is a slave of the
host's: what the host mounts appears, what is mounted inside stays inside. It is
made for the first program and given up with the last, so that nothing of it is
left when nobody runs, and whoever unmounts the tree on an idle machine really
unmounts it.
"""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

from epcgroup.errors import MissingCapability
from epcgroup.host import mounts

#: Where every client of cgroup v2 looks.
MACHINE_ROOT = "/sys/fs/cgroup"

_CLONE_NEWNS = 0x20000
_MS_BIND, _MS_REC, _MS_SLAVE = 0x1000, 0x4000, 0x80000
_libc = ctypes.CDLL(None, use_errno=True)


class MountNamespace:
    """Made by the first `enter`, kept until `leave`."""

    def __init__(self, tree: str) -> None:
        """``tree``: where the host has it mounted."""
        self._tree = tree
        self._fd = -1

    def open(self) -> None:
        """Have it ready; raises MissingCapability when it cannot be made."""
        if self._fd < 0 and self._tree != MACHINE_ROOT:
            self._fd = self._make()

    def enter(self) -> None:
        """For a child with one thread: go there. The working directory is its root afterwards."""
        if self._fd >= 0:
            _check(_libc.setns(self._fd, _CLONE_NEWNS), "setns")

    def leave(self) -> None:
        """Nobody runs: give it up."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _make(self) -> int:
        """A child makes it, and ends when we hold it."""
        ready, said = os.pipe()
        pid = os.fork()
        if pid == 0:
            self._child(said)
        os.close(said)
        try:
            with os.fdopen(ready, "rb") as pipe:
                answer = pipe.read(1024)
                if answer != b"\n":
                    raise MissingCapability(
                        f"cannot lay the tree over {MACHINE_ROOT}: {answer.decode().strip()}; "
                        "with --host-cgroup it runs without"
                    )
                return os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def _child(self, said: int) -> None:
        try:
            os.closerange(3, said)  # among them the server's end of the mount (see cgroupfs.tokens)
            os.closerange(said + 1, 1 << 20)
            self._arrange()
            os.write(said, b"\n")
            os.dup2(os.open(os.devnull, os.O_RDONLY), said)  # the parent reads to the end
            signal.pause()
        except BaseException as error:
            os.write(said, str(error).encode()[:1000])
        os._exit(1)

    def _arrange(self) -> None:
        _check(_libc.unshare(_CLONE_NEWNS), "unshare")
        _check(_libc.mount(None, b"/", None, _MS_REC | _MS_SLAVE, None), "mount --make-rslave /")
        if not Path(MACHINE_ROOT).is_dir():
            raise OSError(f"there is no {MACHINE_ROOT}; mount sysfs at /sys")
        tree = os.open(self._tree, os.O_PATH | os.O_CLOEXEC)  # it may lie below what goes away now
        while any(mount.point == MACHINE_ROOT for mount in mounts.mounts()):
            if not mounts.unmount(MACHINE_ROOT, lazy=True):
                break  # a mount that came with a user namespace stays, below the tree
        source = f"/proc/self/fd/{tree}".encode()
        _check(_libc.mount(source, MACHINE_ROOT.encode(), None, _MS_BIND, None), f"mount on {MACHINE_ROOT}")


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
