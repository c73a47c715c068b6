"""`epcgroup run`: one command on a machine of its own."""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from epcgroup import atonce
from epcgroup.cli import logs
from epcgroup.cli.passing import Early, Signals
from epcgroup.cli.sections import add_epc, parse_sections, to_sections
from epcgroup.errors import BadInput
from epcgroup.units import parse_limit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from epcgroup.live import Supervisor
    from epcgroup.observe.model import Snapshot

DEFAULT_GROUP = "/run"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command to argparse."""
    parser = subparsers.add_parser(
        "run",
        help="run an SGX program in an EPC cgroup",
        description="Run a real, unmodified SGX program on an emulated machine, in an EPC cgroup.",
        usage="epcgroup run [options] [--] COMMAND [ARG ...]",
    )
    add_machine(parser)
    add_cgroup(parser, "-g", "--cgroup")
    parser.add_argument(
        "--record",
        type=Path,
        metavar="FILE.parquet",
        help="record page accesses as a trace, and a scenario beside it (needs the extra sim)",
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, help="the program and its arguments")
    parser.set_defaults(func=run)


def add_cgroup(parser: argparse.ArgumentParser, *names: str) -> None:
    """The option, by these names, that says which cgroups a machine of one's own has."""
    parser.add_argument(
        *names,
        action="append",
        default=[],
        metavar="PATH[=SIZE]",
        help="create a cgroup, with a limit; the program runs in the last one named "
        f"(default {DEFAULT_GROUP}); again for more",
    )


def add_machine(parser: argparse.ArgumentParser) -> None:
    """The options that say what machine it is, how it is limited, and what is told at the end."""
    add_epc(parser)
    parser.add_argument("--max", metavar="SIZE", help="limit of the cgroup (default none)")
    add_policy(parser)
    parser.add_argument(
        "--report",
        choices=("table", "json", "none"),
        default="table",
        help="what to say at the end, on stderr (default table)",
    )
    parser.add_argument("--report-file", type=Path, metavar="FILE", help="write the report there")
    add_inject(parser)
    add_ways(parser)
    logs.add_options(parser)
    add_enclu(parser)


def add_policy(parser: argparse.ArgumentParser) -> None:
    """Which kernel's behaviour."""
    parser.add_argument("--policy", default="standard", help="standard (default), v5 or v17")


def add_ways(parser: argparse.ArgumentParser) -> None:
    """What the machine's keys come from, who serves its page faults, and whether it watches itself."""
    parser.add_argument(
        "--seed",
        metavar="HEX|FILE",
        help="root key of the machine: 32 hexadecimal digits, or a file with them (default: the key kept in "
        "$XDG_STATE_HOME/epcgroup/root.key, made at the first run)",
    )
    parser.add_argument(
        "--page-service",
        choices=("auto", "python", "compiled"),
        default="auto",
        help="who answers page faults: Python, or machine code where it can (needs llvmlite and libcrypto); "
        "auto (default): machine code, once a process faults often",
    )
    parser.add_argument(
        "--paranoid",
        action="store_true",
        help="check all invariants after every operation (slow); the first violation ends the run, status 70",
    )


def add_inject(parser: argparse.ArgumentParser) -> None:
    """Faults on order."""
    parser.add_argument(
        "--inject",
        action="append",
        default=[],
        metavar="WHAT[,WHAT]…",
        help="have faults happen: ewb-slow=5ms, eldu-slow=5ms, enomem=0.01, enospc=0.01, backing=64M, "
        "eintr=0.01, eagain=0.01, and to the first enclave tamper@PAGE, mac-fail@PAGE, replay@PAGE, "
        "sigbus@PAGE; seed=N repeats a run",
    )


def add_enclu(parser: argparse.ArgumentParser) -> None:
    """How programs get into enclaves and out again."""
    parser.add_argument(
        "--enclu",
        choices=("fast", "trap"),
        default="fast",
        help="fast (default): EENTER and EEXIT without a trap, by jumps put into the code; trap: every ENCLU "
        "is executed by the emulator and enclave code stays byte for byte as it was added",
    )
    parser.add_argument(
        "--unpatched",
        action="append",
        default=[],
        metavar="MRENCLAVE|MRSIGNER",
        help="with --enclu fast: code of this enclave, or of this signer's, stays byte for byte as it was "
        "added; it is entered without a trap, and left by one (64 hexadecimal digits; commas for several)",
    )


def parse_cgroup(spec: str) -> tuple[str, int | None]:
    """``/pods/a=16M`` → path and limit in bytes; no limit without ``=``.

    >>> parse_cgroup("pods/a=16M"), parse_cgroup("/web")
    (('/pods/a', 16777216), ('/web', None))
    """
    path, equals, size = spec.partition("=")
    parts = [part for part in path.split("/") if part]
    if not parts or any(part in (".", "..") for part in parts):
        raise BadInput(f"--cgroup {spec!r}: write PATH or PATH=SIZE, e.g. pods/a=16M")
    return "/" + "/".join(parts), parse_limit(size, f"--cgroup {path}:") if equals else None


