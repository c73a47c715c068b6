"""ENCLS: what the driver's leaves do to an enclave's state (spec 6.9, SDM).

Each function is one leaf. It checks what hardware checks, changes EPCM words,
SECS and measurement, and returns a code or raises a fault. Contents move
elsewhere: the caller holds the bytes.

Epochs are not modelled. ETRACK exists so that EWB can know that no processor
still holds a translation of a blocked page. Here blocking a page takes it out of
every address space before it returns, so an epoch that ends right after EBLOCK
is always complete; NOT_TRACKED and PREV_TRK_INCMPL cannot happen.
"""

from __future__ import annotations

from collections.abc import Sequence

from epcgroup.sgx import sign, tcs
from epcgroup.sgx.enclave import EnclaveState
from epcgroup.sgx.epcm import BLOCKED, page_type
from epcgroup.sgx.faults import EPCM_VIOLATION, GeneralProtection, LeafFault, PageFault, Result
from epcgroup.sgx.layouts import (
    MODIFIED,
    PENDING,
    PR,
    PROT_MASK,
    TYPE_MASK,
    TYPE_SHIFT,
    XFRM_LEGACY,
    Attribute,
    PageType,
    R,
    Secs,
    SgxError,
    SigStruct,
    W,
)
from epcgroup.sgx.platform import Platform
from epcgroup.units import PAGE_SIZE

__all__ = [
    "GeneralProtection",
    "LeafFault",
    "PageFault",
    "Result",
    "eadd",
    "eaug",
    "eblock",
    "ecreate",
    "eextend",
    "einit",
    "emodpr",
    "emodt",
    "eremove",
]

_SUCCESS = SgxError.SUCCESS  # for EBLOCK, which every eviction does: to look it up costs as much as the rest


def _require(condition: object, why: str) -> None:
    if not condition:
        raise GeneralProtection(why)


def ecreate(image: bytes, eid: int, platform: Platform) -> EnclaveState:
    """Start an enclave from a 4096-byte SECS image.

    Raises GeneralProtection when a field is not one this processor accepts.
    """
    secs = Secs.unpack(image)
    _require(secs.pack() == image, "ECREATE: reserved bytes of the SECS are not zero")
    attributes, size = secs.attributes, secs.size_bytes
    _require(not attributes & ~platform.attributes, f"ECREATE: attributes {attributes:#x} not supported")
    limit = platform.max_size_64 if attributes & Attribute.MODE64BIT else platform.max_size_32
    _require(2 * PAGE_SIZE <= size <= limit and not size & (size - 1), f"ECREATE: size {size:#x}")
    _require(not secs.base & (size - 1), f"ECREATE: base {secs.base:#x} not aligned to size {size:#x}")
    _require(secs.xfrm & XFRM_LEGACY == XFRM_LEGACY, "ECREATE: XFRM without x87 and SSE")
    _require(not secs.xfrm & ~platform.xfrm, f"ECREATE: XFRM {secs.xfrm:#x} not supported")
    _require(not secs.miscselect & ~platform.miscselect, f"ECREATE: MISCSELECT {secs.miscselect:#x}")
    least = platform.min_ssa_pages(secs.xfrm, secs.miscselect)
    _require(secs.ssa_frame_size >= least, f"ECREATE: SSAFRAMESIZE below {least} pages")
    if not attributes & Attribute.KSS:
        _require(not any(secs.config_id) and not secs.config_svn, "ECREATE: CONFIGID without KSS")
    state = EnclaveState(secs, eid, platform)
    state.change_secs(mrenclave=bytes(32), mrsigner=bytes(32), isv_prod_id=0, isv_svn=0)
    return state


