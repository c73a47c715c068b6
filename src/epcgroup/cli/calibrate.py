"""``epcgroup calibrate``: the cost profile of this machine, for ``epcgroup sim``."""

from __future__ import annotations

import argparse
import contextlib
import platform
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from epcgroup.cli.interrupts import Interrupted, Interrupts
from epcgroup.cli.progress import Progress
from epcgroup.errors import BadInput, MissingCapability
from epcgroup.units import PAGE_SIZE, format_size, pages, parse_size

if TYPE_CHECKING:
    from epcgroup.sim.calibrate import Timed
    from epcgroup.sim.costs import Profile

_LEAST = 512  # pages of EPC


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = subparsers.add_parser(
        "calibrate",
        help="time enclaves on this machine and write its cost profile",
        description="Builds enclaves of several sizes through /dev/sgx_enclave, touches them, and writes "
        "what each operation costs to PROFILE (TOML), which a scenario of 'epcgroup sim' may name. For real "
        "SGX hardware with little else going on. Ctrl-C keeps what the whole rounds so far gave.",
    )
    add = parser.add_argument
    add("profile", metavar="PROFILE", type=Path, help="the file to write, NAME.toml")
    add("--epc", metavar="SIZE", help="EPC that this process may use (all that the processor has)")
    add("--most", default="2G", metavar="SIZE", help="no enclave larger than this (2G)")
    add("--rounds", type=int, default=5, metavar="N", help="measure so often; the spread is theirs (5)")
    add("--base", default="icelake", metavar="PROFILE", help="whose figures stand for what is not measured")
    add("--emulated", action="store_true", help="an emulated machine: its figures say nothing of SGX's speed")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Measure, fit, write; the exit status."""
    from epcgroup.sim import require

    require()
    from epcgroup.atonce import AtOnce
    from epcgroup.sim import calibrate, costs

    if args.profile.suffix != ".toml":
        raise BadInput(f"{args.profile}: want a name that ends in .toml, so that a scenario can name it")
    if args.rounds < 1:
        raise BadInput(f"--rounds {args.rounds}: want at least 1")
    base = costs.load(args.base)
    epc = _epc(args.epc, emulated=args.emulated)
    sizes = calibrate.heaps(epc, pages(parse_size(args.most, "--most")))
    place = AtOnce(args.profile)  # before the work, so that a bad place is known at once
    try:
        with Interrupts() as interrupts:
            rounds = _measure(sizes, args.rounds, interrupts)
            if not rounds:
                print("interrupted before the first round was whole; nothing was written", file=sys.stderr)
                return interrupts.status
            found = calibrate.figures(rounds, epc, base.ns("track"))
            when = time.strftime("%Y-%m-%d")
            how = f"epcgroup calibrate, {when}, {len(rounds)} rounds, Linux {platform.release()}"
            title, clock_ghz = _processor()
            if args.emulated:
                how, title = f"{how}, EMULATED", f"{title} (emulated SGX)"
            sgx2 = args.emulated or _has_sgx2()
            machine = calibrate.Machine(args.profile.stem, title, epc, clock_ghz, sgx2)
            made = calibrate.profile(machine, base, found, how)
            place.file.write(calibrate.to_toml(made).encode())
            place.appear()
            words = _words(costs.load(str(args.profile)), args.profile)
    except OSError as error:
        raise BadInput(f"{args.profile}: cannot be written: {error.strerror}") from None
    finally:
        place.close()
    sys.stdout.write(words)
    return interrupts.status


def _epc(given: str | None, *, emulated: bool) -> int:
    """Pages of EPC to reckon with. Raises MissingCapability on a machine whose times mean nothing."""
    from epcgroup.live.enclave.cpuid import native

    has_sgx = bool(native(7)[1] >> 2 & 1)
    if not emulated:
        if not has_sgx:
            raise MissingCapability(
                "this processor has no SGX, so a profile of it would say nothing of SGX's costs; "
                "an emulated machine all the same: epcgroup run -- epcgroup calibrate --emulated …"
            )
        if _traced():
            raise MissingCapability(
                "this process is being traced (an emulated machine, or a debugger): times would be the "
                "tracer's; run it outside, or say --emulated"
            )
    if given is not None:
        epc = pages(parse_size(given, "--epc"))
    elif has_sgx and not emulated:
        epc = sum(_sections(native)) // PAGE_SIZE
    else:
        raise BadInput("--emulated needs --epc: how much EPC the machine or the cgroup's limit gives")
    if epc < _LEAST:
        raise BadInput(
            f"an EPC of {format_size(epc * PAGE_SIZE)}: want at least {format_size(_LEAST * PAGE_SIZE)}"
        )
    return epc


def _sections(native: object) -> list[int]:
    """Bytes of each EPC section (SDM volume 3, CPUID leaf 12H, subleaves from 2)."""
    assert callable(native)
    found: list[int] = []
    while True:
        eax, _, ecx, edx = native(0x12, 2 + len(found))
        if eax & 0xF != 1:
            return found
        found.append((edx & 0xFFFFF) << 32 | ecx & 0xFFFFF000)


def _traced() -> bool:
    status = Path("/proc/self/status").read_text()
    return re.search(r"^TracerPid:\s*0$", status, re.MULTILINE) is None


def _has_sgx2() -> bool:
    from epcgroup.live.enclave.cpuid import native

    return bool(native(0x12)[0] >> 1 & 1)


def _processor() -> tuple[str, float]:
    """Its name, and the clock in GHz that it runs at now."""
    said = Path("/proc/cpuinfo").read_text()
    name = re.search(r"^model name\s*:\s*(.*)$", said, re.MULTILINE)
    clock = re.search(r"^cpu MHz\s*:\s*([\d.]+)$", said, re.MULTILINE)
    return name[1] if name else platform.machine(), round(float(clock[1]) / 1000, 3) if clock else 0.0


def _measure(heaps: list[int], count: int, interrupts: Interrupts) -> list[list[Timed]]:
    """The whole rounds: those before an interrupt."""
    from epcgroup.stress.timing import time_enclaves

    rounds: list[list[Timed]] = []
    now: list[Timed] = []
    total = sum(heaps) * count
    done = 0
    with contextlib.suppress(Interrupted), Progress("pages") as progress:
        for number, timing in time_enclaves(heaps, count):
            now.append((timing.pages, timing.build_s, timing.passes_ns))
            done += heaps[number]
            progress.update(done / total, done)
            if len(now) == len(heaps):
                rounds.append(now)
                now = []
        interrupts.keep()
    return rounds


def _words(made: Profile, path: Path) -> str:
    lines = [f"{path}: {made.title}, EPC {format_size(made.epc_pages * PAGE_SIZE)}"]
    for name, one in made.cost.items():
        measured = f"{one.ns:12,.0f} ns  ({one.low:,.0f} to {one.high:,.0f})" if one.mark == "C" else ""
        lines.append(f"  {name:15} {measured or 'not measured'}")
    return "\n".join(lines) + "\n"
