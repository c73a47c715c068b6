"""EWB and ELDU: a page leaves the EPC only sealed, and comes back only once.

AES-128-GCM. The nonce is a version that no other eviction ever used; the same
version is kept in a VA slot inside the EPC, so a copy of an older eviction, good
in itself, meets a different version and fails (SDM: EWB, ELDU; spec 6.9). What
the PCMD says in clear (SECINFO flags, enclave) and the linear address are
authenticated with the contents, so a page cannot be loaded elsewhere or with
other permissions.

An all-zero page is sealed as an authenticated statement ("this is zero") with no
ciphertext: enclave heaps are mostly zeros, and 16 bytes of MAC cost a third of
the time and none of the memory. It tells the host that a page is zero; real
hardware does not. The emulator hides nothing from its host anyway.

This is the hot path (about 4 µs a page, most of it in the cipher): one AESGCM
object per key, one struct for the AAD, sealing in place where the library can.
The layout of nonce and AAD is public here because compiled code seals alike.
"""

from __future__ import annotations

import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from epcgroup.errors import BadInput
from epcgroup.sgx.layouts import SgxError
from epcgroup.units import PAGE_SIZE

MAC_SIZE = 16
SEALED_SIZE = PAGE_SIZE + MAC_SIZE
_ZERO_PAGE = bytes(PAGE_SIZE)
NONCE = struct.Struct("<Q4x")
AAD = struct.Struct("<QQQ?")  # SECINFO flags, linear address, enclave id, all zero


class MacCompareFail(ValueError):
    """ELDU code 9: old version, changed bytes, or another page's seal."""

    code = SgxError.MAC_COMPARE_FAIL


class PageSealer:
    """The paging key of one machine and its version counter."""

    __slots__ = ("_aead", "_encrypt_into", "_version", "key")

    def __init__(self, key: bytes, first_version: int = 1) -> None:
        """``key``: 16 bytes, fresh for each machine (versions start again with it)."""
        if len(key) != 16:
            raise BadInput(f"a paging key is 16 bytes, not {len(key)}")
        self.key = key
        self._aead = AESGCM(key)
        self._encrypt_into = getattr(self._aead, "encrypt_into", None)  # cryptography 47
        self._version = first_version - 1

    def versions(self, count: int) -> int:
        """Take ``count`` versions; the first of them."""
        first = self._version + 1
        self._version += count
        return first

    def ewb(self, contents: bytes, flags: int, addr: int, enclave_id: int) -> tuple[int, bytes]:
        """Seal 4096 bytes. Returns (version, ciphertext and MAC).

        The version goes into a VA slot, the rest may lie anywhere.
        """
        self._version = version = self._version + 1
        zero = contents == _ZERO_PAGE
        aad = AAD.pack(flags, addr, enclave_id, zero)
        return version, self._aead.encrypt(NONCE.pack(version), b"" if zero else contents, aad)

    def ewb_into(
        self, contents: bytes, flags: int, addr: int, enclave_id: int, out: memoryview
    ) -> tuple[int, bytes]:
        """As ``ewb``, with the sealed bytes in ``out`` (SEALED_SIZE); those of zeros are returned."""
        if contents == _ZERO_PAGE:
            return self.ewb(contents, flags, addr, enclave_id)
        self._version = version = self._version + 1
        nonce, aad = NONCE.pack(version), AAD.pack(flags, addr, enclave_id, False)
        if self._encrypt_into is not None:
            self._encrypt_into(nonce, contents, aad, out)
        else:
            out[:] = self._aead.encrypt(nonce, contents, aad)
        return version, b""

    def eldu(self, sealed: bytes | memoryview, version: int, flags: int, addr: int, enclave_id: int) -> bytes:
        """The contents again. Raises MacCompareFail if anything differs from ``ewb``."""
        zero = len(sealed) == MAC_SIZE
        aad = AAD.pack(flags, addr, enclave_id, zero)
        try:
            contents = self._aead.decrypt(NONCE.pack(version), sealed, aad)
        except (InvalidTag, ValueError) as error:  # ValueError: shorter than a MAC
            raise MacCompareFail(f"page {addr:#x} of enclave {enclave_id}: MAC does not match") from error
        return _ZERO_PAGE if zero else contents
