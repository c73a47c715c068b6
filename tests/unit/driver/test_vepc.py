"""/dev/sgx_vepc: charged to whoever touches, never reclaimed, freed by close (spec 6.6)."""

from __future__ import annotations

import errno

import pytest

from epcgroup.driver import Fault, VepcIoctl
from epcgroup.driver.numbers import MAP_PRIVATE, MAP_SHARED, MAP_SHARED_VALIDATE
from epcgroup.epc import Caller
from epcgroup.epc.invariants import check
from epcgroup.errors import Refused

EVERY = pytest.mark.parametrize("policy", ["standard", "v5", "v17"])


@pytest.fixture
def open_vepc(world):
    def make(**options):
        w = world(**options)
        return w, w.driver.open_vepc()

    return make


def fill(w, file, pages: int, first: int = 0) -> list[Fault]:
    """Touch pages as a program does: again, after background work, as long as the answer is RETRY."""
    answers = []
    for index in range(first, first + pages):
        while (answer := file.fault(index, w.caller)) is Fault.RETRY:
            assert w.machine.step(), "told to retry, and nothing is being done about it"
        answers.append(answer)
    return answers


@pytest.mark.parametrize("flags", [MAP_SHARED, MAP_SHARED_VALIDATE])
def test_a_shared_mapping_is_allowed(open_vepc, flags):
    _, file = open_vepc()
    file.may_map(flags | 0x10)


def test_a_private_mapping_is_refused(open_vepc):
    _, file = open_vepc()
    with pytest.raises(Refused) as refused:
        file.may_map(MAP_PRIVATE)
    assert refused.value.errno == errno.EINVAL


@pytest.mark.parametrize(
    ("cmd", "arg", "number"),
    [
        (0xA404, 1, errno.EINVAL),
        (0xA404, 1 << 63, errno.EINVAL),
        (0xA400, 0, errno.ENOTTY),
        (0, 0, errno.ENOTTY),
    ],
)
def test_other_ioctls_and_arguments_are_refused(open_vepc, cmd, arg, number):
    _, file = open_vepc()
    with pytest.raises(Refused) as refused:
        file.ioctl(cmd, arg)
    assert refused.value.errno == number


def test_remove_all_keeps_the_pages_charged(open_vepc):
    """VEPC-04: EREMOVE empties them, it does not free them."""
    w, file = open_vepc()
    fill(w, file, 5)
    assert file.ioctl(VepcIoctl.REMOVE_ALL, 0) == 0
    assert w.usage == 5


@EVERY
def test_at_the_limit_a_touch_is_a_sigbus_and_pages_held_are_kept(open_vepc, policy):
    """VEPC-06, and B-67: a limit that is lowered changes nothing."""
    w, file = open_vepc(policy=policy)
    w.limit(6)
    assert fill(w, file, 7) == [Fault.RESIDENT] * 6 + [Fault.SIGBUS]
    w.limit(2)
    w.machine.settle()
    assert w.usage == 6
    assert fill(w, file, 6) == [Fault.RESIDENT] * 6
    assert file.fault(6, w.caller) is Fault.SIGBUS
    check(w.machine)


@EVERY
def test_an_enclave_in_the_group_is_paged_to_make_room_for_a_guest(open_vepc, policy):
    w, file = open_vepc(policy=policy)
    enclave = w.build(40)
    w.limit(60)
    assert fill(w, file, 30) == [Fault.RESIDENT] * 30
    assert enclave.enclave.evicted > 0
    assert len(file.guest.pages) == 30
    check(w.machine)


def test_close_gives_everything_back_at_once(open_vepc):
    w, file = open_vepc()
    fill(w, file, 9, first=1 << 40)
    free = w.machine.free
    file.release()
    assert (w.usage, w.machine.free) == (0, free + 9)
    assert not w.machine.vepcs
    check(w.machine)


# ---- what a guest on a processor with virtual SGX has made of its pages ----


def enclave_across(secs_at: int, home, elsewhere, children: list[int]):
    """An enclave whose SECS is in one instance and whose pages are in another."""
    secs = home.epcm.ecreate(secs_at)
    return [elsewhere.epcm.eadd(index, secs) for index in children]


