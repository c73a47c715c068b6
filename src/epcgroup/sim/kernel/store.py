"""The arrays of the compiled engine: how they begin, how they grow, who gets which row.

Growing an array makes a new one, so nobody keeps the tuple over an operation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from epcgroup.epc import policy as policies
from epcgroup.epc.policy import Disable, Dying, Policy, Target, Walk
from epcgroup.errors import BadInput
from epcgroup.misc.rules import EventRule
from epcgroup.sim.kernel import columns as c
from epcgroup.sim.kernel import entry as kernel

Ints = npt.NDArray[np.int64]

NO_LIMIT = 1 << 52  # pages; misc.max is 2^64-1 bytes
_LINE = 128  # two cache lines: they are fetched together
_PAGES_PER_OWNER = 1 << c.BLOCK
_GOALS: dict[Callable[[int, int, int], int], int] = {
    policies.goal_v5: 0,
    policies.goal_v17: 1,
    policies.goal_standard: 2,
}
_DISABLE = {Disable.NEVER: 0, Disable.CASCADE: 1, Disable.ONE_AND_WAIT: 2}


# Every knob that is compiled, or that no operation here can show.
_KNOBS = frozenset({
    "name", "misc", "target", "walk", "dying", "batch_min", "batch_max", "global_batch", "batch_by_need",
    "direct_batch", "ignore_age_after", "ignore_age_globally", "give_up", "on_max_written", "goal", "disable",
    "edmm_reclaims_group", "busy_before_signal", "all_at_once", "low", "high", "scale_watermarks",
})  # fmt: skip
_MISC_KNOBS = frozenset({"name", "resources", "root_files", "group_files", "event_rule", "counts_subsystems"})

Item = TypeVar("Item", np.int64, np.int32, np.uint64, np.uint8, np.float64)


def own_lines(shape: tuple[int, ...], kind: type[Item]) -> npt.NDArray[Item]:
    """Zeros in cache lines of their own.

    A chunk is one line then, not two halves, and no line is shared with another machine's
    tables, which a second processor may be writing.
    """
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    room = np.zeros(size + 2 * _LINE, np.uint8)
    start = -room.ctypes.data % _LINE
    made: npt.NDArray[Item] = room[start : start + size].view(kind).reshape(shape)
    return made


def _longer(table: npt.NDArray[Item], rows: int) -> npt.NDArray[Item]:
    """A copy with more rows of zeros."""
    made = own_lines((len(table) + rows, *table.shape[1:]), table.dtype.type)
    made[: len(table)] = table
    return made


def _refuse_unknown(policy: Policy) -> None:
    """Raise BadInput for a policy with a behaviour that is not compiled: results would be wrong, silently."""
    for record, known in ((policy, _KNOBS), (policy.misc, _MISC_KNOBS)):
        for knob in fields(record):
            value = getattr(record, knob.name)
            # A knob that is off (none, false, zero) changes nothing.
            if knob.name not in known and value:
                raise BadInput(
                    f"policy {policy.name!r}: the compiled engine does not know {knob.name} = {value!r}; "
                    "the reference engine does (epcgroup run, epcgroup conform)"
                )
    if policy.goal not in _GOALS:
        goal = getattr(policy.goal, "__name__", policy.goal)
        raise BadInput(f"policy {policy.name!r}: the compiled engine does not know goal = {goal}")


class Store:
    """The state of one machine, as arrays."""

    def __init__(self, epc_pages: int, policy: Policy, *, sgx2: bool = False, log_room: int = 0) -> None:
        if epc_pages < 1:
            raise BadInput(f"an EPC of {epc_pages} pages; it needs at least 1 (6 to run anything)")
        _refuse_unknown(policy)
        self.policy = policy
        self.epc_pages = epc_pages
        self.cg = own_lines((0, c.GROUP_COLUMNS), np.int64)
        self.en = own_lines((16, c.ENCLAVE_COLUMNS), np.int64)
        self.fl = own_lines((1024,), np.uint8)
        self.ow = own_lines((1024 >> c.BLOCK,), np.int64)
        self.ow[:] = -1
        self.nd = own_lines((64, c.NODE_COLUMNS), np.int64)
        self.g = own_lines((c.STATE,), np.int64)
        self._at = self.g.ctypes.data
        self.lg = own_lines((log_room, 2), np.int64)
        self.scratch = own_lines((5, c.BATCH), np.int64)
        self._stale_room = max(epc_pages // 4, 4096)
        self.ch = own_lines((0, 16), np.int32)
        self.nx = own_lines((0,), np.int32)
        self.tb = own_lines((3, 1), np.int64)
        self._complete = False
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
        self.cg = _longer(self.cg, count - old)
        rings = own_lines((3, count + 1), np.int64)
        if old:
            for ring, at, used in ((c.T_WORKS, c.WORKS_AT, c.WORKS), (c.T_DYING, c.DYING_AT, c.DYING)):
                order = (self.g[at] + np.arange(self.g[used])) % self.g[c.RINGS]
                rings[ring, : self.g[used]] = self.tb[ring, order]
                self.g[at] = 0
            rings[c.T_ORDER, :old] = self.tb[c.T_ORDER, :old]
        self.tb = rings
        self.g[c.RINGS] = count + 1
        words = (count >> 6) + 1
        self.bm = own_lines((2, words), np.uint64)
        self.g[c.DIRTY] = 1
        chunks = (self.epc_pages + self._stale_room) // 16 + 3 * count + 64
        more = chunks - len(self.ch)
        self.ch = _longer(self.ch, more)
        self.nx = _longer(self.nx, more)
        self.order_scratch = own_lines((count,), np.int64)
        self._complete = True
        self._gather()

    def _reserve_nodes(self, more: int) -> None:
        need = int(self.g[c.NODES]) + more + 2
        if need > len(self.nd):
            extra = max(need, 2 * len(self.nd)) - len(self.nd)
            self.nd = _longer(self.nd, extra)
            self._gather()

    def _new_enclave(self, group: int, size: int) -> int:
        if size < 1:
            raise BadInput(f"an enclave of {size} pages; it needs at least 1")
        number = self.enclaves
        self.enclaves += 1
        if number == len(self.en):
            self.en = _longer(self.en, number)
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
            owners = len(self.ow)
            self.fl = _longer(self.fl, size - len(self.fl))
            self.ow = _longer(self.ow, (size >> c.BLOCK) - owners)
            self.ow[owners:] = -1
            self._gather()
        return base

    def _forget(self, number: int) -> None:
        # An enclave that never came to be; no list names its pages.
        self.en[number, c.FLAGS] = c.RELEASED_ENCLAVE
        base = int(self.en[number, c.BASE])
        self.fl[base : base + int(self.en[number, c.SIZE])] = c.DEAD
        self._vacant.setdefault(self._blocks(number), []).append(base)

    def _purge(self) -> None:
        self._ask(c.PURGE)
        for blocks, base in self._dead:
            self._vacant.setdefault(blocks, []).append(base)
        self._dead.clear()

    def _ask(self, what: int, a: int = 0, b: int = 0, more: int = 0) -> int:
        return kernel.OPERATE(self._at, what, a, b, more, 0, 0, 0, 0)

    def _gather(self) -> None:
        # Tell the kernel where everything is.
        if not self._complete:
            return
        for at, table in (
            (c.AT_GROUPS, self.cg),
            (c.AT_ENCLAVES, self.en),
            (c.AT_FLAGS, self.fl),
            (c.AT_OWNERS, self.ow),
            (c.AT_CHUNKS, self.ch),
            (c.AT_LINKS, self.nx),
            (c.AT_NODES, self.nd),
            (c.AT_ORDER, self.tb),
            (c.AT_BITS, self.bm),
            (c.AT_LOG, self.lg),
            (c.AT_BATCH, self.scratch),
            (c.AT_SCRATCH, self.order_scratch),
        ):
            self.g[at] = table.ctypes.data
        for at, length in (
            (c.LEN_GROUPS, len(self.cg)),
            (c.LEN_ENCLAVES, len(self.en)),
            (c.LEN_FLAGS, len(self.fl)),
            (c.LEN_OWNERS, len(self.ow)),
            (c.LEN_CHUNKS, len(self.ch)),
            (c.LEN_NODES, len(self.nd)),
            (c.LEN_BITS, self.bm.shape[1]),
            (c.LEN_LOG, len(self.lg)),
        ):
            self.g[at] = length

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
            (c.K_EDMM, policy.edmm_reclaims_group),
            (c.K_DISABLE, _DISABLE[policy.disable]),
            (c.K_PAIR, policy.all_at_once),
            (c.K_WITH_ROOT, policy.misc.event_rule is EventRule.WITH_ROOT),
            (c.K_TRACK, policy.track_unreclaimable),
            (c.K_GLOBAL_IGNORE, policy.ignore_age_globally),
        ):
            self.g[column] = value
