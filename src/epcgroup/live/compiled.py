"""The express lane's loop in machine code: read a fault, unseal the page, fill it, note it.

This is the part of `service` that decides nothing: the page is evicted and sealed in
full, its table entry says where, and the engine has granted room for it beforehand
(`express`). Everything else goes back to Python with the event. A round trip through
Python costs a fault twice what it is worth here, most of it in an interpreter whose
code and branch predictions the switch of processes has thrown out of the caches.

It works on one block of 64-bit words that both sides see, at the offsets below, under
a spin lock in its first word: the loop holds it from the look at the credit to the
note in the log. All memory is addressed by number, since numba would count
references to arrays at every call. libcrypto opens pages as `sgx.seal` seals them.

Needs numba (extra ``sim``) and libcrypto.so; importing raises MissingCapability else.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import hashlib
import os
import sys
from pathlib import Path
from typing import Any, Final

from epcgroup.errors import MissingCapability

try:
    import llvmlite.binding
    import numba
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic
except ImportError as missing:
    raise MissingCapability("the compiled page service needs numba: pip install 'epcgroup[sim]'") from missing

# Words of the block, as byte offsets.
LOCK: Final = 0
CREDIT: Final = 8  # pages that may still be loaded
NOTED: Final = 16  # entries in the log
START: Final = 24  # the range of addresses
END: Final = 32
BASE: Final = 40  # address of the enclave's page 0
ENCLAVE: Final = 48  # its number
TABLE: Final = 56  # address of its table
PROT: Final = 64  # of the mapping
UFFD: Final = 72
CIPHER: Final = 80  # EVP_CIPHER_CTX for opening
PAGE: Final = 88  # address of a page of scratch memory
MESSAGE: Final = 96  # struct uffd_msg: 32 bytes
_NONCE: Final = 128  # 12 bytes
_AAD: Final = 144  # 25 bytes: flags, address, enclave, all zero
_COUNT: Final = 176
_COPY: Final = 184  # struct uffdio_copy: 40 bytes
_TIME: Final = 224  # struct timespec
LOG: Final = 256
LOG_ENTRY: Final = 32  # index, thread, start, end (ns of CLOCK_MONOTONIC)
LOG_LENGTH: Final = 32
SIZE: Final = LOG + LOG_LENGTH * LOG_ENTRY

# One entry of a table: address of the sealed bytes (0: ask Python), version, EPCM word
# with the page's maximum protection in the bits from MAXIMUM_SHIFT on.
ENTRY: Final = 24
MAXIMUM_SHIFT: Final = 32

_UFFDIO_COPY: Final = 0xC028AA03
_WRITE, _WP = 1, 2
_W: Final = 2  # of an EPCM word
_COPY_WP: Final = 2
_PAGE_SIZE: Final = 4096
_SET_TAG: Final = 0x11
_MAC: Final = 16
_AAD_SIZE: Final = 25

_numba: Any = numba  # the checker knows too little of it
_I: Any = types.int64
_int32: Any = types.int32
_WORD = ir.IntType(64)


def _instruction(generate: Any) -> Any:
    return intrinsic(generate)


@_instruction
def _peek(_typing: Any, _address: Any) -> Any:
    """The word at an address."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.load(builder.inttoptr(arguments[0], _WORD.as_pointer()))

    return _I(_I), generate


@_instruction
def _poke(_typing: Any, _address: Any, _value: Any) -> Any:
    """Store a word."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        builder.store(arguments[1], builder.inttoptr(arguments[0], _WORD.as_pointer()))
        return context.get_dummy_value()

    return types.void(_I, _I), generate


@_instruction
def _exchange(_typing: Any, _address: Any, _value: Any) -> Any:
    """Store a word and return the old one, in one step that all processors see."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[0], _WORD.as_pointer())
        return builder.atomic_rmw("xchg", place, arguments[1], "seq_cst")

    return _I(_I, _I), generate


def _external(name: str, *arguments: Any) -> Any:
    return types.ExternalFunction(name, _int32(*arguments))


_libcrypto_name = ctypes.util.find_library("crypto") or "libcrypto.so.3"
try:
    _libcrypto = ctypes.CDLL(_libcrypto_name)
    llvmlite.binding.load_library_permanently(_libcrypto_name)
except (OSError, RuntimeError) as error:
    raise MissingCapability("the compiled page service needs libcrypto: apt install libssl3") from error

_read: Any = types.ExternalFunction("read", _I(_int32, _I, _I))
_ioctl = _external("ioctl", _int32, types.uint64, _I)
_sched_yield = _external("sched_yield")
_clock_gettime = _external("clock_gettime", _int32, _I)
_init = _external("EVP_DecryptInit_ex", _I, _I, _I, _I, _I)
_update = _external("EVP_DecryptUpdate", _I, _I, _I, _I, _int32)
_control = _external("EVP_CIPHER_CTX_ctrl", _I, _int32, _int32, _I)
_final = _external("EVP_DecryptFinal_ex", _I, _I, _I)


