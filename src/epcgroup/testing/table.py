"""A pager that is a table: for each page, is it mapped, and was it accessed.

It stands for one address space that maps the whole enclave. Use it to run the
engine by itself: in tests, in ``epcgroup conform``, in a benchmark.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from epcgroup.epc import SECS_INDEX, Caller, Enclave, EpcPage, Machine, Vepc
from epcgroup.errors import Busy, LoadFailed, Refused

MAPPED = 1
ACCESSED = 2
YOUNG = MAPPED | ACCESSED

SIGBUS = -1
NOT_MAPPED = -2
MAX_FAULTS = 8


class TablePager:
    """Two bits a page, and a log of what was written out and loaded.

    ``log`` (when not None) gets ``("-", enclave id, index)`` for each page
    written out and ``("+", …)`` for each loaded. ``refuse(page)`` may deny
    backing store; ``broken`` holds (enclave id, index) that fail to load.
    """

    def __init__(self, log: list[tuple[str, int, int]] | None = None) -> None:
        self.log = log
        self.bits: dict[int, bytearray] = {}
        self.refuse: Callable[[EpcPage], bool] | None = None
        self.broken: set[tuple[int, int]] = set()

    # -- the Pager protocol --------------------------------------------------

    def young(self, pages: Sequence[EpcPage]) -> list[bool]:
        """Mapped with the accessed bit set; the bit is cleared."""
        answers = []
        for page in pages:
            bits = self.bits.get(page.enclave.id)
            if bits is not None and bits[page.index] == YOUNG:
                bits[page.index] = MAPPED
                answers.append(True)
            else:
                answers.append(False)
        return answers

    def reserve(self, pages: Sequence[EpcPage]) -> list[bool]:
        """True, unless ``refuse`` says otherwise."""
        return [self.refuse is None or not self.refuse(page) for page in pages]

    def block(self, pages: Sequence[EpcPage]) -> None:
        """Nothing maps them any more."""
        for page in pages:
            bits = self.bits.get(page.enclave.id)
            if bits is not None:
                bits[page.index] = 0

    def write_out(self, pages: Sequence[EpcPage]) -> None:
        """Log them."""
        if self.log is not None:
            self.log += [("-", page.enclave.id, page.index) for page in pages]

    def load(self, enclave: Enclave, index: int) -> None:
        """Log it; fail if it is broken."""
        if (enclave.id, index) in self.broken:
            raise LoadFailed
        if self.log is not None:
            self.log.append(("+", enclave.id, index))

    def arrived(self, enclave: Enclave, indices: Sequence[int]) -> None:
        """Log them."""
        if self.log is not None:
            self.log += [("+", enclave.id, index) for index in indices]

    def drop(self, page: EpcPage) -> None:
        """Its bits go."""
        if page.index >= 0:
            bits = self.bits.get(page.enclave.id)
            if bits is not None:
                bits[page.index] = 0

    def disable(self, enclave: Enclave) -> None:
        """Nothing maps any of its pages."""
        self.bits.pop(enclave.id, None)

    # -- the processor's side ------------------------------------------------

    def is_young(self, page: EpcPage) -> bool:
        """Mapped with the accessed bit set."""
        bits = self.bits.get(page.enclave.id)
        return page.index != SECS_INDEX and bits is not None and bits[page.index] == YOUNG

    def access(self, enclave: Enclave, index: int) -> bool:
        """Touch a page; False when it is not mapped."""
        bits = self.bits.get(enclave.id)
        if bits is None or not bits[index]:
            return False
        bits[index] = YOUNG
        return True

    def map(self, enclave: Enclave, index: int, how: int = MAPPED) -> None:
        """The fault handler put the page into the address space; its accessed bit is clear."""
        bits = self.bits.get(enclave.id)
        if bits is None:
            bits = self.bits[enclave.id] = bytearray(enclave.size)
        bits[index] = how

    def forget(self, enclave: Enclave) -> None:
        """The enclave was released."""
        self.bits.pop(enclave.id, None)


def touch(
    machine: Machine, pager: TablePager, caller: Caller, enclave: Enclave, index: int, sgx2: bool = False
) -> int:
    """One access, with its faults and the background work between them.

    Returns how many fault-handler calls it took, SIGBUS (-1), or NOT_MAPPED
    (-2): after eight calls the page is still not there.
    """
    for calls in range(MAX_FAULTS):
        if pager.access(enclave, index):
            return calls
        try:
            if sgx2 and index not in enclave.pages:
                machine.augment(caller, enclave, index)
            else:
                machine.fault(caller, enclave, index)
        except Busy:
            machine.settle()
            continue
        except Refused:
            return SIGBUS
        pager.map(enclave, index, YOUNG)  # and the access goes through
        return calls + 1
    return NOT_MAPPED


def touch_vepc(machine: Machine, caller: Caller, guest: Vepc, index: int) -> int:
    """A guest's access to its EPC; returns as touch does."""
    for calls in range(MAX_FAULTS):
        if calls == 0 and index in guest.pages:
            return 0
        try:
            machine.fault_vepc(caller, guest, index)
        except Busy:
            machine.settle()
            continue
        except Refused:
            return SIGBUS
        return calls + 1
    return NOT_MAPPED
