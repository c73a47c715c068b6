"""Every place where asked, handed over, set and used do not agree, each with what mends it."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from dataclasses import dataclass

from epcgroup.errors import Refused
from epcgroup.host.audit.annotate import nri_line
from epcgroup.host.audit.workloads import Workload
from epcgroup.host.cgroup import Hierarchy, View, unusable_part
from epcgroup.units import PAGE_SIZE, format_size, page_ceil

VERSION_SLOTS = 512  # a VA page holds the versions of that many pages (spec 2.7)
_ID = re.compile(r"[0-9a-zA-Z]{12,}")
LOOSE = 2  # a peak below limit/LOOSE is worth a note


@dataclass(frozen=True, slots=True)
class Gap:
    """One disagreement. ``level``: error (the limit does not hold, or nothing can run), warning, note."""

    workload: str
    source: str
    kind: str
    level: str
    text: str
    fix: str = ""


def floor(size: int) -> int:
    """Bytes of EPC that an enclave of ``size`` bytes needs at least: VA, SECS, two pages (spec 7.1)."""
    pages = page_ceil(size)
    return (-(-(pages + 1) // VERSION_SLOTS) + 1 + 2) * PAGE_SIZE


def compare(workloads: list[Workload], tree: Hierarchy | None, enclave_size: int | None = None) -> list[Gap]:
    """All gaps, in the order of the workloads; with a live ``tree`` also what is set and used there.

    ``enclave_size``: bytes of the largest enclave, where known; else the EPC asked for stands for it.
    """
    found: list[Gap] = []
    views = {view.path: view for view in tree.views()} if tree is not None else {}
    named = _by_id(views)
    matched: set[str] = set()
    for each in workloads:
        for kind, level, text, fix in _stated(each, enclave_size):
            found.append(Gap(each.name, each.source, kind, level, text, fix))
        if tree is None or (not each.asked and not each.limits):
            continue
        view = _locate(each, tree, views, named)
        if view is None:
            continue
        matched.add(view.path)
        for kind, level, text, fix in _live(each, view, tree):
            found.append(Gap(each.name, each.source, kind, level, text, fix))
    if tree is not None:
        found += _strangers(tree, views, matched)
    return found


_Row = tuple[str, str, str, str]


def _stated(each: Workload, enclave_size: int | None) -> Iterator[_Row]:
    """Gaps within the documents."""
    for note in each.notes:
        yield "document", "note", note, ""
    for statement in [*each.asked, *each.limits]:
        if statement.problem:
            yield "unit", "error", f"{statement.where}: {statement.problem}", _right(each)
            continue
        amount = statement.amount
        if amount is None:
            continue
        if 0 < amount < PAGE_SIZE:
            yield (
                "unit", "error",
                f"{statement.where}: {statement.text!r} is {amount} bytes, less than one page; "
                "was MiB meant? The unit is bytes",
                f"write {amount}Mi" if statement in each.asked else _right(each),
            )  # fmt: skip
        elif statement in each.limits and unusable_part(amount):
            yield (
                "page", "note",
                f"{statement.where}: the last {unusable_part(amount)} bytes of {amount} are never used, "
                "whole pages are charged", "",
            )  # fmt: skip
    if each.asked and not each.limits:
        of_epc = "EPC" if each.asks is None else f"{format_size(each.asks)} of EPC"
        yield (
            "not limited", "error",
            f"asks for {of_epc}, and nothing hands a limit over: the resource is book-keeping only, the "
            "container may use all EPC",
            _right(each),
        )  # fmt: skip
    if each.limits and not each.limit and not any(statement.problem for statement in each.limits):
        yield "not limited", "error", f"{each.limits[0].where} sets no limit ({each.limits[0].text!r})", ""
    if each.asks and each.limit and each.asks != each.limit:
        more = "more" if each.limit > each.asks else "less"
        yield (
            "differs", "error" if each.limit > each.asks else "warning",
            f"asks for {format_size(each.asks)}; the limit handed over is {more}: {format_size(each.limit)}",
            _right(each),
        )  # fmt: skip
    amounts = {statement.amount for statement in each.limits if not statement.problem}
    if len(amounts) > 1:
        wheres = ", ".join(statement.where for statement in each.limits)
        yield "differs", "warning", f"several limits that differ: {wheres}; the last one written holds", ""
    size = enclave_size if enclave_size is not None else each.asks
    if size and each.limit and each.limit < floor(size):
        yield (
            "below the floor", "error",
            f"a limit of {format_size(each.limit)} is below what an enclave of {format_size(size)} keeps "
            f"in EPC in any case ({format_size(floor(size))}: VA pages, SECS, two more): it ends with ENOMEM",
            f"at least {floor(size)} bytes",
        )  # fmt: skip


def _right(each: Workload) -> str:
    return nri_line(each.asks, each.container) if each.asks else ""


def _by_id(views: dict[str, View]) -> dict[str, View]:
    """Cgroups by every part of their name that may be a container's id (``crio-ID.scope``, ``ID`` …)."""
    found: dict[str, View] = {}
    for path, view in views.items():
        name = path.rpartition("/")[2]
        if "-conmon-" not in name:  # CRI-O's monitor of that container, beside it
            for part in _ID.findall(name):
                found.setdefault(part, view)
    return found


