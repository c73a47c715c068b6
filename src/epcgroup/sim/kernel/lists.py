"""The engine, compiled: the state, counters, lists of pages, walks over groups.

Which block is what in the reference engine:

* ``uncharge``       epc.release.free_page, for several pages of one group at once
* ``reorder``, ``next_list``, ``nothing``, ``behind``   epc.walk: the tree in pre-order, and
  a bit for each group whose list is not empty, in that order. A subtree is a range of bits.
* ``isolate``, ``append``   epc.lru.PageList.take and append

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

from epcgroup.sim.compiler.dialect import lowest
from epcgroup.sim.compiler.jit import part
from epcgroup.sim.kernel import columns as c
from epcgroup.sim.kernel import tables
from epcgroup.sim.kernel.tables import State

_ONE = np.uint64(1)


@part
def settle_group(s: State, group: int) -> None:
    """Queue a removed group for release if nothing pins it any more."""
    cg = tables.groups(s)
    tb = tables.order(s)
    row = cg[group]
    if row[c.ONLINE] or row[c.WAITING] or row[c.PINS] or row[c.TASKS] or row[c.KIDS]:
        return
    row[c.WAITING] = 1
    size = s[c.RINGS]
    tb[c.T_DYING, (s[c.DYING_AT] + s[c.DYING]) % size] = group
    s[c.DYING] += 1
    s[c.PENDING] += 1


@part
def uncharge(s: State, group: int, pages: int, listed: int) -> None:
    """Take pages back from a group and its ancestors; ``listed`` of them were reclaimable."""
    cg = tables.groups(s)
    cg[group, c.PINS] -= pages
    level = group
    while level >= 0:
        cg[level, c.USAGE] -= pages
        cg[level, c.BELOW] -= listed
        level = cg[level, c.PARENT]
    if not cg[group, c.ONLINE]:
        settle_group(s, group)


@part
def reorder(s: State) -> None:
    """Number all groups in pre-order, and set the bits of non-empty lists anew."""
    cg = tables.groups(s)
    tb = tables.order(s)
    bm = tables.bits(s)
    for word in range(s[c.LEN_BITS]):
        bm[0, word] = np.uint64(0)
        bm[1, word] = np.uint64(0)
    place = 0
    group = 0
    down = True
    while group >= 0:
        if down:
            cg[group, c.POS] = place
            tb[c.T_ORDER, place] = group
            if cg[group, c.COUNT]:
                bm[0, place >> 6] |= _ONE << np.uint64(place & 63)
                bm[1, place >> 12] |= _ONE << np.uint64((place >> 6) & 63)
            place += 1
            if cg[group, c.FIRST] >= 0:
                group = cg[group, c.FIRST]
                continue
        cg[group, c.END] = place
        if group == 0:
            break
        if cg[group, c.NEXT] >= 0:
            group = cg[group, c.NEXT]
            down = True
        else:
            group = cg[group, c.PARENT]
            down = False
    s[c.DIRTY] = 0


@part
def mark(s: State, group: int, full: bool) -> None:
    """A group's list became empty, or stopped being so."""
    cg = tables.groups(s)
    bm = tables.bits(s)
    if s[c.DIRTY]:
        return
    place = cg[group, c.POS]
    word = place >> 6
    if full:
        bm[0, word] |= _ONE << np.uint64(place & 63)
        bm[1, word >> 6] |= _ONE << np.uint64(word & 63)
    else:
        bm[0, word] &= ~(_ONE << np.uint64(place & 63))
        if not bm[0, word]:
            bm[1, word >> 6] &= ~(_ONE << np.uint64(word & 63))


@part
def next_list(s: State, start: int, stop: int) -> int:
    """The first place in [start, stop) whose group's list is not empty, or -1."""
    bm = tables.bits(s)
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


