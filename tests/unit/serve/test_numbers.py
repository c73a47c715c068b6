"""Process numbers as a process of another pid namespace uses them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from epcgroup.serve.numbers import Numbers


def test_in_our_own_namespace_a_number_is_a_number() -> None:
    numbers = Numbers({})
    assert numbers.meant(os.getpid(), 123456) == 123456
    assert numbers.shown(os.getpid(), [5, 7]) == [5, 7]


@pytest.fixture
def container() -> Iterator[tuple[int, int]]:
    """Two processes of another pid namespace: its first, and a child of that."""
    script = "sleep 60 & echo $!; wait"
    words = ["unshare", "--pid", "--fork", "--kill-child", "sh", "-c", script]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as outer:
        assert outer.stdout is not None
        assert outer.stdout.readline() == "2\n"
        first = children(outer.pid)[0]
        yield first, children(first)[0]
        outer.kill()


def children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:  # noqa: PTH123
        return [int(word) for word in file.read().split()]


@pytest.mark.needs("root")
def test_a_container_counts_from_one_and_sees_nobody_else(container: tuple[int, int]) -> None:
    first, second = container
    numbers = Numbers(dict.fromkeys((os.getpid(), first, second)))  # type: ignore[misc]
    assert numbers.meant(first, 2) == second
    assert numbers.meant(second, 1) == first
    assert numbers.meant(first, 3) is None
    assert numbers.shown(first, [first, os.getpid(), second]) == [1, 0, 2]
    assert numbers.shown(os.getpid(), [first, second]) == [first, second]
