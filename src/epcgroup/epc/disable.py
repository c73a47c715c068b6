"""Out of EPC: an enclave loses its memory (spec 5).

The last resort of the worker, when a group is above its limit and nothing in it
is reclaimable: all that is left are version arrays and control pages, which go
only with their enclave. So an enclave is disabled: every mapping of it is zapped,
each further touch is a SIGBUS. No process is killed, and not one page is freed
at that moment: the pages come back when the process lets go of the enclave.

That delay is the trouble. v5 loops on, drops one list entry after another, and
when the victim's own entries are used up takes the next enclave: one write of a
limit can take down every tenant in microseconds although the first victim would
have sufficed (OOM-11, B-63). The reviewers' objections ended in v6 dropping the
whole path. ``ONE_AND_WAIT`` keeps v5's promise without that defect: it acts only
above the limit itself, disables one enclave, and waits for its release.

Pages of guests are on no list: a guest is never a victim (OOM-02, B-67).
"""

from __future__ import annotations

from epcgroup.epc.group import Group
from epcgroup.epc.pages import Enclave
from epcgroup.epc.policy import Disable
from epcgroup.epc.queue import excess
from epcgroup.epc.state import Epc


def disable_one(epc: Epc, group: Group) -> bool:
    """Find a victim in a group's subtree; True: the worker goes on."""
    how = epc.policy.disable
    if how is Disable.CASCADE:
        return _drop_first_entry(epc, group)
    if how is Disable.ONE_AND_WAIT and excess(epc, group, 0, hard=True) > 0:
        _disable_and_wait(epc, group)
    return False


def _drop_first_entry(epc: Epc, top: Group) -> bool:
    # v5: the first entry of the first list, in pre-order, is unlinked (its state
    # stays: T11) and its enclave is the victim. One entry a group and call; an
    # enclave under construction shields its group for this once (OOM-05).
    for group in epc.groups.walk(top):
        page = group.unreclaimable.head
        if page is None or group.waiting:
            continue
        group.unreclaimable.unlink(page)
        enclave = page.enclave
        if not enclave.created or enclave.released:
            continue
        if not enclave.disabled:
            _disable(epc, enclave)
        return True
    return False


def _disable_and_wait(epc: Epc, top: Group) -> None:
    # The same order of victims, but nothing is unlinked, and an enclave that is
    # disabled already (perhaps for another group) is waited for first.
    if top.victim is not None:
        return
    victim: Enclave | None = None
    for group in epc.groups.walk(top):
        for page in group.unreclaimable:
            enclave = page.enclave
            if not enclave.created or enclave.released:
                continue
            if enclave.disabled:
                _wait_for(epc, top, enclave)
                return
            if victim is None:
                victim = enclave
    if victim is not None:
        _disable(epc, victim)
        _wait_for(epc, top, victim)


def _wait_for(epc: Epc, group: Group, enclave: Enclave) -> None:
    group.victim = enclave
    epc.waiting_for.setdefault(enclave, []).append(group)


def _disable(epc: Epc, enclave: Enclave) -> None:
    enclave.disabled = True
    epc.pager.disable(enclave)
