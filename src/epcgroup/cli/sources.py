"""Which machine a view looks at: a server, a tree of files, or a simulation, running or over."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from epcgroup.cli.served import add_dir, places_of
from epcgroup.errors import BadInput, Refused

if TYPE_CHECKING:
    from epcgroup.observe.source import Source

_PLAY_S = 30.0  # a simulation is played in so many seconds


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that name a source; none of them: a server if one runs, else this machine's files."""
    add_dir(parser)
    parser.add_argument("--root", type=Path, metavar="DIR", help="a cgroup tree's files, a kernel's or ours")
    parser.add_argument(
        "--sim",
        type=Path,
        metavar="DIR",
        help="a simulation, `epcgroup sim -o DIR`: followed while it runs, played again when it is over",
    )


def find(args: argparse.Namespace, *, play: bool = False, events: bool = True) -> Source:
    """The source that the options mean; ``play``: a simulation from its beginning, else its end.

    ``events``: they are wanted too.

    Raises BadInput, Refused when there is none.
    """
    if sum(value is not None for value in (args.dir, args.root, args.sim)) > 1:
        raise BadInput("--dir, --root and --sim each name a source; give one of them")
    if args.sim is not None:
        return _simulation(args.sim, play=play)
    from epcgroup.host import discover
    from epcgroup.serve.sources import FilesSource, SocketSource

    if args.root is not None:
        return FilesSource(discover.find(args.root, "sgx_epc"))
    server = SocketSource(places_of(args), events=events)
    try:
        server.snapshot()
    except Refused as nobody:
        if args.dir is not None:
            raise
        try:
            return FilesSource(discover.find(None, "sgx_epc"))
        except Refused:
            raise nobody from None
    return server


def history_of(source: Source, args: argparse.Namespace) -> Path | None:
    """Where somebody else keeps the history of that source; None: nobody does."""
    from epcgroup.serve.sources import SocketSource, running

    if isinstance(source, SocketSource):
        return places_of(args).history
    return running.history_of(args.sim) if isinstance(source, running.RunningSource) else None


def _simulation(folder: Path, *, play: bool) -> Source:
    from epcgroup.serve.sources import running
    from epcgroup.sim import require

    if running.runs(folder):
        return running.RunningSource(folder)
    if running.now_of(folder).exists():
        raise running.killed(folder)

    require()
    from epcgroup.serve.sources.simulated import SimSource
    from epcgroup.sim.result import Result

    result = Result.read(folder)
    lasted = max(float(result.summary["virtual_s"]), 1e-9)
    return SimSource(result, str(folder), speed=lasted / _PLAY_S if play else None)
