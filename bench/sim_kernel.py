"""The compiled engine over traces, beside C, libCacheSim, cachetools and the reference engine.

Every engine takes its turn on the same accesses, with its own state; times are
processor time of one core, figures medians of the rounds. The C program has the
same layout and is built here with -O2; its counts must be equal to ours.
"""

from __future__ import annotations

import ctypes
import importlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from _workloads import in_c, limited, passes
from epcgroup.conform.epc_replay import EpcReplay
from epcgroup.epc import by_name
from epcgroup.sim.kernel import columns as c
from epcgroup.sim.kernel.machine import CompiledMachine
from epcgroup.testing import touch

PAGES = 1_000_000
ROUNDS = 3
ACCESSES = 2_000_000
Numbers = npt.NDArray[np.int32]
_broken: list[str] = []


def judge(what: str, ours: float, least: float, said: str) -> None:
    """One line; remembers a broken limit."""
    ok = ours >= least
    print(f"{what}: {said} (limit {least:g}){'' if ok else '  BROKEN'}", flush=True)
    if not ok:
        _broken.append(what)


def peer(name: str) -> Any:
    """A package to compare with; where it is missing the comparison counts as broken."""
    try:
        return importlib.import_module(name)
    except ImportError:
        print(f"{name}: not compared, not installed: python3 tools/setup.py bench  BROKEN", flush=True)
        _broken.append(name)
        return None


def tree(machine: CompiledMachine, fan: tuple[int, ...], above: str = "") -> list[int]:
    """Groups in pre-order below the root; the numbers of the leaves."""
    leaves = []
    for number in range(fan[0]):
        path = f"{above}/g{number}"
        group = machine.mkdir(path)
        leaves += tree(machine, fan[1:], path) if len(fan) > 1 else [group]
    return leaves


def loaded(
    policy: str, fan: tuple[int, ...], pages: int, hit: float
) -> tuple[CompiledMachine, list[int], int]:
    """A machine whose enclaves together have pages/hit pages; they have been paged already."""
    machine = CompiledMachine(pages, by_name(policy))
    leaves = tree(machine, fan) if fan else [machine.mkdir("/a")]
    size = int(pages / hit) // len(leaves)
    enclaves = [machine.create_enclave(group, size) for group in leaves]
    for enclave in enclaves:
        machine.add_pages(enclave, 0, size, settle_each=False)
        machine.initialise(enclave)
    return machine, enclaves, size


def uniform(machine: CompiledMachine, enclaves: list[int], size: int, count: int, seed: int) -> Numbers:
    """Accesses to any page of any enclave."""
    rng = np.random.default_rng(seed)
    bases = np.array([machine.base(enclave) for enclave in enclaves])
    return (bases[rng.integers(0, len(bases), count)] + rng.integers(0, size, count)).astype(np.int32)


def timed(run: Callable[[], object]) -> float:
    """Seconds of processor time."""
    start = time.process_time()
    run()
    return time.process_time() - start


