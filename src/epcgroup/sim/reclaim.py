"""The engine, compiled, part 1: counters, lists, walks, one reclaim round.

The same rules as the reference engine, flattened for speed. Which block is what:

* ``uncharge``       epc.release.free_page, for several pages of one group at once
* ``reorder``, ``next_list``   epc.walk: the tree in pre-order, and a bit for each
  group whose list is not empty, in that order. A subtree is a range of bits.
* ``nothing``        epc.walk.nothing_reclaimable
* ``isolate``        epc.reclaim._isolate
* ``evict_secs``     epc.reclaim._evict_secs
* ``reclaim``        epc.reclaim.reclaim and _reclaim_batch

**State.** A tuple of arrays: ``cg`` (a row per cgroup), ``en`` (a row per enclave),
``fl`` (a byte of flags per page, all that a hit touches), ``ow`` (the owner of
each block of 64 page numbers), ``ch``/``nx`` (lists), ``nd`` (SECS and VA pages), ``tb``
(pre-order, queues), ``bm`` (bits of non-empty lists), ``g`` (scalars), ``lg`` (log), and one for scratch.

**Lists.** A group's reclaimable list is a chain of chunks of 16 page numbers:
one cache line, one reclaim batch. Reclaim reads its victims from one line, and
their 16 flag bytes are fetched at once, where a linked list is one miss after
the other. The order is the linked list's exactly. The price is that nothing can
be unlinked from the middle. Only the death of an enclave does that: its pages'
flags say DEAD, entries are passed over when they are met, and a dead page's
number is not used again before a purge has dropped its entries, so an entry
can never be counted for another page. Rejected: a generation or a back pointer
per page (1 to 4 bytes each, and one more cache miss per insertion).

**Who pays.** The list that a page is on tells its group, so no page stores it.
The death of an enclave needs it too: all its pages are charged to its HOME
group, unless MIXED (its process moved), and then the lists are searched.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from epcgroup.sim.columns import (
    ACCESSED,
    BELOW,
    BLOCK,
    CHILDREN,
    CHUNK_FREE,
    CHUNKS,
    COUNT,
    CURSOR,
    DEAD,
    DIRTY,
    DYING,
    DYING_AT,
    E_EVICTED,
    END,
    EVICTED,
    EVICTED_TOTAL,
    EXISTS,
    FIRST,
    FLAGS,
    HEAD,
    HEAD_AT,
    INITIALISED,
    K_BATCH_MAX,
    K_BY_NEED,
    K_RESTART,
    K_STOP,
    KIDS,
    LOGGED,
    LOGGING,
    N_GROUP,
    N_LISTED,
    N_NEXT,
    N_PREV,
    NEXT,
    NODE_FREE,
    ONLINE,
    PARENT,
    PENDING,
    PINS,
    POS,
    RINGS,
    SCANNED,
    SECS,
    STALE,
    T_DYING,
    T_ORDER,
    TAIL,
    TAIL_AT,
    TASKS,
    UNREC_HEAD,
    UNREC_TAIL,
    USAGE,
    WAITING,
    YOUNG,
)
from epcgroup.sim.jit import compiled

Arrays = tuple[Any, ...]

CHUNK = 16
_OLDER = 0xFF ^ ACCESSED
_LOWEST = np.zeros(64, np.int64)
for _bit in range(64):
    _LOWEST[((0x03F79D71B4CB0A89 << _bit) & 0xFFFFFFFFFFFFFFFF) >> 58] = _bit
_DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
_ONE = np.uint64(1)


@compiled
def settle_group(s: Arrays, group: int) -> None:
    """Queue a removed group for release if nothing pins it any more."""
    cg, tb, g = s[0], s[7], s[9]
    row = cg[group]
    if row[ONLINE] or row[WAITING] or row[PINS] or row[TASKS] or row[KIDS]:
        return
    row[WAITING] = 1
    size = g[RINGS]
    tb[T_DYING, (g[DYING_AT] + g[DYING]) % size] = group
    g[DYING] += 1
    g[PENDING] += 1


@compiled
def uncharge(s: Arrays, group: int, pages: int) -> None:
    """Take pages back from a group and its ancestors."""
    cg = s[0]
    cg[group, PINS] -= pages
    level = group
    while level >= 0:
        cg[level, USAGE] -= pages
        level = cg[level, PARENT]
    if not cg[group, ONLINE]:
        settle_group(s, group)


@compiled
def reorder(cg: Any, tb: Any, bm: Any, g: Any) -> None:
    """Number all groups in pre-order, and set the bits of non-empty lists anew."""
    bm[:] = np.uint64(0)
    place = 0
    group = 0
    down = True
    while group >= 0:
        if down:
            cg[group, POS] = place
            tb[T_ORDER, place] = group
            if cg[group, COUNT]:
                bm[0, place >> 6] |= _ONE << np.uint64(place & 63)
                bm[1, place >> 12] |= _ONE << np.uint64((place >> 6) & 63)
            place += 1
            if cg[group, FIRST] >= 0:
                group = cg[group, FIRST]
                continue
        cg[group, END] = place
        if group == 0:
            break
        if cg[group, NEXT] >= 0:
            group = cg[group, NEXT]
            down = True
        else:
            group = cg[group, PARENT]
            down = False
    g[DIRTY] = 0


@compiled
def mark(cg: Any, bm: Any, g: Any, group: int, full: bool) -> None:
    """A group's list became empty, or stopped being so."""
    if g[DIRTY]:
        return
    place = cg[group, POS]
    word = place >> 6
    if full:
        bm[0, word] |= _ONE << np.uint64(place & 63)
        bm[1, word >> 6] |= _ONE << np.uint64(word & 63)
    else:
        bm[0, word] &= ~(_ONE << np.uint64(place & 63))
        if not bm[0, word]:
            bm[1, word >> 6] &= ~(_ONE << np.uint64(word & 63))


