"""`epcgroup stress`: a real SGX enclave whose heap is touched by pattern."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from array import array
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
    add("--heap", metavar="SIZE", help="size of the heap (16M, with --trace as many pages as it touches)")
    add("--touch", metavar="SIZE", help="touch only so much of the heap, from its start (all)")
    add("--threads", type=int, default=1, metavar="N", help="threads, each with its part of the heap (1)")
    add("--seconds", type=float, metavar="S", help="stop after so long (10, if there is no --passes)")
    add("--passes", type=int, metavar="N", help="stop after N touches per heap page")
    add("--pattern", choices=_PATTERNS, default="seq", help="order of the touches (seq)")
    add("--trace", type=Path, metavar="FILE", help="touch the pages of a trace in its order (extra sim)")
    add("--enclave", type=int, metavar="N", help="of several in the trace, the enclave with this number")
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

    trace = None if args.trace is None else _trace(args)
    least = "16M" if trace is None else f"{max(trace) + 1} pages"
    image = Image(threads=args.threads, heap_pages=page_ceil(parse_size(args.heap or least, "--heap")))
    plan = _plan(args, image.heap_pages, trace)
    with Enclave(image) as enclave:
        key = _key(args.key)
        began = time.monotonic()
        enclave.load(key)
        loading = time.monotonic() - began
        progress = _Progress(plan.touched(image)) if sys.stderr.isatty() else None
        finish, stop = threading.Event(), threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: finish.set())
        interrupt = signal.getsignal(signal.SIGINT)
        if interrupt != signal.SIG_IGN:
            signal.signal(signal.SIGINT, lambda *_: stop.set())
        outcome = load.run(enclave, plan, progress, finish, stop)
        to = report.to_json if args.report == "json" else report.to_text
        print(to(image, plan, outcome, loading), flush=True)
        signal.signal(signal.SIGINT, interrupt)
        if args.hold:
            print(f"holding {format_size(image.size)} until stdin closes", file=sys.stderr, flush=True)
            sys.stdin.read()
    if not outcome.good:
        return 1
    return 130 if outcome.interrupted else 0


def _trace(args: argparse.Namespace) -> array[int]:
    """The heap pages that an enclave of a trace touches, in order. Raises BadInput."""
    from epcgroup import sim

    sim.require()
    from epcgroup.sim.traces.trace import Trace

    trace = Trace(args.trace)
    numbers = sorted(trace.info.enclaves)
    if args.enclave is None and len(numbers) != 1:
        raise BadInput(f"{args.trace}: choose one of its enclaves with --enclave: {numbers}")
    number = numbers[0] if args.enclave is None else args.enclave
    pages = array("I")
    for enclaves, touched, _ in trace.runs():  # a repeated touch changes nothing but time
        pages.frombytes(touched[enclaves == number].astype("uint32").tobytes())
    if not pages:
        raise BadInput(f"{args.trace}: no accesses of enclave {number}; there are: {numbers}")
    return pages


def _plan(args: argparse.Namespace, heap_pages: int, trace: array[int] | None) -> load.Plan:
    from epcgroup.stress import load

    for name in ("seconds", "passes", "rate"):
        value = getattr(args, name)
        if value is not None and not value > 0:
            raise BadInput(f"--{name} {value}: must be more than 0")
    if not 0 <= args.seed < 1 << 63:
        raise BadInput(f"--seed {args.seed}: must be from 0 to 2^63-1")
    if trace is not None:
        needed = max(trace) + 1
        if args.threads != 1 or args.touch is not None:
            raise BadInput("a trace is the order of one thread over the whole heap: no --threads, no --touch")
        if needed > heap_pages:
            raise BadInput(f"--heap {args.heap}: the trace touches more; it needs {needed} pages")
        passes = args.passes or (1 if args.seconds is None else None)
        return load.Plan("trace", args.seed, args.seconds, passes, args.rate, None, trace)
    seconds = 10.0 if args.seconds is None and args.passes is None else args.seconds
    pages = None if args.touch is None else page_ceil(parse_size(args.touch, "--touch"))
    if pages is not None and not args.threads <= pages <= heap_pages:
        raise BadInput(
            f"--touch {args.touch}: must be from a page per thread to all {heap_pages} of the heap"
        )
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
