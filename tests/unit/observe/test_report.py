"""Tables and JSON of a snapshot."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest

from epcgroup.observe import EnclaveView, GroupView, Snapshot, report

MIB = 1 << 20
ROOT = GroupView("/", None, 10 * MIB, 12 * MIB)
PODS = GroupView("/pods", 32 * MIB, 10 * MIB, 12 * MIB)
FULL = GroupView("/pods/a", 8 * MIB, 8 * MIB, 8 * MIB, 7, 3, 12345, 23456, 12000, 1.5)
LIVING = EnclaveView(2, 100, "server", "/pods/a", 64 * MIB, 2048, 1024, 1, 6)
ENDED = EnclaveView(1, 99, "old", "/pods", 4 * MIB, 10, 0, 1, 1, ended=True)
SNAPSHOT = Snapshot(12.5, "standard", 16384, 13824, (ROOT, PODS, FULL), (ENDED, LIVING))


def row(text: str, first: str) -> list[str]:
    """The cells of the row that begins with ``first``."""
    return next(words for line in text.splitlines() if (words := line.split()) and words[0] == first)


def test_group_rows_hold_every_figure() -> None:
    text = report.to_text(SNAPSHOT)
    assert row(text, "a") == ["a", "8M", "8M", "8M", "7", "12,345", "23,456", "12,000", "1.50", "s"]
    assert row(text, "/")[:4] == ["/", "max", "10M", "12M"]


def test_virtual_epc_has_columns_only_where_there_was_any() -> None:
    assert "vEPC" not in report.to_text(SNAPSHOT)
    guest = replace(SNAPSHOT, groups=(ROOT, replace(FULL, vepc=1234, vepc_peak=2048)))
    text = report.to_text(guest)
    assert "vEPC peak" in text
    assert row(text, "a")[-2:] == ["1,234", "2,048"]
    assert row(text, "/")[-2:] == ["0", "0"]


def test_groups_are_set_in_by_depth() -> None:
    lines = report.to_text(SNAPSHOT).splitlines()
    pods, below = (next(line for line in lines if line.split()[:1] == [name]) for name in ("pods", "a"))
    assert below.index("a") == pods.index("p") + 2


def test_enclave_rows_hold_every_figure_and_the_living_come_first() -> None:
    text = report.to_text(SNAPSHOT)
    assert row(text, "2") == ["2", "100", "server", "/pods/a", "64M", "2,048", "1,024", "1", "6", "alive"]
    assert row(text, "1")[-1] == "ended"
    assert text.index("server") < text.index("old")


def test_disabled_enclave_is_called_so() -> None:
    snapshot = replace(SNAPSHOT, enclaves=(replace(LIVING, disabled=True),))
    assert row(report.to_text(snapshot), "2")[-1] == "disabled"


def test_no_enclave_table_without_enclaves() -> None:
    assert "SECS" not in report.to_text(replace(SNAPSHOT, enclaves=()))


def test_names_are_no_markup() -> None:
    """A program may be called [red] without painting the report."""
    snapshot = replace(
        SNAPSHOT, groups=(replace(ROOT, path="/[b]"),), enclaves=(replace(LIVING, command="[red]x"),)
    )
    text = report.to_text(snapshot)
    assert "[b]" in text
    assert "[red]x" in text


def test_usage_at_the_limit_is_coloured() -> None:
    from rich.console import Console

    console = Console(file=io.StringIO(), force_terminal=True, width=120, color_system="standard")
    console.print(report.group_table(SNAPSHOT))
    assert isinstance(console.file, io.StringIO)
    assert "\x1b[33m8M\x1b[0m" in console.file.getvalue()


def test_json_has_the_fields_of_the_model() -> None:
    facts = json.loads(report.to_json(SNAPSHOT))
    assert (facts["time_s"], facts["policy"], facts["epc_pages"], facts["free_pages"]) == (
        *(12.5, "standard"),
        *(16384, 13824),
    )
    assert facts["groups"][2]["stall_s"] == 1.5
    assert facts["groups"][0]["limit"] is None
    assert facts["enclaves"][1]["va"] == 6


def test_one_line_leaves_the_root_out() -> None:
    assert report.plain_line(SNAPSHOT).strip() == (
        "12.5 s  pods 10M/32M in 0 out 0  |  pods/a 8M/8M in 12345 out 23456"
    )


@pytest.mark.parametrize(("path", "shown"), [("/", "/"), ("/a", "a"), ("/a/b/c", "    c")])
def test_indentation(path: str, shown: str) -> None:
    assert report.indented(path) == shown
