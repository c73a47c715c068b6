"""What the files of `epcgroup serve` cost, beside the least that C and libfuse 3 need (fuse_server.c).

file      open + read + close of a misc file: ours and the peer's in turns, the best round of each
parallel  the same by eight clients at once: every answer is right, and we lose no more by it than the peer
growth    mkdir, the same read at random places, and a walk (readdir of every cgroup, for each of them), in a
          tree of 10 cgroups and in one of 10,000
start     of a server that finds a tree of 10,000 cgroups, and the memory it then has

Everything is pinned to one processor, servers and clients, where a wake-up costs least.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path

HERE = Path(__file__).resolve().parent
EPCGROUP = str(Path(sys.executable).parent / "epcgroup")
FILE_LIMIT, GROWTH_LIMIT, PARALLEL_LIMIT = 2.0, 2.0, 1.1
START_LIMIT, MEMORY_LIMIT = 5.0, 256.0  # seconds, MB
FEW, MANY, CLIENTS = 10, 10_000, 8
ROUNDS, READS, SAMPLE = 7, 1500, 200


def build(directory: Path) -> Path:
    """The peer, compiled."""
    flags = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "fuse3"], capture_output=True, text=True, check=False
    )
    if shutil.which("gcc") is None or flags.returncode:
        raise SystemExit(
            "needs gcc and libfuse 3 to compile the peer: apt-get install gcc pkg-config libfuse3-dev"
        )
    server = directory / "fuse_server"
    source = str(HERE / "fuse_server.c")
    subprocess.run(
        ["gcc", "-O2", "-Wall", "-Werror", "-o", server, source, *flags.stdout.split()], check=True
    )
    return server


@contextlib.contextmanager
def running(words: list[str], mount: Path) -> Iterator[tuple[subprocess.Popen[bytes], float]]:
    """A server and the seconds it took to mount; ended and unmounted at the end."""
    started = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=said)
        try:
            while not os.path.ismount(mount):
                if process.poll() is not None:
                    said.seek(0)
                    raise SystemExit(f"{words[0]} ended: {said.read().decode()}")
                time.sleep(0.005)
            yield process, time.perf_counter() - started
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
            subprocess.run(["fusermount3", "-uqz", str(mount)], stderr=subprocess.DEVNULL, check=False)


def read_once(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)


def reads(path: str, count: int) -> float:
    """µs for one open + read + close, the mean of ``count``."""
    expected = read_once(path)
    started = time.perf_counter()
    for _ in range(count):
        if read_once(path) != expected:
            raise SystemExit(f"{path} changed while nobody wrote")
    return (time.perf_counter() - started) / count * 1e6


def together(path: str) -> float:
    """µs for one answer when eight clients ask at once."""
    with get_context("fork").Pool(CLIENTS) as pool:
        pool.starmap(reads, [(path, 10)] * CLIENTS)  # everybody is there
        started = time.perf_counter()
        pool.starmap(reads, [(path, READS // 2)] * CLIENTS, chunksize=1)
        return (time.perf_counter() - started) / (CLIENTS * READS // 2) * 1e6


def per(what: Callable[[], object], count: int) -> float:
    started = time.perf_counter()
    what()
    return (time.perf_counter() - started) / count * 1e6


def costs(mount: Path, cgroups: int) -> dict[str, float]:
    """µs for mkdir, a read, and a cgroup of a walk, in a tree with so many; best of three."""
    chance = random.Random(cgroups)
    names = [mount / f"new{number}" for number in range(SAMPLE)]
    best: dict[str, float] = {}
    for _ in range(3):
        paths = [f"{mount}/g{chance.randrange(cgroups)}/misc.current" for _ in range(SAMPLE)]
        walks = max(1, 2000 // cgroups)
        figures = {
            "mkdir": per(lambda: [name.mkdir() for name in names], SAMPLE),
            "rmdir": per(lambda: [name.rmdir() for name in names], SAMPLE),
            "read": per(lambda paths=paths: [read_once(path) for path in paths], SAMPLE),
            "walk": per(lambda walks=walks: [list(os.walk(mount)) for _ in range(walks)], walks * cgroups),
        }
        best = {what: min(us, best.get(what, us)) for what, us in figures.items()}
    return best


def make(mount: Path, numbers: range) -> None:
    for number in numbers:
        (mount / f"g{number}").mkdir()


def verdict(holds: bool) -> str:
    return "" if holds else "  OVER THE LIMIT"


def memory_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def main() -> int:
    cpu = max(os.sched_getaffinity(0))
    kept = True
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        peer_mount, ours = directory / "peer", directory / "ours"
        peer_mount.mkdir()
        peer = build(directory)
        os.sched_setaffinity(0, {cpu})  # whatever is started from here too
        serve = [EPCGROUP, "serve", "--dir", str(ours), "--epc", "64M"]
        mount = ours / "cgroup"
        with running(serve, mount) as (_, _):
            file = f"{mount}/misc.current"
            with running([str(peer), str(peer_mount)], peer_mount):
                other = f"{peer_mount}/misc.current"
                pairs = [(reads(file, READS), reads(other, READS)) for _ in range(ROUNDS)]
                crowds = [(together(file), together(other)) for _ in range(ROUNDS // 2)]
            us, floor = (min(column) for column in zip(*pairs, strict=True))
            kept &= us <= FILE_LIMIT * floor
            print(
                f"open + read + close: {us:.1f} µs, C and libfuse {floor:.1f} µs: {us / floor:.2f}× "
                f"(limit {FILE_LIMIT:.0f}×), CPU {cpu}, best of {ROUNDS}{verdict(us <= FILE_LIMIT * floor)}"
            )
            eight, floor8 = (min(column) for column in zip(*crowds, strict=True))
            lost = (eight / us) / (floor8 / floor)
            good = eight <= FILE_LIMIT * floor8 and lost <= PARALLEL_LIMIT
            kept &= good
            print(
                f"{CLIENTS} clients at once: {eight:.1f} µs an answer, C and libfuse {floor8:.1f} µs: "
                f"{eight / floor8:.2f}× (limit {FILE_LIMIT:.0f}×); that is {eight / us:.2f}× of one client, "
                f"C {floor8 / floor:.2f}× (limit {PARALLEL_LIMIT} of C's){verdict(good)}"
            )
            make(mount, range(FEW))
            few = costs(mount, FEW)
            make(mount, range(FEW, MANY))
            many = costs(mount, MANY)
            for what, before in few.items():
                good = many[what] <= GROWTH_LIMIT * before
                kept &= good
                print(
                    f"{what} among {MANY}: {many[what]:.0f} µs, among {FEW} {before:.0f} µs: "
                    f"{many[what] / before:.2f}× (limit {GROWTH_LIMIT:.0f}×){verdict(good)}"
                )
        with running(serve, mount) as (process, seconds):
            size = memory_mb(process.pid)
            good = seconds <= START_LIMIT and size <= MEMORY_LIMIT and (mount / f"g{MANY - 1}").is_dir()
            kept &= good
            print(
                f"start with {MANY} cgroups: {seconds:.1f} s (limit {START_LIMIT:.0f} s), {size:.0f} MB "
                f"(limit {MEMORY_LIMIT:.0f} MB){verdict(good)}"
            )
    return 0 if kept else 1


if __name__ == "__main__":
    raise SystemExit(main())
