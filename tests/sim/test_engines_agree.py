"""The compiled engine is the reference engine: every observation, on random scripts.

The golden data says that both are the kernel; this says that they are each other,
where no recording goes: other trees, other sizes, the policy `standard`.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scripts import both, script, tree

from epcgroup.epc import POLICIES, V17, Policy
from epcgroup.sim.kernel import columns as c
from epcgroup.sim.kernel.machine import CompiledMachine
from epcgroup.units import PAGE_SIZE

MILLIONS = int(os.environ.get("EPCGROUP_MILLIONS", "1"))
"""Seeds of a million accesses each; one in the suite, as many as one has time for by hand."""

every_policy = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)


@every_policy
@pytest.mark.parametrize("seed", range(25))
def test_random_scripts_give_equal_results_logs_and_states(policy: Policy, seed: int) -> None:
    chance = random.Random(seed)
    epc = chance.choice((24, 48, 100, 128, 200, 400))
    reference, compiled = both(policy, epc, sgx2=chance.random() < 0.3)
    for number, operation in enumerate(script(chance, epc=epc, groups=chance.choice((1, 3, 6, 12)))):
        assert compiled.run(operation) == reference.run(operation), operation
        if number % 5 == 0:
            assert compiled.check() == reference.check(), operation
    assert compiled.check() == reference.check()


@every_policy
@pytest.mark.parametrize("seed", range(7, 7 + MILLIONS))
def test_a_million_accesses_in_a_hundred_groups_leave_equal_states(policy: Policy, seed: int) -> None:
    """While limits change, processes move, enclaves shrink, end and begin, guests come and go."""
    chance = random.Random(seed)
    reference, compiled = both(policy, 6000, sgx2=seed % 2 == 1)
    operations = Counter[str]()

    def do(operation: str) -> bool:
        seen = reference.run(operation)
        assert compiled.run(operation) == seen, operation[:60]
        operations[operation.split()[0]] += 1
        return bool(seen["r"] == 0)

    def begin(number: int) -> None:
        do(f"encl {number} {number} 128")
        do(f"addb {number} 0 100")
        do(f"init {number}")

    paths = tree(chance, 100, 4)
    leaves = [path for path in paths if not any(other.startswith(f"{path}/") for other in paths)]
    for path in paths:
        do(f"mkcg {path}")
    for path in leaves[::2]:
        do(f"max {path} {chance.randint(60, 110) * PAGE_SIZE}")
    for number, path in enumerate(paths, 1):
        do(f"proc {number} {path}")
        begin(number)
    accesses = step = 0
    while accesses < 1_000_000:
        step += 1
        number = chance.randint(1, 100)
        kind = chance.random()
        if kind < 0.93:
            reach = 128 if kind < 0.02 else 100
            pages = [min(int(chance.expovariate(0.08)), reach - 1) for _ in range(500)]
            if do(f"touch {number} {' '.join(map(str, pages))}"):
                accesses += 500
            else:  # disabled, or no page to be had
                do(f"close {number}")
                begin(number)
        elif kind < 0.95:
            limit = chance.choice((40, 70, 90, 110, 200, None))
            do(f"max {chance.choice(leaves)} {'max' if limit is None else limit * PAGE_SIZE}")
        elif kind < 0.96:
            do(f"move {number} {chance.choice(paths)}")
        elif kind < 0.97:
            do(f"close {number}")
            begin(number)
        elif kind < 0.985:
            first = chance.randrange(100)
            do(f"remove {number} {first} {chance.randint(1, 128 - first)}")
        else:
            do(f"vepc {1000 + step} {number} 40")
            do(f"vtouch {1000 + step} 0-{chance.randint(0, 39)}")
            do(f"vclose {1000 + step}")
        if step % 250 == 0:
            assert compiled.check() == reference.check(), step
    assert compiled.check() == reference.check()
    assert int(compiled.machine.g[c.EVICTED_TOTAL]) > 20_000, "the script must page"
    assert min(operations[name] for name in ("max", "move", "close", "remove", "vtouch")) > 10, operations


@every_policy
def test_refusals_agree(policy: Policy) -> None:
    """What is refused, with which number, and what had gone before it was."""
    reference, compiled = both(policy, 100)
    expected = {
        "mkcg /a": 0, "max / 4096": -2, f"max /a {2**64 - 1}": 0, f"max /a {2**64}": -34, "max /a 4k": -22,
        "proc 1 /a": 0, "proc 1 /": -17, "encl 1 1 600": 0, "encl 1 1 8": -17,
        "addb 1 0 20": 0, "add 1 30 1": 0, "add 1 10 21": -16, "add 1 25 10": -16,
        "addb 1 595 6": -22, "add 1 595 6": -22, "add 1 600 1": -22, "max /a 45056": 0, "add 1 0 1": -16,
        "init 1": 0, "add 1 40 1": -22, "vepc 1 1 4": 0, "vepc 1 1 5": -17,
    }  # fmt: skip
    for operation, result in expected.items():
        seen = reference.run(operation)
        assert compiled.run(operation) == seen, operation
        assert compiled.check() == reference.check(), operation
        assert seen["r"] == result, operation


@every_policy
def test_a_page_that_exists_costs_the_version_array_page_that_was_due(policy: Policy) -> None:
    """Both are given back, and who lost pages for them has lost them (spec 6.5: the map is asked last)."""
    reference, compiled = both(policy, 700)
    for operation in ("mkcg /a", f"max /a {513 * PAGE_SIZE}", "proc 1 /a", "encl 1 1 1024", "addb 1 0 511"):
        assert compiled.run(operation) == reference.run(operation)
    seen = reference.run("add 1 7 1")
    assert compiled.run("add 1 7 1") == seen
    assert (seen["r"], seen["n"]) == (-16, 0)
    assert seen["log"].startswith("-1:0")
    assert compiled.check() == reference.check()


@every_policy
def test_operation_counts_agree(policy: Policy) -> None:
    """What a cost profile prices: faults, retries, loads, evictions, scans, per group and enclave."""
    chance = random.Random(11)
    reference, compiled = both(policy, 200)
    for operation in script(chance, epc=200, groups=6, steps=300):
        reference.run(operation)
        compiled.run(operation)
    machine = compiled.machine
    for group in reference.machine.groups.walk(reference.machine.groups.root):
        row = machine.cg[group.id]
        counters = group.counters
        seen = [row[n] for n in (c.EVICTED, c.LOADED, c.SCANNED, c.YOUNG, c.FAULTS, c.RETRIED, c.ADDED)]
        assert seen == [
            counters.evicted,
            counters.loaded,
            counters.scanned,
            counters.young,
            counters.faults,
            counters.retried,
            counters.added,
        ], group


def test_machines_on_threads_of_their_own_do_not_disturb_each_other() -> None:
    """Compiled code holds no lock and shares nothing: nodes of a cluster run side by side."""

    def node(seed: int) -> tuple[list[int], CompiledMachine]:
        machine = CompiledMachine(2000, V17)
        for number in range(8):
            enclave = machine.create_enclave(machine.mkdir(f"/g{number}"), 500)
            machine.add_pages(enclave, 0, 500)
            machine.initialise(enclave)
        rng = np.random.default_rng(seed)
        return rng.integers(0, 8 * 512, 400_000, np.int32).tolist(), machine

    def run(seed: int) -> bytes:
        numbers, machine = node(seed)
        machine.access_numbered(np.array(numbers, np.int32) // 512 * 512 + np.array(numbers) % 500)
        return machine.cg.tobytes() + machine.en.tobytes() + machine.fl.tobytes()

    alone = [run(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, range(4))) == alone
