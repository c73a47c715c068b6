"""The reference engine by itself: time per fault, per access, memory per page, flatness.

The pager is a table, so no contents move: this is what deciding costs. The load
is that of the recorded C code's own benchmark (an enclave twice its limit, and
random accesses by xorshift), so `--exact` can compare the number of load faults
with the recording: 5 passes of 400,000 accesses, the 5th counted.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import sys
import time
import tracemalloc
from collections.abc import Iterator

from epcgroup.epc import POLICIES, STANDARD, Caller, Enclave, Machine, Policy
from epcgroup.testing import TablePager, touch
from epcgroup.units import PAGE_SIZE

EPC = 65536  # the recording's, and for memory
SMALL_EPC = 16384  # for times: every page has been used before
ROUNDS = 3  # the best counts, as in the recording
PASS = 400_000
RECORDED = {  # (policy, limit): load faults of the 5th sequential and the 5th random pass
    ("v5", 64): (400000, 227564),
    ("v5", 1024): (399360, 202157),
    ("v17", 64): (400000, 215976),
    ("v17", 1024): (399360, 204443),
}

failed = False


def say(what: str, value: float, limit: float | None = None, unit: str = "µs") -> None:
    """One line per figure; a broken limit makes the run fail."""
    global failed
    bound = "" if limit is None else f" (limit {limit:g} {unit})"
    if limit is not None and value > limit:
        failed = True
        bound += "  OVER"
    print(f"{what}: {value:.2f} {unit}{bound}", flush=True)


class Bench:
    """One machine, one tenant at its limit, and as many idle groups beside it as asked."""

    def __init__(self, policy: Policy, limit: int, groups: int = 1, epc: int = SMALL_EPC) -> None:
        self.pager = TablePager()
        self.machine = Machine(epc_pages=epc, policy=policy, pager=self.pager)
        middle = groups // 2
        for number in range(groups):
            group = self.machine.groups.mkdir(f"/g{number}")
            if number == middle:
                self.group = group
        self.machine.set_max(self.group, limit * PAGE_SIZE)
        self.caller = Caller(self.group)
        self.size = 2 * limit
        self.enclave = self.build(self.size)

    def build(self, size: int) -> Enclave:
        enclave = self.machine.create_enclave(self.caller, size)
        for index in range(size):
            self.machine.add_page(self.caller, enclave, index)
            self.machine.settle()
        self.machine.initialise(enclave)
        return enclave

    def run(self, accesses: Iterator[int]) -> tuple[float, int]:
        """(seconds, accesses that faulted)."""
        machine, pager, caller, enclave = self.machine, self.pager, self.caller, self.enclave
        faults = 0
        start = time.process_time()
        for index in accesses:
            if touch(machine, pager, caller, enclave, index):
                faults += 1
                machine.settle()
        return time.process_time() - start, faults


def sequential(size: int, count: int) -> Iterator[int]:
    return (number % size for number in range(count))


def xorshift(size: int) -> Iterator[int]:
    x = 88172645463325252
    while True:
        x ^= (x << 13) & (2**64 - 1)
        x ^= x >> 7
        x ^= (x << 17) & (2**64 - 1)
        yield x % size


def load_faults(policy: Policy, limit: int, accesses: int, groups: int = 1) -> tuple[float, float]:
    """µs per load fault with its eviction: (sequential, random); the random generator's time is taken out."""
    bench = Bench(policy, limit, groups)
    bench.run(sequential(bench.size, SMALL_EPC))
    hit = resident_access(policy, 20_000)
    numbers = list(itertools.islice(xorshift(bench.size), accesses))
    in_order, at_random = [], []
    for _ in range(ROUNDS):
        seconds, faults = bench.run(sequential(bench.size, accesses))
        in_order.append(seconds / faults * 1e6)
        seconds, faults = bench.run(iter(numbers))
        at_random.append((seconds * 1e6 - (accesses - faults) * hit) / faults)
    return min(in_order), min(at_random)


def resident_access(policy: Policy, accesses: int) -> float:
    """µs per access that does not fault."""
    bench = Bench(policy, 256)
    bench.machine.set_max(bench.group, None)
    bench.run(sequential(bench.size, bench.size))
    seconds, faults = bench.run(sequential(bench.size, accesses))
    assert not faults
    return seconds / accesses * 1e6


def memory_per_page() -> float:
    """Bytes for each EPC page of a full machine: descriptor, enclave's map, pager's table."""
    gc.collect()
    tracemalloc.start()
    pager = TablePager()
    machine = Machine(epc_pages=EPC, policy=STANDARD, pager=pager)
    caller = Caller(machine.groups.root)
    enclave = machine.create_enclave(caller, EPC * 2)
    for index in range(EPC * 2):
        machine.add_page(caller, enclave, index)
    machine.settle()
    gc.collect()
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert enclave.child_count > EPC * 0.99
    evicted = enclave.evicted
    # An evicted page costs its entry in the enclave's map and nothing else.
    entry = 32 + sys.getsizeof(dict.fromkeys(range(EPC))) / EPC
    return (used - evicted * entry) / EPC


def add_and_die(policy: Policy) -> tuple[float, float]:
    """µs per page: added to an enclave, and freed by its death."""
    bench = Bench(policy, 64, epc=EPC)
    bench.machine.set_max(bench.group, None)
    enclave = bench.machine.create_enclave(bench.caller, 32768)
    start = time.process_time()
    for index in range(32768):
        bench.machine.add_page(bench.caller, enclave, index)
    built = time.process_time()
    bench.machine.release(enclave)
    return (built - start) / 32768 * 1e6, (time.process_time() - built) / 32768 * 1e6


def exact() -> None:
    """The number of load faults must be the recorded one."""
    global failed
    for (name, limit), expected in RECORDED.items():
        bench = Bench(POLICIES[name], limit, epc=EPC)
        numbers = xorshift(bench.size)
        for _ in range(5):
            in_order = bench.run(sequential(bench.size, PASS))[1]
        for _ in range(5):
            at_random = bench.run(itertools.islice(numbers, PASS))[1]
        agrees = (in_order, at_random) == expected
        failed = failed or not agrees
        print(f"{name} limit {limit}: load faults {in_order} and {at_random}, recorded {expected}: {agrees}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--exact", action="store_true", help="also count load faults as recorded (minutes)")
    args = parser.parse_args()
    print("CPU time of one thread, pinned to no CPU; the pager is a table")
    for policy in POLICIES.values():
        name = policy.name
        in_order, at_random = load_faults(policy, 1024, 20_000)
        say(f"{name}: load fault with its eviction, limit 1024, sequential", in_order, 10)
        say(f"{name}: load fault with its eviction, limit 1024, random", at_random, 10)
        say(f"{name}: resident access", resident_access(policy, 100_000), 1.5)
        added, freed = add_and_die(policy)
        say(f"{name}: page added", added)
        say(f"{name}: page freed by its enclave's death", freed)
        for groups in (1, 100, 10_000):
            say(f"{name}: load fault among {groups} groups", load_faults(policy, 256, 10_000, groups)[0], 10)
    say("memory per EPC page in use", memory_per_page(), 300, "bytes")
    if args.exact:
        exact()
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
