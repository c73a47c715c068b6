"""In which order a thread touches its part of the heap.

    seq         one page after the other, round and round
    random      every page equally likely
    zipf        page of rank r with weight 1/r^0.99, ranks scattered over the heap
    scan-loop   round a hot eighth of the pages 8 times, then once over all of
                them: half of the touches are hot, half are a scan

seq and random are computed inside the enclave. For the others the host says
where to go: by range (scan-loop) or with a list of page numbers (zipf). All
depend on the seed alone, not on timing or on how touches are cut into calls.
"""

from __future__ import annotations

import random
from array import array
from itertools import accumulate
from typing import Protocol

from epcgroup.errors import BadInput
from epcgroup.stress.code import Call, Mode

PATTERNS = ("seq", "random", "zipf", "scan-loop")
ZIPF_EXPONENT = 0.99
HOT_PART = 8  # scan-loop: one page in so many is hot
HOT_LOOPS = 8  # scan-loop: rounds over the hot pages between two scans


class Pattern(Protocol):
    """Fills in what a call touches next."""

    def prepare(self, call: Call, count: int) -> None:
        """Let ``call`` touch at most ``count`` pages; sets call.count and the rest."""


def make(name: str, first: int, length: int, seed: int) -> Pattern:
    """The pattern ``name`` over heap pages ``first`` … ``first + length - 1``.

    Raises BadInput for an unknown name.
    """
    if name == "seq":
        return InOrder(first, length)
    if name == "random":
        return Random(first, length, seed)
    if name == "zipf":
        return Zipf(first, length, seed)
    if name == "scan-loop":
        return ScanLoop(first, length)
    raise BadInput(f"{name!r} is not a pattern; choose one of {', '.join(PATTERNS)}")


class InOrder:
    """seq; the enclave keeps the cursor in the call block."""

    def __init__(self, first: int, length: int) -> None:
        self._first, self._length, self._cursor = first, length, 0

    def prepare(self, call: Call, count: int) -> None:
        call.mode, call.first, call.length = Mode.ORDER, self._first, self._length
        call.state, call.count = self._cursor, count
        self._cursor = (self._cursor + count) % self._length


class Random:
    """random; the generator runs inside, its state stays in the call block."""

    def __init__(self, first: int, length: int, seed: int) -> None:
        self._first, self._length = first, length
        self._start = random.Random(seed).getrandbits(64) | 1  # xorshift must not start at 0
        self._begun = False

    def prepare(self, call: Call, count: int) -> None:
        call.mode, call.first, call.length, call.count = Mode.RANDOM, self._first, self._length, count
        if not self._begun:
            call.state, self._begun = self._start, True


class Zipf:
    """zipf; the host draws page numbers and passes them as a list."""

    def __init__(self, first: int, length: int, seed: int) -> None:
        self._first, self._length = first, length
        self._random = random.Random(seed)
        self._pages = list(range(length))
        self._random.shuffle(self._pages)
        self._weights = list(accumulate((rank + 1) ** -ZIPF_EXPONENT for rank in range(length)))
        self._list = array("I")

    def prepare(self, call: Call, count: int) -> None:
        self._list = array("I", self._random.choices(self._pages, cum_weights=self._weights, k=count))
        call.mode, call.first, call.length, call.count = Mode.LIST, self._first, self._length, count
        call.list, call.state = self._list.buffer_info()[0], 0


class Listed:
    """Heap pages in a given order, round and round."""

    def __init__(self, heap_pages: int, pages: array[int]) -> None:
        self._heap_pages, self._pages, self._at = heap_pages, pages, 0
        self._list = array("I")

    def prepare(self, call: Call, count: int) -> None:
        self._list = self._pages[self._at : self._at + count]
        self._at = (self._at + len(self._list)) % len(self._pages)
        call.mode, call.first, call.length, call.count = Mode.LIST, 0, self._heap_pages, len(self._list)
        call.list, call.state = self._list.buffer_info()[0], 0


class ScanLoop:
    """scan-loop; a call never crosses from the loop into the scan or back."""

    def __init__(self, first: int, length: int) -> None:
        hot = max(1, length // HOT_PART)
        self._first = first
        self._phases = ((hot, hot * HOT_LOOPS), (length, length))  # range, touches
        self._phase, self._done = 0, 0

    def prepare(self, call: Call, count: int) -> None:
        length, touches = self._phases[self._phase]
        count = min(count, touches - self._done)
        call.mode, call.first, call.length = Mode.ORDER, self._first, length
        call.state, call.count = self._done % length, count
        self._done += count
        if self._done == touches:
            self._phase, self._done = 1 - self._phase, 0
