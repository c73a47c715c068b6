#!/usr/bin/env python3
"""Run a program under one fault after the other, and tell how it took each.

    .venv/bin/python examples/inject_faults.py ./my-sgx-program --its-options

Each line is a run on a machine of its own: what was injected, how the program
ended, and how much it paged. A program that handles errors ends with a status
of its own choice; what ends with a signal may want a look. Without a program,
`epcgroup stress` is run. The seeds make every line repeatable.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from pathlib import Path

from epcgroup.live import Supervisor

MIB = 1 << 20
STRESS = [sys.executable, "-m", "epcgroup.cli.main", "stress", "--heap", "2M", "--passes", "3"]
PLANS = [
    "nothing",
    "ewb-slow=1ms",
    "eldu-slow=1ms",
    "enospc=0.2,seed=1",
    "eintr=0.3,seed=1",
    "enomem=0.001,seed=1",
    "mac-fail@100",
    "sigbus@100",
]


def run(argv: list[str], plan: str) -> str:
    """One line about one run."""
    inject = [] if plan == "nothing" else [plan]
    with (
        Supervisor(1024, inject=inject, log=io.StringIO()) as machine,
        Path(os.devnull).open("wb") as nowhere,
    ):
        machine.mkdir("/job", limit=MIB)
        pid = machine.spawn(argv, group="/job", stdout=nowhere.fileno())
        status = os.waitstatus_to_exitcode(machine.run()[pid])
        group = machine.snapshot().group("/job")
    assert group is not None
    ended = f"status {status}" if status >= 0 else signal.Signals(-status).name
    return f"{plan:20} {ended:12} {group.pages_out:8,} out {group.pages_in:8,} in"


def main(argv: list[str]) -> int:
    """All plans."""
    for plan in PLANS:
        print(run(argv or STRESS, plan), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
