"""A minute of coverage-guided fuzzing; `make fuzz` goes on for a million inputs."""

from __future__ import annotations

import re

import pytest
from tests.fuzz.conftest import Fuzzer

from .surface import random_inputs


def test_no_bytes_break_the_machine_or_a_neighbour(fuzzer: Fuzzer) -> None:
    status, said, inputs = fuzzer.result()
    assert status == 0, f"{said[-3000:]}\ninputs: {inputs}"
    runs = re.search(r"Done (\d+) runs", said)
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
