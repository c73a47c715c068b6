"""What is guarded is known to the process that outlives us, whatever happens to that."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from epcgroup.live.paging.mm import AddressSpace
from epcgroup.live.tracing.guard import Guard


@pytest.fixture
def guard() -> Iterator[Guard]:
    """One that holds nothing yet."""
    said: list[str] = []
    guard = Guard(said.append)
    yield guard
    guard.end()
    assert not said


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Its writing end is what is held: the reading one tells whether it is open."""
    ends = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    yield ends
    os.close(ends[0])


def is_held(reading: int) -> bool:
    """Whether somebody has the other end of the pipe open."""
    try:
        return os.read(reading, 1) != b""
    except BlockingIOError:
        return True


def survivors() -> set[int]:
    """Those processes of ours that are there; one that has just begun may not have its name yet."""
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return {int(pid) for pid in children if b"survivor" in Path(f"/proc/{pid}/cmdline").read_bytes()}


def eventually(true: Callable[[], bool]) -> None:
    """It becomes so within a generous time."""
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def expect_held_until_released(guard: Guard, reading: int, writing: int) -> None:
    """Closing ours is not the descriptor's end; saying so is."""
    os.close(writing)
    time.sleep(0.05)
    assert is_held(reading)
    guard.release(writing)
    eventually(lambda: not is_held(reading))


def test_a_descriptor_is_held_until_it_is_released(guard: Guard, pipe: tuple[int, int]) -> None:
    """By then its number may be that of something else."""
    guard.hold(pipe[1])
    expect_held_until_released(guard, *pipe)


def test_an_end_in_good_order_lets_go_at_once_and_leaves_no_process(pipe: tuple[int, int]) -> None:
    """Nobody waits for a moment that is only needed after a kill."""
    before = survivors()
    guard = Guard(pytest.fail)
    guard.hold(pipe[1])
    os.close(pipe[1])
    guard.end()
    assert not is_held(pipe[0])
    assert survivors() == before


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=lambda how: how.name)
def test_a_process_that_does_not_listen_is_replaced_and_told_everything(
    guard: Guard, pipe: tuple[int, int], how: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed or stopped: the next thing to guard finds that out, and what was said before holds."""
    reading, writing = pipe
    before = survivors()
    with monkeypatch.context() as impatient:  # with this one; the next has all the time that it needs
        impatient.setattr("epcgroup.live.tracing.guard._PATIENCE", 0.2)
        guard.hold(writing)
    eventually(lambda: survivors() > before)
    (first,) = survivors() - before
    os.kill(first, how)
    space = AddressSpace(os.getpid())
    space.traps = {0x1000 + 16 * at: None for at in range(30_000)}  # type: ignore[misc]  # fills the line's buffer
    while survivors() - before <= {first}:
        guard.keep(space)
    guard.drop(space)
    expect_held_until_released(guard, reading, writing)


def test_where_no_process_can_be_started_that_is_said(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is guarded goes on without."""
    said: list[str] = []
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    guard = Guard(said.append)
    guard.hold(pipe[1])
    guard.release(pipe[1])
    guard.end()
    os.close(pipe[1])
    assert said
    assert all("No such file" in words and "zeros" in words for words in said)
