"""`epcgroup set`: the limit of a cgroup, with units, through its misc.max."""

from __future__ import annotations

import argparse
import sys

from epcgroup.cli import hierarchy
from epcgroup.errors import BadInput
from epcgroup.units import PAGE_SIZE, parse_limit


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command to argparse."""
    parser = subparsers.add_parser(
        "set",
        help="set the limit of a cgroup",
        description="Write a limit to a cgroup's misc.max and say what it comes to.",
    )
    parser.add_argument("group", metavar="GROUP", help="the cgroup by path")
    parser.add_argument("limit", metavar="SIZE|max", help="64M, 1G, 4096, '16384 pages', or max")
    parser.add_argument(
        "--file",
        choices=("max", "low", "high"),
        default="max",
        help="misc.max, or of `serve --extensions` misc.low (protection) or misc.high (soft limit)",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be written; write nothing")
    hierarchy.add_options(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Write, read back, tell."""
    limit = parse_limit(args.limit) if args.resource == hierarchy.SGX_EPC else parse_count(args.limit)
    tree = hierarchy.hierarchy(args)
    before = tree.view(args.group)
    old = before.max if args.file == "max" else tree.limit(args.group, args.file)
    change = tree.plan if args.dry_run else tree.set_max
    file, line = change(args.group, limit, args.file)
    after = before if args.dry_run else tree.view(args.group)
    new = after.max if args.file == "max" else tree.limit(args.group, args.file)
    above = tree.effective(before.path.rpartition("/")[0] or "/")
    notes = _notes(args, limit, above, before.current) if args.file == "max" else []
    if args.json:
        hierarchy.print_json(
            {
                "file": str(file), "line": line, "written": not args.dry_run, "before": old,
                "after": new, "effective": after.effective, "effective_of": after.effective_of,
                "notes": notes,
            }
        )  # fmt: skip
        return 0
    done = "would write" if args.dry_run else "wrote"
    print(f"{hierarchy.printable(str(file))}: {done} {line!r} (before: {_text(args, old)})")
    for note in notes:
        print(f"epcgroup: note: {note}", file=sys.stderr)
    return 0


def parse_count(text: str) -> int | None:
    """A limit of a resource that is counted one by one; None for max."""
    if text == "max":
        return None
    if not (text.isascii() and text.isdigit()):
        raise BadInput(f"{text!r} is no count; write a number, or max")
    return int(text)


def _text(args: argparse.Namespace, value: int | None) -> str:
    return hierarchy.amount(value, args, "max")


def _notes(
    args: argparse.Namespace, limit: int | None, above: tuple[int | None, str | None], current: int | None
) -> list[str]:
    """What a person may not expect of this limit."""
    notes = []
    if limit is not None and args.resource == hierarchy.SGX_EPC and limit % PAGE_SIZE:
        whole = limit - limit % PAGE_SIZE
        notes.append(
            f"whole pages are charged: the last {limit % PAGE_SIZE} bytes beyond {whole} are never used"
        )
    if above[0] is not None and above[1] is not None and (limit is None or above[0] < limit):
        notes.append(
            f"the limit of {hierarchy.printable(above[1])}, {_text(args, above[0])}, holds before this one"
        )
    if limit is not None and current is not None and current > limit:
        notes.append(
            f"usage is {_text(args, current)} now, above the limit; what follows is the kernel's policy"
        )
    return notes
