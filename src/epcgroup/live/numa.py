"""On which NUMA node of the emulated machine a thread runs.

A processor belongs to the node that it has on this machine, if this machine has
every node that the emulated EPC is on. Else there is nothing to go by, and the
processors are dealt out to the EPC's nodes in equal parts, in order.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from epcgroup.epc import Caller

_NODES = Path("/sys/devices/system/node")
_PROCESSOR = 36  # field of /proc/TID/stat, counted from the one behind the name


def parse_cpulist(text: str) -> list[int]:
    """Processors in the kernel's notation.

    >>> parse_cpulist("0-2,5")
    [0, 1, 2, 5]
    """
    cpus: list[int] = []
    for part in filter(None, text.strip().split(",")):
        low, _, high = part.partition("-")
        cpus += range(int(low), int(high or low) + 1)
    return cpus


def of_this_machine(root: Path = _NODES) -> dict[int, int]:
    """Processor → node; empty where the kernel knows no nodes."""
    return {
        cpu: int(path.parent.name.removeprefix("node"))
        for path in root.glob("node[0-9]*/cpulist")
        for cpu in parse_cpulist(path.read_text())
    }


class Numa:
    """The nodes of one emulated machine."""

    def __init__(self, nodes: Sequence[int], here: dict[int, int] | None = None, cpus: int = 0) -> None:
        """``nodes`` of the EPC; ``here`` and ``cpus`` describe this machine (default: asked)."""
        self._nodes = sorted(set(nodes))
        self._here = of_this_machine() if here is None else here
        self._cpus = cpus or os.cpu_count() or 1
        self._same = set(self._nodes) <= set(self._here.values())

    def of_cpu(self, cpu: int) -> int:
        """The node of a processor."""
        if self._same:
            return self._here.get(cpu, self._nodes[0])
        return self._nodes[min(cpu, self._cpus - 1) * len(self._nodes) // self._cpus]

    def of_task(self, tid: int) -> int:
        """The node on which thread ``tid`` runs, or ran last; the first one if it is gone."""
        try:
            text = Path(f"/proc/{tid}/stat").read_text()
        except OSError:
            return self._nodes[0]
        return self.of_cpu(int(text.rpartition(")")[2].split()[_PROCESSOR]))

    def at(self, caller: Caller, tid: int) -> Caller:
        """``caller`` as thread ``tid``: it takes pages from where it runs."""
        return replace(caller, node=functools.partial(self.of_task, tid))
