"""Go through the steps of a form and judge each."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from epcgroup.selftest.groups import TestGroups
from epcgroup.selftest.programs import Race, killed
from epcgroup.selftest.scenarios import Form, Step

Program = Callable[[float], Sequence[str]]
TIMEOUT = 300.0  # s for the programs of one step


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one step. ``passed`` None: it could not be done here, ``note`` says why."""

    number: int
    group: str
    programs: int
    expected: str
    shows: str
    passed: bool | None
    successes: int = 0
    failures: int = 0
    events: int | None = None
    seconds: float = 0.0
    note: str = ""


def play(
    groups: TestGroups, program: Program, logs: Path, seed: int, told: Callable[[Outcome], None]
) -> list[Outcome]:
    """All steps, then that nothing is left charged; ``told`` hears each outcome at once.

    ``program`` gives the words of one, from the seconds that it is to keep its enclave.
    ``seed`` decides who is killed and when. ``logs``: a directory for what the programs print.
    """
    chance = random.Random(seed)
    found: list[Outcome] = []
    form = groups.form
    for number, step in enumerate(form.steps, 1):
        found.append(_step(groups, number, step, program(step.keep), logs, chance))
        told(found[-1])
    found.append(_zero(groups, form))
    told(found[-1])
    return found


def _step(
    groups: TestGroups, number: int, step: Step, argv: Sequence[str], logs: Path, chance: random.Random
) -> Outcome:
    path = f"/{groups.form.root}/{step.group}"
    common = (number, path, step.programs, step.verdict.words, step.shows)
    if step.memory and not groups.memory:
        return Outcome(*common, None, note="no memory controller in this tree")
    limited = groups.tree.effective(path)[1] or path  # whose events tell of refusals
    before = groups.tree.view(limited).events or 0
    began = time.monotonic()
    directory = logs / f"step-{number}"
    directory.mkdir()
    race = Race(groups.procs(step.group), argv, step.programs, directory)
    if step.memory:
        with groups.memory_limit(step.group), race.prepared(step.stagger):
            statuses, note = _ended(race, step, chance)
    else:
        with race.prepared(step.stagger):
            statuses, note = _ended(race, step, chance)
    good = sum(status == 0 for status in statuses)
    bad = len(statuses) - good
    passed = step.verdict.holds(good, bad) and None not in statuses
    if not passed and not note:
        note = "; ".join(sorted({race.last_words(index) for index in range(step.programs)} - {""}))[:300]
    events = (groups.tree.view(limited).events or 0) - before
    return Outcome(*common, passed, good, bad, events, time.monotonic() - began, note)


def _ended(race: Race, step: Step, chance: random.Random) -> tuple[list[int | None], str]:
    """Exit statuses of those that were not killed, and a word about who was."""
    victim, note = None, ""
    if step.kill is not None:
        wait = chance.uniform(*step.kill)
        victim = chance.choice(race.running)
        time.sleep(wait)
        if killed(victim):
            note = f"one killed after {wait:.1f} s"
        else:
            note = f"the one to be killed after {wait:.1f} s had ended before"
    statuses = race.statuses(TIMEOUT, but=victim)
    if None in statuses:
        note = f"still running after {TIMEOUT:.0f} s"
    return statuses, note


def _zero(groups: TestGroups, form: Form) -> Outcome:
    left = groups.left()
    return Outcome(
        len(form.steps) + 1, f"/{form.root}", 0, "nothing is charged", "every page comes back to its cgroup",
        left == 0, note=f"{left} bytes are still charged" if left else "",
    )  # fmt: skip
