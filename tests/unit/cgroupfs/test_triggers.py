"""Triggers of pressure files: what is taken, and when they fire."""

from __future__ import annotations

import errno

import pytest

from epcgroup.cgroupfs.triggers import Trigger
from epcgroup.errors import Refused


def trigger(text: bytes, *, privileged: bool = False) -> Trigger:
    return Trigger(text, privileged=privileged, now=0.0, sums=(0.0, 0.0))


@pytest.mark.parametrize(
    "text",
    [b"some 150000 2000000", b"full 150000 2000000\n", b"some 1000 10000000 ", b"some 150000 2000000 xyz"],
)
def test_what_a_kernel_takes_is_taken(text: bytes) -> None:
    trigger(text)


@pytest.mark.parametrize(
    "text",
    [
        b"x",
        b"  some 150000 2000000",
        b"some 150000",
        b"some 0 2000000",
        b"some 2000001 2000000",
        b"some 1000 12000000",
        b"some 150000 0",
        b"some 150000 1000000",  # no multiple of 2 s
    ],
)
def test_what_a_kernel_refuses_is_refused(text: bytes) -> None:
    with pytest.raises(Refused) as refused:
        trigger(text)
    assert refused.value.errno == errno.EINVAL


def test_who_may_use_resources_may_use_any_window() -> None:
    assert trigger(b"some 150000 1000000", privileged=True).window == 1.0


def test_it_fires_when_so_much_of_a_window_was_waited_and_once_a_window() -> None:
    each = trigger(b"some 200000 2000000")
    assert not each.look(0.2, (0.19, 0.0))
    assert each.look(0.4, (0.2, 0.0))
    assert each.fired
    assert not each.look(0.6, (0.6, 0.0)), "a second time within the window"
    assert each.look(2.4, (0.6, 0.0))


def test_some_and_full_are_kept_apart() -> None:
    each = trigger(b"full 200000 2000000")
    assert not each.look(0.4, (2.0, 0.19))
    assert each.look(0.6, (2.0, 0.2))


def test_a_new_window_counts_the_last_one_in_proportion() -> None:
    each = trigger(b"some 1000000 2000000")
    assert not each.look(2.1, (0.9, 0.0))  # a window is over
    assert not each.look(3.1, (1.3, 0.0))  # 0.4 and half of 0.9
    assert each.look(3.2, (1.5, 0.0))
