"""The fit of a cost profile: what went in comes out, what was not measured says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from epcgroup.sim import calibrate, costs
from epcgroup.sim.calibrate import Machine, Timed

EPC = 24_000
TRUE = {
    "create": 7e6,
    "add": 9_500.0,
    "evict": 11_250.0,
    "first_eviction": 128e6,
    "fault": 5_000.0,
    "load": 3_200.0,
}
TRACK, HIT = 2_100.0, 700.0


def timed(heap: int, slower: float = 1.0) -> Timed:
    """What a machine of these costs would take."""
    pages = heap + 10
    evicted = max(pages - EPC, 0)
    build = TRUE["create"] + pages * TRUE["add"] + evicted * TRUE["evict"]
    build += TRUE["first_eviction"] if evicted else 0.0
    miss = HIT + TRUE["fault"] + TRUE["load"] + TRUE["evict"] + TRACK / 16
    passes = (miss, miss) if evicted else (HIT + TRUE["fault"], HIT)
    return pages, build * slower / 1e9, tuple(each * slower for each in passes)


def rounds(slower: tuple[float, ...], most: int = 10**6) -> list[list[Timed]]:
    return [[timed(heap, factor) for heap in calibrate.heaps(EPC, most)] for factor in slower]


def test_the_figures_of_a_machine_are_found_again() -> None:
    found = calibrate.figures(rounds((1.0,)), EPC, TRACK)
    assert {name: values[0] for name, values in found.items()} == pytest.approx(TRUE, rel=1e-6)


def test_a_profile_has_median_and_spread_and_is_read_as_it_was_written(tmp_path: Path) -> None:
    base = costs.load("e2276g")
    found = calibrate.figures(rounds((1.0, 1.1, 0.9)), EPC, TRACK)
    machine = Machine("mine", 'a "quoted" name', EPC, 3.8, sgx2=False)
    made = calibrate.profile(machine, base, found, "here, today")
    (tmp_path / "mine.toml").write_text(calibrate.to_toml(made))
    again = costs.load(str(tmp_path / "mine.toml"))
    assert (again.title, again.epc_pages, again.sgx2) == ('a "quoted" name', EPC, False)
    add = again.cost["add"]
    assert (add.low, add.ns, add.high) == pytest.approx((8_550, 9_500, 10_450), rel=1e-3)
    assert (add.mark, add.source) == ("C", "here, today")
    assert again.cost["augment"].source.startswith("not measured; as e2276g: ")
    assert again.cost["augment"].mark == "M"


def test_an_epc_too_large_to_fill_leaves_what_lies_beyond_to_another_profile() -> None:
    base = costs.load("icelake")
    found = calibrate.figures(rounds((1.0,), most=20_000), EPC, TRACK)
    assert found.keys() == {"create", "add", "fault"}
    made = calibrate.profile(Machine("m", "m", EPC, 0.0, sgx2=True), base, found, "here")
    assert made.cost["load"].source.startswith("not measured; as icelake")
