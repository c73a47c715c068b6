"""The cost model against published measurements."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from epcgroup.conform.epc_replay import EpcReplay
from epcgroup.epc import STANDARD, V5, V17, Policy, by_name
from epcgroup.errors import BadInput
from epcgroup.sim import costs
from epcgroup.sim.kernel import columns as c
from epcgroup.sim.kernel.machine import CompiledMachine

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


V5_BY_AGE = replace(V5, ignore_age_after=None)


@pytest.mark.parametrize(
    ("policy", "beyond"),
    [*itertools.product((V17, STANDARD, V5_BY_AGE), (1.02, 1.1, 1.2, 2.0)), (V5, 1.2), (V5, 2.0)],
)
def test_a_cyclic_scan_just_above_the_limit_misses_always(policy: Policy, beyond: float) -> None:
    """Within 2 %; under v5 only from a fifth above, see the next test."""
    assert miss_ratio(policy, in_order, beyond=beyond) > 0.98


def test_v5_misses_less_within_a_tenth_of_the_limit_because_it_comes_to_ignore_age() -> None:
    """After six fruitless rounds it takes young pages, which breaks the lockstep of scan and clock hand.

    With that one knob off v5 misses always, as above. It is no fault of the compiled engine: the
    reference engine, which agrees with the kernel's code, loads exactly as often.
    """
    assert miss_ratio(V5, in_order, beyond=1.02) < 0.2
    assert miss_ratio(V5, in_order, beyond=1.1) < 0.8
    limit, size, scans = 400, 408, 40
    reference = EpcReplay(V5, 4096, False)
    for operation in ("mkcg /a", f"max /a {limit * 4096}", "proc 1 /a", f"encl 1 1 {size}"):
        assert reference.run(operation)["r"] == 0
    for operation in (f"addb 1 0 {size}", "init 1", *[f"touch 1 0-{size - 1}"] * scans):
        assert reference.run(operation)["r"] == 0
    compiled = limited(V5, limit, size)
    for _ in range(scans):
        compiled.access(0, np.arange(size))
    loads = int(compiled.g[c.LOADED_TOTAL])
    assert loads == reference.check()["loaded_total"]
    assert loads < 0.5 * scans * size


@pytest.mark.parametrize("policy", [V5, V17, STANDARD], ids=lambda policy: policy.name)
@pytest.mark.parametrize("beyond", [1.25, 2.0, 4.0])
def test_uniform_access_misses_as_much_as_does_not_fit(policy: Policy, beyond: float) -> None:
    rng = np.random.default_rng(1)
    misses = miss_ratio(policy, lambda size, n: rng.integers(0, size, n), beyond=beyond)
    assert misses == pytest.approx(1 - 1 / beyond, abs=0.02)


def in_order(size: int, count: int) -> npt.NDArray[np.int64]:
    """Whole scans, about so many accesses."""
    return np.arange(count // size * size) % size


def limited(policy: Policy, limit: int, size: int) -> CompiledMachine:
    """A machine with one enclave of ``size`` pages in a group that may have ``limit``."""
    machine = CompiledMachine(65536, policy)
    group = machine.mkdir("/a")
    machine.set_max(group, limit * 4096)
    enclave = machine.create_enclave(group, size)
    machine.add_pages(enclave, 0, size)
    machine.initialise(enclave)
    return machine


def miss_ratio(policy: Policy, pages: Callable[[int, int], npt.NDArray[np.int64]], beyond: float) -> float:
    """Loads per access of an enclave that is ``beyond`` times as large as its group's limit."""
    size = int(4000 * beyond)
    machine = limited(policy, 4000, size)
    for _ in range(2):
        before = int(machine.g[c.LOADED_TOTAL])
        touched = pages(size, 200_000)
        machine.access(0, touched)
    return (int(machine.g[c.LOADED_TOTAL]) - before) / len(touched)


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
    own.write_text(text.replace("fault = { ns = 6_250", 'fault = { ns = "6_250"'))
    with pytest.raises(BadInput, match=r"mine.toml: cost fault: want numbers for low, ns and high"):
        costs.load(str(own))
    own.write_text("cost = 3")
    with pytest.raises(BadInput, match=r"mine.toml: want the tables \[machine\] and \[cost\]"):
        costs.load(str(own))
    for machine, said in (
        ('epc = "lots"', r"\[machine\] epc: 'lots' is not a size"),
        ('epc = "4095"', r"\[machine\] epc is '4095'; want at least a page"),
        ('epc = "1G"\nsgx2 = "no"', r"\[machine\] sgx2 is 'no'; want true or false"),
        ('epc = "1G"\nclock = 3', r"\[machine\] has clock; there are epc, clock_ghz"),
    ):
        own.write_text(f"[machine]\n{machine}\n{text[text.index('[cost]') :]}")
        with pytest.raises(BadInput, match=f"mine.toml: {said}"):
            costs.load(str(own))
    own.write_bytes(b"\xff")
    with pytest.raises(BadInput, match=r"mine.toml: it is no UTF-8 text"):
        costs.load(str(own))
    with pytest.raises(BadInput, match="no cost profile 'nonsense'; there are e2276g"):
        costs.load("nonsense")
