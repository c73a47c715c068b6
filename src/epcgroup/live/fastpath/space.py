"""The code that enters and leaves enclaves without a trap, as it lies in programs.

In each program: fast_enter.S behind our part of the vDSO, and a stub near each
ENCLU of its own that a jump could replace (`sites`). At the two ends of each
enclave, as near as the enclave's own jumps reach: a page with fast_exit.S and the
stubs of its EEXITs. All of it is private memory of the program, so children of
fork have it at the same places.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from epcgroup.live.fastpath import code as fastcode
from epcgroup.live.fastpath import sites as fastsites
from epcgroup.live.fastpath.table import Table
from epcgroup.live.tracing import memory, procfs
from epcgroup.sgx.layouts import Enclu
from epcgroup.units import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from epcgroup.live.paging.mm import AddressSpace

_LOWEST, _HIGHEST = 0x10000, (1 << 47) - PAGE_SIZE
_REACH = 1 << 30  # bytes; a jump reaches twice as far
_MARGIN = 16 * PAGE_SIZE  # left free beside what is mapped already
_NOBODYS = 0x5000_0000_0000  # below it the kernel puts nothing of its own accord
_ASIDE = 1 << 29  # bytes
WAY_OUT = 2 * PAGE_SIZE  # bytes mapped for an ExitPage


def free_page(pid: int, start: int, end: int, aside: int = 0) -> Iterator[int]:
    """Unmapped pages of ``pid`` near ``[start, end)``: those above, nearest first, then those below.

    Those above leave ``aside`` bytes free below them, if there is much more, or a few pages.
    """
    taken = sorted([*((m.start, m.end) for m in procfs.maps(pid)), (start, end), (_HIGHEST, _HIGHEST)])
    gaps = []
    reached = _LOWEST
    for low, high in taken:
        if low - reached > 2 * _MARGIN:
            gaps.append((reached, low))
        reached = max(reached, high)
    for low, high in gaps:
        if end <= low < end + _REACH - aside:
            yield low + (aside if aside and high - low > 2 * aside else _MARGIN)
    yield from (high - _MARGIN for _, high in reversed(gaps) if start - _REACH < high <= start)


def room_behind(end: int) -> int:
    """Bytes to leave free behind an enclave.

    Who has one where only who asks gets memory goes by a plan of addresses, and has more to put there.
    """
    return _ASIDE if end < _NOBODYS else 0


class StubPage:
    """A page of stubs for ENCLUs of the program itself."""

    def __init__(self, start: int) -> None:
        self.start = start
        self.end = start

    def near(self, address: int) -> bool:
        """Whether jumps between here and there reach, and there is room for one more."""
        return abs(address - self.start) < _REACH and self.end < self.start + PAGE_SIZE - 256

    def add(self, pid: int, text: int, site: fastsites.Site, code: bytes, enter: int) -> None:
        """Replace the instruction at ``site`` of ``code``, which stands at address ``text``, by a jump."""
        before = fastsites.moved(code[site.at : site.enclu], text + site.at)
        stub = fastcode.enter_stub(before, text + site.enclu, enter)
        memory.poke_text(pid, self.end, stub)
        jump = fastcode.jmp(text + site.at, self.end)
        self.end += len(stub)
        memory.poke_text(pid, text + site.at, jump)


class ExitPage:
    """fast_exit.S at ``start``, and stubs behind it; a page of data follows, where leaves park registers."""

    def __init__(self, start: int) -> None:
        self.start = start
        self.clear()

    def clear(self) -> None:
        """Begin anew, for another enclave."""
        self.free = False  # its enclave is gone: another one may have it
        self.code = bytearray(fastcode.EXIT)
        self._parking = 0  # bytes of the page of data in use
        self.sites: list[int] = []  # addresses of the ENCLUs that are served

    def reaches(self, start: int, end: int) -> bool:
        """Whether it lies outside of ``[start, end)``, and near enough for jumps from the nearer end."""
        return start - _REACH < self.start <= start - WAY_OUT or end <= self.start < end + _REACH

    def overlaps(self, start: int, end: int) -> bool:
        """Whether it, or its page of data, shares a byte with ``[start, end)``."""
        return self.start < end and start < self.start + WAY_OUT

    @property
    def trap(self) -> int:
        """Address of the trap for an EEXIT that must be done by us."""
        return self.start + fastcode.EXIT_TRAP

    def parks(self, address: int) -> bool:
        """Whether an instruction at ``address`` may raise #GP for what is in a register."""
        return self.start + fastcode.EXIT_PARK <= address < self.start + fastcode.EXIT_PARKED

    def install(self, pid: int, table: int) -> None:
        """Write the page, which is mapped in ``pid``, whose table is at ``table``."""
        at = fastcode.EXIT_TABLE
        image = self.code[:at] + table.to_bytes(8, "little") + self.code[at + 8 :]
        memory.poke_text(pid, self.start, bytes(image))

    def stub(self, leaf: int, between: bytes, enclu: int) -> tuple[int, bytes] | None:
        """A stub for one more ENCLU, at address ``enclu``: (address, code); None if the page is full."""
        at = self.start + len(self.code)
        if leaf == Enclu.EEXIT:
            code = fastcode.exit_stub(between, at, self.start)
        else:
            parking = self.start + PAGE_SIZE + self._parking
            self._parking += fastcode.PARKING
            code = fastcode.leaf_stub(leaf, between, at, enclu, parking, reports=leaf == Enclu.EACCEPT)
        if len(self.code) + len(code) > PAGE_SIZE:
            return None
        self.code += code
        return at, code


