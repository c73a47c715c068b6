"""ENCLS leaves: what hardware accepts, and with which code it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from epcgroup.sgx import leaves
from epcgroup.sgx.epcm import BLOCKED, allows, describe, hidden, page_type
from epcgroup.sgx.layouts import Attribute, PageType, SgxError, SigStruct, Tcs
from epcgroup.sgx.leaves import GeneralProtection, PageFault
from epcgroup.sgx.platform import Platform
from epcgroup.sgx.sign import sign


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"size_bytes": 0x30000}, "size"),
        ({"size_bytes": 0x1000}, "size"),
        ({"size_bytes": 1 << 48, "base": 0}, "size"),
        ({"base": 0x110000}, "not aligned"),
        ({"attributes": 4 | 8}, "attributes"),
        ({"attributes": 5}, "attributes"),
        ({"xfrm": 1}, "XFRM"),
        ({"xfrm": 0x203}, "XFRM"),
        ({"miscselect": 2}, "MISCSELECT"),
        ({"ssa_frame_size": 0}, "SSAFRAMESIZE"),
        ({"config_svn": 1}, "CONFIGID without KSS"),
    ],
)
def test_ecreate_refuses_what_the_processor_cannot_do(secs, change, why):
    with pytest.raises(GeneralProtection, match=why):
        leaves.ecreate(replace(secs, **change).pack(), 1, Platform())


def test_ecreate_refuses_reserved_bytes(secs):
    raw = bytearray(secs.pack())
    raw[4095] = 1
    with pytest.raises(GeneralProtection, match="reserved"):
        leaves.ecreate(bytes(raw), 1, Platform())


def test_ecreate_accepts_base_zero_and_a_terabyte(secs):
    state = leaves.ecreate(replace(secs, base=0, size_bytes=1 << 40).pack(), 1, Platform())
    assert state.contains(0x10000)


def test_identity_fields_of_the_image_are_not_taken_over(secs):
    state = leaves.ecreate(
        replace(secs, mrenclave=b"x" * 32, mrsigner=b"y" * 32, isv_svn=7).pack(), 1, Platform()
    )
    assert (state.secs.mrenclave, state.secs.mrsigner, state.secs.isv_svn) == (bytes(32), bytes(32), 0)


@pytest.mark.parametrize(
    ("tcs", "why"),
    [
        (Tcs(flags=2), "FLAGS"),
        (Tcs(flags=4), "FLAGS"),
        (Tcs(ossa=0x10), "aligned"),
        (Tcs(ofs_base=8), "aligned"),
    ],
)
def test_eadd_refuses_a_bad_tcs(build, tcs, why):
    state, _ = build(initialise=False)
    with pytest.raises(GeneralProtection, match=why):
        leaves.eadd(state, 20, 0x100, tcs.pack())


def test_eadd_clears_what_of_a_tcs_is_the_processors(build):
    """A loader that leaves DBGOPTIN or CSSA of an old run in its image loads all the same."""
    state, _ = build(initialise=False)
    image = Tcs(state=1, flags=1, ossa=0x4000, cssa=3, nssa=2, aep=5)
    held = leaves.eadd(state, 20, 0x100, image.pack())
    assert Tcs.unpack(held) == Tcs(ossa=0x4000, nssa=2)


def test_eadd_refuses_reserved_bytes_in_a_tcs(build):
    state, _ = build(initialise=False)
    with pytest.raises(GeneralProtection, match="reserved"):
        leaves.eadd(state, 20, 0x100, Tcs().pack()[:-1] + b"\1")


def test_a_page_is_added_once_inside_the_range_and_before_einit(build):
    state, _ = build(initialise=False)
    with pytest.raises(PageFault):
        leaves.eadd(state, 1, 0x203, bytes(4096))
    with pytest.raises(GeneralProtection):
        leaves.eadd(state, 32, 0x203, bytes(4096))
    ready, _ = build()
    with pytest.raises(GeneralProtection):
        leaves.eadd(ready, 20, 0x203, bytes(4096))
    with pytest.raises(GeneralProtection):
        leaves.eextend(ready, 1, bytes(4096))


@pytest.fixture
def unready(build, secs):
    """An enclave before EINIT and the certificate that fits it."""
    state, _ = build(initialise=False)
    return state, SigStruct(
        mrenclave=state.measurement.digest(),
        attributes=4,
        xfrm=secs.xfrm,
        miscselect=1,
        isv_prod_id=9,
        isv_svn=2,
    )


def test_einit_takes_the_identity_from_the_certificate(unready, signing_key):
    state, cert = unready
    assert leaves.einit(state, sign(cert, signing_key).pack()) is SgxError.SUCCESS
    assert state.initialised
    assert state.secs.mrenclave == cert.mrenclave
    assert state.secs.mrsigner == signing_key.mrsigner
    assert (state.secs.isv_prod_id, state.secs.isv_svn) == (9, 2)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"mrenclave": bytes(32)}, SgxError.INVALID_MEASUREMENT),
        ({"attributes": 6}, SgxError.INVALID_ATTRIBUTE),
        ({"xfrm": 3}, SgxError.INVALID_ATTRIBUTE),
        ({"miscselect": 0}, SgxError.INVALID_ATTRIBUTE),
        ({"isv_family_id": b"f" * 16}, SgxError.INVALID_SIG_STRUCT),
        ({"isv_ext_prod_id": b"f" * 16}, SgxError.INVALID_SIG_STRUCT),
    ],
)
def test_einit_refuses_a_certificate_for_another_enclave(unready, signing_key, change, code):
    state, cert = unready
    assert leaves.einit(state, sign(replace(cert, **change), signing_key).pack()) is code
    assert not state.initialised


@pytest.mark.parametrize(
    "change",
    [
        {"attributes": 6, "attributes_mask": ~2 & (1 << 64) - 1},
        {"xfrm": 3, "xfrm_mask": 3},
        {"miscselect": 0, "misc_mask": 0},
    ],
)
def test_masked_fields_of_the_certificate_are_not_compared(unready, signing_key, change):
    state, cert = unready
    assert leaves.einit(state, sign(replace(cert, **change), signing_key).pack()) is SgxError.SUCCESS


def test_a_forged_signature_is_code_eight(unready, signing_key):
    state, cert = unready
    raw = bytearray(sign(cert, signing_key).pack())
    raw[516] ^= 1
    assert leaves.einit(state, bytes(raw)) is SgxError.INVALID_SIGNATURE


def test_an_augmented_page_is_pending_and_out_of_reach(build):
    state, _ = build()
    leaves.eaug(state, 20)
    assert describe(state.epcm[20]) == "REG rw- PENDING"
    assert hidden(state.epcm[20])
    with pytest.raises(PageFault):
        leaves.eaug(state, 20)
    with pytest.raises(GeneralProtection):
        leaves.eaug(build(initialise=False)[0], 20)


def test_emodpr_only_takes_away(build):
    state, _ = build()
    assert leaves.emodpr(state, 1, 5) is SgxError.SUCCESS
    assert describe(state.epcm[1]) == "REG r-- PR"
    assert allows(state.epcm[1], "r")
    assert not allows(state.epcm[1], "w")
    with pytest.raises(GeneralProtection):
        leaves.emodpr(state, 1, 2)


def test_emodpr_and_emodt_refuse_pages_that_wait_for_eaccept(build):
    state, _ = build()
    leaves.eaug(state, 20)
    assert leaves.emodpr(state, 20, 1) is SgxError.PAGE_NOT_MODIFIABLE
    assert leaves.emodt(state, 20, PageType.TCS) is SgxError.PAGE_NOT_MODIFIABLE


def test_emodpr_faults_on_anything_but_a_regular_page(build):
    state, _ = build()
    for index in (0, 25):
        with pytest.raises(PageFault):
            leaves.emodpr(state, index, 1)


def test_emodt_makes_the_page_unusable_until_accepted(build):
    state, _ = build()
    assert leaves.emodt(state, 1, PageType.TRIM) is SgxError.SUCCESS
    assert describe(state.epcm[1]) == "TRIM --- MODIFIED"
    assert not any(allows(state.epcm[1], access) for access in "rwx")
    with pytest.raises(GeneralProtection):
        leaves.emodt(state, 2, PageType.SECS)


def test_a_blocked_page_admits_nobody_and_cannot_be_blocked_twice(build):
    state, _ = build()
    assert leaves.eblock(state, [1]) is SgxError.SUCCESS
    assert state.epcm[1] & BLOCKED
    assert not allows(state.epcm[1], "r")
    assert leaves.eblock(state, [1]) is SgxError.BLKSTATE
    assert leaves.eblock(state, [25]) is SgxError.PG_INVLD


def test_a_tcs_with_a_thread_inside_is_not_removed(build):
    state, _ = build()
    state.busy.add(0)
    assert leaves.eremove(state, 0) is SgxError.ENCLAVE_ACT
    state.busy.clear()
    assert leaves.eremove(state, 0) is SgxError.SUCCESS
    assert leaves.eremove(state, 0) is SgxError.SUCCESS


def test_the_secs_is_gone_while_it_is_out_and_comes_back_whole(build):
    state, _ = build(attributes=int(Attribute.MODE64BIT | Attribute.KSS), config_svn=4)
    state.isv_family_id = b"f" * 16
    before = state.secs
    page = state.take_secs()
    assert not state.secs_resident
    state.isv_family_id = bytes(16)
    state.put_secs(page)
    assert state.secs == before
    assert state.isv_family_id == b"f" * 16


def test_page_types_are_read_from_bits_15_to_8():
    assert page_type(0x403) == PageType.TRIM
