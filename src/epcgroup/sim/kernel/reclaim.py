"""The engine, compiled: one reclaim round (epc.reclaim).

* ``evict_secs``     epc.reclaim._evict_secs
* ``put_back_young``, ``write_out``   epc.reclaim._reclaim_batch, list by list
* ``reclaim_from_top``, ``reclaim_by_cursor``   the two ways of epc.reclaim.reclaim

Pages of a batch that are charged to one group are uncharged together. Nothing
can see the difference: a group's last page is always the last of its batch.
"""

from __future__ import annotations

from typing import Any

from epcgroup.sim.compiler.dialect import fetch
from epcgroup.sim.compiler.jit import part, part_apart
from epcgroup.sim.kernel import columns as c
from epcgroup.sim.kernel import tables
from epcgroup.sim.kernel.lists import (
    behind,
    end_of_walk,
    isolate,
    mark,
    new_chunk,
    next_list,
    reorder,
    uncharge,
)
from epcgroup.sim.kernel.tables import State

_OLDER = 0xFF ^ c.ACCESSED
_LINE = 64  # bytes
_AGE = c.ACCESSED.bit_length() - 1


@part
def unlist(s: State, node: int) -> None:
    """Take a SECS or VA page off its group's list of unreclaimable pages, if it is on it."""
    cg = tables.groups(s)
    nd = tables.nodes(s)
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


@part
def free_node(s: State, node: int) -> None:
    """A SECS or VA page is freed: off its list, uncharged."""
    nd = tables.nodes(s)
    unlist(s, node)
    group = nd[node, c.N_GROUP]
    nd[node, c.N_NEXT] = s[c.NODE_FREE]
    s[c.NODE_FREE] = node
    uncharge(s, group, 1, 0)


@part
def log(s: State, enclave: int, page: int) -> None:
    """One line of the log; ``~enclave`` for a page written out."""
    lg = tables.log_lines(s)
    at = s[c.LOGGED]
    if at < s[c.LEN_LOG]:
        lg[at, 0] = enclave
        lg[at, 1] = page
    s[c.LOGGED] = at + 1


@part
def evict_secs(s: State, enclave: int) -> None:
    """Write out the SECS after the last resident page."""
    cg = tables.groups(s)
    en = tables.enclaves(s)
    nd = tables.nodes(s)
    node = en[enclave, c.SECS]
    if node < 0:
        return
    en[enclave, c.SECS] = -1
    en[enclave, c.E_EVICTED] += 1
    cg[nd[node, c.N_GROUP], c.EVICTED] += 1
    s[c.EVICTED_TOTAL] += 1
    if s[c.LOGGING]:
        log(s, ~enclave, -1)
    free_node(s, node)


@part
def put_back_young(s: State, group: int, buf: Any, start: int, stop: int) -> int:
    """Young pages of a batch to the tail, older than before; the others stay, closed up.

    Returns where they end. This loop is where the time goes: it sorts without a branch,
    which no processor could predict, and appends what was young line by line.
    """
    cg = tables.groups(s)
    fl = tables.page_flags(s)
    ch = tables.chunks(s)
    nx = tables.links(s)
    later = tables.batch(s)[4]
    kept = start
    back = 0
    for i in range(start, stop):
        page = buf[i]
        flags = fl[page]
        fl[page] = flags & _OLDER
        young = flags >> _AGE & 1
        buf[kept] = page
        later[back] = page
        back += young
        kept += 1 - young
    if not back:
        return kept
    tail = cg[group, c.TAIL]
    place = cg[group, c.TAIL_AT]
    done = 0
    while done < back:
        if tail < 0 or place == c.CHUNK:
            chunk = new_chunk(s)
            if tail < 0:
                cg[group, c.HEAD] = chunk
                cg[group, c.HEAD_AT] = 0
            else:
                nx[tail] = chunk
            tail = chunk
            place = 0
        more = min(back - done, c.CHUNK - place)
        for i in range(more):
            ch[tail, place + i] = later[done + i]
        place += more
        done += more
    cg[group, c.TAIL] = tail
    cg[group, c.TAIL_AT] = place
    if not cg[group, c.COUNT]:
        mark(s, group, True)
    cg[group, c.COUNT] += back
    cg[group, c.YOUNG] += back
    return kept


