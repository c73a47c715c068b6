"""The fuzzer's minute passes beside the first tests, which leave a processor free; its test waits for it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .run import Fuzzing, fuzzing

SECONDS = 60
FUZZER = pytest.StashKey[Fuzzing]()


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session: pytest.Session) -> Iterator[None]:
    """Start it before the first test where its own will run."""
    wanted = any("fuzzer" in getattr(item, "fixturenames", ()) for item in session.items)
    if not wanted or session.config.option.collectonly:
        return (yield)
    with (
        tempfile.TemporaryDirectory(prefix="epcgroup-fuzz-") as directory,
        fuzzing(Path(directory), 1, f"-max_total_time={SECONDS}", seed=1) as fuzzer,
    ):
        session.stash[FUZZER] = fuzzer
        return (yield)


@pytest.fixture
def fuzzer(request: pytest.FixtureRequest) -> Fuzzing:
    return request.session.stash[FUZZER]
