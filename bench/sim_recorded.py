"""The recorded workloads: the exact fault counts of the kernel's code, and its time per load fault.

The recording ran the patchset's C code on one core of a shared machine (minimum,
median and maximum of five runs); that code is not here, its figures are. Our time
must be below its minimum. Spread: our five passes, fastest and slowest. Beside it
runs a C -O2 program of our layout (policy v17), pass by pass on the same accesses;
its counts must be ours, and we must have 0.7 of its speed.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from _workloads import ACCESSES, SEED, limited, passes, xorshift
from epcgroup.epc import by_name
from epcgroup.sim.kernel import columns as c
from epcgroup.sim.kernel.machine import CompiledMachine
from sim_kernel import InC

ROOT = Path(__file__).resolve().parents[1]


def golden() -> dict[str, Any]:
    """The recorded figures: $EPCGROUP_GOLDEN, or beside the checkout."""
    place = os.environ.get("EPCGROUP_GOLDEN")
    folder = Path(place) if place else ROOT.parent / "shared" / "golden"
    found: dict[str, Any] = json.loads((folder / "speed_reference.json").read_text())["results"]
    return found


def line(what: str, ns: list[float], peer: dict[str, float], exact: str = "") -> bool:
    """Print one comparison; whether it holds."""
    best = min(ns)
    ok = best <= peer["min"]
    print(
        f"{what}: {best:.0f} ns (to {max(ns):.0f}), peer {peer['min']:.0f} ns (to {peer['max']:.0f}): "
        f"{best / peer['min']:.2f}× (limit 1×){exact}{'' if ok else '  BROKEN'}",
        flush=True,
    )
    return ok


def limited_group(
    policy: str, limit: int, pattern: str, peer: dict[str, Any], machine: CompiledMachine, enclave: int
) -> bool:
    """One limit and pattern: exact faults of the fifth pass, time per load fault."""
    name = f"limit{limit}_enclave{2 * limit}_{pattern}"
    in_c = InC(machine) if policy == "v17" else None
    times, theirs, faults = [], [], 0
    for pages in passes(limit, pattern):
        before = int(machine.g[c.LOADED_TOTAL])
        start = time.process_time()
        machine.access(enclave, pages)
        took = time.process_time() - start
        faults = int(machine.g[c.LOADED_TOTAL]) - before
        times.append(took / faults * 1e9)
        if in_c is not None:
            numbers = pages + np.int32(machine.base(enclave))
            before = in_c.counts()[1]
            start = time.process_time()
            in_c.run(numbers)
            theirs.append((time.process_time() - start) / faults * 1e9)
            assert in_c.counts()[1] - before == faults, "the C program pages as we do"
    wanted = peer[f"{name}_load_faults_of_400000"]
    assert faults == wanted, f"{policy} {name}: {faults} load faults, recorded {wanted}"
    ok = line(f"{policy} {name}", times, peer[f"{name}_ns_per_load_fault"], f", {faults} faults as recorded")
    if theirs:
        speed = statistics.median(theirs) / statistics.median(times)
        said = f"{speed:.2f}× ({statistics.median(theirs):.0f} ns)"
        print(f"  speed of C -O2: {said} (limit 0.7){'' if speed >= 0.7 else '  BROKEN'}", flush=True)
        ok = ok and speed >= 0.7
    return ok


def whole_machine(policy: str, peer: dict[str, Any]) -> bool:
    """Two enclaves that fill a small EPC twice, no limits: ksgxd does the work."""
    machine = CompiledMachine(4096, by_name(policy))
    bases = []
    for path in ("/a", "/b"):
        enclave = machine.create_enclave(machine.mkdir(path), 4096)
        machine.add_pages(enclave, 0, 4096)
        machine.initialise(enclave)
        bases.append(machine.base(enclave))
    state, times = SEED, []
    for _ in range(5):
        state, drawn = xorshift(state, ACCESSES, 8192)
        numbers = np.where(drawn < 4096, drawn + bases[0], drawn - 4096 + bases[1]).astype(np.int32)
        before = int(machine.g[c.LOADED_TOTAL])
        start = time.process_time()
        machine.access_numbered(numbers)
        times.append((time.process_time() - start) / (int(machine.g[c.LOADED_TOTAL]) - before) * 1e9)
    name = "global_4096_two_enclaves_random"
    return line(f"{policy} {name}", times, peer[f"{name}_ns_per_load_fault"])


def building(policy: str, peer: dict[str, Any]) -> bool:
    """Adding 32,768 pages in one call, and the death of the enclave, per page."""
    added, died = [], []
    small, _ = limited(policy, 8)
    small.release(0)  # compiled now
    for _ in range(5):
        machine = CompiledMachine(65536, by_name(policy))
        enclave = machine.create_enclave(machine.mkdir("/a"), 32768)
        start = time.process_time()
        machine.add_pages(enclave, 0, 32768, settle_each=False)
        middle = time.process_time()
        machine.release(enclave)
        died.append((time.process_time() - middle) / 32768 * 1e9)
        added.append((middle - start) / 32768 * 1e9)
    ok = line(f"{policy} add_page_32768_one_call", added, peer["add_page_32768_one_call_ns_per_page"])
    return line(f"{policy} enclave_death", died, peer["enclave_death_ns_per_page"]) and ok


def main() -> int:
    """All of them; 1 when one is slower than the recording, or counts differ (an error)."""
    held: list[bool] = []
    for policy in ("v5", "v17"):
        peer = golden()[policy]
        for limit in (64, 1024, 8192):
            machine, enclave = limited(policy, limit)
            for pattern in ("sequential", "random"):
                holds = limited_group(policy, limit, pattern, peer, machine, enclave)
                held.append(holds)
        held.append(whole_machine(policy, peer))
        held.append(building(policy, peer))
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
