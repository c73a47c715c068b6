"""Reading recorded sequences: one JSON object a line.

Two kinds of record share this reader. A misc record has ``ops`` and, for each
variant, the results; an EPC trace has ``steps``, each an operation with what was
seen, or a checkpoint. Whatever is wrong with a file is told with file and line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from epcgroup.errors import BadInput


@dataclass(frozen=True, slots=True)
class MiscRecord:
    """Operations on the misc controller, and each variant's results."""

    line: int
    id: object
    kind: str
    ops: list[list[Any]]
    out: dict[str, list[Any]]


@dataclass(frozen=True, slots=True)
class EpcTrace:
    """Operations on a machine, and what one implementation did."""

    line: int
    id: object
    name: str
    policy: str
    epc_pages: int
    sgx2: bool
    steps: list[dict[str, Any]]


def read_records(path: Path) -> Iterator[MiscRecord | EpcTrace]:
    """Every record of a file. Raises BadInput naming file and line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise BadInput(f"{path}: cannot be read: {why}") from None
    count = 0
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = _record(number, line)
        except BadInput as error:
            raise BadInput(f"{path}:{number}: {error}") from None
        count += 1
        yield record
    if not count:
        raise BadInput(f"{path}: no records; expected one JSON object a line")


def _record(number: int, line: str) -> MiscRecord | EpcTrace:
    try:
        data = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadInput(f"not a complete JSON object ({error}); is the file truncated?") from None
    if not isinstance(data, dict):
        raise BadInput("not a JSON object")
    if "ops" in data:
        return _misc(number, data)
    if "steps" in data:
        return _epc(number, data)
    raise BadInput("neither a misc record (with 'ops') nor an EPC trace (with 'steps')")


def _misc(number: int, data: dict[str, Any]) -> MiscRecord:
    ops = _field(data, "ops", list)
    out = _field(data, "out", dict)
    if not out:
        raise BadInput("'out' names no variant")
    for op in ops:
        if not isinstance(op, list) or not op or not isinstance(op[0], str):
            raise BadInput(f"operation {op!r} is not a list that begins with a name")
    for variants, results in out.items():
        if not isinstance(results, list) or len(results) != len(ops):
            raise BadInput(f"{variants!r} has not one result for each of {len(ops)} operations")
    return MiscRecord(number, data.get("id"), str(data.get("kind", "")), ops, out)


def _epc(number: int, data: dict[str, Any]) -> EpcTrace:
    steps = _field(data, "steps", list)
    for at, step in enumerate(steps, 1):
        if not isinstance(step, dict) or not (
            isinstance(step.get("op"), str) or isinstance(step.get("check"), dict)
        ):
            raise BadInput(f"step {at} is neither an operation ('op') nor a checkpoint ('check')")
    return EpcTrace(
        line=number,
        id=data.get("id"),
        name=str(data.get("name", "")),
        policy=_field(data, "impl", str),
        epc_pages=_field(data, "epc", int),
        sgx2=bool(data.get("sgx2", 0)),
        steps=steps,
    )


def _field(data: dict[str, Any], key: str, kind: type) -> Any:
    value = data.get(key)
    if not isinstance(value, kind):
        raise BadInput(f"{key!r} is missing or not of type {kind.__name__}")
    return value
