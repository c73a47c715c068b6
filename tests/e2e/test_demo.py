"""`epcgroup demo`: the tenant over its limit pages against itself, the neighbour is untouched."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.e2e.machine import EPCGROUP, NEEDS, started

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.needs(*NEEDS), pytest.mark.timeout(240)]


def members(session: int) -> list[str]:
    """Processes of the session."""
    listed = subprocess.run(["pgrep", "-s", str(session)], capture_output=True, text=True, check=False)
    return listed.stdout.split()


POLICIES = ("standard", "v5", "v17")
Runs = dict[str, tuple[subprocess.Popen[str], Path]]


@pytest.fixture(scope="module")
def shows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """Three demos and the example of a lowered limit with their pictures, side by side: mostly they wait."""
    place = tmp_path_factory.mktemp("shows")
    demo = [EPCGROUP, "demo", "--seconds", "4", "--epc", "16M"]
    pictures = {name: place / f"{name}.png" for name in (*POLICIES, "example")}
    commands = {policy: [*demo, "--policy", policy, "--output", str(pictures[policy])] for policy in POLICIES}
    example = str(ROOT / "examples" / "lower_a_limit.py")
    commands["example"] = [sys.executable, example, str(pictures["example"])]
    with ExitStack() as stack:
        yield {
            name: (stack.enter_context(started(command)), pictures[name])
            for name, command in commands.items()
        }


def last_words(shows: Runs, name: str) -> str:
    """What it printed, when it has ended well and drawn its picture."""
    process, picture = shows[name]
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert picture.read_bytes().startswith(b"\x89PNG")
    return output


@pytest.mark.parametrize("policy", POLICIES)
def test_demo_shows_isolation_in_figures_and_a_picture(policy: str, shows: Runs) -> None:
    last = last_words(shows, policy).splitlines()[-1]
    evicted, loaded = re.search(r"batch .* itself: ([\d,]+) pages evicted and ([\d,]+) loaded", last).groups()  # type: ignore[union-attr]
    # batch wants 12M under a limit of 4M: its first pass alone evicts two thirds of 3072 pages.
    assert int(evicted.replace(",", "")) > 2000
    assert int(loaded.replace(",", "")) > 2000
    assert "neighbour had 0 page-ins and its throughput changed by" in last
    assert last.endswith("web had 0 page-ins.")


def test_example_of_a_lowered_limit_runs(shows: Runs) -> None:
    output = last_words(shows, "example")
    assert re.search(r"job \d.*/6M in \d+ out [1-9]", output), "it paged under the lowered limit"
    assert "/max in" in output


def test_wrong_output_is_told_before_anything_runs(tmp_path: Path) -> None:
    argv = [EPCGROUP, "demo", "--output", str(tmp_path / "none" / "demo.png")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "there is no such directory" in done.stderr
    assert done.stdout == ""


def test_interrupted_demo_leaves_no_tenant_behind(tmp_path: Path) -> None:
    argv = [EPCGROUP, "demo", "--output", str(tmp_path / "demo.png")]
    with started(argv) as process:
        assert process.stdout is not None
        while "neighbour 12" not in process.stdout.readline():  # its heap of 12M is in the EPC
            assert process.poll() is None
        assert len(members(process.pid)) >= 3, "the demo and its two services"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130, errors
        assert "Traceback" not in errors
        assert members(process.pid) == []
