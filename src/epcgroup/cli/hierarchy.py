"""What `tree`, `get`, `set`, `watch` and `events` have in common: options, words, amounts."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from epcgroup.observe.printable import printable
from epcgroup.units import format_size

if TYPE_CHECKING:
    from epcgroup.host import Hierarchy, View

__all__ = ["add_options", "amount", "as_json", "hierarchy", "print_json", "print_table", "printable", "row"]

SGX_EPC = "sgx_epc"
COLUMNS = ("max", "effective", "current", "peak", "events")


def add_options(parser: argparse.ArgumentParser, *, amounts: bool = True) -> None:
    """Which tree, which resource, which form."""
    parser.add_argument(
        "--root",
        type=Path,
        metavar="DIR",
        help="the cgroup tree, a kernel's or of `epcgroup serve` (default $EPCGROUP_ROOT, else found)",
    )
    parser.add_argument("--resource", default=SGX_EPC, metavar="NAME", help="misc resource (default sgx_epc)")
    parser.add_argument("--json", action="store_true", help="print JSON, amounts in bytes")
    if amounts:
        parser.add_argument("--bytes", action="store_true", help="print amounts in bytes, not as 64M")


def hierarchy(args: argparse.Namespace) -> Hierarchy:
    """The tree that the options mean. Raises BadInput, Refused."""
    from epcgroup.host import Hierarchy, find

    return Hierarchy(find(args.root, args.resource), args.resource)


def amount(value: int | None, args: argparse.Namespace, absent: str = "-") -> str:
    """An amount of the resource as text: sgx_epc with units unless --bytes."""
    if value is None:
        return absent
    return format_size(value) if args.resource == SGX_EPC and not args.bytes else str(value)


def row(view: View, args: argparse.Namespace) -> list[str]:
    """The columns of one cgroup."""
    if not view.enabled:
        effective = amount(view.effective, args, "max")
        return ["-", effective, "-", "-", "-"]
    limit = f"({amount(view.capacity, args)})" if view.path == "/" else amount(view.max, args, "max")
    return [
        limit,
        amount(view.effective, args, "max"),
        amount(view.current, args),
        amount(view.peak, args),
        "-" if view.events is None else str(view.events),
    ]


def print_table(names: list[str], views: list[View], args: argparse.Namespace) -> None:
    """Aligned columns: the names to the left, amounts to the right."""
    rows = [
        ["cgroup", *COLUMNS],
        *([name, *row(view, args)] for name, view in zip(names, views, strict=True)),
    ]
    widths = [max(len(cells[column]) for cells in rows) for column in range(len(rows[0]))]
    for cells in rows:
        words = [cells[0].ljust(widths[0])]
        words += [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        print("  ".join(words).rstrip())


def print_json(message: Any) -> None:
    """One JSON document; names that are no UTF-8 as escapes."""
    json.dump(message, sys.stdout)
    sys.stdout.write("\n")
    sys.stdout.flush()


def as_json(tree: Hierarchy, views: list[View]) -> dict[str, Any]:
    """The form of `get --json` and `tree --json`."""
    return {"root": str(tree.root), "resource": tree.resource, "cgroups": [asdict(view) for view in views]}
