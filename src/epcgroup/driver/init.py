"""ENCLAVE_INIT (spec 6.5): check the certificate, EINIT, and the enclave lives."""

from __future__ import annotations

import errno
from collections.abc import Generator
from typing import TYPE_CHECKING

from epcgroup.driver.numbers import POINTER, SIGSTRUCT_SIZE
from epcgroup.driver.refuse import awaited, copy_in, require
from epcgroup.driver.seams import UserMemory
from epcgroup.epc import Caller
from epcgroup.sgx.layouts import SigStruct
from epcgroup.sgx.leaves import einit
from epcgroup.sgx.platform import Platform

if TYPE_CHECKING:
    from epcgroup.driver.file import EnclaveFile

_VENDORS = (0, 0x8086)


def init(file: EnclaveFile, arg: int, mem: UserMemory, _caller: Caller) -> Generator[None, None, int]:
    require(file.created and not file.initialised, errno.EINVAL, "not created yet, or already initialised")
    require(not file.disabled, errno.ENOMEM, "the enclave has lost its memory")
    (pointer,) = POINTER.unpack(copy_in(mem, arg, POINTER.size))
    yield from awaited(mem, pointer, SIGSTRUCT_SIZE)
    raw = copy_in(mem, pointer, SIGSTRUCT_SIZE)
    sig = SigStruct.unpack(raw)
    require(sig.vendor in _VENDORS, errno.EINVAL, f"SIGSTRUCT vendor {sig.vendor:#x} is neither 0 nor 0x8086")
    denied = file.attributes & ~file.attributes_mask
    require(not denied, errno.EACCES, f"attributes {denied:#x} need the PROVISION ioctl or are never granted")
    _check_platform(sig, file.driver.platform)
    error = einit(file.state, raw)
    if error:
        file.driver.log(f"enclave {file.enclave.id}: EINIT refused: {error.name}")
    require(not error, errno.EPERM, f"EINIT: {error.name}")
    file.driver.machine.initialise(file.enclave)
    return 0


def _check_platform(sig: SigStruct, platform: Platform) -> None:
    """Fields that the certificate insists on and this processor cannot have."""
    for name, value in (
        ("attributes", sig.attributes & sig.attributes_mask & ~platform.attributes),
        ("MISCSELECT", sig.miscselect & sig.misc_mask & ~platform.miscselect),
        ("XFRM", sig.xfrm & sig.xfrm_mask & ~platform.xfrm),
    ):
        require(not value, errno.EINVAL, f"SIGSTRUCT insists on {name} {value:#x}, unknown to this processor")
