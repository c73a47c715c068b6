"""What must always hold, between any two steps (spec 11, INV-1 … INV-10).

:func:`check` counts everything again from the pages up and compares. It looks at
every page and every group, so it is for tests and for a paranoid live machine.
For between two such checks of a large machine there is :func:`check_counts`, which
compares what groups and enclaves count of themselves, and :func:`check_page`.
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
    _must(len({page.number for page in pages}) == len(pages), "INV-3", "a page is used twice")
    _check_lists(machine, pages, groups)
    _check_usage(machine, pages, groups)
    for enclave in machine.enclaves.values():
        resident = sum(page is not None for page in enclave.pages.values())
        _must(enclave.child_count == resident, "INV-5", f"{enclave}: {enclave.child_count} of {resident}")
    check_counts(machine)


def check_counts(machine: Epc) -> None:
    """As `check`, for what can be told without a look at the pages: some microseconds a group and enclave."""
    used = sum(map(_held, machine.enclaves.values())) + sum(len(g.pages) for g in machine.vepcs.values())
    pool, root, resource = machine.pool, machine.groups.root, machine.resource
    total = pool.free + used + len(pool.poisoned)
    _must(total == pool.size, "INV-3", f"{pool.free} free, {used} used of {pool.size}")
    _must(root.usage[resource] == used * PAGE_SIZE, "INV-1", f"{root}: {root.usage[resource]}, {used} pages")
    _must(root.usage[resource] <= machine.groups.capacity[resource], "INV-2", root)
    for group in machine.groups.walk(root):
        usage = group.usage[resource]
        own = usage - sum(child.usage[resource] for child in group.children())
        listed = group.reclaimable.count + sum(group.kinds[1:])
        _must(listed * PAGE_SIZE <= own <= group.pins * PAGE_SIZE, "INV-1", f"{group}: {own} of its own")
        _must(group.peak[resource] >= usage, "INV-10", group)
        _check_below(group)
        _check_events(machine, group)
        _check_life(machine, group)
    for enclave in machine.enclaves.values():
        _must(0 <= enclave.child_count <= len(enclave.pages), "INV-5", f"{enclave}: {enclave.child_count}")
        _check_enclave(enclave)


def check_page(enclave: Enclave, index: int) -> None:
    """As `check`, for a page of an enclave with its place on its list; there need not be such a page."""
    page = enclave.pages.get(index)
    if page is None:
        return
    group = page.group
    if page.enclave is not enclave or page.index != index or page.kind is not Kind.CHILD or page.vepc:
        raise _broken("INV-3", f"{page} is used as page {index} of {enclave}")
    if group is None or group.released or group.pins < 1:
        raise _broken("INV-9", f"{page} is charged to {group}")
    if page.state is State.RECLAIMABLE:
        own = group.reclaimable
        before = own.head if page.prev is None else page.prev.next
        after = own.tail if page.next is None else page.next.prev
        if before is not page or after is not page or not group.below:
            raise _broken("INV-4", f"{page} and its list disagree")
    elif page.state is not State.NOT_TRACKED:
        raise _broken("INV-4", f"{page} is in use, and no round is running")


def _held(enclave: Enclave) -> int:
    return enclave.child_count + len(enclave.va_pages) + (enclave.secs is not None)


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


def _check_below(group: Group) -> None:
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
        for kind in (Kind.SECS, Kind.VA, Kind.VEPC):
            _must(group.kinds[kind] == kinds[group, kind], "INV-1", f"{group} counts its {kind.name} pages")
        _must(group.pins >= direct[group], "INV-9", f"{group}: {group.pins} pins")


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
    _must(not enclave.child_count or enclave.secs is not None, "INV-5", f"{enclave} has pages and no SECS")
    slots = len(enclave.va_pages) * VA_SLOTS
    _must(enclave.evicted <= slots, "INV-5", f"{enclave}: {enclave.evicted} evicted, {slots} slots")
    _must(slots >= enclave.page_cnt, "INV-6", f"{enclave}: {enclave.page_cnt} pages, {slots} slots")
    _must(not enclave.isolated, "INV-5", f"{enclave} has isolated pages and no round is running")
