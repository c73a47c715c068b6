"""The engine's Pager over sealing, a backing store and frames.

The engine decides which page goes; here it goes: EBLOCK, EWB into the backing
store with its version in a VA slot, ELDU back. The SECS takes the same way as
any page, except that its plaintext lies in the processor's state and not in a
frame.
"""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING

from epcgroup.driver.mover import PlainMover
from epcgroup.driver.va import VaSlots
from epcgroup.epc import SECS_INDEX, Enclave, EpcPage, Kind
from epcgroup.errors import InternalError, LoadFailed
from epcgroup.sgx.epcm import SEALED_MASK
from epcgroup.sgx.layouts import TYPE_SHIFT, PageType
from epcgroup.sgx.leaves import eblock
from epcgroup.sgx.seal import MacCompareFail
from epcgroup.units import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from epcgroup.driver.mover import Mover
    from epcgroup.driver.seams import Frames, Log
    from epcgroup.driver.store import BackingStore
    from epcgroup.sgx.enclave import EnclaveState
    from epcgroup.sgx.seal import PageSealer

_SECS_FLAGS = PageType.SECS << TYPE_SHIFT
_WORDS: dict[int, int] = {}  # one object for each word that occurs, not one for each page
_ENCLAVE, _INDEX = attrgetter("enclave"), attrgetter("index")
_SPOILT = "changed or replayed outside the EPC (MAC mismatch)"


def _nothing(_: object) -> None:
    pass


