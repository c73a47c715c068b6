"""Which resident pages were touched: the test that gives pages a second chance.

*Young* is "a PTE is present". The accessed bit itself is out of reach, but the PTEs
of a shared file mapping can be dropped without losing the page, and the next touch
is a minor fault that the kernel resolves alone (`pagemap`). This is exact because
ranges registered for write-protect faults have no fault-around.

Rejected: FIFO (no second chance), idle page tracking and soft-dirty (absent on
common kernels, or blind to reads).
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Protocol

from epcgroup.live.paging import pagemap, revoke
from epcgroup.sgx import epcm
from epcgroup.units import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from epcgroup.epc import EpcPage
    from epcgroup.live.devices import Device
    from epcgroup.live.paging.mm import AddressSpace


class Age(Protocol):
    """Knows which pages were touched."""

    def young(self, pages: Sequence[EpcPage]) -> Sequence[bool]:
        """Which pages were touched since they were last asked about; forgets it."""


class PlainAge:
    """Page by page, in Python. Implements Age."""

    def __init__(self, devices: Mapping[int, Device]) -> None:
        """``devices``: by enclave, as they come and go."""
        self._devices = devices

    def young(self, pages: Sequence[EpcPage]) -> Sequence[bool]:
        by_enclave: dict[int, set[int]] = {}
        for page in pages:
            by_enclave.setdefault(page.enclave.id, set()).add(page.index)
        touched = {
            enclave: self._look(self._devices[enclave], indices) for enclave, indices in by_enclave.items()
        }
        return [page.index in touched[page.enclave.id] for page in pages]

    def _look(self, device: Device, indices: set[int]) -> set[int]:
        """Those of ``indices`` that were touched; their PTEs are dropped."""
        touched = self._touched(device, indices)
        with_pte = indices & device.filled
        device.filled -= with_pte
        base, hidden = device.base, device.hidden
        unknown = [base + (i << PAGE_SHIFT) for i in indices - with_pte if i not in hidden]
        spaces = [space for space in list(device.mms) if space.uffd >= 0]
        for space in spaces:
            with contextlib.suppress(OSError):  # the mm is just going away
                found = pagemap.young(space.open_pagemap(), unknown)
                with_pte.update((addr - base) >> PAGE_SHIFT for addr in found)
        self._drop_ptes(device, spaces, with_pte)
        return touched | with_pte

    @staticmethod
    def _touched(device: Device, indices: Iterable[int]) -> set[int]:
        """Those that the processor accessed on the enclave's behalf; forgets it."""
        used = device.enterable.used(indices)
        if not device.touched:
            return used
        touched = device.touched.intersection(indices)
        device.touched -= touched
        return touched | used

    def _drop_ptes(self, device: Device, spaces: list[AddressSpace], indices: set[int]) -> None:
        """Forget that these pages were touched.

        One mm alone can be told to, with the right and without swap. What it keeps (pages that
        another processor has only just put into the page cache) stays young for
        another turn, which does no harm.
        """
        if not indices:
            return
        if len(spaces) == 1:
            addresses = sorted(device.base + (index << PAGE_SHIFT) for index in indices)
            with contextlib.suppress(ProcessLookupError):  # the process has just ended
                if pagemap.drop(spaces[0].open_pidfd(), pagemap.coalesce(addresses)):
                    return
        self.set_aside(device, indices)

    @staticmethod
    def set_aside(device: Device, indices: Iterable[int]) -> None:
        """Drop the PTEs of pages in every mm: out of the memfd and back.

        Slower than dropping PTEs (three times), but works with any number of mms
        and beside swap. A thread that touches such a page meanwhile waits for the lock.
        """
        for index in indices:
            addr = device.base + (index << PAGE_SHIFT)
            contents = revoke.hide(device, (index,))[0]
            os.pwrite(device.memfd, contents, index << PAGE_SHIFT)
            word = device.state.epcm.get(index, 0) if device.state is not None else 0
            for space in list(device.mms):
                revoke.writeprotect(space, addr, PAGE_SIZE, not epcm.allows(word, "w"))


__all__ = ["Age", "PlainAge"]