class InC:
    """The C program, with the state that building left in a machine of ours."""

    def __init__(self, machine: CompiledMachine) -> None:
        self.c = in_c()
        self.c.make.restype = ctypes.c_void_p
        groups = int(machine.g[c.GROUPS])
        top = len(machine.fl)
        blocks = top >> c.BLOCK
        home = np.maximum(machine.ow, 0)
        rows = np.ascontiguousarray(machine.en[: machine.enclaves, [c.GROUP, c.CHILDREN]])
        parent = np.ascontiguousarray(machine.cg[:groups, c.PARENT])
        limit = np.ascontiguousarray(machine.cg[:groups, c.LIMIT])
        make = (machine.epc_pages, groups, parent.ctypes.data, limit.ctypes.data, blocks, home.ctypes.data)
        make += (len(rows), rows.ctypes.data)
        self.node = ctypes.c_void_p(self.c.make(*[ctypes.c_int64(value) for value in make]))
        for group in range(groups):
            listed = machine.reclaimable(group).astype(np.int32)
            row = machine.cg[group, [c.USAGE, c.PINS, c.CURSOR, c.PEAK]].copy()
            self.c.adopt(
                self.node,
                ctypes.c_void_p(machine.fl.ctypes.data),
                ctypes.c_int64(top),
                ctypes.c_int64(group),
                ctypes.c_void_p(listed.ctypes.data),
                ctypes.c_int64(len(listed)),
                ctypes.c_void_p(row.ctypes.data),
            )

    def run(self, numbers: Numbers) -> None:
        """Access these pages."""
        self.c.replay(self.node, ctypes.c_void_p(numbers.ctypes.data), ctypes.c_int64(len(numbers)))

    def counts(self) -> tuple[int, int, int]:
        """Hits, loads, evictions so far."""
        out = np.zeros(3, np.int64)
        self.c.counts(self.node, ctypes.c_void_p(out.ctypes.data))
        return int(out[0]), int(out[1]), int(out[2])


def against_c() -> None:
    """10^6 pages of EPC, 100 cgroups 4 deep, three hit ratios, three policies."""
    for policy in ("v17", "v5", "standard"):
        for hit, least in ((0.99, 40.0), (0.9, 20.0), (0.5, 8.0)):
            machine, enclaves, size = loaded(policy, (2, 3, 3, 4), PAGES, hit)
            machine.access_numbered(uniform(machine, enclaves, size, 2 * ACCESSES, 1))
            peer = InC(machine) if policy == "v17" else None
            ours, theirs = [], []
            before = machine.g[[c.HITS, c.LOADED_TOTAL, c.EVICTED_TOTAL]].copy()
            for number in range(ROUNDS):
                part = uniform(machine, enclaves, size, ACCESSES, 10 + number)
                ours.append(timed(partial(machine.access_numbered, part)))
                if peer is not None:
                    theirs.append(timed(partial(peer.run, part)))
            counts = machine.g[[c.HITS, c.LOADED_TOTAL, c.EVICTED_TOTAL]] - before
            rate = ACCESSES / statistics.median(ours) / 1e6
            share = counts[0] / ACCESSES / ROUNDS
            what = f"{policy}, 10^6 pages, 100 cgroups 4 deep, {share:.1%} hits"
            judge(what, rate, least, f"{rate:.0f} M accesses/s")
            if peer is not None:
                assert peer.counts() == tuple(counts), (peer.counts(), counts)
                ratio = statistics.median(theirs) / statistics.median(ours)
                judge(f"  speed of C -O2, {share:.0%} hits", ratio, 0.7, f"{ratio:.2f}×")


def against_libcachesim(folder: Path) -> None:
    """Clock, its own runner over its own trace file, the best of its hash sizes.

    Its cache is as large as what our engine keeps resident (the EPC without control
    pages and free reserve), so that both miss alike.
    """
    libcachesim = peer("libcachesim")
    if libcachesim is None:
        return
    record = np.dtype([("time", "<u4"), ("object", "<u8"), ("size", "<u4"), ("next", "<i8")])
    for pages in (10_000, PAGES):
        machine, enclaves, size = loaded("v17", (), pages, 0.9)
        warm = uniform(machine, enclaves, size, 4 * pages, 1)
        parts = [uniform(machine, enclaves, size, ACCESSES, 2 + number) for number in range(ROUNDS)]
        machine.access_numbered(warm)
        hits = int(machine.g[c.HITS])
        ours = statistics.median(timed(partial(machine.access_numbered, part)) for part in parts)
        missed = 1 - (int(machine.g[c.HITS]) - hits) / ACCESSES / ROUNDS
        resident = round((1 - missed) * size * len(enclaves))
        names = ["warm", *(f"part {number}" for number in range(ROUNDS))]
        for name, numbers in zip(names, (warm, *parts), strict=True):
            requests = np.zeros(len(numbers), record)
            requests["object"], requests["size"], requests["next"] = numbers, 1, -2
            requests.tofile(folder / name)
        best, ratio = float("inf"), 0.0
        for power in (14, 16, 18, 21, 24):
            cache = libcachesim.Clock(cache_size=resident, hashpower=power)
            took, found = [], []
            for name in names:
                reader = libcachesim.TraceReader(
                    str(folder / name), libcachesim.TraceType.ORACLE_GENERAL_TRACE
                )
                took.append(timed(lambda c=cache, r=reader, f=found: f.append(c.process_trace(r)[0])))
            if statistics.median(took[1:]) < best:
                best, ratio = statistics.median(took[1:]), statistics.mean(found[1:])
        assert abs(missed - ratio) < 0.002, (missed, ratio)
        said = f"{best / ours:.1f}× (misses {missed:.4f} and {ratio:.4f}; {best / ACCESSES * 1e9:.0f} ns and "
        said += f"{ours / ACCESSES * 1e9:.1f} ns an access)"
        judge(f"libCacheSim Clock, {pages} pages, uniform", best / ours, 5, said)


