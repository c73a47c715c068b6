"""One tree of cgroups read and written through its files, whoever serves them.

Features are asked for, not versions: a file that is not there (misc.peak before
6.11, everything in a cgroup whose parent does not delegate misc) gives None.
A limit holds for the whole subtree, so what a group can really get is the
smallest limit on the way to the root: its *effective* limit.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from epcgroup.errors import BadInput, Refused
from epcgroup.units import PAGE_SIZE, U64_MAX

SGX_EPC = "sgx_epc"
_PIECE = 4 << 20  # bytes of one reclaim; some 50 ms


Effective = tuple[int | None, str | None]
"""The smallest limit on the way to the root, None for none; and whose it is."""


@dataclass(frozen=True, slots=True)
class View:
    """One cgroup and one resource, in the resource's unit (bytes for sgx_epc).

    ``max`` None: no limit, or (``enabled`` False) no misc files at all.
    ``effective`` is the smallest limit of the cgroup and its ancestors, and
    ``effective_of`` whose it is. ``capacity`` is the machine's (root only).
    """

    path: str
    enabled: bool
    max: int | None = None
    effective: int | None = None
    effective_of: str | None = None
    current: int | None = None
    peak: int | None = None
    events: int | None = None
    events_local: int | None = None
    capacity: int | None = None


def normal(path: str) -> str:
    """``pods/a`` as ``/pods/a``; BadInput for what leaves the tree.

    >>> normal("pods//a/"), normal("/"), normal("")
    ('/pods/a', '/', '/')
    """
    parts = [part for part in path.split("/") if part]
    if any(part in (".", "..") for part in parts):
        raise BadInput(f"{path!r}: name a cgroup by its path from the root, without . and ..")
    return "/" + "/".join(parts)


class Hierarchy:
    """The tree below ``root``, seen for one resource."""

    def __init__(self, root: Path, resource: str = SGX_EPC) -> None:
        self.root = root
        self.resource = resource

    # -- files -----------------------------------------------------------------

    def directory(self, path: str) -> Path:
        """Directory of a cgroup. Raises Refused (ENOENT) when there is none."""
        place = self.root / normal(path)[1:]
        if not (place / "cgroup.controllers").exists():
            raise Refused(f"no cgroup {normal(path)} in {self.root}", errno.ENOENT)
        return place

    def file(self, path: str, name: str) -> Path:
        """A file of a cgroup, there or not."""
        return self.root / normal(path)[1:] / name

    def keyed(self, path: str, name: str) -> dict[str, str] | None:
        """``key value`` lines of a file; None when it is not there."""
        try:
            text = self.file(path, name).read_text()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno == errno.ENODEV:  # removed while we looked
                return None
            raise Refused(f"{self.file(path, name)}: {error.strerror}", error.errno) from error
        return {key: value for key, _, value in (line.partition(" ") for line in text.splitlines())}

    def children(self, path: str) -> list[str]:
        """Paths of the child cgroups, sorted."""
        try:
            with os.scandir(self.root / normal(path)[1:]) as entries:
                names = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        except FileNotFoundError:
            return []
        return [f"{normal(path).rstrip('/')}/{name}" for name in names]

    def walk(self, path: str) -> Iterator[str]:
        """A cgroup and all below it, parents first."""
        yield normal(path)
        for child in self.children(path):
            yield from self.walk(child)

    # -- values ----------------------------------------------------------------

    def view(self, path: str) -> View:
        """What the files of one cgroup say. Raises Refused (ENOENT)."""
        path = normal(path)
        return self._view(path, self.effective(path.rpartition("/")[0]))

    def _view(self, path: str, above: Effective) -> View:
        """The same, with the parent's effective limit."""
        self.directory(path)
        limits = self.keyed(path, "misc.max")
        own = self._limit(limits) if path != "/" else None
        effective = (own, path) if own is not None and (above[0] is None or own <= above[0]) else above
        return View(
            path=path,
            enabled=limits is not None or path == "/",
            max=self._limit(limits),
            effective=effective[0],
            effective_of=effective[1],
            current=self._number(path, "misc.current"),
            peak=self._number(path, "misc.peak"),
            events=self._number(path, "misc.events", ".max"),
            events_local=self._number(path, "misc.events.local", ".max"),
            capacity=self._number(path, "misc.capacity"),
        )

    def views(self, path: str = "/") -> list[View]:
        """A cgroup and all below; those removed meanwhile are left out."""
        found: list[View] = []
        self.directory(path)
        path = normal(path)
        effective = {path.rpartition("/")[0] or "/": self.effective(path.rpartition("/")[0])}
        for each in self.walk(path):
            above = effective.get(each.rpartition("/")[0] or "/", (None, None))  # it may be gone just now
            try:
                view = self._view(each, above)
            except Refused as error:
                if error.errno != errno.ENOENT:
                    raise
                continue
            found.append(view)
            effective[each] = view.effective, view.effective_of
        return found

    def effective(self, path: str) -> Effective:
        """The smallest limit on the way to the root, and whose it is; the nearest of equals."""
        best: Effective = (None, None)
        level = normal(path)
        while level != "/":
            limit = self._limit(self.keyed(level, "misc.max"))
            if limit is not None and (best[0] is None or limit < best[0]):
                best = (limit, level)
            level = level.rpartition("/")[0] or "/"
        return best

    def _limit(self, limits: dict[str, str] | None) -> int | None:
        text = (limits or {}).get(self.resource, "max")
        return None if text == "max" else int(text)

    def _number(self, path: str, name: str, suffix: str = "") -> int | None:
        values = self.keyed(path, name)
        text = (values or {}).get(self.resource + suffix)
        return None if text is None else int(text)

    # -- writing ---------------------------------------------------------------

    def limit(self, path: str, name: str) -> int | None:
        """What misc.max, misc.low or misc.high says, None for "max" and where there is no such file."""
        return self._limit(self.keyed(normal(path), f"misc.{name}"))

    def plan(self, path: str, limit: int | None, name: str = "max") -> tuple[Path, str]:
        """The file and the line that would set a limit, checked as far as reading can.

        ``name``: ``max``, or one of the extensions ``low`` and ``high``.
        Raises Refused where the write could not succeed, and says what to do.
        """
        path = normal(path)
        if path == "/":
            raise BadInput("the root cgroup has no limit; name one below it")
        if limit is not None and not 0 <= limit <= U64_MAX:
            raise BadInput(f"{limit} is no limit: 0 to 2^64-1")
        directory = self.directory(path)
        limits = self.keyed(path, f"misc.{name}")
        parent = path.rpartition("/")[0] or "/"
        if limits is None and name != "max" and self.keyed(path, "misc.max") is not None:
            raise Refused(
                f"{path} has no misc.{name}; only `epcgroup serve --extensions` has it", errno.ENOENT
            )
        if limits is None:
            control = self.file(parent, "cgroup.subtree_control")
            raise Refused(
                f"{path} has no misc.{name}; enable misc there: echo +misc > {control}", errno.ENOENT
            )
        if self.resource not in limits:
            known = ", ".join(limits) or "none"
            raise Refused(f"{self.resource} is no resource of this machine; there are: {known}", errno.EINVAL)
        return directory / f"misc.{name}", f"{self.resource} {'max' if limit is None else limit}"

    def set_max(self, path: str, limit: int | None, name: str = "max") -> tuple[Path, str]:
        """Set a limit, in the resource's unit, None for none; the file and the line written."""
        file, line = self.plan(path, limit, name)
        _write(file, line)
        return file, line

    def reclaim(self, path: str, amount: int) -> None:
        """Evict so many bytes of a cgroup now, by its misc.reclaim.

        Raises Refused: ENOENT, there is no such file; EAGAIN, it came to less.
        """
        path = normal(path)
        file = self.directory(path) / "misc.reclaim"
        if not file.exists():
            raise Refused(
                f"{path} has no misc.reclaim; only `epcgroup serve --extensions` has it", errno.ENOENT
            )
        while True:  # piece by piece: nobody else is served while one is written
            _write(file, f"{self.resource} {min(amount, _PIECE)}")
            amount -= _PIECE
            if amount <= 0:
                return


def _write(file: Path, line: str) -> None:
    try:
        fd = os.open(file, os.O_WRONLY | os.O_TRUNC)  # as a shell does
        try:
            os.write(fd, line.encode())
        finally:
            os.close(fd)
    except OSError as error:
        hint = "; it belongs to somebody else" if error.errno in (errno.EACCES, errno.EPERM) else ""
        raise Refused(f"{file}: {error.strerror}{hint}", error.errno) from error


def unusable_part(limit: int | None) -> int:
    """Bytes of an EPC limit that can never be used: whole pages are charged (spec MISC-14)."""
    return 0 if limit is None else limit % PAGE_SIZE
