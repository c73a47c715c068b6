"""A minute of coverage-guided fuzzing; `make fuzz` goes on for a million inputs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from .surface import random_inputs

SURFACE = Path(__file__).with_name("surface.py")
SECONDS = 60


def test_no_bytes_break_the_machine_or_a_neighbour(tmp_path: Path) -> None:
    words = [
        f"-max_total_time={SECONDS}",
        "-seed=1",
        "-len_control=0",
        "-max_len=400",
        f"-artifact_prefix={tmp_path}/",
    ]
    (tmp_path / "corpus").mkdir()
    done = subprocess.run(
        [sys.executable, str(SURFACE), *words, str(tmp_path / "corpus")],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=280, check=False,
    )  # fmt: skip
    inputs = [path.read_bytes().hex() for path in tmp_path.iterdir() if path.is_file()]
    assert done.returncode == 0, f"{done.stdout[-3000:]}\ninputs: {inputs}"
    runs = re.search(r"Done (\d+) runs", done.stdout)
    assert runs is not None
    assert int(runs[1]) > 1000


def test_random_bytes_reach_every_operation_without_the_fuzzer() -> None:
    assert random_inputs(seconds=2, seed=5) > 20


def test_a_broken_machine_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness can fail: here a page that the machine forgets to free."""
    from epcgroup.epc.pool import Pool

    monkeypatch.setattr(Pool, "give", lambda *_: None, raising=True)
    with pytest.raises(Exception, match=r"INV-3|still in use"):
        random_inputs(seconds=5, seed=5)
