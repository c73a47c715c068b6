"""Rows as lines on a screen: columns that fit the width, drawn only where one looks.

textual's own DataTable keeps a cell for every value; updating a hundred thousand of
them each second takes longer than a second. Here a line is made when it is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding
from textual.events import Click
from textual.geometry import Region, Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

from epcgroup.observe.model import PAGING, PRESSURE, UNRECLAIMABLE
from epcgroup.observe.printable import printable
from epcgroup.observe.top.rows import Row
from epcgroup.units import PAGE_SIZE, format_limit, format_size

BARS = " ▁▂▃▄▅▆▇█"
_NAME_LEAST, _HISTORY = 18, 24  # cells
_FULL = 0.98

_DIM, _PLAIN = Style(dim=True), Style()
_WARN, _BAD, _BUSY = Style(color="yellow"), Style(color="red", bold=True), Style(color="cyan")
_HEAD = Style(bold=True, reverse=True)
_HERE = Style(bgcolor="grey37", bold=True)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of numbers. ``part``: what the source must know for it to mean something."""

    title: str
    width: int
    sort: str
    text: Callable[[Row], tuple[str, Style]]
    part: str = ""


def count(value: float) -> str:
    """A number in at most six cells.

    >>> count(0), count(0.4), count(950), count(20_300), count(1_250_000)
    ('0', '0.4', '950', '20.3k', '1.25M')
    """
    if value >= 1e6:
        return f"{value / 1e6:.3g}M"
    if value >= 1e4:
        return f"{value / 1e3:.3g}k"
    return f"{value:.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


