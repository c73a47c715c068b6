"""Cost profiles: what the operations cost on a class of machines, each figure with its source.

A profile is a TOML file; its figures are nanoseconds with a spread, a source and
a mark that says how well the source was read. Those of this package are named
by machine (``e2276g``, ``icelake`` …) and by Azure size (``azure-dc4s-v3``); a path
names one of the user's own.
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from epcgroup.errors import BadInput
from epcgroup.sim.kernel import columns as c
from epcgroup.units import PAGE_SHIFT, pages, parse_size

_HERE = Path(__file__).with_name("profiles")
REQUIRED = ("create", "add", "evict", "first_eviction", "fault", "load", "track", "augment")
MARKS = {
    "V": "read",
    "A": "abstract read",
    "M": "from memory of the paper",
    "F": "fitted here",
    "C": "measured by the user",
}


@dataclass(frozen=True, slots=True)
class Figure:
    """One cost in nanoseconds, with its spread and source."""

    ns: float
    low: float
    high: float
    mark: str
    source: str


@dataclass(frozen=True, slots=True)
class Profile:
    """One class of machines. ``ram``: pages before building swaps to disk, 0 for never."""

    name: str
    title: str
    epc_pages: int
    clock_ghz: float
    sgx2: bool
    ram: int
    cost: dict[str, Figure]

    def ns(self, name: str) -> float:
        """The cost of one operation."""
        return self.cost[name].ns if name in self.cost else 0.0

    def times(self, access_ns: float, *, steals: float = 0.0) -> npt.NDArray[np.float64]:
        """What :func:`.replay.replay` prices an access with; ``steals``: see there AWAY."""
        times = np.zeros(c.TIMES)
        for column, value in (
            (c.DEADLINE, np.inf),
            (c.ACCESS_NS, access_ns),
            (c.FAULT_NS, self.ns("fault")),
            (c.LOAD_NS, self.ns("load")),
            (c.EVICT_NS, self.ns("evict")),
            (c.AUGMENT_NS, self.ns("augment")),
            (c.BATCH_NS, self.ns("track")),
            (c.AWAY, steals),
        ):
            times[column] = value
        return times

    def build_ns(self, added: int, evicted: int, *, first: bool) -> float:
        """Time to create an enclave and add pages, while so many pages were evicted.

        ``first``: these were the first evictions of the machine.
        """
        beyond = max(0, added - self.ram) if self.ram else 0
        return (
            self.ns("create")
            + added * self.ns("add")
            + evicted * self.ns("evict")
            + (self.ns("first_eviction") if first and evicted else 0.0)
            + beyond * self.ns("swap")
        )


def names() -> list[str]:
    """The profiles of this package."""
    own = [path.stem for path in sorted(_HERE.glob("*.toml")) if path.stem != "azure"]
    return own + [f"azure-{size}" for sizes in _azure().values() for size in sizes]


def load(name: str) -> Profile:
    """A profile by name or path; raises BadInput naming what is wrong in it."""
    for base, sizes in _azure().items():
        if name.removeprefix("azure-") in sizes and name.startswith("azure-"):
            mebibytes = int(sizes[name.removeprefix("azure-")])
            like = load(base)
            epc_pages = mebibytes << 20 >> PAGE_SHIFT
            return replace(like, name=name, title=f"{name}: {like.title}", epc_pages=epc_pages)
    path = Path(name) if name.endswith(".toml") else _HERE / f"{name}.toml"
    if name == "azure" or not path.exists():
        raise BadInput(f"no cost profile {name!r}; there are {', '.join(names())}, or give a path to a .toml")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadInput(f"{path}: it is no UTF-8 text; want a cost profile in TOML") from None
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"{path}: {error}") from None
    return _profile(path, data)


def _profile(path: Path, data: dict[str, Any]) -> Profile:
    cost, machine = data.get("cost", {}), data.get("machine", {})
    if not isinstance(cost, dict) or not isinstance(machine, dict):
        raise BadInput(f"{path}: want the tables [machine] and [cost]")
    missing = [name for name in REQUIRED if name not in cost]
    if missing:
        raise BadInput(f"{path}: [cost] lacks {', '.join(missing)}")
    figures = {name: _figure(path, name, what) for name, what in cost.items()}
    unknown = machine.keys() - {"epc", "clock_ghz", "sgx2", "ram"}
    if unknown:
        names = ", ".join(sorted(unknown))
        raise BadInput(f"{path}: [machine] has {names}; there are epc, clock_ghz, sgx2, ram")
    if "epc" not in machine:
        raise BadInput(f"{path}: [machine] lacks epc")
    clock, sgx2 = machine.get("clock_ghz", 0), machine.get("sgx2", False)
    if not isinstance(clock, int | float):
        raise BadInput(f"{path}: [machine] clock_ghz is {clock!r}; want a number")
    if not isinstance(sgx2, bool):
        raise BadInput(f"{path}: [machine] sgx2 is {sgx2!r}; want true or false")
    return Profile(
        name=str(data.get("name", path.stem)),
        title=str(data.get("title", path.stem)),
        epc_pages=_pages(path, machine, "epc"),
        clock_ghz=float(clock),
        sgx2=sgx2,
        ram=_pages(path, machine, "ram") if "ram" in machine else 0,
        cost=figures,
    )


def _pages(path: Path, machine: dict[str, Any], name: str) -> int:
    try:
        found = pages(parse_size(str(machine[name])))
    except BadInput as error:
        raise BadInput(f"{path}: [machine] {name}: {error}") from None
    if not found:
        raise BadInput(f"{path}: [machine] {name} is {machine[name]!r}; want at least a page (4K)")
    return found


def _figure(path: Path, name: str, what: Any) -> Figure:
    wanted = {"ns", "low", "high", "mark", "source"}
    if not isinstance(what, dict) or what.keys() != wanted:
        raise BadInput(f"{path}: cost {name} has {sorted(what)}; want {', '.join(sorted(wanted))}")
    if not all(isinstance(what[key], int | float) for key in ("low", "ns", "high")):
        raise BadInput(f"{path}: cost {name}: want numbers for low, ns and high, got {what}")
    if not 0 <= what["low"] <= what["ns"] <= what["high"] < math.inf:
        raise BadInput(f"{path}: cost {name}: want 0 <= low <= ns <= high, got {what}")
    if what["mark"] not in MARKS or not what["source"]:
        marks = ", ".join(MARKS)
        raise BadInput(f"{path}: cost {name}: mark is {what['mark']!r}; want one of {marks}, and a source")
    return Figure(float(what["ns"]), float(what["low"]), float(what["high"]), what["mark"], what["source"])


def _azure() -> dict[str, dict[str, Any]]:
    return tomllib.loads((_HERE / "azure.toml").read_text(encoding="utf-8"))
