"""`epcgroup replay`: the accesses of a trace made anew by real enclaves, under any limit."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from epcgroup.cli import run as run_command

GROUP = "/replay"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command to argparse."""
    parser = subparsers.add_parser(
        "replay",
        help="drive real enclaves by a trace, under any limit",
        description="Run `epcgroup stress --trace` for each enclave of a trace, all at once, on a machine of "
        f"its own, in the cgroup {GROUP}/N of a limit. Needs the extra sim.",
    )
    parser.add_argument("trace", type=Path, metavar="FILE.parquet", help="the trace (docs/traces.md)")
    run_command.add_machine(parser)
    parser.add_argument("--cgroup", action="append", default=[], help=argparse.SUPPRESS)  # refused, in words
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Replay; 0 when every enclave found what it had written."""
    from epcgroup import sim
    from epcgroup.errors import BadInput

    sim.require()
    from epcgroup.sim.traces.trace import Trace

    numbers = sorted(Trace(args.trace).info.enclaves)
    if not numbers:
        raise BadInput(f"{args.trace}: it has no enclaves")
    if args.cgroup:
        raise BadInput(f"replay makes its own cgroups below {GROUP}; --max is the limit of them all")
    limit = run_command.groups_of(args)[-1][1]
    groups = [(GROUP, limit), *((f"{GROUP}/{number}", None) for number in numbers)]
    base = [sys.executable, "-m", "epcgroup.cli.main", "stress", "--trace", str(args.trace.absolute())]
    with run_command.machine_of(args, groups) as (machine, serve):
        for number in numbers:
            machine.spawn(
                [*base, "--enclave", str(number)], group=f"{GROUP}/{number}", stdout=sys.stderr.fileno()
            )
        statuses = serve()
    return int(any(statuses.values()))
