"""What a fault of an enclave costs on average, beside a fault of ordinary memory in the kernel's own swap.

Both programs make the same touches (one word in a random page, half of the pages resident, the same
seed). The peer's memory is limited by a memory cgroup and swaps to zram, with read-ahead off: the kernel
compresses where we encrypt. What it holds makes a difference to a compressor, and none to a cipher, so there
are two peers: one whose pages do not compress (stored as they are, after the attempt), and one that is filled
as ordinary heaps are, numbers and pointers beside data: every second word is small.

Each is measured in two situations: everything bound to one processor, and free to roam, as a user's program
is. Free, ours may use two processors at once, and a wake-up may come from another one. So the processor time
of the whole runs is told too, ours with the start of the machine and the building of the enclave.

Needs root, /dev/zram0 without a disk in use, and a memory cgroup (v1 or v2). What is set up here is undone.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from bench import live_faults  # noqa: E402 - the path first
from tests.programs.build import build  # noqa: E402

LIMIT = 1.5  # times the peer
PAGES, RESIDENT, TOUCHES, SEED = 16_384, 8_192, 40_000, 88172645463325252
NO_FAULT = 2.5  # µs; the kernel's faults are that quick
PROGRAM_PAGES = 512  # of the peer beside its heap
ROUNDS = 3
FILLS = {"swap": "incompressible", "half": "half compressible"}  # modes of uffd_server.c
ZRAM = Path("/sys/block/zram0")
READ_AHEAD = Path("/proc/sys/vm/page-cluster")


@contextlib.contextmanager
def swap() -> Iterator[None]:
    """Swap on /dev/zram0, without read-ahead."""
    if not ZRAM.exists() or int((ZRAM / "disksize").read_text()):
        raise SystemExit("needs /dev/zram0, not in use: modprobe zram")
    cluster = READ_AHEAD.read_text()
    try:
        (ZRAM / "disksize").write_text(str(PAGES * 4096 * 2))
        subprocess.run(["mkswap", "/dev/zram0"], check=True, capture_output=True)
        READ_AHEAD.write_text("0")
        subprocess.run(["swapon", "/dev/zram0"], check=True)
        yield
    finally:
        subprocess.run(["swapoff", "/dev/zram0"], check=False, capture_output=True)
        READ_AHEAD.write_text(cluster)
        (ZRAM / "reset").write_text("1")


@contextlib.contextmanager
def memory_limit(pages: int) -> Iterator[Path]:
    """A memory cgroup with a limit; its directory."""
    first, second = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    if (first / "memory.limit_in_bytes").exists():
        group, limit = first / f"epcgroup-bench-{os.getpid()}", "memory.limit_in_bytes"
    elif "memory" in (second / "cgroup.subtree_control").read_text().split():
        group, limit = second / f"epcgroup-bench-{os.getpid()}", "memory.max"
    else:
        raise SystemExit("needs a memory cgroup, v1 at /sys/fs/cgroup/memory or v2 enabled at /sys/fs/cgroup")
    group.mkdir()
    try:
        (group / limit).write_text(str(pages * 4096))
        yield group
    finally:
        group.rmdir()


@dataclass(frozen=True, order=True)
class Run:
    """Mean and median of the touches that faulted, in µs, how many these were, processor time in s."""

    mean: float
    median: float
    faults: int
    processors: float


def measure(hz: float, pin: list[str], *command: object) -> Run:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    output = live_faults.output_of(pin, *command)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    faults = [t for t in live_faults.read(output, hz) if t > NO_FAULT]
    faults = faults[len(faults) // 8 :]  # the first ones find room
    if len(faults) < TOUCHES // 8:
        raise SystemExit(f"too few faults to measure: {len(faults)}")
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(statistics.fmean(faults), statistics.median(faults), len(faults), spent)


def compare(hz: float, peer: Path, pin: list[str], name: str) -> bool:
    """Measure in turns, print all figures; whether we keep the limit."""
    program = build() / "load"
    room = RESIDENT + live_faults.OVERHEAD + PAGES // 512
    how = ("--epc", f"{room} pages", "--page-service", "compiled", "--report", "none", "--")
    touches = (program, "pairs", PAGES, TOUCHES, SEED)
    ours: list[Run] = []
    theirs: dict[str, list[Run]] = {fill: [] for fill in FILLS}
    for _ in range(ROUNDS):  # (ours is measured before there is swap)
        ours.append(measure(hz, pin, live_faults.EPCGROUP, "run", *how, *touches))
        for fill, runs in theirs.items():
            with swap(), memory_limit(RESIDENT + PROGRAM_PAGES) as group:
                join = ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh"]
                runs.append(measure(hz, [*pin, *join], peer, fill, PAGES, RESIDENT, TOUCHES, SEED))
    us, kept = min(ours), True
    for fill, title in FILLS.items():
        they = min(theirs[fill])
        kept &= us.mean <= LIMIT * they.mean
        print(
            f"mean fault, {name}: {us.mean:.1f} µs (median {us.median:.1f}), kernel's swap to zram, {title}: "
            f"{they.mean:.1f} µs (median {they.median:.1f}): {us.mean / they.mean:.2f}× (limit {LIMIT:g}×); "
            f"processor time {us.processors:.1f} and {they.processors:.1f} s; "
            f"{us.faults} and {they.faults} faults of {TOUCHES} touches, best of {ROUNDS} runs",
            flush=True,
        )
    return kept


def main() -> int:
    if os.geteuid() or shutil.which("gcc") is None or shutil.which("mkswap") is None:
        raise SystemExit("needs root, gcc, libssl-dev, util-linux and mount")
    processor = max(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as directory:
        peer = Path(directory, "uffd_server")
        source = HERE / "uffd_server.c"
        subprocess.run(["gcc", "-O2", "-Wall", "-Werror", "-o", peer, source, "-lcrypto"], check=True)
        hz = float(live_faults.output_of([], peer, "loads", 16, SEED).split(maxsplit=2)[1])
        kept = compare(hz, peer, ["taskset", "-c", str(processor)], f"pinned to CPU {processor}")
        kept &= compare(hz, peer, [], "free to roam")
    return 0 if kept else 1


if __name__ == "__main__":
    raise SystemExit(main())
