"""What must always hold, between any two steps (spec 11, INV-1 … INV-10).

:func:`check` counts everything again from the pages up and compares. It looks at
every page and every group, so it is for tests and for a paranoid live machine.
What needs a memory of earlier states (INV-2's second half, INV-8) is left to the
property tests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from epcgroup.epc.group import Group
from epcgroup.epc.pages import VA_SLOTS, Enclave, EpcPage, Kind, State
from epcgroup.epc.policy import Disable
from epcgroup.epc.state import Epc
from epcgroup.errors import InternalError
from epcgroup.misc import EventRule
from epcgroup.units import PAGE_SIZE


def check(machine: Epc) -> None:
    """Raise InternalError, naming the invariant, if one does not hold."""
    pages = list(_in_use(machine))
    groups = list(machine.groups.walk(machine.groups.root))
    _check_pool(machine, pages)
    _check_lists(machine, pages, groups)
    _check_usage(machine, pages, groups)
    for group in groups:
        _check_events(machine, group)
        _check_life(machine, group)
    for enclave in machine.enclaves.values():
        _check_enclave(enclave)


def _must(holds: bool, name: str, what: object) -> None:
    if not holds:
        raise _broken(name, what)


def _broken(name: str, what: object) -> InternalError:
    """For what is asked of every page: there the words cost more than the question."""
    return InternalError(f"{name} does not hold: {what}")


def _in_use(machine: Epc) -> Iterator[EpcPage]:
    for enclave in machine.enclaves.values():
        yield from (page for page in enclave.pages.values() if page is not None)
        if enclave.secs is not None:
            yield enclave.secs
        yield from enclave.va_pages
    for guest in machine.vepcs.values():
        yield from guest.pages.values()


def _check_pool(machine: Epc, pages: list[EpcPage]) -> None:
    pool = machine.pool
    _must(len({page.number for page in pages}) == len(pages), "INV-3", "a page is used twice")
    total = pool.free + len(pages) + len(pool.poisoned)
    _must(total == pool.size, "INV-3", f"{pool.free} free, {len(pages)} used of {pool.size}")


def _check_lists(machine: Epc, pages: list[EpcPage], groups: list[Group]) -> None:
    where: dict[int, Group] = {}
    for group in groups:
        for which, state in (
            (group.reclaimable, State.RECLAIMABLE),
            (group.unreclaimable, State.UNRECLAIMABLE),
        ):
            listed = list(which)
            _must(len(listed) == which.count, "INV-4", f"{group} counts {which.count} of {len(listed)}")
            _must(which.tail is (listed[-1] if listed else None), "INV-4", f"tail of {group}")
            for page in listed:
                if page.number in where:
                    raise _broken("INV-4", f"{page} is on two lists")
                if page.state is not state or page.group is not group:
                    raise _broken("INV-4", f"{page} on {group}")
                where[page.number] = group
    unlinked = machine.policy.disable is Disable.CASCADE  # T11: state without list
    for page in pages:
        state, listed_here = page.state, page.number in where
        if state is State.FREE or state is State.RECLAIM_IN_PROGRESS:
            raise _broken("INV-4", f"{page} is in use, and no round is running")
        if listed_here is (state is State.NOT_TRACKED) and not (unlinked and state is State.UNRECLAIMABLE):
            raise _broken("INV-4", f"{page} and its list disagree")
        if state is State.RECLAIMABLE and page.kind is not Kind.CHILD:
            raise _broken("INV-4", page)
    for group in groups:
        children = [child for child in group.children() if isinstance(child, Group)]
        below = group.reclaimable.count + sum(child.below for child in children)
        _must(group.below == below, "INV-4", f"{group} counts {group.below} of {below} below")
        _must(group.active == [child for child in children if child.below], "INV-4", f"{group} active")
        _must(group.active_ids == [child.id for child in group.active], "INV-4", f"{group} active ids")
        _must(not group.cursor.released, "INV-9", f"cursor of {group} is on a freed group")


def _check_usage(machine: Epc, pages: list[EpcPage], groups: list[Group]) -> None:
    direct = Counter(page.group for page in pages)
    kinds = Counter((page.group, page.kind) for page in pages)
    subtree: Counter[Group] = Counter()
    for payer, count in direct.items():
        level = payer
        while level is not None:
            subtree[level] += count
            level = level.parent
    known = set(groups)
    _must(all(payer in known for payer in direct), "INV-9", "a page is charged to a freed group")
    for group in groups:
        usage = group.usage[machine.resource]
        _must(usage == subtree[group] * PAGE_SIZE, "INV-1", f"{group}: {usage}, {subtree[group]} pages")
        _must(group.peak[machine.resource] >= usage, "INV-10", group)
        for kind in (Kind.SECS, Kind.VA, Kind.VEPC):
            _must(group.kinds[kind] == kinds[group, kind], "INV-1", f"{group} counts its {kind.name} pages")
        _must(group.pins >= direct[group], "INV-9", f"{group}: {group.pins} pins")
    root = machine.groups.root
    _must(root.usage[machine.resource] <= machine.groups.capacity[machine.resource], "INV-2", root)


def _check_events(machine: Epc, group: Group) -> None:
    events, parent = group.events[machine.resource], group.parent
    local = machine.policy.misc.event_rule is EventRule.LOCAL
    if parent is not None and not (local and parent.parent is None):
        _must(parent.events[machine.resource] >= events, "INV-7", f"{group} counts more than its parent")
    if local and parent is not None:
        _must(group.events_local[machine.resource] <= events, "INV-7", group)


def _check_life(machine: Epc, group: Group) -> None:
    pinned = bool(group.online or group.pins or group.tasks or group.first_child)
    _must(group.waiting is not pinned, "INV-9", f"{group} waits for its release: {group.waiting}")
    _must((group in machine.groups.dying) is group.waiting, "INV-9", group)
    _must(group.queued is (group in machine.works), "INV-9", f"{group} queued: {group.queued}")


def _check_enclave(enclave: Enclave) -> None:
    resident = sum(page is not None for page in enclave.pages.values())
    _must(enclave.child_count == resident, "INV-5", f"{enclave}: {enclave.child_count} of {resident}")
    _must(not resident or enclave.secs is not None, "INV-5", f"{enclave} has pages and no SECS")
    slots = len(enclave.va_pages) * VA_SLOTS
    _must(enclave.evicted <= slots, "INV-5", f"{enclave}: {enclave.evicted} evicted, {slots} slots")
    _must(slots >= enclave.page_cnt, "INV-6", f"{enclave}: {enclave.page_cnt} pages, {slots} slots")
    _must(not enclave.isolated, "INV-5", f"{enclave} has isolated pages and no round is running")
