"""The engine, compiled: birth and growth of enclaves (epc.enclaves, epc.fault)."""

from __future__ import annotations

from epcgroup.sim.compiler.jit import part
from epcgroup.sim.kernel import columns as c
from epcgroup.sim.kernel import tables
from epcgroup.sim.kernel.background import settle
from epcgroup.sim.kernel.charge import OK, PAGE_EXISTS, allocate
from epcgroup.sim.kernel.lists import append, uncharge
from epcgroup.sim.kernel.reclaim import free_node, log
from epcgroup.sim.kernel.tables import State


@part
def new_node(s: State, enclave: int, group: int, is_secs: bool) -> int:
    """A SECS or VA page, at the tail of its group's list of unreclaimable pages."""
    cg = tables.groups(s)
    nd = tables.nodes(s)
    node = s[c.NODE_FREE]
    if node >= 0:
        s[c.NODE_FREE] = nd[node, c.N_NEXT]
    else:
        node = s[c.NODES]
        s[c.NODES] += 1
    nd[node, c.N_ENCLAVE] = enclave
    nd[node, c.N_GROUP] = group
    nd[node, c.N_CHAIN] = -1
    nd[node, c.N_IS_SECS] = is_secs
    nd[node, c.N_LISTED] = s[c.K_TRACK]
    if s[c.K_TRACK]:
        tail = cg[group, c.UNREC_TAIL]
        nd[node, c.N_PREV] = tail
        nd[node, c.N_NEXT] = -1
        if tail >= 0:
            nd[tail, c.N_NEXT] = node
        else:
            cg[group, c.UNREC_HEAD] = node
        cg[group, c.UNREC_TAIL] = node
    return node  # type: ignore[no-any-return]


@part
def grow(s: State, enclave: int, group: int) -> None:
    """A VA page (charged by the caller) for an enclave."""
    en = tables.enclaves(s)
    nd = tables.nodes(s)
    row = en[enclave]
    node = new_node(s, enclave, group, False)
    if row[c.VA_COUNT]:
        nd[row[c.VA_LAST], c.N_CHAIN] = node
    else:
        row[c.VA_FIRST] = node
    row[c.VA_LAST] = node
    row[c.VA_COUNT] += 1
    s[c.ADDED_VA] += 1


@part
def create(s: State, enclave: int) -> int:
    """The first VA page, then the SECS; on error neither."""
    en = tables.enclaves(s)
    row = en[enclave]
    group = row[c.GROUP]
    both = s[c.K_PAIR]
    result = allocate(s, group, 2 if both else 1, True)
    if result:
        return result
    grow(s, enclave, group)
    if not both:
        result = allocate(s, group, 1, True)
        if result:
            free_node(s, row[c.VA_FIRST])
            row[c.VA_COUNT] = 0
            return result
    row[c.SECS] = new_node(s, enclave, group, True)
    row[c.PAGE_CNT] = 1
    row[c.FLAGS] = c.CREATED
    return OK


@part
def insert(s: State, enclave: int, group: int, page: int, flags: int) -> None:
    """A charged page becomes resident: at the tail of its group's list."""
    cg = tables.groups(s)
    en = tables.enclaves(s)
    fl = tables.page_flags(s)
    row = en[enclave]
    fl[page] = flags
    if row[c.HOME] != group:
        if row[c.CHILDREN] == 0:
            row[c.HOME] = group
            row[c.FLAGS] &= ~c.MIXED
        else:
            row[c.FLAGS] |= c.MIXED
    row[c.CHILDREN] += 1
    append(s, group, page)
    level = group
    while level >= 0:
        cg[level, c.BELOW] += 1
        level = cg[level, c.PARENT]


