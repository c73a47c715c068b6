"""A simulation's result for people: a table of tenants, one of cgroups."""

from __future__ import annotations

import polars as pl
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from epcgroup.sim.result import Result
from epcgroup.units import PAGE_SIZE, format_limit, format_size


def render(result: Result, tenants: int = 40) -> RenderableType:
    """The summary in two lines, the slowest ``tenants``, and every cgroup."""
    summary = result.summary
    ended = " (interrupted)" if summary["interrupted"] else ""
    head = Text(
        f"{summary['title']}: {summary['virtual_s']:.2f} s virtual{ended} · {summary['profile']}, "
        f"EPC {format_size(summary['epc_pages'] * PAGE_SIZE)}, policy {summary['policy']}\n"
        f"{summary['accesses']:,} accesses, {summary['loads']:,} loads, {summary['evictions']:,} evictions"
    )
    return Group(head, _tenants(result, tenants), _groups(result))


def _tenants(result: Result, most: int) -> Table:
    table = Table(title="tenants, slowest first", box=box.SIMPLE_HEAD, padding=(0, 0), pad_edge=False)
    for name in ("tenant", "cgroup", "status"):
        table.add_column(name, no_wrap=name == "status")
    for name in ("build s", "time s", "slowdown", "paging", "loads", "evictions"):
        table.add_column(name, justify="right", no_wrap=True)
    rows = result.tenants.sort("slowdown", descending=True, nulls_last=True)
    for row in rows.head(most).iter_rows(named=True):
        slowdown = row["slowdown"]
        table.add_row(
            row["tenant"],
            row["cgroup"],
            row["status"],
            f"{row['build_s']:.2f}",
            f"{row['time_s']:.2f}",
            "" if slowdown is None else f"{slowdown:.2f}×",
            f"{row['pressure']:.0%}",
            *(f"{row[name]:,}" for name in ("loads", "evictions")),
        )
    if len(rows) > most:
        table.add_row(f"… and {len(rows) - most} more")
    return table


def _groups(result: Result) -> Table:
    table = Table(title="cgroups", box=box.SIMPLE_HEAD, padding=(0, 0), pad_edge=False)
    table.add_column("cgroup")
    for name in ("limit", "highest usage", "last usage", "events", "evicted", "loaded"):
        table.add_column(name, justify="right")
    last = result.groups.group_by("cgroup", maintain_order=True).agg(
        pl.col("limit").last(),
        pl.col("peak").max(),
        pl.col("usage").last(),
        pl.col("events").last(),
        pl.col("evicted").last(),
        pl.col("loaded").last(),
    )
    for row in last.iter_rows(named=True):
        table.add_row(
            row["cgroup"],
            format_limit(row["limit"]),
            format_size(row["peak"]),
            format_size(row["usage"]),
            *(f"{row[name]:,}" for name in ("events", "evicted", "loaded")),
        )
    return table
