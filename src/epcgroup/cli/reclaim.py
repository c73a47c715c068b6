"""`epcgroup reclaim`: evict so much of a cgroup now, through its misc.reclaim."""

from __future__ import annotations

import argparse
import errno
import sys

from epcgroup.cli import hierarchy
from epcgroup.errors import Refused
from epcgroup.units import format_size, parse_size


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command to argparse."""
    parser = subparsers.add_parser(
        "reclaim",
        help="evict EPC pages of a cgroup now",
        description="Write a size to a cgroup's misc.reclaim (`epcgroup serve --extensions`) and say what "
        "came of it. Exit status 0: that much or more is gone; 1: less.",
    )
    parser.add_argument("group", metavar="GROUP", help="the cgroup by path")
    parser.add_argument("size", metavar="SIZE", help="64M, 1G, 4096, '16384 pages'")
    hierarchy.add_options(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Reclaim, and compare usage before and after."""
    size = parse_size(args.size)
    tree = hierarchy.hierarchy(args)
    before = tree.view(args.group).current
    try:
        tree.reclaim(args.group, size)
        enough = True
    except Refused as refused:
        if refused.errno != errno.EAGAIN:
            raise
        enough = False
    after = tree.view(args.group).current
    if args.json:
        hierarchy.print_json({"wanted": size, "reclaimed": enough, "before": before, "after": after})
    else:
        print(f"usage {hierarchy.amount(before, args)} before, {hierarchy.amount(after, args)} after")
        if not enough:
            print(
                f"epcgroup: less than {format_size(size)} could be evicted; "
                "the rest is not reclaimable, or in use again already",
                file=sys.stderr,
            )
    return 0 if enough else 1
