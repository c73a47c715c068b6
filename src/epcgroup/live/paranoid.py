"""A machine that distrusts itself: every invariant, after every operation.

All that changes a machine (a step of an ioctl, a fault, an ENCLU leaf, a slice
of background work, a release) does so while it holds `World.lock`. So a lock
that looks around before it lets go sees the machine after each operation, and
no caller has to think of it. Rejected: calls of a check at every such place,
one of which would be forgotten.

What is looked at: the engine's own invariants (`epc.invariants`), and those that
only a live machine has, counted by the kernel where that is possible.

LIVE-1  The blocks of all memfds and the hidden pages never exceed the EPC.
LIVE-2  A page is in the memfd, or hidden, exactly if the engine and the EPCM say
        that it is resident. So an evicted page exists only sealed.
LIVE-3  VA slots in use = sealed pages = evicted pages.

To go through all pages costs 2 µs a page, which after every fault would be too much
for a machine of more than a few hundred. So after every operation all counts are
compared (of groups, of enclaves, of blocks, by the kernel), and the pages are gone
through that the operation has touched (`touched`); what it did to a page that it
should not have touched, and that no count betrays, is found when all pages are gone
through, which is at the latest when there were a `_PAGES_A_CHECK`-th as many operations
as pages are in use, and whenever an enclave comes, goes or is disabled.

A violation is noted, not raised: whoever holds the lock may be a page service,
whose exception would reach nobody. The tracer raises it and the machine ends.
"""

from __future__ import annotations

import os
import traceback
from typing import TYPE_CHECKING

from epcgroup.epc import invariants
from epcgroup.errors import InternalError
from epcgroup.live.paging.lock import MachineLock
from epcgroup.live.touched import Touched, present
from epcgroup.units import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from epcgroup.driver import EnclaveFile
    from epcgroup.live.devices import Device
    from epcgroup.live.world import World

_BLOCK = 512  # bytes in a block of st_blocks
_PAGES_A_CHECK = 64


class CheckedLock(MachineLock):
    """The machine's lock, which calls ``check`` each time before it is released.

    But not while a round seals: then some pages are between two places, and the round's end is checked.
    """

    def __init__(self, check: Callable[[], None]) -> None:
        super().__init__()
        self._check = check

    def __exit__(self, *_: object) -> None:
        try:
            if not self.sealing:
                self._check()
        finally:
            super().__exit__()


class Watch:
    """Looks at a machine after each operation."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._touched = Touched(world.frames, world.machine)
        self._enclaves: set[int] = set()
        self._operations = 0  # since all pages were gone through

    def look(self) -> None:
        """The first violation goes to `World.broken`. Hold the lock."""
        world = self._world
        if world.broken is None:
            try:
                self._check()
            except InternalError as error:
                world.broke(error)
            except Exception:  # the check itself stumbles over what it finds
                world.broke(InternalError(f"the machine cannot be checked:\n{traceback.format_exc()}"))

    def _check(self) -> None:
        machine = self._world.machine
        self._operations += 1
        used = machine.epc_pages - machine.free
        everything = self._touched.too_many or machine.enclaves.keys() != self._enclaves
        if everything or self._operations * _PAGES_A_CHECK >= used:
            self._operations = 0
            self._enclaves = set(machine.enclaves)
            self._touched.forget()
            check(self._world)
        else:
            invariants.check_counts(machine)
            check_counts(self._world)
            self._touched.check(self._world)


def watch(world: World) -> None:
    """Have ``world`` checked from now on; the first violation goes to ``world.broken``."""
    world.lock = CheckedLock(Watch(world).look)


def check(world: World) -> None:
    """Raise InternalError, naming the invariant, if one does not hold. Hold the lock."""
    invariants.check(world.machine)
    for number, device in world.frames.inhabited().items():
        file = world.driver.files.get(number)
        if file is not None:
            _check_residence(file, device)
    for device in world.devices:
        if device.guest is not None:
            _check_guest(device)
    check_counts(world)


def check_counts(world: World) -> None:
    """As `check`, for what can be told without a look at the pages. Hold the lock."""
    shown = hidden = 0
    for number, device in world.frames.inhabited().items():
        blocks = _blocks(device)
        shown += blocks
        hidden += len(device.hidden)
        file = world.driver.files.get(number)
        if file is not None:
            _check_seals(world, file)
            there, resident = blocks + len(device.hidden), file.enclave.child_count
            _must(
                there == resident == len(file.words),
                "LIVE-2",
                f"{file.enclave}: {there} pages there, {resident} resident, {len(file.words)} in the EPCM",
            )
    shown += sum(_blocks(device) for device in world.devices if device.guest is not None)
    size = world.machine.epc_pages
    _must(shown + hidden <= size, "LIVE-1", f"{shown} pages shown and {hidden} hidden in an EPC of {size}")


def _must(holds: bool, name: str, what: str) -> None:
    if not holds:
        raise InternalError(f"{name} does not hold: {what}")


def _blocks(device: Device) -> int:
    return os.fstat(device.memfd).st_blocks * _BLOCK // PAGE_SIZE


def _check_residence(file: EnclaveFile, device: Device) -> None:
    enclave, words = file.enclave, set(file.words)
    shown, hidden = set(present(device.memfd)), set(device.hidden)
    resident = {index for index, page in enclave.pages.items() if page is not None}
    _must(resident == words, "LIVE-2", f"{enclave}: {_odd(words, resident)} in the EPCM")
    _must(not shown & hidden, "LIVE-2", f"{enclave}: {sorted(shown & hidden)[:8]} both shown and hidden")
    there = shown | hidden
    _must(there == resident, "LIVE-2", f"{enclave}: {_odd(there, resident)} where only resident pages may be")


def _odd(one: set[int], other: set[int]) -> str:
    """The first pages that only one of two sets has."""
    extra, missing = sorted(one - other)[:8], sorted(other - one)[:8]
    return f"pages {extra} too many, {missing} missing"


def _check_guest(device: Device) -> None:
    """A guest's page that was just allocated may not be in its memfd yet, never the reverse."""
    assert device.guest is not None
    shown, pages = set(present(device.memfd)), device.guest.guest.pages.keys()
    _must(shown <= pages, "LIVE-2", f"virtual EPC: pages {sorted(shown - pages)[:8]} were never allocated")


def _check_seals(world: World, file: EnclaveFile) -> None:
    pager, enclave = world.driver.pager, file.enclave
    slots, sealed = pager.slots_in_use(enclave), len(pager.store.pages(enclave.id))
    _must(
        slots == sealed == enclave.evicted,
        "LIVE-3",
        f"{enclave}: {slots} VA slots in use, {sealed} pages sealed, {enclave.evicted} evicted",
    )


__all__ = ["CheckedLock", "check", "watch"]
