"""ADD_PAGES: its checks in order, its count, and what is added (spec 6.5)."""

from __future__ import annotations

import os

import pytest

from epcgroup.driver import Ioctl
from epcgroup.sgx.layouts import SecInfo, Tcs

ADD = Ioctl.ADD_PAGES

pytestmark = pytest.mark.parametrize("default_policy", ["v5", "v17", "standard"])


def test_contents_and_permissions_arrive(world):
    w = world()
    file = w.create()
    data = os.urandom(3 * 4096)
    w.add(file, data, 0x5000, flags=0x205)
    assert b"".join(w.frames.read(file.enclave.id, i, 0, 4096) for i in (5, 6, 7)) == data
    assert {file.words[i] for i in (5, 6, 7)} == {0x205}
    assert w.usage == 5


def test_a_page_is_not_added_before_create_or_after_init(world):
    w = world()
    assert w.fails(w.driver.open(), ADD, 0xBAD) == "EINVAL"
    assert w.fails(w.build(), ADD, 0xBAD) == "EINVAL"


def test_an_unreadable_argument_is_efault(world):
    w = world()
    assert w.fails(w.create(), ADD, 0xBAD000) == "EFAULT"


@pytest.mark.parametrize(
    "change",
    [
        {"src": 0x1001},
        {"offset": 0x10},
        {"length": 0},
        {"length": 0x1800},
        {"offset": (1 << 64) - 4096, "length": 8192},
        {"offset": 1 << 22},
        {"offset": (1 << 22) - 4096, "length": 8192},
    ],
)
def test_bad_ranges_are_einval_before_secinfo_is_read(world, change):
    w = world()
    assert w.fails(w.create(), ADD, w.add_arg(**{"secinfo": 0xBAD000} | change)) == "EINVAL"


def test_an_unreadable_secinfo_is_efault(world):
    w = world()
    assert w.fails(w.create(), ADD, w.add_arg(secinfo=0xBAD000)) == "EFAULT"


@pytest.mark.parametrize("flags", [0x003, 0x303, 0x403, 0x202, 0x101, 0x20B, 0x10203])
def test_a_secinfo_that_is_not_a_plain_page_is_einval(world, flags):
    w = world()
    arg = w.add_arg(flags=flags)
    assert w.fails(w.create(), ADD, arg) == "EINVAL"
    assert w.count(arg) == 77  # nothing was begun, nothing is reported


def test_reserved_bytes_of_secinfo_are_einval(world):
    w = world()
    secinfo = w.mem.put(SecInfo(0x203).pack()[:-1] + b"\1")
    assert w.fails(w.create(), ADD, w.add_arg(secinfo=secinfo)) == "EINVAL"


def test_an_address_is_added_once(world):
    w = world()
    file = w.create()
    w.add(file, bytes(4096), 0x2000)
    before = w.usage
    arg = w.add_arg(bytes(4 * 4096))
    assert w.fails(file, ADD, arg) == "EBUSY"
    assert w.count(arg) == 2 * 4096
    assert w.usage == before + 2


def test_an_existing_address_is_noticed_before_its_source_is_read(world):
    w = world()
    file = w.create()
    w.add(file, bytes(4096))
    assert w.fails(file, ADD, w.add_arg(src=0xBAD000)) == "EBUSY"


def test_a_missing_source_page_is_efault_after_the_pages_before_it(world):
    w = world()
    file = w.create()
    src = w.mem.put(bytes(4 * 4096))
    w.mem.unmap(src + 2 * 4096)
    arg = w.add_arg(bytes(4 * 4096), src=src)
    assert w.fails(file, ADD, arg) == "EFAULT"
    assert (w.count(arg), w.usage, sorted(file.maximum)) == (2 * 4096, 4, [0, 1])


def test_a_noexec_source_is_eacces(world):
    w = world()
    file = w.create()
    src = w.mem.put(bytes(2 * 4096))
    w.mem.noexec.add(src + 4096)
    arg = w.add_arg(bytes(2 * 4096), src=src)
    assert w.fails(file, ADD, arg) == "EACCES"
    assert w.count(arg) == 4096


def test_a_tcs_that_the_processor_refuses_is_eio_and_not_kept(world):
    w = world()
    file = w.create()
    arg = w.add_arg(Tcs(flags=4).pack(), flags=0x100)
    assert w.fails(file, ADD, arg) == "EIO"
    assert (w.count(arg), w.usage, file.maximum) == (0, 2, {})
    w.add(file, Tcs().pack(), 0, 0x100)


def test_a_count_that_cannot_be_written_back_is_efault(world):
    w = world()
    arg = w.add_arg()
    w.mem.read_only.add(arg)
    assert w.fails(w.create(), ADD, arg) == "EFAULT"


def test_a_limit_below_va_secs_and_one_page_is_enomem(world):
    w = world()
    w.limit(2)
    file = w.create()
    arg = w.add_arg()
    assert w.fails(file, ADD, arg) == "ENOMEM"
    assert (w.count(arg), w.usage) == (0, 2)
    w.limit(3)
    w.add(file, bytes(4096))


def test_an_enclave_larger_than_its_limit_is_built_by_eviction(world):
    w = world()
    w.limit(20)
    file = w.create()
    data = os.urandom(200 * 4096)
    w.add(file, data)
    assert w.usage <= 20
    assert w.frames.most <= 18
    assert file.enclave.evicted >= 182
    assert w.driver.pager.slots_in_use(file.enclave) == file.enclave.evicted


def test_a_signal_before_the_first_page_restarts_the_call(world):
    w = world()
    file = w.create()
    w.pending = lambda: True
    arg = w.add_arg()
    assert w.fails(file, ADD, arg) == "ERESTARTSYS"
    assert w.count(arg) == 0


def test_a_signal_later_gives_a_short_count_that_can_be_continued(world):
    w = world()
    file = w.create()
    w.pending = lambda: w.usage >= 18
    data = os.urandom(40 * 4096)
    arg = w.add_arg(data)
    assert w.ioctl(file, ADD, arg) == 0
    done = w.count(arg)
    assert 0 < done < len(data)
    w.pending = lambda: False
    w.add(file, data[done:], done)
    assert file.enclave.page_cnt == 41


def test_a_signal_inside_an_allocation(world, default_policy):
    """The kernel restarts the call, which then meets its own pages (B-33); standard does not."""
    w = world()
    w.limit(12)
    file = w.create()
    w.pending = lambda: w.usage >= 12
    arg = w.add_arg(bytes(40 * 4096))
    if default_policy == "standard":
        assert w.ioctl(file, ADD, arg) == 0
    else:
        assert w.fails(file, ADD, arg) == "ERESTARTSYS"
    assert w.count(arg) == 10 * 4096


def test_only_measured_pages_enter_the_measurement(world):
    w = world()
    with_, without = w.create(), w.create()
    w.add(with_, bytes(4096), measure=True)
    w.add(without, bytes(4096), measure=False)
    assert with_.state.measurement.digest() != without.state.measurement.digest()


def test_a_zero_source_and_a_random_one_of_many_pieces_are_both_exact(world):
    w = world(epc_pages=2000)
    file = w.create(size_bytes=1 << 23)
    data = bytes(300 * 4096) + os.urandom(300 * 4096) + bytes(5 * 4096)
    w.add(file, data, measure=False)
    got = b"".join(w.frames.read(file.enclave.id, i, 0, 4096) for i in range(605))
    assert got == data
