"""The engine, compiled: SGX2's removal of pages (epc.enclaves.remove_page, epc.machine.edmm_reclaim).

A list has no middle to unlink from (see :mod:`.lists`), and a removed page may come
back under its number with the next touch. So pages of one call are marked dead, as
those of an ended enclave are, and the lists that they were on are closed up
before the call ends: one walk a call, not one a page.
"""

from __future__ import annotations

from epcgroup.sim.compiler.jit import part
from epcgroup.sim.kernel import columns as c
from epcgroup.sim.kernel import tables
from epcgroup.sim.kernel.background import settle
from epcgroup.sim.kernel.charge import BUSY, OK, allocate, excess
from epcgroup.sim.kernel.enclaves import count_load, insert, load_secs
from epcgroup.sim.kernel.lists import nothing
from epcgroup.sim.kernel.reclaim import reclaim
from epcgroup.sim.kernel.release import drop_pages, purge_group
from epcgroup.sim.kernel.tables import State

AGAIN = -11
FAULT = -14
_CALLS = 8


@part
def edmm_reclaim(s: State, group: int) -> None:
    """What the SGX2 ioctls do before each page (ALLOC-33)."""
    free = s[c.EPC] - tables.groups(s)[0, c.USAGE]
    if free < s[c.LOW] and not nothing(s, 0):
        batch = s[c.K_GLOBAL]
        if s[c.K_BY_NEED]:
            batch = max(1, min(s[c.HIGH] - free, batch))
        reclaim(s, 0, batch, False)
    if s[c.K_EDMM] and excess(s, group, 0) > 0 and not nothing(s, group):
        reclaim(s, group, s[c.K_BATCH_MIN], False)


@part
def load(s: State, enclave: int, page: int) -> int:
    """ELDU of a page that exists, for the kernel: it is not mapped."""
    cg = tables.groups(s)
    en = tables.enclaves(s)
    row = en[enclave]
    group = row[c.GROUP]
    row[c.E_FAULTS] += 1
    cg[group, c.FAULTS] += 1
    charged = False
    result = OK
    if row[c.SECS] < 0:
        result = load_secs(s, enclave, 1)
        charged = s[c.K_PAIR] != 0
    if result == OK and not charged:
        result = allocate(s, group, 1, False)
    if result == BUSY:
        row[c.E_RETRIED] += 1
        cg[group, c.RETRIED] += 1
    if result:
        return result
    insert(s, enclave, group, page, c.EXISTS | c.RESIDENT)
    count_load(s, enclave, group, page - row[c.BASE])
    return OK


@part
def remove_page(s: State, enclave: int, page: int) -> int:
    """One page, loaded first if it was evicted: OK, AGAIN or FAULT."""
    en = tables.enclaves(s)
    fl = tables.page_flags(s)
    row = en[enclave]
    for _ in range(_CALLS):
        edmm_reclaim(s, row[c.GROUP])
        if fl[page] & c.DEAD or not fl[page] & c.EXISTS:
            return FAULT
        result = OK
        if not fl[page] & c.RESIDENT:
            result = load(s, enclave, page)
        if result == OK:
            group = payer(s, enclave, page)
            fl[page] = c.DEAD
            s[c.STALE] += 1
            row[c.CHILDREN] -= 1
            row[c.PAGE_CNT] -= 1
            drop_pages(s, group, 1)
            tables.per_group(s)[group] = 1
            return OK
        if result != BUSY:
            return FAULT
        if s[c.PENDING]:
            settle(s)
    return AGAIN


@part
def payer(s: State, enclave: int, page: int) -> int:
    """The group that a resident page is charged to; only the lists know, where an enclave has moved."""
    cg = tables.groups(s)
    ch = tables.chunks(s)
    nx = tables.links(s)
    row = tables.enclaves(s)[enclave]
    if not row[c.FLAGS] & c.MIXED:
        return row[c.HOME]  # type: ignore[no-any-return]
    for group in range(s[c.GROUPS]):
        if not cg[group, c.COUNT]:
            continue
        chunk, place = cg[group, c.HEAD], cg[group, c.HEAD_AT]
        while chunk >= 0:
            end = cg[group, c.TAIL_AT] if chunk == cg[group, c.TAIL] else 16
            while place < end:
                if ch[chunk, place] == page:
                    return group
                place += 1
            place = 0
            chunk = nx[chunk] if chunk != cg[group, c.TAIL] else -1
    return row[c.HOME]  # type: ignore[no-any-return]


@part
def remove_pages(s: State, enclave: int, first: int, pages: int) -> tuple[int, int]:
    """REMOVE_PAGES of trimmed pages: (how many, result of the last)."""
    fl = tables.page_flags(s)
    touched = tables.per_group(s)
    for group in range(s[c.GROUPS]):
        touched[group] = 0
    base = tables.enclaves(s)[enclave, c.BASE] + first
    done = 0
    result = OK
    while done < pages and result == OK:
        result = remove_page(s, enclave, base + done)
        if result == OK:
            done += 1
        if s[c.PENDING]:
            settle(s)
    for group in range(s[c.GROUPS]):
        if touched[group]:
            purge_group(s, group)
    for page in range(base, base + done):
        fl[page] = 0
    return done, result
