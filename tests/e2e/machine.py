"""Run our SGX test programs (tests/programs) on an emulated machine, and read what they say."""

from __future__ import annotations

import errno
import functools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from tests.programs.build import BuildError, build

EPCGROUP = str(Path(sys.executable).parent / "epcgroup")
NEEDS = ("x86-64", "gcc", "ptrace", "userfaultfd")
PAGE = 4096
T = TypeVar("T")


@functools.cache
def programs() -> Path:
    """The directory with the built programs."""
    try:
        return build()
    except BuildError as reason:
        pytest.fail(f"the SGX test programs cannot be built: {reason}", pytrace=False)


@dataclass(frozen=True)
class Ended:
    """How a run ended: status as subprocess gives it, what it wrote, and the final report."""

    status: int
    output: str
    errors: str
    report: dict[str, Any] | None

    @property
    def cases(self) -> dict[str, str]:
        """Case to "ok" or the reason why not, from the lines the programs print."""
        found = {}
        for line in self.output.splitlines():
            if match := re.match(r"(ok|not ok) (\w+)(?:: (.*))?", line):
                found[match[2]] = "ok" if match[1] == "ok" else match[3] or "not ok"
        return found


def command(
    *program: str | Path,
    epc: int,
    limit: int | None = None,
    policy: str = "standard",
    options: tuple[str, ...] = (),
) -> list[str]:
    """`epcgroup run` with ``epc`` and ``limit`` in pages; a bare name is one of our programs."""
    name, *arguments = map(str, program)
    path = programs() / name
    maximum = () if limit is None else ("--max", f"{limit} pages")
    machine = ("--epc", f"{epc} pages", *maximum, "--policy", policy, *options)
    return [EPCGROUP, "run", *machine, "--", str(path) if path.exists() else name, *arguments]


@contextmanager
def started(argv: list[str], **how: Any) -> Iterator[subprocess.Popen[str]]:
    """The command, running in a session of its own; whatever is left of it at the end is killed."""
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **how}
    try:
        process = subprocess.Popen(argv, text=True, start_new_session=True, **options)
    except OSError as error:
        # The kernel says EFAULT of a script's new stack now and then (twice in a dozen suites, and nothing of
        # ours runs yet at that moment): once more tells whether it means it.
        if error.errno != errno.EFAULT:
            raise
        process = subprocess.Popen(argv, text=True, start_new_session=True, **options)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def run(
    *program: str | Path,
    epc: int,
    limit: int | None = None,
    policy: str = "standard",
    options: tuple[str, ...] = (),
    seconds: float = 120,
) -> Ended:
    """Run to the end; a run that takes longer than ``seconds`` fails the test."""
    with tempfile.TemporaryDirectory(prefix="epcgroup-test-") as directory:
        file = Path(directory, "report.json")
        options = ("--report", "json", "--report-file", str(file), *options)
        with started(command(*program, epc=epc, limit=limit, policy=policy, options=options)) as process:
            try:
                output, errors = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                output, errors = process.communicate()
                so_far = f"{output[-2000:]}\n{errors[-2000:]}"
                pytest.fail(f"still running after {seconds} s; so far:\n{so_far}", pytrace=False)
        report = json.loads(file.read_text()) if file.exists() else None
    return Ended(process.returncode, output, errors, report)


#: Both ways into an enclave and out of it (`epcgroup run --enclu`).
ENCLU = ("fast", "trap")


# A program and its supervisor take turns: a second pair has the other processor.
_runs = ThreadPoolExecutor(2)


@functools.cache
def once(function: Callable[..., T], *arguments: Any, **how: Any) -> Future[T]:
    """Begin this call when its turn comes; all who ask for the same one share its result."""
    return _runs.submit(function, *arguments, **how)


def cases(program: str, epc: int, wrap: tuple[str, ...] = (), enclu: str = "fast") -> Future[Ended]:
    """One run of all cases of a program, shared by the tests that look at one case each."""
    return once(run, *wrap, programs() / program, epc=epc, options=("--enclu", enclu), seconds=280)


def all_cases(program: str, epc: int, wrap: tuple[str, ...] = (), enclu: str = "fast") -> Ended:
    """How that run ended."""
    return cases(program, epc, wrap, enclu).result()


@contextmanager
def ahead(request: pytest.FixtureRequest, runs: Mapping[str, Callable[..., Future[Any]]]) -> Iterator[None]:
    """Begin the runs whose results the tests of a module will ask for, two at a time and in their order.

    ``runs``: by the name of the test, from its parameters.
    """
    mine = [item for item in request.session.items if item.path == request.path]
    wanted = [item for item in mine if isinstance(item, pytest.Function) and item.originalname in runs]
    begun = [runs[item.originalname](**item.callspec.params) for item in wanted]
    yield
    for run_ in begun:
        run_.cancel()


def expect_case(program: str, case: str, epc: int, enclu: str = "fast") -> None:
    """The case ran there and passed."""
    ended = all_cases(program, epc, enclu=enclu)
    said = f"status {ended.status}\n{ended.output[-2000:]}\n{ended.errors[-3000:]}"
    assert ended.cases.get(case, "was not run") == "ok", said
