"""`epcgroup exporter`: EPC as Prometheus metrics."""

from __future__ import annotations

import argparse
import gc
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from epcgroup.cli import sources
from epcgroup.errors import BadInput

if TYPE_CHECKING:
    from epcgroup.observe.metrics import Metrics

_COLLECT = 50_000  # new objects: a scrape of 10,000 cgroups makes as many, none of them garbage


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command to argparse."""
    parser = subparsers.add_parser(
        "exporter",
        help="EPC as Prometheus metrics over HTTP",
        description="Serve the metrics of a machine at http://ADDRESS/metrics, until a signal ends it.",
    )
    parser.add_argument(
        "--listen", metavar="ADDRESS", help="address and port, or a port on loopback (default 127.0.0.1:9798)"
    )
    parser.add_argument(
        "--once", action="store_true", help="print the metrics and end (a textfile collector)"
    )
    add_options(parser)
    sources.add_options(parser)
    parser.set_defaults(func=run)


def add_options(parser: argparse.ArgumentParser) -> None:
    """What `serve --metrics` takes too."""
    parser.add_argument(
        "--compat",
        action="append",
        default=[],
        choices=("cadvisor", "teemon"),
        help="add the metric names of cAdvisor's draft or TEEMon's; again for both",
    )
    parser.add_argument(
        "--pods",
        type=Path,
        default=Path("/var/log"),
        metavar="DIR",
        help="a kubelet's pods/ and containers/: labels namespace, pod, container (/var/log)",
    )


def writer(args: argparse.Namespace) -> Metrics:
    """What writes the metrics that the options ask for."""
    from epcgroup.observe.metrics import Metrics
    from epcgroup.observe.podnames import PodNames

    return Metrics(PodNames(args.pods), args.compat)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal comes, or print once."""
    from epcgroup.observe import scrape

    if args.once and args.listen is not None:
        raise BadInput("--once prints and ends; it listens nowhere")
    address = scrape.parse_address(args.listen or scrape.DEFAULT)
    source = sources.find(args, events=False)
    if args.once:
        sys.stdout.write(writer(args).text(source.snapshot()))
        return 0
    ending = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, ending)  # before the thread that inherits it
    exporter = scrape.Exporter(source, writer(args), address)
    gc.set_threshold(_COLLECT)
    exporter.start()
    print(f"epcgroup: metrics of {source.name} at {exporter.url}", file=sys.stderr, flush=True)
    signal.sigwait(ending)
    exporter.close()
    source.close()
    return 0
