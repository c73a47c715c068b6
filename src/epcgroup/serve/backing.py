"""A memory controller for what enclaves evict: memory.max, memory.current, memory.events (`serve --memory`).

An evicted page is ordinary memory, which the kernel charges to a memory cgroup and
limits there (spec 3.7): 4096 bytes of ciphertext and 128 of PCMD. Here it lies in the
server, so no kernel can charge it; this does, to the group of the enclave's owner (the one
that pays for its version arrays). Nothing else is counted: a program's own memory
is the real kernel's business.

At the limit the kernel's answer is its out-of-memory killer; so is ours: the process
whose enclave has most evicted in that cgroup gets SIGKILL. Until it is gone the limit is
overdrawn, as the kernel lets a dying task overdraw it: reclaim that waited for the death
would wait inside the engine, for ever. A page of zeros costs what any page costs.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections import Counter
from typing import TYPE_CHECKING

from epcgroup.cgroupfs.extra import parse_bytes
from epcgroup.errors import Refused
from epcgroup.misc.files import words
from epcgroup.units import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from epcgroup.epc import Enclave, EpcPage
    from epcgroup.epc.group import Group
    from epcgroup.live.world import World

PAGE_COST = PAGE_SIZE + 128  # bytes: backing and PCMD of one page (spec 3.7)


class BackingMemory:
    """The memory.* files of one machine, and the rule behind them. Hold World.lock but for `write`."""

    def __init__(self, world: World) -> None:
        self.modes: Mapping[str, int] = {"memory.current": 0o444, "memory.events": 0o444, "memory.max": 0o644}
        self._world = world
        self._limits: dict[Group, int] = {}
        self._refused: Counter[Group] = Counter()
        self._kills: Counter[Group] = Counter()
        self._condemned: set[int] = set()  # enclaves whose process was killed and that are not gone yet
        world.driver.pager.on_store = self.storing

    # -- the rule ----------------------------------------------------------------

    def storing(self, page: EpcPage) -> None:
        """One more page of this enclave is written out; who is over a limit by that loses a process."""
        level = _owner(page.enclave) if self._limits else None
        while level is not None:
            limit = self._limits.get(level)
            if limit is not None and self.current(level) + PAGE_COST > limit:
                self._refused[level] += 1
                self._kill(level)
            level = level.parent

    def current(self, group: Group) -> int:
        """Bytes of backing store that the enclaves of a group and below have."""
        return PAGE_COST * sum(enclave.evicted for enclave in self._below(group))

    def _below(self, group: Group) -> Iterator[Enclave]:
        for enclave in self._world.machine.enclaves.values():
            level = _owner(enclave)
            while level is not None and level is not group:
                level = level.parent
            if level is group:
                yield enclave

    def _kill(self, group: Group) -> None:
        below = list(self._below(group))
        self._condemned.intersection_update(self._world.machine.enclaves)
        if any(enclave.id in self._condemned for enclave in below):
            return  # that one is going
        owners = {
            device.file.enclave.id: device for device in self._world.devices if device.created and device.file
        }
        for enclave in sorted(below, key=lambda enclave: -enclave.evicted):
            device = owners.get(enclave.id)
            if device is None:
                continue
            self._condemned.add(enclave.id)
            self._kills[group] += 1
            self._world.log(
                f"{group.path} is out of memory for evicted pages: process {device.opened_by} "
                f"({device.command}) is killed, it has {enclave.evicted} of them"
            )
            with contextlib.suppress(ProcessLookupError):
                os.kill(device.opened_by, signal.SIGKILL)
            return

    # -- the files (cgroupfs.extra.Extra) ---------------------------------------------

    def has(self, group: Group, name: str) -> bool:
        """The root has none of them, as the kernel's."""
        return name in self.modes and group.parent is not None

    def read(self, group: Group, name: str) -> bytes:
        """Contents of a file."""
        if name == "memory.current":
            return b"%d\n" % self.current(group)
        if name == "memory.max":
            limit = self._limits.get(group)
            return b"max\n" if limit is None else b"%d\n" % limit
        refused, kills = self._refused[group], self._kills[group]
        counts = {"low": 0, "high": 0, "max": refused, "oom": refused, "oom_kill": kills, "oom_group_kill": 0}
        return "".join(f"{key} {count}\n" for key, count in counts.items()).encode()

    def pressure(self, group: Group, name: str) -> None:
        """No file of these tells of waiting."""

    def write(self, group: Group, name: str, data: bytes) -> None:
        """memory.max: bytes with K, M or G, rounded down to pages, or max. Raises Refused."""
        if name != "memory.max":
            raise Refused(f"{name} is read-only")
        text = words(data)
        with self._world.lock:
            if text == b"max":
                self._limits.pop(group, None)
                return
            self._limits[group] = parse_bytes(text) // PAGE_SIZE * PAGE_SIZE
            if self.current(group) > self._limits[group]:
                self._kill(group)


def _owner(enclave: Enclave) -> Group | None:
    """The group that pays: the one of the enclave's oldest version array, which stays as long as it does."""
    return enclave.va_pages[0].group if enclave.va_pages else None
