"""``epcgroup sim SCENARIO``: what would these enclaves cost under these limits on that machine?"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from epcgroup.cli.progress import Progress

if TYPE_CHECKING:
    from epcgroup.sim.result import Result
    from epcgroup.sim.scenario import Scenario


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
    from epcgroup.sim.scenario import read

    if args.plot is not None:
        from epcgroup import pictures

        pictures.check(args.plot)
    scenario = read(args.scenario)  # its faults come before the wait for the compiler
    result = _simulated(scenario, args.output)
    if args.json:
        print(json.dumps({**result.summary, "tenants": result.tenants.to_dicts()}, indent=2))
    else:
        from epcgroup.observe.report import write
        from epcgroup.sim.report import render

        write(render(result), sys.stdout)
    if args.plot is not None:
        from epcgroup.sim.plot import plot

        plot(result, args.plot)
    return 130 if result.summary["interrupted"] else 0


def _simulated(scenario: Scenario, output: Path | None) -> Result:
    """Run it; with ``output``, others may follow it there, and the result is written there."""
    from epcgroup.sim.virtual import run as simulate

    with Progress() as progress:
        if output is None:
            return simulate(scenario, progress.update)
        from epcgroup.serve.sources.running import published

        with published(output, lambda words: print(f"epcgroup: {words}", file=sys.stderr)) as watch:
            result = simulate(scenario, progress.update, watch)
            result.write(output)
        return result


def _profiles() -> int:
    from epcgroup.sim import costs
    from epcgroup.units import PAGE_SIZE, format_size

    for name in costs.names():
        profile = costs.load(name)
        print(f"{name:16} {format_size(profile.epc_pages * PAGE_SIZE):>7}  {profile.title}")
    return 0
