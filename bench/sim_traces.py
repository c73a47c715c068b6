"""Traces on disk: bytes an access, and how fast they are written, read, converted, replayed.

A billion accesses are extrapolated from a tenth of that (a fiftieth for what is
random): a trace is a row of independent groups of a million rows, so its size grows
in proportion, which is checked on two halves.
"""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from epcgroup.sim.traces.convert import convert
from epcgroup.sim.traces.generate import pattern
from epcgroup.sim.traces.trace import Trace, Writer

MIXED = {  # a server: a hot loop, popular pages, a window that drifts, now and then a scan
    "pattern": "phases",
    "phases": [
        {"pattern": "loop", "hot": 2000, "every": 50, "accesses": 400_000},
        {"pattern": "zipf", "alpha": 1.0, "pages": 100_000, "accesses": 400_000},
        {"pattern": "drift", "window": 3000, "accesses": 400_000},
        {"pattern": "scan", "accesses": 400_000},
    ],
}
PAGES = 250_000  # of the enclave: 1 GB
_broken: list[str] = []


def written(path: Path, spec: dict[str, object], accesses: int) -> tuple[float, float]:
    """Bytes an access, and accesses a second that the writer took."""
    made = pattern(spec, PAGES, np.random.default_rng(1))
    took = 0.0
    with Writer(path, "bench") as writer:
        for _ in range(accesses // 1_000_000):
            part = made.take(1_000_000)
            start = time.process_time()
            writer.append(0, part)
            took += time.process_time() - start
    return path.stat().st_size / accesses, accesses / took


def generated(folder: Path) -> None:
    """Sizes of synthetic traces, and the speed of both ways."""
    whole, _ = written(folder / "t", MIXED, 100_000_000)
    half, rate = written(folder / "half", MIXED, 50_000_000)
    start = time.process_time()
    assert sum(len(pages) for _, pages in Trace(folder / "t").batches()) == 100_000_000
    read = 100_000_000 / (time.process_time() - start)
    grows = whole / half
    ok = whole < 2 and abs(grows - 1) < 0.02
    print(
        f"mixed load, 10^8 accesses: {whole:.2f} bytes an access (limit 2), so 10^9 are {whole:.2f} GB; "
        f"{grows:.3f}× that of its half; written {rate / 1e6:.0f} M/s, read {read / 1e6:.0f} M/s"
        f"{'' if ok else '  BROKEN'}",
        flush=True,
    )
    if not ok:
        _broken.append("mixed")
    for name, spec in (
        ("zipf over 10^5 pages", {"pattern": "zipf", "alpha": 1.0, "pages": 100_000}),
        ("uniform over 250,000 pages (no packing can)", {"pattern": "uniform"}),
    ):
        each, _ = written(folder / "t", spec, 20_000_000)
        print(f"{name}: {each:.2f} bytes an access", flush=True)


def recorded(folder: Path) -> None:
    """A recording of a real program."""
    if not shutil.which("valgrind"):
        print("valgrind: not measured, not installed  BROKEN")
        _broken.append("valgrind")
        return
    program = [sys.executable, "-S", "-E", "-c", "sorted(range(20000))"]
    command = ["valgrind", "--tool=lackey", "--trace-mem=yes", *program]
    with (
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as run,
        (folder / "lackey").open("wb") as out,
    ):
        assert run.stderr is not None
        out.writelines(itertools.islice(run.stderr, 4_000_000))
        run.kill()
    start = time.process_time()
    accesses = convert(folder / "lackey", "lackey", folder / "t")
    took = time.process_time() - start
    each = (folder / "t").stat().st_size / accesses
    ok = each < 2
    print(
        f"Python under lackey, {accesses:,} accesses: {each:.4f} bytes an access (limit 2), "
        f"converted {accesses / took / 1e6:.1f} M/s{'' if ok else '  BROKEN'}"
    )
    if not ok:
        _broken.append("recorded")


def main() -> int:
    """All of it; 1 when a limit is broken."""
    with tempfile.TemporaryDirectory() as name:
        recorded(Path(name))
        generated(Path(name))
    return 1 if _broken else 0


if __name__ == "__main__":
    sys.exit(main())
