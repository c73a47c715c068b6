"""The engine, compiled, part 3: the loop that every access goes through.

One flat function. A hit touches one byte: the page's flags. A load fault that is
not refused (charge up the tree, append to the group's list) is written out here
in full; everything rarer is called, which costs nothing next to a batch of
evictions.

* the outer loop             the processor: mapped, or fault, at most 8 times, then settle
* "charge"                   misc.charge.try_charge, epc.charge.charge
* "insert"                   epc.fault.fault: record at the tail of the payer's list
* :mod:`.rules`, :mod:`.reclaim`   all that is called

Rejected: helpers for each step (2 to 3 times slower), prev/next links instead of
chunks (4 to 7 times slower at 10^6 pages).

**Virtual time** is arithmetic beside the engine, never inside a rule: an access
costs ``ACCESS_NS``, what a miss did (handler calls, loads, evictions it waited for,
evictions in the background after it) is priced when it is over. So hits carry no
clock: the loop runs to the access at which the deadline would be reached if all
were hits, and every miss brings that point nearer.

Results agree with the reference engine in every observation; see the conformance
and property tests.
"""

from __future__ import annotations

from typing import Any

from epcgroup.sim.compiler.dialect import fetch
from epcgroup.sim.compiler.jit import part, part_apart
from epcgroup.sim.kernel import columns as c
from epcgroup.sim.kernel import tables
from epcgroup.sim.kernel.background import settle
from epcgroup.sim.kernel.charge import count_event, refused, wake_ksgxd
from epcgroup.sim.kernel.enclaves import augment, load_secs
from epcgroup.sim.kernel.lists import append
from epcgroup.sim.kernel.reclaim import log
from epcgroup.sim.kernel.tables import State

_CALLS = 8  # fault-handler calls for one access before it counts as endless
_MANY = 1024  # groups, whose rows, lists and enclaves no longer lie in the near caches


@part_apart
def look_ahead(s: State, pages: Any, base: int, start: int, stop: int) -> None:
    """Have brought near what the faults among these accesses will touch.

    Row of the enclave, row of its group, last chunk of the group's list: a chain, each link a miss where
    groups are many. Here the chains of many faults are waited for together. Which accesses fault is a guess,
    and only the caches know of it.
    """
    cg = tables.groups(s)
    en = tables.enclaves(s)
    fl = tables.page_flags(s)
    ow = tables.owners(s)
    ch = tables.chunks(s)
    later = tables.batch(s)[4]
    count = 0
    for i in range(start, stop):
        page = base + pages[i]
        later[count] = page
        count += fl[page] & c.MAPPED == 0
    for i in range(count):
        enclave = max(ow[later[i] >> c.BLOCK], 0)
        later[i] = enclave
        fetch(en, enclave)
    for i in range(count):
        group = en[later[i], c.GROUP]
        later[i] = group
        fetch(cg, group)
        fetch(cg[group], 8)
    for i in range(count):
        fetch(ch, max(cg[later[i], c.TAIL], 0))


