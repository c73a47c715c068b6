"""The fuzzer's minute passes beside the first tests, which leave a processor free; its test waits for it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SURFACE = Path(__file__).with_name("surface.py")
SECONDS = 60


@dataclass
class Fuzzer:
    """A run of surface.py under atheris."""

    directory: Path
    process: subprocess.Popen[str] = field(init=False)

    def __post_init__(self) -> None:
        words = [
            f"-max_total_time={SECONDS}",
            "-seed=1",
            "-len_control=0",
            "-max_len=400",
            f"-artifact_prefix={self.directory}/",
        ]
        (self.directory / "corpus").mkdir()
        with (self.directory / "said").open("w") as said:
            self.process = subprocess.Popen(
                [sys.executable, str(SURFACE), *words, str(self.directory / "corpus")],
                stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip

    def result(self) -> tuple[int, str, list[str]]:
        """Its status, what it said, and the inputs that it kept, in hexadecimal digits."""
        status = self.process.wait(280)
        kept = [path for path in self.directory.iterdir() if path.is_file() and path.name != "said"]
        return status, (self.directory / "said").read_text(), [path.read_bytes().hex() for path in kept]


@contextmanager
def fuzzing() -> Iterator[Fuzzer]:
    """A fuzzer, ended at the end whether it is done or not."""
    with tempfile.TemporaryDirectory(prefix="epcgroup-fuzz-") as directory:
        fuzzer = Fuzzer(Path(directory))
        try:
            yield fuzzer
        finally:
            fuzzer.process.kill()
            fuzzer.process.wait()


FUZZER = pytest.StashKey[Fuzzer]()


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session: pytest.Session) -> Iterator[None]:
    """Start it before the first test where its own will run."""
    wanted = any("fuzzer" in getattr(item, "fixturenames", ()) for item in session.items)
    if not wanted or session.config.option.collectonly:
        return (yield)
    with fuzzing() as fuzzer:
        session.stash[FUZZER] = fuzzer
        return (yield)


@pytest.fixture
def fuzzer(request: pytest.FixtureRequest) -> Fuzzer:
    return request.session.stash[FUZZER]
