"""`epcgroup selftest`: the scenarios of the series' own test scripts, on whatever tree is here."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from epcgroup.cli import hierarchy
from epcgroup.cli.served import add_dir, places_of
from epcgroup.errors import MissingCapability, Refused
from epcgroup.units import format_size

if TYPE_CHECKING:
    from epcgroup.host import Hierarchy
    from epcgroup.selftest import Outcome
    from epcgroup.selftest.play import Program

EXIT_SKIPPED = 4  # as the series' script: nothing could be tested here
_MARKS = {True: "pass", False: "FAIL", None: "not run"}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command to argparse."""
    parser = subparsers.add_parser(
        "selftest",
        help="the scenarios of the series' own test scripts, on a kernel's tree or ours",
        description="Run the scenarios of the series' test scripts: groups too small, large and larger for "
        "enclaves of the size of all EPC, one program and many at once, a kill, a memory limit, and nothing "
        "left at the end. Exit status 0 when all hold, 1 when not, 4 when this cannot be tested here.",
    )
    parser.add_argument("--form", choices=("v5", "v17"), default="v17", help="of which series (default v17)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="who is killed, and when (1)")
    parser.add_argument(
        "--program",
        metavar="COMMAND",
        help="what builds the enclave, e.g. './test_sgx -t unclobbered_vdso_oversubscribed' (default: ours)",
    )
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    hierarchy.add_options(parser, amounts=False)
    add_dir(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Here on a kernel's tree, inside the machine on ours."""
    tree = hierarchy.hierarchy(args)
    if not args.inside and _is_ours(tree.root):
        return _inside(args, tree.root)
    if os.geteuid() != 0 and not os.access(tree.root, os.W_OK):
        print(f"epcgroup: {tree.root} is not ours to make cgroups in: run as root", file=sys.stderr)
        return EXIT_SKIPPED
    capacity = tree.view("/").capacity
    if capacity is None:
        print(f"epcgroup: {tree.root} has no EPC (misc.capacity)", file=sys.stderr)
        return EXIT_SKIPPED
    return _play(args, tree, capacity)


def _is_ours(root: Path) -> bool:
    from epcgroup.host import mounts

    return any(mount.point == str(root) and mount.type == mounts.TYPE for mount in mounts.mounts())


def _inside(args: argparse.Namespace, root: Path) -> int:
    """The same command in the machine whose tree this is: its programs must be the machine's."""
    from epcgroup.cli.run import exit_like
    from epcgroup.serve import client

    at = places_of(args)
    if client.where(at)["mount"] != str(root):
        raise Refused(f"the server at {at.socket} does not serve {root}; name its --dir")
    words = ["selftest", "--inside", "--root", str(root), "--form", args.form, "--seed", str(args.seed)]
    words += ["--json"] if args.json else []
    words += ["--program", args.program] if args.program else []
    return exit_like(client.execute(at, "/", [sys.executable, "-m", "epcgroup.cli.main", *words]))


def _play(args: argparse.Namespace, tree: Hierarchy, capacity: int) -> int:
    from epcgroup.selftest import FORMS, ours, play
    from epcgroup.selftest.groups import TestGroups
    from epcgroup.selftest.programs import make_key
    from epcgroup.selftest.scenarios import TRUSTED_EPC

    form = FORMS[args.form]
    with tempfile.TemporaryDirectory(prefix="epcgroup-selftest-") as directory:
        logs = Path(directory)
        if args.program:
            words = shlex.split(args.program)
            program: Program = lambda _: words  # noqa: E731
        else:
            key = logs / "key.pem"
            make_key(key)
            program = partial(ours, capacity, key)
        if not args.json:
            print(f"{form.name} on {hierarchy.printable(str(tree.root))}, {format_size(capacity)} of EPC")
            if capacity < TRUSTED_EPC:
                print(
                    f"note: under {format_size(TRUSTED_EPC)} of EPC the steps prove less: races decide them"
                )
        try:
            with TestGroups(tree, form, capacity) as groups:
                outcomes = play(groups, program, logs, args.seed, _silent if args.json else _tell)
        except (Refused, MissingCapability) as error:
            print(f"epcgroup: nothing tested: {error}", file=sys.stderr)
            return EXIT_SKIPPED
    failed = sum(outcome.passed is False for outcome in outcomes)
    if args.json:
        steps = [asdict(outcome) for outcome in outcomes]
        hierarchy.print_json(
            {"form": form.name, "root": str(tree.root), "capacity": capacity, "steps": steps}
        )
    else:
        done = sum(outcome.passed is True for outcome in outcomes)
        print(f"{done} of {len(outcomes)} hold" + (f", {failed} do not" if failed else ""))
    return int(failed > 0)


def _silent(_: Outcome) -> None:
    pass


def _tell(outcome: Outcome) -> None:
    """One step, as soon as it is over."""
    programs = {0: "", 1: "1 program: "}.get(outcome.programs, f"{outcome.programs} programs: ")
    print(f"{_MARKS[outcome.passed]:8} {outcome.number}. {outcome.group}: {programs}{outcome.expected}")
    print(f"{'':8}    {outcome.shows}")
    if outcome.programs and outcome.passed is not None:
        counts = f"{outcome.successes} succeeded, {outcome.failures} failed"
        print(f"{'':8}    {counts}, the limit was hit {outcome.events} times, {outcome.seconds:.1f} s")
    if outcome.note:
        print(f"{'':8}    {hierarchy.printable(outcome.note)}")
    sys.stdout.flush()