@part
def replay(
    s: State,
    pages: Any,
    base: int,
    start: int,
    stop: int,
    k: Any,
    recording: bool,
    until_failure: bool,
    times: Any,
) -> int:
    """Access ``base + pages[start:stop]``, one after the other; returns where it stopped.

    ``k`` (zeroed; where ``recording``) takes the result of each access: 0 mapped, n handler
    calls, -1 SIGBUS, -2 endless, -3 no such enclave. It stops early at
    ``times[DEADLINE]``, and with ``until_failure`` behind an access that failed.
    """
    cg = tables.groups(s)
    en = tables.enclaves(s)
    fl = tables.page_flags(s)
    ow = tables.owners(s)
    ch = tables.chunks(s)
    limit = stop
    timed = times[c.DEADLINE] < 1e300
    per = times[c.ACCESS_NS]
    origin = times[c.CLOCK]
    stalled = 0.0
    if timed and per > 0.0:
        room = (times[c.DEADLINE] - origin) / per
        if room < stop - start:
            limit = start + max(int(room), 0) + 1
    epc = s[c.EPC]
    low = s[c.LOW]
    logging = s[c.LOGGING]
    loads = 0
    misses = 0
    near = start if s[c.GROUPS] > _MANY else stop
    i = start
    while i < limit:
        page = base + pages[i]
        flags = fl[page]
        i += 1
        if flags & c.MAPPED:
            fl[page] = c.READY
            continue
        misses += 1
        if i >= near:
            near = min(i + c.BATCH, limit)
            look_ahead(s, pages, base, i, near)
        enclave = ow[page >> c.BLOCK]
        if flags & c.DEAD or enclave < 0:
            s[c.SKIPPED] += 1
            if recording:
                k[i - 1] = -3
            if until_failure:
                s[c.LAST_K] = -3
                break
            continue
        evicted_before = s[c.EVICTED_TOTAL]
        loaded_before = s[c.LOADED_TOTAL] + loads
        augmented_before = s[c.AUGMENTED_TOTAL]
        calls = 0
        outcome = 0
        while True:
            calls += 1
            result = 0
            if en[enclave, c.FLAGS] & c.DISABLED:
                outcome = -1
                break
            if flags & c.RESIDENT:
                fl[page] = c.READY
                outcome = calls
                break
            group = en[enclave, c.GROUP]
            if not flags & c.EXISTS:
                if not s[c.SGX2] or not en[enclave, c.FLAGS] & c.INITIALISED:
                    outcome = -1
                    break
                en[enclave, c.E_FAULTS] += 1
                cg[group, c.FAULTS] += 1
                result = augment(s, enclave, page)
                if result == 0:
                    fl[page] = c.READY
            else:
                en[enclave, c.E_FAULTS] += 1
                cg[group, c.FAULTS] += 1
                charged = False
                if en[enclave, c.SECS] < 0:
                    result = load_secs(s, enclave, 1)
                    charged = s[c.K_PAIR] != 0
                if result == 0 and not charged:
                    # charge, and count the page as reclaimable on the way
                    anything = cg[0, c.BELOW]
                    level = group
                    while level >= 0:
                        usage = cg[level, c.USAGE] + 1
                        if usage > cg[level, c.LIMIT] or usage > epc:
                            break
                        cg[level, c.USAGE] = usage
                        cg[level, c.BELOW] += 1
                        if usage > cg[level, c.PEAK]:
                            cg[level, c.PEAK] = usage
                        level = cg[level, c.PARENT]
                    if level >= 0:
                        undo = group
                        while undo != level:
                            cg[undo, c.USAGE] -= 1
                            cg[undo, c.BELOW] -= 1
                            undo = cg[undo, c.PARENT]
                        count_event(s, level)
                        result = refused(s, group, level, 1)
                    else:
                        cg[group, c.PINS] += 1
                        if anything and epc - cg[0, c.USAGE] < low and not s[c.WOKEN]:
                            wake_ksgxd(s)
                if result == 0:
                    # insert
                    if en[enclave, c.HOME] != group:
                        if en[enclave, c.CHILDREN] == 0:
                            en[enclave, c.HOME] = group
                            en[enclave, c.FLAGS] &= ~c.MIXED
                        else:
                            en[enclave, c.FLAGS] |= c.MIXED
                    en[enclave, c.CHILDREN] += 1
                    en[enclave, c.E_LOADED] += 1
                    cg[group, c.LOADED] += 1
                    loads += 1
                    fl[page] = c.READY
                    place = cg[group, c.TAIL_AT]
                    if 0 < place < 16 and cg[group, c.COUNT]:
                        ch[cg[group, c.TAIL], place] = page
                        cg[group, c.TAIL_AT] = place + 1
                        cg[group, c.COUNT] += 1
                    else:
                        append(s, group, page)
                    if charged:
                        level = group
                        while level >= 0:
                            cg[level, c.BELOW] += 1
                            level = cg[level, c.PARENT]
                    if logging:
                        log(s, enclave, page - en[enclave, c.BASE])
            if result == 0:
                outcome = calls
                break
            if result != -16:
                outcome = -1
                break
            en[enclave, c.E_RETRIED] += 1
            cg[group, c.RETRIED] += 1
            if s[c.PENDING]:
                settle(s)
            if calls == _CALLS:
                outcome = -2
                break
        waited = s[c.EVICTED_TOTAL] - evicted_before
        if s[c.PENDING]:
            settle(s)
        if recording:
            k[i - 1] = outcome
        if timed:
            behind = s[c.EVICTED_TOTAL] - evicted_before - waited
            unseen = behind * times[c.EVICT_NS] + (behind + 15) // 16 * times[c.BATCH_NS]
            augmenting = (s[c.AUGMENTED_TOTAL] - augmented_before) * times[c.AUGMENT_NS]
            cost = (
                calls * times[c.FAULT_NS]
                + (s[c.LOADED_TOTAL] + loads - loaded_before) * times[c.LOAD_NS]
                + augmenting
                + waited * times[c.EVICT_NS]
                + (waited + 15) // 16 * times[c.BATCH_NS]
                + unseen * times[c.AWAY]
            )
            times[c.BEHIND_NS] += unseen * (1.0 - times[c.AWAY])
            stalled += cost
            if cost <= times[c.FAULT_NS] + augmenting:
                # A page's first touch faults on any machine: that is no paging, and no stall.
                times[c.STALL_NS] -= cost
            left = times[c.DEADLINE] - (origin + (i - start) * per + stalled)
            if left <= 0.0:
                limit = i
            elif per > 0.0 and left / per < limit - i:
                limit = i + int(left / per) + 1
        if outcome < 0:
            s[c.FAILED] += 1
            en[enclave, c.E_FAILED] += 1
            if until_failure:
                s[c.LAST_K] = outcome
                break
    s[c.LOADED_TOTAL] += loads
    s[c.HITS] += i - start - misses
    times[c.CLOCK] = origin + (i - start) * per + stalled
    times[c.STALL_NS] += stalled
    return i