def _locate(each: Workload, tree: Hierarchy, views: dict[str, View], named: dict[str, View]) -> View | None:
    """The cgroup of a workload, by its path or by the container's id in a name."""
    if each.cgroup is not None and each.cgroup in views:
        return views[each.cgroup]
    for id_ in each.ids:
        if id_ in named:
            return named[id_]
    if each.cgroup is not None:
        try:
            return tree.view(each.cgroup)
        except Refused as error:
            if error.errno != errno.ENOENT:
                raise
    return None


def _live(each: Workload, view: View, tree: Hierarchy) -> Iterator[_Row]:
    """Gaps between the documents and the tree."""
    wanted = each.limit or each.asks
    set_it = f"epcgroup set --root {tree.root} {view.path} {wanted}"
    if not view.enabled:
        parent = view.path.rpartition("/")[0]
        yield (
            "not set", "error", f"{view.path} has no misc.max: its parent does not enable misc",
            f"echo +misc > {tree.root}{parent}/cgroup.subtree_control",
        )  # fmt: skip
        return
    if view.max is None:
        why = "the plug-in that should write it is gone, or was when the container started"
        if each.limits and not each.limits[0].where.startswith("annotation"):
            why = "the runtime did not write it"
        yield "not set", "error", f"{view.path}: misc.max is max: {why}", set_it
    elif wanted and view.max != wanted:
        yield (
            "differs", "error",
            f"{view.path}: misc.max is {format_size(view.max)}, {format_size(wanted)} was asked for", set_it,
        )  # fmt: skip
    if view.effective is not None and wanted and view.effective < wanted and view.effective_of != view.path:
        yield (
            "covered", "warning",
            f"{view.path}: the limit of {view.effective_of} ({format_size(view.effective)}) holds before", "",
        )  # fmt: skip
    yield from _used(view)


def _used(view: View) -> Iterator[_Row]:
    if view.max is None or view.peak is None:
        return
    if view.events and view.peak >= view.max - view.max % PAGE_SIZE:
        yield (
            "tight", "warning",
            f"{view.path}: the limit {format_size(view.max)} was hit {view.events} times: it pages, or fails",
            "",
        )  # fmt: skip
    elif view.peak * LOOSE < view.max:
        yield (
            "loose", "note",
            f"{view.path}: at most {format_size(view.peak)} of {format_size(view.max)} were ever used", "",
        )  # fmt: skip


def _strangers(tree: Hierarchy, views: dict[str, View], matched: set[str]) -> Iterator[Gap]:
    """Cgroups that use EPC without any limit on the way to the root, and are nobody's above."""
    inner = {path.rpartition("/")[0] for path in views}
    for path, view in views.items():
        if path in matched or path in inner or not view.current or view.effective is not None or path == "/":
            continue
        yield Gap(
            path, str(tree.root), "not limited", "warning",
            f"uses {format_size(view.current)} of EPC without a limit, and no document here asks for it",
            f"epcgroup set --root {tree.root} {path} SIZE",
        )  # fmt: skip
