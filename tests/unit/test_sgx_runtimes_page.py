"""The page on real runtimes names tests that exist: each demand has a program that is built and run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "sgx-runtimes.md").read_text()
LISTED = "\n".join(path.read_text() for path in (ROOT / "tests" / "e2e").glob("test_*.py"))
ROWS = [
    [cell.strip() for cell in line.strip("|\n").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("| ") and not line.startswith(("| Demand", "| | Trap"))
]
NAMES = sorted({name for row in ROWS for name in re.findall(r"`([^`]+)`", row[-1])})


def test_every_row_is_proven_or_says_why_not() -> None:
    unproven = [row[0] for row in ROWS if "`" not in row[-1] and not row[-1].startswith("said in")]
    assert unproven == ["AESM, quoting"]


def test_all_fifteen_traps_are_there() -> None:
    assert [row[0] for row in ROWS if re.fullmatch(r"T\d+", row[0])] == [f"T{n}" for n in range(1, 16)]


@pytest.mark.parametrize("name", NAMES)
def test_what_the_page_names_exists(name: str) -> None:
    if "::" in name:
        file, _, function = name.partition("::")
        assert f"def {function}(" in (ROOT / file).read_text()
        return
    program, _, case = name.partition("-")
    source = (ROOT / "tests" / "programs" / "cases" / f"{program}.c").read_text()
    assert f'{{ "{case}", ' in source, "no such case in the program"
    assert f'"{case}"' in LISTED, "no test runs the case"
