"""Comparing a replay with a recording, step by step."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from epcgroup.conform.epc_replay import EpcReplay
from epcgroup.conform.misc_replay import MiscReplay
from epcgroup.conform.records import EpcTrace, MiscRecord, read_records
from epcgroup.epc import Policy, by_name
from epcgroup.errors import BadInput
from epcgroup.misc import VARIANTS


@dataclass(frozen=True, slots=True)
class Difference:
    """The first disagreement of a trace."""

    trace: str
    step: int
    operation: str
    expected: str
    got: str

    def __str__(self) -> str:
        return (
            f"  {self.trace}, step {self.step}: {self.operation}\n"
            f"    expected {self.expected}\n"
            f"    got      {self.got}"
        )


@dataclass(slots=True)
class Verdict:
    """What the replay of one file found; ``differ`` counts steps."""

    path: Path
    traces: int = 0
    steps: int = 0
    differ: int = 0
    first: Difference | None = None

    def __str__(self) -> str:
        line = f"{self.path}: {self.traces} traces, {self.steps} steps, {self.differ} differ"
        return line if self.first is None else f"{line}\n{self.first}"

    def count(self, differences: list[Difference], steps: int) -> None:
        """Add one trace (or one variant's run of a misc record)."""
        self.steps += steps
        self.differ += len(differences)
        if self.first is None and differences:
            self.first = differences[0]


class Replay(Protocol):
    """An engine under judgement."""

    def run(self, op: str) -> dict[str, Any]:
        """Perform one operation; what was seen."""

    def check(self) -> dict[str, Any]:
        """The machine as a checkpoint describes it."""


Engine = Callable[[Policy, int, bool], Replay]


def engine(name: str) -> Engine:
    """``reference``, or ``compiled`` (needs the extra ``sim``)."""
    if name == "reference":
        return EpcReplay
    if name == "compiled":
        from epcgroup import sim

        sim.require()
        from epcgroup.conform.compiled_replay import (
            CompiledReplay,
        )  # numpy and llvmlite are loaded only when asked for

        return CompiledReplay
    raise BadInput(f"no engine {name!r}; there are reference and compiled")


def conform(path: Path, engine_name: str = "reference") -> Verdict:
    """Replay every record of a file on an engine; misc records know only the reference.

    Raises BadInput, naming file and line, for a file that is not a recording.
    """
    verdict = Verdict(path)
    make = engine(engine_name)
    for record in read_records(path):
        verdict.traces += 1
        try:
            if isinstance(record, MiscRecord):
                for names, expected in record.out.items():
                    for name in names.split("+"):
                        verdict.count(replay_misc(record, name, expected), len(record.ops))
            else:
                verdict.count(replay_epc(record, make), len(record.steps))
        except BadInput as error:
            raise BadInput(f"{path}:{record.line}: {error}") from None
    return verdict


def replay_misc(record: MiscRecord, variant: str, expected: list[Any]) -> list[Difference]:
    """Differences of one misc record under one variant."""
    if variant not in VARIANTS:
        raise BadInput(f"no misc variant {variant!r}; there are {', '.join(VARIANTS)}")
    replay = MiscReplay(VARIANTS[variant])
    title = f"record {record.id} {record.kind} as {variant}"
    found = []
    for number, (op, want) in enumerate(zip(record.ops, expected, strict=True), 1):
        got = replay.run(op)
        if got != want:
            found.append(Difference(title, number, json.dumps(op), json.dumps(want), json.dumps(got)))
    return found


def replay_epc(trace: EpcTrace, make: Engine = EpcReplay) -> list[Difference]:
    """Differences of one EPC trace under the policy that it names."""
    replay = make(by_name(trace.policy), trace.epc_pages, trace.sgx2)
    title = f"trace {trace.id} {trace.name} ({trace.policy}, {trace.epc_pages} pages)"
    found = []
    for number, step in enumerate(trace.steps, 1):
        if "op" in step:
            operation, want = step["op"], step
            got = replay.run(operation)
        else:
            operation, want = "check", step["check"]
            got = replay.check()
        if got != want:
            expected, seen = _where(want, got)
            found.append(Difference(title, number, operation, expected, seen))
    return found


def _where(want: Any, got: Any, at: str = "") -> tuple[str, str]:
    # The smallest part that differs, with the way to it.
    if isinstance(want, dict) and isinstance(got, dict):
        for key in [*want, *(key for key in got if key not in want)]:
            if key not in want or key not in got or want[key] != got[key]:
                return _where(want.get(key), got.get(key), f"{at}.{key}" if at else str(key))
    if isinstance(want, list) and isinstance(got, list) and len(want) == len(got):
        for number, (one, other) in enumerate(zip(want, got, strict=True)):
            if one != other:
                name = one.get("path", one.get("id", number)) if isinstance(one, dict) else number
                return _where(one, other, f"{at}[{name}]")
    return f"{at} = {json.dumps(want)}", f"{at} = {json.dumps(got)}"
