"""A cost profile from what was timed on a machine: four sizes of enclaves, built and touched.

    small    a few pages: what an enclave costs whatever its size
    below    fits the EPC: the slope is a page's price; the first pass over it takes a fault
             for each page and the second none, so their difference is the fault's price
    beyond   two sizes that do not fit: the slope above that of ``below`` is an eviction's price,
             what is left a step at the first eviction; a pass over it faults,
             evicts and loads for each page, which leaves the load

Each round gives one value of each figure; the profile has their median, and as
spread the smallest and the largest. What was not measured (the tracking, EAUG, and
what lies beyond an EPC too large to fill) is another profile's, and says so.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from epcgroup.sim.costs import Figure, Profile
from epcgroup.units import PAGE_SIZE

Timed = tuple[int, float, tuple[float, ...]]
"""Pages of EPC needed, seconds to build, ns a touch in each pass."""

SMALL, BELOW, BEYOND, FURTHER = range(4)
TRACKED = 16  # pages in a batch


def heaps(epc_pages: int, most: int) -> list[int]:
    """Pages of heap of the enclaves to time; two or four, as ``most`` pages allow to go beyond the EPC."""
    below = min(epc_pages * 6 // 10, 8192, most)
    sizes = [16, below]
    if epc_pages * 3 // 2 <= most:
        sizes += [epc_pages * 5 // 4, epc_pages * 3 // 2]
    return sizes


def figures(rounds: Sequence[Sequence[Timed]], epc_pages: int, track_ns: float) -> dict[str, list[float]]:
    """Every figure that each whole round gives, in ns."""
    found: dict[str, list[float]] = {}
    for sizes in rounds:
        for name, value in _one_round(sizes, epc_pages, track_ns).items():
            found.setdefault(name, []).append(max(value, 0.0))
    return found


def _one_round(sizes: Sequence[Timed], epc_pages: int, track_ns: float) -> dict[str, float]:
    small, below = sizes[SMALL], sizes[BELOW]
    add = (below[1] - small[1]) / (below[0] - small[0]) * 1e9
    create = small[1] * 1e9 - small[0] * add
    first, hit = below[2][0], below[2][-1]
    found = {"create": create, "add": add, "fault": first - hit}
    if len(sizes) > FURTHER:
        beyond, further = sizes[BEYOND], sizes[FURTHER]
        evicted = beyond[0] - epc_pages
        evict = (further[1] - beyond[1]) / (further[0] - beyond[0]) * 1e9 - add
        found["evict"] = evict
        found["first_eviction"] = beyond[1] * 1e9 - create - beyond[0] * add - evicted * max(evict, 0.0)
        found["load"] = beyond[2][-1] - first - max(evict, 0.0) - track_ns / TRACKED
    return found


@dataclass(frozen=True, slots=True)
class Machine:
    """What was measured. ``clock_ghz``: 0 where it is not known."""

    name: str
    title: str
    epc_pages: int
    clock_ghz: float
    sgx2: bool


def profile(machine: Machine, base: Profile, found: dict[str, list[float]], how: str) -> Profile:
    """The profile of a machine; ``how`` is the source of what was measured."""
    cost: dict[str, Figure] = {}
    for figure, other in base.cost.items():
        if figure == "swap":
            continue  # a matter of the other machine's memory
        values = found.get(figure)
        if values:
            cost[figure] = Figure(statistics.median(values), min(values), max(values), "C", how)
        else:
            cost[figure] = replace(other, source=f"not measured; as {base.name}: {other.source}")
    return Profile(
        machine.name, machine.title, machine.epc_pages, machine.clock_ghz, machine.sgx2, ram=0, cost=cost
    )


def to_toml(made: Profile) -> str:
    """The profile as a file that ``costs.load`` reads."""
    said = json.dumps  # a JSON string without control characters is a TOML string
    lines = [
        "# Made by `epcgroup calibrate`. ns: the median; low and high: smallest and largest of the rounds.",
        "# Mark C: measured here.",
        f"name = {said(made.name)}",
        f"title = {said(made.title)}",
        "",
        "[machine]",
        f'epc = "{made.epc_pages * PAGE_SIZE}"',
        f"clock_ghz = {made.clock_ghz}",
        f"sgx2 = {str(made.sgx2).lower()}",
        "",
        "[cost]",
    ]
    for name, one in made.cost.items():
        numbers = ", ".join(f"{key} = {round(getattr(one, key), 1)}" for key in ("ns", "low", "high"))
        lines.append(f"{name} = {{ {numbers}, mark = {said(one.mark)}, source = {said(one.source)} }}")
    return "\n".join(lines) + "\n"