class Exits:
    """The pages at the ends of one enclave, and the processes that have them."""

    def __init__(self, table: Table, pages: list[ExitPage], leaves: Sequence[int]) -> None:
        self.pages = pages
        self.changed: list[tuple[int, bytes]] = []  # where a jump is, and what was there
        self._table = table
        self._leaves = leaves

    def give_back(self) -> None:
        """The enclave is gone, and nobody in it."""
        for page in self.pages:
            page.free = True

    def patch(self, address: int, contents: bytes) -> bytes:
        """The page to be at ``address``, with jumps in the place of these leaves of ENCLU."""
        if fastsites.ENCLU not in contents:
            return contents
        patched = bytearray(contents)
        for leaf in self._leaves:
            self._patch(leaf, address, contents, patched)
        return bytes(patched)

    def _patch(self, leaf: int, address: int, contents: bytes, patched: bytearray) -> None:
        for site in fastsites.with_leaf(contents, leaf):
            page = self._nearest(address)
            between = contents[site.at + site.length : site.enclu]
            between = fastsites.moved(between, address + site.at + site.length)
            made = None if page is None else page.stub(leaf, between, address + site.enclu)
            if page is None or made is None:
                continue
            stub, code = made
            for space in self._table.spaces:
                if space.fast is not None and page in space.fast.exits:
                    with contextlib.suppress(OSError):  # it has just ended
                        memory.poke_text(space.pid, stub, code)
            if leaf == Enclu.EEXIT:
                page.sites.append(address + site.enclu)
            replaced = slice(site.at, site.at + fastcode.JMP_LENGTH)
            patched[replaced] = fastcode.jmp(address + site.at, stub)
            self.changed.append((address + site.at, contents[replaced]))

    def _nearest(self, address: int) -> ExitPage | None:
        page = min(self.pages, key=lambda page: abs(page.start - address), default=None)
        return page if page is not None and abs(page.start - address) < 2 * _REACH - PAGE_SIZE else None


class FastSpace:
    """What one address space has of it."""

    def __init__(self, enter: int, end: int) -> None:
        self.enter = enter  # fast_enter.S, and
        self.enter_end = end  # the end of it and of the stub of the vDSO
        self.table: Table | None = None
        self.stubs: list[StubPage] = []
        self.exits: list[ExitPage] = []
        self.watched: set[int] = set()  # where exits are or were, so that mappings there come to us
        self.unpatched: frozenset[bytes] = frozenset()  # identities of enclaves (`unpatched`)

    def forked(self, child: AddressSpace) -> FastSpace:
        """What a child of fork has: all of it."""
        copy = object.__new__(FastSpace)
        copy.enter, copy.enter_end, copy.table = self.enter, self.enter_end, self.table
        copy.stubs, copy.exits = list(self.stubs), list(self.exits)
        copy.watched, copy.unpatched = set(self.watched), self.unpatched
        if self.table is not None:
            self.table.spaces.add(child)
        return copy

    def close(self, space: AddressSpace) -> None:
        """The address space is gone."""
        if self.table is not None:
            self.table.spaces.discard(space)

    def take_out(self, start: int, end: int) -> None:
        """The mapping of ``[start, end)`` changes."""
        if self.table is not None:
            self.table.take_out(start, end)

    def ended(self, tid: int) -> None:
        """Thread ``tid`` (as it calls itself) is at its end, wherever it was."""
        if self.table is not None:
            self.table.forget(tid, ended=True)

    def spare_exit(self, pid: int, start: int, end: int) -> ExitPage | None:
        """A page of an enclave that is gone, made ready for one at ``[start, end)``."""
        spare = (page for page in self.exits if page.free and page.reaches(start, end))
        page = min(spare, key=lambda page: page.start < start, default=None)  # as free_page has it
        if page is not None and self.table is not None:
            page.clear()
            page.install(pid, self.table.address)
        return page

    def entering(self, address: int) -> bool:
        """Whether a thread at ``address`` is on its way into an enclave."""
        return self.enter <= address < self.enter_end or any(p.start <= address < p.end for p in self.stubs)

    def leaving(self, address: int) -> ExitPage | None:
        """The way out on which a thread at ``address`` is."""
        for page in self.exits:  # (a leaf asks this: a generator costs as much as its answer)
            if page.start <= address < page.start + PAGE_SIZE:
                return page
        return None


__all__ = ["WAY_OUT", "ExitPage", "Exits", "FastSpace", "StubPage", "free_page", "room_behind"]
