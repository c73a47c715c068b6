"""How the compiled engine grows: with the EPC, with cgroups, with nodes; and how it starts."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from sim_kernel import InC, loaded, timed, uniform

ACCESSES = 2_000_000
ROUNDS = 7
_broken: list[str] = []
ROOT = Path(__file__).resolve().parents[1]
EPCGROUP = Path(sys.executable).with_name("epcgroup")


def judge(what: str, value: float, most: float, said: str) -> None:
    """One line; remembers a broken limit."""
    ok = value <= most
    print(f"{what}: {said} (limit {most:g}){'' if ok else '  BROKEN'}", flush=True)
    if not ok:
        _broken.append(what)


def ready(pages: int, fan: tuple[int, ...], policy: str) -> Callable[[int], float]:
    """A machine in its steady state at 90% hits; what tells the nanoseconds of each of its next accesses."""
    machine, enclaves, size = loaded(policy, fan, pages, 0.9)
    machine.access_numbered(uniform(machine, enclaves, size, min(2 * pages, 20_000_000), 1))

    def next_part(seed: int) -> float:
        part = uniform(machine, enclaves, size, ACCESSES, seed)
        return timed(partial(machine.access_numbered, part)) / ACCESSES * 1e9

    return next_part


def grown(what: str, least: Callable[[int], float], most: Callable[[int], float], limit: float) -> None:
    """Both in turn, so that what else the machine does meets both; the median of the ratios."""
    pairs = [(least(seed), most(seed)) for seed in range(5, 5 + ROUNDS)]
    ratio = statistics.median(more / less for less, more in pairs)
    less, more = (statistics.median(side) for side in zip(*pairs, strict=True))
    judge(what, ratio, limit, f"{ratio:.1f}× ({less:.1f} to {more:.1f} ns)")


def growth() -> None:
    """10^4 to 3.3e7 pages (128 GiB), 1 to 10,000 cgroups."""
    least, most = (ready(pages, (2, 3, 3, 4), "v17") for pages in (10_000, 33_554_432))
    grown("v17, from 10^4 to 3.3e7 pages, 90% hits", least, most, 5)
    for policy in ("v17", "v5", "standard"):
        least, most = (ready(1_000_000, fan, policy) for fan in ((1,), (10, 10, 10, 9)))
        grown(f"{policy}, from 1 to 10,000 cgroups, 10^6 pages, 90% hits", least, most, 2.5)


def memory() -> None:
    """Bytes of all arrays per EPC page, when the enclaves are as large as the EPC."""
    machine, _, _ = loaded("v17", (2, 3, 3, 4), 4_000_000, 1.0)
    tables = (machine.cg, machine.en, machine.fl, machine.ow, machine.ch, machine.nx, machine.nd, machine.tb)
    each = sum(table.nbytes for table in tables) / machine.epc_pages
    judge("memory per EPC page", each, 32, f"{each:.1f} bytes")


def two_nodes() -> None:
    """Two independent machines on two threads, wall time against one after the other.

    Beside it the C program of the same layout (see sim_kernel.py), on the same accesses in the same
    rounds: what this machine's two processors give to programs that share nothing. Only
    rounds count in which others took less than a twentieth of both cores; the first nine, of at most forty.
    """
    for pages, hit in ((10_000, 0.9), (10_000, 0.5), (1_000_000, 0.5)):
        nodes = [loaded("v17", (2, 3, 3, 4), pages, hit) for _ in range(2)]
        parts = [uniform(*node, 8 * ACCESSES, 3) for node in nodes]
        ours = [partial(node[0].access_numbered, part) for node, part in zip(nodes, parts, strict=True)]
        for run in ours:
            run()
        in_c = [partial(InC(node[0]).run, part) for node, part in zip(nodes, parts, strict=True)]
        ratios, theirs = [], []
        rounds = 0
        while len(ratios) < 9 and rounds < 40:
            rounds += 1
            speedup, peer = _speedup(ours), _speedup(in_c)
            if speedup is not None and peer is not None:
                ratios.append(speedup)
                theirs.append(peer)
        what = f"two nodes on two cores, {pages} pages each, {hit:.0%} hits"
        if len(ratios) < 9:
            print(f"{what}: no quiet machine in {rounds} rounds  BROKEN", flush=True)
            _broken.append(what)
            continue
        median = statistics.median(ratios)
        ok = median >= 1.6
        span = f"{min(ratios):.2f} to {max(ratios):.2f}, {len(ratios)} quiet rounds of {rounds}"
        in_c_span = f"{statistics.median(theirs):.2f}×, {min(theirs):.2f} to {max(theirs):.2f}"
        peers = f"C -O2 of the same layout {in_c_span}"
        print(f"{what}: {median:.2f}× ({span}; at least 1.6×; {peers}){'' if ok else '  BROKEN'}", flush=True)
        if not ok:
            _broken.append(what)


def _speedup(runs: list[Callable[[], object]]) -> float | None:
    """How much sooner two are done on two processors than one after the other; None: others ran too."""
    apart, quiet_apart = _alone(lambda: [run() for run in runs])
    together, quiet_together = _alone(lambda: _threads(runs))
    return apart / together if quiet_apart and quiet_together else None


def _threads(runs: list[Callable[[], object]]) -> None:
    threads = [threading.Thread(target=run) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _alone(run: Callable[[], object]) -> tuple[float, bool]:
    """Wall time, and whether others left the machine alone meanwhile."""
    ticks, ours, start = _busy(), time.process_time(), time.monotonic()
    run()
    took = time.monotonic() - start
    others = (_busy() - ticks) / os.sysconf("SC_CLK_TCK") - (time.process_time() - ours)
    return took, others < 0.05 * 2 * took + 0.02


def _busy() -> int:
    """Ticks that all processors were not idle since the start."""
    user, nice, system, _idle, _wait, irq, soft, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return user + nice + system + irq + soft + steal


def starting() -> None:
    """A new process to its first result, compiling and from the cache; wall and processor time."""
    program = (
        "import numpy as np\nfrom epcgroup.epc import V17\nfrom epcgroup.sim import CompiledMachine\n"
        "m = CompiledMachine(1000, V17); e = m.create_enclave(m.mkdir('/a'), 100)\n"
        "m.add_pages(e, 0, 100); m.initialise(e); m.access(e, np.arange(100)); print(m.free)"
    )
    commands = {
        "process start to first result": [sys.executable, "-c", program],
        "epcgroup sim examples/sim/kata.toml": [EPCGROUP, "sim", ROOT / "examples" / "sim" / "kata.toml"],
    }
    for name, command in commands.items():
        with tempfile.TemporaryDirectory() as cache:
            environment = {**os.environ, "EPCGROUP_CACHE_DIR": cache}
            for what, most in (("cold", 6.0), ("from cache", 1.5)):
                before = resource.getrusage(resource.RUSAGE_CHILDREN)
                start = time.monotonic()
                subprocess.run(command, env=environment, check=True, capture_output=True)
                wall = time.monotonic() - start
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
                said = f"{cpu:.1f} s of processor ({wall:.1f} s)"
                judge(f"{name}, {what}", cpu, most, said)


def main() -> int:
    """All of it; 1 when a limit is broken."""
    np.seterr(all="raise")
    starting()
    memory()
    two_nodes()
    growth()
    return 1 if _broken else 0


if __name__ == "__main__":
    sys.exit(main())
