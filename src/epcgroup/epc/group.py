"""A cgroup with its EPC state: what the kernel hangs on the misc group's pointer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from epcgroup.epc.lru import PageList
from epcgroup.epc.pages import Counters
from epcgroup.misc import tree

if TYPE_CHECKING:
    from epcgroup.epc.pages import Enclave


class Group(tree.Group):
    """One group's lists and its part in background work.

    ``active`` holds the ids of children whose subtree has a reclaimable page, in
    order of creation, and ``reclaimable_below`` counts those pages in the whole
    subtree: with both, "is the subtree empty" and the walk to the next list do
    not see the other ten thousand groups.
    """

    __slots__ = (
        "active",
        "counters",
        "cursor",
        "hopeless",
        "queued",
        "reclaimable",
        "reclaimable_below",
        "unreclaimable",
        "victim",
        "wanted",
    )

    parent: Group | None

    def __init__(self, group_id: int, parent: Group | None, name: str, resources: int) -> None:
        super().__init__(group_id, parent, name, resources)
        self.reclaimable = PageList()
        self.unreclaimable = PageList()
        self.reclaimable_below = 0
        self.active: list[int] = []
        self.cursor: Group = self  # where this group's next round goes on (walk by cursor)
        self.queued = False  # the worker is in the queue
        self.wanted = 0  # pages that refused faults wait for
        self.hopeless = False  # the worker's last run ended with nothing to take
        self.victim: Enclave | None = None  # disabled for this group and not closed yet
        self.counters = Counters()
