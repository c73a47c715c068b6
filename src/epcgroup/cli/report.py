"""``epcgroup report DIR``: the result of a simulation, as a table and a picture."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = subparsers.add_parser(
        "report",
        help="show the result of a simulation: a table and a picture",
        description="Shows what 'epcgroup sim -o DIR' wrote.",
    )
    parser.add_argument("folder", metavar="DIR", type=Path)
    parser.add_argument("--plot", metavar="PNG", type=Path, help="draw it (needs the extra plot)")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Show it; the exit status."""
    from epcgroup.sim import require

    require()
    from rich.console import Console

    from epcgroup.sim.report import render
    from epcgroup.sim.result import Result

    result = Result.read(args.folder)
    if args.plot is not None:
        from epcgroup.sim.plot import plot

        plot(result, args.plot)
    Console().print(render(result))
    return 0
