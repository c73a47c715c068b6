"""A program that means harm gets errors and faults; nobody else gets anything from it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.e2e.machine import ENCLU, NEEDS, expect_case, programs, run

pytestmark = [pytest.mark.needs(*NEEDS), pytest.mark.timeout(240)]

#: A neighbour whose heap is checked all the time, and the program; the neighbour must be there at the end.
BESIDE = """
"$0" hold 100 > "$3" & neighbour=$!
"$1" $2; status=$?
kill $neighbour; wait $neighbour; echo "neighbour: $?"
exit $status
"""


@pytest.mark.parametrize("enclu", ENCLU)
def test_wild_calls_signals_and_changes_under_us_harm_nobody(enclu: str, tmp_path: Path) -> None:
    """Random ioctls and entries from several threads while others rewrite and unmap what they point to.

    The program's own other enclave is hit by a thousand signals a second and must keep its contents too.
    """
    said = tmp_path / "neighbour"
    beside = ("bash", "-c", BESIDE, programs() / "load", programs() / "hostile", "3 1", said)
    ended = run(*beside, epc=300, options=("--enclu", enclu))
    # Its writes reach nothing that it needs, and faults of its intruders are expected: 3 is wrong contents,
    # 9 a fault where none can come from, and any other end is ours as well.
    assert ended.status == 0, f"{ended.output}\n{ended.errors[-3000:]}"
    assert "neighbour: 143\n" in ended.output, f"{ended.output}\n{ended.errors[-3000:]}"
    assert said.read_text() == "ready\n"
    assert "internal error" not in ended.errors
    assert ended.report is not None
    assert {group["current"] for group in ended.report["groups"]} == {0}


@pytest.mark.parametrize("case", ["brought_in_late", "never_brought_in_at_create", "never_brought_in_at_add"])
def test_an_ioctl_that_waits_for_the_programs_own_userfaultfd_holds_up_nobody(case: str) -> None:
    """It waits as a system call would; brought in late, the page is used; never, others go on."""
    expect_case("slow_source", case, 128)
