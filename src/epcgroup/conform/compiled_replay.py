"""Replaying operations on the compiled engine: the same face as :class:`.epc_replay.EpcReplay`.

Results, the log of evictions and loads in order, and checkpoints of the whole
state are what the reference engine's replay shows, so either judges the other.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Container
from typing import Any

import numpy as np

from epcgroup.conform.ranges import parse_pages, ranges, run_lengths, tagged_ranges
from epcgroup.epc import Policy
from epcgroup.errors import BadInput, OutOfRange, Refused
from epcgroup.misc import EventRule, files
from epcgroup.sim.kernel import columns as c
from epcgroup.sim.kernel.machine import CompiledMachine
from epcgroup.units import PAGE_SIZE, U64_MAX

_LOG_ROOM = 1 << 20
_CALLS = 8


class CompiledReplay:
    """One machine, and the names that a trace gives to processes, enclaves and guests."""

    def __init__(self, policy: Policy, epc_pages: int, sgx2: bool) -> None:
        self.machine = CompiledMachine(epc_pages, policy, sgx2=sgx2, log_room=_LOG_ROOM)
        self.policy = policy
        self._process: dict[int, int] = {}  # process -> group
        self._enclave: dict[int, int] = {}  # name -> row
        self._name: dict[int, int] = {}
        self._owner: dict[int, int] = {}
        self._guest: dict[int, tuple[int, int, dict[int, int]]] = {}  # name -> process, size, page -> group

    def run(self, op: str) -> dict[str, Any]:
        """Perform one operation; what was seen, with the keys of a recorded step."""
        name, *arguments = op.split()
        handler: Callable[..., None] | None = getattr(self, f"_op_{name}", None)
        if handler is None:
            raise BadInput(f"unknown operation {name!r}")
        seen: dict[str, Any] = {}
        try:
            handler(seen, *arguments)
        except Refused as refusal:
            seen["r"] = -(refusal.errno or errno.EINVAL)
        except (TypeError, ValueError, KeyError) as error:
            raise BadInput(f"operation {op!r}: {error}") from None
        self.machine.settle()
        seen.setdefault("r", 0)
        seen["free"] = self.machine.free
        log = self._log()
        if log:
            seen["log"] = log
        return {"op": op, **seen}

    def check(self) -> dict[str, Any]:
        """The whole state."""
        m = self.machine
        return {
            "free": m.free,
            "cgs": [self._group_state(n) for n in m.groups()],
            "encl": [self._enclave_state(name) for name in sorted(self._enclave)],
            "evicted_total": int(m.g[c.EVICTED_TOTAL]),
            "loaded_total": int(m.g[c.LOADED_TOTAL]),
            "works_run": int(m.g[c.WORKS_RUN]),
            "ksgxd_runs": int(m.g[c.KSGXD_RUNS]),
        }

    # -- operations ------------------------------------------------------------

    def _op_mkcg(self, _seen: dict[str, Any], path: str) -> None:
        self.machine.mkdir(path)

    def _op_rmcg(self, _seen: dict[str, Any], path: str) -> None:
        self.machine.rmdir(path)

    def _op_max(self, _seen: dict[str, Any], path: str, limit: str) -> None:
        group = self.machine.group(path)
        if not group:
            raise OutOfRange(f"no file misc.max in {path}", errno.ENOENT)
        amount = U64_MAX if limit == "max" else files.parse_u64(limit.encode())
        self.machine.set_max(group, None if amount == U64_MAX else amount)

    def _op_proc(self, _seen: dict[str, Any], name: str, path: str) -> None:
        _new(int(name), self._process)
        group = self.machine.group(path)
        self._process[int(name)] = group
        self.machine.attach(group)

    def _op_move(self, _seen: dict[str, Any], name: str, path: str) -> None:
        process, before = int(name), self._group_of(name)
        group = self.machine.group(path)
        self._process[process] = group
        self.machine.attach(group)
        self.machine.detach(before)
        self.machine.move([row for e, row in self._enclave.items() if self._owner[e] == process], group)

    def _op_encl(self, _seen: dict[str, Any], name: str, process: str, size: str) -> None:
        group = self._group_of(process)
        _new(int(name), self._enclave)
        row = self.machine.create_enclave(group, int(size))
        self._enclave[int(name)] = row
        self._name[row] = int(name)
        self._owner[int(name)] = int(process)

    def _op_add(
        self, seen: dict[str, Any], name: str, first: str, pages: str, settle_each: bool = True
    ) -> None:
        row = self._enclave.get(int(name))
        seen["n"] = 0
        if row is None:
            seen["r"] = -9
            return
        seen["n"], seen["r"] = self.machine.add_pages(row, int(first), int(pages), settle_each=settle_each)

    def _op_addb(self, seen: dict[str, Any], name: str, first: str, pages: str) -> None:
        self._op_add(seen, name, first, pages, settle_each=False)

    def _op_remove(self, seen: dict[str, Any], name: str, first: str, pages: str) -> None:
        row = self._enclave.get(int(name))
        if row is None:
            seen["r"] = -9
            return
        seen["n"] = 0
        seen["n"], seen["r"] = self.machine.remove_pages(row, int(first), int(pages))

    def _op_init(self, seen: dict[str, Any], name: str) -> None:
        row = self._enclave.get(int(name))
        if row is None:
            seen["r"] = -9
            return
        self.machine.initialise(row)

    def _op_touch(self, seen: dict[str, Any], name: str, *pages: str) -> None:
        wanted = np.array(parse_pages(list(pages)), np.int64)
        row = self._enclave.get(int(name))
        size = -1 if row is None else int(self.machine.en[row, c.SIZE])
        inside = int(np.argmax(wanted >= size)) if (wanted >= size).any() else len(wanted)
        results: list[int] = []
        if row is not None and inside:
            k = np.zeros(inside, np.int8)
            stop = self.machine.access(row, wanted[:inside], k=k, until_failure=True)
            results = k[:stop].tolist()
        if inside < len(wanted) and len(results) == inside and (not results or results[-1] >= 0):
            results.append(-3)
        self._record(seen, results)

    def _op_close(self, seen: dict[str, Any], name: str) -> None:
        row = self._enclave.pop(int(name), None)
        if row is None:
            seen["r"] = -9
            return
        self.machine.release(row)

    def _op_exit(self, seen: dict[str, Any], name: str) -> None:
        self._group_of(name)
        process = int(name)
        for enclave in sorted(self._enclave):
            if self._owner[enclave] == process:
                self._op_close(seen, str(enclave))
        for guest in sorted(self._guest):
            if self._guest[guest][0] == process:
                self._op_vclose(seen, str(guest))
        self.machine.detach(self._process.pop(process))

    def _op_vepc(self, _seen: dict[str, Any], name: str, process: str, pages: str) -> None:
        self._group_of(process)
        _new(int(name), self._guest)
        self._guest[int(name)] = int(process), int(pages), {}

    def _op_vtouch(self, seen: dict[str, Any], name: str, *pages: str) -> None:
        process, size, held = self._guest.get(int(name), (0, 0, {}))
        results: list[int] = []
        for page in parse_pages(list(pages)):
            k = self._touch_guest(process, held, page) if page < size else -3
            self.machine.settle()
            results.append(k)
            if k < 0:
                break
        self._record(seen, results)

    def _touch_guest(self, process: int, held: dict[int, int], page: int) -> int:
        if page in held:
            return 0
        group = self._process[process]
        for call in range(_CALLS):
            result = self.machine.fault_vepc(group)
            if result == 0:
                held[page] = group
                return call + 1
            if result != -16:
                return -1
            self.machine.settle()
        return -2

    def _op_vclose(self, seen: dict[str, Any], name: str) -> None:
        guest = self._guest.pop(int(name), None)
        if guest is None:
            seen["r"] = -9
            return
        for page in sorted(guest[2]):
            self.machine.free_vepc(guest[2][page], 1)

    def _group_of(self, process: str) -> int:
        try:
            return self._process[int(process)]
        except KeyError:
            raise Refused(f"no process {process}", errno.ESRCH) from None

    # -- how it is written -------------------------------------------------------

    def _record(self, seen: dict[str, Any], results: list[int]) -> None:
        seen["k"] = run_lengths(results)
        if results and results[-1] < 0:
            seen["r"] = results[-1]

    def _log(self) -> str:
        entries: list[tuple[str, int, str]] = []
        for enclave, page in self.machine.take_log():
            sign, row = ("-", ~enclave) if enclave < 0 else ("+", enclave)
            entries.append((f"{sign}{self._name[int(row)]}:", int(page), ""))
        return tagged_ranges(entries)

    def _group_state(self, number: int) -> dict[str, Any]:
        m, row = self.machine, self.machine.cg[number]
        limit = m.max_bytes[number]
        state: dict[str, Any] = {
            "id": number,
            "path": m.paths[number],
            "online": bool(row[c.ONLINE]),
            "current": int(row[c.USAGE]) * PAGE_SIZE,
            "max": "max" if limit is None else limit,
            "events": int(row[c.EVENTS]),
            "evicted": int(row[c.EVICTED]),
            "loaded": int(row[c.LOADED]),
            "lru": self._list(number),
        }
        if self.policy.misc.event_rule is EventRule.WITH_ROOT:
            state["unrec"] = " ".join(
                f"{self._name[e]}:{'S' if secs else 'V'}" for e, secs in m.unreclaimable(number)
            )
        else:
            state["events_local"] = int(row[c.EVENTS_LOCAL])
            state["peak"] = int(row[c.PEAK]) * PAGE_SIZE
            state["next"] = int(row[c.CURSOR])
        return state

    def _list(self, number: int) -> str:
        m, parts = self.machine, list[tuple[str, int, str]]()
        for page in m.reclaimable(number).tolist():
            row = int(m.ow[page >> c.BLOCK])
            young = "y" if m.fl[page] & c.ACCESSED else ""
            parts.append((f"{self._name[row]}:", page - m.base(row), young))
        return tagged_ranges(parts)

    def _enclave_state(self, name: int) -> dict[str, Any]:
        m, number = self.machine, self._enclave[name]
        row = m.en[number]
        resident = np.flatnonzero(m.flags(number) & c.RESIDENT).tolist()
        state = {
            "id": name,
            "secs": bool(row[c.SECS] >= 0),
            "va": int(row[c.VA_COUNT]),
            "page_cnt": int(row[c.PAGE_CNT]),
            "child": int(row[c.CHILDREN]),
            "res": ranges(resident),
        }
        if self.policy.track_unreclaimable:
            state["oom"] = bool(row[c.FLAGS] & c.DISABLED)
        return state


def _new(name: int, known: Container[int]) -> None:
    if name in known:
        raise Refused(f"{name} exists", errno.EEXIST)
