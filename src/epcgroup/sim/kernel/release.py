"""The engine, compiled: death of enclaves (epc.release), and what it leaves on the lists."""

from __future__ import annotations

from epcgroup.sim.compiler.jit import part
from epcgroup.sim.kernel import columns as c
from epcgroup.sim.kernel import tables
from epcgroup.sim.kernel.charge import queue_work
from epcgroup.sim.kernel.lists import mark, new_chunk, uncharge
from epcgroup.sim.kernel.reclaim import free_node
from epcgroup.sim.kernel.tables import State


@part
def release(s: State, enclave: int) -> None:
    """Free every page: children in ascending order, then the SECS, then the VA pages."""
    en = tables.enclaves(s)
    fl = tables.page_flags(s)
    nd = tables.nodes(s)
    row = en[enclave]
    base = row[c.BASE]
    if row[c.CHILDREN]:
        if row[c.FLAGS] & c.MIXED:
            release_mixed(s, enclave)
        else:
            drop_pages(s, row[c.HOME], row[c.CHILDREN])
        s[c.STALE] += row[c.CHILDREN]
    for page in range(base, base + row[c.SIZE]):
        fl[page] = c.DEAD
    row[c.CHILDREN] = 0
    if row[c.SECS] >= 0:
        tables.groups(s)[nd[row[c.SECS], c.N_GROUP], c.REMOVED] += 1
        free_node(s, row[c.SECS])
        row[c.SECS] = -1
    node = row[c.VA_FIRST]
    for _ in range(row[c.VA_COUNT]):
        after = nd[node, c.N_CHAIN]
        tables.groups(s)[nd[node, c.N_GROUP], c.REMOVED] += 1
        free_node(s, node)
        node = after
    row[c.VA_COUNT] = 0
    awaited = row[c.FLAGS] & c.AWAITED
    row[c.FLAGS] |= c.RELEASED_ENCLAVE
    if awaited:
        end_wait(s, enclave)


@part
def end_wait(s: State, enclave: int) -> None:
    """Groups that waited for an enclave's release run their workers again, in their order."""
    cg = tables.groups(s)
    while True:
        first = -1
        for group in range(s[c.GROUPS]):
            if cg[group, c.VICTIM] == enclave and (
                first < 0 or cg[group, c.VICTIM_SEQ] < cg[first, c.VICTIM_SEQ]
            ):
                first = group
        if first < 0:
            return
        cg[first, c.VICTIM] = -1
        if not cg[first, c.RELEASED]:
            queue_work(s, first)


@part
def drop_pages(s: State, group: int, pages: int) -> None:
    """Pages on a group's list are gone; their entries stay and are passed over."""
    cg = tables.groups(s)
    cg[group, c.COUNT] -= pages
    cg[group, c.REMOVED] += pages
    if not cg[group, c.COUNT]:
        mark(s, group, False)
    uncharge(s, group, pages, pages)


@part
def release_mixed(s: State, enclave: int) -> None:
    """The same for an enclave whose pages are charged to several groups.

    Which group a page is charged to, only the lists tell: they are searched. The
    groups lose their pages in the order in which the last of each goes.
    """
    cg = tables.groups(s)
    en = tables.enclaves(s)
    fl = tables.page_flags(s)
    ow = tables.owners(s)
    ch = tables.chunks(s)
    nx = tables.links(s)
    scratch = tables.per_group(s)
    row = en[enclave]
    groups = s[c.GROUPS]
    for group in range(groups):
        scratch[group] = 0
        if not cg[group, c.COUNT]:
            continue
        chunk, place = cg[group, c.HEAD], cg[group, c.HEAD_AT]
        last = -1
        mine = 0
        while chunk >= 0:
            end = cg[group, c.TAIL_AT] if chunk == cg[group, c.TAIL] else 16
            while place < end:
                page = ch[chunk, place]
                if not fl[page] & c.DEAD and ow[page >> c.BLOCK] == enclave:
                    mine += 1
                    last = max(last, page - row[c.BASE])
                place += 1
            place = 0
            chunk = nx[chunk] if chunk != cg[group, c.TAIL] else -1
        if mine:
            scratch[group] = (last + 1) << 32 | mine
    while True:
        first = -1
        for group in range(groups):
            if scratch[group] and (first < 0 or scratch[group] < scratch[first]):
                first = group
        if first < 0:
            return
        drop_pages(s, first, scratch[first] & 0xFFFFFFFF)
        scratch[first] = 0


@part
def purge(s: State) -> None:
    """Drop every list entry whose page is dead; then their numbers may be used again."""
    for group in range(s[c.GROUPS]):
        purge_group(s, group)


@part
def purge_group(s: State, group: int) -> None:
    """Close up a group's list: entries whose page is dead are dropped."""
    cg = tables.groups(s)
    fl = tables.page_flags(s)
    ch = tables.chunks(s)
    nx = tables.links(s)
    chunk, place = cg[group, c.HEAD], cg[group, c.HEAD_AT]
    tail, tail_at = cg[group, c.TAIL], cg[group, c.TAIL_AT]
    cg[group, c.HEAD] = cg[group, c.TAIL] = -1
    cg[group, c.HEAD_AT] = cg[group, c.TAIL_AT] = 0
    to = -1
    to_at = 16
    while chunk >= 0:
        end = tail_at if chunk == tail else 16
        while place < end:
            page = ch[chunk, place]
            place += 1
            if fl[page] & c.DEAD:
                s[c.STALE] -= 1
                continue
            if to_at == 16:
                after = new_chunk(s)
                if to < 0:
                    cg[group, c.HEAD] = after
                else:
                    nx[to] = after
                to = after
                to_at = 0
            ch[to, to_at] = page
            to_at += 1
        after = nx[chunk] if chunk != tail else -1
        nx[chunk] = s[c.CHUNK_FREE]
        s[c.CHUNK_FREE] = chunk
        chunk = after
        place = 0
    cg[group, c.TAIL] = to
    cg[group, c.TAIL_AT] = to_at if to >= 0 else 0
