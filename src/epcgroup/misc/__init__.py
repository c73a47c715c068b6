"""The misc cgroup controller: hierarchical counters with a limit.

It knows nothing of SGX. Start with :class:`Tree`, charge with
:func:`try_charge`, read and write the misc.* files with :mod:`.files`.
"""

from epcgroup.misc import files
from epcgroup.misc.charge import try_charge, uncharge
from epcgroup.misc.events import RateLimiter, Subscriptions
from epcgroup.misc.rules import (
    SGX_EPC,
    STANDARD,
    V5,
    V6_12,
    V17,
    VARIANTS,
    EventRule,
    Rules,
    with_soft_limits,
)
from epcgroup.misc.tree import Group, Tree

__all__ = [
    "SGX_EPC",
    "STANDARD",
    "V5",
    "V6_12",
    "V17",
    "VARIANTS",
    "EventRule",
    "Group",
    "RateLimiter",
    "Rules",
    "Subscriptions",
    "Tree",
    "files",
    "try_charge",
    "uncharge",
    "with_soft_limits",
]
