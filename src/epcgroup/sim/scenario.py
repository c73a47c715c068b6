"""A scenario: machine, cgroups, tenants, and what happens when. Read from TOML.

See docs/sim.md for the format and examples/ for five that answer questions.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from epcgroup.epc import Policy, by_name
from epcgroup.errors import BadInput
from epcgroup.sim.costs import Profile
from epcgroup.sim.costs import load as load_profile
from epcgroup.sim.schema import Fault, located, validate
from epcgroup.sim.traces.generate import pattern
from epcgroup.sim.traces.trace import Info, Trace
from epcgroup.units import page_ceil, pages, parse_limit, parse_size

MOST_PAGES = 2**31 - 1
"""Of an EPC or an enclave: the compiled engine counts pages in 32 bits."""
_SIZES = "at least a page (4K), less than 8T"
_TIMES = {"ns": 1.0, "us": 1e3, "ms": 1e6, "s": 1e9, "min": 60e9, "h": 3600e9, "": 1e9}


@dataclass(frozen=True, slots=True)
class Tenant:
    """A program in an enclave, or a virtual machine with EPC. Times in ns, size in pages."""

    name: str
    cgroup: str
    size: int
    kind: str = "enclave"
    dynamic: bool = False
    start: float = 0.0
    threads: int = 1
    accesses: int = 1_000_000
    access_ns: float = 100.0
    workload: dict[str, Any] = field(default_factory=lambda: {"pattern": "uniform"})
    trace: Path | None = None
    traced: int = 0  # number of the enclave in the trace


@dataclass(frozen=True, slots=True)
class Event:
    """At ``at`` ns: a limit (bytes, None for none), a move, removal of the last pages, or an exit."""

    at: float
    cgroup: str | None = None
    limit: int | None = None
    tenant: str | None = None
    move: str | None = None
    remove: int = 0  # pages
    exit: bool = False


@dataclass(frozen=True, slots=True)
class Scenario:
    """Everything that a run needs."""

    title: str
    profile: Profile
    epc_pages: int
    policy: Policy
    seed: int = 1
    duration: float = 3600e9
    quantum: float = 1e6
    sample: float = 0.0  # 0: a five-hundredth of the time that all tenants need unhindered
    steals: float = 0.0
    cgroups: tuple[tuple[str, int | None], ...] = ()
    tenants: tuple[Tenant, ...] = ()
    events: tuple[Event, ...] = ()


def parse_time(value: float | str) -> float:
    """Nanoseconds in ``"250ms"``, ``"1.5s"``, ``2`` (seconds)."""
    if isinstance(value, int | float) and value >= 0:
        return float(value) * _TIMES["s"]
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", str(value))
    if match is None or match[2] not in _TIMES:
        raise BadInput(f"{value!r} is not a time; write 250ms, 1.5s, 2min or seconds")
    return float(match[1]) * _TIMES[match[2]]


def read(path: Path) -> Scenario:
    """A scenario from a file; raises BadInput with file, line and key."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadInput(f"{path}: it is no UTF-8 text; want a scenario in TOML") from None
    return parse(text, name=str(path), folder=path.parent)


