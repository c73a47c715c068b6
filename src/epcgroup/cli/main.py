"""The `epcgroup` command: one sub-command per module, imported when it is called.

Each module of COMMANDS has ``add_parser(subparsers)``, which adds its parser and
sets ``func(args) -> int`` on it. Only the module of the command that was asked
for is imported, and it in turn imports what it needs when it runs: the help
must come at once, and `stress` must not load the emulator.

Exit status: 0 done; 1 the run failed (a limit refused, a page was wrong); 2 it
could not begin (bad input, something missing here); 70 a bug of ours; 130
interrupted (128 and the number of the signal). EPCGROUP_TRACEBACK=1 shows where an error came from.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import sys
from collections.abc import Sequence

from epcgroup import __version__
from epcgroup.cli import examples
from epcgroup.cli.interrupts import Interrupted
from epcgroup.errors import BadInput, EpcgroupError, InternalError, MissingCapability, words_of

COMMANDS = {
    "run": "run a command in an emulated SGX machine, in an EPC cgroup",
    "serve": "a long-lived machine: cgroup files mounted, commands by `epcgroup exec`",
    "exec": "run a command inside the machine of `epcgroup serve`",
    "attach": "have a running process, its threads and children join an emulated machine",
    "tree": "the cgroups as a tree, with limits and usage",
    "get": "limits, usage and events of cgroups",
    "set": "set the limit of a cgroup",
    "reclaim": "evict EPC pages of a cgroup now",
    "watch": "follow usage and events of cgroups",
    "events": "wait for limits to be hit",
    "audit": "asked, set, used: every gap between pod specs, bundles and the live tree",
    "annotate": "write the annotation or OCI entry that hands an EPC limit over",
    "top": "EPC now, on a terminal: cgroups, enclaves, processes, paging, stalls",
    "record": "record the page accesses of a served machine as a trace",
    "replay": "drive real enclaves by a trace, under any limit",
    "web": "a machine in a browser: the tree as a map of EPC, time lines, events",
    "exporter": "EPC as Prometheus metrics over HTTP",
    "why": "why an enclave died or a cgroup was slow, in words",
    "doctor": "what this machine has, what is missing, how to get it",
    "stress": "load a real SGX enclave and touch its heap by pattern",
    "demo": "three tenants, three limits, real paging: a table and a picture",
    "selftest": "the scenarios of the series' own test scripts, on a kernel's tree or ours",
    "conform": "replay recorded kernel behaviour against the engine",
    "sim": "run a scenario in virtual time: tenants, limits, events, what they cost",
    "calibrate": "time enclaves on this machine and write its cost profile",
    "report": "what was limited, what it cost, who paid: of a run or a simulation",
    "trace": "look into, convert, cut, merge and sample traces of page accesses",
}

EXIT_FAILED, EXIT_UNUSABLE, EXIT_BUG, EXIT_INTERRUPTED = 1, 2, 70, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: this process's); the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        _stand_in()
        _fit()
        try:
            args = _parsed(words)
            status: int = args.func(args)
        finally:  # --help leaves by SystemExit
            sys.stdout.flush()
    except EpcgroupError as error:
        return _failed(error)
    except Interrupted as interrupted:
        return 128 + interrupted.number
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # whoever read us has gone, as `| head` does
        _silence()
        return EXIT_FAILED
    except (OSError, MemoryError) as error:
        # Not foreseen where it happened: a full disk, no memory, no descriptor left.
        if os.environ.get("EPCGROUP_TRACEBACK") == "1":
            raise
        try:
            sys.stdout.flush()
        except OSError:
            _silence()
        print(f"epcgroup: {_unforeseen(error)}", file=sys.stderr)
        return EXIT_FAILED
    return status


def _stand_in() -> None:
    """Where one of the standard streams is closed, /dev/null takes its place.

    Else the next file that is opened would, a page of an enclave perhaps, and get what we print.
    It is closed on exec: our programs find the stream closed, as they would without us.
    """
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != fd:
                os.dup2(null, fd, inheritable=False)
                os.close(null)
            setattr(sys, name, open(fd, "w" if fd else "r", closefd=False))  # noqa: SIM115 - no path


def _fit() -> None:
    # Where the terminal's encoding lacks a character (a line of a table, an arrow) it is no reason to fail.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            if stream.encoding.lower() != "utf-8":
                stream.reconfigure(errors="replace")
            elif stream.errors == "strict":
                stream.reconfigure(errors="backslashreplace")


def _silence() -> None:
    # What is left in stdout's buffer cannot be written; Python would try, and complain, once more at exit.
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _unforeseen(error: OSError | MemoryError) -> str:
    if isinstance(error, MemoryError):
        return f"not enough memory; smaller sizes need less{f' ({error})' if str(error) else ''}"
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    return ": ".join([*names, error.strerror or str(error)])


def _parsed(words: Sequence[str]) -> argparse.Namespace:
    """The arguments; usage and error of the command that was asked for, where they are wrong."""
    parser, command = _parser(words)
    args, unknown = parser.parse_known_args(words)
    if unknown:
        (command or parser).error(f"unrecognized arguments: {' '.join(unknown)}")
    return args


def _parser(words: Sequence[str]) -> tuple[argparse.ArgumentParser, argparse.ArgumentParser | None]:
    """The parser, complete for the command that ``words`` name, one line for the others; that command's."""
    parser = argparse.ArgumentParser(
        prog="epcgroup",
        description="SGX enclaves and EPC cgroups on any Linux machine.",
        epilog="epcgroup COMMAND --help tells the options of a command.",
    )
    parser.add_argument("--version", action="version", version=f"epcgroup {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    asked = next((word for word in words if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        if name == asked:
            importlib.import_module(f"epcgroup.cli.{name}").add_parser(subparsers)
            examples.add(subparsers.choices[name], name)
        else:
            subparsers.add_parser(name, help=summary)
    return parser, None if asked is None else subparsers.choices.get(asked)


def _failed(error: EpcgroupError) -> int:
    if os.environ.get("EPCGROUP_TRACEBACK") == "1":
        raise error
    # OSError would print its number in brackets; the text alone is what helps.
    text = words_of(error)
    if isinstance(error, InternalError):
        print(f"epcgroup: bug: {text}", file=sys.stderr)
        return EXIT_BUG
    print(f"epcgroup: {text}", file=sys.stderr)
    return EXIT_UNUSABLE if isinstance(error, BadInput | MissingCapability) else EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
