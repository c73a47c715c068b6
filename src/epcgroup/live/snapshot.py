"""What a running machine looks like at one moment, for reports and live tables."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from epcgroup.misc import SGX_EPC
from epcgroup.observe.model import EnclaveView, GroupView, Snapshot
from epcgroup.units import U64_MAX

if TYPE_CHECKING:
    from epcgroup.epc.group import Group
    from epcgroup.live.devices import Device
    from epcgroup.live.world import World


def take(world: World) -> Snapshot:
    """The state of every group and every open enclave."""
    with world.lock:
        groups = tuple(_group(world, group) for group in world.machine.groups.online())
        enclaves = tuple(view_of(device) for device in world.devices if device.created)
    return Snapshot(
        time_s=time.monotonic() - world.started,
        policy=world.machine.policy.name,
        epc_pages=world.machine.epc_pages,
        free_pages=world.machine.free,
        groups=groups,
        enclaves=tuple(world.ended) + enclaves,
    )


def _group(world: World, group: Group) -> GroupView:
    resource = world.machine.groups.resource(SGX_EPC)
    limit = group.max[resource]
    stall, guest = world.stalls.get(group.path), world.guests.of(group.path)
    return GroupView(
        path=group.path,
        limit=None if limit == U64_MAX else limit,
        current=group.usage[resource],
        peak=group.peak[resource],
        events=group.events[resource],
        events_local=group.events_local[resource],
        pages_in=group.counters.loaded,
        pages_out=group.counters.evicted,
        faults=stall.faults if stall else 0,
        stall_s=stall.seconds if stall else 0.0,
        vepc=guest.now,
        vepc_peak=guest.peak,
    )


def view_of(device: Device, *, ended: bool = False) -> EnclaveView:
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
    )
