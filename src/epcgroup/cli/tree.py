"""`epcgroup tree`: the cgroups of a machine, as a tree with limits and usage."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from epcgroup.cli import hierarchy

if TYPE_CHECKING:
    from epcgroup.host import View


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command to argparse."""
    parser = subparsers.add_parser(
        "tree",
        help="the cgroups as a tree, with limits and usage",
        description="Show a cgroup and all below it as a tree, with limits, usage and events.",
    )
    parser.add_argument("group", nargs="?", default="/", metavar="GROUP", help="where to begin (default /)")
    hierarchy.add_options(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Print the tree or JSON."""
    tree = hierarchy.hierarchy(args)
    views = tree.views(args.group)
    if args.json:
        hierarchy.print_json(hierarchy.as_json(tree, views))
    else:
        hierarchy.print_table(branches(views), views, args)
    return 0


def branches(views: list[View]) -> list[str]:
    """The names with the lines that lead to them; parents come before children."""
    last: dict[str, str] = {}  # parent -> its last child
    for view in views[1:]:
        last[_parent(view.path)] = view.path
    lines = {views[0].path: ""}  # what the children's lines begin with
    names = [hierarchy.printable(views[0].path)]
    for view in views[1:]:
        parent = _parent(view.path)
        is_last = last[parent] == view.path
        names.append(
            lines[parent] + ("└─ " if is_last else "├─ ") + hierarchy.printable(view.path.rpartition("/")[2])
        )
        lines[view.path] = lines[parent] + ("   " if is_last else "│  ")
    return names


def _parent(path: str) -> str:
    return path.rpartition("/")[0] or "/"