def eadd(state: EnclaveState, index: int, flags: int, contents: bytes) -> bytes:
    """Add a page with SECINFO ``flags``; its EADD record is measured.

    ``contents`` must have been checked to be 4096 bytes. Returns what the page
    holds then, which differs for a TCS.
    """
    _require(not state.initialised, "EADD: enclave is initialised")
    _require(0 <= index < state.size // PAGE_SIZE, "EADD: page lies outside ELRANGE")
    if index in state.epcm:
        raise PageFault(state.addr(index), EPCM_VIOLATION)
    kind = page_type(flags)
    _require(kind in (PageType.REG, PageType.TCS), f"EADD: page type {kind}")
    if kind == PageType.TCS:
        flags &= ~PROT_MASK
        contents = tcs.added(state, contents)
    else:
        _require(flags & (R | W) != W, "EADD: W without R")
    state.epcm[index] = flags & (TYPE_MASK | PROT_MASK)
    state.measurement.eadd(index * PAGE_SIZE, flags)
    return contents


def eextend(state: EnclaveState, index: int, contents: bytes) -> None:
    """Measure the whole page (sixteen EEXTENDs)."""
    _require(not state.initialised, "EEXTEND: enclave is initialised")
    if index not in state.epcm:
        raise PageFault(state.addr(index), EPCM_VIOLATION)
    state.measurement.eextend_page(index * PAGE_SIZE, contents)


def einit(state: EnclaveState, sigstruct: bytes) -> SgxError:
    """Check the certificate against what was built; on success set INIT."""
    _require(not state.initialised, "EINIT: already initialised")
    error = sign.verify(sigstruct)
    if error:
        return error
    sig = SigStruct.unpack(sigstruct)
    secs = state.secs
    if not secs.attributes & Attribute.KSS and (any(sig.isv_family_id) or any(sig.isv_ext_prod_id)):
        return SgxError.INVALID_SIG_STRUCT
    mrenclave = state.measurement.digest()
    if mrenclave != sig.mrenclave:
        return SgxError.INVALID_MEASUREMENT
    if (
        (secs.attributes ^ sig.attributes) & sig.attributes_mask
        or (secs.xfrm ^ sig.xfrm) & sig.xfrm_mask
        or (secs.miscselect ^ sig.miscselect) & sig.misc_mask
    ):
        return SgxError.INVALID_ATTRIBUTE
    state.isv_family_id, state.isv_ext_prod_id = sig.isv_family_id, sig.isv_ext_prod_id
    state.change_secs(
        attributes=secs.attributes | int(Attribute.INIT),
        mrenclave=mrenclave,
        mrsigner=sign.mrsigner(sig.modulus),
        isv_prod_id=sig.isv_prod_id,
        isv_svn=sig.isv_svn,
    )
    return SgxError.SUCCESS


def eaug(state: EnclaveState, index: int) -> None:
    """Add a zero page to a running enclave; PENDING until EACCEPT."""
    _require(state.initialised, "EAUG: enclave is not initialised")
    _require(0 <= index < state.size // PAGE_SIZE, "EAUG: page lies outside ELRANGE")
    if index in state.epcm:
        raise PageFault(state.addr(index), EPCM_VIOLATION)
    state.epcm[index] = PageType.REG << TYPE_SHIFT | PENDING | R | W


def emodpr(state: EnclaveState, index: int, prot: int) -> SgxError:
    """Take permissions away; PR until EACCEPT.

    Faults (#PF) on anything that is not a regular page, which is how the driver
    learns that the enclave has accepted a trimmed page.
    """
    _require(prot & (R | W) != W, "EMODPR: W without R")
    word = state.epcm.get(index)
    if word is None:
        raise PageFault(state.addr(index), EPCM_VIOLATION)
    if word & (PENDING | MODIFIED):
        return SgxError.PAGE_NOT_MODIFIABLE
    if page_type(word) != PageType.REG:
        raise PageFault(state.addr(index), EPCM_VIOLATION)
    state.epcm[index] = (word & ~PROT_MASK) | (word & prot) | PR
    return SgxError.SUCCESS


def emodt(state: EnclaveState, index: int, new_type: int) -> SgxError:
    """Turn a page into TCS or TRIM; MODIFIED, without permissions, until EACCEPT."""
    _require(new_type in (PageType.TCS, PageType.TRIM), f"EMODT: page type {new_type}")
    word = state.epcm.get(index)
    if word is None or page_type(word) not in (PageType.REG, PageType.TCS):
        raise PageFault(state.addr(index), EPCM_VIOLATION)
    if word & (PENDING | MODIFIED):
        return SgxError.PAGE_NOT_MODIFIABLE
    state.epcm[index] = new_type << TYPE_SHIFT | MODIFIED
    return SgxError.SUCCESS


def eremove(state: EnclaveState, index: int) -> SgxError:
    """Free a page's EPCM entry; harmless when it has none."""
    if index in state.busy:
        return SgxError.ENCLAVE_ACT
    state.epcm.pop(index, None)
    return SgxError.SUCCESS


def eblock(state: EnclaveState, indices: Sequence[int]) -> SgxError:
    """No new translation of these pages may be made from now on; the first that fails ends it."""
    epcm = state.epcm
    for index in indices:
        word = epcm.get(index)
        if word is None:
            return SgxError.PG_INVLD
        if word & BLOCKED:
            return SgxError.BLKSTATE
        epcm[index] = word | BLOCKED
    return _SUCCESS
