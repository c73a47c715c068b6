"""``epcgroup sim SCENARIO``: what would these enclaves cost under these limits on that machine?"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from epcgroup.cli.interrupts import Interrupts
from epcgroup.cli.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Iterator

    from epcgroup.sim.result import Result
    from epcgroup.sim.scenario import Scenario
    from epcgroup.sim.virtual import Simulation


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = subparsers.add_parser(
        "sim",
        help="run a scenario in virtual time: tenants, limits, events, what they cost",
        description="Runs SCENARIO (TOML, see docs/sim.md) and shows each tenant's slowdown and each "
        "cgroup's usage. Ctrl-C shows the result so far. Needs the extra sim.",
    )
    parser.add_argument("scenario", metavar="SCENARIO", nargs="?", type=Path)
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        type=Path,
        help="write the result there (Parquet); top, web and exporter follow it there (--sim DIR)",
    )
    parser.add_argument("--plot", metavar="PNG", type=Path, help="draw it (needs the extra plot)")
    parser.add_argument("--json", action="store_true", help="print the summary and the tenants as JSON")
    parser.add_argument("--schema", action="store_true", help="print the JSON schema of a scenario")
    parser.add_argument("--profiles", action="store_true", help="list the cost profiles")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Run the scenario; the exit status."""
    from epcgroup.sim import require
    from epcgroup.sim.schema import SCHEMA

    require()

    if args.schema:
        print(json.dumps(SCHEMA, indent=2))
        return 0
    if args.profiles:
        return _profiles()
    if args.scenario is None:
        print("epcgroup sim: name a scenario file (or --schema, --profiles)", file=sys.stderr)
        return 2
    words = ""
    try:
        with Interrupts() as interrupts:
            from epcgroup.sim.scenario import read

            if args.plot is not None:
                from epcgroup import pictures

                pictures.check(args.plot)
            scenario = read(args.scenario)  # its faults come before the wait for the compiler
            for result in _simulated(scenario, args.output, interrupts):
                words = _words(result, as_json=args.json)
            if args.plot is not None:
                from epcgroup.sim.plot import plot

                plot(result, args.plot)
    finally:  # also where it could not be written
        sys.stdout.write(words)
    return interrupts.status


def _words(result: Result, *, as_json: bool) -> str:
    if as_json:
        return json.dumps({**result.summary, "tenants": result.tenants.to_dicts()}, indent=2) + "\n"
    from epcgroup.observe.report import text_for
    from epcgroup.sim.report import render

    return text_for(render(result), sys.stdout)


def _simulated(scenario: Scenario, output: Path | None, interrupts: Interrupts) -> Iterator[Result]:
    """Run it; gives its result, which is then written to ``output``, where others may have followed it."""
    from epcgroup.serve.sources.running import published
    from epcgroup.sim.virtual import run as simulate

    def look(simulation: Simulation) -> None:
        interrupts.ask()
        if watch is not None:
            watch(simulation)

    with contextlib.ExitStack() as stack:
        watch = None
        if output is not None:
            say = functools.partial(print, "epcgroup:", file=sys.stderr)
            watch = stack.enter_context(published(output, say))
        with Progress() as progress:
            result = simulate(scenario, progress.update, look)
        interrupts.keep()
        yield result
        if output is not None:
            result.write(output)


def _profiles() -> int:
    from epcgroup.sim import costs
    from epcgroup.units import PAGE_SIZE, format_size

    for name in costs.names():
        profile = costs.load(name)
        print(f"{name:16} {format_size(profile.epc_pages * PAGE_SIZE):>7}  {profile.title}")
    return 0