@part
def new_page(s: State, enclave: int, page: int, may_reclaim: bool, flags: int) -> int:
    """A page that did not exist, and the VA page when one is due; of one that exists, neither."""
    en = tables.enclaves(s)
    fl = tables.page_flags(s)
    row = en[enclave]
    group = row[c.GROUP]
    due = row[c.PAGE_CNT] % 512 == 0
    result = allocate(s, group, 1 + due if s[c.K_PAIR] else 1, may_reclaim)
    if result:
        return result
    if due and not s[c.K_PAIR]:
        result = allocate(s, group, 1, may_reclaim)
        if result:
            uncharge(s, group, 1, 0)
            return result
    if fl[page] & c.EXISTS:  # the map is asked last, so others may have lost pages for nothing
        uncharge(s, group, 1 + due, 0)
        return PAGE_EXISTS
    if due:
        grow(s, enclave, group)
    row[c.PAGE_CNT] += 1
    insert(s, enclave, group, page, flags)
    return OK


@part
def add_page(s: State, enclave: int, index: int) -> int:
    """EADD. The caller has checked the enclave's state and the range."""
    cg = tables.groups(s)
    en = tables.enclaves(s)
    row = en[enclave]
    result = new_page(s, enclave, row[c.BASE] + index, True, c.EXISTS | c.RESIDENT)
    if not result:
        row[c.E_ADDED] += 1
        cg[row[c.GROUP], c.ADDED] += 1
    return result


@part
def add_pages(s: State, enclave: int, first: int, pages: int, settle_each: bool) -> tuple[int, int]:
    """EADD of many pages: (how many, result of the last)."""
    for done in range(pages):
        result = add_page(s, enclave, first + done)
        if result:
            if s[c.PENDING]:
                settle(s)
            return done, result
        if settle_each and s[c.PENDING]:
            settle(s)
    if s[c.PENDING]:
        settle(s)
    return pages, OK


@part
def count_load(s: State, enclave: int, group: int, index: int) -> None:
    """A page of an enclave has been loaded, -1: its SECS."""
    tables.enclaves(s)[enclave, c.E_LOADED] += 1
    tables.groups(s)[group, c.LOADED] += 1
    s[c.LOADED_TOTAL] += 1
    if s[c.LOGGING]:
        log(s, enclave, index)


@part
def load_secs(s: State, enclave: int, more: int) -> int:
    """ELDU of the SECS, and ``more`` pages charged with it where the policy takes all at once."""
    en = tables.enclaves(s)
    row = en[enclave]
    group = row[c.GROUP]
    result = allocate(s, group, 1 + more if s[c.K_PAIR] else 1, False)
    if result:
        return result
    row[c.SECS] = new_node(s, enclave, group, True)
    count_load(s, enclave, group, -1)
    return OK


@part
def augment(s: State, enclave: int, page: int) -> int:
    """EAUG: a new page in an initialised enclave, mapped; never reclaims."""
    cg = tables.groups(s)
    en = tables.enclaves(s)
    row = en[enclave]
    group = row[c.GROUP]
    due = row[c.PAGE_CNT] % 512 == 0
    flags = c.EXISTS | c.RESIDENT | c.MAPPED
    if row[c.SECS] < 0:
        result = load_secs(s, enclave, 1 + due)
        if result:
            return result
        if s[c.K_PAIR]:
            if due:
                grow(s, enclave, group)
            row[c.PAGE_CNT] += 1
            insert(s, enclave, group, page, flags)
        else:
            result = new_page(s, enclave, page, False, flags)
    else:
        result = new_page(s, enclave, page, False, flags)
    if not result:
        row[c.E_AUGMENTED] += 1
        cg[group, c.AUGMENTED] += 1
        s[c.AUGMENTED_TOTAL] += 1
    return result


@part
def fault_vepc(s: State, group: int) -> int:
    """A guest touches a page that it has not: OK, BUSY or NO_EPC."""
    return allocate(s, group, 1, False)


@part
def fill_vepc(s: State, group: int, pages: int) -> int:
    """A guest touches so many new pages, each tried as often as an access; how many it got."""
    for done in range(pages):
        for call in range(8):
            result = allocate(s, group, 1, False)
            if s[c.PENDING]:
                settle(s)
            if result == OK:
                break
            if result != -16 or call == 7:
                return done
    return pages