@compiled
def lowest(word: Any) -> int:
    """Number of the lowest bit that is set."""
    return _LOWEST[((word & (~word + _ONE)) * _DE_BRUIJN) >> np.uint64(58)]  # type: ignore[no-any-return]


@compiled
def next_list(bm: Any, start: int, stop: int) -> int:
    """The first place in [start, stop) whose group's list is not empty, or -1."""
    if start >= stop:
        return -1
    word = start >> 6
    bits = bm[0, word] >> np.uint64(start & 63)
    if bits:
        place = start + lowest(bits)
        return place if place < stop else -1
    word += 1
    last = (stop - 1) >> 6
    while word <= last:
        bits = bm[1, word >> 6] >> np.uint64(word & 63)
        if not bits:
            word = ((word >> 6) + 1) << 6
            continue
        word += lowest(bits)
        if word > last:
            return -1
        place = (word << 6) + lowest(bm[0, word])
        return place if place < stop else -1
    return -1


@compiled
def end_of_walk(s: Arrays, top: int) -> int:
    """Where a walk over a subtree ends: v5's ends at a group that waits for its release."""
    cg, tb, g = s[0], s[7], s[9]
    stop = cg[top, END]
    if g[DYING] and g[K_STOP]:
        start = cg[top, POS]
        size = g[RINGS]
        for i in range(g[DYING]):
            place = cg[tb[T_DYING, (g[DYING_AT] + i) % size], POS]
            if start <= place < stop:
                stop = place
    return stop  # type: ignore[no-any-return]


@compiled
def nothing(s: Arrays, top: int) -> bool:
    """Whether a walk over the subtree meets no reclaimable page."""
    cg, tb, bm, g = s[0], s[7], s[8], s[9]
    if not cg[top, BELOW]:
        return True
    if g[DYING] and g[K_STOP]:
        if g[DIRTY]:
            reorder(cg, tb, bm, g)
        return next_list(bm, cg[top, POS], end_of_walk(s, top)) < 0
    return False


