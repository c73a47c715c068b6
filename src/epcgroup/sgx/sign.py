"""SIGSTRUCT: signing an enclave, and what EINIT checks of a signature.

RSA-3072 with exponent 3, PKCS#1 v1.5, SHA-256 over bytes 0..127 and 900..1027
(spec 6.7). The signer also leaves two quotients, q1 and q2, so that hardware
can cube the signature without a division; they are checked like the rest.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from cryptography.hazmat.primitives.asymmetric import rsa

from epcgroup.errors import BadInput
from epcgroup.sgx.layouts import SgxError, SigStruct

KEY_BYTES = 384
EXPONENT = 3
# ASN.1 DigestInfo of SHA-256 (RFC 8017, 9.2), before the 32 bytes of the hash.
_DIGEST_INFO = bytes.fromhex("3031300d060960864801650304020105000420")


@dataclass(frozen=True, slots=True)
class SigningKey:
    """An RSA-3072 key with public exponent 3."""

    modulus: int
    private_exponent: int

    @classmethod
    def generate(cls) -> SigningKey:
        """A fresh key; takes a fraction of a second.

        Libraries no longer generate keys with exponent 3, so primes are drawn
        for the usual exponent until 3 is coprime to both p-1 and q-1.
        """
        while True:
            drawn = rsa.generate_private_key(public_exponent=65537, key_size=KEY_BYTES * 8)
            p, q = drawn.private_numbers().p, drawn.private_numbers().q
            if p % 3 == 2 and q % 3 == 2:
                return cls(p * q, pow(EXPONENT, -1, (p - 1) * (q - 1)))

    @classmethod
    def from_pem(cls, pem: bytes) -> SigningKey:
        """Read an RSA-3072 private key with exponent 3 from PEM.

        Raises BadInput for any other key.
        """
        from cryptography.hazmat.primitives import serialization  # 20 ms, which every start would pay

        key = serialization.load_pem_private_key(pem, password=None)
        if not isinstance(key, rsa.RSAPrivateKey) or key.key_size != KEY_BYTES * 8:
            raise BadInput("not an RSA-3072 private key")
        numbers = key.private_numbers()
        if numbers.public_numbers.e != EXPONENT:
            raise BadInput(f"RSA exponent is {numbers.public_numbers.e}; an enclave needs 3")
        return cls(numbers.public_numbers.n, numbers.d)

    @property
    def mrsigner(self) -> bytes:
        return mrsigner(self.modulus.to_bytes(KEY_BYTES, "little"))

    def cube_root(self, number: int) -> int:
        """The signature of ``number``: what gives it when cubed modulo the key."""
        return pow(number, self.private_exponent, self.modulus)


def mrsigner(modulus: bytes) -> bytes:
    """MRSIGNER: SHA-256 of the 384 modulus bytes as stored."""
    return hashlib.sha256(modulus).digest()


def sign(unsigned: SigStruct, key: SigningKey) -> SigStruct:
    """``unsigned`` with modulus, signature, q1 and q2 filled in."""
    n = key.modulus
    complete = replace(unsigned, modulus=_le(n), exponent=EXPONENT)
    s = key.cube_root(_padded_digest(complete))
    q1, q2 = _quotients(s, n)
    return replace(complete, signature=_le(s), q1=_le(q1), q2=_le(q2))


def verify(sigstruct: bytes) -> SgxError:
    """What EINIT says of the certificate alone: header, signature, quotients.

    INVALID_SIG_STRUCT when a constant or reserved byte is wrong,
    INVALID_SIGNATURE when the signature does not fit, else SUCCESS.
    """
    parsed = SigStruct.unpack(sigstruct)
    if (
        parsed.header1 != SigStruct.HEADER1
        or parsed.header2 != SigStruct.HEADER2
        or parsed.vendor not in (0, 0x8086)
        or parsed.exponent != EXPONENT
        or parsed.pack() != sigstruct
    ):
        return SgxError.INVALID_SIG_STRUCT
    n, s = int.from_bytes(parsed.modulus, "little"), int.from_bytes(parsed.signature, "little")
    if n < 1 << (KEY_BYTES * 8 - 1) or s >= n or pow(s, EXPONENT, n) != _padded_digest(parsed):
        return SgxError.INVALID_SIGNATURE
    if (parsed.q1, parsed.q2) != tuple(_le(q) for q in _quotients(s, n)):
        return SgxError.INVALID_SIGNATURE
    return SgxError.SUCCESS


def _quotients(s: int, n: int) -> tuple[int, int]:
    q1, r = divmod(s * s, n)
    return q1, s * r // n


def _padded_digest(sigstruct: SigStruct) -> int:
    """EMSA-PKCS1-v1_5 of the signed bytes, as a number."""
    raw = sigstruct.pack()
    info = _DIGEST_INFO + hashlib.sha256(raw[:128] + raw[900:1028]).digest()
    return int.from_bytes(b"\0\x01" + b"\xff" * (KEY_BYTES - 3 - len(info)) + b"\0" + info, "big")


def _le(number: int) -> bytes:
    return number.to_bytes(KEY_BYTES, "little")
