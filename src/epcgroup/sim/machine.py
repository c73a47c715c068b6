"""The compiled engine with a face: groups by path, enclaves by number, traces in bulk.

:class:`CompiledMachine` owns the kernel's arrays, grows them, and does the rare
operations on the tree in Python. It is to :class:`epcgroup.epc.Machine` what the
kernel is to the engine: the same rules, other data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from epcgroup.epc import policy as policies
from epcgroup.epc.policy import Disable, Dying, OnMaxWritten, Policy, Target, Walk
from epcgroup.errors import BadInput, EnclaveDisabled, InternalError, NoEpc, OutOfRange, Refused
from epcgroup.misc.rules import EventRule
from epcgroup.sim import columns as c
from epcgroup.sim import kernel, rules
from epcgroup.units import PAGE_SHIFT

Ints = npt.NDArray[np.int64]

NO_LIMIT = 1 << 52  # pages; misc.max is 2^64-1 bytes
_PAGES_PER_OWNER = 1 << c.BLOCK
_GOALS = {policies.goal_v5: 0, policies.goal_v17: 1, policies.goal_standard: 2}
_DISABLE = {Disable.NEVER: 0, Disable.CASCADE: 1, Disable.ONE_AND_WAIT: 2}
_EMPTY = np.zeros(0, np.int8)


def untimed() -> npt.NDArray[np.float64]:
    """No clock: a replay without a deadline and without costs."""
    times = np.zeros(c.TIMES)
    times[c.DEADLINE] = np.inf
    return times


class CompiledMachine:
    """One emulated machine; groups and enclaves are row numbers of ``cg`` and ``en``.

    ``log_room``: entries of the log of evictions and loads that one operation
    may write; 0 keeps no log.
    """

    def __init__(self, epc_pages: int, policy: Policy, *, sgx2: bool = False, log_room: int = 0) -> None:
        if epc_pages < 1:
            raise BadInput(f"an EPC of {epc_pages} pages; it needs at least 1 (6 to run anything)")
        if policy.goal not in _GOALS:
            raise BadInput(f"policy {policy.name!r}: its goal is not one that the compiled engine knows")
        self.policy = policy
        self.epc_pages = epc_pages
        self.cg: Ints = np.zeros((0, c.GROUP_COLUMNS), np.int64)
        self.en: Ints = np.zeros((16, c.ENCLAVE_COLUMNS), np.int64)
        self.fl = np.zeros(1024, np.uint8)
        self.ow = np.full(1024 >> c.BLOCK, -1, np.int32)
        self.nd = np.zeros((64, c.NODE_COLUMNS), np.int32)
        self.g: Ints = np.zeros(c.SCALARS, np.int64)
        self.lg = np.zeros((log_room, 2), np.int32)
        self.scratch: Ints = np.zeros((4, 65), np.int64)
        self._stale_room = max(epc_pages // 4, 4096)
        self.ch = np.zeros((0, 16), np.int32)
        self.nx = np.zeros(0, np.int32)
        self.enclaves = 0
        self.paths: list[str] = []
        self.online: dict[str, int] = {}
        self.max_bytes: list[int | None] = []
        self._top = 0  # page numbers given out
        self._vacant: dict[int, list[int]] = {}  # blocks -> bases, free for use
        self._dead: list[tuple[int, int]] = []  # (blocks, base) to be purged first
        self._set_knobs(policy, sgx2)
        self._reserve_groups(16)
        self._new_group("/", -1)

    # -- cgroups ---------------------------------------------------------------

    def mkdir(self, path: str) -> int:
        """Create a group below an existing one; its number."""
        above, _, name = path.rpartition("/")
        if not path.startswith("/") or not name or path in self.online:
            raise BadInput(f"{path!r} is not the path of a new cgroup, like /a/b")
        return self._new_group(path, self.group(above or "/"))

    def rmdir(self, path: str) -> None:
        """Take a group's directory away. Raises Refused (EBUSY) while it is in use."""
        number = self.group(path)
        row = self.cg[number]
        child = int(row[c.FIRST])
        while child >= 0:
            if self.cg[child, c.ONLINE]:
                raise Refused(f"{path!r} has child cgroups", 16)
            child = int(self.cg[child, c.NEXT])
        if not number or row[c.TASKS]:
            raise Refused(f"{path!r} is in use", 16)
        row[c.ONLINE] = 0
        del self.online[path]
        rules.settle_group(self.arrays, number)

    def group(self, path: str) -> int:
        """The number of a live group; raises OutOfRange (ENOENT)."""
        try:
            return self.online[path]
        except KeyError:
            raise OutOfRange(f"no cgroup {path!r}", 2) from None

    def set_max(self, group: int, limit: int | None) -> None:
        """Store a limit in bytes, None for no limit; the policy says what follows."""
        self.max_bytes[group] = limit
        self.cg[group, c.LIMIT] = NO_LIMIT if limit is None else min(limit >> PAGE_SHIFT, NO_LIMIT)
        self._spread_limit(group)
        what = self.policy.on_max_written
        usage, pages = self.cg[group, c.USAGE], self._own_limit(group)
        if what is OnMaxWritten.WORKER or (what is OnMaxWritten.WORKER_IF_ABOVE and usage > pages):
            rules.queue_work(self.arrays, group)

    def attach(self, group: int) -> None:
        """A process enters a group."""
        self.cg[group, c.TASKS] += 1

    def detach(self, group: int) -> None:
        """A process leaves a group."""
        self.cg[group, c.TASKS] -= 1
        if not self.cg[group, c.ONLINE]:
            rules.settle_group(self.arrays, group)

    def settle(self) -> None:
        """Run background work until none is left."""
        rules.settle(self.arrays)

    # -- enclaves --------------------------------------------------------------

    def create_enclave(self, group: int, size: int) -> int:
        """An enclave of ``size`` pages of address range; raises NoEpc."""
        number = self._new_enclave(group, size)
        if rules.create(self.arrays, number):
            self._forget(number)
            raise NoEpc("no EPC for the control page and its version array")
        return number

    def add_pages(self, enclave: int, first: int, pages: int, *, settle_each: bool = True) -> tuple[int, int]:
        """EADD; (pages added, 0 or the -errno that stopped it)."""
        flags = self.en[enclave, c.FLAGS]
        if flags & (c.INITIALISED | c.RELEASED_ENCLAVE):
            raise OutOfRange("pages are added after CREATE and before INIT")
        if flags & c.DISABLED:
            raise EnclaveDisabled
        if first < 0 or pages < 0 or first + pages > self.en[enclave, c.SIZE]:
            raise OutOfRange(f"pages {first} to {first + pages} of {self.en[enclave, c.SIZE]}")
        self._reserve_nodes(pages // 512 + 2)
        done, result = rules.add_pages(self.arrays, enclave, first, pages, settle_each)
        return int(done), int(result)

    def initialise(self, enclave: int) -> None:
        """EINIT. Raises OutOfRange (twice), EnclaveDisabled."""
        flags = self.en[enclave, c.FLAGS]
        if flags & (c.INITIALISED | c.RELEASED_ENCLAVE):
            raise OutOfRange("the enclave is initialised once, after CREATE")
        if flags & c.DISABLED:
            raise EnclaveDisabled
        self.en[enclave, c.FLAGS] |= c.INITIALISED

    def release(self, enclave: int) -> None:
        """The last reference is gone: every page is freed."""
        rules.release(self.arrays, enclave)
        self._dead.append((self._blocks(enclave), int(self.en[enclave, c.BASE])))
        if self.g[c.STALE] > self._stale_room or len(self._dead) > 4096:
            self._purge()

    def move(self, enclaves: Sequence[int], group: int) -> None:
        """The process of these enclaves is in another group now; charges stay."""
        for enclave in enclaves:
            self.en[enclave, c.GROUP] = group

    def access(
        self,
        enclave: int,
        pages: npt.NDArray[Any],
        *,
        k: npt.NDArray[np.int8] = _EMPTY,
        until_failure: bool = False,
        start: int = 0,
        times: npt.NDArray[np.float64] | None = None,
    ) -> int:
        """The processor accesses these pages of an enclave; where it stopped (see kernel.replay)."""
        low, high = (int(pages.min()), int(pages.max())) if len(pages) else (0, 0)
        if low < 0 or high >= self.en[enclave, c.SIZE]:
            raise OutOfRange(f"pages {low} to {high} of an enclave of {self.en[enclave, c.SIZE]} pages")
        return self._replay(pages, int(self.en[enclave, c.BASE]), k, until_failure, start, times)

    def access_numbered(
        self,
        numbers: npt.NDArray[Any],
        *,
        k: npt.NDArray[np.int8] = _EMPTY,
        until_failure: bool = False,
        start: int = 0,
        times: npt.NDArray[np.float64] | None = None,
    ) -> int:
        """The same for pages of any enclave, by number (``base`` plus index)."""
        if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < self._top:
            raise OutOfRange(f"page numbers go from 0 to {self._top - 1}")
        return self._replay(numbers, 0, k, until_failure, start, times)

    def base(self, enclave: int) -> int:
        """The number of an enclave's first page."""
        return int(self.en[enclave, c.BASE])

    # -- virtual EPC -----------------------------------------------------------

    def fault_vepc(self, group: int) -> int:
        """A guest's process in ``group`` touches a page it has not: 0 or -errno (EBUSY: settle, retry)."""
        return int(rules.fault_vepc(self.arrays, group))

    def free_vepc(self, group: int, pages: int) -> None:
        """Pages of a guest that are charged to this group are freed."""
        self.cg[group, c.REMOVED] += pages
        rules.uncharge(self.arrays, group, pages)

    # -- what can be seen --------------------------------------------------------

    @property
    def free(self) -> int:
        """Free EPC pages."""
        return self.epc_pages - int(self.cg[0, c.USAGE])

    @property
    def arrays(self) -> tuple[Any, ...]:
        """The kernel's state."""
        return self._arrays

    def groups(self) -> list[int]:
        """Groups not yet released, by number."""
        return [n for n in range(int(self.g[c.GROUPS])) if not self.cg[n, c.RELEASED]]

    def take_log(self) -> Ints:
        """The log since the last call: rows of (enclave, page), ``~enclave`` for a page written out."""
        count = int(self.g[c.LOGGED])
        if count > len(self.lg):
            raise InternalError(f"{count} entries for a log of {len(self.lg)}")
        self.g[c.LOGGED] = 0
        return self.lg[:count].astype(np.int64)

    def reclaimable(self, group: int) -> Ints:
        """Page numbers on a group's list, head first."""
        row = self.cg[group]
        chunk, place = int(row[c.HEAD]), int(row[c.HEAD_AT])
        parts = [np.zeros(0, np.int32)]
        while chunk >= 0:
            last = chunk == row[c.TAIL]
            parts.append(self.ch[chunk, place : int(row[c.TAIL_AT]) if last else 16])
            chunk, place = (-1 if last else int(self.nx[chunk])), 0
        pages = np.concatenate(parts).astype(np.int64)
        return pages[self.fl[pages] & c.DEAD == 0]

    def unreclaimable(self, group: int) -> list[tuple[int, bool]]:
        """(enclave, is a SECS) of the group's list of unreclaimable pages, head first."""
        node, found = int(self.cg[group, c.UNREC_HEAD]), []
        while node >= 0:
            found.append((int(self.nd[node, c.N_ENCLAVE]), bool(self.nd[node, c.N_IS_SECS])))
            node = int(self.nd[node, c.N_NEXT])
        return found

    def flags(self, enclave: int) -> npt.NDArray[np.uint8]:
        """Flag bytes of an enclave's pages."""
        base, size = self.en[enclave, c.BASE], self.en[enclave, c.SIZE]
        return self.fl[base : base + size]

    # -- inside ------------------------------------------------------------------

    def _replay(
        self,
        pages: npt.NDArray[Any],
        base: int,
        k: npt.NDArray[np.int8],
        until_failure: bool,
        start: int,
        times: npt.NDArray[np.float64] | None,
    ) -> int:
        if self.g[c.SGX2]:
            self._reserve_nodes(min(len(pages), self.epc_pages) // 512 + self.enclaves + 2)
        self._reserve_nodes(self.enclaves + 2)
        clock = untimed() if times is None else times
        return int(kernel.replay(self.arrays, pages, base, start, len(pages), k, until_failure, clock))

    def _own_limit(self, group: int) -> int:
        if self.policy.target is Target.REFUSING:
            return min(int(self.cg[group, c.LIMIT]), self.epc_pages)
        return int(self.cg[group, c.PATH_MIN])

    def _spread_limit(self, top: int) -> None:
        # PATH_MIN of a whole subtree.
        todo = [top]
        while todo:
            group = todo.pop()
            row = self.cg[group]
            above = NO_LIMIT if row[c.PARENT] < 0 else int(self.cg[row[c.PARENT], c.PATH_MIN])
            row[c.PATH_MIN] = min(int(row[c.LIMIT]), above)
            child = int(row[c.FIRST])
            while child >= 0:
                todo.append(child)
                child = int(self.cg[child, c.NEXT])

    def _new_group(self, path: str, parent: int) -> int:
        number = int(self.g[c.GROUPS])
        if number == len(self.cg):
            self._reserve_groups(2 * number)
        row = self.cg[number]
        for column in (c.HEAD, c.TAIL, c.FIRST, c.LAST, c.NEXT, c.PREV, c.UNREC_HEAD, c.UNREC_TAIL, c.VICTIM):
            row[column] = -1
        row[c.PARENT] = parent
        row[c.LIMIT] = NO_LIMIT
        row[c.PATH_MIN] = NO_LIMIT
        row[c.ONLINE] = 1
        row[c.CURSOR] = number
        if parent >= 0:
            above = self.cg[parent]
            row[c.PATH_MIN] = above[c.PATH_MIN]
            row[c.PREV] = above[c.LAST]
            if above[c.LAST] >= 0:
                self.cg[above[c.LAST], c.NEXT] = number
            else:
                above[c.FIRST] = number
            above[c.LAST] = number
            above[c.KIDS] += 1
        self.g[c.GROUPS] = number + 1
        self.g[c.DIRTY] = 1
        self.paths.append(path)
        self.online[path] = number
        self.max_bytes.append(None)
        return number

    def _reserve_groups(self, count: int) -> None:
        # Rings are unrolled to the front, because their length changes.
        old = len(self.cg)
        self.cg = np.concatenate([self.cg, np.zeros((count - old, c.GROUP_COLUMNS), np.int64)])
        table = np.zeros((3, count + 1), np.int32)
        if old:
            for ring, at, used in ((c.T_WORKS, c.WORKS_AT, c.WORKS), (c.T_DYING, c.DYING_AT, c.DYING)):
                order = (self.g[at] + np.arange(self.g[used])) % self.g[c.RINGS]
                table[ring, : self.g[used]] = self.tb[ring, order]
                self.g[at] = 0
            table[c.T_ORDER, :old] = self.tb[c.T_ORDER, :old]
        self.tb = table
        self.g[c.RINGS] = count + 1
        words = (count >> 6) + 1
        self.bm = np.zeros((2, words), np.uint64)
        self.g[c.DIRTY] = 1
        chunks = (self.epc_pages + self._stale_room) // 16 + 3 * count + 64
        more = chunks - len(self.ch)
        self.ch = np.concatenate([self.ch, np.zeros((more, 16), np.int32)])
        self.nx = np.concatenate([self.nx, np.zeros(more, np.int32)])
        self.order_scratch = np.zeros(count, np.int64)
        self._gather()

    def _reserve_nodes(self, more: int) -> None:
        need = int(self.g[c.NODES]) + more + 2
        if need > len(self.nd):
            extra = max(need, 2 * len(self.nd)) - len(self.nd)
            self.nd = np.concatenate([self.nd, np.zeros((extra, c.NODE_COLUMNS), np.int32)])
            self._gather()

    def _new_enclave(self, group: int, size: int) -> int:
        if size < 1:
            raise BadInput(f"an enclave of {size} pages; it needs at least 1")
        number = self.enclaves
        self.enclaves += 1
        if number == len(self.en):
            self.en = np.concatenate([self.en, np.zeros_like(self.en)])
            self._gather()
        blocks = (size + _PAGES_PER_OWNER - 1) >> c.BLOCK
        base = self._take_blocks(blocks)
        self.fl[base : base + size] = 0
        self.fl[base + size : base + (blocks << c.BLOCK)] = c.DEAD
        self.ow[base >> c.BLOCK : (base >> c.BLOCK) + blocks] = number
        row = self.en[number]
        row[:] = 0
        row[c.BASE], row[c.SIZE], row[c.GROUP] = base, size, group
        row[c.HOME] = row[c.SECS] = -1
        self._reserve_nodes(4)
        return number

    def _blocks(self, enclave: int) -> int:
        return (int(self.en[enclave, c.SIZE]) + _PAGES_PER_OWNER - 1) >> c.BLOCK

    def _take_blocks(self, blocks: int) -> int:
        bases = self._vacant.get(blocks)
        if bases:
            return bases.pop()
        base = self._top
        self._top += blocks << c.BLOCK
        if self._top > 2**31:
            raise BadInput(f"{self._top} pages of enclaves at once; there is room for 2^31")
        if self._top > len(self.fl):
            size = max(self._top, len(self.fl) * 3 // 2 >> c.BLOCK << c.BLOCK)
            self.fl = np.concatenate([self.fl, np.zeros(size - len(self.fl), np.uint8)])
            self.ow = np.concatenate([self.ow, np.full((size >> c.BLOCK) - len(self.ow), -1, np.int32)])
            self._gather()
        return base

    def _forget(self, number: int) -> None:
        # An enclave that never came to be; no list names its pages.
        self.en[number, c.FLAGS] = c.RELEASED_ENCLAVE
        base = int(self.en[number, c.BASE])
        self.fl[base : base + int(self.en[number, c.SIZE])] = c.DEAD
        self._vacant.setdefault(self._blocks(number), []).append(base)

    def _purge(self) -> None:
        rules.purge(self.arrays)
        for blocks, base in self._dead:
            self._vacant.setdefault(blocks, []).append(base)
        self._dead.clear()

    def _gather(self) -> None:
        self._arrays = (
            self.cg,
            self.en,
            self.fl,
            self.ow,
            self.ch,
            self.nx,
            self.nd,
            getattr(self, "tb", None),
            getattr(self, "bm", None),
            self.g,
            self.lg,
            self.scratch,
            getattr(self, "order_scratch", None),
        )

    def _set_knobs(self, policy: Policy, sgx2: bool) -> None:
        low, high = policy.watermarks(self.epc_pages)
        self.g[[c.EPC, c.LOW, c.HIGH, c.SGX2]] = self.epc_pages, low, high, sgx2
        self.g[[c.CHUNK_FREE, c.NODE_FREE]] = -1
        self.g[c.LOGGING] = len(self.lg) > 0
        for column, value in (
            (c.K_REFUSING, policy.target is Target.REFUSING),
            (c.K_RESTART, policy.walk is Walk.RESTART),
            (c.K_STOP, policy.dying is Dying.STOP),
            (c.K_BATCH_MIN, policy.batch_min),
            (c.K_BATCH_MAX, policy.batch_max),
            (c.K_GLOBAL, policy.global_batch),
            (c.K_BY_NEED, policy.batch_by_need),
            (c.K_IGNORE_AFTER, -1 if policy.ignore_age_after is None else policy.ignore_age_after),
            (c.K_GIVE_UP, policy.give_up),
            (c.K_DIRECT, policy.direct_batch),
            (c.K_GOAL, _GOALS[policy.goal]),
            (c.K_PREQUEUE, policy.prequeue),
            (c.K_DISABLE, _DISABLE[policy.disable]),
            (c.K_PAIR, policy.all_at_once),
            (c.K_WITH_ROOT, policy.misc.event_rule is EventRule.WITH_ROOT),
            (c.K_TRACK, policy.track_unreclaimable),
            (c.K_GLOBAL_IGNORE, policy.ignore_age_globally),
        ):
            self.g[column] = value
