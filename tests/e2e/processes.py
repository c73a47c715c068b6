"""Processes seen from outside: who is below whom, in which state, and whether they are gone."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path


def tree(pid: int) -> Iterator[int]:
    """The process and all its descendants."""
    yield pid
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from tree(int(child))


def programs_below(supervisor: int) -> list[int]:
    """The processes that it runs: all below it but its helpers."""
    return [pid for pid in tree(supervisor) if pid != supervisor and not is_helper(pid)]


def is_helper(pid: int) -> bool:
    """Whether it is what outlives a supervisor for a moment, or what hears signals to its group."""
    return any(name in command_line(pid) for name in ("survivor", "group-witness"))


def command_line(pid: int) -> str:
    """Its words, or "" when the process is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def opened(pid: int) -> list[str]:
    """What the descriptors of a process are."""
    targets = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            targets.append(str(link.readlink()))
    return targets


def state_of(pid: int) -> str:
    """R, S, T, t, Z … or "" when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def cpu_ticks(pid: int) -> int:
    """What it has used of processors, in 1/100 s."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def wait_until_gone(pids: list[int], seconds: float = 60) -> dict[int, str]:
    """Those that are still there afterwards, with their states; zombies are as good as gone."""
    deadline = time.monotonic() + seconds
    left = dict.fromkeys(pids, "?")
    while left and time.monotonic() < deadline:
        left = {pid: state for pid in pids if (state := state_of(pid)) not in ("", "Z", "X")}
        time.sleep(0.01)
    return left
