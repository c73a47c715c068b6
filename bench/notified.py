"""What a container runtime's questions about its cgroups cost in a machine, and what everything else costs.

The same C program (notified.c) runs natively on the mounted tree, natively under a seccomp filter that
allows everything, and by `epcgroup exec`, where its calls are answered. A notified call may take 60 µs
(median over the calls that a runtime makes). The calls of a runtime that are none of ours may take 1.1
times what they take natively, as many of each as one `runc run` makes; single ones may take 1.1 times what
they take under the empty filter: without a filter nobody could be notified, and its 40 ns are a quarter of
the shortest call there is. All on one processor. (mount and clone3 fail at once here: what counts is that
they stop.)
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
EPCGROUP = str(Path(sys.executable).parent / "epcgroup")
OTHERS = ("getppid", "read", "fstat", "pread")
LIMIT_US, LIMIT_RATIO = 60.0, 1.1
ROUNDS, CALLS = 5, 400
#: How often one `runc run` makes them (counted: runc 1.1.5, a container with eight mounts).
NOTIFIED = {"clone3": 13, "mount": 9, "bpf": 7, "statfs": 5, "fstatfs": 5, "mountinfo": 1, "cgroup": 1}
#: And the others, but for those that sleep, and some that it makes once or twice.
MIXTURE = {
    "futex": 552, "rt_sigaction": 295, "rt_sigprocmask": 140, "prctl": 132, "fcntl": 119, "read": 113,
    "epoll_pwait": 101, "epoll_ctl": 73, "dup+close": 59, "mmap+mprotect+munmap": 53, "write": 40,
    "getppid": 33, "sigaltstack": 30, "fstat": 14, "lseek+getdents64": 9,
}  # fmt: skip
EMPTY_FILTER = """
import os, struct, sys
from epcgroup.live.tracing import seccomp
seccomp.install(struct.pack("<HBBI", 6, 0, 0, seccomp.RET_ALLOW))
os.execv(sys.argv[1], sys.argv[1:])
"""


def run(*words: str) -> dict[str, float]:
    """Microseconds of each call."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    return {name: int(ns) / 1000 for name, ns in (line.split() for line in done.stdout.splitlines())}


def best(runs: list[dict[str, float]]) -> dict[str, float]:
    """The least of each: the run that others on the machine disturbed least."""
    return {name: min(one[name] for one in runs) for name in runs[0]}


def main() -> int:
    if shutil.which("gcc") is None or os.geteuid() != 0:
        raise SystemExit("needs gcc, and root for the mount")
    pin = ("taskset", "-c", str(max(os.sched_getaffinity(0))))
    with tempfile.TemporaryDirectory() as directory:
        program = f"{directory}/notified"
        subprocess.run(["gcc", "-O2", "-Wall", "-Werror", "-o", program, HERE / "notified.c"], check=True)
        server = subprocess.Popen(
            [*pin, EPCGROUP, "serve", "--dir", directory, "--epc", "16M"], stderr=subprocess.DEVNULL
        )
        try:
            while not Path(directory, "control").exists():
                time.sleep(0.05)
            inside = (*pin, EPCGROUP, "exec", "--dir", directory, "--", program, "/sys/fs/cgroup", str(CALLS))
            alone = (program, f"{directory}/cgroup", str(CALLS))
            native, filtered, ours = [], [], []
            for _ in range(ROUNDS):
                native.append(run(*pin, *alone))
                filtered.append(run(*pin, sys.executable, "-c", EMPTY_FILTER, *alone))
                ours.append(run(*inside))
        finally:
            server.terminate()
            server.wait()
    us, them, floor = best(ours), best(native), best(filtered)
    for name in NOTIFIED:
        print(f"{name}: {us[name]:.1f} µs, natively on the same tree {them[name]:.1f} µs, one processor")
    median = statistics.median([us[name] for name in NOTIFIED for _ in range(NOTIFIED[name])])
    print(f"notified call of a runtime, median: {median:.1f} µs (limit {LIMIT_US:.0f} µs)")
    kept = median <= LIMIT_US
    for name in OTHERS:
        ratio = us[name] / floor[name]
        kept &= ratio <= LIMIT_RATIO
        print(
            f"{name}: {us[name]:.3f} µs, under an empty filter {floor[name]:.3f} µs: {ratio:.2f}× "
            f"(limit {LIMIT_RATIO}×); natively {them[name]:.3f} µs: {us[name] / them[name]:.2f}×"
        )
    runc, natively, empty = (
        sum(run[name] * count for name, count in MIXTURE.items()) for run in (us, them, floor)
    )
    kept &= runc <= LIMIT_RATIO * natively
    print(
        f"all calls of runc that are not ours: {runc:.0f} µs, natively {natively:.0f} µs: "
        f"{runc / natively:.2f}× (limit {LIMIT_RATIO}×); an empty filter alone: {empty / natively:.2f}×"
    )
    return 0 if kept else 1


if __name__ == "__main__":
    raise SystemExit(main())
