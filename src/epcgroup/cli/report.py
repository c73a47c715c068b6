"""`epcgroup report RUN…`: what was limited, what it cost, who paid, who should get more or less."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from epcgroup import atonce
from epcgroup.errors import BadInput
from epcgroup.units import PAGE_SIZE

if TYPE_CHECKING:
    from epcgroup.observe.study import Study
    from epcgroup.sim.result import Result

_PANELS = 8  # of a picture: more is for the page
_LINES = 40  # on a terminal


class _Run(NamedTuple):
    """One run to look back at; ``result`` where it was a simulation."""

    path: Path
    study: Study
    result: Result | None = None


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = subparsers.add_parser(
        "report",
        help="what was limited, what it cost, who paid: of a run or a simulation, or of two",
        description="Look back at what 'epcgroup sim -o DIR' wrote (or has come to, while it runs), at the "
        "directory of an 'epcgroup serve', or at the file of 'epcgroup run --report json'.",
    )
    parser.add_argument(
        "runs", metavar="RUN", type=Path, nargs="+", help="a directory or file; two to compare"
    )
    parser.add_argument(
        "--html", metavar="FILE", type=Path, help="write a page that needs nothing but itself"
    )
    parser.add_argument("--csv", metavar="FILE", type=Path, help="write every sample of one run")
    parser.add_argument("--plot", metavar="PNG", type=Path, help="draw one run (needs the extra plot)")
    parser.add_argument(
        "--last", metavar="SECONDS", type=float, help="of a server's history, only the last seconds"
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Show it; the exit status."""
    if len(args.runs) > 1 and (args.csv or args.plot):
        raise BadInput("--csv and --plot are of one run; name one")
    if args.last is not None and not args.last > 0:
        raise BadInput(f"--last {args.last}: must be more than 0")
    runs = [_read(path, args.last) for path in args.runs]
    if args.plot is not None:
        _plot(runs[0], args.plot)
    if args.csv is not None:
        from epcgroup.observe.study import to_csv

        _write(args.csv, to_csv(runs[0].study))
    if args.html is not None:
        from epcgroup.observe.page import render

        _write(args.html, render([one.study for one in runs]))
    for one in runs:
        _print(one)
    return 0


def _is_unfinished(path: Path) -> bool:
    from epcgroup.serve.sources.running import now_of

    return now_of(path).is_file()


def _read(path: Path, last: float | None) -> _Run:
    """The run at a path. Raises BadInput naming it."""
    if _is_unfinished(path):
        return _Run(path, _so_far(path))
    if not (path / "summary.json").is_file():
        return _Run(path, _study(path, last))
    from epcgroup.sim import require

    require()
    from epcgroup.observe.study import of_snapshots
    from epcgroup.serve.sources.simulated import snapshots
    from epcgroup.sim.result import Result

    result = Result.read(path)
    return _Run(path, of_snapshots(str(path), snapshots(result)), result)


def _study(path: Path, last: float | None) -> Study:
    from epcgroup.observe import codec
    from epcgroup.observe.store import Store
    from epcgroup.observe.study import of_snapshots, of_store

    history = path / "history" if path.is_dir() else path
    if not history.is_file():
        raise BadInput(
            f"{path}: neither a simulation's result, nor a server's directory, nor a report in JSON"
        )
    with history.open("rb") as file:
        is_history = file.read(6) == b"SQLite"
    if is_history:
        with contextlib.closing(Store(history, read_only=True)) as store:
            kept = store.span()
            begin = 0.0 if last is None or kept is None else kept[1] - last
            return of_store(str(path), store, begin)
    try:
        return of_snapshots(
            str(path), [codec.snapshot_from_json(json.loads(history.read_text(encoding="utf-8-sig")))]
        )
    except (ValueError, OSError) as error:
        raise BadInput(f"{path}: no report in JSON: {error}") from error


def _so_far(path: Path) -> Study:
    """What a simulation without a result has come to."""
    from epcgroup.observe.store import Store
    from epcgroup.observe.study import of_store
    from epcgroup.serve.sources import running

    now = running.last_of(path)
    state = "still running" if running.runs(path) else "ended before it had a result"
    with contextlib.closing(Store(running.history_of(path), read_only=True)) as store:
        study = of_store(f"{path} ({state}, {now.time_s:.1f} s virtual)", store)
    return dataclasses.replace(study, policy=now.policy, epc=now.epc_pages * PAGE_SIZE, started=0.0)


def _plot(run: _Run, output: Path) -> None:
    if run.result is not None:
        from epcgroup.sim.plot import plot

        plot(run.result, output)
        return
    from epcgroup.observe.plot import draw

    draw(run.study.series(_PANELS), output, title=run.study.name)


def _print(run: _Run) -> None:
    from epcgroup.observe.printable import printable
    from epcgroup.observe.report import write

    if run.result is not None:
        from epcgroup.sim.report import render

        write(render(run.result), sys.stdout)
    else:
        print(printable(run.study.name))
        for course in run.study.limited[:_LINES]:
            advice = course.advice()
            print(f"{printable(course.path)}: {advice.kind}: {printable(advice.why)}")
        if len(run.study.limited) > _LINES:
            print(f"… and {len(run.study.limited) - _LINES:,} more, who waited less")
    print(printable(run.study.sentence()))


def _write(file: Path, text: str) -> None:
    atonce.write(file, text.encode())
    print(f"epcgroup: wrote {file}", file=sys.stderr)
