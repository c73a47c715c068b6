"""`epcgroup attach`: a process that already runs joins an emulated machine."""

from __future__ import annotations

import argparse
import signal
import sys

from epcgroup.cli.run import add_machine, groups_of, machine_of


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command to argparse."""
    parser = subparsers.add_parser(
        "attach",
        help="have a running process, its threads and children join an emulated machine",
        description="Have a running process join a machine of its own, until it ends or a signal ends us. "
        "It may then use SGX. While it has not opened a device it survives our end, afterwards it does not.",
    )
    add_machine(parser)
    parser.add_argument("pid", type=int, metavar="PID", help="the process")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Serve the process until it ends, or let it go at the first signal."""
    groups = groups_of(args)
    ending: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda sig, _: ending.append(sig))
    with machine_of(args, groups) as (machine, serve):
        joined = machine.attach(args.pid, groups[-1][0])
        others = f" and {len(joined) - 1} more" if len(joined) > 1 else ""
        print(f"epcgroup: attached to process {args.pid}{others}", file=sys.stderr, flush=True)

        def look() -> bool:
            if ending:
                ending.clear()
                machine.let_go()
            return False

        serve(serving=look)
    return 0
