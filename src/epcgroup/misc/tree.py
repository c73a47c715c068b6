"""The table of cgroups: who is whose child, who is alive, who may be freed.

A removed group does not vanish (spec MISC-64, MISC-65): it goes *offline*. Its
path is free at once, but the object stays in its parent's list of children, its
usage stays counted in every ancestor and walks still visit it, until the last
thing that pins it is gone: a charge, a process, a child that is not released.
Then it *waits for release*. Release itself is asynchronous in the kernel (a work
queue frees the object), so here it is an explicit queue, ``Tree.dying``, that
the shell empties when it likes. What a walk makes of a waiting group is the
walker's business (a famous difference between v5 and its successors).

Children are linked through themselves, in order of creation: a walk needs no
index, and removing one of ten thousand siblings costs nothing.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from epcgroup.errors import OutOfRange, Refused
from epcgroup.misc.rules import Rules
from epcgroup.units import U64_MAX


class Group:
    """One misc cgroup: counters by resource number, and its place in the tree.

    ``max``, ``low``, ``high``, ``usage``, ``events``, ``events_local`` and ``peak`` are lists
    indexed by ``Rules.index``; amounts are in the resource's unit (bytes for
    ``sgx_epc``), kept modulo 2^64 as the kernel's counters are. ``tasks`` counts
    processes, ``pins`` things charged directly to this very group.
    """

    __slots__ = (
        "events",
        "events_local",
        "first_child",
        "high",
        "id",
        "last_child",
        "low",
        "max",
        "name",
        "next_sibling",
        "online",
        "parent",
        "path",
        "peak",
        "pins",
        "prev_sibling",
        "released",
        "tasks",
        "usage",
        "waiting",
    )

    def __init__(self, group_id: int, parent: Group | None, name: str, resources: int) -> None:
        self.id = group_id
        self.parent = parent
        self.name = name
        above = "" if parent is None else parent.path.rstrip("/")
        self.path: str = f"{above}/{name}"
        self.online = True
        self.waiting = False
        self.released = False
        self.tasks = 0
        self.pins = 0
        self.first_child: Group | None = None
        self.last_child: Group | None = None
        self.next_sibling: Group | None = None
        self.prev_sibling: Group | None = None
        self.max = [U64_MAX] * resources
        self.low = [0] * resources
        self.high = [U64_MAX] * resources
        self.usage = [0] * resources
        self.events = [0] * resources
        self.events_local = [0] * resources
        self.peak = [0] * resources

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.path}{'' if self.online else ' offline'}>"

    def children(self) -> Iterator[Group]:
        """Children not yet released, in order of creation."""
        child = self.first_child
        while child is not None:
            yield child
            child = child.next_sibling


G = TypeVar("G", bound=Group)


class Tree(Generic[G]):
    """All groups of one machine under one set of rules.

    ``group_type`` lets a resource keep its own state in the group (the kernel's
    private pointer and ``alloc`` callback, MISC-60): its constructor may raise
    Refused, then mkdir fails with that errno and nothing has changed.

    Hooks, plain attributes that an owner may set:
    ``max_written(group, resource)`` after every stored limit,
    ``high_written(group, resource)`` after every stored soft limit,
    ``group_freed(group)`` when a group is released,
    ``notify(group, file)`` when a file's contents were announced as changed
    (``"events"`` or ``"events.local"``; see misc.events).
    """

    def __init__(
        self,
        rules: Rules,
        group_type: Callable[[int, G | None, str, int], G],
    ) -> None:
        self.rules = rules
        self.capacity = [0] * len(rules.resources)
        self.dying: deque[G] = deque()
        self.max_written: Callable[[G, int], None] | None = None
        self.high_written: Callable[[G, int], None] | None = None
        self.group_freed: Callable[[G], None] | None = None
        self.notify: Callable[[G, str], None] | None = None
        self.underflows = 0
        self._group_type = group_type
        self._next_id = 1
        self.root: G = group_type(0, None, "", len(rules.resources))
        self._by_path: dict[str, G] = {"/": self.root}

    # -- names ---------------------------------------------------------------

    def resource(self, name: str) -> int:
        """Number of a resource; raises OutOfRange (EINVAL) for an unknown key."""
        try:
            return self.rules.index(name)
        except ValueError:
            known = ", ".join(self.rules.resources)
            raise OutOfRange(f"no resource {name!r}; there are {known}") from None

    def set_capacity(self, resource: str, amount: int) -> None:
        """What the machine has of a resource; 0 means: not present (MISC-05)."""
        self.capacity[self.resource(resource)] = amount

    def lookup(self, path: str) -> G:
        """The live group at a path; raises OutOfRange (ENOENT)."""
        try:
            return self._by_path[path]
        except KeyError:
            raise OutOfRange(f"no cgroup {path!r}", errno.ENOENT) from None

    def __contains__(self, path: str) -> bool:
        return path in self._by_path

    def online(self) -> Iterator[G]:
        """Every live group, in order of creation."""
        return iter(list(self._by_path.values()))

    # -- life ----------------------------------------------------------------

    def mkdir(self, path: str) -> G:
        """Create a group below an existing one.

        Raises OutOfRange (ENOENT: no parent; EINVAL: not an absolute path) or
        Refused (EEXIST), or whatever the group's constructor raises.
        """
        if not path.startswith("/") or "//" in path:
            raise OutOfRange(f"{path!r} is not a path like /a/b")
        if path in self._by_path:
            raise Refused(f"cgroup {path!r} exists", errno.EEXIST)
        above, _, name = path.rpartition("/")
        parent = self.lookup(above or "/")
        if not name:
            raise OutOfRange(f"{path!r} is not a path like /a/b")
        group = self._group_type(self._next_id, parent, name, len(self.rules.resources))
        self._next_id += 1
        self._link(parent, group)
        self._by_path[path] = group
        return group

    def rmdir(self, path: str) -> None:
        """Take a group's directory away; charges do not block it (MISC-64).

        Raises OutOfRange (ENOENT), or Refused (EBUSY) for the root, or while a
        process or a live child is in it.
        """
        group = self.lookup(path)
        if group is self.root:
            raise Refused("the root cgroup cannot be removed", errno.EBUSY)
        if group.tasks:
            raise Refused(f"{group.tasks} processes are in {path!r}", errno.EBUSY)
        if any(child.online for child in group.children()):
            raise Refused(f"{path!r} has child cgroups", errno.EBUSY)
        group.online = False
        del self._by_path[path]
        self.settle_group(group)

    def attach(self, group: G) -> None:
        """A process enters a group."""
        group.tasks += 1

    def detach(self, group: G) -> None:
        """A process leaves a group."""
        group.tasks -= 1
        if not group.online:
            self.settle_group(group)

    def pin(self, group: G) -> None:
        """Something was charged directly to this group and keeps it alive."""
        group.pins += 1

    def unpin(self, group: G, pins: int = 1) -> None:
        """Undo pins; the last one of a removed group lets it be released."""
        group.pins -= pins
        if not group.online:
            self.settle_group(group)

    def settle_group(self, group: G) -> None:
        """Queue a removed group for release if nothing pins it any more."""
        if group.online or group.waiting or group.pins or group.tasks or group.first_child is not None:
            return
        group.waiting = True
        self.dying.append(group)

    def release_next(self) -> bool:
        """Release the group that has waited longest; False when none waits."""
        if not self.dying:
            return False
        group = self.dying.popleft()
        parent = group.parent
        assert parent is not None  # the root is never removed
        if self.group_freed is not None:
            self.group_freed(group)
        self._unlink(parent, group)
        group.released = True
        self.settle_group(parent)  # type: ignore[arg-type]  # parents are of the same type
        return True

    # -- order ---------------------------------------------------------------

    def walk(self, top: G) -> Iterator[G]:
        """``top`` and its descendants not yet released, in pre-order."""
        group: G | None = top
        while group is not None:
            yield group
            group = self.successor(group, top)

    def successor(self, group: G, top: G) -> G | None:
        """What follows ``group`` in the pre-order of ``top``'s subtree."""
        if group.first_child is not None:
            return group.first_child  # type: ignore[return-value]
        level: Group = group
        while level is not top:
            if level.next_sibling is not None:
                return level.next_sibling  # type: ignore[return-value]
            assert level.parent is not None
            level = level.parent
        return None

    def _link(self, parent: G, group: G) -> None:
        last = parent.last_child
        if last is None:
            parent.first_child = group
        else:
            last.next_sibling = group
            group.prev_sibling = last
        parent.last_child = group

    def _unlink(self, parent: Group, group: Group) -> None:
        before, after = group.prev_sibling, group.next_sibling
        if before is None:
            parent.first_child = after
        else:
            before.next_sibling = after
        if after is None:
            parent.last_child = before
        else:
            after.prev_sibling = before
