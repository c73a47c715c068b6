"""Page faults on enclave memory (spec 6.3, 6.4) and EPCM violations.

First the kernel's part: is the page there, may it be loaded or added. Then the
processor's: does the EPCM allow this access. A fault never waits and never
reclaims; "busy" means: run background work, let the program try again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from epcgroup.epc import Caller
from epcgroup.errors import Busy, Refused
from epcgroup.sgx import leaves
from epcgroup.sgx.epcm import allows
from epcgroup.sgx.faults import PF_U, epcm_code
from epcgroup.sgx.layouts import PROT_MASK
from epcgroup.units import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from epcgroup.driver.file import EnclaveFile

_ZERO_PAGE = bytes(PAGE_SIZE)


@dataclass(frozen=True, slots=True)
class Fault:
    """How a fault ended: one of RESIDENT, RETRY, SIGBUS (compare with ``is``), or
    an EPCM violation with its page-fault error ``code``."""

    name: str
    code: int = 0

    RESIDENT: ClassVar[Fault]
    RETRY: ClassVar[Fault]
    SIGBUS: ClassVar[Fault]


Fault.RESIDENT = _RESIDENT = Fault("RESIDENT")
Fault.RETRY = Fault("RETRY")
Fault.SIGBUS = Fault("SIGBUS", PF_U)
_VIOLATIONS = {access: Fault("EPCM", epcm_code(access)) for access in "rwx"}


def fault(file: EnclaveFile, addr: int, access: str, caller: Caller, vma_prot: int = 0) -> Fault:
    """A thread touched ``addr``; ``access`` is ``"r"``, ``"w"`` or ``"x"``.

    ``vma_prot`` are the R/W/X bits of the mapping, 0 when the caller has
    checked it. Whether the thread is inside the enclave is the caller's
    business: the EPCM binds only code inside.
    """
    outcome = make_resident(file, addr, caller, vma_prot)
    if outcome is not _RESIDENT:
        return outcome
    word = file.words[(addr - file.base) >> PAGE_SHIFT]
    return outcome if allows(word, access) else _VIOLATIONS[access]


def make_resident(file: EnclaveFile, addr: int, caller: Caller, vma_prot: int = 0) -> Fault:
    """Load the page, or add it if the processor has SGX2 and it never existed."""
    enclave = file.held
    if enclave is None or enclave.disabled:
        return _bus(file, "no enclave was created" if enclave is None else "the enclave lost its memory")
    index = (addr - file.base) >> PAGE_SHIFT
    if index in file.driver.spoilt and file is file.driver.victim:
        return Fault.SIGBUS
    most = file.maximum.get(index)
    if most is None:
        if not file.driver.platform.sgx2 or not 0 <= addr - file.base < file.size:
            return _bus(file, f"the enclave has no page {index:#x}")
        return _augment(file, index, caller)
    if vma_prot & ~most:
        return _bus(file, f"page {index:#x} does not permit what its mapping does")
    try:
        file.driver.machine.fault(caller, enclave, index)
    except Busy:
        return Fault.RETRY
    except Refused as refused:
        return _bus(file, refused.strerror)
    return _RESIDENT


def _bus(file: EnclaveFile, why: str | None) -> Fault:
    """A SIGBUS, and what a log says of it."""
    file.refusal = why or ""
    return Fault.SIGBUS


def _augment(file: EnclaveFile, index: int, caller: Caller) -> Fault:
    """EAUG: a zero page that the enclave must accept before it can use it."""
    if not file.initialised:
        return _bus(file, f"page {index:#x} was never added, and the enclave is not initialised")
    machine, enclave = file.driver.machine, file.enclave
    try:
        machine.augment(caller, enclave, index)
    except Busy:
        return Fault.RETRY
    except Refused as refused:
        return _bus(file, refused.strerror)
    try:
        leaves.eaug(file.state, index)
    except leaves.LeafFault:
        machine.cancel_page(enclave, index)
        return _bus(file, f"page {index:#x} cannot be added there")
    file.set_maximum(index, PROT_MASK)
    file.driver.frames.put(enclave.id, index, _ZERO_PAGE, file.state.epcm[index])
    return Fault.RESIDENT
