"""One reclaim round: isolate, age, put back, block, evict (spec 4).

A round takes pages off the heads of lists, asks which of them are young, puts
those back at the tail, and writes the others out. Two ways of isolating exist,
and they are the heart of the difference between the postings:

* From the top, in one batch: the round's budget is filled from list after list,
  in pre-order, always from the beginning (v3 to v6). The first groups in the
  tree are drained first; the round's success is the pages *written*.
* By cursor, one batch a list: each subtree remembers where its last round
  stopped, so groups are scanned in turns (v16, v17). Success is the pages
  *looked at*.

The SECS of an enclave follows its last resident child out, if the enclave is
initialised (4.3); it is counted by nobody.

:class:`Effort` is how hard one reclaimer tries: when fruitless rounds make it
ignore age (v5's promise 5, "reclaim is forced"), and when it gives up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import compress, groupby
from operator import attrgetter, not_
from typing import Any

from epcgroup.epc.group import Group
from epcgroup.epc.pages import NOT_TRACKED, RECLAIM_IN_PROGRESS, RECLAIMABLE, Enclave, EpcPage
from epcgroup.epc.policy import Walk
from epcgroup.epc.protect import turns
from epcgroup.epc.release import finish_release, free_children, free_page
from epcgroup.epc.state import Epc
from epcgroup.epc.track import drop
from epcgroup.epc.walk import lists_from_top, nothing_reclaimable, take_next

_GROUP, _ENCLAVE, _INDEX = attrgetter("group"), attrgetter("enclave"), attrgetter("index")


class Effort:
    """One reclaimer's patience, over the rounds of one allocation or one job."""

    __slots__ = ("_epc", "_fruitless", "_idle_scans", "ignore_age")

    def __init__(self, epc: Epc) -> None:
        self._epc = epc
        self._fruitless = 0  # rounds that wrote nothing
        self._idle_scans = 0  # pages looked at since something was written
        self.ignore_age = False

    def round(self, top: Group, pages: int, machine_wide: bool = False) -> bool:
        """One round over ``top``'s subtree; False: a policy that gives up gives up here."""
        scanned, written = reclaim(self._epc, top, pages, self.ignore_age)
        policy = self._epc.policy
        if policy.ignore_age_after is None or (machine_wide and not policy.ignore_age_globally):
            return True
        if not policy.give_up:  # v5: rounds are counted for good, and nobody gives up
            self._fruitless += not written
            self.ignore_age = self._fruitless > policy.ignore_age_after
            return True
        if written:
            self._fruitless = self._idle_scans = 0
            self.ignore_age = False
            return True
        self._fruitless += 1
        self._idle_scans += scanned
        if self._fruitless <= policy.ignore_age_after or self._idle_scans < top.below:
            return True
        hopeless = self.ignore_age
        self.ignore_age = True
        self._fruitless = self._idle_scans = 0
        return not hopeless


def reclaim(epc: Epc, top: Group, pages: int, ignore_age: bool = False) -> tuple[int, int]:
    """One round over a subtree: (pages looked at, pages written)."""
    if epc.policy.soft_limits:
        return _reclaim_soft(epc, top, pages, ignore_age)
    if epc.policy.walk is Walk.RESTART:
        batch: list[EpcPage] = []
        for group in lists_from_top(epc, top):
            _isolate(group, pages - len(batch), batch)
            if len(batch) >= pages:
                break
        return len(batch), _reclaim_batch(epc, batch, ignore_age)
    by_need = epc.policy.batch_by_need
    scanned = written = 0
    while scanned < pages and top.below:
        batch = []
        _isolate(take_next(epc, top), pages - scanned if by_need else epc.policy.batch_max, batch)
        scanned += len(batch)
        written += _reclaim_batch(epc, batch, ignore_age)
    return scanned, written


def _reclaim_soft(epc: Epc, top: Group, pages: int, ignore_age: bool) -> tuple[int, int]:
    # The same round with misc.low and misc.high: group by group, as those two let it.
    one_batch = epc.policy.walk is Walk.RESTART
    whole_lists = not one_batch and not epc.policy.batch_by_need
    scanned = written = 0
    batch: list[EpcPage] = []
    for group in turns(epc, top):
        _isolate(group, epc.policy.batch_max if whole_lists else pages - scanned, batch)
        scanned += len(batch)
        if not one_batch:
            written += _reclaim_batch(epc, batch, ignore_age)
            batch = []
        else:
            scanned = len(batch)
        if scanned >= pages:
            break
    return scanned, written + _reclaim_batch(epc, batch, ignore_age)


def reclaiming(epc: Epc, top: Group, pages: int) -> Iterator[int]:
    """Rounds until so many pages are evicted; yields what each evicted.

    Age is honoured as long as that gives pages: after a whole turn without one,
    young pages go too, and after another turn without one this ends.
    """
    idle = 0
    ignore_age = False
    while pages > 0 and not nothing_reclaimable(epc, top):
        scanned, written = reclaim(epc, top, min(pages, epc.policy.batch_max), ignore_age)
        if not scanned:
            return
        yield written
        pages -= written
        idle = 0 if written else idle + scanned
        if idle and idle >= top.below:
            if ignore_age:
                return
            idle, ignore_age = 0, True


