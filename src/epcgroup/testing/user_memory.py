"""A program's memory without a program: pages in a dict."""

from __future__ import annotations

import errno

from epcgroup.driver.seams import Source
from epcgroup.units import PAGE_SIZE


class FakeMemory:
    """Implements ``driver.UserMemory``.

    What was never written with ``poke`` is not mapped. ``noexec`` holds the page
    addresses of noexec mappings, ``read_only`` those that refuse writes,
    ``provision`` the descriptors that are /dev/sgx_provision.
    """

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}
        self.noexec: set[int] = set()
        self.read_only: set[int] = set()
        self.provision: set[int] = set()
        self._next = 0x7F0000000000

    def poke(self, addr: int, data: bytes) -> int:
        """Map and fill memory at ``addr``; returns ``addr``."""
        for page in range(addr - addr % PAGE_SIZE, addr + len(data), PAGE_SIZE):
            self._pages.setdefault(page, bytearray(PAGE_SIZE))
        self._store(addr, data)
        return addr

    def put(self, data: bytes) -> int:
        """Place ``data`` somewhere, page aligned; its address."""
        addr = self._next
        self._next += (len(data) // PAGE_SIZE + 2) * PAGE_SIZE
        return self.poke(addr, data)

    def unmap(self, addr: int) -> None:
        """Take one page away."""
        del self._pages[addr]

    # -- driver.UserMemory ------------------------------------------------------

    def read(self, addr: int, length: int) -> bytes:
        start = addr % PAGE_SIZE
        if 0 < length <= PAGE_SIZE - start and (page := self._pages.get(addr - start)) is not None:
            return bytes(page[start : start + length])
        parts = []
        for at, start, count in self._cut(addr, length):
            parts.append(bytes(self._pages[at][start : start + count]))
        return b"".join(parts)

    def write(self, addr: int, data: bytes) -> None:
        for page, _, _ in self._cut(addr, len(data)):
            if page in self.read_only:
                raise OSError(errno.EFAULT, "read-only")
        self._store(addr, data)

    def pending(self, addr: int, length: int) -> bool:  # noqa: ARG002 - what is there is there
        return False

    def source_ok(self, addr: int, length: int) -> tuple[Source, int]:
        state = self._source(addr)
        end = addr - addr % PAGE_SIZE + PAGE_SIZE
        while end < addr + length and self._source(end) == state:
            end += PAGE_SIZE
        return state, min(end - addr, length)

    def is_provision(self, fd: int) -> bool:
        return fd in self.provision

    # ---------------------------------------------------------------------------

    def _source(self, addr: int) -> Source:
        page = addr - addr % PAGE_SIZE
        if page not in self._pages:
            return "fault"
        return "noexec" if page in self.noexec else "ok"

    def _store(self, addr: int, data: bytes) -> None:
        done = 0
        for page, start, count in self._cut(addr, len(data)):
            self._pages[page][start : start + count] = data[done : done + count]
            done += count

    def _cut(self, addr: int, length: int) -> list[tuple[int, int, int]]:
        cuts, end = [], addr + length
        while addr < end:
            start = addr % PAGE_SIZE
            count = min(PAGE_SIZE - start, end - addr)
            if addr - start not in self._pages:
                raise OSError(errno.EFAULT, f"{addr:#x} is not mapped")
            cuts.append((addr - start, start, count))
            addr += count
        return cuts
