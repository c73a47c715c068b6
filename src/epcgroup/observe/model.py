"""One moment of one machine, as plain values: what every view is made of.

It is the same for a machine of ours, a real kernel's files and a simulation. What
a source cannot know keeps its default: a kernel's misc.* files tell limit, usage
and events and nothing of paging, a simulation has no processes. ``Snapshot.knows``
says which parts are real, so that a view shows a dash and not a wrong zero.
"""

from __future__ import annotations

from dataclasses import dataclass

from epcgroup.units import PAGE_SIZE

#: Parts of a snapshot that not every source can tell. STALL: stall_s, faults; PRESSURE: some_s, full_s.
PAGING, STALL, PRESSURE, UNRECLAIMABLE = "paging", "stall", "pressure", "unreclaimable"
ENCLAVES, PROCESSES = "enclaves", "processes"
EVERYTHING = frozenset({PAGING, STALL, PRESSURE, UNRECLAIMABLE, ENCLAVES, PROCESSES})


@dataclass(frozen=True, slots=True)
class GroupView:
    """One EPC cgroup and everything below it. Limit, current and peak in bytes; the rest as said.

    As in the kernel's files every amount is of the whole subtree, but for
    ``events_local``: refusals at the group's own limit. What a removed child
    counted stays in its parent. Counters begin at the group's creation:

    * ``events``: charges refused; ``pages_in``: loads (ELDU), ``pages_out``:
      evictions (EWB); ``faults``: touches that had to wait for a page; ``added``:
      pages added (EADD, EAUG); ``scanned``: pages that reclaim looked at, of which
      ``young`` were left for having been touched.
    * ``stall_s``: seconds that threads waited, summed over threads. ``some_s``:
      seconds in which at least one process waited; ``full_s``: in which all
      processes that have an enclave mapped waited at once (PSI's words).

    Unreclaimable now, in pages, all of it in current: ``secs``, ``va``, and
    ``vepc``, the virtual EPC of guests (``vepc_peak`` at most).
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
    secs: int = 0
    va: int = 0
    some_s: float = 0.0
    full_s: float = 0.0
    added: int = 0
    scanned: int = 0
    young: int = 0

    @property
    def unreclaimable(self) -> int:
        """Bytes of current that no eviction can free: SECS, version arrays, virtual EPC."""
        return (self.secs + self.va + self.vepc) * PAGE_SIZE


@dataclass(frozen=True, slots=True)
class EnclaveView:
    """One enclave. Size in bytes, the other amounts in pages; counters since its creation.

    ``disabled``: it lost its memory as the last resort under its limit;
    ``initialised``: EINIT is done; ``ended``: it is gone, and these are its last
    figures. ``began_s``, ``ended_s``: when, as `Snapshot.time_s`.
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
    pages_in: int = 0
    pages_out: int = 0
    faults: int = 0
    began_s: float = 0.0
    ended_s: float | None = None
    initialised: bool = False


@dataclass(frozen=True, slots=True)
class ThreadView:
    """One thread; ``enclave``: the one it executes in. Waits for pages since it began."""

    tid: int
    enclave: int | None = None
    faults: int = 0
    stall_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ProcessView:
    """One process of a cgroup, with its threads."""

    pid: int
    command: str
    group: str
    threads: tuple[ThreadView, ...] = ()

    @property
    def faults(self) -> int:
        """Touches of its threads that had to wait for a page."""
        return sum(thread.faults for thread in self.threads)

    @property
    def stall_s(self) -> float:
        """Seconds that its threads waited for pages."""
        return sum(thread.stall_s for thread in self.threads)


@dataclass(frozen=True, slots=True)
class NodeView:
    """The EPC of one NUMA node, in pages."""

    node: int
    pages: int
    free: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A whole machine ``time_s`` seconds after it was started.

    ``started``: when that was, in seconds since 1970; 0 in virtual time.
    ``nodes`` is empty where nothing is known of them. Parents come before children.
    ``low_pages``, ``high_pages``: free pages at which the machine's own reclaim
    begins and ends.
    """

    time_s: float
    policy: str
    epc_pages: int
    free_pages: int
    groups: tuple[GroupView, ...] = ()
    enclaves: tuple[EnclaveView, ...] = ()
    processes: tuple[ProcessView, ...] = ()
    nodes: tuple[NodeView, ...] = ()
    started: float = 0.0
    knows: frozenset[str] = EVERYTHING
    low_pages: int = 0
    high_pages: int = 0

    @property
    def at(self) -> float:
        """The moment in seconds since 1970, in virtual time since its beginning."""
        return self.started + self.time_s

    @property
    def virtual(self) -> bool:
        """Whether its time is a simulation's."""
        return not self.started

    def group(self, path: str) -> GroupView | None:
        """The group at ``path``, if there is one."""
        return next((group for group in self.groups if group.path == path), None)


#: Kinds of events, in the words of the log.
LIMIT, BURST, DISABLED, REFUSED, FAILED = "limit", "burst", "disabled", "refused", "failed"
SET, MADE, REMOVED, BEGAN, ENDED = "set", "made", "removed", "began", "ended"
KILLED, SAID = "killed", "said"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a machine, with its time and, in words, its reason.

    ``number`` counts up without gaps; ``at`` is in seconds as `Snapshot.at`.
    Repetitions are merged: ``count`` things happened from ``at`` to ``until``.
    Kinds: ``limit`` (charges refused at ``group``'s limit; at "/": the machine was
    full), ``burst`` (``count`` pages evicted in a short time), ``disabled`` (an
    enclave lost its memory), ``refused`` (an ioctl failed with ``errno``, for
    ``reason``), ``failed`` (a touch of enclave memory ended in a SIGBUS), ``killed``
    (a process was ended by a signal), ``set`` (a limit was set), ``made`` and
    ``removed`` (a cgroup), ``began`` and ``ended`` (an enclave), ``said`` (what the
    machine writes to its log).
    """

    number: int
    at: float
    kind: str
    group: str = ""
    enclave: int | None = None
    pid: int | None = None
    command: str = ""
    count: int = 1
    until: float = 0.0
    errno: str = ""
    reason: str = ""
    limit: int | None = None
    current: int | None = None
