"""`epcgroup why`: why an enclave died, or a cgroup was slow, in words."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from epcgroup.cli import hierarchy
from epcgroup.cli.served import add_dir, places_of
from epcgroup.errors import BadInput

if TYPE_CHECKING:
    from epcgroup.observe.model import Event
    from epcgroup.observe.store import Point
    from epcgroup.observe.why import PointsOf

_MOST_EVENTS = 100_000
_SOME = 10  # cgroups that are named
_BEHIND_S = 60.0  # the clock may be ahead of the newest sample: this minute is not yesterday's


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command to argparse."""
    parser = subparsers.add_parser(
        "why",
        help="why an enclave died or a cgroup was slow, in words",
        description="Answer from the history of `epcgroup serve`, a log of `--log json`, or a simulation.",
    )
    parser.add_argument("target", metavar="ENCLAVE|CGROUP", help="an enclave's number or a cgroup's path")
    parser.add_argument(
        "--at",
        metavar="TIME",
        help="when it was: 12:03, 12:03:20, 2026-11-26T12:03; seconds of virtual time",
    )
    parser.add_argument(
        "--span",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="how long before and after (300); without --at a cgroup's last SECONDS",
    )
    parser.add_argument("--log", type=Path, metavar="FILE", help="a log of --log json")
    parser.add_argument("--sim", type=Path, metavar="DIR", help="what `epcgroup sim -o DIR` writes")
    add_dir(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Print the answer."""
    from epcgroup.observe import why

    if not 0 < args.span < math.inf:
        raise BadInput(f"--span {args.span:g}: a number of seconds above 0")
    if sum(value is not None for value in (args.log, args.sim, args.dir)) > 1:
        raise BadInput("--log, --sim and --dir each name a past; give one of them")
    if args.log is not None:
        events, points_of, now = _from_log(args.log)
    elif args.sim is not None:
        events, points_of, now = _from_simulation(args.sim)
    else:
        events, points_of, now = _from_store(places_of(args).history)
    at = None if args.at is None else why.moment(args.at, now + _BEHIND_S)
    question = why.ask(args.target, events, at, args.span, now)
    if question.enclave is None and not (
        any(question.group in why.ancestors(event.group) for event in events if event.group)
        or points_of(question.group, 0.0, math.inf)
    ):
        known = sorted({event.group for event in events if event.group})
        some = f"; events were in {', '.join(known[:_SOME])}" if known else ""
        raise BadInput(f"nothing is known of cgroup {hierarchy.printable(question.group + some)}")
    for line in why.explain(question, events, points_of):
        print(hierarchy.printable(line))
    return 0


def _from_log(file: Path) -> tuple[list[Event], PointsOf, float]:
    from epcgroup.observe.log import read

    events = list(read(file))
    now = max((event.until or event.at for event in events), default=time.time())

    def nothing(_path: str, _begin: float, _end: float) -> Sequence[Point]:
        return ()

    return events, nothing, now


def _from_store(file: Path) -> tuple[list[Event], PointsOf, float]:
    from epcgroup.observe.store import Store

    store = Store(file, read_only=True)
    span = store.span()
    now = time.time() if span is None else span[1]
    return store.events(most=_MOST_EVENTS), store.points, now


def _from_simulation(folder: Path) -> tuple[list[Event], PointsOf, float]:
    """All of it, or what it has come to."""
    from epcgroup.serve.sources import running

    if running.now_of(folder).is_file():
        return _from_store(running.history_of(folder))
    from epcgroup.observe.journal import Journal
    from epcgroup.observe.study import of_snapshots
    from epcgroup.serve.sources.simulated import snapshots
    from epcgroup.sim import require

    require()
    from epcgroup.sim.result import Result

    moments = list(snapshots(Result.read(folder)))
    journal = Journal(_MOST_EVENTS)
    for moment in moments:
        journal.see(moment)
    journal.flush()
    study = of_snapshots(str(folder), moments)

    def points_of(path: str, begin: float, end: float) -> Sequence[Point]:
        course = study.course(path)
        return [] if course is None else [point for point in course.points if begin <= point.at <= end]

    return journal.since(), points_of, moments[-1].at
