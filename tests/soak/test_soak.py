"""A few seconds of what `make soak` does for ten minutes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.e2e.machine import NEEDS, started

pytestmark = pytest.mark.needs(*NEEDS)

POLICIES = ("standard", "v5", "v17")
ROOT = Path(__file__).resolve().parents[2]
Runs = dict[str, subprocess.Popen[str]]


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    """All of them side by side, each on a machine of its own."""
    soak = ("tests.soak.soak", "--seconds", "5", "--epc-pages", "200", "--policy")
    commands = {policy: (*soak, policy) for policy in POLICIES}
    commands["standard"] += ("--page-service", "compiled")
    commands["kills"] = ("tests.soak.kills", "--times", "8", "--seed", "2")
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(started([sys.executable, "-m", *words], cwd=ROOT))
            for name, words in commands.items()
        }


def ends_well(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, f"{output}\n{errors}"
    return output


@pytest.mark.parametrize("policy", POLICIES)
def test_random_tenants_break_no_invariant(runs: Runs, policy: str) -> None:
    assert "all invariants held, nothing is charged" in ends_well(runs[policy])


def test_kills_at_random_moments_leave_nothing(runs: Runs) -> None:
    assert "nothing was left, nothing was wrong" in ends_well(runs["kills"])
