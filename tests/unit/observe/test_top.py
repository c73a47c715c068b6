"""top on a terminal of 80×24, driven by keys: what stands on the screen, what was set."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import pytest
from textual.pilot import Pilot

from epcgroup.errors import Refused
from epcgroup.observe import EnclaveView, GroupView, ProcessView, Snapshot, ThreadView
from epcgroup.observe.model import Event
from epcgroup.observe.top.app import Top
from epcgroup.observe.top.dialogs import consequence
from epcgroup.observe.top.table import count, fitted, sparkline

MIB = 1 << 20
HOSTILE = "/[bold]<b>\x1b[2J\u202e\udcff" + "x" * 4096
GROUPS = (
    GroupView("/", None, 12 * MIB, 14 * MIB, secs=1),
    GroupView("/pods", 24 * MIB, 12 * MIB, 14 * MIB, secs=1, va=3),
    GroupView("/pods/batch", 8 * MIB, 8 * MIB, 8 * MIB, events_local=7, secs=1, va=3),
    GroupView("/pods/web", None, 4 * MIB, 6 * MIB),
)
ENCLAVE = EnclaveView(3, 812, "signer", "/pods/batch", 32 * MIB, 2000, 3000, 1, 3, initialised=True)
PROCESS = ProcessView(812, "signer", "/pods/batch", (ThreadView(812, 3, 44, 6.25), ThreadView(813)))


class Machine:
    """A source that goes on: batch loads 1,500 and evicts 1,400 pages a second and waits half of the time."""

    name = "/run/epcgroup"

    def __init__(self, groups: Sequence[GroupView] = GROUPS, *, gone: bool = False) -> None:
        self.groups = tuple(groups)
        self.gone = gone
        self.set: list[tuple[str, int | None]] = []
        self.refuse = ""
        self._moments = itertools.count(1)

    def snapshot(self) -> Snapshot:
        if self.gone:
            raise Refused("no server answers")
        at = next(self._moments)
        groups = tuple(
            replace(g, pages_in=1500 * at, pages_out=1400 * at, some_s=at / 2, full_s=at / 4)
            if g.path == "/pods/batch" else g for g in self.groups
        )  # fmt: skip
        return Snapshot(float(at), "standard", 16384, 4096, groups, (ENCLAVE,), (PROCESS,))

    def events(self, after: int = 0) -> Sequence[Event]:
        return [Event(1, 1.0, "limit", "/pods/batch", count=7, limit=8 * MIB)][after:]

    def set_max(self, path: str, limit: int | None) -> None:
        if self.refuse:
            raise Refused(self.refuse)
        self.set.append((path, limit))

    def close(self) -> None:
        pass


def screen(app: Top) -> list[str]:
    """The lines on the terminal."""
    return [
        "".join(segment.text for segment in line).rstrip()
        for line in app.screen._compositor.render_strips()
    ]  # fmt: skip


def play(
    machine: Machine,
    scene: Callable[[Top, Pilot[None]], Awaitable[None]],
    size: tuple[int, int] = (80, 24),
    interval: float = 0.15,
) -> None:
    """Run the application on a terminal of ``size`` and play a scene in it."""

    async def run() -> None:
        app = Top(machine, interval)
        async with app.run_test(size=size, notifications=True) as pilot:
            await until(pilot, lambda: machine.gone or app.past.snapshot is not None)
            await scene(app, pilot)

    asyncio.run(run())


async def until(pilot: Pilot[None], what: Callable[[], object]) -> None:
    """Wait until it is so."""
    for _ in range(200):
        if what():
            return
        await pilot.pause(0.05)
    pytest.fail(f"it never came to that; the screen:\n{chr(10).join(screen(pilot.app))}")  # type: ignore[arg-type]


def line(app: Top, name: str) -> str:
    return next((line for line in screen(app) if name in line), "")


def test_at_80_by_24_every_column_of_a_busy_cgroup_is_there() -> None:
    async def scene(app: Top, pilot: Pilot[None]) -> None:
        await until(pilot, lambda: "50%" in line(app, "batch"))
        shown = screen(app)
        assert len(shown) == 24
        assert max(map(len, shown)) <= 80
        assert "EPC 64M, 16M free" in shown[0]
        assert shown[1].split() == [
            "cgroup",
            "limit",
            "current",
            "peak",
            "unrecl",
            "in/s",
            "out/s",
            "stall",
            "hits",
        ]
        assert line(app, "batch").split()[1:] == [
            "batch",
            "8M",
            "8M",
            "8M",
            "16K",
            "1500",
            "1400",
            "50%",
            "7",
        ]
        await until(pilot, lambda: "quit" in screen(app)[-1])

    play(Machine(), scene)


def test_a_cgroup_opens_to_its_enclaves_processes_and_threads() -> None:
    async def scene(app: Top, pilot: Pilot[None]) -> None:
        await pilot.press("down", "down", "enter")
        await until(pilot, lambda: "enclave 3 signer" in line(app, "enclave 3"))
        assert "alive" in line(app, "enclave 3")
        assert "-11.7M" in line(app, "enclave 3"), "what is evicted of it"
        await pilot.press("down", "down", "right")
        await until(pilot, lambda: "in 3" in line(app, "thread 812"))
        await pilot.press("left", "left", "left", "left", "left")
        await until(pilot, lambda: not line(app, "batch"))
        assert app.table.row is not None
        assert app.table.row.key == "/pods"

    play(Machine(), scene)


def test_the_selected_cgroup_is_shown_with_its_history_and_its_last_event() -> None:
    async def scene(app: Top, pilot: Pilot[None]) -> None:
        await pilot.press("down", "down", "down")
        await until(pilot, lambda: "limited by /pods" in line(app, "/pods/web"))
        await pilot.press("up")
        await until(pilot, lambda: "waits 50% some, 25% full" in line(app, "pages/s"))
        assert "█" in line(app, "pages/s")
        assert "of 8M" in line(app, "used")
        assert "limit" in line(app, "×7")

    play(Machine(), scene)


def test_a_limit_is_set_only_after_a_yes_and_its_cost_is_said_before() -> None:
    machine = Machine()

    async def scene(app: Top, pilot: Pilot[None]) -> None:
        await pilot.press("down", "down", "l", "4", "M", "enter")
        await until(pilot, lambda: "4M must be evicted" in line(app, "8M → 4M"))
        await pilot.press("n")
        await until(pilot, lambda: len(app.screen_stack) == 1)
        assert machine.set == []
        await pilot.press("l", "4", "M", "enter")
        await until(pilot, lambda: line(app, "y / n"))
        await pilot.press("y")
        await until(pilot, lambda: machine.set)
        assert machine.set == [("/pods/batch", 4 * MIB)]

    play(machine, scene)


def test_a_wrong_limit_a_refusal_and_the_root_are_said_and_set_nothing() -> None:
    machine = Machine()
    machine.refuse = "misc.max: Permission [denied]"

    async def scene(app: Top, pilot: Pilot[None]) -> None:
        await pilot.press("l")
        await until(pilot, lambda: line(app, "the root cgroup has"))
        await pilot.press("down", "l", *"much", "enter")
        await until(pilot, lambda: line(app, "is not a size"))
        await pilot.press("escape", "l", *"max", "enter")
        await until(pilot, lambda: line(app, "y / n"))
        await pilot.press("y")
        await until(pilot, lambda: line(app, "Permission [denied]"))
        assert machine.set == []

    play(machine, scene)


def test_sort_and_filter() -> None:
    async def scene(app: Top, pilot: Pilot[None]) -> None:
        await pilot.press("s", "s", "s")
        await until(pilot, lambda: "by in" in screen(app)[1])
        assert "/pods/batch" in screen(app)[2]
        await pilot.press("slash", *"web", "enter")
        await until(pilot, lambda: not line(app, "/pods/batch"))
        assert "/pods/web" in screen(app)[2]
        await pilot.press("escape")
        await until(pilot, lambda: line(app, "/pods/batch"))

    play(Machine(), scene)


def test_hostile_names_neither_drive_the_terminal_nor_spill() -> None:
    groups = (*GROUPS, GroupView(HOSTILE, 8 * MIB, MIB, MIB))

    async def scene(app: Top, pilot: Pilot[None]) -> None:
        await pilot.press("down")
        await until(pilot, lambda: line(app, "[bold]<b"))
        await pilot.press("l", "4", "M", "enter")
        await until(pilot, lambda: line(app, "y / n"))
        await pilot.press("y")
        await pilot.press("e")
        await until(pilot, lambda: len(app.screen_stack) == 1)
        shown = "\n".join(screen(app))
        assert "\x1b" not in shown
        assert "\u202e" not in shown
        assert "\udcff" not in shown
        assert r"\x1b[2J" in shown or "…" in shown
        assert max(map(len, screen(app))) <= 80

    play(Machine(groups), scene)


def test_nothing_to_show_and_a_machine_that_is_gone_are_told() -> None:
    async def empty(app: Top, pilot: Pilot[None]) -> None:
        await until(pilot, lambda: "0 cgroups" in screen(app)[0])
        await pilot.press("down", "enter", "left", "l", "end", "s")
        assert len(screen(app)) == 24

    async def gone(app: Top, pilot: Pilot[None]) -> None:
        await until(pilot, lambda: line(app, "no server answers; trying again"))
        machine.gone = False
        await until(pilot, lambda: line(app, "batch"))
        assert not line(app, "trying again")

    play(Machine(()), empty)
    machine = Machine(gone=True)
    play(machine, gone)


def test_ten_thousand_cgroups_are_walked_through_on_a_wide_screen() -> None:
    pods = tuple(GroupView(f"/pods/p{n:05}", 8 * MIB, n, n) for n in range(10_000))

    async def scene(app: Top, pilot: Pilot[None]) -> None:
        await pilot.press("end")
        await until(pilot, lambda: line(app, "p09999"))
        assert "paging" in screen(app)[1]
        await pilot.press("slash", *"p04242", "enter")
        await until(pilot, lambda: line(app, "p04242") and not line(app, "p09999"))

    play(Machine((*GROUPS, *pods)), scene, size=(160, 50), interval=1.0)


def test_the_keys_are_told() -> None:
    async def scene(app: Top, pilot: Pilot[None]) -> None:
        await pilot.press("question_mark")
        await until(pilot, lambda: line(app, "set the limit of the cgroup"))
        await pilot.press("x")
        await until(pilot, lambda: len(app.screen_stack) == 1)

    play(Machine(), scene)


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (None, "it may use what the limits above it leave"),
        (16 * MIB, "nothing changes"),
        (8192, "16K cannot be evicted: an enclave may lose its memory"),
        (4 * MIB + 1, "only whole pages count: 4M; 4.0M must be evicted"),
    ],
)
def test_what_a_limit_will_do_is_said(limit: int | None, words: str) -> None:
    assert words in consequence(GROUPS[2], limit)


def test_cells_of_wide_letters_are_counted() -> None:
    from rich.cells import cell_len

    for text in ("/漢字漢字漢字漢字", "/abc", "/😀" * 20):
        for width in range(3, 20):
            assert cell_len(fitted(text, width)) == width
    assert len(count(123_456_789)) <= 6
    assert sparkline([], 4) == "    "
    assert sparkline([5], 3, 10) == "  ▄"