def parse(text: str, *, name: str = "scenario", folder: Path = Path()) -> Scenario:
    """A scenario from TOML; ``folder`` is where its traces and profiles are."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadInput(f"{name}: {error}") from None
    try:
        validate(data)
        return _build(data, folder)
    except Fault as fault:
        raise located(name, text, fault) from None


def _build(data: dict[str, Any], folder: Path) -> Scenario:
    machine = data["machine"]
    where = ("machine",)
    named = machine["profile"]
    local = folder / named
    profile = _at((*where, "profile"), load_profile, str(local) if named.endswith(".toml") else named)
    epc = pages(_at((*where, "epc"), parse_size, machine["epc"])) if "epc" in machine else profile.epc_pages
    if not 0 < epc <= MOST_PAGES:
        raise Fault((*where, "epc"), f"is {machine.get('epc', profile.name)!r}; want {_SIZES}")
    chosen = _at((*where, "policy"), by_name, machine.get("policy", "standard"))
    times = {
        key: _at((*where, key), parse_time, machine[key])
        for key in ("duration", "quantum", "sample")
        if key in machine
    }
    for key in ("duration", "quantum"):
        if not times.get(key, 1):
            raise Fault((*where, key), f"is {machine[key]!r}; want more than 0")
    seed = machine.get("seed", 1)
    known = {"/"}
    cgroups: list[tuple[str, int | None]] = []
    for number, one in enumerate(data.get("cgroup", [])):
        limit = _at(("cgroup", number, "max"), parse_limit, one.get("max", "max"))
        for path in _copies(one["path"], one.get("copies", 1), ("cgroup", number, "path")):
            if (path.rpartition("/")[0] or "/") not in known:
                raise Fault(("cgroup", number, "path"), f"is {path!r}; list its parent before it")
            if path in known:
                raise Fault(("cgroup", number, "path"), f"is {path!r} a second time")
            known.add(path)
            cgroups.append((path, limit))
    tenants: list[Tenant] = []
    taken: dict[str, None] = {}  # names, in their order
    for number, one in enumerate(data.get("tenant", [])):
        rng = np.random.default_rng([seed, number])
        for tenant in _tenants(one, ("tenant", number), folder, known, rng):
            if tenant.name in taken:
                raise Fault(("tenant", number, "name"), f"is {tenant.name!r} a second time")
            taken[tenant.name] = None
            tenants.append(tenant)
    if not tenants:
        raise Fault((), "has no tenant; want at least one [[tenant]]")
    events = [
        _event(one, ("event", number), known, taken) for number, one in enumerate(data.get("event", []))
    ]
    return Scenario(
        title=data.get("title", "scenario"),
        profile=profile,
        epc_pages=epc,
        policy=chosen,
        seed=seed,
        steals=1.0 if machine.get("worker") == "steals" else 0.0,
        cgroups=tuple(cgroups),
        tenants=tuple(tenants),
        events=tuple(sorted(events, key=lambda event: event.at)),
        **times,
    )


def _tenants(
    one: dict[str, Any], where: tuple[str, int], folder: Path, known: set[str], rng: np.random.Generator
) -> list[Tenant]:
    """The tenants of one table: its copies, or one for each enclave of a trace."""
    info = _trace(one, where, folder)
    chosen = [-1] if info is None else _traced(one, where, info)
    copies = one.get("copies", 1)
    if len(chosen) > 1 and copies > 1:
        raise Fault((*where, "copies"), "and several enclaves of a trace do not go together")
    count = max(copies, len(chosen))
    homes = [one.get("cgroup", "/").replace("{n}", str(number + 1)) for number in range(count)]
    for home in homes:
        if home not in known:
            raise Fault((*where, "cgroup"), f"is {home!r}; there are {_some(known)}")
    found = [_tenant(one, where, folder, info, number) for number in chosen]
    if count == 1:
        return [replace(found[0], cgroup=homes[0])]
    rate = one.get("arrivals_per_s", 0)
    gaps = rng.exponential(1e9 / rate, count) if rate else np.zeros(count)
    starts = found[0].start + np.cumsum(gaps) - (gaps[0] if rate else 0.0)
    return [
        replace(found[n % len(found)], name=f"{one['name']}-{n + 1}", cgroup=homes[n], start=float(starts[n]))
        for n in range(count)
    ]


def _tenant(
    one: dict[str, Any], where: tuple[str, int], folder: Path, info: Info | None, traced: int
) -> Tenant:
    touched = 0 if info is None else info.enclaves[traced][1]
    if "size" in one:
        size = page_ceil(_at((*where, "size"), parse_size, one["size"]))
        if not 0 < size <= MOST_PAGES:
            raise Fault((*where, "size"), f"is {one['size']!r}; want {_SIZES}")
        if size < touched:
            raise Fault((*where, "size"), f"is {size} pages; the trace touches {touched}")
    elif info is None:
        raise Fault(where, "lacks size")
    else:
        size = touched
    workload = one.get("workload", {"pattern": "uniform"})
    _at((*where, "workload"), lambda spec: pattern(spec, size, np.random.default_rng(1)), workload)
    accesses, access_ns = 1_000_000, 100.0
    if info is not None:
        accesses = info.counts.get(traced, info.accesses)
        if info.seconds and accesses:
            access_ns = info.seconds * 1e9 / accesses
    return Tenant(
        name=one["name"],
        cgroup="/",
        size=size,
        kind=one.get("kind", "enclave"),
        dynamic=one.get("dynamic", False),
        start=_at((*where, "start"), parse_time, one.get("start", 0)),
        threads=one.get("threads", 1),
        accesses=one.get("accesses", accesses),
        access_ns=float(one.get("access_ns", access_ns)),
        workload=workload,
        trace=folder / one["trace"] if "trace" in one else None,
        traced=max(traced, 0),
    )


def _trace(one: dict[str, Any], where: tuple[str, int], folder: Path) -> Info | None:
    if "trace" not in one:
        if "enclave" in one:
            raise Fault((*where, "enclave"), "is one of a trace, and there is no trace")
        return None
    return _at((*where, "trace"), lambda name: Trace(folder / name).info, one["trace"])  # type: ignore[no-any-return]


def _traced(one: dict[str, Any], where: tuple[str, int], info: Info) -> list[int]:
    """Numbers of the enclaves of a trace that a table of tenants means."""
    numbers = sorted(info.enclaves)
    if not numbers:
        raise Fault((*where, "trace"), "has no enclaves")
    wanted = one.get("enclave")
    if wanted == "*":
        return numbers
    if wanted is None and len(numbers) == 1:
        return numbers
    there = [number for number in numbers if wanted in (number, info.enclaves[number][0])]
    if len(there) != 1:
        names = ", ".join(info.enclaves[number][0] for number in numbers[:20])
        said = f"is {wanted!r}" if wanted is not None else "is not given"
        raise Fault((*where, "enclave"), f"{said}; there are {names}; or * for a tenant of each")
    return there


def _some(known: set[str]) -> str:
    return ", ".join(sorted(known)[:20])


def _copies(path: str, count: int, where: tuple[str | int, ...]) -> list[str]:
    if count > 1 and "{n}" not in path:
        raise Fault(where, f"is {path!r}; of several copies each needs its own path, as in /pods/p{{n}}")
    return [path.replace("{n}", str(number + 1)) for number in range(count)]


def _event(one: dict[str, Any], where: tuple[str, int], known: set[str], tenants: Collection[str]) -> Event:
    at = _at((*where, "at"), parse_time, one["at"])
    said = sorted(key for key in one if key != "at" and one[key] is not False)
    if said not in (["cgroup", "max"], ["move", "tenant"], ["remove", "tenant"], ["exit", "tenant"]):
        raise Fault(
            where, f"has {', '.join(said)}; want cgroup and max, or tenant and one of move, remove, exit"
        )
    if "cgroup" in one:
        if one["cgroup"] not in known:
            raise Fault((*where, "cgroup"), f"is {one['cgroup']!r}; there are {_some(known)}")
        return Event(at, cgroup=one["cgroup"], limit=_at((*where, "max"), parse_limit, one["max"]))
    if one["tenant"] not in tenants:
        raise Fault((*where, "tenant"), f"is {one['tenant']!r}; there are {', '.join(list(tenants)[:20])}")
    if "move" in one and one["move"] not in known:
        raise Fault((*where, "move"), f"is {one['move']!r}; there are {_some(known)}")
    removed = page_ceil(_at((*where, "remove"), parse_size, one["remove"])) if "remove" in one else 0
    return Event(at, tenant=one["tenant"], move=one.get("move"), remove=removed, exit=one.get("exit", False))


def _at(where: tuple[str | int, ...], parse_value: Any, value: Any) -> Any:
    # A value that its own parser refuses is a fault of that place in the file.
    try:
        return parse_value(value)
    except BadInput as error:
        raise Fault(where, f": {error}") from None
