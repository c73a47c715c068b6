"""What a running machine looks like at one moment, for every view.

Ten thousand cgroups are copied as plain numbers while `World.lock` is held (some
milliseconds); sums over subtrees and objects are made after. A cgroup whose
numbers are what they were keeps its view: who follows a machine sees by identity
that nothing changed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from epcgroup.epc import Kind
from epcgroup.observe.model import EnclaveView, GroupView, NodeView, ProcessView, Snapshot, ThreadView
from epcgroup.units import U64_MAX

if TYPE_CHECKING:
    from epcgroup.epc.group import Group
    from epcgroup.live.devices import Device
    from epcgroup.live.tracing.task import Task
    from epcgroup.live.world import World

# Of one group: limit, current, peak, events, local events; then, of itself alone, pages in, pages out, added,
# scanned, young, SECS, VA.
Numbers = tuple[int | None, ...]
_OWN = 5


class Observer:
    """Takes snapshots of one machine, from any thread."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._lock = threading.Lock()  # taken before World.lock
        self._views: dict[Group, tuple[tuple[float | None, ...], GroupView]] = {}
        self._started = time.time() - (time.monotonic() - world.started)

    def now(self) -> float:
        """This moment, as `Snapshot.at`."""
        return self._started + time.monotonic() - self._world.started

    def take(self) -> Snapshot:
        """Every group, every enclave, every process as it is now."""
        world = self._world
        machine = world.machine
        with self._lock:
            with world.lock:
                groups = list(machine.groups.walk(machine.groups.root))
                numbers = _numbers(groups, machine.resource)
                enclaves = tuple(view_of(world, device) for device in world.devices if device.created)
                ended = tuple(world.ended)
                free, nodes = machine.free, machine.free_by_node()
                now = time.monotonic() - world.started
            views = self._groups(groups, numbers)
        return Snapshot(
            time_s=now,
            policy=machine.policy.name,
            epc_pages=machine.epc_pages,
            free_pages=free,
            groups=views,
            enclaves=ended + enclaves,
            processes=_processes(list(world.tasks.values())),
            nodes=tuple(NodeView(node, *pages) for node, pages in nodes.items()),
            started=self._started,
            low_pages=machine.low,
            high_pages=machine.high,
        )

    def _groups(self, groups: list[Group], numbers: list[Numbers]) -> tuple[GroupView, ...]:
        world, before = self._world, self._views
        now: dict[Group, tuple[tuple[float | None, ...], GroupView]] = {}
        sums = _subtree_sums(groups, numbers)
        for group, own, summed in zip(groups, numbers, sums, strict=True):
            if not group.online:
                continue
            loaded, evicted, added, scanned, young, secs, va = summed
            faults, seconds, some, full = world.stalls.read(group)
            guest = world.guests.of(group.path)
            # In the order of the fields of GroupView.
            key = (
                *own[:_OWN], loaded, evicted, faults, seconds, guest.now, guest.peak, secs, va, some, full,
                added, scanned, young,
            )  # fmt: skip
            old = before.get(group)
            if old is None or old[0] != key:
                old = key, GroupView(group.path, *key)  # type: ignore[arg-type]
            now[group] = old
        for gone in before.keys() - now.keys():
            world.stalls.forget(gone)
        self._views = now
        return tuple(view for _, view in now.values())


def _numbers(groups: Iterable[Group], at: int) -> list[Numbers]:
    rows: list[Numbers] = []
    for group in groups:
        limit, own, past = group.max[at], group.counters, group.past
        rows.append((
            None if limit == U64_MAX else limit,
            group.usage[at],
            group.peak[at],
            group.events[at],
            group.events_local[at],
            own.loaded + past.loaded,
            own.evicted + past.evicted,
            own.added + own.augmented + past.added + past.augmented,
            own.scanned + past.scanned,
            own.young + past.young,
            group.kinds[Kind.SECS],
            group.kinds[Kind.VA],
        ))  # fmt: skip
    return rows


def _subtree_sums(groups: list[Group], numbers: list[Numbers]) -> list[list[int]]:
    """What follows _OWN, of each group and all below; ``groups`` has parents first."""
    sums: list[list[int]] = [list(own[_OWN:]) for own in numbers]  # type: ignore[arg-type]  # only a limit is None
    place = {group: at for at, group in enumerate(groups)}
    for at in range(len(groups) - 1, 0, -1):
        if any(sums[at]):
            above = sums[place[groups[at].parent]]  # type: ignore[index]  # only the first is the root
            above[:] = map(int.__add__, above, sums[at])
    return sums


def _processes(tasks: Iterable[Task]) -> tuple[ProcessView, ...]:
    """The traced processes in the order of their start."""
    threads: dict[int, list[Task]] = {}
    for task in tasks:
        threads.setdefault(task.pid, []).append(task)
    return tuple(
        ProcessView(
            pid=pid,
            command=members[0].command,
            group=members[0].caller.group.path,
            threads=tuple(_thread(task) for task in members),
        )
        for pid, members in threads.items()
    )


def _thread(task: Task) -> ThreadView:
    device = _inside(task)
    file = device.file if device is not None else None
    return ThreadView(
        task.tid,
        file.enclave.id if file is not None and file.created else None,
        task.faults,
        task.stall_s,
    )


def _inside(task: Task) -> Device | None:
    """The enclave that a thread executes, also when it came in without a trap (see fastpath)."""
    if task.inside is not None:
        return task.inside.device
    fast = task.mm.fast
    outside = fast.table.outside(task.inner_tid) if fast is not None and fast.table is not None else None
    return outside.entry.device if outside is not None else None


def view_of(world: World, device: Device, *, ended: bool = False) -> EnclaveView:
    """One enclave as a row; ``ended``: it is about to be released, these are its last figures."""
    file = device.file
    assert file is not None
    enclave = file.enclave
    return EnclaveView(
        id=enclave.id,
        pid=device.opened_by,
        command=device.command,
        group=device.group,
        size=file.size,
        resident=enclave.child_count,
        evicted=enclave.evicted,
        secs=int(enclave.secs is not None),
        va=len(enclave.va_pages),
        disabled=enclave.disabled,
        ended=ended,
        initialised=enclave.initialised,
        pages_in=enclave.counters.loaded,
        pages_out=enclave.counters.evicted,
        faults=enclave.counters.faults,
        began_s=device.opened - world.started,
        ended_s=time.monotonic() - world.started if ended else None,
    )
