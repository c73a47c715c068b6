"""`epcgroup events`: a line each time a cgroup hits its limit, as the kernel announces it."""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

from epcgroup.cli import hierarchy
from epcgroup.cli.watch import clock
from epcgroup.errors import BadInput, Refused


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command to argparse."""
    parser = subparsers.add_parser(
        "events",
        help="wait for limits to be hit",
        description="Wait for changes of misc.events and print them. Announcements come at most about 100 "
        "times a second for a cgroup; counts are exact.",
    )
    parser.add_argument("group", nargs="*", metavar="GROUP", help="cgroups by path (default: all)")
    parser.add_argument("--count", type=int, metavar="N", help="end after N lines (default: never)")
    parser.add_argument(
        "--timeout", type=float, metavar="S", help="end when nothing came for the rest of S seconds"
    )
    parser.add_argument(
        "--local", action="store_true", help="misc.events.local: the limits hit there, not below"
    )
    hierarchy.add_options(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Wait and print; 1 when the time was over before anything came."""
    from epcgroup.host import watch
    from epcgroup.host.cgroup import normal

    if args.timeout is not None and not 0 <= args.timeout < math.inf:
        raise BadInput(f"--timeout {args.timeout:g}: write seconds, 0 or more")
    tree = hierarchy.hierarchy(args)
    name = "misc.events.local" if args.local else "misc.events"
    paths = [normal(path) for path in args.group] or [
        path for path in tree.walk("/") if tree.file(path, name).exists()
    ]
    files: dict[Path, str] = {}
    counts: dict[Path, int] = {}
    for path in paths:
        tree.directory(path)
        file = tree.file(path, name)
        if not file.exists():
            raise Refused(f"{path} has no {name}: its parent does not enable misc")
        files[file] = path
        counts[file] = _count((tree.keyed(path, name) or {}), tree.resource)
    printed = 0
    for change in watch.changes(list(files), args.timeout):
        values = dict(line.split(" ") for line in change.text.splitlines())
        count = _count(values, tree.resource)
        new, counts[change.file] = count - counts[change.file], count
        if not new and not change.removed:
            continue  # another resource's
        _print(args, files[change.file], count, new, change.removed)
        printed += 1
        if printed == args.count:
            return 0
    return 0 if printed else 1


def _count(values: dict[str, str], resource: str) -> int:
    return int(values.get(f"{resource}.max", "0"))


def _print(args: argparse.Namespace, path: str, count: int, new: int, removed: bool) -> None:
    now = time.time()
    if args.json:
        message = {"time": now, "cgroup": path, "removed": removed}
        hierarchy.print_json(message if removed else {**message, "max": count, "new": new})
    else:
        text = "removed" if removed else f"max {count} (+{new})"
        print(f"{clock(now)}  {hierarchy.printable(path)}  {text}", flush=True)
