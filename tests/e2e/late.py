"""A program that runs natively, does what it is told by lines, and is joined while it runs."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.e2e.machine import EPCGROUP, programs

NATIVE = "look cpuid 0 open 2 stat 2 broken 0"  # 2 is ENOENT
SGX = "look cpuid 1 open 0 stat 0 broken 0"
PATIENCE = 60  # s


@dataclass
class Late:
    """A running tests/programs/cases/late.c."""

    process: subprocess.Popen[str]
    heard: bytes = b""

    @property
    def pid(self) -> int:
        return self.process.pid

    def tell(self, line: str) -> None:
        """One command."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        """The next line that it prints."""
        assert self.process.stdout is not None
        while b"\n" not in self.heard:
            ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
            assert ready, "it says nothing"
            said = os.read(self.process.stdout.fileno(), 4096)
            assert said, f"it has ended: {self.process.wait()}"
            self.heard += said
        line, _, self.heard = self.heard.partition(b"\n")
        return line.decode()

    def ask(self, line: str) -> str:
        """The answer to one command."""
        self.tell(line)
        return self.hear()

    def status(self, field: str) -> str:
        """A field of /proc/PID/status."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return line.partition(":")[2].strip()
        raise KeyError(field)


@contextmanager
def late(*wrap: str) -> Iterator[Late]:
    """The program, started without us; unbuffered, so that no line waits where nobody looks."""
    process = subprocess.Popen(
        [*wrap, str(programs() / "late")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, bufsize=1, start_new_session=True,
    )  # fmt: skip
    try:
        program = Late(process)
        assert program.hear() == "ready"
        yield program
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def refusal(*arguments: str) -> str:
    """What `epcgroup attach` says when it refuses."""
    done = subprocess.run([EPCGROUP, "attach", *arguments], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode, done.stderr
    return done.stderr


@contextmanager
def attached(*arguments: str | int, wrap: Sequence[str] = ()) -> Iterator[subprocess.Popen[str]]:
    """`epcgroup attach`, when it has attached."""
    command = [*wrap, EPCGROUP, "attach", *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        said = process.stderr.readline()
        if "attached" not in said:
            pytest.fail(f"not attached: {said}{process.stderr.read()}", pytrace=False)
        yield process
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
