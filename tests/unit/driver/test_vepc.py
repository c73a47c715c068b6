"""/dev/sgx_vepc: charged to whoever touches, never reclaimed, freed by close (spec 6.6)."""

from __future__ import annotations

import errno

import pytest

from epcgroup.driver import Fault, VepcIoctl
from epcgroup.driver.numbers import MAP_PRIVATE, MAP_SHARED, MAP_SHARED_VALIDATE
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
