"""Sizes and limits: what a person writes, what is counted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epcgroup.errors import BadInput, EpcgroupError
from epcgroup.units import PAGE_SIZE, U64_MAX, format_limit, format_size, pages, parse_limit, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("100B", 100),
        ("1k", 1024),
        ("6KiB", 6144),
        ("64M", 64 << 20),
        ("64 MiB", 64 << 20),
        ("64mb", 64 << 20),
        ("64Mi", 64 << 20),  # as Kubernetes has it
        ("2G", 2 << 30),
        ("1T", 1 << 40),
        ("1p", PAGE_SIZE),
        ("1 page", PAGE_SIZE),
        ("16384 pages", 64 << 20),
        (" 8 Pages ", 8 * PAGE_SIZE),
        ("18446744073709551615", U64_MAX),
    ],
)
def test_a_size_is_bytes_with_a_binary_unit_or_pages(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "M", "-1", "1.5M", "64X", "64i", "64iB", "64 M B", "0x10", "1e6", "max", "8 pages p"]
)
def test_what_is_no_size_is_refused_with_the_text_and_the_right_forms(text: str) -> None:
    with pytest.raises(BadInput) as refusal:
        parse_size(text)
    assert repr(text) in str(refusal.value)
    assert "64M" in str(refusal.value)


@pytest.mark.parametrize("text", ["18446744073709551616", "16777216T", "4503599627370496 pages"])
def test_a_size_that_no_64_bit_counter_holds_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="2\\^64-1"):
        parse_size(text)


def test_a_misuse_is_both_ours_and_a_value_error() -> None:
    """So that argparse and callers who know nothing of us can catch it."""
    assert issubclass(BadInput, ValueError)
    assert issubclass(BadInput, EpcgroupError)


def test_a_limit_is_a_size_or_max() -> None:
    assert parse_limit("max") is None
    assert parse_limit(" max\n") is None
    assert parse_limit("16M") == 16 << 20
    with pytest.raises(BadInput):
        parse_limit("maximum")


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0"),
        (100, "100"),
        (1023, "1023"),
        (1024, "1K"),
        (6144, "6K"),
        (1536 << 10, "1.5M"),
        (64 << 20, "64M"),
        (1 << 40, "1T"),
    ],
)
def test_a_size_is_shown_in_the_largest_unit_that_fits(size: int, text: str) -> None:
    assert format_size(size) == text


def test_no_limit_is_shown_as_max() -> None:
    assert format_limit(None) == "max"
    assert format_limit(16 << 20) == "16M"


@given(st.integers(min_value=0, max_value=1 << 30).map(lambda count: count * PAGE_SIZE))
def test_whole_pages_survive_the_way_to_pages_and_back(size: int) -> None:
    assert parse_size(f"{pages(size)} pages") == size


@given(st.integers(min_value=0, max_value=1023), st.sampled_from(["", "K", "M", "G", "T"]))
def test_what_is_shown_in_whole_units_reads_back_the_same(number: int, unit: str) -> None:
    size = parse_size(f"{number}{unit}")
    assert parse_size(format_size(size)) == size


@given(st.integers(min_value=0, max_value=U64_MAX))
def test_bytes_that_fill_no_page_are_not_counted(size: int) -> None:
    assert pages(size) * PAGE_SIZE <= size < (pages(size) + 1) * PAGE_SIZE
