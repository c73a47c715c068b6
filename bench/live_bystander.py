"""What being in a machine costs a program that has no enclave: its system calls, with and without us.

Peer: the same program native, in the same run; the best of alternating runs. `run` (and `exec`) put a filter
over the program, which the kernel asks once per number and remembers. The limit is 1.1 for calls that do
something (a read of 4 KiB, a pipe), and for the vDSO's clock; the cheapest call there is shows the filter
itself.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
EPCGROUP = str(Path(sys.executable).parent / "epcgroup")
LIMIT = 1.1
ROUNDS = 5
JUDGED = ("read-4K", "pipe-1K", "clock")


def measure(*command: str) -> dict[str, float]:
    """Nanoseconds by name."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    return {name: float(ns) for name, ns in map(str.split, done.stdout.splitlines())}


def main() -> int:
    if shutil.which("gcc") is None:
        raise SystemExit("needs gcc: apt install gcc")
    kept = True
    with tempfile.TemporaryDirectory() as directory:
        program = str(Path(directory, "bystander"))
        subprocess.run(["gcc", "-O2", "-o", program, HERE / "_bystander.c"], check=True, timeout=60)
        native: dict[str, float] = {}
        ours: dict[str, float] = {}
        machine = [EPCGROUP, "run", "--epc", "16M", "--report", "none", "--"]
        for _ in range(ROUNDS):
            for kept_by, words in ((native, [program]), (ours, [*machine, program])):
                for name, ns in measure(*words).items():
                    kept_by[name] = min(kept_by.get(name, ns), ns)
    for name, ns in ours.items():
        ratio = ns / native[name]
        limit = f" (limit {LIMIT}×)" if name in JUDGED else ""
        print(
            f"{name}: {ns:.0f} ns, native {native[name]:.0f} ns: {ratio:.2f}×{limit}, best of {ROUNDS} each"
        )
        kept &= name not in JUDGED or ratio <= LIMIT
    return 0 if kept else 1


if __name__ == "__main__":
    raise SystemExit(main())
