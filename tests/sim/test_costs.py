"""The cost model against published measurements."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from epcgroup.epc import by_name
from epcgroup.errors import BadInput
from epcgroup.sim import columns as c
from epcgroup.sim import costs
from epcgroup.sim.machine import CompiledMachine

SIZES_MB = (1, 10, 80, 100, 1024, 10240)
MEASURED = {  # seconds to create an enclave of that size: VXAPPS/sgx-benchmark, data/overall.xlsx
    "j5005": (0.03, 0.10, 0.65, 1.20, 13.25, 3420),
    "w10885m": (0.04, 0.07, 0.21, 0.46, 5.42, 54.67),
    "e2276g": (0.01, 0.03, 0.20, 0.40, 5.31, 53.60),
    "icelake": (0.01, 0.03, 0.18, 0.22, 1.88, 18.64),
}


@pytest.mark.parametrize("column", range(6), ids=[f"{size}MB" for size in SIZES_MB])
@pytest.mark.parametrize("name", MEASURED)
def test_building_an_enclave_takes_what_was_measured_within_15_percent(name: str, column: int) -> None:
    """Four figures a machine: create, add, evict, first eviction; the J5005's last cell swaps to disk."""
    profile = costs.load(name)
    machine = CompiledMachine(profile.epc_pages, by_name("v5"))
    pages = SIZES_MB[column] * 256
    enclave = machine.create_enclave(machine.mkdir("/a"), pages)
    assert machine.add_pages(enclave, 0, pages) == (pages, 0)
    seconds = profile.build_ns(pages, int(machine.g[c.EVICTED_TOTAL]), first=True) / 1e9
    assert abs(seconds / MEASURED[name][column] - 1) < 0.15


def test_a_page_beyond_the_epc_costs_about_forty_thousand_cycles() -> None:
    """VAULT (ASPLOS'18) gives 40 K for a page swap; not used for the fit."""
    profile = costs.load("e2276g")
    assert profile.ns("evict") * profile.clock_ghz == pytest.approx(40_000, rel=0.15)


@pytest.mark.parametrize(("policy", "beyond"), [("v5", 1.1), ("v17", 1.02), ("standard", 1.02)])
def test_a_cyclic_scan_just_above_the_limit_misses_always(policy: str, beyond: float) -> None:
    misses = miss_ratio(policy, lambda size, n: np.arange(n) % size, beyond=beyond)
    assert misses > 0.98


def test_v5_misses_less_within_a_twentieth_of_the_limit_because_it_comes_to_ignore_age() -> None:
    """After six fruitless rounds it takes young pages, which breaks the lockstep of scan and clock hand."""
    assert miss_ratio("v5", lambda size, n: np.arange(n) % size, beyond=1.02) < 0.2


@pytest.mark.parametrize("policy", ["v5", "v17", "standard"])
@pytest.mark.parametrize("beyond", [1.25, 2.0, 4.0])
def test_uniform_access_misses_as_much_as_does_not_fit(policy: str, beyond: float) -> None:
    rng = np.random.default_rng(1)
    misses = miss_ratio(policy, lambda size, n: rng.integers(0, size, n), beyond=beyond)
    assert misses == pytest.approx(1 - 1 / beyond, abs=0.02)


def miss_ratio(policy: str, pages: object, beyond: float) -> float:
    """Loads per access of an enclave that is ``beyond`` times as large as its group's limit."""
    limit = 4000
    machine = CompiledMachine(65536, by_name(policy))
    group = machine.mkdir("/a")
    machine.set_max(group, limit * 4096)
    size = int(limit * beyond)
    enclave = machine.create_enclave(group, size)
    machine.add_pages(enclave, 0, size)
    machine.initialise(enclave)
    for _ in range(2):
        before = int(machine.g[c.LOADED_TOTAL])
        machine.access(enclave, pages(size, 200_000))  # type: ignore[operator]
    return (int(machine.g[c.LOADED_TOTAL]) - before) / 200_000


def test_every_profile_is_whole_and_gives_sources() -> None:
    for name in costs.names():
        profile = costs.load(name)
        assert profile.epc_pages > 0
        for figure in profile.cost.values():
            assert figure.mark in costs.MARKS
            assert figure.source


def test_a_profile_of_ones_own_is_read_and_its_faults_are_named(tmp_path: Path) -> None:
    text = Path(costs.__file__).with_name("profiles").joinpath("icelake.toml").read_text()
    own = tmp_path / "mine.toml"
    own.write_text(text.replace("fault = { ns = 6_250", "fault = { ns = 9_999_999"))
    with pytest.raises(BadInput, match=r"mine.toml: cost fault: want 0 <= low <= ns <= high"):
        costs.load(str(own))
    own.write_text(text.replace("load = ", "lode = "))
    with pytest.raises(BadInput, match=r"mine.toml: \[cost\] lacks load"):
        costs.load(str(own))
    with pytest.raises(BadInput, match="no cost profile 'nonsense'; there are e2276g"):
        costs.load("nonsense")
