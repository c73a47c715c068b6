"""Background reclaim: the per-group worker, and ksgxd (spec 3.4, 3.5, 3.6).

Each is a generator that yields between rounds, so that a live machine can run
it in slices between a program's own steps, as a kernel thread would be
scheduled, and a test can run it to its end. Everything is read again after a
yield: limits, usage and lists may have changed meanwhile.

Where batches follow the need, a run that makes room for waiting faults keeps
the batch of its first round. Half of a batch may be young; asking for exactly
the rest each time would end in rounds of four, two and one page, each as dear
as a full one. It may overshoot by less than that first batch.
"""

from __future__ import annotations

from collections.abc import Iterator

from epcgroup.epc.disable import disable_one
from epcgroup.epc.group import Group
from epcgroup.epc.queue import excess
from epcgroup.epc.reclaim import Effort
from epcgroup.epc.state import Epc
from epcgroup.epc.walk import nothing_reclaimable


def worker(epc: Epc, group: Group) -> Iterator[None]:
    """Bring a group's usage down to its goal.

    With nothing left to take and usage still above, the policy's last resort
    (:mod:`.disable`); if that finds nothing either, the usage stays.
    """
    policy = epc.policy
    effort = Effort(epc)
    group.hopeless = False
    wanted = group.wanted
    group.wanted = 0
    batch = 0
    while (above := excess(epc, group, wanted)) > 0:
        if not policy.batch_by_need or not batch or not wanted:
            batch = max(policy.batch_min, min(above, policy.batch_max))
        above_limit = excess(epc, group, wanted, hard=True) > 0  # and not only the soft one
        if nothing_reclaimable(epc, group):
            if not above_limit or not disable_one(epc, group):
                return
        elif not effort.round(group, batch):
            group.hopeless = above_limit  # nothing can be written: let the next fault fail
            return
        elif excess(epc, group, wanted) <= 0:
            return  # done before anybody takes the room again: the next run has a whole batch to do
        yield
        wanted = max(wanted, group.wanted)
        group.wanted = 0


def ksgxd(epc: Epc) -> Iterator[None]:
    """Reclaim from the whole machine until enough is free (spec 3.6).

    Enough is the high watermark, and what a refused fault waits for.
    """
    policy = epc.policy
    root = epc.groups.root
    effort = Effort(epc)
    epc.ksgxd_hopeless = False
    wanted = epc.ksgxd_wanted
    epc.ksgxd_wanted = 0
    batch = 0
    while (missing := max(epc.high, wanted) - epc.pool.free) > 0 and not nothing_reclaimable(epc, root):
        if not batch:
            batch = min(missing, policy.global_batch) if policy.batch_by_need else policy.global_batch
        if not effort.round(root, batch, machine_wide=True):
            epc.ksgxd_hopeless = True
            return
        if epc.pool.free >= max(epc.high, wanted, epc.ksgxd_wanted):
            epc.ksgxd_woken = False  # a wake-up while awake is no second one
            return  # as above
        yield
        wanted = max(wanted, epc.ksgxd_wanted)
        epc.ksgxd_wanted = 0
