"""Usage and paging over time as a picture: one panel per cgroup.

Above, what the cgroup uses, with its limit drawn in; below, the pages loaded
per second (upwards) and evicted per second (downwards). All panels share their
scales, so that a glance tells who pages and who does not. Colours are those of
the Okabe-Ito set, which colour-blind people can tell apart (two of them darker,
for text); every line is labelled where it is, so there is no legend.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from epcgroup import pictures
from epcgroup.errors import BadInput
from epcgroup.observe.history import History, Series
from epcgroup.observe.printable import printable
from epcgroup.units import format_size

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _VERMILION, _GREEN, _PURPLE, _GREY = "#0072B2", "#D55E00", "#00805C", "#A6528A", "#666666"
_MIB = 1 << 20
_MOST_LIMITS = 4  # labelled in one panel
_COLUMNS = 4  # panels side by side before a new row begins
_TITLE = 40  # characters
_PANEL_INCHES, _ROW_INCHES = 4.2, 4.6


def save(
    history: History,
    output: Path,
    *,
    paths: Sequence[str] | None = None,
    title: str = "",
    notes: Sequence[str] = (),
    marks: Sequence[tuple[float, str]] = (),
) -> None:
    """Draw ``paths`` (default: all groups but the root) of ``history`` into ``output``.

    ``notes`` has one line per panel, written under its name; ``marks`` are moments
    (seconds, text) drawn as vertical lines. The file's suffix decides its form.

    Raises BadInput when there is nothing to draw or ``output`` cannot be written,
    MissingCapability without matplotlib.
    """
    shown = list(paths) if paths is not None else [path for path in history.paths() if path != "/"]
    if len(history) < 2:
        shown = []
    draw([history.series(path) for path in shown], output, title=title, notes=notes, marks=marks)


def draw(
    shown: Sequence[Series],
    output: Path,
    *,
    title: str = "",
    notes: Sequence[str] = (),
    marks: Sequence[tuple[float, str]] = (),
) -> None:
    """As `save`, of series that are there already: a panel of each, all of them with something in it."""
    if not shown:
        raise BadInput("nothing to plot: it takes two snapshots and a cgroup")
    columns = min(_COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    figure = pictures.blank(1 + _PANEL_INCHES * columns, 0.6 + _ROW_INCHES * rows)
    if title:
        figure.suptitle(printable(title), x=0.01, ha="left", fontsize=13, fontweight="bold", parse_math=False)
    _draw(figure, shown, columns, notes, marks)
    pictures.write(figure, output)


def _draw(
    figure: Figure,
    all_series: Sequence[Series],
    columns: int,
    notes: Sequence[str],
    marks: Sequence[tuple[float, str]],
) -> None:
    rows = -(-len(all_series) // columns)
    grid = figure.add_gridspec(2 * rows, columns, height_ratios=[2.2, 1] * rows)
    first_use: Axes | None = None
    first_rate: Axes | None = None
    for number, series in enumerate(all_series):
        row, column = 2 * (number // columns), number % columns
        use = figure.add_subplot(grid[row, column], sharex=first_use, sharey=first_use)
        rate = figure.add_subplot(grid[row + 1, column], sharex=use, sharey=first_rate)
        first_use, first_rate = first_use or use, first_rate or rate
        _usage(use, series, notes[number] if number < len(notes) else "")
        _paging(rate, series)
        for axes in (use, rate):
            _marks(axes, marks if axes is use else [(at, "") for at, _ in marks])
            _plain(axes, left=column == 0, bottom=axes is rate)
        if column == 0:
            use.set_ylabel("EPC in use (MiB)")
            rate.set_ylabel("pages/s")
    assert first_use is not None
    assert first_rate is not None
    _scale(first_use, first_rate, all_series)


def _scale(use: Axes, rate: Axes, all_series: Sequence[Series]) -> None:
    """Common scales, with room above for labels and a floor so that a quiet line looks quiet."""
    amounts = [value for s in all_series for value in [*s.current, *(n for n in s.limit if n is not None)]]
    use.set_ylim(0, 1.18 * max(amounts, default=1) / _MIB or 1)
    use.set_xlim(
        min(s.time_s[0] for s in all_series if s.time_s), max(s.time_s[-1] for s in all_series if s.time_s)
    )
    busiest = max((value for s in all_series for value in s.in_per_s + s.out_per_s), default=0.0)
    half = 1.25 * max(busiest, 100.0)
    rate.set_ylim(-half, half)


def _usage(axes: Axes, series: Series, note: str) -> None:
    used = [value / _MIB for value in series.current]
    axes.fill_between(series.time_s, used, color=_BLUE, alpha=0.18, linewidth=0)
    axes.plot(series.time_s, used, color=_BLUE, linewidth=1.8)
    limit = [float("nan") if value is None else value / _MIB for value in series.limit]
    axes.plot(
        series.time_s, limit, color=_VERMILION, linewidth=1.6, linestyle=(0, (5, 2)), drawstyle="steps-post"
    )
    for end, value in _limits(series)[-_MOST_LIMITS:]:
        _label(axes, end, value / _MIB, f"limit {format_size(value)}", _VERMILION, above=True)
    if used:
        top = max(series.current)
        when = max(i for i, value in enumerate(series.current) if value == top)
        _label(axes, series.time_s[when], top / _MIB, f"up to {format_size(top)}", _BLUE, above=False)
    name = printable(series.path.lstrip("/") or "/")
    name = name if len(name) <= _TITLE else f"{name[: _TITLE // 2]}…{name[-_TITLE // 2 + 1 :]}"
    axes.set_title(name, loc="left", fontsize=12, fontweight="bold", pad=22 if note else 6, parse_math=False)
    if note:
        axes.text(0, 1.03, note, transform=axes.transAxes, fontsize=9, color=_GREY, va="bottom")


def _limits(series: Series) -> list[tuple[float, int]]:
    """Each limit that was in force, and the moment it ended."""
    found: list[tuple[float, int]] = []
    following = [*series.limit[1:], None]
    for at, value, after in zip(series.time_s, series.limit, following, strict=True):
        if value is not None and (value != after or at == series.time_s[-1]):
            found.append((at, value))
    return found


def _paging(axes: Axes, series: Series) -> None:
    down = [-value for value in series.out_per_s]
    axes.fill_between(series.time_s, series.in_per_s, color=_GREEN, alpha=0.75, linewidth=0)
    axes.fill_between(series.time_s, down, color=_PURPLE, alpha=0.75, linewidth=0)
    axes.axhline(0, color=_GREY, linewidth=0.8)
    place: dict[str, Any] = {"transform": axes.transAxes, "fontsize": 9}
    axes.text(0.02, 0.95, "loaded ↑", color=_GREEN, va="top", **place)
    axes.text(0.02, 0.05, "evicted ↓", color=_PURPLE, va="bottom", **place)
    if not any(series.in_per_s) and not any(series.out_per_s):
        axes.text(0.5, 0.56, "no paging", color=_GREY, ha="center", va="bottom", **place)
    axes.set_xlabel("seconds")
    axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):,.0f}")


def _label(axes: Axes, x: float, y: float, text: str, colour: str, *, above: bool) -> None:
    """Text beside the right end of a line."""
    offset = (-4, 4) if above else (-4, -5)
    axes.annotate(
        text,
        (x, y),
        xytext=offset,
        textcoords="offset points",
        ha="right",
        va="bottom" if above else "top",
        color=colour,
        fontsize=9,
        fontweight="bold",
    )


def _marks(axes: Axes, marks: Sequence[tuple[float, str]]) -> None:
    for at, text in marks:
        axes.axvline(at, color=_GREY, linewidth=0.9, linestyle=":")
        if text:
            place = axes.get_xaxis_transform()
            axes.text(at, 0.985, f" {text}", transform=place, fontsize=8, color=_GREY, va="top")


def _plain(axes: Axes, *, left: bool, bottom: bool) -> None:
    """Take away what carries no information."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelleft=left, labelbottom=bottom, labelsize=9)