def groups_of(args: argparse.Namespace) -> list[tuple[str, int | None]]:
    """The groups to create, parents first as given; the command runs in the last one."""
    groups = [parse_cgroup(spec) for spec in args.cgroup]
    if args.max is None and groups:
        return groups
    path, limit = groups[-1] if groups else (DEFAULT_GROUP, None)
    if args.max is not None and limit is not None:
        raise BadInput("--max and a limit in the last --cgroup contradict each other; give one of them")
    return [*groups[:-1], (path, None if args.max is None else parse_limit(args.max, "--max"))]


def run(args: argparse.Namespace) -> int:
    """Run the command; its exit status is ours."""
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise BadInput("no command given; write: epcgroup run [options] -- COMMAND [ARG ...]")
    groups = groups_of(args)
    if args.record is not None:
        from epcgroup.cli import recorded

        recorded.check(args.record)
    try:
        with (
            Signals() as signals,
            machine_of(args, groups) as (machine, serve),
            _recording(args.record, machine) as taking,
        ):
            signals.early()
            pid = machine.spawn(command, group=groups[-1][0])
            signals.to(machine, pid)
            statuses = serve(*taking, serving=signals.look)
    except Early as early:
        return exit_like(early.number)
    return exit_like(statuses[pid])


@contextlib.contextmanager
def _recording(path: Path | None, machine: Supervisor) -> Iterator[list[Callable[[], None]]]:
    """Records while it lasts, if a path is given; gives what is to be called now and then."""
    if path is None:
        yield []
        return
    from epcgroup.cli import recorded
    from epcgroup.live.paging.recording import ENOUGH, Recording

    tape = Recording(machine.world)
    with recorded.File(path, "epcgroup run --record") as file:

        def take(least: int = ENOUGH) -> None:
            seen = tape.take(least)
            file.append(seen.enclaves, seen.pages, seen.sizes, seen.lost)

        yield [take]
        take(0)
        file.snapshot = machine.snapshot()
    try:
        recorded.report(file, path)
    except BadInput as error:  # the report and the command's status are still ours
        print(f"epcgroup: --record {error}", file=sys.stderr)


@contextlib.contextmanager
def machine_of(
    args: argparse.Namespace, groups: list[tuple[str, int | None]]
) -> Iterator[tuple[Supervisor, Callable[..., dict[int, int]]]]:
    """The machine that the options of `add_machine` describe, with these cgroups.

    Comes with its `run`, which keeps the log and calls what it is given now and then
    (``serving`` as Supervisor.run has it); the report is told at the end.
    """
    parsed = parse_sections(args.epc)
    if args.report_file is not None:
        atonce.check(args.report_file)  # at the end of a long run it would be too late
    # Only now: the emulator takes a while to import, a wrong option should not.
    from epcgroup.live import Supervisor
    from epcgroup.serve.sources import MachineSource

    log = logs.Log(args)
    extra = {
        "inject": args.inject,
        "paranoid": args.paranoid,
        "log": log.plain,
        "enclu": args.enclu,
        "unpatched": args.unpatched,
        "page_service": args.page_service,
        "sections": to_sections(parsed),
    }
    with Supervisor(0, args.policy, root_key(args.seed), **extra) as machine:
        source = MachineSource(machine, "run")
        log.follow(source.journal)
        for path, limit in groups:
            machine.mkdir(path, limit)
        looks = [source.journal.see] if log.wanted else []

        def serve(*more: Callable[[], None], serving: Callable[[], bool] = lambda: False) -> dict[int, int]:
            def tick(snapshot: Snapshot) -> None:
                for look in looks:
                    look(snapshot)
                for do in more:
                    do()

            return machine.run(tick if looks or more else None, serving=serving)

        yield machine, serve
        report = source.snapshot()
    source.journal.flush()
    _report(args, report)


def root_key(seed: str | None) -> bytes | None:
    """The key of ``--seed`` or the kept one; None (a random one), with a warning, if none can be kept."""
    from epcgroup.live import rootkey

    if seed is not None:
        return rootkey.from_seed(seed)
    try:
        return rootkey.kept()
    except OSError as error:
        print(
            f"epcgroup: the machine's key cannot be kept ({error.strerror}: {error.filename}); what an "
            "enclave seals in this run cannot be opened in another, unless you name a key by --seed",
            file=sys.stderr,
        )
        return None


def _report(args: argparse.Namespace, report: Snapshot) -> None:
    if args.report == "none" and args.report_file is None:
        return
    from epcgroup.observe.report import show, to_json, to_text

    as_json = args.report == "json"
    if args.report_file is not None:
        text = to_json(report) + "\n" if as_json else to_text(report)
        try:
            atonce.write(args.report_file, text.encode())
        except BadInput as error:  # the command's status is still ours
            print(f"epcgroup: --report-file {error}", file=sys.stderr)
    elif as_json:
        print(to_json(report), file=sys.stderr)
    else:
        show(report, sys.stderr)


def exit_like(status: int) -> int:
    """End as the command ended: its status, or its signal."""
    if os.WIFSIGNALED(status):
        sig = os.WTERMSIG(status)
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        sys.stdout.flush()
        sys.stderr.flush()
        if sig != signal.SIGKILL:
            signal.signal(sig, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {sig})
        os.kill(os.getpid(), sig)
    return os.WEXITSTATUS(status)
