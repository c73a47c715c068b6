"""Workloads that several benchmarks run: the recorded ones, and a machine of a given shape."""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from epcgroup.epc import by_name
from epcgroup.sim.machine import CompiledMachine
from epcgroup.units import PAGE_SIZE

ACCESSES = 400_000  # in one pass of a recorded workload
PASSES = 5
SEED = 88172645463325252


@numba.njit(cache=False)  # type: ignore[untyped-decorator]
def xorshift(state: np.uint64, count: int, modulo: int) -> tuple[np.uint64, npt.NDArray[np.int32]]:
    """``count`` page numbers below ``modulo``, and the generator's next state."""
    x = state
    pages = np.empty(count, np.int32)
    for i in range(count):
        x ^= x << np.uint64(13)
        x ^= x >> np.uint64(7)
        x ^= x << np.uint64(17)
        pages[i] = x % np.uint64(modulo)
    return x, pages


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
    state, found = np.uint64(SEED), []
    for _ in range(PASSES):
        state, pages = xorshift(np.uint64(state), ACCESSES, 2 * limit)
        found.append(pages)
    return found
