"""EPC pages, and what they can belong to: an enclave or a guest's virtual EPC.

A page descriptor is spec 2.2 without what only C needs: state, owner, the group
it is charged to, its place on one list. States and their transitions are spec
2.3 and 2.4; the owner flags are ``kind`` here.

Memory is the constraint: a machine has one descriptor per EPC page (half a
million for 2 GiB), so everything has ``__slots__`` and links are in the page.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from epcgroup.epc.group import Group

SECS_INDEX: Final = -1
"""Index of the control page among an enclave's pages."""
VA_INDEX: Final = -2
"""Index of every version-array page."""
VA_SLOTS: Final = 512


class State(IntEnum):
    """Where a page is in its life (spec 2.3)."""

    NOT_TRACKED = 0  # in use, on no list: just allocated, a guest's, or temporarily dropped
    FREE = 1
    RECLAIMABLE = 2  # on the reclaimable list of the group it is charged to
    UNRECLAIMABLE = 3  # SECS or VA; listed only where the policy tracks them
    RECLAIM_IN_PROGRESS = 4  # isolated by a reclaim round


class Kind(IntEnum):
    """What an in-use page is for; decides who may take it (spec 2.6)."""

    CHILD = 0  # REG, TCS, TRIM: anything with a linear address
    SECS = 1
    VA = 2
    VEPC = 3


# The same members as plain names, for the hot paths: to look a member up in its
# Enum class costs ten times as much.
NOT_TRACKED: Final = State.NOT_TRACKED
FREE: Final = State.FREE
RECLAIMABLE: Final = State.RECLAIMABLE
UNRECLAIMABLE: Final = State.UNRECLAIMABLE
RECLAIM_IN_PROGRESS: Final = State.RECLAIM_IN_PROGRESS
CHILD: Final = Kind.CHILD


class EpcPage:
    """One physical EPC page.

    ``number`` is its place in the EPC; ``enclave``/``index`` name what it holds
    (``index`` counts pages from the enclave's base; SECS_INDEX, VA_INDEX). For a
    guest's page ``vepc`` is its owner and ``index`` its place there; the enclave
    of a guest's or a free page is NOBODY. ``group`` is who pays. ``prev``/``next``
    belong to the list the page is on.
    """

    __slots__ = ("enclave", "group", "index", "kind", "next", "number", "poisoned", "prev", "state", "vepc")

    def __init__(self, number: int) -> None:
        self.number = number
        self.state: State = FREE
        self.kind: Kind = CHILD
        self.enclave: Enclave = NOBODY
        self.vepc: Vepc | None = None
        self.index = 0
        self.group: Group | None = None
        self.prev: EpcPage | None = None
        self.next: EpcPage | None = None
        self.poisoned = False

    def __repr__(self) -> str:
        what = f"{self.kind.name} {self.vepc or self.enclave}:{self.index}"
        return f"<EpcPage {self.number} {self.state.name} {what}>"


class Enclave:
    """What the engine knows of an enclave: which pages it has, and where they are.

    ``pages`` maps an index to the resident EPC page, or to None while the page
    is evicted; ``secs`` is None while the SECS is evicted. ``page_cnt`` counts
    pages ever grown for, the SECS first (spec 2.7), ``child_count`` resident
    pages other than SECS and VA. ``disabled`` is v5's NO_MEMORY.
    """

    __slots__ = (
        "child_count",
        "counters",
        "created",
        "disabled",
        "id",
        "initialised",
        "isolated",
        "page_cnt",
        "pages",
        "released",
        "secs",
        "size",
        "va_pages",
    )

    def __init__(self, enclave_id: int, size: int) -> None:
        self.id = enclave_id
        self.size = size  # pages of address range
        self.pages: dict[int, EpcPage | None] = {}
        self.secs: EpcPage | None = None
        self.va_pages: list[EpcPage] = []
        self.page_cnt = 0
        self.child_count = 0
        self.created = False
        self.initialised = False
        self.disabled = False
        self.released = False
        self.isolated = 0  # pages on a reclaim round's private list: they keep the enclave alive
        self.counters = Counters()

    @property
    def evicted(self) -> int:
        """Pages that exist only sealed, an evicted SECS included."""
        return len(self.pages) - self.child_count + (self.secs is None and self.created)

    def __repr__(self) -> str:
        return f"<Enclave {self.id}>"


class Vepc:
    """A guest's virtual EPC: pages appear when touched and are never reclaimed."""

    __slots__ = ("id", "pages", "size")

    def __init__(self, vepc_id: int, size: int) -> None:
        self.id = vepc_id
        self.size = size
        self.pages: dict[int, EpcPage] = {}

    def __repr__(self) -> str:
        return f"<Vepc {self.id}>"


class Counters:
    """Operations so far, of one enclave or of one group; plain integers, never reset.

    A group counts what was charged to it (for pages) or done by its processes
    (for faults). Time is not in here: a cost profile or a clock adds it outside.
    """

    __slots__ = (
        "added",
        "augmented",
        "evicted",
        "faults",
        "loaded",
        "removed",
        "retried",
        "scanned",
        "secs_loaded",
        "young",
    )

    def __init__(self) -> None:
        self.added = 0  # EADD
        self.augmented = 0  # EAUG
        self.evicted = 0  # EWB, SECS included
        self.loaded = 0  # ELDU, SECS included
        self.secs_loaded = 0  # of the loaded pages, how many were a SECS
        self.removed = 0  # EREMOVE of a page in use
        self.faults = 0  # fault-handler calls for a page that was not resident
        self.retried = 0  # of those, how many ended in "busy"
        self.scanned = 0  # pages a reclaim round looked at
        self.young = 0  # of those, how many were young

    def add(self, other: Counters) -> None:
        """Take over what ``other`` counted."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def as_dict(self) -> dict[str, int]:
        """All counters by name."""
        return {name: getattr(self, name) for name in self.__slots__}


NOBODY: Final = Enclave(0, 0)
"""The enclave of a page that belongs to none."""
