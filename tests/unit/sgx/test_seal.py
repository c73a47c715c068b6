"""An evicted page comes back whole, once, to its own place, or not at all."""

from __future__ import annotations

import os

import pytest

from epcgroup.errors import BadInput
from epcgroup.sgx.seal import MAC_SIZE, SEALED_SIZE, MacCompareFail, PageSealer

FLAGS, ADDR, EID = 0x203, 0x7000, 5


@pytest.fixture
def sealer():
    return PageSealer(os.urandom(16))


@pytest.fixture(params=["data", "zero"])
def page(request):
    return os.urandom(4096) if request.param == "data" else bytes(4096)


def test_contents_survive(sealer, page):
    version, sealed = sealer.ewb(page, FLAGS, ADDR, EID)
    assert sealer.eldu(sealed, version, FLAGS, ADDR, EID) == page


def test_plaintext_does_not_leave(sealer):
    _, sealed = sealer.ewb(b"secret!!" * 512, FLAGS, ADDR, EID)
    assert len(sealed) == SEALED_SIZE
    assert b"secret" not in sealed


def test_the_same_page_never_seals_to_the_same_bytes(sealer, page):
    (first, one), (second, two) = (sealer.ewb(page, FLAGS, ADDR, EID) for _ in range(2))
    assert first != second
    assert one != two


@pytest.mark.parametrize(
    "change", [{"flags": 0x207}, {"addr": ADDR + 4096}, {"enclave_id": EID + 1}, {"version": 99}]
)
def test_a_page_cannot_be_loaded_as_another(sealer, page, change):
    version, sealed = sealer.ewb(page, FLAGS, ADDR, EID)
    with pytest.raises(MacCompareFail):
        sealer.eldu(
            sealed, **({"version": version, "flags": FLAGS, "addr": ADDR, "enclave_id": EID} | change)
        )


def test_an_older_copy_meets_a_newer_version(sealer, page):
    _, old = sealer.ewb(page, FLAGS, ADDR, EID)
    version, _ = sealer.ewb(page, FLAGS, ADDR, EID)
    with pytest.raises(MacCompareFail):
        sealer.eldu(old, version, FLAGS, ADDR, EID)


@pytest.mark.parametrize("at", [0, 2000, 4095, 4096, -1])
def test_any_flipped_bit_is_found(sealer, at):
    version, sealed = sealer.ewb(os.urandom(4096), FLAGS, ADDR, EID)
    bad = bytearray(sealed)
    bad[at] ^= 0x40
    with pytest.raises(MacCompareFail):
        sealer.eldu(bytes(bad), version, FLAGS, ADDR, EID)


def test_data_cannot_be_passed_off_as_a_zero_page(sealer):
    version, sealed = sealer.ewb(os.urandom(4096), FLAGS, ADDR, EID)
    for forged in (sealed[-MAC_SIZE:], b"", sealed[:5], bytes(MAC_SIZE)):
        with pytest.raises(MacCompareFail):
            sealer.eldu(forged, version, FLAGS, ADDR, EID)


def test_a_zero_page_takes_only_its_mac(sealer):
    assert len(sealer.ewb(bytes(4096), FLAGS, ADDR, EID)[1]) == MAC_SIZE


def test_a_key_of_the_wrong_length_is_refused():
    with pytest.raises(BadInput, match="16 bytes, not 15"):
        PageSealer(bytes(15))
