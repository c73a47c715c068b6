"""A SIGSTRUCT verifies exactly if nothing of it was changed."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from epcgroup.errors import BadInput
from epcgroup.sgx.layouts import SgxError, SigStruct
from epcgroup.sgx.sign import SigningKey, mrsigner, sign, verify


@pytest.fixture(scope="module")
def signed(signing_key):
    return sign(SigStruct(date=0x20240131, mrenclave=b"h" * 32), signing_key)


def test_a_signed_certificate_verifies(signed):
    assert verify(signed.pack()) is SgxError.SUCCESS


def test_the_signature_is_pkcs1_as_an_independent_library_reads_it(signed):
    raw = signed.pack()
    public = rsa.RSAPublicNumbers(3, int.from_bytes(signed.modulus, "little")).public_key()
    public.verify(signed.signature[::-1], raw[:128] + raw[900:1028], padding.PKCS1v15(), hashes.SHA256())


def test_q1_and_q2_are_the_quotients_of_cubing(signed):
    n, s = (int.from_bytes(part, "little") for part in (signed.modulus, signed.signature))
    assert int.from_bytes(signed.q1, "little") == s * s // n
    assert int.from_bytes(signed.q2, "little") == s * (s * s % n) // n


@pytest.mark.parametrize("at", [20, 40, 128, 300, 516, 900, 928, 960, 1024, 1027, 1040, 1424])
def test_a_changed_byte_breaks_the_signature(signed, at):
    raw = bytearray(signed.pack())
    raw[at] ^= 1
    # Byte 20 is the date, 128 the modulus: all of these are signed or enter the check.
    assert verify(bytes(raw)) is SgxError.INVALID_SIGNATURE


@pytest.mark.parametrize("at", [0, 8, 16, 24, 32, 44, 127, 512, 910, 995, 1039])
def test_a_wrong_constant_or_reserved_byte_is_an_invalid_structure(signed, at):
    raw = bytearray(signed.pack())
    raw[at] ^= 1
    assert verify(bytes(raw)) is SgxError.INVALID_SIG_STRUCT


def test_mrsigner_is_the_hash_of_the_modulus_as_stored(signed, signing_key):
    assert signing_key.mrsigner == mrsigner(signed.modulus) == hashlib.sha256(signed.pack()[128:512]).digest()


def test_a_pem_key_with_another_exponent_is_refused():
    key = rsa.generate_private_key(public_exponent=65537, key_size=3072)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(BadInput, match="exponent is 65537"):
        SigningKey.from_pem(pem)
