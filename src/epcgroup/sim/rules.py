"""The engine, compiled, part 2: charging, background work, life and death of enclaves.

* ``allocate``        epc.alloc.allocate with epc.charge.charge (physical pages cannot
  run out before the root's charge does: every page in use is charged)
* ``effort``          epc.reclaim.Effort
* ``worker``, ``ksgxd``, ``settle``   epc.worker, epc.background
* ``disable_first``, ``disable_and_wait``   epc.disable
* ``create``, ``add_page``, ``augment``, ``release``   epc.enclaves, epc.fault, epc.release

All of it runs once per batch of evicted pages, per enclave or per refused fault;
the path of one fault that is not refused is in :mod:`.kernel`.
"""

from __future__ import annotations

from typing import Any

from epcgroup.sim.columns import (
    ADDED,
    ADDED_VA,
    AUGMENTED,
    AUGMENTED_TOTAL,
    AWAITED,
    BASE,
    BELOW,
    BLOCK,
    CHILDREN,
    CHUNK_FREE,
    COUNT,
    CREATED,
    CURSOR,
    DEAD,
    DIRTY,
    DISABLED,
    DYING,
    DYING_AT,
    E_ADDED,
    E_AUGMENTED,
    E_LOADED,
    END,
    EPC,
    EVENTS,
    EVENTS_LOCAL,
    EXISTS,
    FIRST,
    FLAGS,
    GROUP,
    GROUPS,
    HEAD,
    HEAD_AT,
    HIGH,
    HOME,
    INITIALISED,
    K_BATCH_MAX,
    K_BATCH_MIN,
    K_BY_NEED,
    K_DIRECT,
    K_DISABLE,
    K_GIVE_UP,
    K_GLOBAL,
    K_GLOBAL_IGNORE,
    K_GOAL,
    K_IGNORE_AFTER,
    K_PAIR,
    K_PREQUEUE,
    K_REFUSING,
    K_TRACK,
    K_WITH_ROOT,
    KIDS,
    KSGXD_RUNS,
    KSGXD_WANTED,
    LAST,
    LIMIT,
    LOADED,
    LOADED_TOTAL,
    LOGGING,
    LOW,
    MAPPED,
    MIXED,
    N_CHAIN,
    N_ENCLAVE,
    N_GROUP,
    N_IS_SECS,
    N_LISTED,
    N_NEXT,
    N_PREV,
    NEXT,
    NODE_FREE,
    NODES,
    ONLINE,
    PAGE_CNT,
    PARENT,
    PATH_MIN,
    PEAK,
    PENDING,
    PINS,
    POS,
    PREV,
    QUEUED,
    RELEASED,
    RELEASED_ENCLAVE,
    REMOVED,
    RESIDENT,
    RINGS,
    SECS,
    SEQ,
    SIZE,
    STALE,
    T_DYING,
    T_ORDER,
    T_WORKS,
    TAIL,
    TAIL_AT,
    UNREC_HEAD,
    UNREC_TAIL,
    USAGE,
    VA_COUNT,
    VA_FIRST,
    VA_LAST,
    VICTIM,
    VICTIM_SEQ,
    WAITING,
    WANTED,
    WOKEN,
    WORKS,
    WORKS_AT,
    WORKS_RUN,
)
from epcgroup.sim.jit import compiled
from epcgroup.sim.reclaim import (
    Arrays,
    append,
    behind,
    free_node,
    log,
    mark,
    new_chunk,
    nothing,
    reclaim,
    reorder,
    settle_group,
    uncharge,
    unlist,
)

OK = 0
BUSY = -16
NO_EPC = -12


@compiled
def queue_work(s: Arrays, group: int) -> None:
    """Queue a group's worker, unless it is in the queue."""
    cg, tb, g = s[0], s[7], s[9]
    if not cg[group, QUEUED]:
        cg[group, QUEUED] = 1
        tb[T_WORKS, (g[WORKS_AT] + g[WORKS]) % g[RINGS]] = group
        g[WORKS] += 1
        g[PENDING] += 1


@compiled
def wake_ksgxd(s: Arrays) -> None:
    """Wake ksgxd, if anything is reclaimable."""
    g = s[9]
    if not g[WOKEN] and not nothing(s, 0):
        g[WOKEN] = 1
        g[PENDING] += 1


