"""The end of an enclave, its disabling, and the limits of one that was disabled."""

from __future__ import annotations

import errno

import pytest

from epcgroup.driver import Fault, Ioctl
from epcgroup.errors import Refused


@pytest.mark.parametrize(
    "state", ["fresh", "created", "building", "ready", "evicted", "partly evicted", "augmented"]
)
@pytest.mark.parametrize("policy", ["v5", "v17", "standard"])
def test_release_gives_every_page_back(world, policy, state):
    w = world(policy)
    file = {"fresh": w.driver.open, "created": w.create, "building": lambda: w.build(init=False)}.get(
        state, w.build
    )()
    if "evicted" in state:
        w.evict(file)
    if state == "partly evicted":
        w.touch(file, 3)
    if state == "augmented":
        w.touch(file, 100)
    file.release()
    file.release()
    assert (w.usage, w.machine.free) == (0, 256)
    assert (w.frames.contents, w.driver.files) == ({}, {})
    assert w.driver.pager.store.used == 0


def test_released_enclaves_leave_room_for_the_next_ones(world):
    w = world()
    w.limit(16)
    for _ in range(40):
        file = w.build(pages=20)
        assert w.usage <= 16
        file.release()
    assert w.usage == 0


def test_v5_disables_an_enclave_whose_fixed_pages_exceed_the_limit(world):
    w = world("v5")
    file = w.build()
    w.limit(1)
    w.machine.settle()
    assert file.disabled
    assert w.frames.disabled == {file.enclave.id}
    assert w.usage == 1  # nothing comes back before the file is closed
    file.release()
    assert w.usage == 0


def test_what_a_disabled_enclave_still_answers(world):
    """Spec 5.4, row by row."""
    w = world("v5")
    building, ready = w.build(init=False), w.build()
    fresh_arg = w.pointer(w.secs().pack())
    w.mem.provision.add(3)
    provision = w.mem.put((3).to_bytes(8, "little"))
    for file in (building, ready):
        file.enclave.disabled = True
        assert w.touch(file, 1) is Fault.SIGBUS
        assert w.fails(file, Ioctl.CREATE, fresh_arg) == "EINVAL"
        assert w.ioctl(file, Ioctl.PROVISION, provision) == 0
        with pytest.raises(Refused) as refused:
            file.may_map(file.base, 4096, 1)
        assert refused.value.errno == errno.ENOMEM
    for command in (Ioctl.ADD_PAGES, Ioctl.INIT):
        assert w.fails(building, command, 0xBAD000) == "ENOMEM"
        assert w.fails(ready, command, 0xBAD000) == "EINVAL"
    for command in (Ioctl.RESTRICT_PERMISSIONS, Ioctl.MODIFY_TYPES, Ioctl.REMOVE_PAGES):
        assert w.fails(ready, command, 0xBAD000) == "ENOMEM"
        assert w.fails(building, command, 0xBAD000) == "EINVAL"
