"""The engine, compiled: workers, ksgxd, disabling, release of groups (epc.worker, epc.background).

All of it runs inside ``settle``, whose order is the reference engine's.
"""

from __future__ import annotations

from epcgroup.sim.compiler.jit import part
from epcgroup.sim.kernel import columns as c
from epcgroup.sim.kernel import tables
from epcgroup.sim.kernel.charge import effort, excess
from epcgroup.sim.kernel.lists import behind, nothing, reorder, settle_group
from epcgroup.sim.kernel.reclaim import reclaim, unlist
from epcgroup.sim.kernel.tables import State


@part
def disable(s: State, enclave: int) -> None:
    """Every mapping of an enclave is zapped, for good."""
    en = tables.enclaves(s)
    fl = tables.page_flags(s)
    row = en[enclave]
    row[c.FLAGS] |= c.DISABLED
    for page in range(row[c.BASE], row[c.BASE] + row[c.SIZE]):
        fl[page] &= c.EXISTS | c.RESIDENT


@part
def disable_first(s: State, top: int) -> bool:
    """v5: unlink the first entry of the first list; its enclave is the victim."""
    cg = tables.groups(s)
    en = tables.enclaves(s)
    nd = tables.nodes(s)
    tb = tables.order(s)
    if s[c.DIRTY]:
        reorder(s)
    for place in range(cg[top, c.POS], cg[top, c.END]):
        group = tb[c.T_ORDER, place]
        node = cg[group, c.UNREC_HEAD]
        if node < 0 or cg[group, c.WAITING]:
            continue
        unlist(s, node)
        enclave = nd[node, c.N_ENCLAVE]
        if not en[enclave, c.FLAGS] & c.CREATED:
            continue
        if not en[enclave, c.FLAGS] & c.DISABLED:
            disable(s, enclave)
        return True
    return False


@part
def disable_and_wait(s: State, top: int) -> None:
    """Disable one enclave, or wait for one that is disabled already."""
    cg = tables.groups(s)
    en = tables.enclaves(s)
    nd = tables.nodes(s)
    tb = tables.order(s)
    if cg[top, c.VICTIM] >= 0:
        return
    if s[c.DIRTY]:
        reorder(s)
    victim = -1
    waited = -1
    for place in range(cg[top, c.POS], cg[top, c.END]):
        node = cg[tb[c.T_ORDER, place], c.UNREC_HEAD]
        while node >= 0:
            enclave = nd[node, c.N_ENCLAVE]
            flags = en[enclave, c.FLAGS]
            if flags & c.CREATED:
                if flags & c.DISABLED:
                    waited = enclave
                    break
                if victim < 0:
                    victim = enclave
            node = nd[node, c.N_NEXT]
        if waited >= 0:
            break
    if waited < 0:
        if victim < 0:
            return
        disable(s, victim)
        waited = victim
    cg[top, c.VICTIM] = waited
    s[c.SEQ] += 1
    cg[top, c.VICTIM_SEQ] = s[c.SEQ]
    en[waited, c.FLAGS] |= c.AWAITED


@part
def worker(s: State, group: int) -> None:
    """Bring a group's usage down to its goal."""
    cg = tables.groups(s)
    fruitless = 0
    idle = 0
    ignore = False
    wanted = cg[group, c.WANTED]
    cg[group, c.WANTED] = 0
    batch = 0
    while True:
        above = excess(s, group, wanted)
        if above <= 0:
            return
        if nothing(s, group):
            if s[c.K_DISABLE] == 1 and disable_first(s, group):
                continue
            if s[c.K_DISABLE] == 2 and excess(s, group, 0) > 0:
                disable_and_wait(s, group)
            return
        if not s[c.K_BY_NEED] or batch == 0 or wanted == 0:
            batch = max(s[c.K_BATCH_MIN], min(above, s[c.K_BATCH_MAX]))
        scanned, written = reclaim(s, group, batch, ignore)
        below = cg[group, c.BELOW]
        fruitless, idle, ignore = effort(s, False, below, scanned, written, fruitless, idle, ignore)


@part
def ksgxd(s: State) -> None:
    """Reclaim from the whole machine until enough is free."""
    cg = tables.groups(s)
    fruitless = 0
    idle = 0
    ignore = False
    wanted = s[c.KSGXD_WANTED]
    s[c.KSGXD_WANTED] = 0
    batch = 0
    while True:
        missing = max(s[c.HIGH], wanted) - (s[c.EPC] - cg[0, c.USAGE])
        if missing <= 0 or nothing(s, 0):
            return
        if batch == 0:
            batch = min(missing, s[c.K_GLOBAL]) if s[c.K_BY_NEED] else s[c.K_GLOBAL]
        scanned, written = reclaim(s, 0, batch, ignore)
        fruitless, idle, ignore = effort(s, True, cg[0, c.BELOW], scanned, written, fruitless, idle, ignore)


@part
def release_group(s: State) -> None:
    """Release the group that has waited longest."""
    cg = tables.groups(s)
    tb = tables.order(s)
    group = tb[c.T_DYING, s[c.DYING_AT]]
    s[c.DYING_AT] = (s[c.DYING_AT] + 1) % s[c.RINGS]
    s[c.DYING] -= 1
    s[c.PENDING] -= 1
    row = cg[group]
    if row[c.QUEUED]:
        cancel_work(s, group)
    row[c.VICTIM] = -1
    if s[c.DIRTY]:
        reorder(s)
    above = row[c.PARENT]
    while above >= 0:
        if cg[above, c.CURSOR] == group:
            cg[above, c.CURSOR] = behind(s, group, above)
        above = cg[above, c.PARENT]
    parent, before, after = row[c.PARENT], row[c.PREV], row[c.NEXT]
    if before >= 0:
        cg[before, c.NEXT] = after
    else:
        cg[parent, c.FIRST] = after
    if after >= 0:
        cg[after, c.PREV] = before
    else:
        cg[parent, c.LAST] = before
    row[c.RELEASED] = 1
    s[c.DIRTY] = 1
    cg[parent, c.KIDS] -= 1
    if not cg[parent, c.ONLINE]:
        settle_group(s, parent)


@part
def cancel_work(s: State, group: int) -> None:
    """Take a group's worker out of the queue."""
    cg = tables.groups(s)
    tb = tables.order(s)
    size = s[c.RINGS]
    kept = 0
    for i in range(s[c.WORKS]):
        queued = tb[c.T_WORKS, (s[c.WORKS_AT] + i) % size]
        if queued != group:
            tb[c.T_WORKS, (s[c.WORKS_AT] + kept) % size] = queued
            kept += 1
    s[c.WORKS] = kept
    s[c.PENDING] -= 1
    cg[group, c.QUEUED] = 0


@part
def settle(s: State) -> None:
    """Background work until none is left: releases, then the oldest work, then ksgxd."""
    cg = tables.groups(s)
    tb = tables.order(s)
    while s[c.PENDING]:
        if s[c.DYING]:
            release_group(s)
        elif s[c.WORKS]:
            group = tb[c.T_WORKS, s[c.WORKS_AT]]
            s[c.WORKS_AT] = (s[c.WORKS_AT] + 1) % s[c.RINGS]
            s[c.WORKS] -= 1
            s[c.PENDING] -= 1
            cg[group, c.QUEUED] = 0
            s[c.WORKS_RUN] += 1
            worker(s, group)
        else:
            s[c.WOKEN] = 0
            s[c.PENDING] -= 1
            s[c.KSGXD_RUNS] += 1
            ksgxd(s)
