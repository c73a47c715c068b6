"""Workloads that several benchmarks run: the recorded ones, and a machine of a given shape."""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from epcgroup.epc import by_name
from epcgroup.sim.kernel.machine import CompiledMachine
from epcgroup.units import PAGE_SIZE

ACCESSES = 400_000  # in one pass of a recorded workload
PASSES = 5
SEED = 88172645463325252


@cache
def in_c() -> ctypes.CDLL:
    """The C programs of the benchmarks, built here with -O2."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "chunked.so"
        source = Path(__file__).with_name("_chunked.c")
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
        return ctypes.CDLL(str(library))


def xorshift(state: int, count: int, modulo: int) -> tuple[int, npt.NDArray[np.int32]]:
    """``count`` page numbers below ``modulo``, and the generator's next state."""
    pages = np.empty(count, np.int32)
    now = ctypes.c_uint64(state)
    in_c().xorshift(
        ctypes.byref(now), ctypes.c_void_p(pages.ctypes.data), ctypes.c_int64(count), ctypes.c_uint64(modulo)
    )
    return now.value, pages


def limited(policy: str, limit: int) -> tuple[CompiledMachine, int]:
    """A group with a limit, an enclave of twice as many pages in it, added one at a time."""
    machine = CompiledMachine(65536, by_name(policy))
    group = machine.mkdir("/bench")
    machine.set_max(group, limit * PAGE_SIZE)
    machine.settle()
    machine.attach(group)
    enclave = machine.create_enclave(group, 2 * limit)
    machine.add_pages(enclave, 0, 2 * limit)
    machine.initialise(enclave)
    return machine, enclave


def passes(limit: int, pattern: str) -> list[npt.NDArray[np.int32]]:
    """The accesses of each pass."""
    if pattern == "sequential":
        return [np.arange(ACCESSES, dtype=np.int32) % np.int32(2 * limit)] * PASSES
    state, found = SEED, []
    for _ in range(PASSES):
        state, pages = xorshift(state, ACCESSES, 2 * limit)
        found.append(pages)
    return found
