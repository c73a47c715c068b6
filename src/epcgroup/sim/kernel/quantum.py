"""The engine, compiled: the threads of one quantum, one after the other.

A data centre has thousands of threads and a quantum is a thousand accesses of
each: going through them in Python would cost more than the accesses do. Python is
asked for what only it can do: accesses for a thread that has run out of them, and
what to do about one that failed.
"""

from __future__ import annotations

from typing import Any

from epcgroup.sim.compiler.jit import part
from epcgroup.sim.kernel import columns as c
from epcgroup.sim.kernel import tables
from epcgroup.sim.kernel.replay import replay
from epcgroup.sim.kernel.tables import State


@part
def run_threads(s: State, order: Any, start: int, count: int) -> int:
    """Run threads ``order[start:count]`` until their deadlines.

    Returns the place of the first that needs Python, with ``s[RESULT]`` 1 where its
    last access failed and 0 where it has no accesses left; ``count`` if none does.
    """
    rows = tables.threads(s)
    for place in range(start, count):
        row = rows[order[place]]
        times = tables.times_at(row[c.TH_TIMES])
        if row[c.TH_GONE] or times[c.CLOCK] >= times[c.DEADLINE]:
            continue
        if row[c.TH_AT] < row[c.TH_STOP]:
            failed = s[c.FAILED]
            pages = tables.pages_at(row[c.TH_PAGES])
            row[c.TH_AT] = replay(
                s,
                pages,
                row[c.TH_BASE],
                row[c.TH_AT],
                row[c.TH_STOP],
                tables.results_at(0),
                False,
                True,
                times,
            )
            if s[c.FAILED] != failed:
                s[c.RESULT] = 1
                return place
        if row[c.TH_AT] == row[c.TH_STOP]:
            s[c.RESULT] = 0
            return place
    return count
