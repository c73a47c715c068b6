"""The engine, compiled: charging pages, and asking for background work.

* ``allocate``      epc.alloc.allocate with epc.charge.charge (physical pages cannot
  run out before the root's charge does: every page in use is charged)
* ``effort``        epc.reclaim.Effort
* ``excess``, ``queue_work``, ``wake_ksgxd``   epc.queue
* ``try_charge``, ``count_event``   misc.charge
"""

from __future__ import annotations

from typing import Any

from epcgroup.sim import columns as c
from epcgroup.sim.jit import compiled
from epcgroup.sim.lists import Arrays, nothing
from epcgroup.sim.reclaim import reclaim

OK = 0
BUSY = -16
NO_EPC = -12

@compiled
def queue_work(s: Arrays, group: int) -> None:
    """Queue a group's worker, unless it is in the queue."""
    cg, tb, g = s[0], s[7], s[9]
    if not cg[group, c.QUEUED]:
        cg[group, c.QUEUED] = 1
        tb[c.T_WORKS, (g[c.WORKS_AT] + g[c.WORKS]) % g[c.RINGS]] = group
        g[c.WORKS] += 1
        g[c.PENDING] += 1


@compiled
def wake_ksgxd(s: Arrays) -> None:
    """Wake ksgxd, if anything is reclaimable."""
    g = s[9]
    if not g[c.WOKEN] and not nothing(s, 0):
        g[c.WOKEN] = 1
        g[c.PENDING] += 1


@compiled
def excess(cg: Any, g: Any, group: int, wanted: int) -> int:
    """Pages by which a group is above the goal of its worker."""
    limit = min(cg[group, c.LIMIT], g[c.EPC]) if g[c.K_REFUSING] else cg[group, c.PATH_MIN]
    if g[c.K_GOAL] == 0:
        goal = max(limit - 1, 0)
        if goal > 32:
            goal -= 8
        goal = min(goal, g[c.EPC])
    elif g[c.K_GOAL] == 1:
        goal = (limit - 32 if limit > 128 else limit) - 1
    elif wanted == 0:
        goal = limit
    else:
        goal = max(limit - max(wanted, min(limit // 16, 16)), 0)
    return cg[group, c.USAGE] - goal  # type: ignore[no-any-return]


@compiled
def effort(
    g: Any,
    machine_wide: bool,
    below: int,
    scanned: int,
    written: int,
    fruitless: int,
    idle: int,
    ignore: bool,
) -> tuple[int, int, bool]:
    """A reclaimer's patience after one round: (fruitless rounds, pages scanned in vain, ignore age)."""
    if g[c.K_IGNORE_AFTER] < 0 or (machine_wide and not g[c.K_GLOBAL_IGNORE]):
        return fruitless, idle, False
    if not g[c.K_GIVE_UP]:
        fruitless += written == 0
        return fruitless, idle, fruitless > g[c.K_IGNORE_AFTER]
    if written:
        return 0, 0, False
    fruitless += 1
    idle += scanned
    if fruitless <= g[c.K_IGNORE_AFTER] or idle < below:
        return fruitless, idle, ignore
    return 0, 0, True


@compiled
def count_event(s: Arrays, failed: int) -> None:
    """Count one refused charge at the level that refused, and above."""
    cg, g = s[0], s[9]
    with_root = g[c.K_WITH_ROOT]
    if not with_root:
        cg[failed, c.EVENTS_LOCAL] += 1
    level = failed
    while level > 0 or (level == 0 and with_root):
        cg[level, c.EVENTS] += 1
        level = cg[level, c.PARENT]


@compiled
def try_charge(s: Arrays, group: int, pages: int) -> int:
    """Charge a group and all its ancestors: -1, or the level that refused."""
    cg, g = s[0], s[9]
    capacity = g[c.EPC]
    level = group
    while level >= 0:
        usage = cg[level, c.USAGE] + pages
        if usage > cg[level, c.LIMIT] or usage > capacity:
            undo = group
            while undo != level:
                cg[undo, c.USAGE] -= pages
                undo = cg[undo, c.PARENT]
            count_event(s, level)
            return level
        cg[level, c.USAGE] = usage
        if usage > cg[level, c.PEAK]:
            cg[level, c.PEAK] = usage
        level = cg[level, c.PARENT]
    return -1


@compiled
def refused(s: Arrays, group: int, failed: int, pages: int) -> int:
    """A fault's charge was refused: ask the worker and say busy, or nothing can be had."""
    cg, g = s[0], s[9]
    target = failed if g[c.K_REFUSING] else group
    if nothing(s, target):
        return NO_EPC
    cg[target, c.WANTED] = max(cg[target, c.WANTED], pages)
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
        target = failed if g[c.K_REFUSING] else group
        if nothing(s, target):
            return NO_EPC
        batch = g[c.K_DIRECT]
        if g[c.K_BY_NEED]:
            batch = max(g[c.K_BATCH_MIN], min(excess(cg, g, target, pages), g[c.K_BATCH_MAX]))
        scanned, written = reclaim(s, target, batch, ignore)
        fruitless, idle, ignore = effort(
            g, False, cg[target, c.BELOW], scanned, written, fruitless, idle, ignore
        )
    cg[group, c.PINS] += pages
    if g[c.EPC] - cg[0, c.USAGE] < g[c.LOW]:
        wake_ksgxd(s)
    return OK
