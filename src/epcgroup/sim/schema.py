"""What a scenario file may say: a JSON schema, and a validator that points at the line.

The schema is the documentation and what editors check with (``epcgroup sim
--schema``). The validator knows just the words that the schema uses. TOML's
parser keeps no positions, so the line of a fault is found again by its table's
heading and its key.
"""

from __future__ import annotations

import math
import re
from typing import Any

from epcgroup.errors import BadInput

_SIZE = {"type": "string", "description": "bytes: 64M, 4096, '16384 pages'"}
_LIMIT = {"type": "string", "description": "as a size, or max"}
_TIME = {"type": ["string", "number"], "description": "seconds, or 250ms, 1.5s, 2min"}
_PATH = {"type": "string", "pattern": r"^/\Z|^(?:/(?!\.{1,2}(?:/|\Z))[^/\n]+)+\Z"}
_NAME = {"type": "string", "pattern": r"\S", "description": "a name"}
_COPIES = {"type": "integer", "minimum": 1, "maximum": 100_000}
_WORKLOAD = {
    "type": "object",
    "description": "a pattern of generate.py and its numbers",
    "properties": {
        "pattern": {
            "type": "string",
            "enum": ["uniform", "zipf", "scan", "loop", "drift", "phases", "mixture"],
        },
        "pages": {"type": "integer", "minimum": 1},
        "alpha": {"type": "number", "minimum": 0},
        "hot": {"type": "integer", "minimum": 1},
        "every": {"type": "integer", "minimum": 1},
        "window": {"type": "integer", "minimum": 1},
        "accesses": {"type": "integer", "minimum": 1},
        "weight": {"type": "number", "minimum": 0},
        "phases": {"type": "array"},
        "parts": {"type": "array"},
    },
    "required": ["pattern"],
}

SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "epcgroup scenario",
    "type": "object",
    "required": ["machine"],
    "properties": {
        "title": {"type": "string"},
        "machine": {
            "type": "object",
            "properties": {
                "profile": {"type": "string", "description": "cost profile: a name, or a path to a .toml"},
                "epc": _SIZE,
                "policy": {"type": "string"},
                "seed": {"type": "integer", "minimum": 0},
                "duration": _TIME,
                "quantum": _TIME,
                "sample": _TIME,
                "worker": {"type": "string", "enum": ["own core", "steals"]},
            },
            "required": ["profile"],
        },
        "cgroup": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"path": _PATH, "max": _LIMIT, "copies": _COPIES},
                "required": ["path"],
            },
        },
        "tenant": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "name": _NAME,
                    "cgroup": _PATH,
                    "size": _SIZE,
                    "kind": {"type": "string", "enum": ["enclave", "guest"]},
                    "dynamic": {"type": "boolean", "description": "pages are added by touching (SGX2)"},
                    "start": _TIME,
                    "threads": _COPIES,
                    "accesses": {"type": "integer", "minimum": 0, "description": "of each thread"},
                    "access_ns": {"type": "number", "minimum": 0},
                    "workload": _WORKLOAD,
                    "trace": {"type": "string", "description": "path of a trace, from the scenario's folder"},
                    "enclave": {
                        "type": ["string", "integer"],
                        "description": "of the trace: name or number, or * for a tenant of each",
                    },
                    "copies": _COPIES,
                    "arrivals_per_s": {"type": "number", "minimum": 0},
                },
                "required": ["name"],
            },
        },
        "event": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "at": _TIME,
                    "cgroup": _PATH,
                    "max": _LIMIT,
                    "tenant": {"type": "string"},
                    "move": _PATH,
                    "remove": {**_SIZE, "description": "the last pages of the enclave (SGX2)"},
                    "exit": {"type": "boolean"},
                },
                "required": ["at"],
            },
        },
    },
}

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
}


class Fault(Exception):
    """Where in the data, and what is wrong."""

    def __init__(self, where: tuple[str | int, ...], what: str) -> None:
        super().__init__(what)
        self.where = where


def validate(data: Any, schema: dict[str, Any] = SCHEMA, where: tuple[str | int, ...] = ()) -> None:
    """Raise Fault at the first place where ``data`` is not as the schema says."""
    kinds = schema.get("type", [])
    wanted = [kinds] if isinstance(kinds, str) else kinds
    if not any(_is(data, kind) for kind in wanted):
        if wanted == ["array"] and isinstance(data, dict):
            raise Fault(where, f"is one table; there may be several: write [[{where[-1]}]]")
        meant = f" ({schema['description']})" if "description" in schema else ""
        raise Fault(where, f"is {data!r}; want {' or '.join(wanted)}{meant}")
    if isinstance(data, float) and not math.isfinite(data):
        raise Fault(where, f"is {data!r}; want a number that is finite")
    if "enum" in schema and data not in schema["enum"]:
        raise Fault(where, f"is {data!r}; want one of {', '.join(schema['enum'])}")
    if "minimum" in schema and data < schema["minimum"]:
        raise Fault(where, f"is {data!r}; want at least {schema['minimum']}")
    if "maximum" in schema and data > schema["maximum"]:
        raise Fault(where, f"is {data!r}; want at most {schema['maximum']}")
    if "pattern" in schema and not re.search(schema["pattern"], data):
        raise Fault(where, f"is {data!r}; want {schema.get('description', 'a path like /pods/a')}")
    if isinstance(data, dict):
        known = schema["properties"]
        for key, value in data.items():
            if key not in known:
                raise Fault((*where, key), f"is not known here; there are {', '.join(known)}")
            validate(value, known[key], (*where, key))
        for key in schema.get("required", ()):
            if key not in data:
                raise Fault(where, f"lacks {key}")
    if isinstance(data, list) and "items" in schema:
        for number, value in enumerate(data):
            validate(value, schema["items"], (*where, number))


def located(name: str, text: str, fault: Fault) -> BadInput:
    """The fault as an error that names file, line and key."""
    line = _line(text, fault.where)
    parts = (f"[{part + 1}]" if isinstance(part, int) else f".{part}" for part in fault.where)
    dotted = "".join(parts).lstrip(".")
    said = str(fault)
    return BadInput(f"{name}:{line}: {dotted or 'scenario'}{'' if said.startswith(':') else ' '}{said}")


def _is(data: Any, kind: str) -> bool:
    return isinstance(data, _TYPES[kind]) and (kind == "boolean" or not isinstance(data, bool))


def _line(text: str, where: tuple[str | int, ...]) -> int:
    lines = text.splitlines()
    start = 0
    if where:
        number = where[1] if len(where) > 1 and isinstance(where[1], int) else 0
        heads = [at for at, line in enumerate(lines) if re.match(rf"\s*\[\[?\s*{where[0]}\s*\]", line)]
        if number < len(heads):
            start = heads[number]
    key = next((part for part in reversed(where) if isinstance(part, str)), None)
    if key is not None:
        for at in range(start, len(lines)):
            if at > start and lines[at].lstrip().startswith("["):
                break
            if re.search(rf"(^|[\s{{,]){re.escape(key)}\s*=", lines[at]):
                return at + 1
    return start + 1
