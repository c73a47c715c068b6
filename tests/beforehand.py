"""What tests need and what takes long to make, made beside the first of them, on the second processor.

    python -m tests.beforehand mypy programs …

The suite starts this for what its tests will ask for, in the order of asking. Whoever asks makes the thing
where it is not there, and waits at its lock while it is made here: so nothing depends on this, least of all
what is said of a failure. It is no child of the suite, whose tests wait for any child of theirs; it ends with
the suite, which has the other end of its standard input.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.contract.selftest.build import CannotBuild, selftest
from tests.programs.build import BuildError, build, cache_root
from tests.programs.library_os import library_os
from tests.programs.package import loader

ROOT = Path(__file__).resolve().parent.parent

#: What it is, by the paths of the tests that need it: in the order of the suite.
NEEDED_BY = {
    "mypy": ("tests/unit/test_house.py",),
    "programs": ("tests/e2e/", "tests/soak/", "tests/contract/"),
    "go": ("tests/e2e/test_every_process.py",),
    "rust": ("tests/e2e/test_every_process.py",),
    "library_os": ("tests/contract/library_os/",),
    "selftest": ("tests/contract/selftest/",),
}


@contextmanager
def alone(name: str) -> Iterator[None]:
    """Nobody else is at it meanwhile."""
    cache_root().mkdir(parents=True, exist_ok=True)
    with (cache_root() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def mypy() -> None:
    """Fill the cache of the type checker: what it says is asked for by the test."""
    with alone("mypy"):
        subprocess.run(
            [Path(sys.executable).parent / "mypy"], cwd=ROOT, stdout=subprocess.DEVNULL, check=False
        )


MAKERS: dict[str, Callable[[], object]] = {
    "mypy": mypy,
    "programs": build,
    "go": lambda: loader("go"),
    "rust": lambda: loader("rust"),
    "library_os": library_os,
    "selftest": selftest,
}


def begin(paths: set[str], after: list[str]) -> int | None:
    """Start it for the tests at ``paths``, when the processes ``after`` have ended.

    Returns a descriptor with whose closing it ends; None where nothing is to be made.
    """
    wanted = [name for name, places in NEEDED_BY.items() if any(path.startswith(places) for path in paths)]
    if not wanted:
        return None
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "tests.beforehand", *after, *wanted]
    subprocess.run(command, cwd=ROOT, stdin=reading, stdout=subprocess.DEVNULL, check=True)
    os.close(reading)
    return writing


def _end_with_the_suite() -> None:
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)


def main(names: list[str]) -> None:
    """Make them one after the other, as nobody's child; the test that needs it tells what cannot be made."""
    if os.fork():
        return
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    threading.Thread(target=_end_with_the_suite, daemon=True).start()
    for pid in (int(name) for name in names if name.isdecimal()):
        with suppress(ProcessLookupError):
            select.select([os.pidfd_open(pid)], [], [])
    for name in (name for name in names if name in MAKERS):
        with suppress(BuildError, CannotBuild, OSError, subprocess.SubprocessError):
            MAKERS[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
