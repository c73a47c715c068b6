"""The engine, compiled: one reclaim round (epc.reclaim).

* ``evict_secs``     epc.reclaim._evict_secs
* ``put_back_young``, ``write_out``   epc.reclaim._reclaim_batch, list by list
* ``reclaim_from_top``, ``reclaim_by_cursor``   the two ways of epc.reclaim.reclaim

Pages of a batch that are charged to one group are uncharged together. Nothing
can see the difference: a group's last page is always the last of its batch.
"""

from __future__ import annotations

from typing import Any

from epcgroup.sim import columns as c
from epcgroup.sim.jit import compiled
from epcgroup.sim.lists import (
    Arrays,
    append,
    behind,
    end_of_walk,
    isolate,
    next_list,
    reorder,
    uncharge,
)

_OLDER = 0xFF ^ c.ACCESSED


@compiled
def unlist(s: Arrays, node: int) -> None:
    """Take a SECS or VA page off its group's list of unreclaimable pages, if it is on it."""
    cg, nd = s[0], s[6]
    if not nd[node, c.N_LISTED]:
        return
    nd[node, c.N_LISTED] = 0
    group = nd[node, c.N_GROUP]
    before, after = nd[node, c.N_PREV], nd[node, c.N_NEXT]
    if before >= 0:
        nd[before, c.N_NEXT] = after
    else:
        cg[group, c.UNREC_HEAD] = after
    if after >= 0:
        nd[after, c.N_PREV] = before
    else:
        cg[group, c.UNREC_TAIL] = before


@compiled
def free_node(s: Arrays, node: int) -> None:
    """A SECS or VA page is freed: off its list, uncharged."""
    nd, g = s[6], s[9]
    unlist(s, node)
    group = nd[node, c.N_GROUP]
    nd[node, c.N_NEXT] = g[c.NODE_FREE]
    g[c.NODE_FREE] = node
    uncharge(s, group, 1)


@compiled
def log(s: Arrays, enclave: int, page: int) -> None:
    """One line of the log; ``~enclave`` for a page written out."""
    g, lg = s[9], s[10]
    at = g[c.LOGGED]
    if at < lg.shape[0]:
        lg[at, 0] = enclave
        lg[at, 1] = page
    g[c.LOGGED] = at + 1


@compiled
def evict_secs(s: Arrays, enclave: int) -> None:
    """Write out the SECS after the last resident page."""
    cg, en, nd, g = s[0], s[1], s[6], s[9]
    node = en[enclave, c.SECS]
    if node < 0:
        return
    en[enclave, c.SECS] = -1
    en[enclave, c.E_EVICTED] += 1
    cg[nd[node, c.N_GROUP], c.EVICTED] += 1
    g[c.EVICTED_TOTAL] += 1
    if g[c.LOGGING]:
        log(s, ~enclave, -1)
    free_node(s, node)


@compiled
def put_back_young(s: Arrays, group: int, buf: Any, start: int, stop: int) -> int:
    """Young pages of a batch to the tail, older than before; the others stay, closed up.

    Returns where they end.
    """
    cg, fl = s[0], s[2]
    kept = start
    for i in range(start, stop):
        page = buf[i]
        flags = fl[page]
        if flags & c.ACCESSED:
            fl[page] = flags & _OLDER
            append(s, group, page)
        else:
            buf[kept] = page
            kept += 1
    back = stop - kept
    if back:
        cg[group, c.YOUNG] += back
        level = group
        while level >= 0:
            cg[level, c.BELOW] += back
            level = cg[level, c.PARENT]
    return kept


@compiled
def write_out(s: Arrays, group: int, buf: Any, start: int, stop: int) -> None:
    """Evict pages that are charged to one group, each SECS behind its last page."""
    cg, en, fl, ow, g = s[0], s[1], s[2], s[3], s[9]
    for i in range(start, stop):
        page = buf[i]
        fl[page] = c.EXISTS
        enclave = ow[page >> c.BLOCK]
        row = en[enclave]
        row[c.E_EVICTED] += 1
        if g[c.LOGGING]:
            log(s, ~enclave, page - row[0])
        row[c.CHILDREN] -= 1
        if not row[c.CHILDREN] and row[c.FLAGS] & c.INITIALISED:
            evict_secs(s, enclave)
    pages = stop - start
    cg[group, c.EVICTED] += pages
    g[c.EVICTED_TOTAL] += pages
    uncharge(s, group, pages)


@compiled
def reclaim_from_top(s: Arrays, top: int, pages: int, ignore_age: bool) -> tuple[int, int]:
    """One round, list after list in pre-order, in one batch (v3 to v6)."""
    cg, tb, bm, g, scratch = s[0], s[7], s[8], s[9], s[11]
    if g[c.DIRTY]:
        reorder(cg, tb, bm, g)
    buf, owners, starts, kept = scratch[0], scratch[1], scratch[2], scratch[3]
    lists = 0
    taken = 0
    place = cg[top, c.POS]
    stop = end_of_walk(s, top)
    while taken < pages:
        place = next_list(bm, place, stop)
        if place < 0:
            break
        group = tb[c.T_ORDER, place]
        owners[lists] = group
        starts[lists] = taken
        taken += isolate(s, group, pages - taken, buf, taken)
        lists += 1
        place += 1
    starts[lists] = taken
    written = 0
    for i in range(lists):
        kept[i] = starts[i + 1]
        if not ignore_age:
            kept[i] = put_back_young(s, owners[i], buf, starts[i], starts[i + 1])
    for i in range(lists):
        if kept[i] > starts[i]:
            write_out(s, owners[i], buf, starts[i], kept[i])
            written += kept[i] - starts[i]
    return taken, written


@compiled
def reclaim_by_cursor(s: Arrays, top: int, pages: int, ignore_age: bool) -> tuple[int, int]:
    """One round, a batch a list, going on where the last round stopped (v16, v17)."""
    cg, tb, bm, g, scratch = s[0], s[7], s[8], s[9], s[11]
    if g[c.DIRTY]:
        reorder(cg, tb, bm, g)
    buf = scratch[0]
    scanned = 0
    written = 0
    while scanned < pages and cg[top, c.BELOW]:
        group = top
        if cg[top, c.END] > cg[top, c.POS] + 1:
            place = next_list(bm, cg[cg[top, c.CURSOR], c.POS], cg[top, c.END])
            if place < 0:
                place = next_list(bm, cg[top, c.POS], cg[top, c.END])
            group = tb[c.T_ORDER, place]
            cg[top, c.CURSOR] = behind(cg, tb, group, top)
        want = pages - scanned if g[c.K_BY_NEED] else g[c.K_BATCH_MAX]
        taken = isolate(s, group, want, buf, 0)
        scanned += taken
        kept = taken
        if not ignore_age:
            kept = put_back_young(s, group, buf, 0, taken)
        if kept:
            write_out(s, group, buf, 0, kept)
            written += kept
    return scanned, written


@compiled
def reclaim(s: Arrays, top: int, pages: int, ignore_age: bool) -> tuple[int, int]:
    """One round over a subtree: (pages looked at, pages written)."""
    if s[9][c.K_RESTART]:
        return reclaim_from_top(s, top, pages, ignore_age)
    return reclaim_by_cursor(s, top, pages, ignore_age)
