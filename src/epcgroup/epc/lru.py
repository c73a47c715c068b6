"""An intrusive list of pages: head, tail, and links inside the page.

The same cost at any length for everything reclaim does: take from the head, put
to the tail, unlink from the middle. A ``deque`` cannot unlink, an ``OrderedDict``
needs ten times the memory (spec 2.5; the reclaimable list is FIFO with put-back
of young pages, a one-bit approximation of LRU: EPC-22).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from epcgroup.epc.pages import EpcPage


class PageList:
    """A doubly linked list of pages; a page is on at most one."""

    __slots__ = ("count", "head", "tail")

    def __init__(self) -> None:
        self.head: EpcPage | None = None
        self.tail: EpcPage | None = None
        self.count = 0

    def append(self, page: EpcPage) -> None:
        """Add a page that is on no list at the tail."""
        tail = self.tail
        page.prev = tail
        page.next = None
        if tail is None:
            self.head = page
        else:
            tail.next = page
        self.tail = page
        self.count += 1

    def extend(self, pages: Sequence[EpcPage]) -> None:
        """Add pages that are on no list at the tail, in order."""
        tail = self.tail
        for page in pages:
            page.prev = tail
            if tail is None:
                self.head = page
            else:
                tail.next = page
            tail = page
        if tail is not None:
            tail.next = None
        self.tail = tail
        self.count += len(pages)

    def unlink(self, page: EpcPage) -> None:
        """Take out a page that is on this list."""
        before, after = page.prev, page.next
        if before is None:
            self.head = after
        else:
            before.next = after
        if after is None:
            self.tail = before
        else:
            after.prev = before
        page.prev = page.next = None
        self.count -= 1

    def take(self, limit: int) -> list[EpcPage]:
        """Unlink up to ``limit`` pages from the head, in order."""
        taken: list[EpcPage] = []
        page = self.head
        for _ in range(min(limit, self.count)):
            taken.append(page)  # type: ignore[arg-type]  # there are as many
            page = page.next  # type: ignore[union-attr]
        self.head = page
        if page is None:
            self.tail = None
        else:
            page.prev = None
        self.count -= len(taken)
        return taken

    def __iter__(self) -> Iterator[EpcPage]:
        page = self.head
        while page is not None:
            yield page
            page = page.next

    def __len__(self) -> int:
        return self.count
