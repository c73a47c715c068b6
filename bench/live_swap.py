"""What a fault of an enclave costs on average, beside a fault of ordinary memory in the kernel's own swap.

Both programs make the same touches (one word in a random page, half of the pages resident, the same
seed) of pages that do not compress. The peer's memory is limited by a memory cgroup and swaps to zram, with
read-ahead off: the kernel compresses where we encrypt. Everything on one processor; ours is measured
before there is swap.

Needs root, /dev/zram0 without a disk in use, and a memory cgroup (v1 or v2). What is set up here is undone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
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


def mean(output: str, hz: float) -> tuple[float, int]:
    """Microseconds of a touch that faulted, and how many there were."""
    faults = [t for t in live_faults.read(output, hz) if t > NO_FAULT]
    faults = faults[len(faults) // 8 :]  # the first ones find room
    if len(faults) < TOUCHES // 8:
        raise SystemExit(f"too few faults to measure: {len(faults)}")
    return statistics.fmean(faults), len(faults)


def main() -> int:
    if os.geteuid() or shutil.which("gcc") is None or shutil.which("mkswap") is None:
        raise SystemExit("needs root, gcc, libssl-dev, util-linux and mount")
    pin = ["taskset", "-c", str(max(os.sched_getaffinity(0)))]
    program = build() / "load"
    with tempfile.TemporaryDirectory() as directory:
        peer = Path(directory, "uffd_server")
        subprocess.run(["gcc", "-O2", "-o", peer, HERE / "uffd_server.c", "-lcrypto"], check=True)
        hz = float(live_faults.output_of(pin, peer, "loads", 16, SEED).split(maxsplit=2)[1])
        ours, theirs = [], []
        for _ in range(ROUNDS):
            room = RESIDENT + live_faults.OVERHEAD + PAGES // 512
            how = ("--epc", f"{room} pages", "--page-service", "compiled", "--report", "none", "--")
            command = (live_faults.EPCGROUP, "run", *how, program, "pairs", PAGES, TOUCHES, SEED)
            ours.append(mean(live_faults.output_of(pin, *command), hz))
            with swap(), memory_limit(RESIDENT + PROGRAM_PAGES) as group:
                join = ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh"]
                command = (peer, "swap", PAGES, RESIDENT, TOUCHES, SEED)
                theirs.append(mean(live_faults.output_of([*pin, *join], *command), hz))
    (us, faults), (they, swapped) = min(ours), min(theirs)
    print(
        f"mean fault: {us:.1f} µs, kernel's swap to zram {they:.1f} µs: {us / they:.2f}× (limit {LIMIT:g}×), "
        f"{faults} and {swapped} faults of {TOUCHES} touches, pinned, best of {ROUNDS} runs",
        flush=True,
    )
    return 0 if us <= LIMIT * they else 1


if __name__ == "__main__":
    raise SystemExit(main())
