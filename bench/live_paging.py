"""How much paging a machine gets done: rates, tails, memory. Limits are figures, not ratios; see below.

tail        four threads fault at once, half of the heap resident: the 99th percentile over the median
sequential  a heap of twice the EPC is walked in order: pages a second, each loaded and one evicted for it
add         one ADD_PAGES of 64 MiB of random bytes, measured and not
memory      what the supervisor grows by for each evicted page, of random bytes and of zeros

For measured pages the rate of SHA-256 alone, over as many bytes as EEXTEND hashes, is told too.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from bench import live_faults  # noqa: E402 - the path first
from tests.programs.build import build  # noqa: E402

TAIL = 10  # times the median, at most
SEQUENTIAL = 20_000  # pages a second, at least
ADDED = 40_000
MEMORY = 1.1 * 4096 + 128  # bytes for an evicted page, at most
SEED = 88172645463325252
ROUNDS = 3
HASHED = 5120  # bytes that EEXTEND hashes for a page

_hz = 0.0


def machine(program: Path, pages: int, *command: object) -> str:
    """What the program says on a machine of so many pages; pinned to one processor."""
    pin = ["taskset", "-c", str(max(os.sched_getaffinity(0)))]
    how = ("--epc", f"{pages} pages", "--page-service", "compiled", "--report", "none", "--")
    return live_faults.output_of(pin, live_faults.EPCGROUP, "run", *how, program, *command)


def tell(kept: bool, text: str) -> bool:
    print(f"{'' if kept else 'OVER THE LIMIT: '}{text}", flush=True)
    return kept


def tail(program: Path) -> bool:
    ratios = []
    for _ in range(ROUNDS):
        ticks = live_faults.read(machine(program, 1100, "threads", 2048, 6000, 4, SEED), _hz)
        faults = sorted(t for t in ticks if t > live_faults.NO_FAULT)
        median, p99 = faults[len(faults) // 2], faults[len(faults) * 99 // 100]
        ratios.append((p99 / median, median, p99))
    ratio, median, p99 = min(ratios)
    text = f"tail with 4 threads: median {median:.0f} µs, p99 {p99:.0f} µs: {ratio:.1f}× (limit {TAIL}×)"
    return tell(ratio <= TAIL, text)


def rate(output: str, pages: int) -> float:
    """Pages a second of what took "ns N"."""
    found = re.search(r"ns (\d+)", output)
    if found is None:
        raise SystemExit(f"no time in {output[-200:]!r}")
    return pages / int(found[1]) * 1e9


def sequential(program: Path) -> bool:
    pages, rounds = 8192, 4
    best = max(rate(machine(program, 4200, "sweep", pages, rounds), pages * rounds) for _ in range(ROUNDS))
    text = f"sequential through eviction: {best:,.0f} pages/s (at least {SEQUENTIAL:,})"
    return tell(best >= SEQUENTIAL, text)


def add(program: Path, measured: bool) -> bool:
    pages = 16384
    best = max(rate(machine(program, 20_000, "add", pages, int(measured)), pages) for _ in range(ROUNDS))
    what = "measured" if measured else "unmeasured"
    floor = ""
    if measured:
        data, started = os.urandom(HASHED), time.perf_counter()
        for _ in range(20_000):
            hashlib.sha256(data)
        floor = f"; SHA-256 alone {20_000 / (time.perf_counter() - started):,.0f}"
    return tell(best >= ADDED, f"EADD, {what}: {best:,.0f} pages/s (at least {ADDED:,}){floor}")


def memory(program: Path, zero: bool) -> bool:
    """Resident memory of the supervisor with all but 4096 of many pages evicted, less that with few."""
    small, large = (grown(program, pages, zero) for pages in (5_000, 45_000))
    each = (large - small) / 40_000
    what = "zeros" if zero else "random bytes"
    text = f"supervisor's memory for an evicted page of {what}: {each:,.0f} bytes (limit {MEMORY:,.0f})"
    return tell(each <= MEMORY, text)


def grown(program: Path, pages: int, zero: bool) -> int:
    how = ["--epc", "4096 pages", "--page-service", "compiled", "--report", "none", "--"]
    command = [live_faults.EPCGROUP, "run", *how, str(program), "idle", str(pages), str(int(zero))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdin is not None
        if running.stdout.readline() != "ready\n":
            raise SystemExit("the program did not get ready")
        status = Path(f"/proc/{running.pid}/status").read_text()
        running.stdin.close()
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def main() -> int:
    global _hz
    with tempfile.TemporaryDirectory() as directory:
        peer = Path(directory, "uffd_server")
        subprocess.run(["gcc", "-O2", "-o", peer, HERE / "uffd_server.c", "-lcrypto"], check=True)
        _hz = float(live_faults.output_of([], peer, "loads", 16, SEED).split(maxsplit=2)[1])
    program = build() / "paging"
    kept = tail(program)
    kept &= sequential(program)
    kept &= add(program, True) & add(program, False)
    kept &= memory(program, False) & memory(program, True)
    return 0 if kept else 1


if __name__ == "__main__":
    raise SystemExit(main())
