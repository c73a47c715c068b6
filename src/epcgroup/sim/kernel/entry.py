"""The engine, compiled: its one entry. :mod:`.replay` is where the time goes."""

from __future__ import annotations

from typing import Any

from epcgroup.sim.compiler.dialect import INT
from epcgroup.sim.compiler.jit import Entry
from epcgroup.sim.kernel import charge, enclaves, lists, quantum, release, tables, trim
from epcgroup.sim.kernel import columns as c
from epcgroup.sim.kernel.background import settle
from epcgroup.sim.kernel.replay import replay
from epcgroup.sim.kernel.tables import State


def operate(s: State, what: int, a: int, b: int, more: int, pages: Any, stop: int, k: Any, times: Any) -> int:
    """What Python asks for, by number (columns, "Operations"); one function, so one compilation.

    The second result, where there is one, is in ``s[RESULT]``.
    """
    if what == c.REPLAY:
        return replay(s, pages, a, b, stop, k, more & 2 != 0, more & 1 != 0, times)
    if what == c.RUN_THREADS:
        return quantum.run_threads(s, pages, a, stop)
    if what == c.SETTLE:
        settle(s)
    elif what == c.CREATE:
        return enclaves.create(s, a)
    elif what == c.ADD_PAGES:
        done, result = enclaves.add_pages(s, a, b, more & 0xFFFFFFFF, more >> 32 != 0)
        s[c.RESULT] = result
        return done
    elif what == c.REMOVE_PAGES:
        done, result = trim.remove_pages(s, a, b, more)
        s[c.RESULT] = result
        return done
    elif what == c.RELEASE:
        release.release(s, a)
    elif what == c.PURGE:
        release.purge(s)
    elif what == c.SETTLE_GROUP:
        lists.settle_group(s, a)
    elif what == c.QUEUE_WORK:
        charge.queue_work(s, a)
    elif what == c.FAULT_VEPC:
        return enclaves.fault_vepc(s, a)
    elif what == c.FILL_VEPC:
        return enclaves.fill_vepc(s, a, b)
    elif what == c.UNCHARGE:
        lists.uncharge(s, a, b, 0)
    return 0


OPERATE = Entry(operate, (tables.STATE, INT, INT, INT, INT, tables.PAGES, INT, tables.RESULTS, tables.TIMES))
"""``operate`` as machine code; takes integers and addresses."""
