"""The compiled engine is the reference engine: every observation, on random scripts.

The golden data says that both are the kernel; this says that they are each other,
where no recording goes: other trees, other sizes, the policy `standard`.
"""

from __future__ import annotations

import random

import pytest
from scripts import both, script, tree

from epcgroup.epc import POLICIES, Policy
from epcgroup.sim import columns as c
from epcgroup.units import PAGE_SIZE

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
def test_a_million_accesses_in_a_hundred_groups_leave_equal_states(policy: Policy) -> None:
    chance = random.Random(7)
    paths = tree(chance, 100, 4)
    reference, compiled = both(policy, 6000)
    operations = [f"mkcg {path}" for path in paths]
    leaves = [path for path in paths if not any(other.startswith(f"{path}/") for other in paths)]
    operations += [f"max {path} {chance.randint(60, 110) * PAGE_SIZE}" for path in leaves[::2]]
    for number, path in enumerate(paths, 1):
        operations += [f"proc {number} {path}", f"encl {number} {number} 128", f"addb {number} 0 100"]
        operations += [f"init {number}"]
    for _ in range(2000):
        number = chance.randint(1, 100)
        pages = [min(int(chance.expovariate(0.08)), 99) for _ in range(500)]
        operations.append(f"touch {number} {' '.join(map(str, pages))}")
    failed = 0
    for operation in operations:
        seen = reference.run(operation)
        assert compiled.run(operation) == seen, operation[:60]
        failed += seen["r"] != 0
    assert compiled.check() == reference.check()
    assert failed < 20, "the script must run"
    assert int(compiled.machine.g[c.EVICTED_TOTAL]) > 20_000, "the script must page"


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