def _acquire(block: int) -> int:
    """Take the block's lock; what is in the block holds still then."""
    while _exchange(block + LOCK, 1):
        _sched_yield()
    return 0


def _serve(block: int) -> int:
    """Answer faults as long as there is credit for them.

    1: the event in MESSAGE is not answered. 0: reading was interrupted, or there is no more to read.
    """
    message = block + MESSAGE
    while True:
        if _read(_peek(block + UFFD), message, 32) != 32:
            return 0
        flags, addr = _peek(message + 8), _peek(message + 16)
        _clock_gettime(1, block + _TIME)
        started = _peek(block + _TIME) * 1000000000 + _peek(block + _TIME + 8)
        while _exchange(block + LOCK, 1):
            _sched_yield()
        served = False
        inside = _peek(block + START) <= addr and addr < _peek(block + END)
        if _peek(block + CREDIT) > 0 and inside and not flags & _WP:
            index = (addr - _peek(block + BASE)) >> 12
            entry = _peek(block + TABLE) + index * ENTRY
            sealed, word = _peek(entry), _peek(entry + 16)
            writable = word & _W
            allowed = not _peek(block + PROT) & ~(word >> MAXIMUM_SHIFT)
            if sealed and allowed and (writable or not flags & _WRITE):
                page, cipher = _peek(block + PAGE), _peek(block + CIPHER)
                place = addr & ~(_PAGE_SIZE - 1)
                _poke(block + _NONCE, _peek(entry + 8))
                _poke(block + _NONCE + 8, 0)
                _poke(block + _AAD, word & 0xFFFFFFFF)
                _poke(block + _AAD + 8, place)
                _poke(block + _AAD + 16, _peek(block + ENCLAVE))
                _poke(block + _AAD + 24, 0)
                good = (
                    _init(cipher, 0, 0, 0, block + _NONCE) > 0
                    and _update(cipher, 0, block + _COUNT, block + _AAD, _AAD_SIZE) > 0
                    and _update(cipher, page, block + _COUNT, sealed, _PAGE_SIZE) > 0
                    and _control(cipher, _SET_TAG, _MAC, sealed + _PAGE_SIZE) > 0
                    and _final(cipher, page + _PAGE_SIZE, block + _COUNT) > 0
                )
                if good:
                    _poke(block + _COPY, place)
                    _poke(block + _COPY + 8, page)
                    _poke(block + _COPY + 16, _PAGE_SIZE)
                    _poke(block + _COPY + 24, 0 if writable else _COPY_WP)
                    served = _ioctl(_peek(block + UFFD), _UFFDIO_COPY, block + _COPY) == 0
                if served:
                    _poke(entry, 0)
                    _poke(block + CREDIT, _peek(block + CREDIT) - 1)
                    noted = _peek(block + NOTED)
                    note = block + LOG + noted * LOG_ENTRY
                    _clock_gettime(1, block + _TIME)
                    _poke(note, index)
                    _poke(note + 8, _peek(message + 24) & 0xFFFFFFFF)
                    _poke(note + 16, started)
                    _poke(note + 24, _peek(block + _TIME) * 1000000000 + _peek(block + _TIME + 8))
                    _poke(block + NOTED, noted + 1)
        _exchange(block + LOCK, 0)
        if not served:
            return 1


def _cache() -> Path:
    """A folder for this version's machine code: numba's own check misses edits of constants."""
    digest = hashlib.sha256(f"{numba.__version__} {sys.version}".encode() + Path(__file__).read_bytes())
    base = os.environ.get("EPCGROUP_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME")
    root = Path(base) if base else Path.home() / ".cache"
    return root / "epcgroup" / f"lane-{digest.hexdigest()[:16]}"


def _compiled(function: Any) -> Any:
    before = _numba.config.CACHE_DIR
    _numba.config.CACHE_DIR = str(_cache())
    try:
        return _numba.njit("int64(int64)", nogil=True, cache=True)(function)
    finally:
        _numba.config.CACHE_DIR = before


acquire = _compiled(_acquire)
serve = _compiled(_serve)

_libcrypto.EVP_CIPHER_CTX_new.restype = ctypes.c_void_p
_libcrypto.EVP_aes_128_gcm.restype = ctypes.c_void_p
_libcrypto.EVP_DecryptInit_ex.argtypes = (
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_void_p,
    ctypes.c_char_p,
    ctypes.c_void_p,
)
_libcrypto.EVP_CIPHER_CTX_free.argtypes = (ctypes.c_void_p,)
_libcrypto.EVP_CIPHER_CTX_free.restype = None


def new_cipher(key: bytes) -> int:
    """An EVP_CIPHER_CTX that opens what ``key`` sealed."""
    cipher: int = _libcrypto.EVP_CIPHER_CTX_new()
    if not _libcrypto.EVP_DecryptInit_ex(cipher, _libcrypto.EVP_aes_128_gcm(), None, key, None):
        raise MissingCapability("libcrypto has no AES-128-GCM")
    return cipher


def free_cipher(cipher: int) -> None:
    """Give it back."""
    _libcrypto.EVP_CIPHER_CTX_free(cipher)
