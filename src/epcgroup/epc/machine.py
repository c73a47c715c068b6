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

from collections.abc import Mapping

from epcgroup.epc.caller import Caller
from epcgroup.epc.group import Group
from epcgroup.epc.pager import Pager
from epcgroup.epc.pages import Enclave, EpcPage, Vepc
from epcgroup.epc.policy import Policy
from epcgroup.misc import Tree


class Machine:
    """One emulated machine; pure: no clock, no thread, no randomness."""

    groups: Tree[Group]
    enclaves: dict[int, Enclave]
    vepcs: dict[int, Vepc]
    epc_pages: int
    policy: Policy
    pager: Pager
    works_run: int
    ksgxd_runs: int

    def __init__(
        self, *, epc_pages: int, policy: Policy, pager: Pager, resources: Mapping[str, int] | None = None
    ) -> None:
        """``resources``: capacities of other misc resources, by key."""
        raise NotImplementedError

    @property
    def free(self) -> int:
        """Free EPC pages."""
        raise NotImplementedError

    # -- enclaves ------------------------------------------------------------

    def create_enclave(self, caller: Caller, size: int) -> Enclave:
        """First VA page, then SECS; both or neither. ``size`` in pages (spec 6.5 CREATE 5-7)."""
        raise NotImplementedError

    def add_page(self, caller: Caller, enclave: Enclave, index: int) -> EpcPage:
        """EADD: an EPC page, a VA page when one is due; may reclaim (spec 6.5 ADD_PAGES).

        Raises OutOfRange (initialised, or index outside), EnclaveDisabled,
        NoEpc, Interrupted, PageExists.
        """
        raise NotImplementedError

    def cancel_page(self, enclave: Enclave, index: int) -> None:
        """Undo the add_page or augment just done (EADD or EAUG itself failed): page and VA growth."""
        raise NotImplementedError

    def initialise(self, enclave: Enclave) -> None:
        """EINIT succeeded. Raises OutOfRange (twice), EnclaveDisabled."""
        raise NotImplementedError

    def fault(self, caller: Caller, enclave: Enclave, index: int) -> EpcPage:
        """The page, loaded if it was evicted, its SECS first; never reclaims (spec 6.3, 5).

        Raises OutOfRange (no such page), EnclaveDisabled, Busy, NoEpc,
        Interrupted, LoadFailed. Everything but Busy is a SIGBUS.
        """
        raise NotImplementedError

    def augment(self, caller: Caller, enclave: Enclave, index: int) -> EpcPage:
        """EAUG: a new page in an initialised enclave; never reclaims (spec 6.4)."""
        raise NotImplementedError

    def remove_page(self, enclave: Enclave, index: int) -> None:
        """REMOVE_PAGES of a resident page. Raises OutOfRange, Busy (being reclaimed)."""
        raise NotImplementedError

    def drop_from_lru(self, page: EpcPage) -> None:
        """Make a page invisible to reclaim (MODIFY_TYPES). Raises Busy (being reclaimed)."""
        raise NotImplementedError

    def restore_to_lru(self, page: EpcPage) -> None:
        """Undo drop_from_lru: the page goes to the tail."""
        raise NotImplementedError

    def release(self, enclave: Enclave) -> None:
        """The last reference is gone: every page is freed (spec 6.1)."""
        raise NotImplementedError

    def edmm_reclaim(self, caller: Caller) -> None:
        """What the SGX2 ioctls do before each page (ALLOC-33)."""
        raise NotImplementedError

    # -- virtual EPC ---------------------------------------------------------

    def create_vepc(self, size: int) -> Vepc:
        """A guest's EPC of ``size`` pages, none of them allocated."""
        raise NotImplementedError

    def fault_vepc(self, caller: Caller, vepc: Vepc, index: int) -> EpcPage:
        """The guest touched a page: allocate it unless it is there. Errors as fault."""
        raise NotImplementedError

    def free_vepc_page(self, vepc: Vepc, index: int) -> None:
        """EREMOVE succeeded for one page (pages left over are the zombies of VEPC-05)."""
        raise NotImplementedError

    def release_vepc(self, vepc: Vepc) -> None:
        """Free all its pages."""
        raise NotImplementedError

    # -- limits --------------------------------------------------------------

    def set_max(self, group: Group, limit: int | None) -> None:
        """Store a limit in bytes, None for no limit; the policy says what follows.

        The same as writing misc.max through ``misc.files``.
        """
        raise NotImplementedError

    def usage(self, group: Group) -> int:
        """Bytes charged to a group and its descendants (misc.current)."""
        raise NotImplementedError

    # -- background ----------------------------------------------------------

    def step(self) -> bool:
        """Run one slice of background work; False when there is none.

        A slice is the release of one group, or one round of a worker or of
        ksgxd. Runnable jobs take turns.
        """
        raise NotImplementedError

    def settle(self) -> None:
        """Run background work until none is left: releases, then the oldest work, then ksgxd."""
        raise NotImplementedError

    @property
    def pending(self) -> bool:
        """Whether step() would find something to do."""
        raise NotImplementedError
