"""A real `epcgroup serve` with real tenants, for benchmarks that look at it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

EPCGROUP = str(Path(sys.executable).parent / "epcgroup")

# The demo's: heap, pattern, touches a second. Each has a limit of 16 MiB; batch pages as fast as it can.
LIMIT = 16 << 20
TENANTS = {
    "web": ("9M", "zipf", "20000"),
    "neighbour": ("12M", "random", "20000"),
    "batch": ("48M", "random", None),
}


@contextlib.contextmanager
def process(words: list[str], **how: object) -> Iterator[subprocess.Popen[str]]:
    """A process that is ended with the block."""
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, text=True, **how) as started:  # type: ignore[call-overload]
        try:
            yield started
        finally:
            if started.poll() is None:
                started.send_signal(signal.SIGTERM)
            try:
                started.wait(20)
            except subprocess.TimeoutExpired:
                started.kill()


@contextlib.contextmanager
def server(directory: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """`epcgroup serve` with 64 MiB of EPC; its stderr is still to be read."""
    words = [EPCGROUP, "serve", "--dir", str(directory), "--epc", "64M", *options]
    with process(words, stderr=subprocess.PIPE) as started:
        said(started, "serving")
        yield started


@contextlib.contextmanager
def listening(*words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A command that says where it listens, and where that is."""
    with process([EPCGROUP, *words], stderr=subprocess.PIPE) as started:
        yield started, url(started)


def tenant(directory: Path, name: str, seconds: float) -> contextlib.AbstractContextManager[object]:
    """Makes the tenant's cgroup, and runs it."""
    (directory / "cgroup" / name).mkdir()
    (directory / "cgroup" / name / "misc.max").write_text(f"sgx_epc {LIMIT}")
    heap, pattern, rate = TENANTS[name]
    words = [EPCGROUP, "exec", "--dir", str(directory), "-g", name, "--", EPCGROUP, "stress"]
    words += ["--report", "json", "--heap", heap, "--pattern", pattern, "--seconds", str(seconds)]
    words += [] if rate is None else ["--rate", rate]
    return process(words, stdout=subprocess.DEVNULL)


def said(started: subprocess.Popen[str], words: str) -> str:
    """The line of its stderr that has these words."""
    assert started.stderr is not None
    for line in started.stderr:
        if words in line:
            return line
    raise SystemExit(f"it never said {words!r}")


def url(started: subprocess.Popen[str]) -> str:
    """Where a view says that it is."""
    found = re.search(r"http://\S+", said(started, "http://"))
    assert found is not None
    drain(started)
    return found[0]


def drain(started: subprocess.Popen[str]) -> None:
    """Read what it says from now on, so that it never waits for us."""
    assert started.stderr is not None
    threading.Thread(target=started.stderr.read, daemon=True).start()


def whole_cpu_s(pid: int) -> float:
    """Processor time of a process so far, of threads that ended too; in ticks."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
