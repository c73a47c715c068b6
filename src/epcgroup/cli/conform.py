"""``epcgroup conform FILE…``: does the engine still do what was recorded?"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from epcgroup.conform import conform
from epcgroup.errors import BadInput


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = subparsers.add_parser(
        "conform",
        help="replay recorded sequences and compare every observation",
        description="Replays each FILE (one JSON record a line) under the policy, or the misc "
        "variants, that its records name. Exit status 0: everything agrees; 1: something differs; "
        "2: a file cannot be used.",
    )
    parser.add_argument(
        "--engine",
        choices=("reference", "compiled"),
        default="reference",
        help="the engine that replays EPC traces (default: reference; compiled needs the extra sim)",
    )
    parser.add_argument("files", metavar="FILE", nargs="+", type=Path)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Judge every file; the exit status."""
    status = 0
    for path in args.files:
        try:
            verdict = conform(path, args.engine)
        except BadInput as error:
            print(f"epcgroup conform: {error}", file=sys.stderr)
            status = 2
            continue
        print(verdict)
        if verdict.differ:
            status = max(status, 1)
    return status
