"""The table that lets a thread enter and leave an enclave without asking us.

One piece of memory, shared by the supervisor and all processes that descend
from one another by fork, so that a TCS has one lock for all of them:

    4096 slots    what a thread left outside, by the low bits of its id
    16384 entries the TCSs that may be entered, by a hash of their address
    4096 places   where a thread parks registers on its way out, as its slot

The code in a program (fast_enter.S, fast_exit.S) fills and empties them; only the
supervisor makes an entry live or takes it out. An entry is for EENTER with the
CSSA it names: before that changes, or anything else happens to the TCS, the entry
goes, EENTER traps, and the reference (`sgx.thread`) decides.

=====  ======================  =====  ==========================================
slot                           entry
=====  ======================  =====  ==========================================
0      thread id, 0: unused    0      address of the TCS, 0: not to be entered
8      entry it is inside of   8      id of the thread inside, 0: free
16     AEP                     16     where to go
24     FS base outside         24     address of URSP, URBP in the SSA frame
32     GS base outside         32     FS base inside
40     how often it entered    40     GS base inside
48     signals to block again  48     1 once it was used, for the age of the TCS
                               56     CSSA, which selects the SSA frame
=====  ======================  =====  ==========================================

Taking an entry out races with threads that are just entering. A thread first
locks (`lock cmpxchg`) and then looks at the TCS's address again; we first wipe the
address and then look at the lock, with a fence between. So either it sees that
the entry is gone and traps, or we see that it is inside.

A program can scribble over all this and harm nobody but its own enclaves: what is
read here is compared with what we know (`Entry`), or is the program's own state.

Rejected: 16 entries by bits of the address (any number of TCSs); a lock by
process (forked processes share enclaves); the tracer's atomic instructions (with
the order above plain stores suffice).
"""

from __future__ import annotations

import mmap
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from epcgroup.live.devices import Device
    from epcgroup.live.paging.mm import AddressSpace

SLOTS, BUCKETS, PROBES = 4096, 16384, 4
_ITEM = 64  # bytes of a slot or an entry
_ENTRIES = SLOTS * _ITEM
_PARKED = _ENTRIES + (BUCKETS + 64) * _ITEM
SIZE = _PARKED + SLOTS * _ITEM
_TID, _ENTRY, _AEP, _FS, _GS, _STAYS, _BLOCKED = range(7)  # words of a slot
_TCS, _OWNER, _TARGET, _URSP, _FS_IN, _GS_IN, _USED, _CSSA = range(8)  # words of an entry
_FACTOR = 0x9E3779B1

# An uncontended lock is a locked instruction, hence a full fence.
_barrier = threading.Lock()


def _fence() -> None:
    with _barrier:
        pass


def bucket_of(tcs: int) -> int:
    """Where the code in the program starts to look for this TCS."""
    return (((tcs >> 12) * _FACTOR & 0xFFFFFFFF) >> 18) % BUCKETS


@dataclass(slots=True)
class Entry:
    """One TCS in the table. ``pages`` are indices of the pages an EENTER depends on."""

    table: Table
    bucket: int
    device: Device
    index: int  # of the TCS
    tcs: int  # its address
    pages: range  # of the SSA frame
    live: bool = True

    def word(self, n: int) -> int:
        """Number of the entry's word ``n`` in the table."""
        return (_ENTRIES + self.bucket * _ITEM) // 8 + n

    def take_out(self) -> int:
        """Nobody enters any more; the id of the thread that is inside (0: none).

        The id may be that of a thread that was about to enter and now traps.
        """
        words = self.table.words
        if self.live:
            self.live = False
            words[self.word(_TCS)] = 0
            _fence()
        return words[self.word(_OWNER)]

    def free(self) -> None:
        """The thread that was inside is so no more, or we keep account of it from now on."""
        self.table.words[self.word(_OWNER)] = 0

    def used(self) -> bool:
        """Whether the TCS was entered since the last call."""
        words, at = self.table.words, self.word(_USED)
        if not words[at]:
            return False
        words[at] = 0
        return True


@dataclass(frozen=True, slots=True)
class Outside:
    """What a thread that came in by the table left outside."""

    entry: Entry
    aep: int
    fs_base: int
    gs_base: int
    stay: int  # number of this stay among those of the thread
    blocked: int  # signals that it blocks there, and not inside: a mask


