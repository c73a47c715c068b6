"""The benchmark runner: all or some, and a broken limit is a failure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RUNNER = Path(__file__).resolve().parents[2] / "bench" / "run.py"


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    """A bench directory with the real runner and two small benchmarks, one over its limit."""
    (tmp_path / "run.py").write_text(RUNNER.read_text())
    (tmp_path / "fast.py").write_text("print('fast: 1 µs, peer 1 µs: 1.0×')\n")
    (tmp_path / "slow.py").write_text("print('slow: 9 µs, peer 1 µs: 9.0×')\nraise SystemExit(1)\n")
    (tmp_path / "_common.py").write_text("raise SystemExit('no benchmark')\n")
    return tmp_path


def run(bench: Path, *names: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(bench / "run.py"), *names]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_one_broken_limit_fails_the_run_but_all_are_measured(bench: Path) -> None:
    done = run(bench)
    assert done.returncode == 1
    assert "fast: 1 µs" in done.stdout
    assert "slow: 9 µs" in done.stdout
    assert "over a limit or failed: slow" in done.stdout


def test_some_can_be_run_by_name(bench: Path) -> None:
    done = run(bench, "fast")
    assert done.returncode == 0
    assert "slow" not in done.stdout


def test_an_unknown_name_is_refused_with_the_known_ones(bench: Path) -> None:
    done = run(bench, "fats")
    assert done.returncode == 2
    assert "fats; there are: fast, slow" in done.stderr
