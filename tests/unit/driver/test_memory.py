"""Leaves reach evicted and missing pages as a fault would bring them."""

from __future__ import annotations

import os

import pytest

from epcgroup.driver import BusError
from epcgroup.errors import Busy
from epcgroup.sgx import thread
from epcgroup.sgx.faults import PageFault
from epcgroup.sgx.layouts import Tcs
from epcgroup.sgx.thread import Registers

PAGE = 4096


@pytest.fixture
def enclave(world):
    w = world()
    data = os.urandom(8 * PAGE)
    file = w.build(data=data)
    return w, file, w.driver.memory(file, w.caller), data


def test_operands_on_evicted_pages_are_loaded(enclave):
    w, file, memory, data = enclave
    w.evict(file)
    assert memory.read(file.base + 2 * PAGE - 8, 16) == data[PAGE - 8 : PAGE + 8]
    memory.write(file.base + 2 * PAGE - 2, b"abcd")
    assert (
        memory.read(file.base + 2 * PAGE - 4, 8)
        == data[PAGE - 4 : PAGE - 2] + b"abcd" + data[PAGE + 2 : PAGE + 4]
    )


def test_a_hole_is_filled_and_then_faults_as_pending(enclave):
    _, file, memory, _ = enclave
    with pytest.raises(PageFault) as fault:
        memory.read(file.base + 100 * PAGE + 64, 8)
    assert (fault.value.addr, fault.value.code) == (file.base + 100 * PAGE + 64, 0x8005)


def test_a_write_that_cannot_end_does_not_begin(enclave):
    w, file, memory, data = enclave
    with pytest.raises(PageFault):
        memory.write(file.base + 9 * PAGE - 4, bytes(8))
    assert w.frames.read(file.enclave.id, 8, PAGE - 4, 4) == data[-4:]


def test_without_room_the_instruction_is_to_be_repeated(enclave):
    w, file, memory, data = enclave
    w.evict(file)
    w.build()
    w.limit(w.usage)
    with pytest.raises(Busy):
        memory.read(file.base + PAGE, 8)
    w.machine.settle()
    assert memory.read(file.base + PAGE, 8) == data[:8]


def test_a_page_that_is_lost_is_a_bus_error(enclave):
    w, file, memory, _ = enclave
    w.evict(file)
    w.driver.pager.store.pages(file.enclave.id).clear()
    with pytest.raises(BusError):
        memory.read(file.base + PAGE, 8)


def test_a_threads_state_survives_the_eviction_of_its_tcs_and_ssa(enclave):
    w, file, memory, _ = enclave
    regs = Registers(rbx=file.base, rcx=0x500, rip=0x400, rsp=0x7000)
    xstate = bytearray(832)
    xstate[512] = 7
    xstate[160:176] = b"in the enclave!!"
    entry = thread.eenter(file.state, memory, regs)
    w.evict(file)
    regs.rip, regs.r15 = file.base + 0x123, 99
    host = thread.asynchronous_exit(file.state, memory, regs, bytes(xstate), entry, vector=3)
    w.evict(file)
    _, inner = thread.eresume(file.state, memory, regs, host)
    assert (regs.rip, regs.r15, inner[160:176]) == (file.base + 0x123, 99, b"in the enclave!!")
    assert Tcs.unpack(memory.tcs_read(file.base)).cssa == 0
