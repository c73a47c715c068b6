"""Charging: add at every level, and undo if one of them refuses (spec 1.4).

The counters are 64 bits wide and wrap: the kernel keeps a signed atomic and
compares it as unsigned. A usage is kept here as its unsigned value, so a counter
that fell below zero reads as a huge number, exactly as misc.current shows it.
"""

from __future__ import annotations

from epcgroup.errors import OutOfRange
from epcgroup.misc.rules import EventRule
from epcgroup.misc.tree import G, Group, Tree
from epcgroup.units import U64_MAX

_SIGN = 1 << 63


def try_charge(tree: Tree[G], group: G, resource: int, amount: int) -> G | None:
    """Charge ``amount`` to a group and all its ancestors.

    None: charged. A group: that level refused, everything is undone and the
    event is counted. Usage may become equal to a limit, and no more (MISC-30).
    Raises OutOfRange (EINVAL) for an unknown or absent resource.
    """
    if not 0 <= resource < len(tree.capacity) or not tree.capacity[resource]:
        raise OutOfRange(f"resource {resource} is not present on this machine")
    if not amount:
        return None
    capacity = tree.capacity[resource]
    level: Group | None = group
    while level is not None:
        usage = level.usage
        new = (usage[resource] + amount) & U64_MAX
        usage[resource] = new
        if new > level.max[resource] or new > capacity:
            failed: G = level  # type: ignore[assignment]  # ancestors are of the same type
            count_event(tree, failed, resource)
            _subtract(tree, group, resource, amount, last=level)
            return failed
        if new > level.peak[resource]:  # also below a level that refuses later (MISC-33)
            level.peak[resource] = new
        level = level.parent
    return None


def uncharge(tree: Tree[G], group: G, resource: int, amount: int) -> None:
    """Take ``amount`` back from a group and all its ancestors.

    A counter that falls below zero is a caller's bug; it is counted in
    ``tree.underflows`` (the kernel prints one warning) and not refused. What was
    charged comes back even if the capacity has become 0 since.
    """
    if amount and 0 <= resource < len(tree.capacity):
        _subtract(tree, group, resource, amount, last=None)


def count_event(tree: Tree[G], failed: G, resource: int) -> None:
    """Count one refused attempt at ``failed`` by the rule of spec 1.5, and tell."""
    local = tree.rules.event_rule is EventRule.LOCAL
    if local:
        failed.events_local[resource] += 1
        if tree.notify is not None:
            tree.notify(failed, "events.local")
    level: Group | None = failed
    while level is not None:
        if local and level.parent is None:
            return
        level.events[resource] += 1
        if tree.notify is not None:
            tree.notify(level, "events")  # type: ignore[arg-type]
        level = level.parent


def _subtract(tree: Tree[G], group: Group, resource: int, amount: int, last: Group | None) -> None:
    level: Group | None = group
    while level is not None:
        new = (level.usage[resource] - amount) & U64_MAX
        level.usage[resource] = new
        if new >= _SIGN:
            tree.underflows += 1
        if level is last:
            return
        level = level.parent
