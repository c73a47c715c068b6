"""A simulation's result as a picture: usage against limits, paging, slowdown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from epcgroup import pictures
from epcgroup.sim.result import Result

_MOST = 12  # lines or bars in one part


def plot(result: Result, path: Path) -> None:
    """Write a PNG, or what the name's ending says. Raises BadInput, MissingCapability (see `pictures`)."""
    figure = pictures.blank(10, 11)
    usage, paging, slowdown = figure.subplots(3, 1)
    figure.suptitle(f"{result.summary['title']} ({result.summary['policy']})")
    _usage(result, usage)
    _paging(result, paging)
    _slowdown(result, slowdown)
    pictures.write(figure, path)


def _series(result: Result) -> list[tuple[str, pl.DataFrame]]:
    peaks = result.groups.group_by("cgroup").agg(pl.col("peak").max())
    highest = peaks.sort("peak", "cgroup", descending=True)
    names = highest["cgroup"].head(_MOST).to_list()
    return [(name, result.groups.filter(pl.col("cgroup") == name)) for name in sorted(names)]


def _usage(result: Result, axes: Any) -> None:
    for number, (name, rows) in enumerate(_series(result)):
        time = rows["time_s"].to_numpy()
        colour = f"C{number}"
        axes.step(time, rows["usage"].to_numpy() / 2**20, where="post", label=name, color=colour)
        if rows["limit"].is_not_null().any():
            limit = rows["limit"].cast(pl.Float64).to_numpy() / 2**20
            axes.step(time, limit, where="post", linestyle="--", color=colour)
    axes.set(ylabel="EPC usage, MiB (dashed: limit)", xlabel="virtual time, s", ylim=(0, None))
    axes.legend(fontsize="small")


def _paging(result: Result, axes: Any) -> None:
    # So far, not per second: an enclave that is built writes out thousands in one moment, and that
    # peak would leave no room for what came of running it.
    for number, (name, rows) in enumerate(_series(result)):
        evicted = rows["evicted"].to_numpy()
        if evicted.any():
            axes.plot(rows["time_s"].to_numpy(), evicted, label=name, color=f"C{number}")  # as above
    axes.set(ylabel="pages written out so far", xlabel="virtual time, s", ylim=(0, None))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    if axes.lines:
        axes.legend(fontsize="small")


def _slowdown(result: Result, axes: Any) -> None:
    rows = result.tenants.drop_nulls("slowdown").sort("slowdown", descending=True).head(_MOST)
    axes.barh(rows["tenant"].to_list()[::-1], rows["slowdown"].to_list()[::-1])
    axes.axvline(1.0, color="grey", linewidth=0.8)
    axes.set(xlabel="slowdown (1: no paging)", xlim=(0, None))
