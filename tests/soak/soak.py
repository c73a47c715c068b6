"""Random tenants on one machine that checks itself: starts, limits changed on the fly, kills.

    python -m tests.soak.soak [--seconds 600] [--seed N] [--epc-pages 512] [--policy standard]
                              [--page-service python|compiled]

Each tenant is a real program that checks its enclave's contents without end. After every operation all
invariants are checked (`--paranoid`'s rules). Prints figures at the end; status 1 when a
tenant found wrong contents, when an invariant broke, or when anything is charged at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

from tests.programs.build import build

from epcgroup.errors import EpcgroupError
from epcgroup.live import Supervisor

GROUPS = ("/a", "/a/b", "/a/c", "/d", "/d/e/f")
MOST = 5  # tenants at once
WRONG = 3  # exit status of `load` when its heap changed
_PAUSE = 0.15  # s between two things that happen, on average


@dataclass
class Soak:
    """The machine and what was done to it."""

    machine: Supervisor
    chance: random.Random
    epc_pages: int
    until: float
    load: str
    sink: int
    alive: set[int] = field(default_factory=set)
    done: Counter[str] = field(default_factory=Counter)
    wrong: list[int] = field(default_factory=list)
    _next: float = 0.0

    def round(self) -> bool:
        """Called between stops: what ended, and now and then something new. False when time is up."""
        self._collect()
        now = time.monotonic()
        if now >= self.until:
            for pid in self.alive:
                _kill(pid)
            return False
        if now >= self._next:
            self._next = now + self.chance.expovariate(1 / _PAUSE)
            actions = (self._start, self._start, self._limit, self._limit, self._kill)
            self.chance.choice(actions)()
        return True

    def _collect(self) -> None:
        statuses = self.machine.statuses
        while statuses:
            pid, status = statuses.popitem()
            if pid not in self.alive:
                continue
            self.alive.discard(pid)
            if os.WIFSIGNALED(status):
                self.done[f"ended by {signal.Signals(os.WTERMSIG(status)).name}"] += 1
            else:
                self.done[f"ended with status {os.WEXITSTATUS(status)}"] += 1
                if os.WEXITSTATUS(status) == WRONG:
                    self.wrong.append(pid)

    def _start(self) -> None:
        if len(self.alive) >= MOST:
            return
        pages = self.chance.randrange(8, self.epc_pages)
        kind = self.chance.choice(("hold", "hold", "once", "fork"))
        group = self.chance.choice(GROUPS)
        argv = [self.load, kind, str(pages)]
        self.alive.add(self.machine.spawn(argv, group, stdout=self.sink, stderr=self.sink, session=True))
        self.done["started"] += 1

    def _limit(self) -> None:
        choice = self.chance.choice((None, self.epc_pages // 4, self.epc_pages // 2, self.epc_pages))
        limit = None if choice is None else self.chance.randrange(16, choice + 16) * 4096
        self.machine.set_max(self.chance.choice(GROUPS), limit)
        self.done["limits set"] += 1

    def _kill(self) -> None:
        if self.alive:
            _kill(self.chance.choice(sorted(self.alive)))
            self.done["kills"] += 1


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        os.kill(pid, signal.SIGKILL)


def soak(seconds: float, seed: int, epc_pages: int, policy: str, page_service: str = "auto") -> list[str]:
    """Run; what went wrong. Prints figures."""
    troubles: list[str] = []
    how = Supervisor(epc_pages, policy, paranoid=True, page_service=page_service)
    with open(os.devnull, "w") as sink, how as machine:  # noqa: PTH123
        for path in GROUPS:
            machine.mkdir(path)
        load = str(build() / "load")
        until = time.monotonic() + seconds
        run = Soak(machine, random.Random(seed), epc_pages, until, load, sink.fileno())
        try:
            machine.run(serving=run.round)
        except EpcgroupError as error:
            troubles.append(str(error))
        end = machine.snapshot()
    troubles += [f"program {pid} found wrong contents" for pid in run.wrong]
    root = end.groups[0]
    if not troubles and (root.current or end.free_pages != epc_pages):
        troubles.append(f"at the end {root.current} bytes are charged and {end.free_pages} pages free")
    loads = sum(group.pages_in for group in end.groups)
    evictions = sum(group.pages_out for group in end.groups)
    print(f"{seconds:.0f} s, {epc_pages} pages of EPC, policy {policy}, seed {seed}")
    for what, count in sorted(run.done.items()):
        print(f"{count:8} {what}")
    print(f"{loads:8} pages loaded\n{evictions:8} pages evicted")
    return troubles


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="random tenants on a machine that checks itself")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--epc-pages", type=int, default=512)
    parser.add_argument("--policy", default="standard")
    parser.add_argument("--page-service", default="auto", choices=("python", "compiled"))
    args = parser.parse_args()
    troubles = soak(args.seconds, args.seed, args.epc_pages, args.policy, args.page_service)
    for trouble in troubles:
        print(f"BROKEN: {trouble}")
    print("all invariants held, nothing is charged" if not troubles else f"{len(troubles)} troubles")
    return int(bool(troubles))


if __name__ == "__main__":
    sys.exit(main())
