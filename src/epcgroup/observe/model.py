"""One moment of one machine, as plain values: what every report is made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GroupView:
    """One EPC cgroup. Limit, current and peak in bytes; the rest counts since its creation.

    ``events`` counts refusals in the group and below, ``events_local`` those at
    the group itself; pages in are loads (ELDU), pages out evictions (EWB).
    ``vepc``: pages of virtual EPC (of guests), now and at most; they are in current.
    """

    path: str
    limit: int | None
    current: int
    peak: int
    events: int = 0
    events_local: int = 0
    pages_in: int = 0
    pages_out: int = 0
    faults: int = 0
    stall_s: float = 0.0
    vepc: int = 0
    vepc_peak: int = 0


@dataclass(frozen=True, slots=True)
class EnclaveView:
    """One enclave. Size in bytes, the other amounts in pages.

    ``disabled``: it lost its memory as the last resort under its limit;
    ``ended``: it is gone, and these are its last figures.
    """

    id: int
    pid: int
    command: str
    group: str
    size: int
    resident: int
    evicted: int
    secs: int
    va: int
    disabled: bool = False
    ended: bool = False


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A whole machine ``time_s`` seconds after it was started."""

    time_s: float
    policy: str
    epc_pages: int
    free_pages: int
    groups: tuple[GroupView, ...] = ()
    enclaves: tuple[EnclaveView, ...] = ()

    def group(self, path: str) -> GroupView | None:
        """The group at ``path``, if there is one."""
        return next((group for group in self.groups if group.path == path), None)
