"""The scripts' scenarios: limits, verdicts, and cgroups that never stay behind."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from epcgroup.cli import selftest as command
from epcgroup.errors import Refused
from epcgroup.host import Hierarchy
from epcgroup.selftest import FORMS
from epcgroup.selftest.groups import TestGroups
from epcgroup.selftest.programs import Race, killed
from epcgroup.selftest.scenarios import ALL_FAIL, ALL_SUCCEED, ONE_FAILS, ONE_SUCCEEDS

CAPACITY = 128 << 20


@pytest.mark.parametrize("name", ["v5", "v17"])
def test_limits_are_those_of_the_scripts(name: str) -> None:
    small, child, large, all_ = (group.bytes(CAPACITY) for group in FORMS[name].groups)
    assert (small, child, large, all_) == (CAPACITY // 512, None, 4 * (CAPACITY // 512), CAPACITY)


def test_programs_are_as_many_as_in_the_scripts() -> None:
    assert [step.programs for step in FORMS["v5"].steps] == [1, 4, 5, 10]
    assert [step.programs for step in FORMS["v17"].steps] == [1, 4, 5, 8, 8, 4]


@pytest.mark.parametrize(
    ("verdict", "holds", "fails"),
    [
        (ALL_SUCCEED, [(3, 0)], [(2, 1), (0, 3), (0, 0)]),
        (ALL_FAIL, [(0, 3)], [(2, 1), (3, 0), (0, 0)]),
        (ONE_SUCCEEDS, [(3, 0), (1, 3)], [(0, 4), (0, 0)]),
        (ONE_FAILS, [(0, 3), (4, 1)], [(5, 0), (0, 0)]),
    ],
)
def test_verdicts(verdict: object, holds: list[tuple[int, int]], fails: list[tuple[int, int]]) -> None:
    assert all(verdict.holds(*counts) for counts in holds)  # type: ignore[attr-defined]
    assert not any(verdict.holds(*counts) for counts in fails)  # type: ignore[attr-defined]


def test_a_tree_that_has_the_tests_cgroup_already_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "selftest" / "mine").mkdir(parents=True)
    with pytest.raises(Refused, match="remove it"), TestGroups(Hierarchy(tmp_path), FORMS["v5"], CAPACITY):
        pytest.fail("entered")
    assert (tmp_path / "selftest" / "mine").is_dir()


def test_a_tree_that_refuses_is_left_as_it_was(tmp_path: Path) -> None:
    """Here: plain directories, whose cgroup.subtree_control is missing below the root."""
    (tmp_path / "cgroup.subtree_control").write_text("misc memory\n")
    with (
        pytest.raises(Refused, match=r"subtree_control"),
        TestGroups(Hierarchy(tmp_path), FORMS["v5"], CAPACITY),
    ):
        pytest.fail("entered")
    assert [each.name for each in tmp_path.iterdir()] == ["cgroup.subtree_control"]


def test_programs_start_together_and_do_not_outlive_the_step(tmp_path: Path) -> None:
    race = Race(tmp_path / "procs", ["sh", "-c", "exec sleep 60"], 3, tmp_path)
    with race.prepared(stagger=0):
        assert killed(race.running[1])
        assert not killed(race.running[1])
        assert race.statuses(0.2, but=race.running[1]) == [None, None]
    assert all(program.poll() is not None for program in race.running)


def test_what_a_program_said_last_is_kept(tmp_path: Path) -> None:
    race = Race(tmp_path / "procs", ["sh", "-c", "echo one; echo two; exit 3"], 1, tmp_path)
    with race.prepared(stagger=0.01):
        assert race.statuses(30) == [3]
    assert race.last_words(0) == "two"
    assert (tmp_path / "procs").read_text() == "0\n"


def test_a_tree_without_epc_is_skipped_with_the_scripts_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cgroup.controllers").write_text("misc\n")
    args = argparse.Namespace(root=tmp_path, resource="sgx_epc", inside=False, form="v5", json=False)
    assert command.run(args) == command.EXIT_SKIPPED
    assert "no EPC" in capsys.readouterr().err
