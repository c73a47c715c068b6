"""Kill the supervisor, or a program under it, at random moments, again and again.

    python -m tests.soak.kills [--times 1000] [--seed N]

A round starts a machine that pages hard (three programs that check their enclaves' contents without
end), waits a random moment, and kills either the supervisor or one of the programs. Killed supervisor:
no program of it may survive or stay stopped, and none may ever say that its contents changed. Killed
program: the others go on, and when they have ended the machine's report says that nothing is charged.
Nothing is left in the temporary directory, or mounted there. Status 1 at the first round that broke.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.e2e.processes import tree, wait_until_gone
from tests.programs.build import build

EPCGROUP = str(Path(sys.executable).parent / "epcgroup")
_SCRIPT = 'for i in 1 2 3; do "$0" hold 120 & done; wait'
_LONGEST = 1.2  # s before the kill


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="kill supervisors and programs at random moments")
    parser.add_argument("--times", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    return kill_many(args.times, args.seed)


def kill_many(times: int, seed: int) -> int:
    """So many rounds; 1 when one broke."""
    chance, done = random.Random(seed), Counter[str]()
    began = time.monotonic()
    for number in range(1, times + 1):
        whom = chance.choice(("supervisor", "supervisor", "program"))
        with tempfile.TemporaryDirectory(prefix="epcgroup-kills-") as directory:
            trouble = _round(whom, chance.uniform(0.02, _LONGEST), chance, Path(directory))
        if trouble:
            print(f"BROKEN in round {number} (seed {seed}, {whom} killed): {trouble}")
            return 1
        done[whom] += 1
    kinds = ", ".join(f"{whom} {count} times" for whom, count in sorted(done.items()))
    print(f"killed {kinds} in {time.monotonic() - began:.0f} s; nothing was left, nothing was wrong")
    return 0


def _round(whom: str, wait: float, chance: random.Random, directory: Path) -> str:
    """One machine, one kill; what is wrong afterwards, or nothing."""
    report, output = directory / "report.json", directory / "output"
    words = [EPCGROUP, "run", "--epc", "150 pages", "--report", "json", "--report-file", str(report), "--"]
    command = [*words, "bash", "-c", _SCRIPT, str(build() / "load")]
    environment = {**os.environ, "TMPDIR": str(directory)}
    with output.open("wb") as said:
        machine = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            env=environment,
            start_new_session=True,
        )
        time.sleep(wait)
        below = [pid for pid in tree(machine.pid) if pid != machine.pid]
        if whom == "supervisor":
            machine.kill()
            machine.wait()
            trouble = _left(below)
        else:
            trouble = _kill_programs(machine, below, chance, report)
    text = output.read_text(errors="replace")
    if "the heap changed" in text or "internal error" in text or "Traceback" in text:
        return text[-2000:]
    if str(directory) in Path("/proc/self/mounts").read_text():
        return f"something is mounted in {directory}"
    left = [path.name for path in directory.iterdir() if path not in (report, output)]
    return trouble or (f"left behind: {left}" if left else "")


def _kill_programs(
    machine: subprocess.Popen[bytes], below: list[int], chance: random.Random, report: Path
) -> str:
    """Kill one, let the others go on for a moment, then the rest; the machine must end well."""
    if below:
        _kill(chance.choice(below))
    time.sleep(0.2)
    until = time.monotonic() + 60
    while machine.poll() is None:
        for pid in {*below, *tree(machine.pid)} - {machine.pid}:  # children of the dead are nobody's below
            _kill(pid)
        time.sleep(0.05)
        if time.monotonic() > until:
            machine.kill()
            machine.wait()
            return "the machine did not end when all its programs had"
    if report.exists():
        groups = json.loads(report.read_text())["groups"]
        if any(group["current"] for group in groups):
            return f"something is still charged: {groups}"
    return _left(below)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _left(pids: list[int]) -> str:
    left = wait_until_gone(pids)
    return f"still there: {left}" if left else ""


if __name__ == "__main__":
    sys.exit(main())
