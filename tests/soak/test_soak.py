"""A few seconds of what `make soak` does for ten minutes."""

from __future__ import annotations

import pytest
from tests.e2e.machine import NEEDS
from tests.soak.kills import kill_many
from tests.soak.soak import soak

pytestmark = pytest.mark.needs(*NEEDS)


@pytest.mark.parametrize("policy", ["standard", "v5", "v17"])
def test_random_tenants_break_no_invariant(policy: str) -> None:
    assert soak(seconds=4, seed=1, epc_pages=200, policy=policy) == []


def test_kills_at_random_moments_leave_nothing() -> None:
    assert kill_many(times=8, seed=2) == 0
