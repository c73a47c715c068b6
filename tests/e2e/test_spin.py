"""A thread that spins in its enclave after an answer it did not like is told of, and only such a one."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from tests.e2e.machine import NEEDS, command

from epcgroup.live.enclave.spin import PATIENCE

pytestmark = [pytest.mark.needs(*NEEDS), pytest.mark.timeout(240)]

TOLD = (
    r"^epcgroup: thread (\d+) of process \1 \(spin\) has computed for {patience:g} s in enclave 1 "
    r"without leaving it, since {what} at 0x[0-9a-f]+ was answered by {answer}; "
)
SURPRISES = {
    "ud2": ("the instruction", "#UD"),
    "gp": ("ENCLU leaf 77", "#GP"),
    "leaf": (r"ENCLU leaf 1 \(EGETKEY\)", r"error 256 \(INVALID_KEYNAME\)"),
}
SOON = 0.6  # s of user time, instead of PATIENCE

# `epcgroup` that loses its patience sooner.
IMPATIENT = """
import sys
from epcgroup.cli.main import main
from epcgroup.live.enclave import spin
spin.PATIENCE, spin.INTERVAL = float(sys.argv[1]), 0.1
sys.exit(main(sys.argv[2:]))
"""


def lines(what: str, seconds: float, patience: float) -> list[str]:
    """What the user is told of an enclave that computes for so many seconds of its thread's time."""
    words = command("spin", what, seconds, epc=128, options=("--report", "none"))[1:]
    argv = [sys.executable, "-c", IMPATIENT, str(patience), *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout == "counted something\n", done.stderr
    return [line for line in done.stderr.splitlines() if line.startswith("epcgroup:")]


@pytest.mark.usefixtures("enclu")
@pytest.mark.parametrize("surprise", SURPRISES)
def test_one_line_names_thread_enclave_leaf_and_address(surprise: str) -> None:
    """Long enough for a second line."""
    (line,) = lines(surprise, 3 * SOON, SOON)
    what, answer = SURPRISES[surprise]
    assert re.match(TOLD.format(patience=SOON, what=what, answer=answer), line), line


def test_patience_lasts_as_long_as_documented() -> None:
    (line,) = lines("ud2", PATIENCE + 1, PATIENCE)
    what, answer = SURPRISES["ud2"]
    assert re.match(TOLD.format(patience=3, what=what, answer=answer), line), line


@pytest.mark.usefixtures("enclu")
def test_an_enclave_that_was_not_surprised_may_compute_for_long() -> None:
    assert lines("nothing", 3 * SOON, SOON) == []


@pytest.mark.usefixtures("enclu")
def test_an_enclave_that_leaves_in_time_is_not_told_of() -> None:
    assert lines("ud2", 1, PATIENCE) == []