@compiled
def unlist(s: Arrays, node: int) -> None:
    """Take a SECS or VA page off its group's list of unreclaimable pages, if it is on it."""
    cg, nd = s[0], s[6]
    if not nd[node, N_LISTED]:
        return
    nd[node, N_LISTED] = 0
    group = nd[node, N_GROUP]
    before, after = nd[node, N_PREV], nd[node, N_NEXT]
    if before >= 0:
        nd[before, N_NEXT] = after
    else:
        cg[group, UNREC_HEAD] = after
    if after >= 0:
        nd[after, N_PREV] = before
    else:
        cg[group, UNREC_TAIL] = before


@compiled
def free_node(s: Arrays, node: int) -> None:
    """A SECS or VA page is freed: off its list, uncharged."""
    nd, g = s[6], s[9]
    unlist(s, node)
    group = nd[node, N_GROUP]
    nd[node, N_NEXT] = g[NODE_FREE]
    g[NODE_FREE] = node
    uncharge(s, group, 1)


@compiled
def log(s: Arrays, enclave: int, page: int) -> None:
    """One line of the log; ``~enclave`` for a page written out."""
    g, lg = s[9], s[10]
    at = g[LOGGED]
    if at < lg.shape[0]:
        lg[at, 0] = enclave
        lg[at, 1] = page
    g[LOGGED] = at + 1


@compiled
def evict_secs(s: Arrays, enclave: int) -> None:
    """Write out the SECS after the last resident page."""
    cg, en, nd, g = s[0], s[1], s[6], s[9]
    node = en[enclave, SECS]
    if node < 0:
        return
    en[enclave, SECS] = -1
    en[enclave, E_EVICTED] += 1
    cg[nd[node, N_GROUP], EVICTED] += 1
    g[EVICTED_TOTAL] += 1
    if g[LOGGING]:
        log(s, ~enclave, -1)
    free_node(s, node)


@compiled
def isolate(s: Arrays, group: int, want: int, buf: Any, at: int) -> int:
    """Take up to ``want`` pages off the head of a group's list into ``buf``; how many."""
    cg, fl, ch, nx, bm, g = s[0], s[2], s[4], s[5], s[8], s[9]
    row = cg[group]
    have = row[COUNT]
    take = min(want, have)
    chunk = row[HEAD]
    place = row[HEAD_AT]
    done = 0
    while done < take:
        if place == CHUNK:
            after = nx[chunk]
            nx[chunk] = g[CHUNK_FREE]
            g[CHUNK_FREE] = chunk
            chunk = after
            place = 0
        page = ch[chunk, place]
        place += 1
        if fl[page] & DEAD:
            g[STALE] -= 1
            continue
        buf[at + done] = page
        done += 1
    row[HEAD] = chunk
    row[HEAD_AT] = place
    row[COUNT] = have - take
    row[SCANNED] += take
    level = group
    while level >= 0:
        cg[level, BELOW] -= take
        level = cg[level, PARENT]
    if take and have == take:
        mark(cg, bm, g, group, False)
    return take  # type: ignore[no-any-return]


@compiled
def new_chunk(ch: Any, nx: Any, g: Any) -> int:
    """A chunk that no list uses."""
    chunk = g[CHUNK_FREE]
    if chunk >= 0:
        g[CHUNK_FREE] = nx[chunk]
    else:
        chunk = g[CHUNKS]
        g[CHUNKS] += 1
    nx[chunk] = -1
    return chunk  # type: ignore[no-any-return]


