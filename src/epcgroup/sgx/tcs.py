"""What a TCS page must hold when it becomes one: by EADD, or by EMODT and EACCEPT.

EADD takes a page from outside and puts in order what is not the enclave's to
choose; EACCEPT finds a page of the enclave's own making, and refuses.
"""

from __future__ import annotations

from dataclasses import replace

from epcgroup.sgx.enclave import EnclaveState
from epcgroup.sgx.faults import GeneralProtection
from epcgroup.sgx.layouts import TCS_AEXNOTIFY, TCS_DBGOPTIN, Attribute, Tcs
from epcgroup.units import PAGE_SIZE


def added(state: EnclaveState, contents: bytes) -> bytes:
    """The page that EADD makes of ``contents``: STATE, CSSA, AEP and DBGOPTIN are cleared.

    Raises GeneralProtection.
    """
    tcs = _checked(state, contents)
    return replace(tcs, state=0, flags=tcs.flags & ~TCS_DBGOPTIN, cssa=0, aep=0).pack()


def check_new_tcs(state: EnclaveState, contents: bytes) -> None:
    """Raise GeneralProtection unless EACCEPT may make the page a TCS."""
    tcs = _checked(state, contents)
    if tcs.flags & TCS_DBGOPTIN or tcs.cssa >= tcs.nssa or tcs.aep or tcs.state:
        raise GeneralProtection("EACCEPT: the TCS is not in its first state: DBGOPTIN, CSSA, AEP or STATE")


def _checked(state: EnclaveState, contents: bytes) -> Tcs:
    tcs = Tcs.unpack(contents)
    if tcs.pack() != contents:
        raise GeneralProtection("reserved bytes of the TCS are not zero")
    notify = TCS_AEXNOTIFY if state.secs.attributes & Attribute.ASYNC_EXIT_NOTIFY else 0
    if tcs.flags & ~(TCS_DBGOPTIN | notify):
        raise GeneralProtection(f"TCS.FLAGS {tcs.flags:#x}")
    if (tcs.ossa | tcs.ofs_base | tcs.ogs_base) & (PAGE_SIZE - 1):
        raise GeneralProtection("OSSA, OFSBASE or OGSBASE of the TCS not page aligned")
    return tcs
