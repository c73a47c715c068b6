"""A machine, a backing store and ioctls that fail by a plan (`inject`)."""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Mapping, Sequence

from epcgroup.driver.evicted import Evicted
from epcgroup.driver.inject import Plan
from epcgroup.driver.numbers import Ioctl
from epcgroup.driver.store import BackingStore
from epcgroup.epc import Caller, Enclave, EpcPage, Machine, Pager, Policy, Section, Vepc
from epcgroup.errors import NoEpc, Refused

_SGX2 = {Ioctl.RESTRICT_PERMISSIONS, Ioctl.MODIFY_TYPES, Ioctl.REMOVE_PAGES}
_INTERRUPTIBLE = _SGX2 | {Ioctl.CREATE, Ioctl.ADD_PAGES, Ioctl.INIT}


class Dice:
    """Draws the chances of a plan; each kind has a sequence of its own."""

    def __init__(self, plan: Plan, seed: int) -> None:
        self._chances = dict(plan.chances)
        self._random = {kind: random.Random(f"{seed} {kind}") for kind in self._chances}

    def falls(self, kind: str) -> bool:
        """Whether it happens this time."""
        chance = self._chances.get(kind)
        return chance is not None and self._random[kind].random() < chance

    def ioctl(self, cmd: int) -> None:
        """An ioctl begins. Raises Refused: EINTR, EAGAIN."""
        if cmd in _INTERRUPTIBLE and self.falls("eintr"):
            raise Refused("injected: a signal came first", errno.EINTR)
        if cmd in _SGX2 and self.falls("eagain"):
            raise Refused("injected: a page cannot be loaded now", errno.EAGAIN)


class HostileStore(BackingStore):
    """A backing store that is slow, small, full, or under attack.

    Attacked is the first enclave of which a page is evicted.
    """

    def __init__(self, plan: Plan, dice: Dice) -> None:
        super().__init__(plan.backing)
        self._plan, self._dice = plan, dice
        self._evict = plan.delays.get("ewb-slow", 0.0)
        self._load = plan.delays.get("eldu-slow", 0.0)
        self._oldest: dict[int, bytes] = {}
        self._victim: int | None = None

    def reserve(self, enclave: int, index: int) -> bool:
        """As BackingStore.reserve; now and then there is no room."""
        return not self._dice.falls("enospc") and super().reserve(enclave, index)

    def reserve_all(self, pages: int) -> bool:  # noqa: ARG002 - each is decided alone
        """No."""
        return False

    def add_all(self, enclave: int, indices: Sequence[int], slots: Sequence[int]) -> None:
        """One by one."""
        pages = self.pages(enclave)
        for index, slot in zip(indices, slots, strict=True):
            entry = pages.find(index, ready=True)
            assert entry is not None
            entry.slot = slot
            self.add(enclave, index, entry)

    def add(self, enclave: int, index: int, entry: Evicted) -> None:
        """As BackingStore.add, with what an attacker makes of it."""
        if self._evict:
            time.sleep(self._evict)
        if self._victim is None:
            self._victim = enclave
        if enclave == self._victim:
            if index in self._plan.at("tamper"):
                entry.sealed = bytes([entry.sealed[0] ^ 1]) + entry.sealed[1:]
            if index in self._plan.at("mac-fail"):
                entry.sealed = entry.sealed[:-1] + bytes([entry.sealed[-1] ^ 1])
            if index in self._plan.at("replay"):
                entry.sealed = self._oldest.setdefault(index, entry.sealed)
        super().add(enclave, index, entry)

    def remove(self, enclave: int, index: int) -> None:
        """As BackingStore.remove: the page has been loaded."""
        if self._load:
            time.sleep(self._load)
        super().remove(enclave, index)


class ShortMachine(Machine):
    """A machine that refuses an EPC page now and then, as if there were none."""

    def __init__(
        self,
        dice: Dice,
        *,
        epc_pages: int,
        policy: Policy,
        pager: Pager,
        resources: Mapping[str, int],
        sections: Sequence[Section] = (),
    ) -> None:
        super().__init__(
            epc_pages=epc_pages, policy=policy, pager=pager, resources=resources, sections=sections
        )
        self._dice = dice

    def _allocate(self) -> None:
        if self._dice.falls("enomem"):
            raise NoEpc("injected: no EPC page")

    def create_enclave(self, caller: Caller, size: int) -> Enclave:
        self._allocate()
        return super().create_enclave(caller, size)

    def add_page(self, caller: Caller, enclave: Enclave, index: int) -> EpcPage:
        self._allocate()
        return super().add_page(caller, enclave, index)

    def fault(self, caller: Caller, enclave: Enclave, index: int) -> EpcPage:
        if enclave.pages.get(index, self) is None:  # evicted: it needs one
            self._allocate()
        return super().fault(caller, enclave, index)

    def augment(self, caller: Caller, enclave: Enclave, index: int) -> EpcPage:
        self._allocate()
        return super().augment(caller, enclave, index)

    def fault_vepc(self, caller: Caller, guest: Vepc, index: int) -> EpcPage:
        if index not in guest.pages:
            self._allocate()
        return super().fault_vepc(caller, guest, index)