def sparkline(values: Sequence[float], width: int, most: float | None = None) -> str:
    """The last ``width`` values as bars, the newest to the right; ``most`` is the full height.

    >>> sparkline([0, 1, 2, 4], 6)
    '   ▂▄█'
    """
    shown = list(values)[-width:]
    top = max([most or 0, *shown])
    bars = [BARS[min(8, -int(-8 * value // top)) if top and value > 0 else 0] for value in shown]
    return "".join(bars).rjust(width)


def fitted(text: str, width: int) -> str:
    """Exactly ``width`` cells; what is too long loses its middle, so that both ends can be told apart.

    >>> fitted("abcdefgh", 5), fitted("ab", 4)
    ('ab…gh', 'ab  ')
    """
    if cell_len(text) <= width:
        return set_cell_size(text, width)
    left = width // 2
    head = set_cell_size(text[: width + 1], left)
    tail = text[-(width - left - 1) :] if width - left > 1 else ""
    while cell_len(tail) > width - left - 1:
        tail = tail[1:]
    return set_cell_size(f"{head}…{tail}", width)


def _limit(row: Row) -> tuple[str, Style]:
    if row.group is not None:
        return ("-" if row.group.path == "/" else format_limit(row.group.limit)), _PLAIN
    if row.enclave is not None:
        return f"of {format_size(row.enclave.size)}", _DIM
    if row.kind == "thread" and row.process is not None and row.process.threads[0].enclave is not None:
        return f"in {row.process.threads[0].enclave}", _DIM
    return "", _PLAIN


def _current(row: Row) -> tuple[str, Style]:
    group = row.group
    if group is not None:
        full = group.limit is not None and group.current >= group.limit * _FULL > 0
        return format_size(group.current), _WARN if full else _PLAIN
    if row.enclave is not None:
        enclave = row.enclave
        return format_size((enclave.resident + enclave.secs + enclave.va) * PAGE_SIZE), _PLAIN
    return "", _PLAIN


def _peak(row: Row) -> tuple[str, Style]:
    if row.enclave is not None:  # of an enclave: what is evicted
        return (f"-{format_size(row.enclave.evicted * PAGE_SIZE)}" if row.enclave.evicted else ""), _DIM
    return (format_size(row.group.peak) if row.group is not None else ""), _PLAIN


def _unreclaimable(row: Row) -> tuple[str, Style]:
    if row.group is not None:
        return format_size(row.group.unreclaimable), _PLAIN
    if row.enclave is not None:
        return format_size((row.enclave.secs + row.enclave.va) * PAGE_SIZE), _PLAIN
    return "", _PLAIN


def _rate(value: Callable[[Row], float], style: Style) -> Callable[[Row], tuple[str, Style]]:
    def text(row: Row) -> tuple[str, Style]:
        if row.group is None:
            return "", _PLAIN
        number = value(row)
        return count(number), style if number else _DIM

    return text


def _stall(row: Row) -> tuple[str, Style]:
    if row.group is not None:
        share = row.rates.some
        return f"{share:.0%}", _BAD if share >= 0.5 else _WARN if share >= 0.1 else _PLAIN if share else _DIM
    if row.process is not None and row.stall_s:
        return f"{row.stall_s:.1f}s", _PLAIN
    return "", _PLAIN


def _hits(row: Row) -> tuple[str, Style]:
    if row.group is not None:
        now = row.rates.hits > 0
        return count(row.group.events_local), _WARN if now else _PLAIN if row.group.events_local else _DIM
    if row.enclave is not None:
        enclave = row.enclave
        state = (
            "lost"
            if enclave.disabled
            else "ended"
            if enclave.ended
            else "alive"
            if enclave.initialised
            else "new"
        )
        return state, _BAD if enclave.disabled else _DIM
    return (count(row.process.faults) if row.process is not None else ""), _DIM


COLUMNS = (
    Column("limit", 7, "", _limit),
    Column("current", 7, "current", _current),
    Column("peak", 7, "", _peak),
    Column("unrecl", 6, "unreclaimable", _unreclaimable, UNRECLAIMABLE),
    Column("in/s", 5, "in", _rate(lambda row: row.rates.pages_in, _BUSY), PAGING),
    Column("out/s", 5, "out", _rate(lambda row: row.rates.pages_out, _BUSY), PAGING),
    Column("stall", 5, "stall", _stall, PRESSURE),
    Column("hits", 5, "hits", _hits),
)


class Table(ScrollView, can_focus=True):
    """The rows, one of them under the cursor."""

    BINDINGS = [  # noqa: RUF012 - as textual has it
        Binding("up,k", "move(-1)", show=False),
        Binding("down,j", "move(1)", show=False),
        Binding("pageup", "page(-1)", show=False),
        Binding("pagedown", "page(1)", show=False),
        Binding("home,g", "end(-1)", show=False),
        Binding("end,G", "end(1)", show=False),
    ]

    cursor = reactive(0)

    class Moved(Message):
        """Another row is under the cursor."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[Row] = []
        self.knows: frozenset[str] = frozenset()
        self.sort = "tree"
        self.history: Callable[[str], Sequence[float]] = lambda _path: ()

    @property
    def width(self) -> int:
        """Cells of a line; a scroll bar has its own."""
        return self.scrollable_content_region.width

    @property
    def row(self) -> Row | None:
        """The row under the cursor."""
        return self.rows[self.cursor] if 0 <= self.cursor < len(self.rows) else None

    def show(self, rows: list[Row], knows: frozenset[str], sort: str) -> None:
        """Show these rows; the cursor stays on the row that it was on, if that is still there."""
        key = self.row.key if self.row is not None else None
        self.rows, self.knows, self.sort = rows, knows, sort
        self.virtual_size = Size(0, len(rows))
        here = self.cursor
        if not (here < len(rows) and rows[here].key == key):
            here = next(
                (at for at, row in enumerate(rows) if row.key == key), min(here, max(len(rows) - 1, 0))
            )
        self.cursor = here
        self.refresh()

    def go_to(self, key: str) -> None:
        """Put the cursor on a row."""
        self.cursor = next((at for at, row in enumerate(self.rows) if row.key == key), self.cursor)

    # -- drawing -----------------------------------------------------------------

    def columns(self, width: int) -> list[Column]:
        """Those that fit beside a name, and mean something."""
        shown = [column for column in COLUMNS if not column.part or column.part in self.knows]
        while shown and width - sum(column.width + 1 for column in shown) < _NAME_LEAST:
            shown.pop(next((at for at, one in enumerate(shown) if one.title in ("peak", "unrecl")), -1))
        return shown

    def header(self, width: int) -> Strip:
        """The line above."""
        columns = self.columns(width)
        name, history = self._widths(width, columns)
        parts = [Segment(fitted("cgroup" if self.sort == "tree" else f"cgroup, by {self.sort}", name), _HEAD)]
        for column in columns:
            title = f"{column.title[: column.width - 1]}▼" if column.sort == self.sort else column.title
            parts.append(Segment(f" {title:>{column.width}}", _HEAD))
        if history:
            parts.append(Segment(f" {'paging':>{history}}", _HEAD))
        return Strip(parts).adjust_cell_length(width, _HEAD)

    def render_line(self, y: int) -> Strip:
        width, at = self.width, y + self.scroll_offset.y
        if at >= len(self.rows):
            return Strip.blank(width)
        row = self.rows[at]
        columns = self.columns(width)
        name, history = self._widths(width, columns)
        parts = [Segment(_name(row, name), _DIM if row.kind in ("process", "thread") else _PLAIN)]
        for column in columns:
            text, style = column.text(row)
            parts.append(Segment(f" {text[: column.width]:>{column.width}}", style))
        if history:
            values = self.history(row.key) if row.group is not None else ()
            parts.append(Segment(f" {sparkline(values, history)}", _BUSY))
        strip = Strip(parts).adjust_cell_length(width)
        return strip.apply_style(_HERE) if at == self.cursor else strip

    def _widths(self, width: int, columns: Sequence[Column]) -> tuple[int, int]:
        """Cells of the name and of the history."""
        left = width - sum(column.width + 1 for column in columns)
        history = _HISTORY if PAGING in self.knows and left >= 2 * _NAME_LEAST + _HISTORY + 1 else 0
        return max(left - (history + 1 if history else 0), 1), history

    # -- moving ------------------------------------------------------------------

    def watch_cursor(self) -> None:
        self.scroll_to_region(Region(0, self.cursor, 0, 1), animate=False, force=True)
        self.refresh()
        self.post_message(self.Moved())

    def on_resize(self) -> None:
        self.virtual_size = Size(0, len(self.rows))

    def on_click(self, event: Click) -> None:
        """Put the cursor where the mouse is."""
        at = event.y + self.scroll_offset.y
        if at < len(self.rows):
            self.cursor = at

    def action_move(self, by: int) -> None:
        """So many rows down."""
        self.cursor = max(0, min(len(self.rows) - 1, self.cursor + by))

    def action_page(self, by: int) -> None:
        """So many screens down."""
        self.action_move(by * max(self.size.height - 1, 1))

    def action_end(self, to: int) -> None:
        """The first row, or the last."""
        self.cursor = 0 if to < 0 else max(len(self.rows) - 1, 0)


def _name(row: Row, width: int) -> str:
    mark = " " if row.open is None else "▾" if row.open else "▸"
    head = f"{'  ' * min(row.depth, 8, max(width - 12, 0) // 2)}{mark} "  # a deep one keeps both its ends too
    text = printable(row.name)
    if row.kind != "group":
        return set_cell_size(head + text, width)
    return head + fitted(text, width - len(head)) if width > len(head) else head[:width]
