"""A thread shares a processor with its page service while it pages, and its program does not notice."""

from __future__ import annotations

import pytest
from tests.e2e.machine import NEEDS, all_cases, run

pytestmark = pytest.mark.needs(*NEEDS)

CASES = (
    "free_when_it_pages_no_more",
    "asked",
    "born_of_a_bound_one",
    "new_image",
    "its_own_choice",
)


@pytest.mark.needs("two processors")
@pytest.mark.parametrize("case", CASES)
def test_a_program_has_the_processors_that_it_gave_itself(case: str) -> None:
    """Afterwards; when it asks; what it bears; its next image; and one that binds itself stays bound."""
    ended = all_cases("affinity", 300)
    assert ended.cases.get(case) == "ok", f"status {ended.status}\n{ended.output}{ended.errors[-3000:]}"


@pytest.mark.needs("two processors")
def test_so_it_has_where_machine_code_loads_the_pages() -> None:
    ended = run("affinity", epc=300, options=("--page-service", "compiled"))
    assert ended.cases == dict.fromkeys(CASES, "ok"), f"{ended.output}{ended.errors[-3000:]}"


@pytest.mark.usefixtures("one_processor")
@pytest.mark.parametrize("service", ["python", "compiled"])
def test_pages_are_served_where_there_is_one_processor(service: str) -> None:
    ended = run("load", "pairs", 512, 4000, 7, epc=300, options=("--page-service", service))
    assert ended.status == 0, ended.errors[-3000:]
    assert ended.report is not None
    assert ended.report["groups"][-1]["pages_in"] > 1000
