"""CREATE: its checks in order, and nothing left behind when one fails (spec 6.5)."""

from __future__ import annotations

import pytest

from epcgroup.driver import Ioctl

pytestmark = pytest.mark.parametrize("default_policy", ["v5", "v17", "standard"])


def test_create_takes_one_va_page_and_the_secs(world):
    w = world()
    file = w.create()
    assert w.usage == 2
    assert (file.created, file.initialised) == (True, False)
    assert (file.base, file.size) == (0x40000000, 1 << 22)


def test_a_created_enclave_is_not_created_again(world):
    w = world()
    file = w.create()
    assert w.fails(file, Ioctl.CREATE, 0xBAD) == "EINVAL"  # before the argument is even read


@pytest.mark.parametrize("broken", ["argument", "image"])
def test_unreadable_arguments_are_efault(world, broken):
    w = world()
    arg = 0xBAD000 if broken == "argument" else w.mem.put((0xBAD000).to_bytes(8, "little"))
    assert w.fails(w.driver.open(), Ioctl.CREATE, arg) == "EFAULT"


@pytest.mark.parametrize("size", [0, 3 << 12, (1 << 22) + 1])
def test_a_size_that_is_no_power_of_two_is_einval_even_without_memory(world, size):
    w = world()
    w.limit(0)
    arg = w.pointer(w.secs(size_bytes=size).pack())
    assert w.fails(w.driver.open(), Ioctl.CREATE, arg) == "EINVAL"


@pytest.mark.parametrize(
    "change",
    [
        {"base": 0x1000},
        {"xfrm": 1},
        {"attributes": 8},
        {"ssa_frame_size": 0},
        {"size_bytes": 4096},
        {"size_bytes": 1},
    ],
)
def test_what_ecreate_refuses_is_eio_and_costs_nothing(world, change):
    w = world()
    file = w.driver.open()
    assert w.fails(file, Ioctl.CREATE, w.pointer(w.secs(**change).pack())) == "EIO"
    assert (w.usage, w.machine.free, file.created) == (0, 256, False)
    assert w.ioctl(file, Ioctl.CREATE, w.pointer(w.secs().pack())) == 0


@pytest.mark.parametrize("pages", [0, 1])
def test_without_room_for_va_and_secs_create_is_enomem_and_can_be_tried_again(world, pages):
    w = world()
    w.limit(pages)
    file = w.driver.open()
    arg = w.pointer(w.secs().pack())
    assert w.fails(file, Ioctl.CREATE, arg) == "ENOMEM"
    assert (w.usage, w.machine.free) == (0, 256)
    w.limit(2)
    assert w.ioctl(file, Ioctl.CREATE, arg) == 0


def test_a_terabyte_at_base_zero_costs_two_pages(world):
    w = world()
    file = w.create(base=0, size_bytes=1 << 40)
    assert w.usage == 2
    file.may_map(0x10000, (1 << 40) - 0x10000, 7)
    file.release()
    assert w.usage == 0


def test_an_unknown_ioctl_is_enotty(world):
    w = world()
    file = w.create()
    for command in (0x4008A404, 0xA404, 0x5401, 0x4008A401):
        assert w.fails(file, command, 0) == "ENOTTY"


def test_a_second_ioctl_while_one_runs_is_ebusy(world):
    w = world()
    file = w.create()
    arg = w.add_arg(bytes(40 * 4096))
    steps = file.ioctl_steps(Ioctl.ADD_PAGES, arg, w.mem, w.caller)
    next(steps)
    assert w.fails(file, Ioctl.ADD_PAGES, arg) == "EBUSY"
    assert w.fails(file, 0x5401, 0) == "EBUSY"
    assert list(steps)
    assert w.fails(file, Ioctl.CREATE, arg) == "EINVAL"


def test_an_abandoned_ioctl_leaves_the_enclave_usable(world):
    w = world()
    file = w.create()
    steps = file.ioctl_steps(Ioctl.ADD_PAGES, w.add_arg(bytes(40 * 4096)), w.mem, w.caller)
    next(steps)
    steps.close()
    w.add(file, bytes(4096), 0x40000)
