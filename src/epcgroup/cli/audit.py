"""`epcgroup audit`: asked, handed over, set, used, and every gap between them."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from epcgroup.cli import hierarchy
from epcgroup.errors import BadInput, Refused
from epcgroup.units import format_size, parse_size

if TYPE_CHECKING:
    from epcgroup.host.audit import Gap, Workload

_ORDER = {"error": 0, "warning": 1, "note": 2}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command to argparse."""
    parser = subparsers.add_parser(
        "audit",
        help="asked, set, used: every gap between pod specs, bundles and the live tree",
        description="Read pod specs (YAML, JSON, `kubectl get pods -o yaml`), OCI bundles, and the live "
        "tree, and list every gap. Exit status 0 when no error was found, else 1.",
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE|DIR", help="specs, bundles, directories")
    parser.add_argument("--no-tree", action="store_true", help="compare the documents only")
    parser.add_argument("--enclave-size", metavar="SIZE", help="the largest enclave (default: the EPC asked)")
    hierarchy.add_options(parser, amounts=False)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Read, compare, tell."""
    from epcgroup.host import audit

    size = parse_size(args.enclave_size, "--enclave-size") if args.enclave_size else None
    workloads = [workload for file in args.files for workload in audit.read(file)]
    tree, why_not = None, "left out (--no-tree)"
    if not args.no_tree:
        try:
            tree = hierarchy.hierarchy(args)
        except Refused as error:
            if args.root is not None:
                raise
            why_not = f"not compared: {error.strerror}"
    if tree is None and not workloads:
        names = ", ".join(str(file) for file in args.files)
        raise BadInput(f"nothing to compare: no container in {names} (pod specs, OCI bundles), no live tree")
    gaps = sorted(audit.compare(workloads, tree, size), key=lambda gap: _ORDER[gap.level])
    failed = any(gap.level == "error" for gap in gaps)
    if args.json:
        hierarchy.print_json(
            {
                "tree": None if tree is None else str(tree.root),
                "workloads": [asdict(each) for each in workloads],
                "gaps": [asdict(gap) for gap in gaps],
            }
        )
        return int(failed)
    _print(workloads, gaps, f"tree {tree.root}" if tree is not None else f"live tree {why_not}")
    return int(failed)


def _print(workloads: list[Workload], gaps: list[Gap], tree: str) -> None:
    asking = [each for each in workloads if each.asked or each.limits]
    count = f"{len(workloads)} container{'s' * (len(workloads) != 1)}"
    print(
        f"{count}, {len(asking)} of them ask{'s' * (len(asking) == 1)} for EPC; {hierarchy.printable(tree)}"
    )
    for each in asking:
        name = hierarchy.printable(each.name)
        asked = "-" if not each.asked else "not readable" if each.asks is None else format_size(each.asks)
        limit = "not readable" if any(one.problem for one in each.limits) else "none"
        limit = format_size(each.limit) if each.limit else limit if each.limits else "-"
        print(f"  {name}: asked {asked}, limit handed over {limit}")
    for gap in gaps:
        name, text = hierarchy.printable(gap.workload), hierarchy.printable(gap.text)
        print(f"{gap.level:8} {name}: {gap.kind}: {text}")
        if gap.fix:
            print(f"{'':8} → {hierarchy.printable(gap.fix)}")
    if not gaps:
        print("no gaps")
