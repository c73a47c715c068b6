"""Knobs: where a worker stops, and watermarks that fit the EPC (spec 3.4, 3.5, 3.6)."""

from __future__ import annotations

import dataclasses

import pytest

from epcgroup.epc import POLICIES, STANDARD, V5, V17, Machine, by_name
from epcgroup.errors import BadInput
from epcgroup.testing import TablePager

TOTAL = 100_000


@pytest.mark.parametrize(
    ("limit", "v5_at_most", "v17_below"),
    [
        (0, 0, 0),
        (1, 0, 1),
        (32, 31, 32),
        (33, 32, 33),
        (34, 25, 34),
        (128, 119, 128),
        (129, 120, 97),
        (1000, 991, 968),
        (2**52 - 1, TOTAL, 2**52 - 33),
    ],
)
def test_the_worker_stops_where_the_table_says(limit: int, v5_at_most: int, v17_below: int) -> None:
    assert V5.goal(limit, TOTAL, 1) == v5_at_most
    assert V17.goal(limit, TOTAL, 1) == v17_below - 1


def test_standard_makes_room_for_who_waits_and_takes_nothing_within_the_limit() -> None:
    assert STANDARD.goal(1000, TOTAL, 0) == 1000
    assert STANDARD.goal(1000, TOTAL, 1) == 984
    assert STANDARD.goal(64, TOTAL, 1) == 60
    assert STANDARD.goal(5, TOTAL, 1) == 4
    assert STANDARD.goal(5, TOTAL, 2) == 3
    assert STANDARD.goal(1, TOTAL, 2) == 0


@pytest.mark.parametrize(
    ("epc", "low", "high"), [(6, 1, 1), (16, 1, 2), (64, 4, 8), (512, 32, 64), (8192, 32, 64)]
)
def test_the_watermarks_of_standard_scale_with_the_epc(epc: int, low: int, high: int) -> None:
    machine = Machine(epc_pages=epc, policy=STANDARD, pager=TablePager())
    assert (machine.low, machine.high) == (low, high)


@pytest.mark.parametrize("policy", [V5, V17])
def test_the_watermarks_of_the_series_are_fixed(policy: object) -> None:
    assert policy.watermarks(16) == (32, 64)  # type: ignore[attr-defined]


def test_policies_are_frozen_and_found_by_name() -> None:
    for name, policy in POLICIES.items():
        assert by_name(name) is policy
        with pytest.raises(dataclasses.FrozenInstanceError):
            policy.low = 1  # type: ignore[misc]
    with pytest.raises(BadInput, match="standard, v5, v17"):
        by_name("v4")


def test_an_epc_without_pages_is_refused() -> None:
    with pytest.raises(BadInput, match="0 pages"):
        Machine(epc_pages=0, policy=V5, pager=TablePager())