@part
def end_of_walk(s: State, top: int) -> int:
    """Where a walk over a subtree ends: v5's ends at a group that waits for its release."""
    cg = tables.groups(s)
    tb = tables.order(s)
    stop = cg[top, c.END]
    if s[c.DYING] and s[c.K_STOP]:
        start = cg[top, c.POS]
        size = s[c.RINGS]
        for i in range(s[c.DYING]):
            place = cg[tb[c.T_DYING, (s[c.DYING_AT] + i) % size], c.POS]
            if start <= place < stop:
                stop = place
    return stop  # type: ignore[no-any-return]


@part
def nothing(s: State, top: int) -> bool:
    """Whether a walk over the subtree meets no reclaimable page."""
    cg = tables.groups(s)
    if not cg[top, c.BELOW]:
        return True
    if s[c.DYING] and s[c.K_STOP]:
        if s[c.DIRTY]:
            reorder(s)
        return next_list(s, cg[top, c.POS], end_of_walk(s, top)) < 0
    return False


@part
def isolate(s: State, group: int, want: int, buf: Any, at: int) -> int:
    """Take up to ``want`` pages off the head of a group's list into ``buf``; how many.

    BELOW is the caller's business, here and in ``append``: it changes by what is written out
    and not put back, in one walk up the tree.
    """
    cg = tables.groups(s)
    fl = tables.page_flags(s)
    ch = tables.chunks(s)
    nx = tables.links(s)
    row = cg[group]
    have = row[c.COUNT]
    take = min(want, have)
    chunk = row[c.HEAD]
    place = row[c.HEAD_AT]
    done = 0
    while done < take:
        if place == c.CHUNK:
            after = nx[chunk]
            nx[chunk] = s[c.CHUNK_FREE]
            s[c.CHUNK_FREE] = chunk
            chunk = after
            place = 0
        if s[c.STALE]:
            page = ch[chunk, place]
            place += 1
            if fl[page] & c.DEAD:
                s[c.STALE] -= 1
                continue
            buf[at + done] = page
            done += 1
            continue
        more = min(take - done, c.CHUNK - place)
        for i in range(more):
            buf[at + done + i] = ch[chunk, place + i]
        place += more
        done += more
    row[c.HEAD] = chunk
    row[c.HEAD_AT] = place
    row[c.COUNT] = have - take
    row[c.SCANNED] += take
    if take and have == take:
        mark(s, group, False)
    return take  # type: ignore[no-any-return]


@part
def new_chunk(s: State) -> int:
    """A chunk that no list uses."""
    nx = tables.links(s)
    chunk = s[c.CHUNK_FREE]
    if chunk >= 0:
        s[c.CHUNK_FREE] = nx[chunk]
    else:
        chunk = s[c.CHUNKS]
        s[c.CHUNKS] += 1
    nx[chunk] = -1
    return chunk  # type: ignore[no-any-return]


@part
def append(s: State, group: int, page: int) -> None:
    """Put a page at the tail of a group's list."""
    cg = tables.groups(s)
    ch = tables.chunks(s)
    nx = tables.links(s)
    row = cg[group]
    tail = row[c.TAIL]
    place = row[c.TAIL_AT]
    if tail < 0 or place == c.CHUNK:
        chunk = new_chunk(s)
        if tail < 0:
            row[c.HEAD] = chunk
            row[c.HEAD_AT] = 0
        else:
            nx[tail] = chunk
        row[c.TAIL] = chunk
        tail = chunk
        place = 0
    ch[tail, place] = page
    row[c.TAIL_AT] = place + 1
    row[c.COUNT] += 1
    if row[c.COUNT] == 1:
        mark(s, group, True)


@part
def behind(s: State, group: int, top: int) -> int:
    """What follows a group in the turn of ``top``, passing over groups that wait for release."""
    cg = tables.groups(s)
    tb = tables.order(s)
    place = cg[group, c.POS] + 1
    stop = cg[top, c.END]
    while place < stop:
        after = tb[c.T_ORDER, place]
        if not cg[after, c.WAITING]:
            return after  # type: ignore[no-any-return]
        place += 1
    return top
