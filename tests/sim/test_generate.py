"""Patterns: seeded, and distributed as documented."""

from __future__ import annotations

import numpy as np
import pytest

from epcgroup.sim.kernel.draw import Weighted
from epcgroup.sim.traces.generate import pattern

SPECS = {
    "uniform": {"pattern": "uniform"},
    "zipf": {"pattern": "zipf", "alpha": 1.0},
    "scan": {"pattern": "scan"},
    "loop": {"pattern": "loop", "hot": 10, "every": 50},
    "drift": {"pattern": "drift", "window": 30, "every": 10},
    "phases": {
        "pattern": "phases",
        "phases": [{"pattern": "scan", "accesses": 70}, {"pattern": "uniform", "accesses": 30}],
    },
    "mixture": {
        "pattern": "mixture",
        "parts": [{"pattern": "scan", "weight": 3}, {"pattern": "zipf", "weight": 1}],
    },
}


@pytest.mark.parametrize("name", SPECS)
def test_the_same_seed_gives_the_same_accesses_in_parts_of_any_size(name: str) -> None:
    """For patterns whose randomness is drawn per access in one stream; others repeat call by call."""
    first = pattern(SPECS[name], 500, np.random.default_rng(3))
    again = pattern(SPECS[name], 500, np.random.default_rng(3))
    for count in (10, 1, 500, 37):
        one = first.take(count)
        assert one.tolist() == again.take(count).tolist()
        assert len(one) == count
        assert 0 <= one.min() <= one.max() < 500


def test_patterns_are_distributed_as_documented() -> None:
    rng = np.random.default_rng(5)
    zipf = np.bincount(pattern({"pattern": "zipf", "alpha": 1.0}, 1000, rng).take(200_000), minlength=1000)
    by_rank = np.sort(zipf)[::-1]
    expected = 200_000 / (np.arange(1, 1001) * (1 / np.arange(1, 1001)).sum())
    assert abs(by_rank[:20] / expected[:20] - 1).max() < 0.1
    uniform = np.bincount(pattern({"pattern": "uniform"}, 100, rng).take(100_000))
    assert uniform.min() > 850
    assert pattern({"pattern": "scan"}, 3, rng).take(7).tolist() == [0, 1, 2, 0, 1, 2, 0]
    drift = pattern({"pattern": "drift", "window": 10, "every": 100}, 1000, rng).take(50_000)
    assert set(drift[:100].tolist()) <= set(range(10))
    assert set(drift[-100:].tolist()) <= set(range(499, 509))


@pytest.mark.parametrize("count", [1, 2, 7, 1000, 300_000])
@pytest.mark.parametrize("alpha", [0.0, 1.0, 3.0])
def test_drawing_by_weight_gives_what_a_binary_search_gives(count: int, alpha: float) -> None:
    weights = np.arange(1, count + 1, dtype=np.float64) ** -alpha
    found = Weighted(weights).take(np.random.default_rng(9), 200_000)
    sums = np.cumsum(weights)
    wanted = np.searchsorted(sums, np.random.default_rng(9).random(200_000) * sums[-1])
    assert (found == wanted).all()
