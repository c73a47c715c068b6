"""The engine, compiled: charging pages, and asking for background work.

* ``allocate``      epc.alloc.allocate with epc.charge.charge (physical pages cannot
  run out before the root's charge does: every page in use is charged)
* ``effort``        epc.reclaim.Effort
* ``excess``, ``queue_work``, ``wake_ksgxd``   epc.queue
* ``try_charge``, ``count_event``   misc.charge
"""

from __future__ import annotations

from epcgroup.sim.compiler.jit import part
from epcgroup.sim.kernel import columns as c
from epcgroup.sim.kernel import tables
from epcgroup.sim.kernel.lists import nothing
from epcgroup.sim.kernel.reclaim import reclaim
from epcgroup.sim.kernel.tables import State

OK = 0
BUSY = -16
NO_EPC = -12
PAGE_EXISTS = -16  # the kernel's number for it is that of BUSY, which nobody who may reclaim is told


@part
def queue_work(s: State, group: int) -> None:
    """Queue a group's worker, unless it is in the queue."""
    cg = tables.groups(s)
    tb = tables.order(s)
    if not cg[group, c.QUEUED]:
        cg[group, c.QUEUED] = 1
        tb[c.T_WORKS, (s[c.WORKS_AT] + s[c.WORKS]) % s[c.RINGS]] = group
        s[c.WORKS] += 1
        s[c.PENDING] += 1


@part
def wake_ksgxd(s: State) -> None:
    """Wake ksgxd, if anything is reclaimable."""
    if not s[c.WOKEN] and not nothing(s, 0):
        s[c.WOKEN] = 1
        s[c.PENDING] += 1


@part
def excess(s: State, group: int, wanted: int) -> int:
    """Pages by which a group is above the goal of its worker."""
    cg = tables.groups(s)
    limit = min(cg[group, c.LIMIT], s[c.EPC]) if s[c.K_REFUSING] else cg[group, c.PATH_MIN]
    if s[c.K_GOAL] == 0:
        goal = max(limit - 1, 0)
        if goal > 32:
            goal -= 8
        goal = min(goal, s[c.EPC])
    elif s[c.K_GOAL] == 1:
        goal = (limit - 32 if limit > 128 else limit) - 1
    elif wanted == 0:
        goal = limit
    else:
        goal = max(limit - max(wanted, min(limit // 16, 16)), 0)
    return cg[group, c.USAGE] - goal  # type: ignore[no-any-return]


@part
def effort(
    s: State,
    machine_wide: bool,
    below: int,
    scanned: int,
    written: int,
    fruitless: int,
    idle: int,
    ignore: bool,
) -> tuple[int, int, bool]:
    """A reclaimer's patience after one round: (fruitless rounds, pages scanned in vain, ignore age)."""
    if s[c.K_IGNORE_AFTER] < 0 or (machine_wide and not s[c.K_GLOBAL_IGNORE]):
        return fruitless, idle, False
    if not s[c.K_GIVE_UP]:
        fruitless += written == 0
        return fruitless, idle, fruitless > s[c.K_IGNORE_AFTER]
    if written:
        return 0, 0, False
    fruitless += 1
    idle += scanned
    if fruitless <= s[c.K_IGNORE_AFTER] or idle < below:
        return fruitless, idle, ignore
    return 0, 0, True


@part
def count_event(s: State, failed: int) -> None:
    """Count one refused charge at the level that refused, and above."""
    cg = tables.groups(s)
    with_root = s[c.K_WITH_ROOT]
    if not with_root:
        cg[failed, c.EVENTS_LOCAL] += 1
    level = failed
    while level > 0 or (level == 0 and with_root):
        cg[level, c.EVENTS] += 1
        level = cg[level, c.PARENT]


@part
def try_charge(s: State, group: int, pages: int) -> int:
    """Charge a group and all its ancestors: -1, or the level that refused."""
    cg = tables.groups(s)
    capacity = s[c.EPC]
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


@part
def refused(s: State, group: int, failed: int, pages: int) -> int:
    """A fault's charge was refused: ask the worker and say busy, or nothing can be had."""
    cg = tables.groups(s)
    target = failed if s[c.K_REFUSING] else group
    if nothing(s, target):
        return NO_EPC
    cg[target, c.WANTED] = max(cg[target, c.WANTED], pages)
    queue_work(s, target)
    return BUSY


@part
def allocate(s: State, group: int, pages: int, may_reclaim: bool) -> int:
    """``pages`` charged and pinned, all or none: OK, BUSY or NO_EPC."""
    cg = tables.groups(s)
    fruitless = 0
    idle = 0
    ignore = False
    while True:
        failed = try_charge(s, group, pages)
        if failed < 0:
            break
        if not may_reclaim:
            return refused(s, group, failed, pages)
        target = failed if s[c.K_REFUSING] else group
        if nothing(s, target):
            return NO_EPC
        batch = s[c.K_DIRECT]
        if s[c.K_BY_NEED]:
            batch = max(s[c.K_BATCH_MIN], min(excess(s, target, pages), s[c.K_BATCH_MAX]))
        scanned, written = reclaim(s, target, batch, ignore)
        fruitless, idle, ignore = effort(
            s, False, cg[target, c.BELOW], scanned, written, fruitless, idle, ignore
        )
    cg[group, c.PINS] += pages
    if s[c.EPC] - cg[0, c.USAGE] < s[c.LOW]:
        wake_ksgxd(s)
    return OK
