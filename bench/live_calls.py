"""What entering, leaving and growing an enclave costs, beside the same by traps and a plain call.

entry   EENTER and EEXIT of an enclave that does nothing else, through the vDSO and by an ENCLU of the
        program's own: the median over 64 rounds. Peers: the same with --enclu trap (four task
        switches), and a call of an empty function in the same run.
leaf    EACCEPT of pages that do not exist yet (so each includes its EAUG), and EMODPE of the same
        pages: the mean over a long run, timed by the enclave. Peer: --enclu trap.
handler EENTER and EEXIT at CSSA 1, as an exception's handler: as entry. No limits: the same with SIGILL
        blocked, as the kernel leaves it to a handler of SIGILL (it is let through inside: two system
        calls); and what only traps do, ERESUME to an instruction that raises an exception, out again
        by it. Peer: an entry by traps.

Pinned to one processor, as in live_faults.py: waking up the other, halted one costs more than the
leaf. Best of three runs each.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from tests.programs.build import build  # noqa: E402 - the path first

EPCGROUP = str(Path(sys.executable).parent / "epcgroup")
ENTRY_LIMIT, LEAF_LIMIT = 1.0, 20.0  # µs
ROUNDS = 3


def measure(pin: list[str], enclu: str, *command: object) -> dict[str, float]:
    """Microseconds by name, the best of ROUNDS runs."""
    best: dict[str, float] = {}
    for _ in range(ROUNDS):
        machine = [EPCGROUP, "run", "--enclu", enclu, "--epc", "64M", "--report", "none", "--"]
        done = subprocess.run(
            [*pin, *machine, *map(str, command)],
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
            cwd=tempfile.gettempdir(),
        )
        if done.returncode:
            raise SystemExit(f"{command}: status {done.returncode}\n{done.stdout}{done.stderr[-2000:]}")
        found = {name: float(ticks) for name, ticks in map(str.split, done.stdout.splitlines())}
        hz = found.pop("hz")
        for name, ticks in found.items():
            best[name] = min(best.get(name, ticks / hz * 1e6), ticks / hz * 1e6)
    return best


def main() -> int:
    if shutil.which("gcc") is None or shutil.which("taskset") is None:
        raise SystemExit("needs gcc and taskset: apt install gcc util-linux")
    processor = max(os.sched_getaffinity(0))
    pin = ["taskset", "-c", str(processor)]
    program = build() / "calls"
    kept = True
    entries, trapped = (
        measure(pin, "fast", program, "entries", 640_000),
        measure(pin, "trap", program, "entries", 1280),
    )
    for way, title in (("vdso", "vDSO"), ("bare", "own ENCLU")):
        us, peer, plain = entries[way], trapped[way], entries["plain"]
        kept &= us <= ENTRY_LIMIT
        print(
            f"EENTER and EEXIT by {title}: {us:.2f} µs, by traps {peer:.0f} µs: 1/{peer / us:.0f} "
            f"(limit {ENTRY_LIMIT:g} µs); a plain call {plain * 1000:.1f} ns: {us / plain:.0f}×, "
            f"pinned to CPU {processor}"
        )
    leaves, stopped = (
        measure(pin, "fast", program, "leaves", 6400),
        measure(pin, "trap", program, "leaves", 1600),
    )
    for name, title in (("eaccept", "EACCEPT with EAUG"), ("emodpe", "EMODPE")):
        us, peer = leaves[name], stopped[name]
        kept &= us <= LEAF_LIMIT
        print(
            f"{title}: {us:.1f} µs, by traps {peer:.0f} µs: 1/{peer / us:.1f} (limit {LEAF_LIMIT:g} µs), "
            f"pinned to CPU {processor}"
        )
    handling = measure(pin, "fast", program, "exceptions", 1280)
    us, peer = handling["handler"], trapped["vdso"]
    kept &= us <= ENTRY_LIMIT
    print(
        f"EENTER and EEXIT at CSSA 1: {us:.2f} µs, by traps {peer:.0f} µs: 1/{peer / us:.0f} "
        f"(limit {ENTRY_LIMIT:g} µs), pinned to CPU {processor}"
    )
    us = handling["masked"]
    print(
        f"The same with SIGILL blocked: {us:.2f} µs, by traps {peer:.0f} µs: 1/{peer / us:.0f}, "
        f"pinned to CPU {processor}"
    )
    us = handling["eresume"]
    print(
        f"ERESUME and AEX: {us:.0f} µs, an entry and exit by traps {peer:.0f} µs: {us / peer:.2f}×, "
        f"pinned to CPU {processor}"
    )
    return 0 if kept else 1


if __name__ == "__main__":
    raise SystemExit(main())
