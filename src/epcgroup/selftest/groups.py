"""The test's cgroups: made with their limits, taken away at any end."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

from epcgroup.errors import Refused
from epcgroup.host import Hierarchy
from epcgroup.selftest.scenarios import Form, Group

_DRAIN = 2.0  # s that the scripts give the last pages to go
_REMOVE_TRIES = 50
_REMOVE_PAUSE = 0.1  # s


class TestGroups:
    """The cgroups of one form in one tree, as a context."""

    __test__ = False  # no test of pytest's, in spite of its name

    def __init__(self, tree: Hierarchy, form: Form, capacity: int) -> None:
        self.tree, self.form, self.capacity = tree, form, capacity
        self.root = tree.root / form.root
        self._made: list[Path] = []
        self.memory = False

    def __enter__(self) -> TestGroups:
        """Make them. Raises Refused, with everything taken away again, where that is not possible."""
        if self.root.exists():
            raise Refused(f"{self.root} exists; remove it, its name belongs to the test", errno.EEXIST)
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Remove them, children first; a cgroup may take a moment to empty."""
        for directory in reversed(self._made):
            for _try in range(_REMOVE_TRIES):
                try:
                    directory.rmdir()
                except FileNotFoundError:
                    break
                except OSError as error:
                    if error.errno != errno.EBUSY:
                        break
                    time.sleep(_REMOVE_PAUSE)
                else:
                    break

    def _make(self) -> None:
        self._enable(self.tree.root, "misc")
        self.memory = self._try_enable(self.tree.root, "memory")
        self._mkdir(self.root)
        self._enable(self.root, "misc")
        if self.memory:
            self.memory = self._try_enable(self.root, "memory")
        parents = {str(Path(group.path).parent) for group in self.form.groups}
        for group in self.form.groups:
            place = self.root / group.path
            self._mkdir(place)
            if group.path in parents:
                self._enable(place, "misc")
            limit = group.bytes(self.capacity)
            if limit is not None:
                self.tree.set_max(f"{self.form.root}/{group.path}", limit)

    def _mkdir(self, place: Path) -> None:
        try:
            place.mkdir()
        except OSError as error:
            raise Refused(f"{place}: {error.strerror}", error.errno) from error
        self._made.append(place)

    def _enable(self, place: Path, controller: str) -> None:
        control = place / "cgroup.subtree_control"
        try:
            if controller not in control.read_text().split():
                _write(control, f"+{controller}")
        except OSError as error:
            raise Refused(f"{control}: +{controller}: {error.strerror}", error.errno) from error

    def _try_enable(self, place: Path, controller: str) -> bool:
        try:
            self._enable(place, controller)
        except Refused:
            return False
        return True

    # -- while it runs -------------------------------------------------------

    def procs(self, path: str) -> Path:
        """The file that takes a process into a group."""
        return self.root / path / "cgroup.procs"

    def group(self, path: str) -> Group:
        """The group at ``path``."""
        return next(group for group in self.form.groups if group.path == path)

    @contextlib.contextmanager
    def memory_limit(self, path: str) -> Iterator[None]:
        """The memory cgroup of ``path`` limited to less than one enclave's backing store."""
        limit = self.capacity - 2 * (self.group(path).bytes(self.capacity) or 0)
        file = self.root / path / "memory.max"
        _write(file, str(limit))
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                _write(file, "max")

    def left(self) -> int:
        """Bytes still charged to the test's own cgroup, after up to two seconds."""
        until = time.monotonic() + _DRAIN
        while (current := self.tree.view(self.form.root).current or 0) and time.monotonic() < until:
            time.sleep(0.05)
        return current


def _write(file: Path, text: str) -> None:
    """One write(2), as the kernel's files want it."""
    fd = os.open(file, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
