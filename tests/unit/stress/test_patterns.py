"""The order of touches, whatever way they are cut into calls."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epcgroup.errors import BadInput
from epcgroup.stress import patterns
from epcgroup.stress.code import Call, Mode, next_random


def played(name: str, first: int, length: int, seed: int, counts: Sequence[int]) -> list[int]:
    """The heap pages that the enclave would touch, by a Python model of its loop."""
    pattern, call, pages = patterns.make(name, first, length, seed), Call(), []
    for count in counts:
        pattern.prepare(call, count)
        assert 1 <= call.count <= count
        for _ in range(call.count):
            if call.mode == Mode.ORDER:
                page = call.state
                call.state = (call.state + 1) % call.length
            elif call.mode == Mode.RANDOM:
                call.state, page = next_random(call.state, call.length)
            else:
                page = ctypes.c_uint32.from_address(call.list + 4 * call.state).value
                call.state += 1
            assert page < call.length
            pages.append(call.first + page)
    return pages


@given(
    name=st.sampled_from(["seq", "random", "zipf"]),
    length=st.integers(1, 60),
    seed=st.integers(0, 1 << 40),
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=8),
)
def test_cutting_into_calls_changes_nothing(name: str, length: int, seed: int, counts: list[int]) -> None:
    whole = played(name, 5, length, seed, [sum(counts)])
    assert played(name, 5, length, seed, counts) == whole
    assert all(5 <= page < 5 + length for page in whole)


def test_seq_goes_round() -> None:
    assert played("seq", 2, 3, 0, [4, 3]) == [2, 3, 4, 2, 3, 4, 2]


def test_scan_loop_goes_round_the_hot_part_then_once_over_all() -> None:
    pages = played("scan-loop", 100, 16, 0, [5] * 40)
    assert pages[:16] == [100, 101] * 8
    assert pages[16:32] == list(range(100, 116))
    assert pages[32:48] == pages[:16]


def test_random_reaches_every_page_about_equally() -> None:
    counts = Counter(played("random", 0, 64, 7, [64 * 200]))
    assert len(counts) == 64
    assert max(counts.values()) < 300


def test_zipf_favours_few_pages() -> None:
    counts = Counter(played("zipf", 0, 1000, 7, [20000]))
    hottest = counts.most_common(10)
    assert sum(n for _, n in hottest) > 0.3 * 20000
    assert sorted(page for page, _ in hottest) != list(range(10)), "hot pages must be scattered"


def test_seed_decides_the_order() -> None:
    assert played("random", 0, 99, 1, [50]) != played("random", 0, 99, 2, [50])
    assert played("zipf", 0, 99, 1, [50]) != played("zipf", 0, 99, 2, [50])


def test_unknown_pattern_is_named_with_the_known_ones() -> None:
    with pytest.raises(BadInput, match="'spiral' is not a pattern; choose one of seq, random"):
        patterns.make("spiral", 0, 1, 0)
