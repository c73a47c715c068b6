"""A hostile host: backing store that changes or replays sealed pages.

What lies outside the EPC is at the host's mercy, and an SGX application should
be tested against a host that uses it. An attack names a page of the first
enclave: ``tamper@PAGE`` flips one bit of it at every eviction, ``replay@PAGE``
puts back the oldest copy ever seen. Both make the next load fail (ELDU, MAC
mismatch): a SIGBUS for the program, a line in the log, never wrong contents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from epcgroup.driver.store import BackingStore, Evicted
from epcgroup.errors import BadInput

KINDS = ("tamper", "replay")


@dataclass(frozen=True, slots=True)
class Attack:
    """``kind`` of KINDS on page ``index`` of the first enclave."""

    kind: str
    index: int


def parse(spec: str) -> Attack:
    """``tamper@5`` or ``replay@0x10``.

    >>> parse("tamper@0x10")
    Attack(kind='tamper', index=16)
    """
    kind, at, page = spec.partition("@")
    try:
        index = int(page, 0)
    except ValueError:
        index = -1
    if kind not in KINDS or not at or index < 0:
        raise BadInput(f"--inject {spec!r}: write tamper@PAGE or replay@PAGE, PAGE counted from the base")
    return Attack(kind, index)


class HostileStore(BackingStore):
    """A backing store under attack."""

    def __init__(self, attacks: Sequence[Attack], limit: int | None = None) -> None:
        super().__init__(limit)
        self._tampered = {attack.index for attack in attacks if attack.kind == "tamper"}
        self._replayed = {attack.index for attack in attacks if attack.kind == "replay"}
        self._oldest: dict[int, bytes] = {}
        self._victim: int | None = None

    def add(self, enclave: int, index: int, entry: Evicted) -> None:
        """As BackingStore.add, with what an attacker makes of it."""
        if self._victim is None:
            self._victim = enclave
        if enclave == self._victim:
            if index in self._tampered:
                entry.sealed = bytes([entry.sealed[0] ^ 1]) + entry.sealed[1:]
            if index in self._replayed:
                entry.sealed = self._oldest.setdefault(index, entry.sealed)
        super().add(enclave, index, entry)
