"""`epcgroup watch`: limits and usage, again and again, a line when something changed."""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import asdict

from epcgroup.cli import hierarchy
from epcgroup.errors import BadInput, Refused


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command to argparse."""
    parser = subparsers.add_parser(
        "watch",
        help="follow usage and events of cgroups",
        description="Print a line for each cgroup whose usage, limit or event count changed.",
    )
    parser.add_argument("group", nargs="*", metavar="GROUP", help="cgroups by path (default: all)")
    parser.add_argument(
        "--interval", type=float, default=1.0, metavar="S", help="seconds between looks (default 1)"
    )
    parser.add_argument("--count", type=int, metavar="N", help="end after N looks (default: never)")
    hierarchy.add_options(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Look, print what changed, wait."""
    if not 0 < args.interval < math.inf:
        raise BadInput(f"--interval {args.interval}: write seconds, more than 0")
    tree = hierarchy.hierarchy(args)
    last: dict[str, object] = {}
    looks = 0
    while True:
        now = time.time()
        try:
            views = [tree.view(group) for group in args.group] if args.group else tree.views()
        except Refused as error:
            if looks and args.group:
                raise Refused(f"{error.strerror} any more", error.errno) from error
            raise
        for view in views:
            if last.get(view.path) == view:
                continue
            last[view.path] = view
            if args.json:
                hierarchy.print_json({"time": now, "resource": tree.resource, **asdict(view)})
            else:
                cells = zip(hierarchy.COLUMNS, hierarchy.row(view, args), strict=True)
                text = "  ".join(f"{name} {cell}" for name, cell in cells)
                print(f"{clock(now)}  {hierarchy.printable(view.path)}  {text}", flush=True)
        looks += 1
        if looks == args.count:
            return 0
        time.sleep(args.interval)


def clock(now: float) -> str:
    """Time of day with milliseconds."""
    return time.strftime("%H:%M:%S", time.localtime(now)) + f".{int(now * 1000) % 1000:03d}"
