"""`epcgroup doctor`: what this machine has, what is missing, and the command that mends it."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from epcgroup.cli import hierarchy

if TYPE_CHECKING:
    from epcgroup.host.doctor import Fact

_MARKS = {True: "ok", False: "MISSING", None: "note"}
_TITLES = {
    "run": "epcgroup run, demo: programs on an emulated machine",
    "serve": "epcgroup serve: cgroup files mounted",
    "kernel": "EPC cgroups of this kernel",
    "limits": "Limits that may not mean what they say",
    "clients": "Clients found here",
}
_EMULATION = ("run", "serve")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command to argparse."""
    parser = subparsers.add_parser(
        "doctor",
        help="what this machine has, what is missing, how to get it",
        description="Look at this machine. Exit status 0 when `run` and `serve` can work here, else 1.",
    )
    help_fix = "take away mounts and device placeholders whose server is gone"
    parser.add_argument("--fix", action="store_true", help=help_fix)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Look, perhaps mend, print."""
    from epcgroup.host import doctor

    done = doctor.fix() if args.fix else []
    facts = doctor.examine()
    usable = {face: doctor.usable(facts, face) for face in ("run", "serve", "kernel")}
    if args.json:
        listed = [asdict(fact) for fact in facts]
        hierarchy.print_json({"fixed": done, "usable": usable, "facts": listed})
    else:
        for line in done:
            print(f"fixed    {hierarchy.printable(line)}")
        for face in doctor.FACES:
            _print_face(face, [fact for fact in facts if fact.face == face])
    return 0 if all(usable[face] for face in _EMULATION) else 1


def _print_face(face: str, facts: list[Fact]) -> None:
    if not facts:
        return
    print(_TITLES[face])
    for fact in facts:
        print(f"  {_MARKS[fact.ok]:8} {hierarchy.printable(fact.what)}: {hierarchy.printable(fact.detail)}")
        if fact.fix and fact.ok is not True:
            print(f"  {'':8} → {hierarchy.printable(fact.fix)}")
