"""The express lane leaves the books that Python would have left, and gives up what it cannot do.

The program is a thread of this process, its enclave's memory a mapping of this process: between a touch
and the engine is nothing but the page service.
"""

from __future__ import annotations

import ctypes
import os
import random
import signal
import threading
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pytest

from epcgroup import epc
from epcgroup.driver import Driver, EnclaveFile
from epcgroup.epc.pages import State
from epcgroup.epc.queue import wake_ksgxd
from epcgroup.epc.reclaim import reclaim
from epcgroup.live import paranoid
from epcgroup.live.devices import Device, DeviceTable, Kind
from epcgroup.live.paging import pagemap, uffd
from epcgroup.live.paging.batches import LaneAge, LaneMover
from epcgroup.live.paging.express import Express
from epcgroup.live.paging.frames import MemfdFrames
from epcgroup.live.paging.mm import AddressSpace, EnclaveVma
from epcgroup.live.paging.service import END_SIGNAL, PageService
from epcgroup.live.tracing.task import Task
from epcgroup.live.world import WAKE_SIGNAL, World
from epcgroup.sgx import leaves
from epcgroup.sgx.layouts import Secs

PAGE, SIZE, PAGES = 4096, 1 << 22, 300
RW, READ_ONLY = 0x203, 0x201
pytestmark = pytest.mark.needs("x86-64", "userfaultfd")

_libc = ctypes.CDLL(None, use_errno=True)  # gives the interpreter lock away: a touch waits for the service
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.memcpy.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


def contents_of(index: int) -> bytes:
    """Every fifth page is zero."""
    return bytes(PAGE) if index % 5 == 4 else (index + 1).to_bytes(8, "little") * 512


@dataclass
class Machine:
    """A machine with one enclave, whose pages are all evicted at first."""

    world: World
    mode: str
    file: EnclaveFile
    base: int
    space: AddressSpace
    service: PageService
    asked: list[int]  # addresses of faults that were put to the driver one by one

    def touch(self, indices: Sequence[int]) -> list[bytes]:
        """Read the first word of each page, in a thread that the machine knows."""
        found: list[bytes] = []

        def read() -> None:
            tid = threading.get_native_id()
            task = Task(tid, os.getpid(), self.space, self.service.caller)
            with self.world.lock:
                self.space.users.add(tid)
                self.world.tasks[tid] = task
            word = ctypes.create_string_buffer(8)
            for index in indices:
                _libc.memcpy(word, self.base + index * PAGE, 8)
                found.append(word.raw)

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        thread.join(60)
        assert not thread.is_alive()
        return found

    def books(self) -> dict[str, object]:
        """All that whoever holds the lock can know."""
        with self.world.lock:
            pager, enclave, group = self.world.driver.pager, self.file.enclave, self.service.caller.group
            return {
                "order": [page.index for page in group.reclaimable],
                "counters": group.counters.as_dict(),
                "of the enclave": enclave.counters.as_dict(),
                "usage": group.usage[self.world.machine.resource],
                "peak": group.peak[self.world.machine.resource],
                "resident": sorted(self.file.words.items()),
                "slots": pager.slots_in_use(enclave),
                "stored": pager.store.used,
                "faults": self.world.stalls.read(group)[0],
            }


