"""`epcgroup serve`: a machine that stays, with its files mounted."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from epcgroup.cli import exporter, logs, served, web
from epcgroup.cli.run import add_enclu, add_inject, add_policy, add_ways, root_key
from epcgroup.cli.sections import add_epc, parse_sections, to_sections
from epcgroup.errors import BadInput, MissingCapability, to_install
from epcgroup.units import U64_MAX

if TYPE_CHECKING:
    from epcgroup.serve.server import Server, View


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command to argparse."""
    parser = subparsers.add_parser(
        "serve",
        help="a long-lived machine: cgroup files mounted, commands by `epcgroup exec`",
        description="Keep an emulated machine and mount its cgroup files, until a signal ends it.",
    )
    add_epc(parser)
    parser.add_argument("--mount", type=Path, metavar="DIR", help="mount point (default: cgroup below --dir)")
    add_policy(parser)
    parser.add_argument(
        "--resource",
        action="append",
        default=[],
        metavar="NAME=CAPACITY",
        help="another misc resource, e.g. sev=99; again for more",
    )
    parser.add_argument(
        "--auto-delegate",
        action="store_true",
        help="mkdir enables misc in the parent: for runtimes that never write +misc (crun before 1.18)",
    )
    parser.add_argument(
        "--system",
        action="store_true",
        help="make the device files, and have every process that opens one join, with no wrapper (root)",
    )
    parser.add_argument(
        "--memory",
        action="store_true",
        help="a memory controller for what enclaves evict: memory.max, memory.current, memory.events",
    )
    parser.add_argument(
        "--extensions",
        action="store_true",
        help="files that no kernel has: misc.low, misc.high, misc.reclaim, misc.stat, misc.pressure",
    )
    parser.add_argument(
        "--mirror",
        type=Path,
        metavar="DIR",
        help="lay the tree over this directory of a real cgroup2: its files, and misc.* beside them",
    )
    parser.add_argument(
        "--metrics",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="serve Prometheus metrics too (default 127.0.0.1:9798; see `epcgroup exporter`)",
    )
    parser.add_argument(
        "--web",
        nargs="?",
        const=web.DEFAULT,
        metavar="ADDRESS",
        help=f"a web page too (default {web.DEFAULT}; see `epcgroup web`)",
    )
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="ask for this token on the web page")
    exporter.add_options(parser)
    add_inject(parser)
    add_ways(parser)
    add_enclu(parser)
    logs.add_options(parser)
    served.add_dir(parser)
    parser.set_defaults(func=run)


def parse_resource(spec: str) -> tuple[str, int]:
    """``sev=99`` → name and capacity in the resource's own unit.

    >>> parse_resource("sev=99")
    ('sev', 99)
    """
    name, _, amount = spec.partition("=")
    good = name.isascii() and name.replace("_", "").isalnum() and amount.isascii() and amount.isdigit()
    if not good or not 0 < int(amount) <= U64_MAX or name == "sgx_epc":
        raise BadInput(f"--resource {spec!r}: write NAME=CAPACITY, e.g. sev=99 (sgx_epc is --epc)")
    return name, int(amount)


def _views(args: argparse.Namespace) -> list[Callable[[Server], View]]:
    """What is to look at the machine from inside the server, each made when there is a machine."""
    views: list[Callable[[Server], View]] = []
    if args.metrics is not None:
        from epcgroup.observe import scrape

        address = scrape.parse_address(args.metrics or scrape.DEFAULT)
        metrics = exporter.writer(args)
        views.append(lambda server: scrape.Exporter(server.source, metrics, address))
    if args.web is not None:
        page = web.WebPage(served.places_of(args).directory, args.web, args.token_file)
        views.append(lambda _: page)
    return views


def run(args: argparse.Namespace) -> int:
    """Serve until a signal comes."""
    if args.memory and args.mirror is not None:
        raise BadInput("--memory and --mirror: the mirrored tree has a memory controller of its own")
    resources = dict(parse_resource(spec) for spec in args.resource)
    parsed = parse_sections(args.epc)
    try:
        import mfusepy  # noqa: F401
    except ImportError as error:
        raise MissingCapability(
            f"mfusepy is missing: {to_install('serve')}"
            if isinstance(error, ModuleNotFoundError)
            else f"{error}; on Debian: apt-get install fuse3"
        ) from error
    from epcgroup.serve.mountpoint import real
    from epcgroup.serve.places import Places
    from epcgroup.serve.server import Options, Server

    at = Places(served.places_of(args).directory.resolve())
    mount = real(args.mount) if args.mount else at.mount
    log = logs.Log(args)
    server = Server(
        Options(
            epc_pages=sum(pages for pages, _ in parsed),
            sections=to_sections(parsed),
            places=at,
            mount=mount,
            policy=args.policy,
            resources=resources,
            auto_delegate=args.auto_delegate,
            extensions=args.extensions,
            memory=args.memory,
            seed=root_key(args.seed),
            page_service=args.page_service,
            paranoid=args.paranoid,
            inject=tuple(args.inject),
            enclu=args.enclu,
            unpatched=tuple(args.unpatched),
            system=args.system,
            mirror=args.mirror,
            log=log.plain,
            follow=log.follow,
            views=_views(args),
        )
    )
    server.run()
    return 0
