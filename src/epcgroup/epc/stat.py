"""What a group and everything below it did so far: the numbers of misc.stat.

Amounts are pages now, the rest counts since the group was made; what groups
counted that are released stays in their parent, as the kernel's memory.stat has
it. Operations are counted where their page was charged, faults where the task was.
"""

from __future__ import annotations

from epcgroup.epc.group import Group
from epcgroup.epc.pages import Counters, Kind
from epcgroup.epc.state import Epc


def stat(epc: Epc, top: Group) -> dict[str, int]:
    """By name, in the order of the file; walks the subtree."""
    total = Counters()
    kinds = [0] * len(Kind)
    for group in epc.groups.walk(top):
        total.add(group.counters)
        total.add(group.past)
        for kind, pages in enumerate(group.kinds):
            kinds[kind] += pages
    return {
        "reclaimable": top.below,
        "secs": kinds[Kind.SECS],
        "va": kinds[Kind.VA],
        "vepc": kinds[Kind.VEPC],
        "pgin": total.loaded,
        "pgout": total.evicted,
        "pgscan": total.scanned,
        "pgyoung": total.young,
        "pgrefault": total.loaded - total.secs_loaded,
        "pgadd": total.added,
        "pgaug": total.augmented,
        "pgremove": total.removed,
        "pgfault": total.faults,
        "pgretry": total.retried,
    }
