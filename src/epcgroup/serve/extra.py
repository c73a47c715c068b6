"""misc.stat, misc.pressure and misc.reclaim of the served machine (`serve --extensions`).

misc.reclaim works as memory.reclaim does: so much of the subtree is evicted now,
the writer waits, and hears EAGAIN when it came to less. It is done in rounds, with
the lock given back between them, so that page faults do not wait for all of it. Other
requests to the tree do wait, so one write goes on for half a second at most.
"""

from __future__ import annotations

import errno
import threading
import time
from typing import TYPE_CHECKING

from epcgroup.cgroupfs import psi
from epcgroup.cgroupfs.extra import parse_amount
from epcgroup.errors import Refused
from epcgroup.misc import SGX_EPC
from epcgroup.units import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from epcgroup.epc.group import Group
    from epcgroup.live.world import World

_LONGEST = 0.5  # s that one write to misc.reclaim goes on
_AMOUNTS = {"reclaimable", "secs", "va", "vepc"}  # pages now, given in bytes as misc.current is


class MachineExtra(threading.Thread):
    """The extension files of one machine; as a thread it keeps the averages of misc.pressure going."""

    def __init__(self, world: World) -> None:
        super().__init__(name="pressure", daemon=True)
        self.modes: Mapping[str, int] = {"misc.pressure": 0o644, "misc.reclaim": 0o200, "misc.stat": 0o444}
        self._world = world
        self._averages: dict[Group, psi.Averages] = {}  # under World.lock
        self._ending = threading.Event()

    def has(self, group: Group, name: str) -> bool:  # noqa: ARG002 - every group has them all
        """Every group, the root too."""
        return name in self.modes

    def read(self, group: Group, name: str) -> bytes:
        """misc.stat and misc.pressure."""
        if name == "misc.stat":
            return self._stat(group)
        if name == "misc.pressure":
            return self._pressure(group)
        raise Refused(f"{name} can only be written", errno.EINVAL)

    def pressure(self, group: Group, name: str) -> tuple[float, float] | None:
        """Of misc.pressure."""
        return self._world.stalls.read(group)[2:] if name == "misc.pressure" else None

    def write(self, group: Group, name: str, data: bytes) -> None:
        """misc.reclaim. Raises Refused: EINVAL, ERANGE, EAGAIN: less could be reclaimed."""
        if name != "misc.reclaim":
            raise Refused(f"{name} is read-only", errno.EINVAL)
        wanted = parse_amount(data) >> PAGE_SHIFT
        rounds = self._world.machine.reclaiming(group, wanted)
        done = 0
        until = time.monotonic() + _LONGEST
        while time.monotonic() < until:
            with self._world.lock:
                evicted = next(rounds, None)
            if evicted is None:
                break
            done += evicted
        if done < wanted:
            raise Refused(f"{done} of {wanted} pages of {group.path} were reclaimed", errno.EAGAIN)

    def _stat(self, group: Group) -> bytes:
        numbers = self._world.machine.stat(group)
        lines = (
            f"{SGX_EPC}.{name} {number * PAGE_SIZE if name in _AMOUNTS else number}\n"
            for name, number in numbers.items()
        )
        return "".join(lines).encode()

    # -- pressure --------------------------------------------------------------

    def _pressure(self, group: Group) -> bytes:
        averages = self._update(group)
        if averages is None:
            return psi.nothing().encode()
        _, _, some, full = self._world.stalls.read(group)
        return averages.text(some, full).encode()

    def _update(self, group: Group) -> psi.Averages | None:
        faults, _, some, full = self._world.stalls.read(group)
        averages = self._averages.get(group)
        now = time.monotonic()
        if averages is None:
            if not faults and not some:
                return None
            averages = self._averages[group] = psi.Averages(now)
        averages.update(now, some, full)
        return averages

    def end(self) -> None:
        """End the thread."""
        self._ending.set()
        self.join(5)

    def run(self) -> None:
        """A step of every average each period; groups that are gone are forgotten."""
        while not self._ending.wait(psi.PERIOD):
            with self._world.lock:  # who takes it has the page services tell what they did
                for group in self._world.stalls.groups():
                    if group.released:
                        self._averages.pop(group, None)
                    else:
                        self._update(group)
