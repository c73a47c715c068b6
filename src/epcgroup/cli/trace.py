"""``epcgroup trace info|convert|cut|merge|sample``: traces of page accesses."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from epcgroup.cli.interrupts import Interrupted, Interrupts
from epcgroup.cli.progress import Progress
from epcgroup.errors import BadInput


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = subparsers.add_parser(
        "trace",
        help="look into, convert, cut, merge and sample traces of page accesses",
        description="Works on traces (Parquet, see docs/traces.md). Needs the extra sim.",
    )
    parser.set_defaults(func=run)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    info = verbs.add_parser("info", help="what a trace says of itself")
    info.add_argument("traces", metavar="TRACE", nargs="+", type=Path)
    convert = verbs.add_parser("convert", help="make a trace of another program's")
    convert.add_argument("source", metavar="IN", type=Path)
    convert.add_argument("target", metavar="OUT", type=Path)
    formats = "lackey, perf, csv, oraclegeneral"
    convert.add_argument("--from", dest="form", required=True, metavar="FORMAT", help=formats)
    cut = verbs.add_parser("cut", help="keep a part of the accesses")
    cut.add_argument("source", metavar="IN", type=Path)
    cut.add_argument("target", metavar="OUT", type=Path)
    cut.add_argument("--first", type=int, default=0, help="number of the first access to keep")
    cut.add_argument("--last", type=int, default=2**62, help="number of the first access not to keep")
    merge = verbs.add_parser("merge", help="several traces as one machine sees them")
    merge.add_argument("target", metavar="OUT", type=Path)
    merge.add_argument("sources", metavar="IN", nargs="+", type=Path)
    sample = verbs.add_parser("sample", help="keep all accesses to a share of the pages")
    sample.add_argument("source", metavar="IN", type=Path)
    sample.add_argument("target", metavar="OUT", type=Path)
    sample.add_argument("--rate", type=float, required=True, help="share of the pages, 0 to 1")


def run(args: argparse.Namespace) -> int:
    """Do it; the exit status."""
    from epcgroup.sim import require

    require()
    from epcgroup.sim.traces.trace import Trace

    if args.verb == "info":
        for path in args.traces:
            _show(Trace(path))
        return 0
    if args.verb == "cut" and not 0 <= args.first < args.last:
        raise BadInput(f"--first {args.first}, --last {args.last}: want 0 <= first < last")
    before = _identity(args.target)
    with Interrupts() as interrupts:
        try:
            with Progress() as progress:
                count = _make(args, progress.update)
        except Interrupted:
            now = "as it was before" if _identity(args.target) == before else "written all the same"
            print(f"interrupted; {args.target} is {now}", file=sys.stderr)
            return interrupts.status
    print(f"{args.target}: {count:,} accesses, {args.target.stat().st_size:,} bytes")
    return 0


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_ino, state.st_mtime_ns


def _make(args: argparse.Namespace, progress: Callable[[float, int], None]) -> int:
    from epcgroup.sim.traces import convert
    from epcgroup.sim.traces.trace import Trace

    if args.verb == "convert":
        return convert.convert(args.source, args.form, args.target, progress)
    if args.verb == "cut":
        return convert.cut(Trace(args.source), args.target, args.first, args.last, progress)
    if args.verb == "merge":
        return convert.merge([Trace(path) for path in args.sources], args.target, progress)
    return convert.sample(Trace(args.source), args.target, args.rate, progress)


def _show(trace: object) -> None:
    from epcgroup.sim.traces.trace import Trace

    assert isinstance(trace, Trace)
    info = trace.info
    each = trace.size / info.accesses if info.accesses else 0.0
    print(f"{trace.path}: {info.accesses:,} accesses, {trace.size:,} bytes ({each:.3f} an access)")
    print(f"  source: {info.source}; clock: {info.clock}; pages of {info.page_size} bytes")
    for number, (name, size) in sorted(info.enclaves.items()):
        named = "" if name == str(number) else f" {name},"
        print(f"  enclave {number}:{named} {size:,} pages")
