"""Replaying operations on a machine, and describing it as a checkpoint does.

One thread, one EPC, one address space per enclave; background work runs when an
operation ends, and where an access waits for it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from epcgroup.conform.ranges import parse_pages, ranges, run_lengths, tagged_ranges
from epcgroup.epc import Caller, Enclave, EpcPage, Group, Kind, Machine, Policy, Vepc
from epcgroup.errors import BadInput, Busy, Refused
from epcgroup.misc import EventRule, files
from epcgroup.testing import TablePager, touch, touch_vepc
from epcgroup.testing.table import MAX_FAULTS
from epcgroup.units import U64_MAX

OUTSIDE = -3


@dataclass(eq=False)
class _Process:
    group: Group
    enclaves: set[int] = field(default_factory=set)
    guests: set[int] = field(default_factory=set)

    @property
    def caller(self) -> Caller:
        return Caller(self.group)


class EpcReplay:
    """One machine with the processes, enclaves and guests that a trace names."""

    def __init__(self, policy: Policy, epc_pages: int, sgx2: bool) -> None:
        self._log: list[tuple[str, int, int]] = []
        self._pager = TablePager(self._log)
        self.machine = Machine(epc_pages=epc_pages, policy=policy, pager=self._pager)
        self._sgx2 = sgx2
        self._processes: dict[int, _Process] = {}
        self._enclaves: dict[int, tuple[Enclave, _Process]] = {}
        self._guests: dict[int, tuple[Vepc, _Process]] = {}
        self._names: dict[int, int] = {}  # engine's enclave id -> the trace's
        self._evicted = 0
        self._loaded = 0

    def run(self, op: str) -> dict[str, Any]:
        """Perform one operation; what was seen, with the keys of a recorded step."""
        name, *args = op.split()
        handler: Callable[..., dict[str, Any]] | None = getattr(self, f"_op_{name}", None)
        if handler is None:
            raise BadInput(f"unknown operation {name!r}")
        try:
            seen = handler(*args)
        except Refused as refusal:
            seen = {"r": _code(refusal)}
        except (TypeError, ValueError) as error:
            raise BadInput(f"operation {op!r}: {error}") from None
        self.machine.settle()
        seen["free"] = self.machine.free
        if self._log:
            seen["log"] = self._take_log()
        return {"op": op, **seen}

    # -- groups and processes ------------------------------------------------

    def _op_mkcg(self, path: str) -> dict[str, Any]:
        self.machine.groups.mkdir(path)
        return {"r": 0}

    def _op_rmcg(self, path: str) -> dict[str, Any]:
        self.machine.groups.rmdir(path)
        return {"r": 0}

    def _op_max(self, path: str, limit: str) -> dict[str, Any]:
        group = self.machine.groups.lookup(path)
        files.write(self.machine.groups, group, "max", f"sgx_epc {limit}".encode())
        return {"r": 0}

    def _op_proc(self, number: str, path: str) -> dict[str, Any]:
        if int(number) in self._processes:
            return {"r": -errno.EEXIST}
        group = self.machine.groups.lookup(path)
        self.machine.groups.attach(group)
        self._processes[int(number)] = _Process(group)
        return {"r": 0}

    def _op_move(self, number: str, path: str) -> dict[str, Any]:
        process = self._process(number)
        group = self.machine.groups.lookup(path)
        self.machine.groups.attach(group)
        self.machine.groups.detach(process.group)
        process.group = group
        return {"r": 0}

    def _op_exit(self, number: str) -> dict[str, Any]:
        process = self._process(number)
        for enclave in sorted(process.enclaves):
            self._close(enclave)
        for guest in sorted(process.guests):
            self._close_guest(guest)
        del self._processes[int(number)]
        self.machine.groups.detach(process.group)
        return {"r": 0}

    # -- enclaves ------------------------------------------------------------

    def _op_encl(self, number: str, process: str, size: str) -> dict[str, Any]:
        owner = self._process(process)
        if int(number) in self._enclaves:
            return {"r": -errno.EEXIST}
        enclave = self.machine.create_enclave(owner.caller, int(size))
        self._enclaves[int(number)] = (enclave, owner)
        self._names[enclave.id] = int(number)
        owner.enclaves.add(int(number))
        return {"r": 0}

    def _op_add(self, number: str, offset: str, count: str) -> dict[str, Any]:
        return self._add(number, range(int(offset), int(offset) + int(count)), self.machine.settle)

    def _op_addb(self, number: str, offset: str, count: str) -> dict[str, Any]:
        pages = range(int(offset), int(offset) + int(count))
        entry = self._enclaves.get(int(number))
        if entry is not None and pages and not 0 <= pages[0] <= pages[-1] < entry[0].size:
            return {"r": -errno.EINVAL, "n": 0}  # one call: its range is checked first
        return self._add(number, pages, lambda: None)

    def _add(self, number: str, pages: Iterable[int], after_each: Callable[[], None]) -> dict[str, Any]:
        done = 0
        try:
            enclave, owner = self._enclave(number)
            for index in pages:
                self.machine.add_page(owner.caller, enclave, index)
                done += 1
                after_each()
        except Refused as refusal:
            return {"r": _code(refusal), "n": done}
        return {"r": 0, "n": done}

    def _op_remove(self, number: str, offset: str, count: str) -> dict[str, Any]:
        """SGX2's removal of pages that the enclave has trimmed, as the ioctl does it."""
        enclave, owner = self._enclave(number)
        first, pages = int(offset), int(count)
        if not enclave.initialised or not 0 <= first <= first + pages <= enclave.size:
            return {"r": -errno.EINVAL, "n": 0}
        if enclave.disabled:
            return {"r": -errno.ENOMEM, "n": 0}
        for done in range(pages):
            result = self._remove(owner.caller, enclave, first + done)
            self.machine.settle()
            if result:
                return {"r": result, "n": done}
        return {"r": 0, "n": pages}

    def _remove(self, caller: Caller, enclave: Enclave, index: int) -> int:
        for _ in range(MAX_FAULTS):
            self.machine.edmm_reclaim(caller)
            try:
                self.machine.fault(caller, enclave, index)
            except Busy:
                self.machine.settle()
            except Refused:
                return -errno.EFAULT
            else:
                self.machine.remove_page(enclave, index)
                return 0
        return -errno.EAGAIN

    def _op_init(self, number: str) -> dict[str, Any]:
        self.machine.initialise(self._enclave(number)[0])
        return {"r": 0}

    def _op_touch(self, number: str, *words: str) -> dict[str, Any]:
        entry = self._enclaves.get(int(number))

        def access(index: int) -> int:
            if entry is None or not 0 <= index < entry[0].size:
                return OUTSIDE
            return touch(self.machine, self._pager, entry[1].caller, entry[0], index, self._sgx2)

        return self._touch_all(words, access)

    def _touch_all(self, words: Iterable[str], access: Callable[[int], int]) -> dict[str, Any]:
        calls: list[int] = []
        for index in parse_pages(list(words)):
            calls.append(access(index))
            self.machine.settle()
            if calls[-1] < 0:
                break
        return {"r": min([0, *calls[-1:]]), "k": run_lengths(calls)}

    def _op_close(self, number: str) -> dict[str, Any]:
        self._enclave(number)
        self._close(int(number))
        return {"r": 0}

    def _close(self, number: int) -> None:
        enclave, owner = self._enclaves.pop(number)
        owner.enclaves.discard(number)
        self.machine.release(enclave)
        self._pager.forget(enclave)

    # -- guests --------------------------------------------------------------

    def _op_vepc(self, number: str, process: str, size: str) -> dict[str, Any]:
        owner = self._process(process)
        if int(number) in self._guests:
            return {"r": -errno.EEXIST}
        self._guests[int(number)] = (self.machine.create_vepc(int(size)), owner)
        owner.guests.add(int(number))
        return {"r": 0}

    def _op_vtouch(self, number: str, *words: str) -> dict[str, Any]:
        entry = self._guests.get(int(number))

        def access(index: int) -> int:
            if entry is None or not 0 <= index < entry[0].size:
                return OUTSIDE
            return touch_vepc(self.machine, entry[1].caller, entry[0], index)

        return self._touch_all(words, access)

    def _op_vclose(self, number: str) -> dict[str, Any]:
        if int(number) not in self._guests:
            return {"r": -errno.EBADF}
        self._close_guest(int(number))
        return {"r": 0}

    def _close_guest(self, number: int) -> None:
        guest, owner = self._guests.pop(number)
        owner.guests.discard(number)
        self.machine.release_vepc(guest)

    # -- what a checkpoint shows ---------------------------------------------

    def check(self) -> dict[str, Any]:
        """The machine as a checkpoint describes it."""
        tree = self.machine.groups
        groups = sorted(tree.walk(tree.root), key=lambda group: group.id)
        return {
            "free": self.machine.free,
            "cgs": [self._group(group) for group in groups],
            "encl": [self._describe(number, self._enclaves[number][0]) for number in sorted(self._enclaves)],
            "evicted_total": self._evicted,
            "loaded_total": self._loaded,
            "works_run": self.machine.works_run,
            "ksgxd_runs": self.machine.ksgxd_runs,
        }

    def _group(self, group: Group) -> dict[str, Any]:
        machine, number = self.machine, self.machine.resource
        seen: dict[str, Any] = {
            "id": group.id,
            "path": group.path,
            "online": group.online,
            "current": group.usage[number],
            "max": "max" if group.max[number] == U64_MAX else group.max[number],
            "events": group.events[number],
            "evicted": group.counters.evicted,
            "loaded": group.counters.loaded,
            "lru": tagged_ranges(self._tag(page) for page in group.reclaimable),
        }
        if machine.policy.misc.event_rule is EventRule.LOCAL:
            seen |= {
                "events_local": group.events_local[number],
                "peak": group.peak[number],
                "next": group.cursor.id,
            }
        else:
            seen["unrec"] = " ".join(
                f"{self._names[page.enclave.id]}:{'V' if page.kind is Kind.VA else 'S'}"
                for page in group.unreclaimable
            )
        return seen

    def _tag(self, page: EpcPage) -> tuple[str, int, str]:
        young = "y" if self._pager.is_young(page) else ""
        return f"{self._names[page.enclave.id]}:", page.index, young

    def _describe(self, number: int, enclave: Enclave) -> dict[str, Any]:
        seen: dict[str, Any] = {
            "id": number,
            "secs": enclave.secs is not None,
            "va": len(enclave.va_pages),
            "page_cnt": enclave.page_cnt,
            "child": enclave.child_count,
            "res": ranges(index for index in sorted(enclave.pages) if enclave.pages[index] is not None),
        }
        if self.machine.policy.track_unreclaimable:
            seen["oom"] = enclave.disabled
        return seen

    def _take_log(self) -> str:
        for sign, _, _ in self._log:
            if sign == "-":
                self._evicted += 1
            else:
                self._loaded += 1
        text = tagged_ranges((f"{sign}{self._names[owner]}:", index, "") for sign, owner, index in self._log)
        self._log.clear()
        return text

    # -- who is meant --------------------------------------------------------

    def _process(self, number: str) -> _Process:
        try:
            return self._processes[int(number)]
        except KeyError:
            raise Refused(f"no process {number}", errno.ESRCH) from None

    def _enclave(self, number: str) -> tuple[Enclave, _Process]:
        try:
            return self._enclaves[int(number)]
        except KeyError:
            raise Refused(f"no enclave {number}", errno.EBADF) from None


def _code(refusal: Refused) -> int:
    return -(refusal.errno or errno.EINVAL)
