"""The engine's data: what every rule reads and writes.

Rules are plain functions in files named by the kernel's words (``charge``,
``alloc``, ``reclaim`` …); this is what they share. :class:`~.machine.Machine`
is this plus the public operations.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from epcgroup.epc.group import Group
from epcgroup.epc.nodes import NodePool, Section
from epcgroup.epc.pager import Pager
from epcgroup.epc.pages import Enclave, Vepc
from epcgroup.epc.policy import Policy
from epcgroup.epc.pool import Pool
from epcgroup.errors import BadInput
from epcgroup.misc import SGX_EPC, Tree
from epcgroup.units import PAGE_SIZE


@dataclass(eq=False, slots=True)
class Job:
    """A piece of background work that has begun: ``group``'s worker, or ksgxd (None)."""

    group: Group | None
    rounds: Iterator[None]


class Epc:
    """One machine's data; sizes in pages."""

    def __init__(
        self,
        *,
        epc_pages: int,
        policy: Policy,
        pager: Pager,
        resources: Mapping[str, int] | None = None,
        sections: Sequence[Section] = (),
    ) -> None:
        epc_pages = sum(section.pages for section in sections) or epc_pages
        if epc_pages < 1:
            raise BadInput(f"an EPC of {epc_pages} pages; it needs at least 1 (6 to run anything)")
        self.policy = policy
        self.pager = pager
        self.epc_pages = epc_pages
        self.pool: Pool | NodePool = NodePool(sections) if len(sections) > 1 else Pool(epc_pages)
        self.groups: Tree[Group] = Tree(policy.misc, Group)
        self.resource = self.groups.resource(SGX_EPC)  # number of our resource in every group's lists
        self.groups.set_capacity(SGX_EPC, epc_pages * PAGE_SIZE)
        for key, amount in (resources or {}).items():
            self.groups.set_capacity(key, amount)
        self.low, self.high = policy.watermarks(epc_pages)
        self.enclaves: dict[int, Enclave] = {}
        self.vepcs: dict[int, Vepc] = {}
        # Background work, in the order in which it was asked for.
        self.works: deque[Group] = deque()
        self.ksgxd_woken = False
        self.ksgxd_wanted = 0  # free pages that a refused fault waits for
        self.ksgxd_hopeless = False  # ksgxd's last run ended with nothing that can be written
        self.jobs: deque[Job] = deque()  # begun and not ended
        self.waiting_for: dict[Enclave, list[Group]] = {}  # victim -> groups that need its pages
        self.works_run = 0
        self.ksgxd_runs = 0
