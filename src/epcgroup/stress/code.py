"""The enclave's code, and what it and its host say to each other.

``CODE`` is enclave.S assembled; the source says what it does. The contents of
heap pages follow a rule that `page_words` states once more in Python, so that a
test can hold the assembly against it.
"""

from __future__ import annotations

import ctypes
import struct
from enum import IntEnum

from epcgroup.units import PAGE_SIZE

CODE = bytes.fromhex(
    "eb1e66662e0f1f8400000000000f1f00000000000000000000000000000000004889cb488d35d6ffffff480335dfffff"
    "ff4c8b47084d85c00f846b010000488b074883f80174187750488b5720488d4201483b4718720231c048894720eb4d48"
    "8b47204889c248c1ea0c4831d04889c248c1e2194831d04889c248c1ea1b4831d04889472048ba1ddd6c4f91f4452548"
    "0fafc248f76718eb13488b47204c8b5f28418b148348ffc04889472048035710483b1561ffffff0f83440100004989d2"
    "49c1e20c4901f24c8b5f304d8b0cd331c931c04531db4d85c9743349bb157c4a7fb979379e4c89c8490fafc348334738"
    "4801d0490fafc34989c349c1eb1d4c31d849bb1ddd6c4f91f445254889d149390a0f859a0000004d394a080f85970000"
    "00b902000000493904ca0f85900000004c01d8ffc181f90002000072e948837f4000745849ffc149bb157c4a7fb97937"
    "9e4c89c8490fafc3483347384801d0490fafc34989c349c1eb1d4c31d849bb1ddd6c4f91f445254989124d894a08b902"
    "000000498904ca4c01d8ffc181f90002000072ef4c8b5f304d890cd348ff474849ffc80f8595feffffb8040000000f01"
    "d74889c831c9eb084c89c8b90100000048ff475048837f50010f856effffff4889575848894f6048894768498b04ca48"
    "894770498b0248894778498b4208488987800000004c898f88000000e93cffffff48c7879000000001000000eb9b"
)
HEAP_FIELDS = 16  # where in CODE the heap's offset and its number of pages go (two u64)
WORDS = PAGE_SIZE // 8

_MIX = 0x9E3779B97F4A7C15
_STEP = 0x2545F4914F6CDD1D
_U64 = (1 << 64) - 1


class Mode(IntEnum):
    """How the enclave finds the next page."""

    ORDER = 0
    RANDOM = 1
    LIST = 2


class Call(ctypes.Structure):
    """One ecall: what to touch, and what came of it. Offsets as in enclave.S."""

    _fields_ = (
        ("mode", ctypes.c_uint64),
        ("count", ctypes.c_uint64),
        ("first", ctypes.c_uint64),
        ("length", ctypes.c_uint64),
        ("state", ctypes.c_uint64),
        ("list", ctypes.c_uint64),
        ("versions", ctypes.c_uint64),
        ("seed", ctypes.c_uint64),
        ("write", ctypes.c_uint64),
        ("done", ctypes.c_uint64),
        ("mismatches", ctypes.c_uint64),
        ("bad_page", ctypes.c_uint64),
        ("bad_word", ctypes.c_uint64),
        ("wanted", ctypes.c_uint64),
        ("found", ctypes.c_uint64),
        ("bad_number", ctypes.c_uint64),
        ("bad_version", ctypes.c_uint64),
        ("version", ctypes.c_uint64),
        ("refused", ctypes.c_uint64),
    )
    mode: int
    count: int
    first: int
    length: int
    state: int
    list: int
    versions: int
    seed: int
    write: int
    done: int
    mismatches: int
    bad_page: int
    bad_word: int
    wanted: int
    found: int
    bad_number: int
    bad_version: int
    version: int
    refused: int


def code_for(heap_offset: int, heap_pages: int) -> bytes:
    """The code of an enclave whose heap lies ``heap_offset`` bytes behind it."""
    fields = struct.pack("<QQ", heap_offset, heap_pages)
    return CODE[:HEAP_FIELDS] + fields + CODE[HEAP_FIELDS + len(fields) :]


def page_words(seed: int, page: int, version: int) -> list[int]:
    """The 512 words that heap page ``page`` holds at ``version``."""
    if version == 0:
        return [0] * WORDS
    key = (((version * _MIX & _U64) ^ seed) + page) * _MIX & _U64
    key ^= key >> 29
    return [page, version, *((key + i * _STEP) & _U64 for i in range(WORDS - 2))]


def next_random(state: int, length: int) -> tuple[int, int]:
    """The generator of Mode.RANDOM (xorshift64*): next state, number below ``length``."""
    state ^= state >> 12
    state ^= state << 25 & _U64
    state ^= state >> 27
    return state, (state * _STEP & _U64) * length >> 64
