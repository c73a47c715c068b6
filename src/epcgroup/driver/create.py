"""ENCLAVE_CREATE (spec 6.5): a VA page, the SECS, ECREATE.

Whatever fails, everything is given back and CREATE may be tried again.
"""

from __future__ import annotations

import errno
from collections.abc import Generator
from typing import TYPE_CHECKING

from epcgroup.driver.numbers import POINTER
from epcgroup.driver.refuse import awaited, copy_in, require
from epcgroup.driver.seams import UserMemory
from epcgroup.epc import Caller
from epcgroup.errors import Refused
from epcgroup.sgx.layouts import Secs
from epcgroup.sgx.leaves import GeneralProtection, ecreate
from epcgroup.units import PAGE_SIZE

if TYPE_CHECKING:
    from epcgroup.driver.file import EnclaveFile


def create(file: EnclaveFile, arg: int, mem: UserMemory, caller: Caller) -> Generator[None, None, int]:
    require(not file.created, errno.EINVAL, "the enclave is already created")
    (src,) = POINTER.unpack(copy_in(mem, arg, POINTER.size))
    yield from awaited(mem, src, PAGE_SIZE)
    image = copy_in(mem, src, PAGE_SIZE)
    size = Secs.unpack(image).size_bytes
    require(size and not size & (size - 1), errno.EINVAL, f"SECS.SIZE {size:#x} is not a power of two")
    driver = file.driver
    enclave = driver.machine.create_enclave(caller, max(size // PAGE_SIZE, 1))
    try:
        state = ecreate(image, enclave.id, driver.platform)
    except GeneralProtection as fault:
        driver.machine.release(enclave)
        raise Refused(str(fault), errno.EIO) from fault
    file.bind(enclave, state)
    driver.adopt(file)
    return 0
