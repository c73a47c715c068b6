"""`epcgroup record`: page accesses of a served machine as a trace that `epcgroup sim` reads."""

from __future__ import annotations

import argparse
import math
import signal
import sys
import threading
from pathlib import Path

from epcgroup.cli.interrupts import NUMBERS
from epcgroup.cli.served import add_dir, places_of
from epcgroup.errors import BadInput

_EVERY_S = 0.5


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command to argparse."""
    parser = subparsers.add_parser(
        "record",
        help="record the page accesses of a served machine as a trace",
        description="Record until Ctrl-C: every load, and every page that reclaim found touched. Writes "
        "FILE.parquet, and FILE.toml to simulate it. For a command from its start: run --record.",
    )
    parser.add_argument("file", type=Path, metavar="FILE.parquet", help="the trace")
    parser.add_argument("--seconds", type=float, metavar="S", help="end after so long")
    add_dir(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Record until a signal comes, the time is over, or the machine is gone."""
    from epcgroup.cli import recorded
    from epcgroup.serve.sources import SocketSource
    from epcgroup.serve.tape import Tape

    if args.seconds is not None and not 0 < args.seconds < math.inf:
        raise BadInput(f"--seconds {args.seconds:g}: more than 0")
    recorded.check(args.file)
    places = places_of(args)
    source = SocketSource(places)
    snapshot = source.snapshot()
    end = threading.Event()
    for number in NUMBERS:
        signal.signal(number, lambda *_: end.set())
    with Tape(places) as tape, recorded.File(args.file, f"epcgroup record of {places.directory}") as file:
        print("recording; Ctrl-C ends it", file=sys.stderr, flush=True)
        left = args.seconds
        while not end.wait(_EVERY_S if left is None else min(_EVERY_S, left)):
            file.append(*tape.take())
            if file.failed is not None or (left is not None and (left := left - _EVERY_S) <= 0):
                break
        file.append(*tape.take(all_=True))
        snapshot = source.snapshot()
        file.snapshot = snapshot
    recorded.report(file, args.file)
    return 0