@pytest.fixture(params=["python", "compiled"])
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    frames = MemfdFrames()
    driver = Driver(epc_pages=2 * PAGES, policy=epc.STANDARD, frames=frames, root_key=bytes(16))
    world = World(driver.machine, driver, frames, DeviceTable(), print)
    world.express = Express(world, request.param)
    caller = epc.Caller(driver.machine.groups.mkdir("/program"))
    file = driver.open()
    device = Device(Kind.ENCLAVE, file, os.getpid(), "test", "/program")
    device.fix_size(SIZE)
    reserved = _libc.mmap(None, 2 * SIZE, 0, 0x22, -1, 0)
    base = -(-reserved // SIZE) * SIZE
    assert _libc.mmap(base, SIZE, 3, 0x11, device.memfd, 0) == base
    enclave = driver.machine.create_enclave(caller, SIZE // PAGE)
    secs = Secs(size_bytes=SIZE, base=base, xfrm=7)
    file.bind(enclave, leaves.ecreate(secs.pack(), enclave.id, driver.platform))
    driver.adopt(file)
    frames.bind(enclave.id, device)
    space = AddressSpace(os.getpid())
    space.uffd = _libc.syscall(uffd.SYS_USERFAULTFD, os.O_CLOEXEC)
    uffd.enable(space.uffd)
    space.register(base, base + SIZE)
    space.map(EnclaveVma(base, base + SIZE, device, 1, 1))
    for index in range(PAGES):
        word = READ_ONLY if index % 7 == 3 else RW
        driver.machine.add_page(caller, enclave, index)
        leaves.eadd(file.state, index, word, contents_of(index))
        frames.put(enclave.id, index, contents_of(index), word)
        file.set_maximum(index, word & 7)
    driver.machine.initialise(enclave)
    while caller.group.below:
        reclaim(driver.machine, driver.machine.groups.root, 16, ignore_age=True)
    asked: list[int] = []
    fault = driver.fault
    driver.fault = lambda file, addr, *rest: asked.append(addr) or fault(file, addr, *rest)  # type: ignore[method-assign,func-returns-value]
    world.tracer_thread = threading.get_ident()
    before = {number: signal.signal(number, lambda *_: None) for number in (END_SIGNAL, WAKE_SIGNAL)}
    service = PageService(world, space, caller)
    service.start()
    yield Machine(world, request.param, file, base, space, service, asked)
    with world.lock:
        space.close()
    service.end()
    service.join(60)
    assert not service.is_alive()
    _libc.munmap(reserved, 2 * SIZE)
    world.release(device)
    world.devices.close()
    for number, handler in before.items():
        signal.signal(number, handler)


def test_loads_are_booked_in_the_order_in_which_they_happened(machine: Machine) -> None:
    order = random.Random(5).sample(range(PAGES), 200)
    assert machine.touch(order) == [contents_of(index)[:8] for index in order]
    books = machine.books()
    assert books["order"] == order
    assert books["usage"] == (200 + 2) * PAGE  # SECS, VA page
    assert books["slots"] == PAGES - 200
    assert (len(machine.asked) < 20) == (machine.mode == "compiled"), "pages of zeros are loaded there too"
    assert books["faults"] == 200
    assert books["counters"]["loaded"] == 201  # type: ignore[index]
    assert [index for index, _ in books["resident"]] == sorted(order)  # type: ignore[attr-defined]


def test_pages_that_were_loaded_are_evicted_and_loaded_again(machine: Machine) -> None:
    """Neither a lost page nor an old version: the table follows the store."""
    order = list(range(PAGES))
    for _ in range(3):
        random.Random(7).shuffle(order)
        assert machine.touch(order) == [contents_of(index)[:8] for index in order]
        with machine.world.lock:
            while machine.service.caller.group.below:
                reclaim(machine.world.machine, machine.world.machine.groups.root, 16, ignore_age=True)
    assert machine.books()["stored"] == machine.world.driver.pager.store.used


def test_a_page_that_does_not_verify_is_no_load(machine: Machine) -> None:
    """A read of it would be a SIGBUS: here nobody reads, the service is given the event."""
    entry = machine.world.driver.pager.store.pages(machine.file.enclave.id)[10]
    sealed = bytearray(entry.sealed)
    sealed[100] ^= 1
    entry.sealed = bytes(sealed)
    assert machine.touch([1, 2, 3, 5]) == [contents_of(index)[:8] for index in (1, 2, 3, 5)]
    thread = threading.Thread(target=machine.touch, args=([10],), daemon=True)
    thread.start()
    thread.join(0.5)
    assert thread.is_alive()
    assert [index for index, _ in machine.books()["resident"]] == [1, 2, 3, 5]  # type: ignore[attr-defined]
    entry.sealed = bytes([*sealed[:100], sealed[100] ^ 1, *sealed[101:]])
    uffd.wake(machine.space.uffd, machine.base + 10 * PAGE)
    thread.join(60)
    assert not thread.is_alive()


def test_a_limit_holds_however_many_loads_were_granted(machine: Machine) -> None:
    group, machine_ = machine.service.caller.group, machine.world.machine
    with machine.world.lock:
        machine_.set_max(group, 50 * PAGE)
    order = random.Random(9).sample(range(PAGES), PAGES)
    assert machine.touch(order) == [contents_of(index)[:8] for index in order]
    books = machine.books()
    assert books["peak"] == 302 * PAGE  # from before
    assert books["usage"] <= 50 * PAGE
    assert (
        os.fstat(machine.world.frames.inhabited()[machine.file.enclave.id].memfd).st_blocks * 512 <= 50 * PAGE
    )


@pytest.mark.usefixtures("one_processor")
@pytest.mark.parametrize("may_drop", [True, False], ids=["dropped", "set aside"])
def test_a_page_is_young_if_it_was_touched_since_the_last_look(
    machine: Machine, may_drop: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as one round looks at, neighbours and not; looked at in machine code and by Python."""
    monkeypatch.setattr(pagemap, "_may_drop", may_drop)
    order = [*range(10, 21), 40, 38, 36, 60]
    frames, group = machine.world.frames, machine.service.caller.group

    def young() -> list[int]:
        with machine.world.lock:
            pages = list(group.reclaimable)
            return [page.index for page, found in zip(pages, frames.young(pages), strict=True) if found]

    machine.touch(order)
    assert young() == order
    assert young() == []
    machine.touch([40, 11, 12, 60])
    frames.touch(machine.file.enclave.id, 36)
    assert young() == [11, 12, 40, 36, 60]
    assert young() == []
    assert machine.touch(order) == [contents_of(index)[:8] for index in order]
    assert isinstance(frames.age, LaneAge) == (machine.mode == "compiled")


@pytest.mark.parametrize("machine", ["compiled"], indirect=True)
def test_faults_are_answered_while_pages_are_sealed_but_for_those_pages(machine: Machine) -> None:
    """Who touches one of those waits, sees neither zeros nor an old version, and all others wait as ever."""
    world, engine, enclave = machine.world, machine.world.machine, machine.file.enclave
    sealed, go_on, had = (threading.Event() for _ in range(3))
    mover = world.driver.pager.mover
    assert isinstance(mover, LaneMover)
    code = mover._code

    def evict(job: int) -> int:
        told: int = code.evict.evict(job)
        sealed.set()
        assert go_on.wait(60)
        return told

    def work() -> None:
        while world.slice():
            pass

    def take_lock() -> None:
        with world.lock:
            had.set()

    def started(target: Callable[..., object], *given: object) -> threading.Thread:
        thread = threading.Thread(target=target, args=given, daemon=True)
        thread.start()
        return thread

    found: dict[int, bytes] = {}

    def read(index: int) -> None:
        word = ctypes.create_string_buffer(8)
        _libc.memcpy(word, machine.base + index * PAGE, 8)
        found[index] = word.raw

    first = [index for index in range(60) if index % 5 != 4]
    machine.touch(first)
    slow = types.SimpleNamespace(**{**vars(code.evict), "evict": evict})
    mover._code = types.SimpleNamespace(**{**vars(code), "evict": slow})  # type: ignore[assignment]
    with world.lock:
        wake_ksgxd(engine, engine.free + 8)
    worker = started(work)
    assert sealed.wait(60)
    held = [i for i in first if (page := enclave.pages[i]) and page.state is State.RECLAIM_IN_PROGRESS]
    assert len(held) >= 8
    for index in (200, 201, 204):
        started(read, index).join(60)
        assert found[index] == contents_of(index)[:8]
    outsider, waiting = started(take_lock), started(read, held[0])
    waiting.join(0.2)
    assert waiting.is_alive()
    assert not had.is_set()
    go_on.set()
    for thread in (worker, outsider, waiting):
        thread.join(60)
        assert not thread.is_alive()
    assert found[held[0]] == contents_of(held[0])[:8]
    with world.lock:
        paranoid.check(world)
        resident = {i for i, page in enclave.pages.items() if page is not None}
    assert {200, 201, 204, held[0]} <= resident
    assert not resident & set(held[1:])
    assert machine.touch(held) == [contents_of(index)[:8] for index in held]


@pytest.mark.parametrize("machine", ["compiled"], indirect=True)
def test_a_fault_without_room_beside_a_round_waits_for_it_and_is_no_sigbus(machine: Machine) -> None:
    """The round holds all that could be reclaimed: that must not look as if there were nothing."""
    world, group = machine.world, machine.service.caller.group
    with world.lock:
        world.machine.set_max(group, 12 * PAGE)
    order = random.Random(11).sample(range(PAGES), PAGES)
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            world.slice()

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    assert machine.touch(order) == [contents_of(index)[:8] for index in order]
    stop.set()
    worker.join(60)
    assert not world.kicks


@pytest.mark.parametrize("machine", ["compiled"], indirect=True)
def test_lanes_see_a_page_when_it_has_been_written_out_and_not_before(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may open when the pages of another enclave in the same round are sealed."""
    pager, number = machine.world.driver.pager, machine.file.enclave.id
    assert isinstance(pager.mover, LaneMover)
    rows = pager.store.pages(number)
    order = [index for index in range(30) if index % 5 != 4]
    machine.touch(order)
    write_out = pager.write_out
    seen: list[tuple[int, bool, bool]] = []

    def shown(index: int) -> bool:
        group, at = rows._row(index)  # as lanes read it
        return group is not None and group[at] > 0

    def watched(pages: Sequence[epc.EpcPage]) -> None:
        before = [shown(page.index) for page in pages]
        write_out(pages)
        seen.extend((page.index, was, shown(page.index)) for page, was in zip(pages, before, strict=True))

    monkeypatch.setattr(pager, "write_out", watched)
    with machine.world.lock:
        reclaim(machine.world.machine, machine.world.machine.groups.root, 16, ignore_age=True)
    assert seen == [(index, False, True) for index in order[:16]]
