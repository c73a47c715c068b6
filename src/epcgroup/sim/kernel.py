"""The engine, compiled, part 3: the loop that every access goes through.

One flat function. A hit touches one byte: the page's flags. A load fault that is
not refused (charge up the tree, append to the group's list) is written out here
in full; everything rarer is called: numba passes each array of a call by six
words and two atomic reference counts, which costs more than a hit, and nothing
next to a batch of evictions.

* the outer loop             the processor: mapped, or fault, at most 8 times, then settle
* "charge"                   misc.charge.try_charge, epc.charge.charge
* "prequeue"                 epc.queue.should_reclaim (v11 and later)
* "insert"                   epc.fault.fault: record at the tail of the payer's list
* :mod:`.rules`, :mod:`.reclaim`   all that is called

Rejected: helpers for each step (2 to 3 times slower), prev/next links instead of
chunks (4 to 7 times slower at 10^6 pages), jitclass (no cache on disk).

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

from epcgroup.sim.columns import (
    ACCESS_NS,
    AUGMENT_NS,
    AUGMENTED_TOTAL,
    AWAY,
    BATCH_NS,
    BEHIND_NS,
    BELOW,
    BLOCK,
    CHILDREN,
    CLOCK,
    COUNT,
    DEAD,
    DEADLINE,
    DISABLED,
    E_FAILED,
    E_FAULTS,
    E_LOADED,
    E_RETRIED,
    EPC,
    EVICT_NS,
    EVICTED_TOTAL,
    EXISTS,
    FAILED,
    FAULT_NS,
    FAULTS,
    FLAGS,
    GROUP,
    HITS,
    HOME,
    INITIALISED,
    K_PAIR,
    K_PREQUEUE,
    LAST_K,
    LIMIT,
    LOAD_NS,
    LOADED,
    LOADED_TOTAL,
    LOGGING,
    LOW,
    MAPPED,
    MIXED,
    PARENT,
    PATH_MIN,
    PEAK,
    PENDING,
    PINS,
    QUEUED,
    READY,
    RESIDENT,
    RETRIED,
    SECS,
    SGX2,
    SKIPPED,
    STALL_NS,
    TAIL,
    TAIL_AT,
    USAGE,
    WOKEN,
)
from epcgroup.sim.jit import compiled
from epcgroup.sim.reclaim import Arrays, append, log
from epcgroup.sim.rules import (
    augment,
    count_event,
    load_secs,
    queue_work,
    refused,
    settle,
    wake_ksgxd,
)

_CALLS = 8  # fault-handler calls for one access before it counts as endless


@compiled
def replay(
    s: Arrays, pages: Any, base: int, start: int, stop: int, k: Any, until_failure: bool, times: Any
) -> int:
    """Access ``base + pages[start:stop]``, one after the other; returns where it stopped.

    ``k`` (zeroed, or empty) takes the result of each access: 0 mapped, n handler
    calls, -1 SIGBUS, -2 endless, -3 no such enclave. It stops early at
    ``times[DEADLINE]``, and with ``until_failure`` behind an access that failed.
    """
    cg, en, fl, ow, ch, nx, g = s[0], s[1], s[2], s[3], s[4], s[5], s[9]
    recording = k.shape[0] > 0
    limit = stop
    timed = times[DEADLINE] < 1e300
    per = times[ACCESS_NS]
    origin = times[CLOCK]
    stalled = 0.0
    if timed and per > 0.0:
        room = (times[DEADLINE] - origin) / per
        if room < stop - start:
            limit = start + max(int(room), 0) + 1
    epc = g[EPC]
    low = g[LOW]
    logging = g[LOGGING]
    prequeue = g[K_PREQUEUE]
    loads = 0
    misses = 0
    i = start
    while i < limit:
        page = base + pages[i]
        flags = fl[page]
        i += 1
        if flags & MAPPED:
            if flags != READY:
                fl[page] = READY
            continue
        misses += 1
        enclave = ow[page >> BLOCK]
        if flags & DEAD or enclave < 0:
            g[SKIPPED] += 1
            if recording:
                k[i - 1] = -3
            if until_failure:
                g[LAST_K] = -3
                break
            continue
        evicted_before = g[EVICTED_TOTAL]
        loaded_before = g[LOADED_TOTAL] + loads
        augmented_before = g[AUGMENTED_TOTAL]
        calls = 0
        outcome = 0
        while True:
            calls += 1
            result = 0
            if en[enclave, FLAGS] & DISABLED:
                outcome = -1
                break
            if flags & RESIDENT:
                fl[page] = READY
                outcome = calls
                break
            group = en[enclave, GROUP]
            if not flags & EXISTS:
                if not g[SGX2] or not en[enclave, FLAGS] & INITIALISED:
                    outcome = -1
                    break
                en[enclave, E_FAULTS] += 1
                cg[group, FAULTS] += 1
                result = augment(s, enclave, page)
                if result == 0:
                    fl[page] = READY
            else:
                en[enclave, E_FAULTS] += 1
                cg[group, FAULTS] += 1
                charged = False
                if en[enclave, SECS] < 0:
                    result = load_secs(s, enclave, 1)
                    charged = g[K_PAIR] != 0
                if result == 0 and not charged:
                    # charge
                    level = group
                    while level >= 0:
                        usage = cg[level, USAGE] + 1
                        if usage > cg[level, LIMIT] or usage > epc:
                            break
                        cg[level, USAGE] = usage
                        if usage > cg[level, PEAK]:
                            cg[level, PEAK] = usage
                        level = cg[level, PARENT]
                    if level >= 0:
                        undo = group
                        while undo != level:
                            cg[undo, USAGE] -= 1
                            undo = cg[undo, PARENT]
                        count_event(s, level)
                        result = refused(s, group, level, 1)
                    else:
                        cg[group, PINS] += 1
                        # prequeue
                        if prequeue and not cg[group, QUEUED]:
                            least = cg[group, PATH_MIN]
                            if least > 128:
                                least -= 32
                            if cg[group, USAGE] >= least and cg[group, BELOW]:
                                queue_work(s, group)
                        if epc - cg[0, USAGE] < low and not g[WOKEN]:
                            wake_ksgxd(s)
                if result == 0:
                    # insert
                    if en[enclave, HOME] != group:
                        if en[enclave, CHILDREN] == 0:
                            en[enclave, HOME] = group
                            en[enclave, FLAGS] &= ~MIXED
                        else:
                            en[enclave, FLAGS] |= MIXED
                    en[enclave, CHILDREN] += 1
                    en[enclave, E_LOADED] += 1
                    cg[group, LOADED] += 1
                    loads += 1
                    fl[page] = READY
                    place = cg[group, TAIL_AT]
                    if 0 < place < 16 and cg[group, COUNT]:
                        ch[cg[group, TAIL], place] = page
                        cg[group, TAIL_AT] = place + 1
                        cg[group, COUNT] += 1
                    else:
                        append(s, group, page)
                    level = group
                    while level >= 0:
                        cg[level, BELOW] += 1
                        level = cg[level, PARENT]
                    if logging:
                        log(s, enclave, page - en[enclave, 0])
            if result == 0:
                outcome = calls
                break
            if result != -16:
                outcome = -1
                break
            en[enclave, E_RETRIED] += 1
            cg[group, RETRIED] += 1
            if g[PENDING]:
                settle(s)
            if calls == _CALLS:
                outcome = -2
                break
        waited = g[EVICTED_TOTAL] - evicted_before
        if g[PENDING]:
            settle(s)
        if recording:
            k[i - 1] = outcome
        if timed:
            behind = g[EVICTED_TOTAL] - evicted_before - waited
            unseen = behind * times[EVICT_NS] + (behind + 15) // 16 * times[BATCH_NS]
            cost = (
                calls * times[FAULT_NS]
                + (g[LOADED_TOTAL] + loads - loaded_before) * times[LOAD_NS]
                + (g[AUGMENTED_TOTAL] - augmented_before) * times[AUGMENT_NS]
                + waited * times[EVICT_NS]
                + (waited + 15) // 16 * times[BATCH_NS]
                + unseen * times[AWAY]
            )
            times[BEHIND_NS] += unseen * (1.0 - times[AWAY])
            stalled += cost
            left = times[DEADLINE] - (origin + (i - start) * per + stalled)
            if left <= 0.0:
                limit = i
            elif per > 0.0 and left / per < limit - i:
                limit = i + int(left / per) + 1
        if outcome < 0:
            g[FAILED] += 1
            en[enclave, E_FAILED] += 1
            if until_failure:
                g[LAST_K] = outcome
                break
    g[LOADED_TOTAL] += loads
    g[HITS] += i - start - misses
    times[CLOCK] = origin + (i - start) * per + stalled
    times[STALL_NS] += stalled
    return i
