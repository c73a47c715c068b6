"""Random operations on every policy; all invariants are counted again after each step.

Background work runs in slices between operations, as in a live machine, or to
its end; both in the same sequence.
"""

from __future__ import annotations

import contextlib

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from epcgroup.epc import SECS_INDEX, STANDARD, Caller, Disable, Enclave, Kind, Machine, Policy, State
from epcgroup.epc.invariants import check
from epcgroup.errors import Busy, Refused
from epcgroup.testing import TablePager
from epcgroup.testing.strategies import PATHS, epc_sizes, extended_policies, limits, page_runs, paths
from epcgroup.testing.table import NOT_MAPPED, touch, touch_vepc
from epcgroup.units import U64_MAX

SIZE = 64


class Signals:
    """A signal becomes pending after so many questions; it stays until told otherwise."""

    def __init__(self) -> None:
        self.after: int | None = None

    def __call__(self) -> bool:
        if self.after is None:
            return False
        self.after -= 1
        return self.after < 0


class EngineMachine(RuleBasedStateMachine):
    @initialize(policy=extended_policies(), pages=epc_sizes(), limit=limits(), count=st.integers(1, SIZE))
    def start(self, policy: Policy, pages: int, limit: int | None, count: int) -> None:
        """Begin with tenants at work, so that things collide soon."""
        self.pager = TablePager()
        self.machine = Machine(epc_pages=pages, policy=policy, pager=self.pager)
        self.policy = policy
        self.standard = policy.name == STANDARD.name
        self.signals = Signals()
        self.callers: list[Caller] = []  # one process a group at most
        self.enclaves: list[Enclave] = []
        self.guests = []
        self.above: dict[object, int] = {}
        for path in ("/a", "/b", "/a/c"):
            self.machine.groups.mkdir(path)
            self.enter(path)
        self.set_max("/a", limit)
        for caller in self.callers:
            with contextlib.suppress(Refused):
                enclave = self.machine.create_enclave(caller, SIZE)
                self.enclaves.append(enclave)
                self.add(caller, enclave, range(count))
                self.machine.initialise(enclave)

    # -- groups and processes ------------------------------------------------

    @rule(path=paths())
    def mkdir(self, path: str) -> None:
        with contextlib.suppress(Refused):
            self.machine.groups.mkdir(path)

    @rule(path=paths())
    def rmdir(self, path: str) -> None:
        with contextlib.suppress(Refused):
            self.machine.groups.rmdir(path)

    @rule(path=paths(), limit=limits())
    def set_max(self, path: str, limit: int | None) -> None:
        if path in self.machine.groups and path != "/":
            group = self.machine.groups.lookup(path)
            self.machine.set_max(group, limit)
            self.above[group] = group.usage[self.machine.resource]

    @precondition(lambda self: self.policy.soft_limits)
    @rule(path=paths(), name=st.sampled_from(("low", "high")), limit=limits())
    def set_soft(self, path: str, name: str, limit: int | None) -> None:
        if path in self.machine.groups and path != "/":
            self.machine.set_soft(self.machine.groups.lookup(path), name, U64_MAX if limit is None else limit)

    @rule(path=paths(), pages=st.integers(1, 40))
    def reclaim(self, path: str, pages: int) -> None:
        if path in self.machine.groups and self.pager.refuse is None:
            group = self.machine.groups.lookup(path)
            there = group.below
            assert self.machine.reclaim(group, pages) >= min(pages, there)

    @precondition(lambda self: len(self.callers) < 4)
    @rule(path=paths())
    def enter(self, path: str) -> None:
        if path in self.machine.groups:
            group = self.machine.groups.lookup(path)
            self.machine.groups.attach(group)
            self.callers.append(Caller(group, self.signals))

    @precondition(lambda self: self.callers)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        caller = self.callers.pop(data.draw(st.integers(0, len(self.callers) - 1)))
        self.machine.groups.detach(caller.group)

    # -- enclaves ------------------------------------------------------------

    def caller(self, data: st.DataObject) -> Caller:
        return data.draw(st.sampled_from(self.callers))

    @precondition(lambda self: self.callers and len(self.enclaves) < 5)
    @rule(data=st.data(), run=page_runs(SIZE), finish=st.booleans())
    def build(self, data: st.DataObject, run: range, finish: bool) -> None:
        caller = self.caller(data)
        before = self.machine.free, caller.group.usage[self.machine.resource]
        try:
            enclave = self.machine.create_enclave(caller, SIZE)
        except Refused:
            # Nothing is held by an enclave that is not: what was evicted is free now.
            assert (self.machine.free, -caller.group.usage[self.machine.resource]) >= (before[0], -before[1])
            return
        self.enclaves.append(enclave)
        self.add(caller, enclave, run)
        if finish:
            self.machine.initialise(enclave)

    @precondition(lambda self: self.callers and self.enclaves)
    @rule(data=st.data(), run=page_runs(SIZE))
    def add_more(self, data: st.DataObject, run: range) -> None:
        self.add(self.caller(data), data.draw(st.sampled_from(self.enclaves)), run)

    def add(self, caller: Caller, enclave: Enclave, run: range) -> None:
        for index in run:
            try:
                self.machine.add_page(caller, enclave, index)
            except Refused:
                return

    @precondition(lambda self: self.enclaves)
    @rule(data=st.data())
    def init(self, data: st.DataObject) -> None:
        with contextlib.suppress(Refused):
            self.machine.initialise(data.draw(st.sampled_from(self.enclaves)))

    @precondition(lambda self: self.callers and self.enclaves)
    @rule(data=st.data(), run=page_runs(SIZE), sgx2=st.booleans())
    def touch_and_settle(self, data: st.DataObject, run: range, sgx2: bool) -> None:
        self.touch_all(self.caller(data), data.draw(st.sampled_from(self.enclaves)), run, sgx2)

    def touch_all(self, caller: Caller, enclave: Enclave, run: range, sgx2: bool) -> None:
        for index in run:
            calls = touch(self.machine, self.pager, caller, enclave, index, sgx2)
            if self.standard:
                # Each level that refuses costs one turn; nobody waits for ever.
                assert calls != NOT_MAPPED
            if calls < 0:
                return

    @precondition(lambda self: self.callers and self.enclaves)
    @rule(data=st.data(), run=page_runs(SIZE), times=st.integers(1, 3))
    def everybody_touches(self, data: st.DataObject, run: range, times: int) -> None:
        for _ in range(times):
            for enclave in self.enclaves:
                self.touch_all(self.caller(data), enclave, run, sgx2=False)

    @precondition(lambda self: self.callers and self.enclaves)
    @rule(data=st.data(), run=page_runs(SIZE), slices=st.integers(0, 5))
    def touch_in_slices(self, data: st.DataObject, run: range, slices: int) -> None:
        caller, enclave = self.caller(data), data.draw(st.sampled_from(self.enclaves))
        for index in run:
            if not self.pager.access(enclave, index):
                try:
                    self.machine.fault(caller, enclave, index)
                except Busy:
                    pass
                except Refused:
                    return
                else:
                    self.pager.map(enclave, index)
                    self.pager.access(enclave, index)
            for _ in range(slices):
                self.machine.step()

    @precondition(lambda self: self.enclaves)
    @rule(data=st.data())
    def edmm(self, data: st.DataObject) -> None:
        enclave = data.draw(st.sampled_from(self.enclaves))
        resident = [page for page in enclave.pages.values() if page is not None]
        if not resident:
            return
        page = data.draw(st.sampled_from(resident))
        what = data.draw(st.sampled_from(("remove", "drop", "restore", "poison", "cancel")))
        if what == "remove":
            self.machine.remove_page(enclave, page.index)
        elif what == "drop":
            self.machine.drop_from_lru(page)
        elif what == "restore":
            self.machine.restore_to_lru(page)
        elif what == "poison":
            self.machine.poison(page)
        elif what == "cancel" and page.index == max(enclave.pages):
            self.machine.cancel_page(enclave, page.index)

    @precondition(lambda self: self.callers)
    @rule(data=st.data())
    def edmm_reclaim(self, data: st.DataObject) -> None:
        self.machine.edmm_reclaim(self.caller(data))

    @precondition(lambda self: self.enclaves)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        enclave = self.enclaves.pop(data.draw(st.integers(0, len(self.enclaves) - 1)))
        self.machine.release(enclave)
        self.pager.forget(enclave)

    # -- guests --------------------------------------------------------------

    @precondition(lambda self: self.callers and len(self.guests) < 2)
    @rule(data=st.data(), run=page_runs(SIZE))
    def guest(self, data: st.DataObject, run: range) -> None:
        caller, guest = self.caller(data), self.machine.create_vepc(SIZE)
        self.guests.append(guest)
        for index in run[:10]:
            calls = touch_vepc(self.machine, caller, guest, index)
            assert not self.standard or calls != NOT_MAPPED
            if calls < 0:
                return

    @precondition(lambda self: self.guests)
    @rule()
    def close_guest(self) -> None:
        self.machine.release_vepc(self.guests.pop())

    # -- the world is not kind -----------------------------------------------

    @rule(after=st.none() | st.integers(0, 3))
    def signal(self, after: int | None) -> None:
        self.signals.after = after

    @precondition(lambda self: self.policy.give_up)
    @rule(modulus=st.integers(0, 3))
    def refuse_backing(self, modulus: int) -> None:
        """0: backing for everything; n: none for every n-th page; faithful policies try for ever."""
        self.pager.refuse = (lambda page: page.index % modulus == 0) if modulus else None

    @precondition(lambda self: self.enclaves)
    @rule(data=st.data(), index=st.integers(SECS_INDEX, SIZE - 1))
    def break_page(self, data: st.DataObject, index: int) -> None:
        self.pager.broken.add((data.draw(st.sampled_from(self.enclaves)).id, index))

    # -- background ----------------------------------------------------------

    @rule()
    def settle(self) -> None:
        self.machine.settle()
        assert not self.machine.pending
        assert not self.machine.step()

    @rule(slices=st.integers(1, 8))
    def slices(self, slices: int) -> None:
        for _ in range(slices):
            self.machine.step()

    # -- what must hold ------------------------------------------------------

    @invariant()
    def everything_adds_up(self) -> None:
        if hasattr(self, "machine"):
            check(self.machine)

    @invariant()
    def a_group_above_its_limit_only_shrinks(self) -> None:
        """INV-2: a charge succeeds only below the limit; above it because the limit was lowered."""
        if not hasattr(self, "machine"):
            return
        for group in self.machine.groups.walk(self.machine.groups.root):
            usage = group.usage[self.machine.resource]
            if usage > group.max[self.machine.resource]:
                assert usage <= self.above[group]
                self.above[group] = usage

    @invariant()
    def only_a_policy_that_disables_disables(self) -> None:
        if hasattr(self, "machine") and self.policy.disable is Disable.NEVER:
            assert not any(enclave.disabled for enclave in self.enclaves)

    @invariant()
    def secs_and_guests_are_never_candidates(self) -> None:
        for enclave in getattr(self, "enclaves", ()):
            if enclave.secs is not None:
                assert enclave.secs.kind is Kind.SECS
                assert enclave.secs.state is not State.RECLAIMABLE

    def teardown(self) -> None:
        """INV-8, INV-9: when everything is closed, nothing is charged and no removed group is left."""
        if not hasattr(self, "machine"):
            return
        for enclave in self.enclaves:
            self.machine.release(enclave)
        for guest in self.guests:
            self.machine.release_vepc(guest)
        for caller in self.callers:
            self.machine.groups.detach(caller.group)
        for path in sorted(PATHS, key=len, reverse=True):
            if path in self.machine.groups:
                self.machine.groups.rmdir(path)
        self.machine.settle()
        check(self.machine)
        tree = self.machine.groups
        assert list(tree.walk(tree.root)) == [tree.root]
        assert tree.root.usage == [0, 0, 0]
        assert tree.root.cursor is tree.root
        assert self.machine.free + len(self.machine.pool.poisoned) == self.machine.epc_pages
        assert not self.machine.waiting_for


TestEngineMachine = EngineMachine.TestCase
TestEngineMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