@part
def write_out(s: State, group: int, buf: Any, start: int, stop: int) -> None:
    """Evict pages that are charged to one group, each SECS behind its last page."""
    cg = tables.groups(s)
    en = tables.enclaves(s)
    fl = tables.page_flags(s)
    ow = tables.owners(s)
    logging = s[c.LOGGING]
    for i in range(start, stop):
        page = buf[i]
        fl[page] = c.EXISTS
        enclave = ow[page >> c.BLOCK]
        en[enclave, c.E_EVICTED] += 1
        if logging:
            log(s, ~enclave, page - en[enclave, c.BASE])
        left = en[enclave, c.CHILDREN] - 1
        en[enclave, c.CHILDREN] = left
        if left == 0 and en[enclave, c.FLAGS] & c.INITIALISED:
            evict_secs(s, enclave)
    pages = stop - start
    cg[group, c.EVICTED] += pages
    s[c.EVICTED_TOTAL] += pages
    uncharge(s, group, pages, pages)


@part
def reclaim_from_top(s: State, top: int, pages: int, ignore_age: bool) -> tuple[int, int]:
    """One round, list after list in pre-order, in one batch (v3 to v6)."""
    cg = tables.groups(s)
    tb = tables.order(s)
    scratch = tables.batch(s)
    if s[c.DIRTY]:
        reorder(s)
    buf, owners, starts, kept = scratch[0], scratch[1], scratch[2], scratch[3]
    lists = 0
    taken = 0
    place = cg[top, c.POS]
    stop = end_of_walk(s, top)
    while taken < pages:
        place = next_list(s, place, stop)
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


@part_apart
def prepare(s: State, place: int, stop: int) -> None:
    """Have brought near what the next rounds will touch: a chain of four, each link a round earlier."""
    cg = tables.groups(s)
    fl = tables.page_flags(s)
    ch = tables.chunks(s)
    nx = tables.links(s)
    tb = tables.order(s)
    if place + 4 < stop:
        group = tb[c.T_ORDER, place + 4]
        fetch(cg, group)
        fetch(cg[group], c.PINS)
        fetch(cg[group], c.POS)
        group = tb[c.T_ORDER, place + 2]
        head, tail = max(cg[group, c.HEAD], 0), max(cg[group, c.TAIL], 0)
        fetch(ch, head)
        fetch(ch, tail)
        fetch(nx, head)
        fetch(nx, tail)
        group = tb[c.T_ORDER, place + 1]
        head = max(cg[group, c.HEAD], 0)
        page = ch[head, min(cg[group, c.HEAD_AT], c.CHUNK - 1)]
        fetch(ch, max(nx[head], 0))
        fetch(fl, page)
        fetch(fl, page + _LINE)
        fetch(tables.enclaves(s), max(tables.owners(s)[page >> c.BLOCK], 0))


@part
def reclaim_by_cursor(s: State, top: int, pages: int, ignore_age: bool) -> tuple[int, int]:
    """One round, a batch a list, going on where the last round stopped (v16, v17)."""
    cg = tables.groups(s)
    tb = tables.order(s)
    scratch = tables.batch(s)
    if s[c.DIRTY]:
        reorder(s)
    buf = scratch[0]
    scanned = 0
    written = 0
    while scanned < pages and cg[top, c.BELOW]:
        group = top
        if cg[top, c.END] > cg[top, c.POS] + 1:
            place = next_list(s, cg[cg[top, c.CURSOR], c.POS], cg[top, c.END])
            if place < 0:
                place = next_list(s, cg[top, c.POS], cg[top, c.END])
            group = tb[c.T_ORDER, place]
            cg[top, c.CURSOR] = behind(s, group, top)
            prepare(s, place, cg[top, c.END])
        want = pages - scanned if s[c.K_BY_NEED] else s[c.K_BATCH_MAX]
        taken = isolate(s, group, want, buf, 0)
        scanned += taken
        kept = taken
        if not ignore_age:
            kept = put_back_young(s, group, buf, 0, taken)
        if kept:
            write_out(s, group, buf, 0, kept)
            written += kept
    return scanned, written


@part
def reclaim(s: State, top: int, pages: int, ignore_age: bool) -> tuple[int, int]:
    """One round over a subtree: (pages looked at, pages written)."""
    if s[c.K_RESTART]:
        return reclaim_from_top(s, top, pages, ignore_age)
    return reclaim_by_cursor(s, top, pages, ignore_age)