@compiled
def excess(cg: Any, g: Any, group: int, wanted: int) -> int:
    """Pages by which a group is above the goal of its worker."""
    limit = min(cg[group, LIMIT], g[EPC]) if g[K_REFUSING] else cg[group, PATH_MIN]
    if g[K_GOAL] == 0:
        goal = max(limit - 1, 0)
        if goal > 32:
            goal -= 8
        goal = min(goal, g[EPC])
    elif g[K_GOAL] == 1:
        goal = (limit - 32 if limit > 128 else limit) - 1
    elif wanted == 0:
        goal = limit
    else:
        goal = max(limit - max(wanted, min(limit // 16, 16)), 0)
    return cg[group, USAGE] - goal  # type: ignore[no-any-return]


@compiled
def effort(
    g: Any, machine_wide: bool, below: int, scanned: int, written: int, fruitless: int, idle: int, ignore: bool
) -> tuple[int, int, bool]:
    """A reclaimer's patience after one round: (fruitless rounds, pages scanned in vain, ignore age)."""
    if g[K_IGNORE_AFTER] < 0 or (machine_wide and not g[K_GLOBAL_IGNORE]):
        return fruitless, idle, False
    if not g[K_GIVE_UP]:
        fruitless += written == 0
        return fruitless, idle, fruitless > g[K_IGNORE_AFTER]
    if written:
        return 0, 0, False
    fruitless += 1
    idle += scanned
    if fruitless <= g[K_IGNORE_AFTER] or idle < below:
        return fruitless, idle, ignore
    return 0, 0, True


@compiled
def count_event(s: Arrays, failed: int) -> None:
    """Count one refused charge at the level that refused, and above."""
    cg, g = s[0], s[9]
    with_root = g[K_WITH_ROOT]
    if not with_root:
        cg[failed, EVENTS_LOCAL] += 1
    level = failed
    while level > 0 or (level == 0 and with_root):
        cg[level, EVENTS] += 1
        level = cg[level, PARENT]


@compiled
def try_charge(s: Arrays, group: int, pages: int) -> int:
    """Charge a group and all its ancestors: -1, or the level that refused."""
    cg, g = s[0], s[9]
    capacity = g[EPC]
    level = group
    while level >= 0:
        usage = cg[level, USAGE] + pages
        if usage > cg[level, LIMIT] or usage > capacity:
            undo = group
            while undo != level:
                cg[undo, USAGE] -= pages
                undo = cg[undo, PARENT]
            count_event(s, level)
            return level
        cg[level, USAGE] = usage
        if usage > cg[level, PEAK]:
            cg[level, PEAK] = usage
        level = cg[level, PARENT]
    return -1


@compiled
def refused(s: Arrays, group: int, failed: int, pages: int) -> int:
    """A fault's charge was refused: ask the worker and say busy, or nothing can be had."""
    cg, g = s[0], s[9]
    target = failed if g[K_REFUSING] else group
    if nothing(s, target):
        return NO_EPC
    cg[target, WANTED] = max(cg[target, WANTED], pages)
    queue_work(s, target)
    return BUSY


@compiled
def allocate(s: Arrays, group: int, pages: int, may_reclaim: bool) -> int:
    """``pages`` charged and pinned, all or none: OK, BUSY or NO_EPC."""
    cg, g = s[0], s[9]
    fruitless = 0
    idle = 0
    ignore = False
    while True:
        failed = try_charge(s, group, pages)
        if failed < 0:
            break
        if not may_reclaim:
            return refused(s, group, failed, pages)
        target = failed if g[K_REFUSING] else group
        if nothing(s, target):
            return NO_EPC
        batch = g[K_DIRECT]
        if g[K_BY_NEED]:
            batch = max(g[K_BATCH_MIN], min(excess(cg, g, target, pages), g[K_BATCH_MAX]))
        scanned, written = reclaim(s, target, batch, ignore)
        fruitless, idle, ignore = effort(
            g, False, cg[target, BELOW], scanned, written, fruitless, idle, ignore
        )
    cg[group, PINS] += pages
    if g[K_PREQUEUE] and excess(cg, g, group, 0) > 0 and not nothing(s, group):
        queue_work(s, group)
    if g[EPC] - cg[0, USAGE] < g[LOW]:
        wake_ksgxd(s)
    return OK


@compiled
def new_node(s: Arrays, enclave: int, group: int, is_secs: bool) -> int:
    """A SECS or VA page, at the tail of its group's list of unreclaimable pages."""
    cg, nd, g = s[0], s[6], s[9]
    node = g[NODE_FREE]
    if node >= 0:
        g[NODE_FREE] = nd[node, N_NEXT]
    else:
        node = g[NODES]
        g[NODES] += 1
    nd[node, N_ENCLAVE] = enclave
    nd[node, N_GROUP] = group
    nd[node, N_CHAIN] = -1
    nd[node, N_IS_SECS] = is_secs
    nd[node, N_LISTED] = g[K_TRACK]
    if g[K_TRACK]:
        tail = cg[group, UNREC_TAIL]
        nd[node, N_PREV] = tail
        nd[node, N_NEXT] = -1
        if tail >= 0:
            nd[tail, N_NEXT] = node
        else:
            cg[group, UNREC_HEAD] = node
        cg[group, UNREC_TAIL] = node
    return node  # type: ignore[no-any-return]


@compiled
def grow(s: Arrays, enclave: int, group: int) -> None:
    """A VA page (charged by the caller) for an enclave."""
    en, nd, g = s[1], s[6], s[9]
    row = en[enclave]
    node = new_node(s, enclave, group, False)
    if row[VA_COUNT]:
        nd[row[VA_LAST], N_CHAIN] = node
    else:
        row[VA_FIRST] = node
    row[VA_LAST] = node
    row[VA_COUNT] += 1
    g[ADDED_VA] += 1


@compiled
def create(s: Arrays, enclave: int) -> int:
    """The first VA page, then the SECS; on error neither."""
    en, nd, g = s[1], s[6], s[9]
    row = en[enclave]
    group = row[GROUP]
    both = g[K_PAIR]
    result = allocate(s, group, 2 if both else 1, True)
    if result:
        return result
    grow(s, enclave, group)
    if not both:
        result = allocate(s, group, 1, True)
        if result:
            free_node(s, row[VA_FIRST])
            row[VA_COUNT] = 0
            return result
    row[SECS] = new_node(s, enclave, group, True)
    row[PAGE_CNT] = 1
    row[FLAGS] = CREATED
    return OK


@compiled
def insert(s: Arrays, enclave: int, group: int, page: int, flags: int) -> None:
    """A charged page becomes resident: at the tail of its group's list."""
    cg, en, fl = s[0], s[1], s[2]
    row = en[enclave]
    fl[page] = flags
    if row[HOME] != group:
        if row[CHILDREN] == 0:
            row[HOME] = group
            row[FLAGS] &= ~MIXED
        else:
            row[FLAGS] |= MIXED
    row[CHILDREN] += 1
    append(s, group, page)
    level = group
    while level >= 0:
        cg[level, BELOW] += 1
        level = cg[level, PARENT]


@compiled
def new_page(s: Arrays, enclave: int, page: int, may_reclaim: bool, flags: int) -> int:
    """A page that did not exist, and the VA page when one is due."""
    en, g = s[1], s[9]
    row = en[enclave]
    group = row[GROUP]
    due = row[PAGE_CNT] % 512 == 0
    result = allocate(s, group, 1 + due if g[K_PAIR] else 1, may_reclaim)
    if result:
        return result
    if due and not g[K_PAIR]:
        result = allocate(s, group, 1, may_reclaim)
        if result:
            uncharge(s, group, 1)
            return result
    if due:
        grow(s, enclave, group)
    row[PAGE_CNT] += 1
    insert(s, enclave, group, page, flags)
    return OK


@compiled
def add_page(s: Arrays, enclave: int, index: int) -> int:
    """EADD. The caller has checked the enclave's state and that the page does not exist."""
    cg, en = s[0], s[1]
    row = en[enclave]
    result = new_page(s, enclave, row[BASE] + index, True, EXISTS | RESIDENT)
    if not result:
        row[E_ADDED] += 1
        cg[row[GROUP], ADDED] += 1
    return result


@compiled
def add_pages(s: Arrays, enclave: int, first: int, pages: int, settle_each: bool) -> tuple[int, int]:
    """EADD of many pages: (how many, result of the last)."""
    g = s[9]
    for done in range(pages):
        result = add_page(s, enclave, first + done)
        if result:
            if g[PENDING]:
                settle(s)
            return done, result
        if settle_each and g[PENDING]:
            settle(s)
    if g[PENDING]:
        settle(s)
    return pages, OK


@compiled
def load_secs(s: Arrays, enclave: int, more: int) -> int:
    """ELDU of the SECS, and ``more`` pages charged with it where the policy takes all at once."""
    cg, en, g = s[0], s[1], s[9]
    row = en[enclave]
    group = row[GROUP]
    result = allocate(s, group, 1 + more if g[K_PAIR] else 1, False)
    if result:
        return result
    row[SECS] = new_node(s, enclave, group, True)
    row[E_LOADED] += 1
    cg[group, LOADED] += 1
    g[LOADED_TOTAL] += 1
    if g[LOGGING]:
        log(s, enclave, -1)
    return OK


@compiled
def augment(s: Arrays, enclave: int, page: int) -> int:
    """EAUG: a new page in an initialised enclave, mapped; never reclaims."""
    cg, en, g = s[0], s[1], s[9]
    row = en[enclave]
    group = row[GROUP]
    due = row[PAGE_CNT] % 512 == 0
    flags = EXISTS | RESIDENT | MAPPED
    if row[SECS] < 0:
        result = load_secs(s, enclave, 1 + due)
        if result:
            return result
        if g[K_PAIR]:
            if due:
                grow(s, enclave, group)
            row[PAGE_CNT] += 1
            insert(s, enclave, group, page, flags)
        else:
            result = new_page(s, enclave, page, False, flags)
    else:
        result = new_page(s, enclave, page, False, flags)
    if not result:
        row[E_AUGMENTED] += 1
        cg[group, AUGMENTED] += 1
        g[AUGMENTED_TOTAL] += 1
    return result


@compiled
def fault_vepc(s: Arrays, group: int) -> int:
    """A guest touches a page that it has not: OK, BUSY or NO_EPC."""
    return allocate(s, group, 1, False)


@compiled
def release(s: Arrays, enclave: int) -> None:
    """Free every page: children in ascending order, then the SECS, then the VA pages."""
    en, fl, nd, g = s[1], s[2], s[6], s[9]
    row = en[enclave]
    base = row[BASE]
    if row[CHILDREN]:
        if row[FLAGS] & MIXED:
            release_mixed(s, enclave)
        else:
            drop_pages(s, row[HOME], row[CHILDREN])
        g[STALE] += row[CHILDREN]
    for page in range(base, base + row[SIZE]):
        fl[page] = DEAD
    row[CHILDREN] = 0
    if row[SECS] >= 0:
        s[0][nd[row[SECS], N_GROUP], REMOVED] += 1
        free_node(s, row[SECS])
        row[SECS] = -1
    node = row[VA_FIRST]
    for _ in range(row[VA_COUNT]):
        after = nd[node, N_CHAIN]
        s[0][nd[node, N_GROUP], REMOVED] += 1
        free_node(s, node)
        node = after
    row[VA_COUNT] = 0
    awaited = row[FLAGS] & AWAITED
    row[FLAGS] |= RELEASED_ENCLAVE
    if awaited:
        end_wait(s, enclave)


@compiled
def end_wait(s: Arrays, enclave: int) -> None:
    """Groups that waited for an enclave's release run their workers again, in their order."""
    cg, g = s[0], s[9]
    while True:
        first = -1
        for group in range(g[GROUPS]):
            if cg[group, VICTIM] == enclave and (
                first < 0 or cg[group, VICTIM_SEQ] < cg[first, VICTIM_SEQ]
            ):
                first = group
        if first < 0:
            return
        cg[first, VICTIM] = -1
        if not cg[first, RELEASED]:
            queue_work(s, first)


@compiled
def drop_pages(s: Arrays, group: int, pages: int) -> None:
    """Pages on a group's list are gone; their entries stay and are passed over."""
    cg, bm, g = s[0], s[8], s[9]
    cg[group, COUNT] -= pages
    cg[group, REMOVED] += pages
    level = group
    while level >= 0:
        cg[level, BELOW] -= pages
        level = cg[level, PARENT]
    if not cg[group, COUNT]:
        mark(cg, bm, g, group, False)
    uncharge(s, group, pages)


@compiled
def release_mixed(s: Arrays, enclave: int) -> None:
    """The same for an enclave whose pages are charged to several groups.

    Which group a page is charged to, only the lists tell: they are searched. The
    groups lose their pages in the order in which the last of each goes.
    """
    cg, en, fl, ow, ch, nx, g, scratch = s[0], s[1], s[2], s[3], s[4], s[5], s[9], s[12]
    row = en[enclave]
    groups = g[GROUPS]
    scratch[:groups] = 0
    for group in range(groups):
        if not cg[group, COUNT]:
            continue
        chunk, place = cg[group, HEAD], cg[group, HEAD_AT]
        last = -1
        mine = 0
        while chunk >= 0:
            end = cg[group, TAIL_AT] if chunk == cg[group, TAIL] else 16
            while place < end:
                page = ch[chunk, place]
                if not fl[page] & DEAD and ow[page >> BLOCK] == enclave:
                    mine += 1
                    last = max(last, page - row[BASE])
                place += 1
            place = 0
            chunk = nx[chunk] if chunk != cg[group, TAIL] else -1
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


@compiled
def purge(s: Arrays) -> None:
    """Drop every list entry whose page is dead; then their numbers may be used again."""
    cg, fl, ch, nx, g = s[0], s[2], s[4], s[5], s[9]
    for group in range(g[GROUPS]):
        chunk, place = cg[group, HEAD], cg[group, HEAD_AT]
        tail, tail_at = cg[group, TAIL], cg[group, TAIL_AT]
        cg[group, HEAD] = cg[group, TAIL] = -1
        cg[group, HEAD_AT] = cg[group, TAIL_AT] = 0
        to = -1
        to_at = 16
        while chunk >= 0:
            end = tail_at if chunk == tail else 16
            while place < end:
                page = ch[chunk, place]
                place += 1
                if fl[page] & DEAD:
                    continue
                if to_at == 16:
                    after = new_chunk(ch, nx, g)
                    if to < 0:
                        cg[group, HEAD] = after
                    else:
                        nx[to] = after
                    to = after
                    to_at = 0
                ch[to, to_at] = page
                to_at += 1
            after = nx[chunk] if chunk != tail else -1
            nx[chunk] = g[CHUNK_FREE]
            g[CHUNK_FREE] = chunk
            chunk = after
            place = 0
        cg[group, TAIL] = to
        cg[group, TAIL_AT] = to_at if to >= 0 else 0
    g[STALE] = 0


@compiled
def disable(s: Arrays, enclave: int) -> None:
    """Every mapping of an enclave is zapped, for good."""
    en, fl = s[1], s[2]
    row = en[enclave]
    row[FLAGS] |= DISABLED
    for page in range(row[BASE], row[BASE] + row[SIZE]):
        fl[page] &= EXISTS | RESIDENT


@compiled
def disable_first(s: Arrays, top: int) -> bool:
    """v5: unlink the first entry of the first list; its enclave is the victim."""
    cg, en, nd, tb, bm, g = s[0], s[1], s[6], s[7], s[8], s[9]
    if g[DIRTY]:
        reorder(cg, tb, bm, g)
    for place in range(cg[top, POS], cg[top, END]):
        group = tb[T_ORDER, place]
        node = cg[group, UNREC_HEAD]
        if node < 0 or cg[group, WAITING]:
            continue
        unlist(s, node)
        enclave = nd[node, N_ENCLAVE]
        if not en[enclave, FLAGS] & CREATED:
            continue
        if not en[enclave, FLAGS] & DISABLED:
            disable(s, enclave)
        return True
    return False


@compiled
def disable_and_wait(s: Arrays, top: int) -> None:
    """Disable one enclave, or wait for one that is disabled already."""
    cg, en, nd, tb, bm, g = s[0], s[1], s[6], s[7], s[8], s[9]
    if cg[top, VICTIM] >= 0:
        return
    if g[DIRTY]:
        reorder(cg, tb, bm, g)
    victim = -1
    waited = -1
    for place in range(cg[top, POS], cg[top, END]):
        node = cg[tb[T_ORDER, place], UNREC_HEAD]
        while node >= 0:
            enclave = nd[node, N_ENCLAVE]
            flags = en[enclave, FLAGS]
            if flags & CREATED:
                if flags & DISABLED:
                    waited = enclave
                    break
                if victim < 0:
                    victim = enclave
            node = nd[node, N_NEXT]
        if waited >= 0:
            break
    if waited < 0:
        if victim < 0:
            return
        disable(s, victim)
        waited = victim
    cg[top, VICTIM] = waited
    g[SEQ] += 1
    cg[top, VICTIM_SEQ] = g[SEQ]
    en[waited, FLAGS] |= AWAITED


@compiled
def worker(s: Arrays, group: int) -> None:
    """Bring a group's usage down to its goal."""
    cg, g = s[0], s[9]
    fruitless = 0
    idle = 0
    ignore = False
    wanted = 0
    while True:
        wanted = max(wanted, cg[group, WANTED])
        cg[group, WANTED] = 0
        above = excess(cg, g, group, wanted)
        if above <= 0:
            return
        if nothing(s, group):
            if g[K_DISABLE] == 1 and disable_first(s, group):
                continue
            if g[K_DISABLE] == 2 and excess(cg, g, group, 0) > 0:
                disable_and_wait(s, group)
            return
        batch = max(g[K_BATCH_MIN], min(above, g[K_BATCH_MAX]))
        scanned, written = reclaim(s, group, batch, ignore)
        fruitless, idle, ignore = effort(g, False, cg[group, BELOW], scanned, written, fruitless, idle, ignore)


@compiled
def ksgxd(s: Arrays) -> None:
    """Reclaim from the whole machine until enough is free."""
    cg, g = s[0], s[9]
    fruitless = 0
    idle = 0
    ignore = False
    wanted = g[KSGXD_WANTED]
    g[KSGXD_WANTED] = 0
    while True:
        missing = max(g[HIGH], wanted) - (g[EPC] - cg[0, USAGE])
        if missing <= 0 or nothing(s, 0):
            return
        batch = min(missing, g[K_GLOBAL]) if g[K_BY_NEED] else g[K_GLOBAL]
        scanned, written = reclaim(s, 0, batch, ignore)
        fruitless, idle, ignore = effort(g, True, cg[0, BELOW], scanned, written, fruitless, idle, ignore)


@compiled
def release_group(s: Arrays) -> None:
    """Release the group that has waited longest."""
    cg, tb, bm, g = s[0], s[7], s[8], s[9]
    group = tb[T_DYING, g[DYING_AT]]
    g[DYING_AT] = (g[DYING_AT] + 1) % g[RINGS]
    g[DYING] -= 1
    g[PENDING] -= 1
    row = cg[group]
    if row[QUEUED]:
        cancel_work(s, group)
    row[VICTIM] = -1
    if g[DIRTY]:
        reorder(cg, tb, bm, g)
    above = row[PARENT]
    while above >= 0:
        if cg[above, CURSOR] == group:
            cg[above, CURSOR] = behind(cg, tb, group, above)
        above = cg[above, PARENT]
    parent, before, after = row[PARENT], row[PREV], row[NEXT]
    if before >= 0:
        cg[before, NEXT] = after
    else:
        cg[parent, FIRST] = after
    if after >= 0:
        cg[after, PREV] = before
    else:
        cg[parent, LAST] = before
    row[RELEASED] = 1
    g[DIRTY] = 1
    cg[parent, KIDS] -= 1
    if not cg[parent, ONLINE]:
        settle_group(s, parent)


@compiled
def cancel_work(s: Arrays, group: int) -> None:
    """Take a group's worker out of the queue."""
    cg, tb, g = s[0], s[7], s[9]
    size = g[RINGS]
    kept = 0
    for i in range(g[WORKS]):
        queued = tb[T_WORKS, (g[WORKS_AT] + i) % size]
        if queued != group:
            tb[T_WORKS, (g[WORKS_AT] + kept) % size] = queued
            kept += 1
    g[WORKS] = kept
    g[PENDING] -= 1
    cg[group, QUEUED] = 0


@compiled
def settle(s: Arrays) -> None:
    """Background work until none is left: releases, then the oldest work, then ksgxd."""
    cg, tb, g = s[0], s[7], s[9]
    while g[PENDING]:
        if g[DYING]:
            release_group(s)
        elif g[WORKS]:
            group = tb[T_WORKS, g[WORKS_AT]]
            g[WORKS_AT] = (g[WORKS_AT] + 1) % g[RINGS]
            g[WORKS] -= 1
            g[PENDING] -= 1
            cg[group, QUEUED] = 0
            g[WORKS_RUN] += 1
            worker(s, group)
        else:
            g[WOKEN] = 0
            g[PENDING] -= 1
            g[KSGXD_RUNS] += 1
            ksgxd(s)
