"""`epcgroup stress`: a real SGX enclave whose heap is touched by pattern."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from epcgroup.errors import BadInput
from epcgroup.units import format_size, page_ceil, parse_size

if TYPE_CHECKING:
    from epcgroup.sgx.sign import SigningKey
    from epcgroup.stress import load

_PATTERNS = ("seq", "random", "zipf", "scan-loop")
_PROGRESS_S = 1.0
_KEY_HINT = "make one with: openssl genrsa -3 -out FILE 3072"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `stress` command."""
    parser = subparsers.add_parser(
        "stress",
        help="load a real SGX enclave and touch its heap by pattern",
        description="Build, sign and load an SGX enclave through /dev/sgx_enclave and touch its heap. Every "
        "touch checks the page's contents and writes new ones. Runs on SGX hardware, and anywhere "
        "else inside `epcgroup run`. SIGTERM ends the load early, with its final check and report.",
    )
    add = parser.add_argument
    add("--heap", default="16M", metavar="SIZE", help="size of the heap (16M)")
    add("--touch", metavar="SIZE", help="touch only so much of the heap, from its start (all)")
    add("--threads", type=int, default=1, metavar="N", help="threads, each with its part of the heap (1)")
    add("--seconds", type=float, metavar="S", help="stop after so long (10, if there is no --passes)")
    add("--passes", type=int, metavar="N", help="stop after N touches per heap page")
    add("--pattern", choices=_PATTERNS, default="seq", help="order of the touches (seq)")
    add("--rate", type=float, metavar="R", help="at most R touches a second, over all threads")
    add("--seed", type=int, default=1, metavar="N", help="contents and order follow from it (1)")
    add("--key", type=Path, metavar="FILE", help="PEM of an RSA-3072 key with exponent 3 (a fresh key)")
    add("--report", choices=("table", "json"), default="table", help="form of the report (table)")
    add("--hold", action="store_true", help="at the end keep the enclave until stdin closes")
    parser.set_defaults(func=stress)


def stress(args: argparse.Namespace) -> int:
    """Run the load. 0 when every page was right, 1 when not, 130 when interrupted."""
    from epcgroup.stress import load, report
    from epcgroup.stress.device import Enclave
    from epcgroup.stress.image import Image

    image = Image(threads=args.threads, heap_pages=page_ceil(parse_size(args.heap)))
    plan = _plan(args, image.heap_pages)
    with Enclave(image) as enclave:
        key = _key(args.key)
        began = time.monotonic()
        enclave.load(key)
        loading = time.monotonic() - began
        progress = _Progress(plan.touched(image)) if sys.stderr.isatty() else None
        finish = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: finish.set())
        outcome = load.run(enclave, plan, progress, finish)
        to = report.to_json if args.report == "json" else report.to_text
        print(to(image, plan, outcome, loading), flush=True)
        if args.hold:
            print(f"holding {format_size(image.size)} until stdin closes", file=sys.stderr, flush=True)
            sys.stdin.read()
    if not outcome.good:
        return 1
    return 130 if outcome.interrupted else 0


def _plan(args: argparse.Namespace, heap_pages: int) -> load.Plan:
    from epcgroup.stress import load

    for name in ("seconds", "passes", "rate"):
        value = getattr(args, name)
        if value is not None and not value > 0:
            raise BadInput(f"--{name} {value}: must be more than 0")
    if not 0 <= args.seed < 1 << 63:
        raise BadInput(f"--seed {args.seed}: must be from 0 to 2^63-1")
    seconds = 10.0 if args.seconds is None and args.passes is None else args.seconds
    pages = None if args.touch is None else page_ceil(parse_size(args.touch))
    if pages is not None and not args.threads <= pages <= heap_pages:
        raise BadInput(f"--touch {args.touch}: must be from a page per thread to the whole heap, {args.heap}")
    return load.Plan(args.pattern, args.seed, seconds, args.passes, args.rate, pages)


def _key(path: Path | None) -> SigningKey:
    from epcgroup.sgx.sign import SigningKey

    if path is None:
        return SigningKey.generate()
    try:
        return SigningKey.from_pem(path.read_bytes())
    except OSError as error:
        raise BadInput(f"--key {path}: {error.strerror}") from None
    except BadInput as error:
        raise BadInput(f"--key {path}: {error}; {_KEY_HINT}") from None
    except ValueError:
        raise BadInput(f"--key {path}: no private key in PEM; {_KEY_HINT}") from None


class _Progress:
    """A line on the terminal about every second."""

    def __init__(self, pages: int) -> None:
        self._pages = pages
        self._last = (0.0, 0)

    def __call__(self, seconds: float, touches: int) -> None:
        since, before = self._last
        if seconds - since >= _PROGRESS_S:
            speed = (touches - before) / (seconds - since)
            passes = touches / self._pages
            print(
                f"{seconds:6.1f} s  {passes:8.1f} passes  {speed:12,.0f} pages/s", file=sys.stderr, flush=True
            )
            self._last = (seconds, touches)
