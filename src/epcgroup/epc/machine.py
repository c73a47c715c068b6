"""The machine: one EPC, its groups, its enclaves, and the work in the background.

This is the engine's whole public face. Operations either happen completely or
raise a :class:`~epcgroup.errors.Refused` and leave every count as it was:

* ``Busy``: not now. Background work was queued; run some and try again.
* ``NoEpc``: over the limit (or the machine is full) and nothing is reclaimable.
* ``Interrupted``: a signal is pending for the caller.
* ``EnclaveDisabled``, ``LoadFailed``, ``PageExists``, ``OutOfRange``.

Background work (release of dead groups, the per-group worker, ksgxd) runs only
in :meth:`Machine.step` and :meth:`Machine.settle`, never by itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

from epcgroup.epc import background, enclaves, fault, release, track, vepc
from epcgroup.epc.alloc import global_batch
from epcgroup.epc.caller import Caller
from epcgroup.epc.group import Group
from epcgroup.epc.nodes import NodePool, Section
from epcgroup.epc.pager import Pager
from epcgroup.epc.pages import Enclave, EpcPage, State, Vepc
from epcgroup.epc.policy import Policy
from epcgroup.epc.queue import high_written, max_written, should_reclaim
from epcgroup.epc.reclaim import reclaim, reclaiming
from epcgroup.epc.stat import stat
from epcgroup.epc.state import Epc
from epcgroup.epc.walk import nothing_reclaimable
from epcgroup.errors import Busy
from epcgroup.misc import files
from epcgroup.units import U64_MAX


class Machine(Epc):
    """One emulated machine; pure: no clock, no thread, no randomness.

    ``groups`` is the tree of cgroups; ``enclaves`` and ``vepcs`` hold what
    lives, by id; ``works_run`` and ``ksgxd_runs`` count background jobs begun.
    """

    def __init__(
        self,
        *,
        epc_pages: int,
        policy: Policy,
        pager: Pager,
        resources: Mapping[str, int] | None = None,
        sections: Sequence[Section] = (),
    ) -> None:
        """``resources``: capacities of other misc resources, by key.

        ``sections``: of the EPC where there are several; then ``epc_pages`` is not looked at.
        """
        super().__init__(
            epc_pages=epc_pages, policy=policy, pager=pager, resources=resources, sections=sections
        )
        self.groups.max_written = self._max_written
        self.groups.high_written = self._high_written
        self.groups.group_freed = self._group_freed
        self._next_id = 1

    @property
    def free(self) -> int:
        """Free EPC pages."""
        return self.pool.free

    def free_by_node(self) -> dict[int, tuple[int, int]]:
        """NUMA node → its pages of EPC, and how many of them are free."""
        if isinstance(self.pool, NodePool):
            return self.pool.by_node()
        return {0: (self.epc_pages, self.pool.free)}

    # -- enclaves ------------------------------------------------------------

    def create_enclave(self, caller: Caller, size: int) -> Enclave:
        """First VA page, then SECS; both or neither. ``size`` in pages (spec 6.5, CREATE 5 to 7).

        Raises NoEpc, Interrupted.
        """
        enclave = enclaves.create(self, caller, size, self._next_id)
        self._next_id += 1
        return enclave

    def add_page(self, caller: Caller, enclave: Enclave, index: int) -> EpcPage:
        """EADD: an EPC page, a VA page when one is due; may reclaim (spec 6.5, ADD_PAGES).

        Raises OutOfRange (initialised, or index outside), EnclaveDisabled,
        NoEpc, Interrupted, PageExists.
        """
        return enclaves.add_page(self, caller, enclave, index)

    def cancel_page(self, enclave: Enclave, index: int) -> None:
        """Undo the add_page or augment just done: EADD or EAUG itself failed."""
        enclaves.cancel_page(self, enclave, index)

    def initialise(self, enclave: Enclave) -> None:
        """EINIT succeeded. Raises OutOfRange (twice), EnclaveDisabled."""
        enclaves.initialise(enclave)

    def fault(self, caller: Caller, enclave: Enclave, index: int) -> EpcPage:
        """The page, loaded if it was evicted, its SECS first; never reclaims (spec 6.3).

        Raises OutOfRange (no such page), EnclaveDisabled, Busy, NoEpc,
        Interrupted, LoadFailed. Everything but Busy is a SIGBUS.
        """
        return fault.fault(self, caller, enclave, index)

    def arrived(self, caller: Caller, enclave: Enclave, indices: Sequence[int]) -> None:
        """Pages that were evicted, and are verified and in their frames already: as fault for each in turn.

        Raises as fault does; the first that is refused ends it.
        """
        fault.arrived(self, caller, enclave, indices)

    def augment(self, caller: Caller, enclave: Enclave, index: int) -> EpcPage:
        """EAUG: a new page in an initialised enclave; never reclaims (spec 6.4).

        Raises as fault does, and PageExists.
        """
        return fault.augment(self, caller, enclave, index)

    def remove_page(self, enclave: Enclave, index: int) -> None:
        """REMOVE_PAGES of a resident page. Raises OutOfRange, Busy (being reclaimed)."""
        enclaves.remove_page(self, enclave, index)

    def drop_from_lru(self, page: EpcPage) -> None:
        """Make a page invisible to reclaim (MODIFY_TYPES). Raises Busy (being reclaimed)."""
        track.drop(page)

    def restore_to_lru(self, page: EpcPage) -> None:
        """Undo drop_from_lru: the page goes to the tail of its group's list."""
        if page.state is State.NOT_TRACKED:
            track.record(self, page)

    def release(self, enclave: Enclave) -> None:
        """The last reference is gone: every page is freed (spec 6.1)."""
        release.release(self, enclave)

    def edmm_reclaim(self, caller: Caller) -> None:
        """What the SGX2 ioctls do before each page (ALLOC-33); never fails."""
        root = self.groups.root
        if self.pool.free < self.low and not nothing_reclaimable(self, root):
            reclaim(self, root, global_batch(self, 0))
        if self.policy.edmm_reclaims_group and should_reclaim(self, caller.group):
            reclaim(self, caller.group, self.policy.batch_min)

    # -- virtual EPC ---------------------------------------------------------

    def create_vepc(self, size: int) -> Vepc:
        """A guest's EPC of ``size`` pages, none of them allocated."""
        guest = Vepc(self._next_id, size)
        self._next_id += 1
        self.vepcs[guest.id] = guest
        return guest

    def fault_vepc(self, caller: Caller, guest: Vepc, index: int) -> EpcPage:
        """The guest touched a page: allocate it unless it is there.

        Raises OutOfRange, Busy (retry if the fault allows it), NoEpc, Interrupted.
        """
        return vepc.fault_vepc(self, caller, guest, index)

    def free_vepc_page(self, guest: Vepc, index: int) -> None:
        """EREMOVE succeeded for one page (pages left over are the zombies of VEPC-05)."""
        vepc.free_vepc_page(self, guest, index)

    def release_vepc(self, guest: Vepc) -> None:
        """Free all its pages."""
        vepc.release_vepc(self, guest)

    # -- limits and faults of the hardware -----------------------------------

    def set_max(self, group: Group, limit: int | None) -> None:
        """Store a limit in bytes, None for no limit; the policy says what follows.

        The same as writing misc.max through ``misc.files``.
        """
        files.set_max(self.groups, group, self.resource, U64_MAX if limit is None else limit)

    def set_soft(self, group: Group, name: str, limit: int) -> None:
        """Store ``low`` or ``high`` in bytes (spec 9.2), as a write to misc.low or misc.high does."""
        files.set_soft(self.groups, group, name, self.resource, limit)

    def reclaim(self, group: Group, pages: int) -> int:
        """Evict so many pages of a group's subtree now; how many it came to (a few more, or fewer)."""
        return sum(self.reclaiming(group, pages))

    def reclaiming(self, group: Group, pages: int) -> Iterator[int]:
        """As reclaim, a round at a time: pages evicted by each. Other operations may come between."""
        return reclaiming(self, group, pages)

    def stat(self, group: Group) -> dict[str, int]:
        """What a group's subtree holds (pages) and did (counts), by name; see epc.stat."""
        return stat(self, group)

    def usage(self, group: Group) -> int:
        """Bytes charged to a group and its descendants (misc.current)."""
        return group.usage[self.resource]

    def poison(self, page: EpcPage) -> None:
        """A memory error in an EPC page: off its list, and never handed out again (EPC-08).

        A page that a reclaim round holds is left to that round.
        """
        with contextlib.suppress(Busy):
            track.drop(page)
        self.pool.poison(page)

    # -- background ----------------------------------------------------------

    def step(self) -> bool:
        """Run one slice of background work; False when there is none.

        A slice is the release of one group, or one round of a worker or of
        ksgxd. Jobs that have begun take turns.
        """
        return background.step(self)

    def settle(self) -> None:
        """Run background work until none is left: releases, then the oldest work, then ksgxd."""
        background.settle(self)

    @property
    def pending(self) -> bool:
        """Whether step() would find something to do."""
        return background.pending(self)

    def _max_written(self, group: Group, resource: int) -> None:
        if resource == self.resource:
            max_written(self, group)

    def _high_written(self, group: Group, resource: int) -> None:
        if resource == self.resource:
            high_written(self, group)

    def _group_freed(self, group: Group) -> None:
        release.group_freed(self, group)
