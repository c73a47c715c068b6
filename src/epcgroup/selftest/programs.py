"""Programs in cgroups: each joins by its own write to cgroup.procs, then executes.

So the charge is made by a process that is inside already, as the scripts' helper does it
(ash_cgexec.sh), and everything works alike on a kernel's tree and on ours.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

# sh: join, wait for the start of the race, become the program.
_JOIN = 'echo 0 > "$1" || exit 126; read -r _ <&3; exec 3<&-; shift; exec "$@"'


def ours(capacity: int, key: Path, keep: float = 0.0) -> list[str]:
    """Our own client: a heap of all EPC, of which a little is touched, once or for ``keep`` seconds."""
    heap, touch = str(capacity), str(min(capacity, 64 << 10))
    words = ["stress", "--heap", heap, "--touch", touch, "--key", str(key)]
    words += ["--seconds", str(keep)] if keep else ["--passes", "1"]
    return [sys.executable, "-m", "epcgroup.cli.main", *words]


def make_key(path: Path) -> None:
    """A signing key for all programs: making one for each would take longer than the programs do."""
    key = rsa.generate_private_key(3, 3072)
    form, plain = serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, plain))


class Race:
    """Programs of one step, started by `go`; killed at the end of the context if they still run."""

    def __init__(self, procs: Path, argv: Sequence[str], count: int, logs: Path) -> None:
        self._argv = ["sh", "-c", _JOIN, "sh", str(procs), *argv]
        self._count, self._logs = count, logs
        self.running: list[subprocess.Popen[bytes]] = []

    @contextlib.contextmanager
    def prepared(self, stagger: float) -> Iterator[None]:
        """Started, joined, and let go ``stagger`` seconds apart (all at once for 0)."""
        gates: list[int] = []
        try:
            for number in range(self._count):
                gates.append(self._start(number))  # noqa: PERF401 - each is to be closed if the next fails
            if not stagger:
                for gate in gates:
                    os.write(gate, b"\n")
            for gate in gates:
                if stagger:
                    os.write(gate, b"\n")
                    time.sleep(stagger)
                os.close(gate)
            gates.clear()
            yield
        finally:
            for gate in gates:
                os.close(gate)
            for program in self.running:
                if program.poll() is None:
                    program.kill()
            for program in self.running:
                program.wait()

    def _start(self, number: int) -> int:
        entry, gate = os.pipe2(os.O_CLOEXEC)
        with (self._logs / f"program-{number}.log").open("wb") as log:
            program = subprocess.Popen(
                self._argv, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                preexec_fn=lambda: os.dup2(entry, 3), pass_fds=(3,),
            )  # fmt: skip
        os.close(entry)
        self.running.append(program)
        return gate

    def statuses(self, timeout: float, but: subprocess.Popen[bytes] | None = None) -> list[int | None]:
        """Exit statuses of all ``but`` one, as subprocess gives them; None: still running at the time-out."""
        until = time.monotonic() + timeout
        found: list[int | None] = []
        for program in self.running:
            if program is but:
                continue
            try:
                found.append(program.wait(max(0.1, until - time.monotonic())))
            except subprocess.TimeoutExpired:
                found.append(None)
        return found

    def last_words(self, number: int) -> str:
        """The last line that a program printed."""
        text = (self._logs / f"program-{number}.log").read_text(errors="replace").strip()
        return text.splitlines()[-1] if text else ""


def killed(program: subprocess.Popen[bytes]) -> bool:
    """Kill a program that still runs; False when it had ended before."""
    if program.poll() is not None:
        return False
    program.send_signal(signal.SIGKILL)
    program.wait()
    return True
