"""The application: a source asked once a second in a thread of its own, keys, panes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual import work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import Footer, Input, Static
from textual.worker import get_current_worker

from epcgroup.errors import EpcgroupError, Refused, words_of
from epcgroup.observe import model, why
from epcgroup.observe.model import Event, Snapshot
from epcgroup.observe.printable import printable
from epcgroup.observe.source import Source
from epcgroup.observe.top.dialogs import NOTHING, Keys, SetLimit
from epcgroup.observe.top.rows import SORTS, Past, Rates, Row, Selection, rows
from epcgroup.observe.top.table import Table, count, fitted, sparkline
from epcgroup.units import PAGE_SIZE, format_limit, format_size

_EVENTS_SHOWN = 200


class Header(Widget):
    """The titles of the columns, as wide as the table."""

    def __init__(self, table: Table) -> None:
        super().__init__()
        self._table = table

    def render_line(self, y: int) -> Strip:  # noqa: ARG002 - it has one
        return self._table.header(self._table.width)


class Top(App[None]):
    """`epcgroup top`."""

    TITLE = "epcgroup top"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #machine { height: 1; text-style: bold; }
    #trouble { height: auto; display: none; background: $error; color: $text; }
    Header { height: 1; }
    Table { height: 1fr; overflow-x: hidden; scrollbar-size-vertical: 1; }
    #detail { height: 5; border-top: solid $primary; }
    #events { height: 12; border-top: solid $primary; display: none; overflow-y: auto; }
    #filter { display: none; height: 1; border: none; padding: 0; }
    SetLimit, Keys { align: center middle; }
    .box { width: auto; max-width: 78; height: auto; border: round $primary; padding: 0 1; }
    .box { background: $surface; }
    .box Static { width: auto; max-width: 74; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "quit"),
        Binding("s", "sort", "sort"),
        Binding("slash", "filter", "filter", key_display="/"),
        Binding("l", "limit", "limit"),
        Binding("e", "events", "events"),
        Binding("p", "pause", "pause"),
        Binding("question_mark", "keys", "keys", key_display="?"),
        Binding("right,enter,space", "open", show=False),
        Binding("left", "close", show=False),
        Binding("escape", "clear", show=False),
    ]

    def __init__(self, source: Source, interval: float = 1.0, kept: why.PointsOf | None = None) -> None:
        """``kept``: what was before, where somebody keeps it (`Store.points`)."""
        super().__init__()
        self.source = source
        self.past = Past(kept, interval)
        self.selection = Selection()
        self.paused = False
        self.table = Table()
        self.table.history = self._paging
        self._interval = interval
        self._told: list[Event] = []

    def compose(self) -> ComposeResult:
        yield Static(id="machine")
        yield Static(id="trouble")
        yield Header(self.table)
        yield self.table
        yield Input(placeholder="part of a path", id="filter")
        yield Static(id="detail")
        yield Static(id="events")
        yield Footer()

    def on_mount(self) -> None:
        self.table.focus()
        self._watch()

    # -- the machine -------------------------------------------------------------

    @work(thread=True, exclusive=True)
    def _watch(self) -> None:
        """Ask the source again and again, in a thread: a slow machine must not stop the keyboard."""
        worker = get_current_worker()
        while not worker.is_cancelled:
            began = time.monotonic()
            if not self.paused:
                try:
                    snapshot = self.source.snapshot()
                    after = self._told[-1].number if self._told else 0
                    self.call_from_thread(self.see, snapshot, self.source.events(after))
                except Refused as gone:
                    self.call_from_thread(self._trouble, f"{gone.strerror}; trying again")
            while not worker.is_cancelled and time.monotonic() - began < self._interval:
                time.sleep(0.05)

    def see(self, snapshot: Snapshot, events: Sequence[Event] = ()) -> None:
        """Show the machine as it is now."""
        if not self.query("#detail"):
            return  # we are ending
        self._trouble("")
        if self._told and events and events[0].number <= self._told[-1].number:
            self._told.clear()  # another server, counting anew
        self._told.extend(events)
        del self._told[:-_EVENTS_SHOWN]
        self.past.see(snapshot)
        self.redraw()

    def redraw(self) -> None:
        """Everything anew from what was last seen."""
        snapshot = self.past.snapshot
        if snapshot is None:
            return
        self.table.show(rows(self.past, self.selection), snapshot.knows, self.selection.sort)
        self.query_one(Header).refresh()
        self.query_one("#machine", Static).update(self._machine(snapshot))
        self._show_detail()
        events = self.query_one("#events", Static)
        if events.display:
            events.update(
                Text("\n").join(map(event_text, reversed(self._told))) or Text("nothing has happened")
            )

    def _machine(self, snapshot: Snapshot) -> Text:
        epc, free = snapshot.epc_pages * PAGE_SIZE, snapshot.free_pages * PAGE_SIZE
        used = 1 - free / epc if epc else 0.0
        nodes = snapshot.nodes if len(snapshot.nodes) > 1 else ()
        by_node = "".join(f" · node {node.node}: {format_size(node.free * PAGE_SIZE)}" for node in nodes)
        parts = [
            f" EPC {format_size(epc)}, {format_size(free)} free{by_node} ",
            f" {_many(len(snapshot.groups), 'cgroup')}",
            f", {_many(sum(not e.ended for e in snapshot.enclaves), 'enclave')}"
            if model.ENCLAVES in snapshot.knows
            else "",
            " · paused" if self.paused else "",
            f" · filter {self.selection.filter!r}" if self.selection.filter else "",
            f" · {snapshot.policy}",
            f" · {why.clock(snapshot.at)} virtual" if snapshot.virtual else "",
            f" · {fitted(printable(self.source.name), 40).rstrip()}",
        ]
        bar = sparkline([used], 1, 1.0)
        style = "red" if used > 0.95 else "yellow" if used > 0.8 else "green"
        return Text.assemble(parts[0], (bar, style), *parts[1:], overflow="ellipsis", no_wrap=True)

    def _trouble(self, words: str) -> None:
        for trouble in self.query("#trouble").results(Static):
            trouble.display = bool(words)
            trouble.update(Text(printable(words)))

    def _paging(self, path: str) -> Sequence[float]:
        return [pages for _, pages in self.past.samples(path)]

    # -- the selected row ----------------------------------------------------------

    def on_table_moved(self) -> None:
        """Another row: another detail."""
        self._show_detail()

    def _show_detail(self) -> None:
        row, snapshot = self.table.row, self.past.snapshot
        if row is not None and snapshot is not None:
            self.query_one("#detail", Static).update(self._detail(row, snapshot))

    def _detail(self, row: Row, snapshot: Snapshot) -> Text:
        path = row.key.partition("\0")[0]
        group = snapshot.group(path)
        if group is None:
            return Text("")
        width = max(self.size.width, 40)
        samples = self.past.samples(path)
        rates = self.past.rates.get(path, Rates())
        effective, whose = _effective(snapshot, path)
        held = f" · limited by {printable(whose)}" if whose not in ("", path) else ""
        stall = (
            f"waits {rates.some:.0%} some, {rates.full:.0%} full" if model.PRESSURE in snapshot.knows else ""
        )
        bars = max(width - 16 - max(len(stall), 12), 8)
        used = sparkline([used for used, _ in samples], bars, float(effective or 0))
        paging = sparkline([pages for _, pages in samples], bars)
        top = max((pages for _, pages in samples), default=0.0)
        title = printable(path) if row.kind == "group" else f"{printable(path)}: {printable(row.name)}"
        lines = [
            Text(fitted(title + held, width), style="bold"),
            Text(f"used {format_size(group.current):>8}  {used} of {format_limit(effective)}"),
            Text(f"pages/s {count(top):>5}  {paging} {stall}"),
            Text(fitted(self._last_words(path), width)),
        ]
        return Text("\n", no_wrap=True, overflow="crop").join(lines)

    def _last_words(self, path: str) -> str:
        near = set(why.ancestors(path))
        last = next((event for event in reversed(self._told) if event.group in near), None)
        return event_text(last).plain if last is not None else "no events"

    # -- keys ----------------------------------------------------------------------

    def action_sort(self) -> None:
        """The next order."""
        self.selection.sort = SORTS[(SORTS.index(self.selection.sort) + 1) % len(SORTS)]
        self.redraw()

    def action_open(self) -> None:
        """Open the row: its children, then its contents."""
        row = self.table.row
        if row is None or row.kind in ("enclave", "thread"):
            return
        if row.key in self.selection.closed:
            self.selection.closed.discard(row.key)
        else:
            self.selection.opened.add(row.key)
        self.redraw()

    def action_close(self) -> None:
        """Close the row, or go to the one above."""
        row = self.table.row
        if row is None:
            return
        if row.key in self.selection.opened:
            self.selection.opened.discard(row.key)
        elif row.kind == "group" and row.open and row.key != "/":
            self.selection.closed.add(row.key)
        elif row.kind == "group":
            self.table.go_to(row.key.rpartition("/")[0] or "/")
        else:
            self.table.go_to(row.key.rpartition("\0")[0])
        self.redraw()

    def action_filter(self) -> None:
        """Ask for a part of a path."""
        box = self.query_one("#filter", Input)
        box.display = True
        box.value = self.selection.filter
        box.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter while it is typed."""
        if event.input.id == "filter":
            self.selection.filter = event.value
            self.redraw()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Keep the filter, go back to the table."""
        if event.input.id == "filter":
            event.input.display = False
            self.table.focus()

    def action_clear(self) -> None:
        """No filter."""
        self.query_one("#filter", Input).display = False
        self.selection.filter = ""
        self.table.focus()
        self.redraw()

    def action_events(self) -> None:
        """Show or hide what happened."""
        events = self.query_one("#events", Static)
        events.display = not events.display
        self.query_one("#detail", Static).display = not events.display
        self.redraw()

    def action_pause(self) -> None:
        """Stop looking, or go on."""
        self.paused = not self.paused
        self.redraw()

    def action_keys(self) -> None:
        """Show the keys."""
        self.push_screen(Keys())

    def action_limit(self) -> None:
        """Ask for the limit of the cgroup under the cursor."""
        row, snapshot = self.table.row, self.past.snapshot
        group = (
            snapshot.group(row.key.partition("\0")[0]) if row is not None and snapshot is not None else None
        )
        if group is None or group.path == "/":
            self.notify("the root cgroup has no limit; choose one below it", severity="warning")
            return

        def answer(limit: int | None) -> None:
            if limit != NOTHING:
                self._set(group.path, limit)

        self.push_screen(SetLimit(group), answer)

    @work(thread=True)
    def _set(self, path: str, limit: int | None) -> None:
        """Set it, in a thread: the files may be slow."""
        try:
            self.source.set_max(path, limit)
        except EpcgroupError as error:
            words = words_of(error)
            self.call_from_thread(self.notify, printable(words), severity="error", markup=False)
            return
        words = f"{fitted(printable(path), 40).rstrip()}: {format_limit(limit)}"
        self.call_from_thread(self.notify, words, markup=False)


def _many(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _effective(snapshot: Snapshot, path: str) -> tuple[int | None, str]:
    """The smallest limit up to the root, and whose it is; without one, all of the EPC."""
    near = set(why.ancestors(path))
    limits = [
        (group.limit, group.path)
        for group in snapshot.groups
        if group.path in near and group.limit is not None
    ]
    return min(limits, default=(snapshot.epc_pages * PAGE_SIZE, ""))


def event_text(event: Event) -> Text:
    """An event in one line."""
    often = f" ×{event.count:,}" if event.count > 1 else ""
    limit = (
        f", limit {format_limit(event.limit)}" if event.kind in (model.LIMIT, model.SET, model.MADE) else ""
    )
    who = f" enclave {event.enclave} ({event.command})" if event.enclave is not None else ""
    words = f" {event.errno}".rstrip() + (f": {event.reason}" if event.reason else "")
    style = "red" if event.kind in (model.DISABLED, model.FAILED, model.KILLED) else ""
    line = f"{why.clock(event.at)} {event.kind:8} {event.group}{often}{who}{limit}{words}"
    return Text(printable(line), style=style)
