"""A small world round the engine: say what happens, look at what came of it.

>>> from epcgroup.epc import V5
>>> world = World(V5, epc_pages=512)
>>> _ = world.group("/a", limit=100)
>>> enclave = world.enclave("/a", 60)
>>> world.touch(enclave, range(60)) == [1] * 60
True
>>> world.pages("/a")
62
"""

from __future__ import annotations

from collections.abc import Iterable

from epcgroup.epc import Caller, Enclave, Group, Machine, Policy, Vepc
from epcgroup.epc.caller import never
from epcgroup.epc.reclaim import reclaim
from epcgroup.testing.table import TablePager, touch, touch_vepc
from epcgroup.units import PAGE_SIZE


class World:
    """A machine with a table for a pager; amounts in pages, background work runs at each end."""

    def __init__(self, policy: Policy, epc_pages: int = 4096) -> None:
        self.log: list[tuple[str, int, int]] = []
        self.pager = TablePager(self.log)
        self.machine = Machine(epc_pages=epc_pages, policy=policy, pager=self.pager)

    def group(self, path: str, limit: int | None = None) -> Group:
        """A new group, with a limit in pages."""
        group = self.machine.groups.mkdir(path)
        if limit is not None:
            self.limit(path, limit)
        return group

    def limit(self, path: str, limit: int | None) -> None:
        """Write a limit in pages, and let follow what follows."""
        group = self.machine.groups.lookup(path)
        self.machine.set_max(group, None if limit is None else limit * PAGE_SIZE)
        self.machine.settle()

    def caller(self, path: str) -> Caller:
        """A process in a group, with no signal pending."""
        return Caller(self.machine.groups.lookup(path), never)

    def enclave(self, path: str, pages: int, *, init: bool = True, size: int | None = None) -> Enclave:
        """A process in ``path`` builds an enclave and adds pages to it."""
        enclave = self.machine.create_enclave(self.caller(path), size or max(pages, 1))
        self.add(path, enclave, range(pages))
        if init:
            self.machine.initialise(enclave)
        return enclave

    def add(self, path: str, enclave: Enclave, pages: Iterable[int]) -> None:
        """EADD, one call a page."""
        for index in pages:
            self.machine.add_page(self.caller(path), enclave, index)
            self.machine.settle()

    def touch(self, enclave: Enclave, pages: Iterable[int], path: str | None = None) -> list[int]:
        """Access pages from a process in ``path`` (else in the group of its VA page)."""
        group = enclave.va_pages[0].group if path is None else self.machine.groups.lookup(path)
        assert group is not None
        answers = []
        for index in pages:
            answers.append(touch(self.machine, self.pager, Caller(group, never), enclave, index))
            self.machine.settle()
        return answers

    def guest(self, path: str, pages: int, size: int = 1024) -> tuple[Vepc, list[int]]:
        """A virtual machine in ``path`` touches pages of its EPC."""
        guest = self.machine.create_vepc(size)
        answers = [touch_vepc(self.machine, self.caller(path), guest, index) for index in range(pages)]
        self.machine.settle()
        return guest, answers

    def close(self, enclave: Enclave) -> None:
        """The last reference to an enclave goes."""
        self.machine.release(enclave)
        self.pager.forget(enclave)
        self.machine.settle()

    def evict(self, path: str) -> None:
        """Reclaim everything reclaimable from a group's subtree, whatever its age."""
        group = self.machine.groups.lookup(path)
        while group.below:
            reclaim(self.machine, group, 16, ignore_age=True)
        self.machine.settle()

    def pages(self, path: str = "/") -> int:
        """Pages charged to a group and its descendants."""
        return self.machine.usage(self.machine.groups.lookup(path)) // PAGE_SIZE

    def events(self, path: str) -> int:
        """Refused charges counted at a group."""
        return self.machine.groups.lookup(path).events[self.machine.resource]

    def lru(self, path: str) -> list[tuple[int, int]]:
        """(enclave id, page) on a group's reclaimable list, head first."""
        return [(page.enclave.id, page.index) for page in self.machine.groups.lookup(path).reclaimable]

    def evictions(self) -> list[tuple[int, int]]:
        """(enclave id, page) written out since the last question, in order."""
        seen = [(owner, index) for sign, owner, index in self.log if sign == "-"]
        self.log.clear()
        return seen

    def young(self, enclave: Enclave, pages: Iterable[int]) -> None:
        """Set accessed bits of resident pages, as if a thread had touched them just now."""
        for index in pages:
            assert enclave.pages[index] is not None
            self.pager.map(enclave, index)
            self.pager.access(enclave, index)
