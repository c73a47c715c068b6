"""Symbols in this machine's own vDSO."""

from __future__ import annotations

import ctypes
import struct
import time

import pytest

from epcgroup.errors import MissingCapability
from epcgroup.stress import vdso


def test_found_function_works() -> None:
    address = vdso.find("__vdso_clock_gettime")
    now, before = (ctypes.c_int64 * 2)(), time.monotonic_ns()
    function = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p)(address)
    assert function(time.CLOCK_MONOTONIC, ctypes.addressof(now)) == 0
    assert before <= now[0] * 10**9 + now[1] <= time.monotonic_ns()


def test_unknown_function_says_what_is_needed() -> None:
    with pytest.raises(MissingCapability, match=r"no __vdso_nothing.*5\.11"):
        vdso.find("__vdso_nothing")


def gnu_hash(name: bytes) -> int:
    value = 5381
    for byte in name:
        value = (value * 33 + byte) & 0xFFFFFFFF
    return value


@pytest.mark.parametrize("names", [[b"one"], [b"one", b"two", b"three", b"four", b"five"]])
def test_gnu_hash_alone_tells_the_number_of_symbols(names: list[bytes]) -> None:
    """Kernels may build their vDSO without the old hash table."""
    nbuckets = 2
    ordered = sorted(names, key=lambda name: gnu_hash(name) % nbuckets)
    numbers = [gnu_hash(name) % nbuckets for name in ordered]
    buckets = [next((1 + i for i, n in enumerate(numbers) if n == b), 0) for b in range(nbuckets)]
    ends = [i + 1 == len(numbers) or numbers[i + 1] != numbers[i] for i in range(len(numbers))]
    chains = [gnu_hash(name) & ~1 | end for name, end in zip(ordered, ends, strict=True)]
    table = ctypes.create_string_buffer(
        struct.pack("<4IQ", nbuckets, 1, 1, 0, 0)
        + struct.pack(f"<{nbuckets}I", *buckets)
        + struct.pack(f"<{len(chains)}I", *chains)
    )
    assert vdso._symbol_count({0x6FFFFEF5: ctypes.addressof(table)}) == 1 + len(names)
