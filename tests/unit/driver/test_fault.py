"""Page faults: load, add, refuse; and what the EPCM forbids (spec 6.3, 6.4)."""

from __future__ import annotations

import errno
import os

import pytest

from epcgroup.driver import Fault, Ioctl


def test_an_evicted_page_comes_back_with_its_secs_and_exact_contents(world):
    w = world()
    data = os.urandom(8 * 4096)
    file = w.build(data=data)
    w.evict(file)
    assert (file.enclave.secs, w.usage, file.state.secs_resident) == (None, 1, False)
    for index in range(1, 9):
        assert w.touch(file, index) is Fault.RESIDENT
        assert w.frames.read(file.enclave.id, index, 0, 4096) == data[(index - 1) * 4096 : index * 4096]
    assert file.state.secs.base == file.base


def test_a_fault_over_the_limit_is_retried_and_succeeds_after_background_work(world):
    w = world()
    file = w.build()
    w.limit(w.usage)
    other = w.build()
    assert other.enclave.child_count
    outcomes = []
    for index in range(1, 9):
        while True:
            outcomes.append(w.touch(file, index))
            if outcomes[-1] is Fault.RESIDENT:
                break
            assert w.machine.step()
    assert Fault.RETRY in outcomes


def test_a_fault_with_nothing_left_to_take_is_a_sigbus(world):
    w = world()
    file = w.build()
    w.evict(file)
    w.limit(1)
    assert w.touch(file, 1) is Fault.SIGBUS


def test_a_disabled_enclave_is_a_sigbus_on_every_touch(world):
    w = world()
    file = w.build()
    file.enclave.disabled = True
    assert w.touch(file, 1) is Fault.SIGBUS
    assert w.touch(file, 500) is Fault.SIGBUS


def test_a_mapping_that_allows_more_than_the_page_is_a_sigbus(world):
    w = world()
    file = w.build()
    addr = file.base + 4096
    assert w.driver.fault(file, addr, "r", w.caller, vma_prot=3) is Fault.RESIDENT
    assert w.driver.fault(file, addr, "r", w.caller, vma_prot=7) is Fault.SIGBUS


@pytest.mark.parametrize(
    ("flags", "allowed"),
    [(0x203, "rw"), (0x205, "rx"), (0x201, "r"), (0x207, "rwx"), (0x200, ""), (0x100, "")],
)
def test_the_epcm_decides_with_exact_error_codes(world, flags, allowed):
    w = world()
    file = w.create()
    w.add(file, bytes(4096), 0, flags)
    codes = {"r": 0x8005, "w": 0x8007, "x": 0x8015}
    for access, code in codes.items():
        outcome = w.touch(file, 0, access)
        assert (outcome is Fault.RESIDENT) == (access in allowed)
        assert outcome.code == (0 if access in allowed else code)


def test_a_hole_gets_a_pending_page_that_cannot_be_used_before_eaccept(world):
    w = world()
    file = w.build()
    outcome = w.touch(file, 100, "w")
    assert (outcome.name, outcome.code) == ("EPCM", 0x8007)
    assert file.words[100] == 0x20B
    assert file.maximum[100] == 7
    assert w.frames.words[file.enclave.id, 100] == 0x20B


def test_a_hole_is_a_sigbus_without_sgx2_before_init_and_outside_the_range(world):
    w, old = world(), world(sgx2=False)
    assert old.touch(old.build(), 100) is Fault.SIGBUS
    assert w.touch(w.build(init=False), 100) is Fault.SIGBUS
    assert w.touch(w.build(), 1 << 20) is Fault.SIGBUS
    assert w.touch(w.build(), -1) is Fault.SIGBUS
    assert w.driver.fault(w.driver.open(), 0x1000, "r", w.caller) is Fault.SIGBUS


def test_adding_to_an_enclave_whose_secs_is_out_brings_the_secs_first(world):
    w = world()
    file = w.build()
    w.evict(file)
    assert w.touch(file, 100).code == 0x8005
    assert file.enclave.secs is not None


def test_a_hole_over_the_limit_is_retried_without_leaving_half_a_page(world):
    w = world()
    file = w.build()
    w.limit(w.usage)
    assert w.touch(file, 100) is Fault.RETRY
    assert 100 not in file.maximum
    assert 100 not in file.words
    w.machine.settle()
    assert w.touch(file, 100).code == 0x8005


def test_a_page_loaded_twice_is_loaded_once(world):
    w = world()
    file = w.build()
    w.evict(file)
    w.touch(file, 1)
    assert w.touch(file, 1) is Fault.RESIDENT
    assert file.enclave.counters.loaded == 2  # the SECS and the page


def test_permissions_and_states_survive_eviction(world):
    w = world()
    file = w.build()
    w.touch(file, 100)
    before = dict(file.words)
    assert w.ioctl(file, Ioctl.RESTRICT_PERMISSIONS, w.mem.put(_edmm(0x1000, 0x1000, 1))) == 0
    before[1] = 0x221
    w.evict(file)
    assert file.words == {}
    assert {i: file.word(i) for i in before} == before
    for index in before:
        w.touch(file, index)
    assert file.words == before


def test_a_load_without_memory_is_a_sigbus_and_one_line_and_costs_nothing(world, monkeypatch):
    """ENOMEM of the host: told with enclave, page and cause, and nothing is lost."""
    w = world()
    file = w.build(data=b"x" * 8 * 4096)
    w.evict(file)
    w.touch(file, 2)
    usage, log = w.usage, list(w.log)

    def no_memory(*_):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    with monkeypatch.context() as patch:
        patch.setattr(w.frames, "put", no_memory)
        assert w.touch(file, 1) is Fault.SIGBUS
    (line,) = w.log[len(log) :]
    assert line == (
        f"enclave {file.enclave.id}: page 0x1 cannot be loaded: its frame cannot be filled: "
        "Cannot allocate memory"
    )
    assert w.usage == usage
    assert w.touch(file, 1) is Fault.RESIDENT
    assert w.frames.read(file.enclave.id, 1, 0, 4096) == b"x" * 4096


def _edmm(*head: int) -> bytes:
    return b"".join(value.to_bytes(8, "little") for value in (*head, 0, 0))
