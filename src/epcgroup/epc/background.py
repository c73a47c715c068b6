"""Running what is queued: in slices, or to the end.

The kernel has a work queue, a thread and deferred frees; here they are queues
that the shell empties at points of its choosing, so that every run can be
repeated. Two ways:

* ``settle``: until nothing is left, always the first of: a group that waits for
  its release; the oldest queued work, run to its end; ksgxd, until it would
  sleep. One order, the same each time.
* ``step``: one slice. Jobs that have begun take turns, a round each, because a
  worker may go on for as long as its pages stay young or cannot be written, and
  others must not wait for it (B-53, B-55).

A group's worker never runs twice at once: queued again while it runs, it begins
again after its end.
"""

from __future__ import annotations

from epcgroup.epc.group import Group
from epcgroup.epc.state import Epc, Job
from epcgroup.epc.worker import ksgxd, worker


def pending(epc: Epc) -> bool:
    """Whether there is anything to run."""
    return bool(epc.jobs or epc.groups.dying or epc.works or epc.ksgxd_woken)


def step(epc: Epc) -> bool:
    """One slice; False when there was nothing to do."""
    if epc.groups.release_next():
        return True
    _begin_all(epc)
    if not epc.jobs:
        return False
    job = epc.jobs.popleft()
    for _ in job.rounds:
        epc.jobs.append(job)  # not ended: one round, and its turn comes again
        break
    return True


def settle(epc: Epc) -> None:
    """Everything, to the end; a job that a slice has begun first."""
    while True:
        if epc.jobs:
            job = epc.jobs[0]
            for _ in job.rounds:
                pass
            epc.jobs.popleft()
        elif epc.groups.release_next():
            pass
        elif epc.works:
            _begin_work(epc, epc.works.popleft())
        elif epc.ksgxd_woken:
            _begin_ksgxd(epc)
        else:
            return


def _begin_all(epc: Epc) -> None:
    if not epc.works and not epc.ksgxd_woken:
        return
    running = {job.group for job in epc.jobs}
    for _ in range(len(epc.works)):
        group = epc.works.popleft()
        if group in running:
            epc.works.append(group)
        else:
            _begin_work(epc, group)
    if epc.ksgxd_woken and None not in running:
        _begin_ksgxd(epc)


def _begin_work(epc: Epc, group: Group) -> None:
    group.queued = False
    epc.works_run += 1
    epc.jobs.append(Job(group, worker(epc, group)))


def _begin_ksgxd(epc: Epc) -> None:
    epc.ksgxd_woken = False
    epc.ksgxd_runs += 1
    epc.jobs.append(Job(None, ksgxd(epc)))
