"""A snapshot for people (rich tables) and for programs (JSON, the same fields)."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

from epcgroup.observe import codec
from epcgroup.observe.model import EnclaveView, GroupView, Snapshot
from epcgroup.observe.printable import printable
from epcgroup.units import PAGE_SIZE, format_limit, format_size

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

_PLAIN_WIDTH = 10_000  # columns; a log has no width, and a name may have 4,096 bytes
_WRAPPED = 200  # columns; longer names are cut on a terminal
_FULL = 0.98  # from this part of the limit on, usage is shown as being at the limit


def to_json(snapshot: Snapshot) -> str:
    """The snapshot as one JSON object; field names and units are those of the model."""
    return json.dumps(codec.snapshot_to_json(snapshot))


def render(snapshot: Snapshot) -> RenderableType:
    """Two compact tables: cgroups, then enclaves if there were any."""
    from rich.console import Group

    parts: list[RenderableType] = [group_table(snapshot)]
    if snapshot.enclaves:
        parts.append(enclave_table(snapshot.enclaves))
    return Group(*parts)


def show(snapshot: Snapshot, file: TextIO) -> None:
    """Print the tables; in colour if ``file`` is a terminal."""
    write(render(snapshot), file)


def to_text(snapshot: Snapshot) -> str:
    """The tables as plain text."""
    text = io.StringIO()
    show(snapshot, text)
    return text.getvalue()


def write(what: RenderableType, file: TextIO) -> None:
    """Print tables as `text_for` has them."""
    file.write(text_for(what, file))


def text_for(what: RenderableType, file: TextIO) -> str:
    """Tables as text: fitted and coloured if it is a terminal; else as wide as they are, nothing cut off."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(file=file, highlight=False)
    if console.is_terminal:
        # On a narrow one rich would leave whole columns empty; lines that wrap can still be read.
        least = Measurement.get(console, console.options.update(max_width=_PLAIN_WIDTH), what).minimum
        console.width = max(console.width, min(least, _WRAPPED))
        with console.capture() as captured:
            console.print(what)
        return captured.get()
    text = io.StringIO()
    Console(file=text, width=_PLAIN_WIDTH, highlight=False, color_system=None).print(what)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def group_table(snapshot: Snapshot, *, title: str | None = None) -> Table:
    """One row per cgroup, indented by depth."""
    from rich.markup import escape

    table = _table(escape(title or machine_line(snapshot)))
    table.add_column("cgroup", no_wrap=True)
    for name in ("limit", "current", "peak", "events", "pages in", "pages out", "faults", "stalled"):
        table.add_column(name, justify="right", no_wrap=True)
    guests = any(group.vepc_peak for group in snapshot.groups)
    for name in ("vEPC", "vEPC peak") if guests else ():
        table.add_column(name, justify="right", no_wrap=True)
    for group in snapshot.groups:
        table.add_row(
            escape(printable(indented(group.path))),
            format_limit(group.limit),
            _current(group),
            format_size(group.peak),
            _count(group.events, "yellow"),
            _count(group.pages_in),
            _count(group.pages_out),
            _count(group.faults),
            seconds(group.stall_s),
            *((_pages(group.vepc), _pages(group.vepc_peak)) if guests else ()),
        )
    return table


def enclave_table(enclaves: Sequence[EnclaveView]) -> Table:
    """One row per enclave, the living first."""
    from rich.markup import escape

    table = _table(None)
    table.add_column("enclave", justify="right", no_wrap=True)
    table.add_column("pid", justify="right", no_wrap=True)
    table.add_column("command", no_wrap=True, overflow="ellipsis", max_width=20)
    table.add_column("cgroup", no_wrap=True)
    for name in ("size", "resident", "evicted", "SECS", "VA"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for enclave in sorted(enclaves, key=lambda enclave: (enclave.ended, enclave.id)):
        state = "[red]disabled[/]" if enclave.disabled else "ended" if enclave.ended else "alive"
        table.add_row(
            *(
                str(enclave.id),
                str(enclave.pid),
                escape(printable(enclave.command)),
                escape(printable(enclave.group)),
            ),
            *(format_size(enclave.size), _pages(enclave.resident), _pages(enclave.evicted)),
            *(str(enclave.secs), str(enclave.va), state),
        )
    return table


def machine_line(snapshot: Snapshot) -> str:
    """The machine in one line: size, what is free, policy, age."""
    epc, free = snapshot.epc_pages * PAGE_SIZE, snapshot.free_pages * PAGE_SIZE
    state = f"EPC {format_size(epc)}, {format_size(free)} free"
    if len(snapshot.nodes) > 1:
        by_node = (f"{format_size(node.free * PAGE_SIZE)} on node {node.node}" for node in snapshot.nodes)
        state += f" ({', '.join(by_node)})"
    return f"{state} · policy {snapshot.policy} · {snapshot.time_s:.1f} s{' virtual' * snapshot.virtual}"


def plain_line(snapshot: Snapshot) -> str:
    """All groups but the root in one line, for logs and pipes."""
    groups = [group for group in snapshot.groups if group.path != "/"] or list(snapshot.groups)
    cells = [
        f"{printable(group.path.lstrip('/') or '/')} "
        f"{format_size(group.current)}/{format_limit(group.limit)} in {group.pages_in} out {group.pages_out}"
        for group in groups
    ]
    return f"{snapshot.time_s:6.1f} s  " + "  |  ".join(cells)


def indented(path: str) -> str:
    """The last name of ``path``, set in by its depth; the root is `/`."""
    parts = [part for part in path.split("/") if part]
    return "  " * (len(parts) - 1) + parts[-1] if parts else "/"


def seconds(value: float) -> str:
    """A time span in the unit that suits it.

    >>> seconds(0), seconds(0.0042), seconds(3.14159)
    ('0', '4.2 ms', '3.14 s')
    """
    if value == 0:
        return "0"
    return f"{value * 1e3:.1f} ms" if value < 1 else f"{value:.2f} s"


def _table(title: str | None) -> Table:
    from rich import box
    from rich.table import Table

    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)


def _current(group: GroupView) -> str:
    text = format_size(group.current)
    full = group.limit is not None and group.current >= group.limit * _FULL > 0
    return f"[yellow]{text}[/]" if full else text


def _count(number: int, colour: str | None = None) -> str:
    text = f"{number:,}"
    return f"[{colour}]{text}[/]" if colour and number else text


def _pages(number: int) -> str:
    return f"{number:,}"
