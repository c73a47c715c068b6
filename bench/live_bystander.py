"""What being in a machine costs a program that has no enclave: its system calls, with and without us.

Peers: the same program native, and under the smallest filter there is (one instruction: allow), in the
same run; processor time, the best of alternating runs on one processor. A filter, whatever it says, costs a
system call some 40 ns: a quarter of the cheapest call, an eighth of one that does something. So the limit is
against that floor. A system that is served whole (`serve --system`) pays nothing before it opens a device.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
EPCGROUP = str(Path(sys.executable).parent / "epcgroup")
LIMIT = 1.1
ROUNDS = 6


def measure(*command: str) -> dict[str, float]:
    """Nanoseconds by name."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    return {name: float(ns) for name, ns in map(str.split, done.stdout.splitlines())}


def main() -> int:
    if shutil.which("gcc") is None or shutil.which("taskset") is None:
        raise SystemExit("needs gcc and taskset: apt install gcc util-linux")
    best: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as directory:
        program = str(Path(directory, "bystander"))
        subprocess.run(["gcc", "-O2", "-o", program, HERE / "_bystander.c"], check=True, timeout=60)
        pinned = ["taskset", "-c", str(max(os.sched_getaffinity(0))), program]
        machine = [EPCGROUP, "run", "--epc", "16M", "--report", "none", "--"]
        ways = {"native": pinned, "filter": [*pinned, "filtered"], "ours": [*machine, *pinned]}
        for _ in range(ROUNDS):
            for way, words in ways.items():
                for name, ns in measure(*words).items():
                    times = best.setdefault(name, {})
                    times[way] = min(times.get(way, ns), ns)
    for name, ns in best.items():
        floor, native = ns["ours"] / ns["filter"], ns["ours"] / ns["native"]
        print(
            f"{name}: {ns['ours']:.0f} ns, smallest filter {ns['filter']:.0f} ns: {floor:.2f}× "
            f"(limit {LIMIT}×), native {ns['native']:.0f} ns: {native:.2f}×"
        )
    return int(any(ns["ours"] > LIMIT * ns["filter"] for ns in best.values()))


if __name__ == "__main__":
    raise SystemExit(main())
