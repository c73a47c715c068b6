"""AES-128-GCM of libcrypto, for machine code: contexts that open or seal with one key.

One is kept for each user: to begin another page costs a new nonce, not a new key.
Importing raises MissingCapability where there is no libcrypto.
"""

from __future__ import annotations

import ctypes

from epcgroup.errors import MissingCapability

try:
    libcrypto = ctypes.CDLL("libcrypto.so.3")
except OSError as error:
    raise MissingCapability("the compiled page service needs libcrypto: apt install libssl3") from error

libcrypto.EVP_CIPHER_CTX_new.restype = ctypes.c_void_p
libcrypto.EVP_aes_128_gcm.restype = ctypes.c_void_p
for _name in ("EVP_EncryptInit_ex", "EVP_DecryptInit_ex"):
    getattr(libcrypto, _name).argtypes = (*[ctypes.c_void_p] * 3, ctypes.c_char_p, ctypes.c_void_p)
libcrypto.EVP_CIPHER_CTX_free.argtypes = (ctypes.c_void_p,)
libcrypto.EVP_CIPHER_CTX_free.restype = None


def new_cipher(key: bytes, *, sealing: bool = False) -> int:
    """An EVP_CIPHER_CTX that opens what ``key`` sealed, or seals."""
    cipher: int = libcrypto.EVP_CIPHER_CTX_new()
    start = libcrypto.EVP_EncryptInit_ex if sealing else libcrypto.EVP_DecryptInit_ex
    if not start(cipher, libcrypto.EVP_aes_128_gcm(), None, key, None):
        raise MissingCapability("libcrypto has no AES-128-GCM")
    return cipher


def free_cipher(cipher: int) -> None:
    """Give it back."""
    libcrypto.EVP_CIPHER_CTX_free(cipher)
