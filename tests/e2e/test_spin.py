"""A thread that spins in its enclave after an answer it did not like is told of, and only such a one."""

from __future__ import annotations

import re

import pytest
from tests.e2e.machine import NEEDS, run

pytestmark = [pytest.mark.needs(*NEEDS), pytest.mark.timeout(60)]

TOLD = (
    r"^epcgroup: thread (\d+) of process \1 \(spin\) has computed for 3 s in enclave 1 without leaving it, "
    r"since {what} at 0x[0-9a-f]+ was answered by {answer}; "
)


def lines(what: str, seconds: int) -> list[str]:
    """What the user is told."""
    ended = run("spin", what, seconds, epc=128)
    assert ended.output == "counted something\n", ended.errors
    return [line for line in ended.errors.splitlines() if line.startswith("epcgroup:")]


@pytest.mark.parametrize(
    ("surprise", "what", "answer"),
    [
        ("ud2", "the instruction", "#UD"),
        ("gp", "ENCLU leaf 77", "#GP"),
        ("leaf", r"ENCLU leaf 1 \(EGETKEY\)", r"error 256 \(INVALID_KEYNAME\)"),
    ],
)
def test_one_line_names_thread_enclave_leaf_and_address(surprise: str, what: str, answer: str) -> None:
    """Six seconds, so that a second line would have had its time."""
    (line,) = lines(surprise, 6)
    assert re.match(TOLD.format(what=what, answer=answer), line), line


def test_an_enclave_that_was_not_surprised_may_compute_for_long() -> None:
    assert lines("nothing", 5) == []


def test_an_enclave_that_leaves_in_time_is_not_told_of() -> None:
    assert lines("ud2", 1) == []
