"""`epcgroup top`: EPC now, by cgroup, enclave and process."""

from __future__ import annotations

import argparse
import contextlib
import sys

from epcgroup.cli import sources
from epcgroup.errors import BadInput, MissingCapability, to_install


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command to argparse."""
    parser = subparsers.add_parser(
        "top",
        help="EPC now, on a terminal: cgroups, enclaves, processes, paging, stalls",
        description="Show a machine's EPC and go on showing it. ? tells the keys. Needs the extra observe.",
    )
    parser.add_argument(
        "--interval", type=float, default=1.0, metavar="SECONDS", help="look so often (default 1)"
    )
    parser.add_argument("--once", action="store_true", help="print a table and end; needs no terminal")
    sources.add_options(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Show it until q is pressed."""
    if not 0.05 <= args.interval <= 3600:
        raise BadInput(f"--interval {args.interval:g}: 0.05 to 3600 seconds")
    if args.once:
        from epcgroup.observe.report import show

        show(sources.find(args).snapshot(), sys.stdout)
        return 0
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise BadInput("top needs a terminal; --once prints a table anywhere")
    try:
        from epcgroup.observe.top.app import Top
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "textual":
            raise
        raise MissingCapability(f"top needs textual: {to_install('observe')}") from None
    from epcgroup.observe.store import Store

    source = sources.find(args, play=True)
    file, store = sources.history_of(source, args), None
    if file is not None:
        with contextlib.suppress(BadInput):  # then there is none yet
            store = Store(file, read_only=True)
    app = Top(source, args.interval, store.points if store is not None else None)
    app.run()
    source.close()
    if store is not None:
        store.close()
    return app.return_code or 0