class Table:
    """The table of one family of processes; ``address`` is where they all have it."""

    def __init__(self, fd: int) -> None:
        """``fd``: an empty memfd of theirs; not needed any more afterwards."""
        os.ftruncate(fd, SIZE)
        memory = mmap.mmap(fd, SIZE)
        self.words = memoryview(memory).cast("Q")
        self.address = 0
        self.spaces: set[AddressSpace] = set()
        self.closed = False
        self._entries: dict[int, Entry] = {}  # by bucket

    def put(
        self,
        device: Device,
        index: int,
        pages: range,
        *,
        tcs: int,
        target: int,
        ursp: int,
        bases: tuple[int, int],
        cssa: int = 0,
    ) -> Entry | None:
        """Make a TCS enterable. None if its places are taken."""
        bucket = self._place(tcs)
        if bucket is None:
            return None
        entry = self._entries[bucket] = Entry(self, bucket, device, index, tcs, pages)
        at = entry.word(0)
        self.words[at + _TARGET], self.words[at + _URSP] = target, ursp
        self.words[at + _FS_IN], self.words[at + _GS_IN] = bases
        self.words[at + _USED], self.words[at + _CSSA] = 0, cssa
        self.words[at + _TCS] = tcs  # last: from now on it can be entered
        return entry

    def _place(self, tcs: int) -> int | None:
        first = bucket_of(tcs)
        probed = range(first, first + PROBES)
        # Its old place, then one that was never used: a thread may still look at the others.
        for bucket in probed:
            known = self._entries.get(bucket)
            if known is not None and known.tcs == tcs:
                return None if self._occupied(known) else bucket
        for bucket in probed:
            if bucket not in self._entries:
                return bucket
        for bucket in probed:
            if not self._occupied(self._entries[bucket]):
                return bucket
        return None

    def _occupied(self, entry: Entry) -> bool:
        return entry.live or bool(self.words[entry.word(_OWNER)])

    def take_out(self, start: int, end: int) -> None:
        """The mapping of ``[start, end)`` changes in some process: nobody enters there."""
        for entry in self._entries.values():
            if entry.live and start <= entry.tcs < end:
                entry.take_out()

    def close(self) -> None:
        """Nobody enters by this table any more."""
        self.closed = True
        self.take_out(0, 1 << 64)

    def outside(self, tid: int) -> Outside | None:
        """What thread ``tid`` (its id as it sees it) left outside; None if it is not inside."""
        words, at = self.words, self._slot(tid)
        if words[at + _TID] != tid or not words[at + _ENTRY]:
            return None
        bucket, odd = divmod(words[at + _ENTRY] - self.address - _ENTRIES, _ITEM)
        entry = self._entries.get(bucket)
        if odd or entry is None or words[entry.word(_OWNER)] != tid:
            return None
        return Outside(entry, *words[at + _AEP : at + _BLOCKED + 1])

    def forget(self, tid: int, *, ended: bool = False) -> None:
        """Thread ``tid`` is not inside any more, as far as the table knows."""
        words, at = self.words, self._slot(tid)
        if words[at + _TID] != tid:
            return
        found = self.outside(tid)
        if found is not None:
            found.entry.free()
        words[at + _ENTRY] = 0
        if ended:
            words[at + _TID] = 0

    @staticmethod
    def _slot(tid: int) -> int:
        return tid % SLOTS * _ITEM // 8


class Enterable:
    """The TCSs of one enclave that are in some table.

    Kept by index of the TCS, as long as a thread may be inside by the table.
    """

    def __init__(self) -> None:
        self._entries: dict[int, Entry] = {}
        self._by_page: dict[int, set[int]] = {}  # page of an SSA frame → TCSs that use it

    def add(self, entry: Entry) -> None:
        """It was put into a table."""
        self._entries[entry.index] = entry
        for page in entry.pages:
            self._by_page.setdefault(page, set()).add(entry.index)

    def live(self, index: int, table: Table) -> bool:
        """Whether this TCS can be entered by ``table``."""
        entry = self._entries.get(index)
        return entry is not None and entry.live and entry.table is table

    def take_out(self, index: int) -> bool:
        """The TCS cannot be entered any more; whether a thread is inside."""
        entry = self._entries.get(index)
        if entry is None:
            return False
        if entry.take_out():
            return True
        del self._entries[index]
        return False

    def changes(self, index: int) -> None:
        """Page ``index`` changes: what depends on it is taken out."""
        self.take_out(index)
        for tcs in self._by_page.pop(index, ()):
            self.take_out(tcs)

    def take_out_all(self) -> None:
        """The enclave is about to lose its memory."""
        for tcs in list(self._entries):
            self.take_out(tcs)

    def occupied(self) -> bool:
        """Whether a thread is inside by a table.

        What programs may have written there counts for as long as there is one of them.
        """
        entries = self._entries.values()
        return any(entry.table.spaces and entry.table.words[entry.word(_OWNER)] for entry in entries)

    def take_out_all_of(self, indices: Iterable[int]) -> None:
        """As take_out, for those of ``indices`` that are TCSs."""
        if not self._entries.keys().isdisjoint(indices):
            for index in self._entries.keys() & indices:
                self.take_out(index)

    def used(self, indices: Iterable[int]) -> set[int]:
        """Those of ``indices`` that are TCSs and were entered since the last call."""
        if self._entries.keys().isdisjoint(indices):
            return set()
        return {i for i in self._entries.keys() & indices if self._entries[i].used()}


class BusyTcs(set[int]):
    """Indices of the TCSs with a thread inside, those that came in by a table included."""

    def __init__(self, enterable: Enterable) -> None:
        super().__init__()
        self._enterable = enterable

    def __contains__(self, index: object) -> bool:
        return set.__contains__(self, index) or (isinstance(index, int) and self._enterable.take_out(index))
