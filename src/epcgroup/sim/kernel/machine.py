"""The compiled engine with a face: groups by path, enclaves by number, traces in bulk.

:class:`CompiledMachine` owns the kernel's arrays, grows them, and does the rare
operations on the tree in Python. It is to :class:`epcgroup.epc.Machine` what the
kernel is to the engine: the same rules, other data.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from epcgroup.epc.policy import OnMaxWritten, Target
from epcgroup.errors import EnclaveDisabled, InternalError, NoEpc, OutOfRange, Refused
from epcgroup.sim.kernel import columns as c
from epcgroup.sim.kernel import entry as kernel
from epcgroup.sim.kernel.store import NO_LIMIT, Ints, Store, own_lines
from epcgroup.units import PAGE_SHIFT

_EMPTY = np.zeros(0, np.int8)


def untimed() -> npt.NDArray[np.float64]:
    """No clock: a replay without a deadline and without costs."""
    times = own_lines((c.TIMES,), np.float64)
    times[c.DEADLINE] = np.inf
    return times


class CompiledMachine(Store):
    """One emulated machine; groups and enclaves are row numbers of ``cg`` and ``en``.

    ``log_room``: entries of the log of evictions and loads that one operation
    may write; 0 keeps no log.
    """

    # -- cgroups ---------------------------------------------------------------

    def mkdir(self, path: str) -> int:
        """Create a group below an existing one; its number. Raises as misc.Tree.mkdir does."""
        above, _, name = path.rpartition("/")
        if not path.startswith("/") or "//" in path or not name:
            raise OutOfRange(f"{path!r} is not a path like /a/b")
        if path in self.online:
            raise Refused(f"cgroup {path!r} exists", errno.EEXIST)
        return self._new_group(path, self.group(above or "/"))

    def rmdir(self, path: str) -> None:
        """Take a group's directory away. Raises Refused (EBUSY) while it is in use."""
        number = self.group(path)
        row = self.cg[number]
        child = int(row[c.FIRST])
        while child >= 0:
            if self.cg[child, c.ONLINE]:
                raise Refused(f"{path!r} has child cgroups", errno.EBUSY)
            child = int(self.cg[child, c.NEXT])
        if not number or row[c.TASKS]:
            raise Refused(f"{path!r} is in use", errno.EBUSY)
        row[c.ONLINE] = 0
        del self.online[path]
        self._ask(c.SETTLE_GROUP, number)

    def group(self, path: str) -> int:
        """The number of a live group; raises OutOfRange (ENOENT)."""
        try:
            return self.online[path]
        except KeyError:
            raise OutOfRange(f"no cgroup {path!r}", errno.ENOENT) from None

    def set_max(self, group: int, limit: int | None) -> None:
        """Store a limit in bytes, None for no limit; the policy says what follows."""
        self.max_bytes[group] = limit
        self.cg[group, c.LIMIT] = NO_LIMIT if limit is None else min(limit >> PAGE_SHIFT, NO_LIMIT)
        self._spread_limit(group)
        what = self.policy.on_max_written
        usage, pages = self.cg[group, c.USAGE], self._own_limit(group)
        if what is OnMaxWritten.WORKER or (what is OnMaxWritten.WORKER_IF_ABOVE and usage > pages):
            self._ask(c.QUEUE_WORK, group)

    def attach(self, group: int) -> None:
        """A process enters a group."""
        self.cg[group, c.TASKS] += 1

    def detach(self, group: int) -> None:
        """A process leaves a group."""
        self.cg[group, c.TASKS] -= 1
        if not self.cg[group, c.ONLINE]:
            self._ask(c.SETTLE_GROUP, group)

    def settle(self) -> None:
        """Run background work until none is left."""
        self._ask(c.SETTLE)

    # -- enclaves --------------------------------------------------------------

    def create_enclave(self, group: int, size: int) -> int:
        """An enclave of ``size`` pages of address range; raises NoEpc."""
        number = self._new_enclave(group, size)
        if self._ask(c.CREATE, number):
            self._forget(number)
            raise NoEpc("no EPC for the control page and its version array")
        return number

    def add_pages(self, enclave: int, first: int, pages: int, *, settle_each: bool = True) -> tuple[int, int]:
        """EADD, of a page a call or (not ``settle_each``) of all in one; (pages added, 0 or the -errno)."""
        if not pages:
            return 0, 0
        flags = self.en[enclave, c.FLAGS]
        if flags & (c.INITIALISED | c.RELEASED_ENCLAVE):
            raise OutOfRange("pages are added after CREATE and before INIT")
        if flags & c.DISABLED:
            raise EnclaveDisabled
        size = int(self.en[enclave, c.SIZE])
        inside = min(pages, size - first)
        if first < 0 or pages < 0 or inside < (1 if settle_each else pages):
            raise OutOfRange(f"pages {first} to {first + pages} of {size}")
        self._reserve_nodes(inside // 512 + 2)
        done = self._ask(c.ADD_PAGES, enclave, first, inside | settle_each << 32)
        result = int(self.g[c.RESULT])
        return done, -errno.EINVAL if done == inside < pages else result

    def initialise(self, enclave: int) -> None:
        """EINIT. Raises OutOfRange (twice), EnclaveDisabled."""
        flags = self.en[enclave, c.FLAGS]
        if flags & (c.INITIALISED | c.RELEASED_ENCLAVE):
            raise OutOfRange("the enclave is initialised once, after CREATE")
        if flags & c.DISABLED:
            raise EnclaveDisabled
        self.en[enclave, c.FLAGS] |= c.INITIALISED

    def remove_pages(self, enclave: int, first: int, pages: int) -> tuple[int, int]:
        """REMOVE_PAGES of trimmed pages; (pages removed, 0 or the -errno that stopped it).

        An evicted page is loaded first. A removed page exists again when it is touched (SGX2).
        """
        flags = self.en[enclave, c.FLAGS]
        if not flags & c.INITIALISED or flags & c.RELEASED_ENCLAVE:
            raise OutOfRange("pages are removed after INIT")
        if flags & c.DISABLED:
            raise Refused("the enclave has lost its memory", errno.ENOMEM)
        if first < 0 or pages < 0 or first + pages > self.en[enclave, c.SIZE]:
            raise OutOfRange(f"pages {first} to {first + pages} of {self.en[enclave, c.SIZE]}")
        self._reserve_nodes(self.enclaves + 2)
        done = self._ask(c.REMOVE_PAGES, enclave, first, pages)
        return done, int(self.g[c.RESULT])

    def release(self, enclave: int) -> None:
        """The last reference is gone: every page is freed."""
        self._ask(c.RELEASE, enclave)
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
        checked: bool = False,
    ) -> int:
        """The processor accesses these pages of an enclave; where it stopped (see replay.replay).

        ``checked``: they are known to be in its range.
        """
        low, high = (int(pages.min()), int(pages.max())) if len(pages) and not checked else (0, 0)
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

    def run_threads(self, order: npt.NDArray[np.int32], start: int) -> int:
        """Run threads until their deadlines; see quantum.run_threads and threads.Crew."""
        self._reserve_nodes(2 * self.enclaves + 2 + (self.epc_pages // 512 if self.g[c.SGX2] else 0))
        return kernel.OPERATE(self._at, c.RUN_THREADS, start, 0, 0, order.ctypes.data, len(order), 0, 0)

    def base(self, enclave: int) -> int:
        """The number of an enclave's first page."""
        return int(self.en[enclave, c.BASE])

    # -- virtual EPC -----------------------------------------------------------

    def fault_vepc(self, group: int) -> int:
        """A guest's process in ``group`` touches a page it has not: 0 or -errno (EBUSY: settle, retry)."""
        return self._ask(c.FAULT_VEPC, group)

    def fill_vepc(self, group: int, pages: int) -> int:
        """A guest touches so many new pages; how many it got before a SIGBUS."""
        return self._ask(c.FILL_VEPC, group, pages)

    def free_vepc(self, group: int, pages: int) -> None:
        """Pages of a guest that are charged to this group are freed."""
        self.cg[group, c.REMOVED] += pages
        self._ask(c.UNCHARGE, group, pages)

    # -- what can be seen --------------------------------------------------------

    @property
    def free(self) -> int:
        """Free EPC pages."""
        return self.epc_pages - int(self.cg[0, c.USAGE])

    def groups(self) -> list[int]:
        """Groups not yet released, by number."""
        return [n for n in range(int(self.g[c.GROUPS])) if not self.cg[n, c.RELEASED]]

    def take_log(self) -> Ints:
        """The log since the last call: rows of (enclave, page), ``~enclave`` for a page written out."""
        count = int(self.g[c.LOGGED])
        if count > len(self.lg):
            raise InternalError(f"{count} entries for a log of {len(self.lg)}")
        self.g[c.LOGGED] = 0
        return self.lg[:count].copy()

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
        living: Ints = pages[self.fl[pages] & c.DEAD == 0]
        return living

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
        same = np.ascontiguousarray(pages, np.int32)
        how = until_failure | (len(k) > 0) << 1
        where = same.ctypes.data, len(same), k.ctypes.data, clock.ctypes.data
        return kernel.OPERATE(self._at, c.REPLAY, base, start, how, *where)

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
