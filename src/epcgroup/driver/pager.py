"""The engine's Pager over sealing, a backing store and frames.

The engine decides which page goes; here it goes: EBLOCK, EWB into the backing
store with its version in a VA slot, ELDU back. The SECS takes the same way as
any page, except that its plaintext lies in the processor's state and not in a
frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from epcgroup.driver.seams import Frames, Log
from epcgroup.driver.store import BackingStore, Evicted
from epcgroup.driver.va import VaSlots
from epcgroup.epc import SECS_INDEX, Enclave, EpcPage, Kind
from epcgroup.errors import InternalError, LoadFailed
from epcgroup.sgx.epcm import BLOCKED, SEALED_MASK
from epcgroup.sgx.layouts import TYPE_SHIFT, PageType
from epcgroup.sgx.leaves import eblock
from epcgroup.sgx.seal import MacCompareFail, PageSealer
from epcgroup.units import PAGE_SHIFT

if TYPE_CHECKING:
    from epcgroup.sgx.enclave import EnclaveState

_SECS_FLAGS = PageType.SECS << TYPE_SHIFT


class SealingPager:
    """Pages of every enclave of one machine. Implements ``epc.Pager``."""

    def __init__(self, frames: Frames, sealer: PageSealer, store: BackingStore, log: Log) -> None:
        self._frames = frames
        self._sealer = sealer
        self._log = log
        self.store = store
        self._states: dict[int, EnclaveState] = {}
        self._slots: dict[int, VaSlots] = {}

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

    def slots_in_use(self, enclave: Enclave) -> int:
        """VA slots that hold a version (INV-5: the number of evicted pages)."""
        slots = self._slots.get(enclave.id)
        return slots.in_use if slots is not None else 0

    # -- epc.Pager ------------------------------------------------------------

    def young(self, pages: Sequence[EpcPage]) -> Sequence[bool]:
        return self._frames.young(pages)

    def reserve(self, page: EpcPage) -> bool:
        return self.store.reserve(page.enclave.id, page.index)

    def block(self, pages: Sequence[EpcPage]) -> None:
        """EBLOCK. Frames revoke the page when it is taken, so no epoch is left open."""
        for page in pages:
            if page.index != SECS_INDEX:
                eblock(self._states[page.enclave.id], page.index)

    def write_out(self, page: EpcPage) -> None:
        """EWB: seal, keep the version in a VA slot, forget the plaintext."""
        enclave, index = page.enclave, page.index
        state, slots = self._states[enclave.id], self._slots[enclave.id]
        if len(slots) != len(enclave.va_pages):
            slots.follow(enclave.va_pages)
        if index == SECS_INDEX:
            contents, flags, addr = state.take_secs(), _SECS_FLAGS, 0
        else:
            word = state.epcm.pop(index)
            if not word & BLOCKED:
                raise InternalError(f"EWB of page {index} of enclave {enclave.id}, which is not blocked")
            flags, addr = word & SEALED_MASK, state.base + (index << PAGE_SHIFT)
            contents = self._frames.take(enclave.id, index)
        version, sealed = self._sealer.ewb(contents, flags, addr, enclave.id)
        self.store.add(enclave.id, index, Evicted(sealed, flags, *slots.take(version)))

    def load(self, enclave: Enclave, index: int) -> None:
        """ELDU. Raises LoadFailed, and says so in the log, when the page does not verify."""
        state = self._states[enclave.id]
        entry = self.store.get(enclave.id, index)
        addr = 0 if index == SECS_INDEX else state.base + (index << PAGE_SHIFT)
        if entry is None:
            raise self._failed(enclave, index, "its contents are lost")
        version = entry.va_page.versions[entry.slot]
        try:
            contents = self._sealer.eldu(entry.sealed, version, entry.flags, addr, enclave.id)
        except MacCompareFail:
            raise self._failed(enclave, index, "changed or replayed outside the EPC (MAC mismatch)") from None
        self._slots[enclave.id].give(entry.va_page, entry.slot)
        self.store.remove(enclave.id, index)
        if index == SECS_INDEX:
            state.put_secs(contents)
        else:
            state.epcm[index] = entry.flags
            self._frames.put(enclave.id, index, contents, entry.flags)

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
            self.store.forget(enclave.id, page.index)

    def disable(self, enclave: Enclave) -> None:
        self._frames.disable(enclave.id)

    def _failed(self, enclave: Enclave, index: int, why: str) -> LoadFailed:
        what = "the SECS" if index == SECS_INDEX else f"page {index:#x}"
        message = f"enclave {enclave.id}: {what} cannot be loaded: {why}"
        self._log(message)
        return LoadFailed(message)
