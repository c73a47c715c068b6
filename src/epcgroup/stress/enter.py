"""Entering the enclave through the vDSO, from any thread.

``__vdso_sgx_enter_enclave`` executes EENTER, resumes after interrupts, and turns
faults inside the enclave (which the kernel would otherwise answer with a
signal) into a result: run.function then says with which leaf it came out, and
vector, code and address describe the fault. ctypes gives the GIL up during the
call, so threads are in the enclave at the same time.
"""

from __future__ import annotations

import ctypes

from epcgroup.errors import Refused
from epcgroup.sgx.layouts import Enclu
from epcgroup.stress import vdso
from epcgroup.stress.code import Call
from epcgroup.stress.device import Enclave
from epcgroup.units import PAGE_SIZE

_ENTER = ctypes.CFUNCTYPE(
    ctypes.c_int,
    *(ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint32),
    *(ctypes.c_uint64, ctypes.c_uint64, ctypes.c_void_p),
)
_VECTORS = {0: "#DE", 1: "#DB", 3: "#BP", 6: "#UD", 13: "#GP", 14: "#PF", 16: "#MF", 17: "#AC", 19: "#XM"}
_PF, _PF_SGX, _PF_WRITE, _PF_FETCH = 14, 1 << 15, 1 << 1, 1 << 4


class Run(ctypes.Structure):
    """struct sgx_enclave_run: 256 bytes, reserved ones zero."""

    _fields_ = (
        ("tcs", ctypes.c_uint64),
        ("function", ctypes.c_uint32),
        ("vector", ctypes.c_uint16),
        ("error_code", ctypes.c_uint16),
        ("address", ctypes.c_uint64),
        ("user_handler", ctypes.c_uint64),
        ("user_data", ctypes.c_uint64),
        ("reserved", ctypes.c_uint8 * 216),
    )
    tcs: int
    function: int
    vector: int
    error_code: int
    address: int


class EnclaveLost(Refused):
    """The enclave faulted: a page was not to be had, or the enclave is disabled."""


class Door:
    """One thread's way into the enclave: a TCS of its own."""

    def __init__(self, enclave: Enclave, thread: int) -> None:
        """Raises MissingCapability when the vDSO lacks the entry function."""
        self._enclave = enclave
        self._enter = _ENTER(vdso.find(vdso.SGX_SYMBOL))
        self._run = Run(tcs=enclave.tcs(thread))

    def call(self, block: Call) -> None:
        """One ecall. Raises EnclaveLost when it did not come out by EEXIT."""
        run = self._run
        result = self._enter(ctypes.addressof(block), 0, 0, Enclu.EENTER, 0, 0, ctypes.addressof(run))
        if result:
            raise EnclaveLost(f"the vDSO refused to enter the enclave (returned {result})", -result)
        if run.function != Enclu.EEXIT:
            raise EnclaveLost(explain(run, self._enclave.base, self._enclave.image.heap))


def explain(run: Run, base: int, heap: int) -> str:
    """The fault in ``run`` in words; ``heap`` is the heap's offset from ``base``."""
    leaf = "EENTER" if run.function == Enclu.EENTER else "the enclave's code"
    vector = _VECTORS.get(run.vector, f"vector {run.vector}")
    place = f"address {run.address:#x}"
    page = (run.address - base - heap) // PAGE_SIZE
    if page >= 0:
        place = f"heap page {page} ({place})"
    elif run.address >= base:
        place = f"page {(run.address - base) // PAGE_SIZE} of the enclave ({place})"
    text = f"{vector} in {leaf} at {place}, error code {run.error_code:#x}"
    if run.vector != _PF:
        return text
    access = "write" if run.error_code & _PF_WRITE else "fetch" if run.error_code & _PF_FETCH else "read"
    if run.error_code & _PF_SGX:
        return f"{text}: the EPCM forbids the {access}"
    return (
        f"{text}: the {access} got no page (SIGBUS): the enclave was disabled, "
        "the page did not verify, or there is no EPC left for it"
    )
