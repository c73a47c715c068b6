"""Drawing by weight, compiled: the same numbers as ``numpy.searchsorted``, many times as fast.

A binary search in memory that does not fit the cache is a miss a step. A table says
for each of many equal parts of the range where to begin; from there the answer is
a step or two away.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from epcgroup.sim.compiler.dialect import INT, REAL, view
from epcgroup.sim.compiler.jit import Entry

_MOST = 1 << 20  # parts


def find(sums: Any, begin: Any, drawn: Any, found: Any, count: int, parts_per_one: float) -> int:
    """Of each number drawn, the first place whose sum is not below it."""
    for i in range(count):
        share = drawn[i]
        place = begin[int(share * parts_per_one)]
        while sums[place] < share:
            place += 1
        found[i] = place
    return count


FIND = Entry(
    find,
    (view("sums", "f64"), view("begin", "i32"), view("drawn", "f64"), view("found", "i32"), INT, REAL),
    tell=False,
)


class Weighted:
    """Draws numbers from 0 up, each as often as its weight says."""

    def __init__(self, weights: npt.NDArray[np.float64]) -> None:
        self._sums = np.cumsum(weights)
        parts = min(4 * len(weights), _MOST)
        self._parts_per_one = parts / float(self._sums[-1])
        # One place early: rounding may put a number into the part before.
        edges = np.searchsorted(self._sums, np.arange(parts + 2) / self._parts_per_one)
        self._begin = np.maximum(edges - 1, 0).astype(np.int32)

    def take(self, rng: np.random.Generator, count: int) -> npt.NDArray[np.int32]:
        """The next ``count``."""
        drawn = rng.random(count) * self._sums[-1]
        found = np.empty(count, np.int32)
        tables = (table.ctypes.data for table in (self._sums, self._begin, drawn, found))
        FIND(*tables, count, self._parts_per_one)
        return found