def test_an_open_reserves_nothing(open_vepc):
    """VEPC-01: not even for a file of an exabyte."""
    w, _ = open_vepc()
    w.driver.open_vepc()
    assert (w.usage, w.machine.free) == (0, w.machine.epc_pages)


def test_remove_all_counts_an_secs_that_has_children_and_needs_a_second_round(open_vepc):
    """VEPC-04: the SECS comes first in the file, its children behind it."""
    w, file = open_vepc()
    fill(w, file, 5)
    enclave_across(0, file, file, [1, 2])
    assert file.ioctl(VepcIoctl.REMOVE_ALL, 0) == 1
    assert file.ioctl(VepcIoctl.REMOVE_ALL, 0) == 0
    assert w.usage == 5


def test_remove_all_of_several_instances_takes_children_first(open_vepc):
    w, home = open_vepc()
    other = w.driver.open_vepc()
    for file in (home, other):
        fill(w, file, 3)
    enclave_across(0, home, other, [0, 1])
    assert [file.ioctl(VepcIoctl.REMOVE_ALL, 0) for file in (home, other, home)] == [1, 0, 0]


def test_remove_all_with_a_thread_inside_is_ebusy_at_once(open_vepc):
    w, file = open_vepc()
    fill(w, file, 4)
    first, second = enclave_across(3, file, file, [0, 1])
    first.active = True
    with pytest.raises(Refused) as refused:
        file.ioctl(VepcIoctl.REMOVE_ALL, 0)
    assert refused.value.errno == errno.EBUSY
    assert 1 in file.epcm.pages, "nothing behind it was tried"
    first.active = False
    assert second.secs is not None
    assert file.ioctl(VepcIoctl.REMOVE_ALL, 0) == 0


def test_close_frees_an_secs_behind_its_children(open_vepc):
    """VEPC-05: the second pass of the same close."""
    w, file = open_vepc()
    fill(w, file, 3)
    enclave_across(0, file, file, [1, 2])
    file.release()
    assert (w.usage, w.driver.zombies) == (0, [])


@EVERY
def test_an_secs_with_children_elsewhere_is_a_zombie_until_a_later_close(open_vepc, policy):
    """VEPC-05, B-84: it stays charged, and keeps its group, until the other instance closes."""
    w, home = open_vepc(policy=policy)
    other, third = w.driver.open_vepc(), w.driver.open_vepc()
    for file in (home, other):
        fill(w, file, 3)
    enclave_across(0, home, other, [1])
    home.release()
    assert (w.usage, w.driver.zombies) == (4, [home])
    check(w.machine)
    third.release()
    assert w.usage == 4, "its child is still there"
    other.release()
    assert (w.usage, w.driver.zombies) == (0, [])
    assert not w.machine.vepcs
    check(w.machine)


def test_two_zombies_go_with_one_close(open_vepc):
    w, first = open_vepc()
    second, children = w.driver.open_vepc(), w.driver.open_vepc()
    for file in (first, second, children):
        fill(w, file, 2)
    enclave_across(0, first, children, [0])
    enclave_across(1, second, children, [1])
    first.release()
    second.release()
    assert (w.usage, len(w.driver.zombies)) == (4, 2)
    children.release()
    assert (w.usage, w.driver.zombies) == (0, [])
    check(w.machine)


def test_a_touch_charges_whoever_touches(open_vepc):
    """VEPC-03: two processes share an instance; each pays for what it was the first to touch."""
    w, file = open_vepc()
    other = Caller(w.machine.groups.mkdir("/other"))
    fill(w, file, 2)
    assert file.fault(2, other) is Fault.RESIDENT
    assert file.fault(0, other) is Fault.RESIDENT
    assert (w.usage, w.machine.usage(other.group) // 4096) == (2, 1)


def test_disabling_enclaves_leaves_guests_alone(open_vepc):
    """VEPC-03: v5's last resort takes enclaves, never a guest's pages."""
    w, file = open_vepc(policy="v5")
    fill(w, file, 10)
    enclave = w.build(4)
    w.limit(3)
    w.machine.settle()
    assert enclave.disabled
    assert len(file.guest.pages) == 10
    assert fill(w, file, 10) == [Fault.RESIDENT] * 10
