"""A machine with a neighbour on it, for one hostile program after another.

To build a machine and to take it down cost three times what an input does with it. So a machine is kept for
RUNS inputs: the hostile program of the one ends, all it had goes back, and the next begins. That is also
the harder test, as what one leaves behind meets the next. The inputs since the machine was made are kept, to
be played again in their order if the last one alone shows nothing.

The neighbour owns an enclave of known contents in a group too small for it, so that some of its pages are
always evicted. After each input what is resident of it is looked at; every ALL inputs it reads all.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NoReturn

from epcgroup import epc
from epcgroup.driver import Driver, EnclaveFile, Ioctl, numbers
from epcgroup.epc import invariants
from epcgroup.sgx.layouts import SecInfo, Secs, SigStruct
from epcgroup.sgx.platform import Platform
from epcgroup.sgx.sign import sign
from epcgroup.testing.frames import DictFrames
from epcgroup.testing.user_memory import FakeMemory
from epcgroup.units import PAGE_SIZE

from .weakkey import key
from .words import BASE, EPC_PAGES, SIZE

REG_RW, REG_RX, TCS = 0x203, 0x205, 0x100
RUNS, ALL = 256, 16
_PAGES, _LIMIT = 12, 11  # of the neighbour: its pages, and how many it may have with SECS and VA page


class Touched(DictFrames):
    """Frames that notice what the processor touches, as live's do."""

    def touch(self, enclave: int, index: int) -> None:
        self.accessed.add((enclave, index))


def secs(size: int = SIZE, base: int = BASE, attributes: int = 6) -> Secs:
    """An enclave's, as CREATE takes it."""
    return Secs(size_bytes=size, base=base, xfrm=3, attributes=attributes)


def contents(number: int) -> bytes:
    """What page ``number`` of the neighbour holds."""
    return number.to_bytes(2, "little") * (PAGE_SIZE // 2)


def pointer(mem: FakeMemory, data: bytes) -> int:
    """Address of an argument that points to ``data``."""
    return mem.put(mem.put(data).to_bytes(8, "little"))


def certificate(file: EnclaveFile) -> bytes:
    """One that fits what was measured so far; the SECS must be resident."""
    own = file.state.secs
    return _signed(file.state.measurement.digest(), own.attributes, own.xfrm, own.miscselect)


@lru_cache(1 << 12)
def _signed(measurement: bytes, attributes: int, xfrm: int, miscselect: int) -> bytes:
    unsigned = SigStruct(mrenclave=measurement, attributes=attributes, xfrm=xfrm, miscselect=miscselect)
    return sign(unsigned, key()).pack()


class Stage:
    """One machine, its neighbour, and what must hold on it between two hostile programs."""

    def __init__(self, policy: str) -> None:
        self.log: list[str] = []
        self.frames = Touched()
        self.driver = Driver(
            epc_pages=EPC_PAGES, policy=epc.by_name(policy), frames=self.frames, root_key=b"r" * 16,
            paging_key=b"p" * 16, platform=Platform(sgx2=True), log=self.log.append,
        )  # fmt: skip
        self.machine = self.driver.machine
        groups = self.machine.groups
        self.hostile, self.inner = groups.mkdir("/hostile"), groups.mkdir("/hostile/inner")
        self._owner = epc.Caller(groups.mkdir("/friendly"))
        self.neighbour = self._build_neighbour()
        self.machine.set_max(self._owner.group, _LIMIT * PAGE_SIZE)
        self.machine.settle()
        self.played: list[bytes] = []
        self._read_neighbour()

    @property
    def worn(self) -> bool:
        """Whether it is time for another one. (All EPC short, v5 may choose the neighbour: spec 5.2.)"""
        return len(self.played) >= RUNS or self.neighbour.disabled

    def _build_neighbour(self) -> EnclaveFile:
        file, mem = self.driver.open(), FakeMemory()

        def call(cmd: int, arg: int) -> None:
            file.ioctl(cmd, arg, mem, self._owner)
            self.machine.settle()

        call(Ioctl.CREATE, pointer(mem, secs().pack()))
        pages = b"".join(contents(number) for number in range(_PAGES))
        fields = (mem.put(pages), 0, len(pages), mem.put(SecInfo(REG_RW).pack()), 0, 0)
        call(Ioctl.ADD_PAGES, mem.put(numbers.ADD_PAGES.pack(*fields)))
        call(Ioctl.INIT, pointer(mem, certificate(file)))
        return file

    def check_meanwhile(self) -> None:
        """What holds at every moment, whatever is going on."""
        invariants.check(self.machine)
        files, pager = self.driver.files.values(), self.driver.pager
        used = sum(pager.slots_in_use(file.enclave) for file in files)
        evicted = sum(file.enclave.evicted for file in files)
        assert used == evicted, f"{used} VA slots for {evicted} evicted pages"

    def check_after(self) -> None:
        """The hostile program has ended: nothing of it is left, and the neighbour is what it was."""
        machine = self.machine
        for group in (self.hostile, self.inner):
            machine.set_max(group, None)
        machine.settle()
        friendly = self._owner.group
        assert list(self.driver.files.values()) == [self.neighbour], self.driver.files
        assert not machine.vepcs
        assert not self.driver.zombies
        enclave = self.neighbour.enclave
        resident = [index for index, page in enclave.pages.items() if page is not None]
        held = len(resident) + len(enclave.va_pages) + (enclave.secs is not None)
        assert machine.usage(self.hostile) == 0
        assert machine.usage(machine.groups.root) == machine.usage(friendly) == held * PAGE_SIZE
        used = EPC_PAGES - machine.free
        assert used == held, f"{used} pages in use, {held} of the neighbour"
        store = self.driver.pager.store
        assert len(store.pages(enclave.id)) == enclave.evicted
        assert store.arena.taken <= enclave.evicted, "slots of the arena that nobody uses"
        assert len(self.frames.contents) == len(resident), "frames without a page"
        if self.neighbour.disabled:
            return
        for index in resident:
            self._same(index)
        if not len(self.played) % ALL:
            self._read_neighbour()
        self.frames.accessed.clear()
        self.log.clear()

    def _same(self, index: int) -> None:
        found = self.frames.read(self.neighbour.enclave.id, index, 0, PAGE_SIZE)
        assert found == contents(index), f"page {index} of the neighbour has changed"

    def _read_neighbour(self) -> None:
        pages = self.neighbour.enclave.pages
        for index in range(_PAGES):
            for _ in range(100):
                if pages.get(index) is not None:
                    break
                self.driver.fault(self.neighbour, BASE + index * PAGE_SIZE, "r", self._owner)
                self.machine.settle()
            else:
                self._lost(index)
            self._same(index)

    def _lost(self, index: int) -> NoReturn:
        raise AssertionError(f"page {index} of the neighbour does not load: {self.log[-3:]}")

    def close(self) -> None:
        """The neighbour goes too, and everything is zero."""
        if not self.neighbour.disabled:
            self._read_neighbour()
        self.neighbour.release()
        self.machine.settle()
        assert self.machine.free == EPC_PAGES, f"{EPC_PAGES - self.machine.free} pages are still in use"
        assert self.machine.usage(self.machine.groups.root) == 0
        assert self.driver.pager.store.used == 0
        assert not self.frames.contents
