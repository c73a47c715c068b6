"""Walking a subtree of groups in search of reclaimable pages (spec 4.1 A, 4.7).

The kernel visits every group in pre-order. What can be observed is only which
lists are met, and where a cursor ends up; so these walks jump from one non-empty
list to the next (see :mod:`.group`) and agree with the kernel's step by step:

* From the top, each time: the first non-empty list in pre-order, until the
  budget is used up or the subtree is empty.
* By cursor: empty groups between the cursor and the next non-empty list would be
  taken and give nothing; the cursor ends behind the last group taken, which had
  pages. Groups that wait for release have none, so passing over them is free.

The exception is v5, whose walk *ends* at a group that waits for its release
(B-42). While such a group exists, and only then, v5 walks literally.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

from epcgroup.epc.group import Group
from epcgroup.epc.policy import Dying
from epcgroup.epc.state import Epc


def nothing_reclaimable(epc: Epc, top: Group) -> bool:
    """Whether every reclaimable list of the subtree is empty, as a walk sees it."""
    if not top.below:
        return True
    if epc.groups.dying and epc.policy.dying is Dying.STOP:
        return all(not group.reclaimable.count for group in _until_dying(epc, top))
    return False


def lists_from_top(epc: Epc, top: Group) -> Iterator[Group]:
    """Groups with reclaimable pages in pre-order; the user empties each before the next."""
    if epc.groups.dying and epc.policy.dying is Dying.STOP:
        for group in _until_dying(epc, top):
            if group.reclaimable.count:
                yield group
        return
    while top.below:
        yield _first(top)


def take_next(epc: Epc, top: Group) -> Group:
    """The next group of ``top``'s turn that has pages; moves ``top``'s cursor behind it."""
    group = _at_or_after(top.cursor, top)
    top.cursor = behind(epc, group, top)
    return group


def behind(epc: Epc, group: Group, top: Group) -> Group:
    """What follows ``group`` in the turn of ``top``, which closes the circle."""
    successor = epc.groups.successor(group, top)
    while successor is not None and successor.waiting:
        successor = epc.groups.successor(successor, top)
    return top if successor is None else successor


def _until_dying(epc: Epc, top: Group) -> Iterator[Group]:
    for group in epc.groups.walk(top):
        if group.waiting:
            return
        yield group


def _first(group: Group) -> Group:
    # The first non-empty list of a subtree that has one.
    while not group.reclaimable.count:
        group = group.active[0]
    return group


def _at_or_after(group: Group, top: Group) -> Group:
    # The first non-empty list at or after `group` in the circle of `top`.
    if group.below:
        return _first(group)
    while group is not top:
        parent = group.parent
        assert parent is not None
        at = bisect_right(parent.active_ids, group.id)
        if at < len(parent.active):
            return _first(parent.active[at])
        group = parent
    return _first(top)
