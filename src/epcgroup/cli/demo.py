"""`epcgroup demo`: limits, real paging and a picture, in one command."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from epcgroup.cli.tenants import BATCH_PART, SERVICES, Result, Tenant, cast, failures, note, verdict
from epcgroup.units import PAGE_SIZE, format_size, parse_size

if TYPE_CHECKING:
    from epcgroup.live import Supervisor
    from epcgroup.observe import History, Snapshot

_TICK_S = 0.25
_PLAIN_EVERY = 8  # without a terminal: a line for every so many ticks
_TAIL_S = 1.0  # the services go on for so long after batch has ended


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `demo` command."""
    parser = subparsers.add_parser(
        "demo",
        help="three tenants, three limits, real paging: a table and a picture",
        description="Run three real SGX programs on one emulated machine, each in an EPC cgroup: web and "
        "neighbour stay within their limits, batch wants three times its own. The picture shows who pages.",
    )
    add = parser.add_argument
    add("--seconds", type=float, default=14.0, metavar="N", help="so long, and some more to set up (14)")
    add("--epc", default="64M", metavar="SIZE", help="EPC; a tenant's limit is a quarter of it (64M)")
    add("--policy", default="standard", metavar="P", help="which kernel's behaviour (standard)")
    add("--output", type=Path, default=Path("demo.png"), metavar="FILE", help="the picture (demo.png)")
    parser.set_defaults(func=demo)


def demo(args: argparse.Namespace) -> int:
    """Run the demo. 0 when all tenants ended well and every page was right."""
    from epcgroup import pictures
    from epcgroup.observe import plot

    pictures.check(args.output)
    epc = parse_size(args.epc, "--epc")
    tenants = cast(epc, args.seconds)
    stage = _Stage(tenants, args.seconds * (1 - BATCH_PART))
    stage.play(epc // PAGE_SIZE, args.policy)
    end = stage.end
    plot.save(
        stage.history,
        args.output,
        paths=[tenant.path for tenant in tenants],
        title=f"Three tenants on {format_size(epc)} of EPC (policy {end.policy})",
        notes=[note(tenant, group) for tenant in tenants if (group := end.group(tenant.path))],
        marks=[(stage.batch_at, "batch starts")],
    )
    print(f"picture: {args.output}")
    failed = failures(stage.results)
    for line in failed:
        print(f"epcgroup: demo: {line}", file=sys.stderr)
    if failed:
        return 1
    print(verdict(end, tenants, stage.results, stage.batch_start))
    return 0


class _Stage:
    """One run: starts batch when its time has come, keeps snapshots and reports."""

    def __init__(self, tenants: Sequence[Tenant], batch_after: float) -> None:
        from epcgroup.observe import History

        self.history: History = History()
        self.results: dict[str, Result] = {}
        self.batch_start = 0.0  # monotonic clock
        self.batch_at = 0.0  # the machine's clock, as in its snapshots
        self._tenants = {tenant.name: tenant for tenant in tenants}
        self._batch_after = batch_after
        self._files: dict[str, tuple[IO[bytes], IO[bytes]]] = {}
        self._pids: dict[str, int] = {}
        self._batch_end: float | None = None
        self._dismissed = False

    @property
    def end(self) -> Snapshot:
        """The last snapshot."""
        last = self.history.last
        assert last is not None
        return last

    def play(self, epc_pages: int, policy: str) -> None:
        """Run all tenants to their ends."""
        from epcgroup.live import Supervisor

        with contextlib.ExitStack() as stack:
            machine = stack.enter_context(Supervisor(epc_pages, policy))
            show = stack.enter_context(_display())
            for tenant in self._tenants.values():
                machine.mkdir(tenant.path, tenant.limit)
                self._files[tenant.name] = (
                    stack.enter_context(tempfile.TemporaryFile()),
                    stack.enter_context(tempfile.TemporaryFile()),
                )
            for name in SERVICES:
                self._start(machine, name)

            def tick(snapshot: Snapshot) -> None:
                self.history.add(snapshot)
                show(snapshot)
                self._direct(machine, snapshot)

            statuses = machine.run(tick, _TICK_S)
            self.history.add(machine.snapshot())
            show(self.end)
            self.results = {name: self._result(name, statuses[pid]) for name, pid in self._pids.items()}

    def _direct(self, machine: Supervisor, snapshot: Snapshot) -> None:
        """Start batch, or send the services home, if it is time."""
        if not self.batch_start:
            if self._services_run_since(snapshot) >= self._batch_after:
                self.batch_start, self.batch_at = time.monotonic(), snapshot.time_s
                self._start(machine, "batch")
        elif not self._dismissed and self._batch_ended_since(snapshot) >= _TAIL_S:
            self._dismissed = True
            for name in SERVICES:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._pids[name], signal.SIGTERM)

    def _services_run_since(self, snapshot: Snapshot) -> float:
        """Seconds since both services had their heaps in the EPC; 0 before."""
        for earlier in self.history.snapshots:
            filled = [
                group.current >= tenant.heap
                for name in SERVICES
                if (group := earlier.group((tenant := self._tenants[name]).path)) is not None
            ]
            if len(filled) == len(SERVICES) and all(filled):
                return snapshot.time_s - earlier.time_s
        return 0.0

    def _batch_ended_since(self, snapshot: Snapshot) -> float:
        """Seconds since batch's process was gone; 0 before."""
        if self._batch_end is None and not Path(f"/proc/{self._pids['batch']}").exists():
            self._batch_end = snapshot.time_s
        return 0.0 if self._batch_end is None else snapshot.time_s - self._batch_end

    def _start(self, machine: Supervisor, name: str) -> None:
        tenant = self._tenants[name]
        out, err = self._files[name]
        self._pids[name] = machine.spawn(
            tenant.argv(sys.executable), group=tenant.path, stdout=out.fileno(), stderr=err.fileno()
        )

    def _result(self, name: str, status: int) -> Result:
        out, err = self._files[name]
        out.seek(0)
        err.seek(0)
        report: dict[str, Any] = {}
        with contextlib.suppress(ValueError):
            report = json.loads(out.read())
        return Result(status, report, err.read().decode(errors="replace"))


@contextlib.contextmanager
def _display() -> Iterator[Any]:
    """What shows a snapshot: a live table on a terminal, else a line now and then."""
    from rich.console import Console
    from rich.live import Live

    from epcgroup.observe import report

    console = Console()
    if console.is_terminal:
        with Live(console=console, auto_refresh=False, transient=False) as live:
            yield lambda snapshot: live.update(report.render(snapshot), refresh=True)
        return
    count = 0

    def line(snapshot: Snapshot) -> None:
        nonlocal count
        if count % _PLAIN_EVERY == 0:
            print(report.plain_line(snapshot), flush=True)
        count += 1

    yield line
