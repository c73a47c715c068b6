"""One pass over a trace for all who replay a part of it.

A trace of a thousand enclaves is read once, not a thousand times: who asks for
more makes the reader go on, and what it meets of others waits for them. They do not
keep step, since one may page while another runs; when too much waits, whoever is
furthest behind goes on alone, with a reader of its own. So memory is bounded,
whatever the order of accesses.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np

from epcgroup.sim.traces.trace import Pages, Trace, expanded

ROOM = 1 << 23  # rows that may wait, 8 bytes each


class Stream:
    """The pages that one enclave touches, in order, a part at a time."""

    def __init__(self, shared: Streams, enclave: int) -> None:
        self.enclave = enclave
        self.waiting: deque[tuple[Pages, Pages]] = deque()
        self.rows = 0  # that wait
        self._shared = shared
        self._taken = 0  # rows of this enclave
        self._alone: Iterator[tuple[Pages, Pages]] | None = None
        self._parts: Iterator[Pages] = iter(())

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Pages:
        while True:
            part = next(self._parts, None)
            if part is not None:
                return part
            self._parts = expanded(*self._next())

    def close(self) -> None:
        """No more is wanted."""
        self._shared.drop(self)

    def keep(self, pages: Pages, runs: Pages) -> None:
        """Its next rows; it will ask for them."""
        self.waiting.append((pages, runs))
        self.rows += len(pages)

    def go_alone(self) -> None:
        """Forget what waits, and read it again when it is wanted."""
        self.waiting.clear()
        self.rows = 0
        self._alone = self._again()

    def _again(self) -> Iterator[tuple[Pages, Pages]]:
        skip = self._taken
        for enclaves, pages, runs in self._shared.trace.runs():
            mine = enclaves == self.enclave
            chosen, counted = pages[mine], runs[mine]
            if skip < len(chosen):
                yield chosen[skip:], counted[skip:]
            skip = max(skip - len(chosen), 0)

    def _next(self) -> tuple[Pages, Pages]:
        if self._alone is not None:
            return next(self._alone)
        while not self.waiting:
            self._shared.read()  # StopIteration: the end
        rows = self.waiting.popleft()
        self.rows -= len(rows[0])
        self._shared.rows -= len(rows[0])
        self._taken += len(rows[0])
        return rows


class Streams:
    """All streams of one trace. Open them before the first is read."""

    def __init__(self, trace: Trace, room: int = ROOM) -> None:
        self.trace = trace
        self.rows = 0  # that wait, of all
        self._room = room
        self._source = trace.runs()
        self._open: dict[int, list[Stream]] = {}

    def open(self, enclave: int) -> Stream:
        """A stream of one enclave; several of the same get the same."""
        stream = Stream(self, enclave)
        self._open.setdefault(enclave, []).append(stream)
        return stream

    def drop(self, stream: Stream) -> None:
        """Nothing waits for this one any more."""
        readers = self._open.get(stream.enclave, [])
        if stream in readers:
            readers.remove(stream)
            self.rows -= stream.rows

    def read(self) -> None:
        """The next rows of the trace, to those who want them. Raises StopIteration at its end."""
        enclaves, pages, runs = next(self._source)
        order = np.argsort(enclaves, kind="stable")
        numbers, starts = np.unique(enclaves[order], return_index=True)
        for number, rows in zip(numbers.tolist(), np.split(order, starts[1:]), strict=True):
            readers = self._open.get(number)
            if readers:
                chosen, counted = pages[rows], runs[rows]
                for stream in readers:
                    stream.keep(chosen, counted)
                    self.rows += len(rows)
        while self.rows > self._room:
            last = max((one for readers in self._open.values() for one in readers), key=lambda one: one.rows)
            self.drop(last)
            last.go_alone()
