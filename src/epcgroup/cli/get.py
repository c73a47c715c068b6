"""`epcgroup get`: limits and usage of cgroups, from their files."""

from __future__ import annotations

import argparse

from epcgroup.cli import hierarchy


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command to argparse."""
    parser = subparsers.add_parser(
        "get",
        help="limits, usage and events of cgroups",
        description="Show limit, effective limit (the smallest up to the root), usage, peak and events.",
    )
    parser.add_argument("group", nargs="*", metavar="GROUP", help="cgroups by path (default: all)")
    hierarchy.add_options(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Print a table or JSON."""
    tree = hierarchy.hierarchy(args)
    views = [tree.view(group) for group in args.group] if args.group else tree.views()
    if args.json:
        hierarchy.print_json(hierarchy.as_json(tree, views))
    else:
        hierarchy.print_table([hierarchy.printable(view.path) for view in views], views, args)
    return 0
