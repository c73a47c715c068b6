"""An EPC of several sections on several NUMA nodes (spec EPC-01, EPC-02, EPC-05).

Each node has a free list of its own. A page comes from the node of the processor
that asks, or, if that has no EPC, of the next one that has; where that list is
empty, round robin from the next. Everything else about the EPC (capacity, watermarks,
reclaim, cgroups) knows no nodes, as in the kernel.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from epcgroup.epc.caller import any_node
from epcgroup.epc.pool import Pool
from epcgroup.errors import BadInput

if TYPE_CHECKING:
    from epcgroup.epc.group import Group
    from epcgroup.epc.pages import EpcPage

MOST_SECTIONS = 8  # that the driver takes note of


@dataclass(frozen=True, slots=True)
class Section:
    """``pages`` of EPC that belong to NUMA node ``node``."""

    pages: int
    node: int = 0


class NodePool:
    """Free and poisoned pages of an EPC on several nodes; used as `Pool` is.

    Pages are numbered through all sections in their order.
    """

    __slots__ = ("_first", "_lists", "_nodes", "_of", "size")

    def __init__(self, sections: Sequence[Section]) -> None:
        """Raises BadInput: more sections than the driver knows, an empty one."""
        if len(sections) > MOST_SECTIONS or any(section.pages < 1 for section in sections):
            raise BadInput(f"an EPC has 1 to {MOST_SECTIONS} sections of at least one page each")
        self.size = sum(section.pages for section in sections)
        self._first: list[int] = []  # number of the first page of each section
        at = 0
        for section in sections:
            self._first.append(at)
            at += section.pages
        self._nodes = sorted({section.node for section in sections})
        self._of = [section.node for section in sections]
        self._lists = {
            node: Pool(
                sum(section.pages for section in sections if section.node == node),
                [
                    range(first, first + section.pages)
                    for first, section in zip(self._first, sections, strict=True)
                    if section.node == node
                ],
            )
            for node in self._nodes
        }

    @property
    def free(self) -> int:
        """Free pages of all nodes."""
        return sum(pool.free for pool in self._lists.values())

    @property
    def poisoned(self) -> list[EpcPage]:
        """Pages that are lost, on any node."""
        return [page for pool in self._lists.values() for page in pool.poisoned]

    def by_node(self) -> dict[int, tuple[int, int]]:
        """Node → its pages, and how many are free."""
        return {node: (pool.size, pool.free) for node, pool in self._lists.items()}

    def take(self, group: Group, node: Callable[[], int] = any_node) -> EpcPage:
        """A page near ``node()``, free longest there. The caller has looked at ``free``."""
        at = bisect.bisect_left(self._nodes, node()) % len(self._nodes)
        for place in (*range(at, len(self._nodes)), *range(at)):
            pool = self._lists[self._nodes[place]]
            if pool.free:
                return pool.take(group)
        raise IndexError("no free page on any node")

    def take_all(self, group: Group, node: Callable[[], int], count: int) -> list[EpcPage]:
        """As take, so many."""
        return [self.take(group, node) for _ in range(count)]

    def give(self, page: EpcPage) -> None:
        """A page is free again, on the node it belongs to."""
        self._pool_of(page).give(page)

    def give_all(self, pages: Iterable[EpcPage]) -> None:
        """As give, for each in order."""
        for page in pages:
            self.give(page)

    def poison(self, page: EpcPage) -> None:
        """A hardware error in this page."""
        self._pool_of(page).poison(page)

    def node_of(self, page: EpcPage) -> int:
        """The node that ``page`` belongs to."""
        return self._of[bisect.bisect_right(self._first, page.number) - 1]

    def _pool_of(self, page: EpcPage) -> Pool:
        return self._lists[self.node_of(page)]
