"""Faults on order: what an SGX application should survive, and hardly ever meets.

A plan is written as ``KIND=VALUE`` and ``KIND@PAGE``, with commas between. Pages
are those of the first enclave, counted from its base. Chances are drawn from a
seeded generator, one for each kind, so that a run can be repeated and that one
more kind does not change what another does.

==================  ============================================================
``tamper@PAGE``     a bit of the page flips whenever it is evicted
``mac-fail@PAGE``   a bit of its MAC does
``replay@PAGE``     the oldest copy ever evicted comes back
``sigbus@PAGE``     every touch of the page is a SIGBUS, as after a memory error
``ewb-slow=5ms``    each eviction takes so much longer; the machine waits
``eldu-slow=5ms``   each load does
``enomem=0.01``     chance that an EPC page is refused (ENOMEM; SIGBUS in a fault)
``enospc=0.01``     chance that the backing store has no room: the page stays
``backing=64M``     capacity of the backing store
``eintr=0.01``      chance that an ioctl ends with EINTR before it does anything
``eagain=0.01``     chance that an SGX2 ioctl says EAGAIN
``seed=1``          of all chances; else it follows from the machine's root key
==================  ============================================================

The first three make the next load fail (ELDU, MAC mismatch): a SIGBUS for the
program, a line in the log, never wrong contents.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from epcgroup.errors import BadInput
from epcgroup.units import parse_size

#: Kinds that name a page, and what makes a chance.
AT_PAGE = ("tamper", "mac-fail", "replay", "sigbus")
CHANCES = ("enomem", "enospc", "eintr", "eagain")
DELAYS = ("ewb-slow", "eldu-slow")
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s)")
_EVERY = [f"{kind}@PAGE" for kind in AT_PAGE] + [f"{kind}=TIME" for kind in DELAYS]
_EVERY += [f"{kind}=CHANCE" for kind in CHANCES] + ["backing=SIZE", "seed=N"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to inject. ``pages``: kind → page indices of the first enclave; ``chances``: kind → 0 to 1;
    ``delays``: kind → seconds; ``backing``: bytes, None for no limit."""

    pages: Mapping[str, frozenset[int]] = field(default_factory=dict)
    chances: Mapping[str, float] = field(default_factory=dict)
    delays: Mapping[str, float] = field(default_factory=dict)
    backing: int | None = None
    seed: int | None = None

    def at(self, kind: str) -> frozenset[int]:
        """Pages that ``kind`` is to happen to."""
        return self.pages.get(kind, frozenset())


def parse(specs: Iterable[str]) -> Plan:
    """The plan that all ``specs`` together make. Raises BadInput.

    >>> plan = parse(["tamper@0x10,enomem=0.01", "ewb-slow=5ms"])
    >>> plan.at("tamper"), plan.chances["enomem"], plan.delays["ewb-slow"]
    (frozenset({16}), 0.01, 0.005)
    """
    pages: dict[str, frozenset[int]] = {}
    chances: dict[str, float] = {}
    delays: dict[str, float] = {}
    backing = seed = None
    for item in (item.strip() for spec in specs for item in spec.split(",")):
        kind, sign, value = item.replace("@", "\0@", 1).replace("=", "\0=", 1).partition("\0")
        separator, value = value[:1], value[1:].replace("\0", "")
        if separator == "@" and kind in AT_PAGE and sign:
            pages[kind] = pages.get(kind, frozenset()) | {_page(item, value)}
        elif separator == "=" and kind in CHANCES:
            chances[kind] = _chance(item, value)
        elif separator == "=" and kind in DELAYS:
            delays[kind] = _duration(item, value)
        elif separator == "=" and kind == "backing":
            backing = _size(item, value)
        elif separator == "=" and kind == "seed":
            seed = _whole(item, value)
        else:
            raise _bad(item, f"is none of {', '.join(_EVERY)}")
    return Plan(pages, chances, delays, backing, seed)


def _bad(item: str, why: str) -> BadInput:
    return BadInput(f"--inject {item!r}: {why}")


def _page(item: str, value: str) -> int:
    try:
        index = int(value, 0)
    except ValueError:
        index = -1
    if index < 0:
        raise _bad(item, "PAGE is a number of a page, counted from the enclave's base, e.g. 5 or 0x10")
    return index


def _whole(item: str, value: str) -> int:
    if not (value.isascii() and value.isdigit()):
        raise _bad(item, "the seed is a whole number, e.g. seed=1")
    return int(value)


def _chance(item: str, value: str) -> float:
    try:
        chance = float(value)
    except ValueError:
        chance = -1.0
    if not 0 <= chance <= 1:
        raise _bad(item, "a chance lies between 0 and 1, e.g. 0.01")
    return chance


def _duration(item: str, value: str) -> float:
    match = _DURATION.fullmatch(value)
    if match is None:
        raise _bad(item, "a time has a unit: 200us, 5ms, 0.1s")
    return float(match[1]) * _UNITS[match[2]]


def _size(item: str, value: str) -> int:
    try:
        return parse_size(value)
    except BadInput as error:
        raise _bad(item, str(error)) from None