class SealingPager:
    """Pages of every enclave of one machine. Implements ``epc.Pager``."""

    def __init__(self, frames: Frames, sealer: PageSealer, store: BackingStore, log: Log) -> None:
        self._frames = frames
        self._log = log
        self.sealer = sealer
        self.store = store
        self.on_store: Callable[[EpcPage], None] = _nothing  # who pays for backing store hears of it
        self.on_disable: Callable[[Enclave], None] = _nothing  # who tells why an enclave died does
        self.mover: Mover = PlainMover(frames, sealer, store)
        self._states: dict[int, EnclaveState] = {}
        self._slots: dict[int, VaSlots] = {}
        # Versions of pages that are blocked and sealed, in the order in which they will be written out.
        self._leaving: deque[int] = deque()

    def adopt(self, enclave: Enclave, state: EnclaveState) -> None:
        """ECREATE succeeded: ``state`` is the processor's view of ``enclave``."""
        self._states[enclave.id] = state
        self._slots[enclave.id] = VaSlots()

    def forget(self, enclave: Enclave) -> None:
        """The enclave was released."""
        self._states.pop(enclave.id, None)
        slots = self._slots.pop(enclave.id, None)
        if slots is not None:
            slots.clear()
        self.store.forget(enclave.id)
        self.mover.forget(enclave.id)

    def slots_in_use(self, enclave: Enclave) -> int:
        """VA slots that hold a version (INV-5: the number of evicted pages)."""
        slots = self._slots.get(enclave.id)
        return slots.in_use if slots is not None else 0

    # -- epc.Pager ------------------------------------------------------------

    def young(self, pages: Sequence[EpcPage]) -> Sequence[bool]:
        return self._frames.young(pages)

    def reserve(self, pages: Sequence[EpcPage]) -> Sequence[bool]:
        hear, store = self.on_store, self.store
        if hear is _nothing and store.reserve_all(len(pages)):
            return [True] * len(pages)
        answers = []
        for page in pages:
            hear(page)
            answers.append(store.reserve(page.enclave.id, page.index))
        return answers

    def block(self, pages: Sequence[EpcPage]) -> None:
        """EBLOCK, and what ETRACK would wait for: no thread can reach the pages any more.

        To revoke a page and to copy its last contents is one thing here, and cheaper for
        many pages together; so they are sealed now, and written out one by one later.
        """
        alike = len({*map(_ENCLAVE, pages)}) == 1
        for enclave, run in ((pages[0].enclave, pages),) if alike else groupby(pages, _ENCLAVE):
            state = self._states[enclave.id]
            indices = [*map(_INDEX, run)]
            flags = [state.epcm.get(index, 0) & SEALED_MASK for index in indices]
            if eblock(state, indices):
                raise InternalError(f"EBLOCK of pages {indices} of {enclave}, one of which cannot be blocked")
            self._leaving += self.mover.out(enclave.id, state.base, indices, flags)

    def write_out(self, pages: Sequence[EpcPage]) -> None:
        """EWB: keep what was sealed, and the versions in VA slots; forget the plaintext."""
        enclave = pages[0].enclave
        number = enclave.id
        state, slots = self._states[number], self._slots[number]
        if len(slots) != len(enclave.va_pages):
            slots.follow(enclave.va_pages)
        if pages[0].index == SECS_INDEX:
            version, entry = self.mover.seal(state.take_secs(), number, _SECS_FLAGS)
            (entry.slot,) = slots.take((version,))
            self.store.add(number, SECS_INDEX, entry)
            return
        indices = [*map(_INDEX, pages)]
        epcm, leaving = state.epcm, self._leaving.popleft
        for index in indices:
            del epcm[index]
        self.mover.kept(number, indices, [leaving() for _ in indices], slots)

    def load(self, enclave: Enclave, index: int) -> None:
        """ELDU. Raises LoadFailed, and says so in the log, when the page does not verify."""
        number = enclave.id
        state, slots = self._states[number], self._slots[number]
        entry = self.store.get(number, index)
        if entry is None:
            raise self._failed(enclave, index, "its contents are lost")
        version = slots.version(entry.slot)
        try:
            if index == SECS_INDEX:
                state.put_secs(self.mover.unseal(number, entry, version))
            else:
                self.mover.back(number, state.base, index, entry, version)
                flags = entry.flags
                state.epcm[index] = _WORDS.setdefault(flags, flags)
        except MacCompareFail:
            raise self._failed(enclave, index, _SPOILT) from None
        except OSError as error:  # no frame for it: it stays sealed, and the next touch may have better luck
            self._frames.drop(number, index)
            raise self._failed(enclave, index, f"its frame cannot be filled: {error.strerror}") from error
        slots.give((entry.slot,))
        self.store.remove(number, index)

    def arrived(self, enclave: Enclave, indices: Sequence[int]) -> None:
        flags = self.mover.arrived(enclave.id, indices, self._slots[enclave.id])
        self._states[enclave.id].epcm.update(zip(indices, map(_WORDS.setdefault, flags, flags), strict=True))

    @contextmanager
    def at_hand(self, enclave: Enclave) -> Iterator[Callable[[int], bytes]]:
        """For one that is disabled: its SECS can be read meanwhile, and every page by the function given.

        What is evicted stays so and charges nobody. Raises LoadFailed for what does not verify.
        """
        number, state = enclave.id, self._states[enclave.id]

        def contents(index: int) -> bytes:
            if index in state.epcm:
                return self._frames.read(number, index, 0, PAGE_SIZE)
            entry = self.store.get(number, index)
            if entry is None:
                raise self._failed(enclave, index, "its contents are lost")
            version = self._slots[number].version(entry.slot)
            addr = 0 if index == SECS_INDEX else state.base + (index << PAGE_SHIFT)
            try:
                return self.mover.unseal(number, entry, version, addr)
            except MacCompareFail:
                raise self._failed(enclave, index, _SPOILT) from None

        lent = self.store.get(number, SECS_INDEX) is not None
        if lent:
            state.put_secs(contents(SECS_INDEX))
        try:
            yield contents
        finally:
            if lent:
                state.take_secs()

    def drop(self, page: EpcPage) -> None:
        """EREMOVE: the page's contents are gone."""
        if page.kind is Kind.VEPC:
            return
        enclave = page.enclave
        if page.kind is Kind.VA:
            slots = self._slots.get(enclave.id)
            if slots is not None and not enclave.released:
                slots.forget(page.number)
        elif page.kind is Kind.CHILD:
            state = self._states.get(enclave.id)
            if state is not None:
                state.epcm.pop(page.index, None)
                self._frames.drop(enclave.id, page.index)

    def disable(self, enclave: Enclave) -> None:
        self._frames.disable(enclave.id)
        self.on_disable(enclave)

    def _failed(self, enclave: Enclave, index: int, why: str) -> LoadFailed:
        what = "the SECS" if index == SECS_INDEX else f"page {index:#x}"
        message = f"enclave {enclave.id}: {what} cannot be loaded: {why}"
        self._log(message)
        return LoadFailed(message)
