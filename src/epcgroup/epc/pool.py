"""The free pages of one NUMA node's EPC: first in, first out (spec EPC-05 … EPC-08).

Descriptors are made when a page is used for the first time, so that a large EPC
starts at once; the order in which pages are handed out is the same.

Poisoned pages are not counted as free. (The base driver counts them, a quirk
named by EPC-07; here ``free + in use + poisoned = size`` always holds.)
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from epcgroup.epc.caller import any_node
from epcgroup.epc.pages import FREE, NOT_TRACKED, EpcPage

if TYPE_CHECKING:
    from epcgroup.epc.group import Group


class Pool:
    """Free and poisoned pages of one node, numbered from 0 or as ``numbers`` says."""

    __slots__ = ("_freed", "_made", "_unused", "free", "poisoned", "size")

    def __init__(self, size: int, numbers: Iterable[Iterable[int]] = ()) -> None:
        self.size = size
        self.free = size
        self.poisoned: list[EpcPage] = []
        # Numbers of pages never handed out.
        self._unused = itertools.chain.from_iterable(numbers or (range(size),))
        self._made = 0  # of those
        self._freed: deque[EpcPage] = deque()

    def take(self, group: Group, _node: Callable[[], int] = any_node) -> EpcPage:
        """The page that has been free longest, for ``group`` to pay for.

        The caller has looked at ``free``.
        """
        self.free -= 1
        number = next(self._unused, None)
        if number is not None:
            self._made += 1
            page = EpcPage(number)
        else:
            page = self._freed.popleft()
        page.state = NOT_TRACKED
        page.group = group
        return page

    def take_all(self, group: Group, node: Callable[[], int], count: int) -> list[EpcPage]:
        """As take, so many."""
        pages = [self.take(group, node) for _ in range(min(count, self.size - self._made))]
        count -= len(pages)
        pop = self._freed.popleft
        for _ in range(count):
            page = pop()
            page.state = NOT_TRACKED
            page.group = group
            pages.append(page)
        self.free -= count
        return pages

    def give(self, page: EpcPage) -> None:
        """A page is free again, or, if it was poisoned meanwhile, lost."""
        page.state = FREE
        if page.poisoned:
            self.poisoned.append(page)
            return
        self._freed.append(page)
        self.free += 1

    def give_all(self, pages: Sequence[EpcPage]) -> None:
        """As give, for each in order."""
        for page in pages:
            if page.poisoned:
                break
            page.state = FREE
        else:
            self._freed.extend(pages)
            self.free += len(pages)
            return
        for page in pages:
            self.give(page)

    def poison(self, page: EpcPage) -> None:
        """A hardware error in this page; a free one is never handed out again."""
        if page.poisoned:
            return
        page.poisoned = True
        if page.state is FREE:
            self._freed.remove(page)
            self.free -= 1
            self.poisoned.append(page)