def against_reference() -> None:
    """The reference engine on a recorded workload."""
    accesses = 30_000
    machine, enclave = limited("v17", 8192)
    numbers = passes(8192, "random")[0]
    reference = EpcReplay(by_name("v17"), 65536, False)
    begin = ("mkcg /a", f"max /a {8192 * 4096}", "proc 1 /a", "encl 1 1 16384", "addb 1 0 16384", "init 1")
    for operation in begin:
        assert reference.run(operation)["r"] == 0
    machine.access(enclave, numbers)
    inside, owner = reference._enclaves[1]
    pager, engine, caller = reference._pager, reference.machine, owner.caller
    reference._pager.log = None

    def by_reference() -> None:
        for index in numbers[:accesses].tolist():
            touch(engine, pager, caller, inside, index)
            if engine.pending:
                engine.settle()

    by_reference()
    ours = statistics.median(timed(lambda: machine.access(enclave, numbers)) for _ in range(5)) / len(numbers)
    theirs = statistics.median(timed(by_reference) for _ in range(3)) / accesses
    said = f"{theirs / ours:.0f}× ({ours * 1e9:.0f} ns and {theirs * 1e6:.1f} µs an access)"
    judge("the reference engine, limit 8192, 50% misses", theirs / ours, 25, said)


def against_cachetools() -> None:
    """An LRU cache object, the usual way to simulate from Python: 99% hits of 10^6 pages, no groups."""
    cachetools = peer("cachetools")
    if cachetools is None:
        return
    machine, enclaves, size = loaded("v17", (2, 3, 3, 4), PAGES, 0.99)
    machine.access_numbered(uniform(machine, enclaves, size, 2 * ACCESSES, 1))
    cache = cachetools.LRUCache(PAGES)

    def access(numbers: list[int]) -> None:
        for number in numbers:
            if cache.get(number) is None:
                cache[number] = True

    access(uniform(machine, enclaves, size, 2 * PAGES, 1).tolist())
    ours, theirs = [], []
    for seed in range(3):
        part = uniform(machine, enclaves, size, ACCESSES, 20 + seed)
        ours.append(timed(partial(machine.access_numbered, part)) / ACCESSES)
        theirs.append(timed(partial(access, part[:200_000].tolist())) / 200_000)
    one, other = statistics.median(ours), statistics.median(theirs)
    said = f"{other / one:.0f}× ({one * 1e9:.0f} ns and {other * 1e6:.2f} µs an access)"
    judge("cachetools LRU, 10^6 pages, 99% hits", other / one, 75, said)


def main() -> int:
    """All comparisons; 1 when a limit is broken."""
    against_c()
    with tempfile.TemporaryDirectory() as name:
        against_libcachesim(Path(name))
    against_reference()
    against_cachetools()
    return 1 if _broken else 0


if __name__ == "__main__":
    sys.exit(main())
