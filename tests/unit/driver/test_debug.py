"""A debugger sees debug enclaves, and only those (EDBGRD, EDBGWR)."""

from __future__ import annotations

import errno
import os

import pytest

from epcgroup.driver import debug
from epcgroup.errors import Busy, Refused
from epcgroup.sgx.layouts import Attribute, Tcs

DEBUG = int(Attribute.MODE64BIT | Attribute.DEBUG)
PAGE = 4096


@pytest.fixture
def enclave(world):
    w = world()
    data = os.urandom(8 * PAGE)
    return w, w.build(data=data, attributes=DEBUG), data


def refusal(call, *arguments) -> str:
    with pytest.raises(Refused) as refused:
        call(*arguments)
    return errno.errorcode[refused.value.errno or 0]


def test_a_debugger_reads_and_writes_evicted_pages_up_to_their_end(enclave):
    w, file, data = enclave
    w.evict(file)
    assert debug.read(file, file.base + 2 * PAGE - 8, 100, w.caller) == data[PAGE - 8 : PAGE]
    assert debug.write(file, file.base + 2 * PAGE - 2, b"abcd", w.caller) == 2
    assert debug.read(file, file.base + 2 * PAGE - 2, 2, w.caller) == b"ab"


def test_a_production_enclave_shows_nothing(world):
    w = world()
    file = w.build()
    assert refusal(debug.read, file, file.base + PAGE, 8, w.caller) == "EFAULT"
    assert refusal(debug.write, file, file.base + PAGE, b"x", w.caller) == "EFAULT"


def test_of_a_tcs_only_the_debug_opt_in_can_be_changed(enclave):
    w, file, _ = enclave
    assert debug.write(file, file.base + 8, (1).to_bytes(8, "little"), w.caller) == 8
    assert Tcs.unpack(debug.read(file, file.base, PAGE, w.caller)).flags == 1
    assert refusal(debug.write, file, file.base + 8, b"\2", w.caller) == "EIO"
    assert refusal(debug.write, file, file.base + 24, b"\1", w.caller) == "EIO"


def test_holes_and_pending_pages_are_errors(enclave):
    w, file, _ = enclave
    assert refusal(debug.read, file, file.base + 100 * PAGE, 8, w.caller) == "EFAULT"
    w.touch(file, 100)
    assert refusal(debug.read, file, file.base + 100 * PAGE, 8, w.caller) == "EIO"


def test_a_disabled_enclave_is_efault_and_a_full_limit_is_retried(enclave):
    w, file, _ = enclave
    w.evict(file)
    w.build()
    w.limit(w.usage)
    with pytest.raises(Busy):
        debug.read(file, file.base + PAGE, 8, w.caller)
    file.enclave.disabled = True
    assert refusal(debug.read, file, file.base + PAGE, 8, w.caller) == "EFAULT"
