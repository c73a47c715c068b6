"""Run `epcgroup serve` for a test, and commands inside it; nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.processes import tree

EPCGROUP = str(Path(sys.executable).parent / "epcgroup")
NEEDS = ("x86-64", "ptrace", "userfaultfd", "fuse")


@dataclass
class Served:
    """A running server."""

    process: subprocess.Popen[str]
    directory: Path
    mount: Path

    def path(self, name: str) -> Path:
        """A file or directory of the mounted tree."""
        return self.mount / name

    def read(self, name: str) -> str:
        """Contents of a file of the tree."""
        return self.path(name).read_text()

    def write(self, name: str, text: str) -> None:
        """One write to a file of the tree."""
        fd = os.open(self.path(name), os.O_WRONLY)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)

    def value(self, name: str, key: str = "sgx_epc") -> str:
        """The value of one key of a misc file."""
        return dict(line.split(" ") for line in self.read(name).splitlines())[key]

    def argv(self, group: str, *command: str) -> list[str]:
        """`epcgroup exec` in this server."""
        return [EPCGROUP, "exec", "--dir", str(self.directory), "-g", group, "--", *command]

    def exec(self, group: str, *command: str, **how: Any) -> subprocess.CompletedProcess[str]:
        """Run a command inside to its end."""
        options = {"capture_output": True, "timeout": 90, "stdin": subprocess.DEVNULL, **how}
        return subprocess.run(self.argv(group, *command), text=True, check=False, **options)

    def saved(self, word: str) -> bool:
        """Whether the tree that a restart would find has this in it."""
        state = self.directory / "state"
        return state.exists() and word in state.read_text()

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """End the server; its status and what it said."""
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=90)
        return self.process.returncode, errors


def eventually(what: object, seconds: float = 60) -> None:
    """Wait until ``what()`` is true."""
    end = time.monotonic() + seconds
    while not what():  # type: ignore[operator]
        if time.monotonic() > end:
            pytest.fail(f"not true within {seconds} s", pytrace=True)
        time.sleep(0.02)


@contextmanager
def served(directory: Path, *options: str, epc: str = "16M") -> Iterator[Served]:
    """A server with its things in ``directory``; killed and unmounted at the end, come what may."""
    mount = directory / "cgroup"
    words = [EPCGROUP, "serve", "--dir", str(directory), "--epc", epc, *options]
    process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        said = process.stderr.readline()
        while "serving" not in said:
            assert process.poll() is None or said, f"the server ended: {said}"
            said = process.stderr.readline()
        eventually((directory / "control").exists)
        yield Served(process, directory, mount)
    finally:
        process.kill()
        process.communicate()
        unmount(mount)


@contextmanager
def stressed(
    machine: Served, group: str, *options: str, wrap: tuple[str, ...] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """`epcgroup stress` in a cgroup for as long as the block takes; it must end well."""
    command = machine.argv(group, *wrap, EPCGROUP, "stress", "--seconds", "600", *options)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            yield process
            eventually(lambda: any(map(catches_sigterm, tree(machine.process.pid))))
            process.terminate()
            assert process.wait(90) == 0
        finally:
            process.kill()


def catches_sigterm(pid: int) -> bool:
    """Whether this is `epcgroup stress` with its enclave loaded: SIGTERM ends it with a check now."""
    with suppress(OSError):
        status = Path(f"/proc/{pid}/status").read_text()
        caught = int(status.split("SigCgt:")[1].split()[0], 16) >> (signal.SIGTERM - 1) & 1
        return bool(caught) and b"stress" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return False


def unmount(mount: Path) -> None:
    """Take a left-over mount away."""
    with suppress(FileNotFoundError):
        subprocess.run(["fusermount3", "-uz", str(mount)], stderr=subprocess.DEVNULL, check=False)