@compiled
def append(s: Arrays, group: int, page: int) -> None:
    """Put a page at the tail of a group's list; BELOW is the caller's business."""
    cg, ch, nx, bm, g = s[0], s[4], s[5], s[8], s[9]
    row = cg[group]
    tail = row[TAIL]
    place = row[TAIL_AT]
    if tail < 0 or place == CHUNK:
        chunk = new_chunk(ch, nx, g)
        if tail < 0:
            row[HEAD] = chunk
            row[HEAD_AT] = 0
        else:
            nx[tail] = chunk
        row[TAIL] = chunk
        tail = chunk
        place = 0
    ch[tail, place] = page
    row[TAIL_AT] = place + 1
    row[COUNT] += 1
    if row[COUNT] == 1:
        mark(cg, bm, g, group, True)


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
        if flags & ACCESSED:
            fl[page] = flags & _OLDER
            append(s, group, page)
        else:
            buf[kept] = page
            kept += 1
    back = stop - kept
    if back:
        cg[group, YOUNG] += back
        level = group
        while level >= 0:
            cg[level, BELOW] += back
            level = cg[level, PARENT]
    return kept


@compiled
def write_out(s: Arrays, group: int, buf: Any, start: int, stop: int) -> None:
    """Evict pages that are charged to one group, each SECS behind its last page."""
    cg, en, fl, ow, g = s[0], s[1], s[2], s[3], s[9]
    for i in range(start, stop):
        page = buf[i]
        fl[page] = EXISTS
        enclave = ow[page >> BLOCK]
        row = en[enclave]
        row[E_EVICTED] += 1
        if g[LOGGING]:
            log(s, ~enclave, page - row[0])
        row[CHILDREN] -= 1
        if not row[CHILDREN] and row[FLAGS] & INITIALISED:
            evict_secs(s, enclave)
    pages = stop - start
    cg[group, EVICTED] += pages
    g[EVICTED_TOTAL] += pages
    uncharge(s, group, pages)


@compiled
def reclaim_from_top(s: Arrays, top: int, pages: int, ignore_age: bool) -> tuple[int, int]:
    """One round, list after list in pre-order, in one batch (v3 to v6)."""
    cg, tb, bm, g, scratch = s[0], s[7], s[8], s[9], s[11]
    if g[DIRTY]:
        reorder(cg, tb, bm, g)
    buf, owners, starts, kept = scratch[0], scratch[1], scratch[2], scratch[3]
    lists = 0
    taken = 0
    place = cg[top, POS]
    stop = end_of_walk(s, top)
    while taken < pages:
        place = next_list(bm, place, stop)
        if place < 0:
            break
        group = tb[T_ORDER, place]
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
def behind(cg: Any, tb: Any, group: int, top: int) -> int:
    """What follows a group in the turn of ``top``, passing over groups that wait for release."""
    place = cg[group, POS] + 1
    stop = cg[top, END]
    while place < stop:
        after = tb[T_ORDER, place]
        if not cg[after, WAITING]:
            return after  # type: ignore[no-any-return]
        place += 1
    return top


@compiled
def reclaim_by_cursor(s: Arrays, top: int, pages: int, ignore_age: bool) -> tuple[int, int]:
    """One round, a batch a list, going on where the last round stopped (v16, v17)."""
    cg, tb, bm, g, scratch = s[0], s[7], s[8], s[9], s[11]
    if g[DIRTY]:
        reorder(cg, tb, bm, g)
    buf = scratch[0]
    scanned = 0
    written = 0
    while scanned < pages and cg[top, BELOW]:
        group = top
        if cg[top, END] > cg[top, POS] + 1:
            place = next_list(bm, cg[cg[top, CURSOR], POS], cg[top, END])
            if place < 0:
                place = next_list(bm, cg[top, POS], cg[top, END])
            group = tb[T_ORDER, place]
            cg[top, CURSOR] = behind(cg, tb, group, top)
        want = pages - scanned if g[K_BY_NEED] else g[K_BATCH_MAX]
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
    if s[9][K_RESTART]:
        return reclaim_from_top(s, top, pages, ignore_age)
    return reclaim_by_cursor(s, top, pages, ignore_age)
