"""Which page was touched when, of a running machine: what a trace for a simulation is made of.

A machine sees two kinds of touches. A load (ELDU) is one, at its exact place in the
order. A page that reclaim finds young is one too: it was touched after it was looked
at before (or loaded), nobody knows when. It is written down as early as it can have
been, because a simulation's scans come a little earlier or later than those here:
so its page is young for each scan that may find it so. Measured on our own load at
twice its limit, simulated under the same one: loads differ by 0 to 6 %; with the touch
just before the scan that found it, by 10 to 18 %, since each page that was wrongly old
costs a load that never was.

Touches of a resident page that no scan asks about leave no trace. What is touched
while an enclave is being built is left out: a simulation builds it anew.

Both kinds pass through the engine's pager, so a recording is a pager before the
pager, and an idle machine pays nothing. What is not taken in time is counted as lost
rather than letting the buffer grow with a client that fell asleep.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from epcgroup.errors import Refused

if TYPE_CHECKING:
    from epcgroup.epc import Caller, Enclave, EpcPage, Machine
    from epcgroup.live.world import World

MOST = 1 << 23  # touches that wait to be taken: 128 MiB
ENOUGH = 1 << 16  # to be worth taking while it goes on


@dataclass(frozen=True, slots=True)
class Seen:
    """What came since the last take.

    ``sizes``: enclave -> (pages from its base to its last, cgroup, command).
    """

    enclaves: array[int]
    pages: array[int]
    sizes: dict[int, tuple[int, str, str]]
    lost: int = 0


class Recording:
    """Records from its making until `stop`. One at a time for each machine."""

    def __init__(self, world: World) -> None:
        """Raises Refused while another recording is under way."""
        with world.lock:
            if isinstance(world.machine.pager, _Recorder):
                raise Refused("a recording of this machine is under way; one at a time")
            self._world = world
            self._pager = _Recorder(world.machine)
            self._release, self._augment = world.machine.release, world.machine.augment
            self._sizes: dict[int, tuple[int, str, str]] = {}
            self._counted: dict[int, tuple[int, bool]] = {}  # enclave -> its pages when its size was noted
            world.machine.pager = self._pager
            world.machine.release = self._released  # type: ignore[method-assign]
            world.machine.augment = self._augmented  # type: ignore[method-assign]

    def take(self, least: int = 0) -> Seen:
        """What was seen since the last time; nothing if that is less than ``least``. From any thread.

        The more is taken at once, the better touches found late find their place.
        """
        pager = self._pager
        if len(pager.indices) < least:
            return Seen(array("i"), array("i"), {})
        with self._world.lock:
            for enclave in self._world.machine.enclaves.values():
                self._note(enclave)
            keys, enclaves, indices, lost = pager.keys, pager.enclaves, pager.indices, pager.lost
            sizes = dict(self._sizes)
            pager.begin()
        order = sorted(range(len(keys)), key=keys.__getitem__)
        ordered = [array("i", map(column.__getitem__, order)) for column in (enclaves, indices)]
        return Seen(ordered[0], ordered[1], sizes, lost)

    def stop(self) -> None:
        """Record no more; harmless when done before."""
        machine = self._world.machine
        with self._world.lock:
            if machine.pager is self._pager:
                machine.pager = self._pager.inner
                del machine.release, machine.augment  # the class's own again

    def _released(self, enclave: Enclave) -> None:
        self._note(enclave)
        self._release(enclave)
        self._pager.forget(enclave)

    def _augmented(self, caller: Caller, enclave: Enclave, index: int) -> EpcPage:
        page = self._augment(caller, enclave, index)
        self._pager.touched(enclave, index)
        return page

    def _note(self, enclave: Enclave) -> None:
        """Its size and whose it is. Hold the lock."""
        if not enclave.pages or self._counted.get(enclave.id) == (enclave.page_cnt, enclave.released):
            return
        self._counted[enclave.id] = enclave.page_cnt, enclave.released
        known = self._sizes.get(enclave.id, (0, "/", ""))
        size, group, command = max(known[0], max(enclave.pages) + 1), *known[1:]
        for device in self._world.devices:
            if device.file is not None and device.created and device.file.enclave is enclave:
                group, command = device.group, device.command
        for view in self._world.ended:  # about to be released: its file is closed already
            if view.id == enclave.id:
                group, command = view.group, view.command
        self._sizes[enclave.id] = size, group, command


class _Recorder:
    """A pager that writes down what passes through it."""

    def __init__(self, machine: Machine) -> None:
        self.inner = inner = machine.pager
        self._clock = 0  # of loads: each is a tick
        self._looked: dict[tuple[int, int], int] = {}  # page -> when it was loaded or looked at last
        self.begin()
        # Whatever else a pager does goes straight to it.
        self.reserve, self.block, self.write_out = inner.reserve, inner.block, inner.write_out
        self.drop, self.disable = inner.drop, inner.disable

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def begin(self) -> None:
        """An empty buffer."""
        self.keys = array("q")
        self.enclaves = array("i")
        self.indices = array("i")
        self.lost = 0

    def young(self, pages: Sequence[EpcPage]) -> Sequence[bool]:
        """Pages found young were touched since they were looked at before."""
        flags = self.inner.young(pages)
        now, looked = self._clock, self._looked
        for page, young in zip(pages, flags, strict=True):
            enclave, index = page.enclave, page.index
            if page.vepc is not None or not enclave.initialised:
                continue
            key = enclave.id, index
            if young:
                self._touched(2 * looked.get(key, 0) + 1, enclave, index)
            looked[key] = now
        return flags

    def load(self, enclave: Enclave, index: int) -> None:
        """A page that is loaded is touched; a SECS comes along."""
        self.inner.load(enclave, index)
        if index >= 0:
            self.touched(enclave, index)

    def arrived(self, enclave: Enclave, indices: Sequence[int]) -> None:
        """So are pages that came without being loaded here."""
        self.inner.arrived(enclave, indices)
        for index in indices:
            self.touched(enclave, index)

    def touched(self, enclave: Enclave, index: int) -> None:
        """A touch at this very moment."""
        self._clock += 1
        self._looked[enclave.id, index] = self._clock
        self._touched(2 * self._clock, enclave, index)

    def forget(self, enclave: Enclave) -> None:
        """It is gone."""
        for key in [key for key in self._looked if key[0] == enclave.id]:
            del self._looked[key]

    def _touched(self, key: int, enclave: Enclave, index: int) -> None:
        if len(self.indices) >= MOST:
            self.lost += 1
            return
        self.keys.append(key)
        self.enclaves.append(enclave.id)
        self.indices.append(index)
