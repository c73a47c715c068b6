"""The engine, compiled: workers, ksgxd, disabling, release of groups (epc.worker, epc.background).

All of it runs inside ``settle``, whose order is the reference engine's.
"""

from __future__ import annotations

from epcgroup.sim import columns as c
from epcgroup.sim.charge import effort, excess
from epcgroup.sim.jit import compiled
from epcgroup.sim.lists import Arrays, behind, nothing, reorder, settle_group
from epcgroup.sim.reclaim import reclaim, unlist


@compiled
def disable(s: Arrays, enclave: int) -> None:
    """Every mapping of an enclave is zapped, for good."""
    en, fl = s[1], s[2]
    row = en[enclave]
    row[c.FLAGS] |= c.DISABLED
    for page in range(row[c.BASE], row[c.BASE] + row[c.SIZE]):
        fl[page] &= c.EXISTS | c.RESIDENT


@compiled
def disable_first(s: Arrays, top: int) -> bool:
    """v5: unlink the first entry of the first list; its enclave is the victim."""
    cg, en, nd, tb, bm, g = s[0], s[1], s[6], s[7], s[8], s[9]
    if g[c.DIRTY]:
        reorder(cg, tb, bm, g)
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


@compiled
def disable_and_wait(s: Arrays, top: int) -> None:
    """Disable one enclave, or wait for one that is disabled already."""
    cg, en, nd, tb, bm, g = s[0], s[1], s[6], s[7], s[8], s[9]
    if cg[top, c.VICTIM] >= 0:
        return
    if g[c.DIRTY]:
        reorder(cg, tb, bm, g)
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
    g[c.SEQ] += 1
    cg[top, c.VICTIM_SEQ] = g[c.SEQ]
    en[waited, c.FLAGS] |= c.AWAITED


@compiled
def worker(s: Arrays, group: int) -> None:
    """Bring a group's usage down to its goal."""
    cg, g = s[0], s[9]
    fruitless = 0
    idle = 0
    ignore = False
    wanted = 0
    while True:
        wanted = max(wanted, cg[group, c.WANTED])
        cg[group, c.WANTED] = 0
        above = excess(cg, g, group, wanted)
        if above <= 0:
            return
        if nothing(s, group):
            if g[c.K_DISABLE] == 1 and disable_first(s, group):
                continue
            if g[c.K_DISABLE] == 2 and excess(cg, g, group, 0) > 0:
                disable_and_wait(s, group)
            return
        batch = max(g[c.K_BATCH_MIN], min(above, g[c.K_BATCH_MAX]))
        scanned, written = reclaim(s, group, batch, ignore)
        below = cg[group, c.BELOW]
        fruitless, idle, ignore = effort(g, False, below, scanned, written, fruitless, idle, ignore)


@compiled
def ksgxd(s: Arrays) -> None:
    """Reclaim from the whole machine until enough is free."""
    cg, g = s[0], s[9]
    fruitless = 0
    idle = 0
    ignore = False
    wanted = g[c.KSGXD_WANTED]
    g[c.KSGXD_WANTED] = 0
    while True:
        missing = max(g[c.HIGH], wanted) - (g[c.EPC] - cg[0, c.USAGE])
        if missing <= 0 or nothing(s, 0):
            return
        batch = min(missing, g[c.K_GLOBAL]) if g[c.K_BY_NEED] else g[c.K_GLOBAL]
        scanned, written = reclaim(s, 0, batch, ignore)
        fruitless, idle, ignore = effort(g, True, cg[0, c.BELOW], scanned, written, fruitless, idle, ignore)


@compiled
def release_group(s: Arrays) -> None:
    """Release the group that has waited longest."""
    cg, tb, bm, g = s[0], s[7], s[8], s[9]
    group = tb[c.T_DYING, g[c.DYING_AT]]
    g[c.DYING_AT] = (g[c.DYING_AT] + 1) % g[c.RINGS]
    g[c.DYING] -= 1
    g[c.PENDING] -= 1
    row = cg[group]
    if row[c.QUEUED]:
        cancel_work(s, group)
    row[c.VICTIM] = -1
    if g[c.DIRTY]:
        reorder(cg, tb, bm, g)
    above = row[c.PARENT]
    while above >= 0:
        if cg[above, c.CURSOR] == group:
            cg[above, c.CURSOR] = behind(cg, tb, group, above)
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
    g[c.DIRTY] = 1
    cg[parent, c.KIDS] -= 1
    if not cg[parent, c.ONLINE]:
        settle_group(s, parent)


@compiled
def cancel_work(s: Arrays, group: int) -> None:
    """Take a group's worker out of the queue."""
    cg, tb, g = s[0], s[7], s[9]
    size = g[c.RINGS]
    kept = 0
    for i in range(g[c.WORKS]):
        queued = tb[c.T_WORKS, (g[c.WORKS_AT] + i) % size]
        if queued != group:
            tb[c.T_WORKS, (g[c.WORKS_AT] + kept) % size] = queued
            kept += 1
    g[c.WORKS] = kept
    g[c.PENDING] -= 1
    cg[group, c.QUEUED] = 0


@compiled
def settle(s: Arrays) -> None:
    """Background work until none is left: releases, then the oldest work, then ksgxd."""
    cg, tb, g = s[0], s[7], s[9]
    while g[c.PENDING]:
        if g[c.DYING]:
            release_group(s)
        elif g[c.WORKS]:
            group = tb[c.T_WORKS, g[c.WORKS_AT]]
            g[c.WORKS_AT] = (g[c.WORKS_AT] + 1) % g[c.RINGS]
            g[c.WORKS] -= 1
            g[c.PENDING] -= 1
            cg[group, c.QUEUED] = 0
            g[c.WORKS_RUN] += 1
            worker(s, group)
        else:
            g[c.WOKEN] = 0
            g[c.PENDING] -= 1
            g[c.KSGXD_RUNS] += 1
            ksgxd(s)