def _isolate(group: Group, limit: int, batch: list[EpcPage]) -> None:
    # T4: from the head of the list to the round's private one. Each isolated
    # page keeps its enclave alive (RECL-01). T5: a page whose enclave is dying
    # is left to the enclave's release.
    pages = group.reclaimable.take(limit)
    if not pages:
        return
    group.discount(len(pages))
    group.counters.scanned += len(pages)
    for enclave, some in _runs(pages, _ENCLAVE, len({*map(_ENCLAVE, pages)}) == 1):
        if enclave.released:
            for page in some:
                page.prev = page.next = None
                page.state = NOT_TRACKED
            continue
        for page in some:
            page.state = RECLAIM_IN_PROGRESS
        enclave.isolated += len(some)
        enclave.counters.scanned += len(some)
        batch += some


def _reclaim_batch(epc: Epc, batch: list[EpcPage], ignore_age: bool) -> int:
    if not batch:
        return 0
    pager = epc.pager
    chosen, kept = batch, []
    if not ignore_age:
        ages = pager.young(batch)
        chosen, kept = [*compress(batch, map(not_, ages))], [*compress(batch, ages)]
    room = pager.reserve(chosen) if chosen else ()
    alike = _alike(batch)
    if kept:
        _count_young(kept, alike)
    if not all(room):
        chosen = [*compress(chosen, room)]
        going = {*chosen}
        kept = [page for page in batch if page not in going]
    if kept:
        _put_back(epc, kept, alike)
    if chosen:
        pager.block(chosen)
        if alike and len(chosen) < chosen[0].enclave.child_count:
            _evict_some(epc, chosen)
        else:
            for page in chosen:
                _evict(epc, page)
    return len(chosen)


def _runs(
    pages: list[EpcPage], key: Callable[[EpcPage], Any], alike: bool
) -> Iterable[tuple[Any, Sequence[EpcPage]]]:
    # Neighbours with the same key, together.
    if alike:
        return ((key(pages[0]), pages),)
    return [(common, list(run)) for common, run in groupby(pages, key)]


def _alike(pages: list[EpcPage]) -> bool:
    # Whether all are of one enclave, and one group pays for them.
    return len({*map(_ENCLAVE, pages)}) == len({*map(_GROUP, pages)}) == 1


def _count_young(pages: list[EpcPage], alike: bool) -> None:
    for key in _ENCLAVE, _GROUP:
        for owner, some in _runs(pages, key, alike):
            owner.counters.young += len(some)


def _put_back(epc: Epc, pages: list[EpcPage], alike: bool) -> None:
    # T6: each to the tail of the list of the group it is charged to (RECL-02).
    for group, back in _runs(pages, _GROUP, alike):
        group.reclaimable.extend(back)
        group.count(len(back))
    dying: list[Enclave] = []
    for enclave, some in _runs(pages, _ENCLAVE, alike):
        for page in some:
            page.state = RECLAIMABLE
        enclave.isolated -= len(some)
        if enclave.released:
            dying.append(enclave)
    for enclave in dying:
        _finish_if_unused(epc, enclave)


def _evict(epc: Epc, page: EpcPage) -> None:
    # T7. The contents leave, then the SECS if this was the last child, then the page is free.
    enclave = page.enclave
    epc.pager.write_out((page,))
    enclave.pages[page.index] = None
    enclave.child_count -= 1
    enclave.counters.evicted += 1
    page.group.counters.evicted += 1  # type: ignore[union-attr]  # in use, so charged
    if not enclave.child_count and enclave.initialised:
        _evict_secs(epc, enclave)
    page.state = NOT_TRACKED
    free_page(epc, page)
    enclave.isolated -= 1
    if enclave.released:
        _finish_if_unused(epc, enclave)


def _evict_some(epc: Epc, pages: list[EpcPage]) -> None:
    # As _evict for each: pages of one enclave and one group, and others of the enclave stay.
    enclave, group, count = pages[0].enclave, pages[0].group, len(pages)
    assert group is not None
    epc.pager.write_out(pages)
    enclave.pages.update(dict.fromkeys(map(_INDEX, pages)))
    enclave.child_count -= count
    enclave.counters.evicted += count
    group.counters.evicted += count
    free_children(epc, group, pages)
    enclave.isolated -= count
    if enclave.released:
        _finish_if_unused(epc, enclave)


def _evict_secs(epc: Epc, enclave: Enclave) -> None:
    secs = enclave.secs
    if secs is None or not all(epc.pager.reserve((secs,))):
        return  # no backing: it stays resident, silently
    epc.pager.write_out((secs,))
    enclave.secs = None
    enclave.counters.evicted += 1
    secs.group.counters.evicted += 1  # type: ignore[union-attr]  # in use, so charged
    drop(secs)
    free_page(epc, secs)


def _finish_if_unused(epc: Epc, enclave: Enclave) -> None:
    # An isolated page is a reference to its enclave; the last one may be gone (B-47).
    if not enclave.isolated:
        finish_release(epc, enclave)
