"""The free pages of one EPC section: first in, first out (spec EPC-05 … EPC-08).

Descriptors are made when a page is used for the first time, so that a large EPC
starts at once; the order in which pages are handed out is the same.

Poisoned pages are not counted as free. (The base driver counts them, a quirk
named by EPC-07; here ``free + in use + poisoned = size`` always holds.)
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from epcgroup.epc.pages import FREE, NOT_TRACKED, EpcPage

if TYPE_CHECKING:
    from epcgroup.epc.group import Group


class Pool:
    """Free and poisoned pages of one EPC."""

    __slots__ = ("_freed", "_unused", "free", "poisoned", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.free = size
        self.poisoned: list[EpcPage] = []
        self._unused = 0  # number of the first page never handed out
        self._freed: deque[EpcPage] = deque()

    def take(self, group: Group) -> EpcPage:
        """The page that has been free longest, for ``group`` to pay for.

        The caller has looked at ``free``.
        """
        self.free -= 1
        if self._unused < self.size:
            page = EpcPage(self._unused)
            self._unused += 1
        else:
            page = self._freed.popleft()
        page.state = NOT_TRACKED
        page.group = group
        return page

    def give(self, page: EpcPage) -> None:
        """A page is free again, or, if it was poisoned meanwhile, lost."""
        page.state = FREE
        if page.poisoned:
            self.poisoned.append(page)
            return
        self._freed.append(page)
        self.free += 1

    def poison(self, page: EpcPage) -> None:
        """A hardware error in this page; a free one is never handed out again."""
        if page.poisoned:
            return
        page.poisoned = True
        if page.state is FREE:
            self._freed.remove(page)
            self.free -= 1
            self.poisoned.append(page)
