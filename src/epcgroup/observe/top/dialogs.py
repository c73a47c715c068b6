"""What asks a question: a new limit, with what it would cost, and a confirmation; the keys."""

from __future__ import annotations

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from epcgroup.errors import BadInput
from epcgroup.observe.model import GroupView
from epcgroup.observe.printable import printable
from epcgroup.observe.top.table import fitted
from epcgroup.units import PAGE_SIZE, format_limit, format_size, parse_limit

NOTHING = -1  # the answer of who changed their mind

KEYS = """\
↑ ↓ PgUp PgDn Home End   move
→ Enter   open: child cgroups, then enclaves and processes
←         close, or go to the cgroup above
s         sort: tree, current, unreclaimable, in, out, stall, hits
/         filter by a part of the path; Esc takes it away
l         set the limit of the cgroup (asks before it does)
e         events, newest first
p  q      pause, quit

in/s, out/s   pages loaded and evicted a second
stall         share of the time that some process waited for pages
hits          charges refused at its own limit; of a process: faults
unrecl        SECS, version arrays, virtual EPC: no eviction frees them
peak          of an enclave: what of it is evicted
"""


class Keys(ModalScreen[None]):
    """The keys, until one is pressed."""

    def compose(self) -> ComposeResult:
        with Vertical(classes="box"):
            yield Static(Text(KEYS))

    def on_key(self) -> None:
        self.dismiss()


class SetLimit(ModalScreen[int | None]):
    """Asks for a limit and for a yes; the answer in bytes, None for none, NOTHING for no change."""

    BINDINGS = [Binding("escape", "leave", "no change")]  # noqa: RUF012 - as textual has it

    def __init__(self, group: GroupView) -> None:
        super().__init__()
        self._group = group
        self._limit: int | None = None
        self._asked = False

    def compose(self) -> ComposeResult:
        group = self._group
        with Vertical(classes="box"):
            yield Static(Text(f"Limit of {fitted(printable(group.path), 60).rstrip()}", style="bold"))
            yield Static(
                Text(
                    f"now {format_limit(group.limit)}; {format_size(group.current)} in use, "
                    f"{format_size(group.peak)} at most, {format_size(group.unreclaimable)} unreclaimable"
                )
            )
            yield Input(placeholder="64M, 1G, '16384 pages', max", id="limit")
            yield Static("Enter: go on · Esc: no change", id="say")

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """A limit was typed: say what it would do, and ask."""
        say = self.query_one("#say", Static)
        try:
            self._limit = parse_limit(event.value)
        except BadInput as error:
            say.update(Text(str(error), style="red"))
            return
        self._asked = True
        event.input.disabled = True
        self.set_focus(None)
        say.update(Text(consequence(self._group, self._limit) + "\nDo it? y / n", style="yellow"))

    def on_key(self, event: object) -> None:
        if not self._asked:
            return
        key = getattr(event, "key", "")
        if key == "y":
            self.dismiss(self._limit)
        elif key == "n":
            self.dismiss(NOTHING)

    def action_leave(self) -> None:
        """No change."""
        self.dismiss(NOTHING)


def consequence(group: GroupView, limit: int | None) -> str:
    """What a new limit will do at once."""
    change = f"{format_limit(group.limit)} → {format_limit(limit)}"
    if limit is None:
        return f"{change}: it may use what the limits above it leave."
    notes = []
    if limit % PAGE_SIZE:
        notes.append(f"only whole pages count: {format_size(limit - limit % PAGE_SIZE)}")
    if limit < group.unreclaimable:
        notes.append(
            f"{format_size(group.unreclaimable)} cannot be evicted: an enclave may lose its memory for good"
        )
    elif limit < group.current:
        notes.append(f"{format_size(group.current - limit)} must be evicted")
    elif limit < group.peak:
        notes.append(f"it has used {format_size(group.peak)}: it may page")
    return f"{change}: " + ("; ".join(notes) or "nothing changes for what is in use") + "."
