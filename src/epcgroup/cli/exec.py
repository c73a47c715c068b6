"""`epcgroup exec`: a command inside a machine that `epcgroup serve` keeps."""

from __future__ import annotations

import argparse

from epcgroup.cli.served import add_dir, places_of
from epcgroup.errors import BadInput


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command to argparse."""
    parser = subparsers.add_parser(
        "exec",
        help="run a command inside the machine of `epcgroup serve`",
        description="Run a command in a cgroup of the machine that `epcgroup serve` keeps.",
        usage="epcgroup exec [-g GROUP] [OPTION ...] [--] COMMAND [ARG ...]",
    )
    parser.add_argument("-g", "--cgroup", default="/", metavar="GROUP", help="its cgroup (default the root)")
    parser.add_argument("--group", dest="cgroup", help=argparse.SUPPRESS)  # its former name
    parser.add_argument("--create", action="store_true", help="create the cgroup if it is not there")
    parser.add_argument(
        "--host-cgroup",
        action="store_true",
        help="leave it the host's /sys/fs/cgroup and mounts (default: the machine's tree is there)",
    )
    parser.add_argument(
        "--ignore-rlimits",
        action="store_true",
        help="raising a resource limit succeeds where it is refused (root without CAP_SYS_RESOURCE)",
    )
    add_dir(parser)
    parser.add_argument("command", nargs=argparse.REMAINDER, help="the program and its arguments")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; its exit status is ours."""
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise BadInput("no command given; write: epcgroup exec -g GROUP -- COMMAND [ARG ...]")
    from epcgroup.cli.run import exit_like
    from epcgroup.serve import client

    at = places_of(args)
    status = client.execute(
        at,
        args.cgroup,
        command,
        create=args.create,
        host_cgroup=args.host_cgroup,
        rlimits=args.ignore_rlimits,
    )
    return exit_like(status)
