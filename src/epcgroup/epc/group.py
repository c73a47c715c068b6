"""A cgroup with its EPC state: what the kernel hangs on the misc group's pointer.

Every group has its own lists, but most questions are about a subtree: is there
anything to take, and where is the next list that has something. Asking ten
thousand groups for that at every fault would cost more than the fault. So each
group counts the reclaimable pages of its whole subtree (``below``), and keeps
its children that have any, in order of creation (``active``, with ``active_ids``
beside it to search in). Both change only along the path to the root, and
``active`` only when a subtree becomes empty or stops being so.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from epcgroup.epc.lru import PageList
from epcgroup.epc.pages import Counters, Kind
from epcgroup.misc import tree

if TYPE_CHECKING:
    from epcgroup.epc.pages import Enclave


class Group(tree.Group):
    """One group's lists, and its part in background work."""

    __slots__ = (
        "active",
        "active_ids",
        "below",
        "counters",
        "cursor",
        "hopeless",
        "kinds",
        "past",
        "queued",
        "reclaimable",
        "unreclaimable",
        "victim",
        "wanted",
    )

    parent: Group | None

    def __init__(self, group_id: int, parent: Group | None, name: str, resources: int) -> None:
        super().__init__(group_id, parent, name, resources)
        self.reclaimable = PageList()
        self.unreclaimable = PageList()
        self.below = 0  # reclaimable pages in the whole subtree
        self.active: list[Group] = []
        self.active_ids: list[int] = []
        self.cursor: Group = self  # where the next round goes on (walk by cursor)
        self.queued = False  # the worker is in the queue
        self.wanted = 0  # pages that a refused fault waits for
        self.hopeless = False  # the worker's last run ended with nothing that can be written
        self.victim: Enclave | None = None  # disabled for this group's sake and not closed yet
        self.kinds = [0] * len(Kind)  # pages charged to this very group, by kind; children are not counted
        self.counters = Counters()
        self.past = Counters()  # of children that are released: a subtree's sums never fall

    def count(self, pages: int) -> None:
        """So many reclaimable pages more on this group's list."""
        level: Group | None = self
        while level is not None:
            below = level.below
            level.below = below + pages
            parent = level.parent
            if not below and parent is not None:
                at = bisect_left(parent.active_ids, level.id)
                parent.active_ids.insert(at, level.id)
                parent.active.insert(at, level)
            level = parent

    def discount(self, pages: int) -> None:
        """So many reclaimable pages fewer on this group's list."""
        level: Group | None = self
        while level is not None:
            level.below -= pages
            parent = level.parent
            if not level.below and parent is not None:
                at = bisect_left(parent.active_ids, level.id)
                del parent.active_ids[at]
                del parent.active[at]
            level = parent
