"""A debugger's view of an enclave: EDBGRD and EDBGWR (SDM; spec 5.4).

This is what ptrace and /proc/PID/mem see on enclave addresses: the real bytes of
a debug enclave, whatever its page permissions, and an error for any other. Of a
TCS a debugger may change one bit, DBGOPTIN.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from epcgroup.driver.refuse import require
from epcgroup.epc import Caller
from epcgroup.errors import Busy, Interrupted, LoadFailed, NoEpc, Refused
from epcgroup.sgx.epcm import page_type
from epcgroup.sgx.layouts import MODIFIED, PENDING, TCS_DBGOPTIN, PageType
from epcgroup.units import PAGE_SIZE

if TYPE_CHECKING:
    from epcgroup.driver.file import EnclaveFile

_TCS_FLAGS_AT, _WORD = 8, 8


def read(file: EnclaveFile, addr: int, length: int, caller: Caller) -> bytes:
    """Up to ``length`` bytes at ``addr``, to the end of the page at most.

    Raises Busy (run background work and repeat) or Refused: EFAULT for an
    enclave that may not be debugged, EIO for a page that waits for EACCEPT.
    """
    index, at = _resident(file, addr, caller)
    return file.driver.frames.read(file.enclave.id, index, at, min(length, PAGE_SIZE - at))


def write(file: EnclaveFile, addr: int, data: bytes, caller: Caller) -> int:
    """Store ``data``, to the end of the page at most; how many bytes. Raises as ``read``."""
    index, at = _resident(file, addr, caller)
    data = data[: PAGE_SIZE - at]
    frames, enclave = file.driver.frames, file.enclave.id
    if page_type(file.state.epcm[index]) == PageType.TCS:
        old = frames.read(enclave, index, _TCS_FLAGS_AT, _WORD)
        inside = at >= _TCS_FLAGS_AT and at + len(data) <= _TCS_FLAGS_AT + _WORD
        require(inside, errno.EIO, "of a TCS only FLAGS may be changed")
        new = bytearray(old)
        new[at - _TCS_FLAGS_AT : at - _TCS_FLAGS_AT + len(data)] = data
        changed = int.from_bytes(old, "little") ^ int.from_bytes(new, "little")
        require(not changed & ~TCS_DBGOPTIN, errno.EIO, "of TCS.FLAGS only DBGOPTIN may be changed")
    frames.write(enclave, index, at, data)
    return len(data)


def _resident(file: EnclaveFile, addr: int, caller: Caller) -> tuple[int, int]:
    """Page index and offset of ``addr``, the page resident and open to a debugger."""
    usable = file.created and file.debug and not file.disabled
    require(usable, errno.EFAULT, "the enclave may not be debugged")
    index, at = divmod(addr - file.base, PAGE_SIZE)
    try:
        file.driver.machine.fault(caller, file.enclave, index)
    except (Busy, NoEpc, Interrupted, LoadFailed):
        raise
    except Refused as error:
        raise Refused(f"no enclave page at {addr:#x}", errno.EFAULT) from error
    word = file.state.epcm[index]
    require(not word & (PENDING | MODIFIED), errno.EIO, f"page {index:#x} waits for EACCEPT")
    return index, at
