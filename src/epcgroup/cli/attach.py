"""`epcgroup attach`: a process that already runs joins an emulated machine."""

from __future__ import annotations

import argparse
import signal
import sys

from epcgroup.cli import served
from epcgroup.cli.run import add_cgroup, add_machine, groups_of, machine_of
from epcgroup.errors import BadInput

_OF_A_MACHINE = ("epc", "max", "policy", "cgroup", "report", "report_file", "inject", "seed", "paranoid")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command to argparse."""
    parser = subparsers.add_parser(
        "attach",
        help="have a running process, its threads and children join an emulated machine",
        description="Have a running process join a machine, until it or we end: with -g that of "
        "`epcgroup serve`, else one of its own. Then it can use SGX. While it has not opened a device, it "
        "survives the machine's end; afterwards it does not.",
    )
    parser.add_argument("-g", "--group", metavar="GROUP", help="a cgroup of `epcgroup serve`'s machine")
    parser.add_argument("--create", action="store_true", help="create that cgroup if it is not there")
    served.add_dir(parser)
    add_machine(parser)
    add_cgroup(parser, "--cgroup")
    parser.set_defaults(defaults={name: parser.get_default(name) for name in _OF_A_MACHINE})
    parser.add_argument("pid", type=int, metavar="PID", help="the process")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Join it to a server and be done; or serve it until it ends, and let it go at the first signal."""
    if args.group is not None or args.dir is not None:
        return _to_server(args)
    groups = groups_of(args)
    ending: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda sig, _: ending.append(sig))
    with machine_of(args, groups) as (machine, serve):
        _tell(args.pid, machine.attach(args.pid, groups[-1][0]))

        def look() -> bool:
            if ending:
                ending.clear()
                machine.let_go()
            return False

        serve(serving=look)
    return 0


def _to_server(args: argparse.Namespace) -> int:
    for name, default in args.defaults.items():
        if getattr(args, name) != default:
            option = name.replace("_", "-")
            raise BadInput(f"--{option} describes a machine; with -g the process joins the server's")
    from epcgroup.serve import client

    _tell(args.pid, client.attach(served.places_of(args), args.pid, args.group, create=args.create))
    return 0


def _tell(pid: int, joined: list[int]) -> None:
    others = f" and {len(joined) - 1} more" if len(joined) > 1 else ""
    print(f"epcgroup: attached to process {pid}{others}", file=sys.stderr, flush=True)
