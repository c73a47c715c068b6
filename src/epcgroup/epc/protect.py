"""Whose pages go first: misc.low and misc.high (RFC v1, spec 9.2).

The series began with three limits. ``max`` survived; the other two are an
extension here, for policies with the knob ``soft_limits``:

* ``high``: a soft limit. Who is above it loses pages, in the background, and first
  of all where the whole machine is short.
* ``low``: best-effort protection. A group whose usage, and that of every ancestor
  below the top of the reclaim, is below ``low`` is passed over, unless all that
  have pages are protected.

A round therefore goes through the subtree in up to three turns, each taking from
fewer reasons to spare. Within a turn the order is the policy's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from epcgroup.epc.group import Group
from epcgroup.epc.policy import Dying, Walk
from epcgroup.epc.state import Epc
from epcgroup.epc.walk import take_next

MayTake = Callable[[Epc, Group, Group], bool]


def above_high(epc: Epc, group: Group, top: Group) -> bool:
    """Whether the group, or an ancestor below ``top``, is above its soft limit."""
    resource = epc.resource
    level: Group | None = group
    while level is not None and level is not top:
        if level.usage[resource] > level.high[resource]:
            return True
        level = level.parent
    return False


def unprotected(epc: Epc, group: Group, top: Group) -> bool:
    """Whether misc.low does not spare the group from a reclaim of ``top``."""
    resource = epc.resource
    level: Group | None = group
    while level is not None and level is not top:
        if level.usage[resource] >= min(level.low[resource], level.high[resource], level.max[resource]):
            return True
        level = level.parent
    return group is top


def _anyone(_epc: Epc, _group: Group, _top: Group) -> bool:
    return True


def turns(epc: Epc, top: Group) -> Iterator[Group]:
    """Groups with pages, in the order in which they are to lose some; the user takes, or stops.

    A walk by cursor comes back to a group that still has pages; a walk from the
    top passes each once, so its user empties it.
    """
    machine_wide = top is epc.groups.root
    tiers: tuple[MayTake, ...] = (unprotected, _anyone)
    for may_take in (above_high, *tiers) if machine_wide else tiers:
        if epc.policy.walk is Walk.CURSOR:
            yield from _by_cursor(epc, top, may_take)
        else:
            yield from _from_top(epc, top, may_take)


def _by_cursor(epc: Epc, top: Group, may_take: MayTake) -> Iterator[Group]:
    passed: Group | None = None  # the first group of a turn in which nobody was taken from
    start = top.cursor
    while top.below:
        if passed is None:
            start = top.cursor
        group = take_next(epc, top)
        if may_take(epc, group, top):
            passed = None
            yield group
        elif group is passed:
            top.cursor = start  # a turn that gives nothing moves nothing
            return
        elif passed is None:
            passed = group


def _from_top(epc: Epc, top: Group, may_take: MayTake) -> Iterator[Group]:
    if not top.below:
        return
    for group in list(epc.groups.walk(top)):
        if group.waiting and epc.policy.dying is Dying.STOP:
            return
        if group.reclaimable.count and may_take(epc, group, top):
            yield group
