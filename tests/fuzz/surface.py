"""What a hostile program can reach, driven by bytes: ioctls, ENCLU, page faults, debug access, limits.

One machine, an enclave of a neighbour that is full of known contents, and a hostile program
that owns up to three device files. A byte string is a programme of operations: numbers come from a list of
telling ones or are taken as they stand, pointers lead to prepared arguments, to nothing, or to memory that
changes while it is read (a second thread that rewrites an argument between check and use).

What must hold, whatever the bytes are: only the documented refusals come back; every invariant of the
engine (spec 11) and of sealing holds at the end; the neighbour's pages are what they were; and
everything goes back to zero when all is closed.

    python tests/fuzz/surface.py -runs=1000000          coverage-guided, with atheris (`make fuzz`)
    python tests/fuzz/surface.py FILE                   one input again
    python tests/fuzz/surface.py --random SECONDS SEED  random inputs, no atheris
"""

from __future__ import annotations

import random
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

if __name__ == "__main__" and "--random" not in sys.argv and len(sys.argv) > 1 and sys.argv[1][0] == "-":
    import atheris

    with atheris.instrument_imports(
        include=["epcgroup.driver", "epcgroup.epc", "epcgroup.sgx", "epcgroup.misc"]
    ):
        import epcgroup.driver  # noqa: F401 - the import is what instruments

from epcgroup import epc
from epcgroup.driver import BusError, Driver, EnclaveFile, Ioctl, debug, numbers
from epcgroup.epc import invariants
from epcgroup.errors import Refused
from epcgroup.live.enclave.processor import Processor
from epcgroup.sgx import thread
from epcgroup.sgx.faults import LeafFault
from epcgroup.sgx.layouts import SecInfo, Secs, SigStruct, Tcs
from epcgroup.sgx.platform import Platform
from epcgroup.sgx.sign import SigningKey, sign
from epcgroup.testing.frames import DictFrames
from epcgroup.testing.user_memory import FakeMemory
from epcgroup.units import PAGE_SIZE

EPC_PAGES = 48
BASE = 0x40000000
SIZE = 1 << 18
POLICIES = ("standard", "v5", "v17")
ARGUMENTS = 0x7E0000000000  # where prepared arguments lie
_REG_RW, _REG_RX, _TCS = 0x203, 0x205, 0x100
_NEIGHBOUR_PAGES = 12
#: Numbers that checks are about; the rest is left to the fuzzer.
TELLING = (
    0, 1, 2, 3, 4, 7, 8, 63, 64, 0x100, 0x200, 0x203, 0x205, 0x207, 0x400, 0xFFF, 0x1000, 0x1001, 0x2000,
    0x4000, SIZE - 0x1000, SIZE, SIZE + 1, BASE, BASE + 0x1000, BASE + SIZE - 0x1000, BASE + SIZE, 1 << 31,
    (1 << 32) - 1, 1 << 47, (1 << 47) - 0x1000, 1 << 63, (1 << 64) - 0x1000, (1 << 64) - 1,
    ARGUMENTS, ARGUMENTS + 0x1000,
)  # fmt: skip
IOCTLS = (*Ioctl, 0xA404, 0xC030A400, 0x5401, 0)


class Words:
    """The input: bytes taken from the front; zeros when there are no more."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def more(self) -> bool:
        return self._at < len(self._data)

    def byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def number(self) -> int:
        """A telling number, or eight bytes as they stand."""
        choice = self.byte()
        if choice < 0xF0:
            return TELLING[choice % len(TELLING)]
        self._at += 8
        return int.from_bytes(self._data[self._at - 8 : self._at].ljust(8, b"\0"), "little")


class ChangingMemory(FakeMemory):
    """A program's memory in which a second thread may write between two reads."""

    def __init__(self) -> None:
        super().__init__()
        self.race: tuple[int, int] | None = None  # after so many reads, xor this into the next

    def read(self, addr: int, length: int) -> bytes:
        found = super().read(addr, length)
        if self.race is None:
            return found
        after, mask = self.race
        self.race = (after - 1, mask) if after else None
        return found if after else bytes(byte ^ mask for byte in found)


class Touched(DictFrames):
    """Frames that notice what the processor touches, as live's do."""

    def touch(self, enclave: int, index: int) -> None:
        self.accessed.add((enclave, index))


@cache
def key() -> SigningKey:
    return SigningKey.generate()


@cache
def _signed(measurement: bytes, attributes: int, xfrm: int, miscselect: int) -> bytes:
    unsigned = SigStruct(mrenclave=measurement, attributes=attributes, xfrm=xfrm, miscselect=miscselect)
    return sign(unsigned, key()).pack()


class Machine:
    """The machine, the neighbour, and the hostile program with its files and its one inside thread."""

    def __init__(self, policy: str) -> None:
        self.log: list[str] = []
        self.frames = Touched()
        self.driver = Driver(
            epc_pages=EPC_PAGES, policy=epc.by_name(policy), frames=self.frames, root_key=b"r" * 16,
            paging_key=b"p" * 16, platform=Platform(sgx2=True), log=self.log.append,
        )  # fmt: skip
        groups = self.driver.machine.groups
        self.hostile = epc.Caller(groups.mkdir("/hostile"), lambda: False)
        self.friendly = epc.Caller(groups.mkdir("/friendly"), lambda: False)
        self.mem = ChangingMemory()
        self.mem.poke(ARGUMENTS, bytes(4 * PAGE_SIZE))
        self.files: list[EnclaveFile] = [self.driver.open()]
        self.inside: dict[int, thread.Inside] = {}  # by file number
        self.vepc = self.driver.open_vepc()
        self.neighbour = self._build_neighbour()

    def _build_neighbour(self) -> EnclaveFile:
        file, mem = self.driver.open(), FakeMemory()
        self._call(file, Ioctl.CREATE, _pointer(mem, _secs().pack()), mem)
        contents = b"".join(_contents(number) for number in range(_NEIGHBOUR_PAGES))
        fields = (mem.put(contents), 0, len(contents), mem.put(SecInfo(_REG_RW).pack()), 0, 0)
        self._call(file, Ioctl.ADD_PAGES, mem.put(numbers.ADD_PAGES.pack(*fields)), mem)
        self._call(file, Ioctl.INIT, _pointer(mem, _certificate(file)), mem)
        return file

    def _call(self, file: EnclaveFile, cmd: int, arg: int, mem: FakeMemory) -> None:
        file.ioctl(cmd, arg, mem, self.friendly)
        self.driver.machine.settle()

    # -- operations of the hostile program ------------------------------------------

    def file(self, words: Words) -> EnclaveFile:
        return self.files[words.byte() % len(self.files)]

    def open(self, _: Words) -> None:
        if len(self.files) < 3:
            self.files.append(self.driver.open())

    def close(self, words: Words) -> None:
        number = words.byte() % len(self.files)
        file = self.files[number]
        self.inside.pop(id(file), None)
        file.release()
        self.files[number] = self.driver.open()

    def wild_ioctl(self, words: Words) -> None:
        """Any command with any argument, over bytes of any kind."""
        block = struct.pack("<6Q", *(words.number() for _ in range(6)))
        self.mem.poke(ARGUMENTS, block)
        file, cmd = self.file(words), IOCTLS[words.byte() % len(IOCTLS)]
        arg = ARGUMENTS if words.byte() & 3 else words.number()
        self.race(words)
        file.ioctl(cmd, arg, self.mem, self.hostile)

    def race(self, words: Words) -> None:
        choice = words.byte()
        self.mem.race = (choice >> 1 & 3, 1 << (choice >> 5)) if choice & 1 else None

    def create(self, words: Words) -> None:
        changes = {"size_bytes": words.number(), "base": words.number(), "attributes": words.number()}
        kept = words.byte()
        good = _secs()
        chosen = {name: value for bit, (name, value) in enumerate(changes.items()) if not kept >> bit & 1}
        secs = replace(good, **{} if kept & 8 else chosen)
        self.file(words).ioctl(Ioctl.CREATE, _pointer(self.mem, secs.pack()), self.mem, self.hostile)

    def add_pages(self, words: Words) -> None:
        count = words.byte() % 6 + 1
        flags = (_REG_RW, _REG_RX, _TCS, words.number())[words.byte() & 3]
        data = Tcs(ossa=0x1000, nssa=2, oentry=0).pack() if flags == _TCS else bytes(count * PAGE_SIZE)
        source, offset = self.mem.put(data), words.number()
        secinfo = self.mem.put(SecInfo(flags & 0xFFFF).pack())
        length = len(data) if words.byte() & 7 else words.number()
        arg = self.mem.put(numbers.ADD_PAGES.pack(source, offset, length, secinfo, words.byte() & 3, 0))
        self.race(words)
        self.file(words).ioctl(Ioctl.ADD_PAGES, arg, self.mem, self.hostile)

    def init(self, words: Words) -> None:
        file = self.file(words)
        if not file.created or file.enclave.secs is None:
            return  # what was measured is read from the SECS, which may be evicted
        certificate = bytearray(_certificate(file))
        if words.byte() & 3 == 0:
            certificate[words.number() % len(certificate)] ^= 1 << (words.byte() & 7)
        file.ioctl(Ioctl.INIT, _pointer(self.mem, bytes(certificate)), self.mem, self.hostile)

    def fault(self, words: Words) -> None:
        file = self.file(words)
        addr = (file.base if file.created else 0) + words.number()
        self.driver.fault(file, addr & ((1 << 64) - 1), "rwx"[words.byte() % 3], self.hostile)

    def debug(self, words: Words) -> None:
        file = self.file(words)
        addr = (file.base if file.created else 0) + words.number()
        if words.byte() & 1:
            debug.write(file, addr, bytes(words.number() % 5000), self.hostile)
        else:
            debug.read(file, addr, words.number() % 5000, self.hostile)

    def map(self, words: Words) -> None:
        file = self.file(words)
        if file.created:
            file.may_map(words.number(), words.number(), words.byte(), words.byte(), bool(words.byte() & 1))

    def guest(self, words: Words) -> None:
        if words.byte() & 1:
            self.vepc.fault(words.number() % 40, self.hostile)
        else:
            self.vepc.ioctl(0xA404 if words.byte() & 1 else words.number(), words.number())

    def limit(self, words: Words) -> None:
        choice = words.byte()
        machine = self.driver.machine
        machine.set_max(self.hostile.group, None if choice > 200 else choice % 40 * PAGE_SIZE)

    def background(self, words: Words) -> None:
        for _ in range(words.byte() % 8):
            if not self.driver.machine.pending:
                return
            self.driver.machine.step()

    def enclu(self, words: Words) -> None:
        """Any leaf with any operands; inside or outside, as the thread happens to be."""
        file = self.file(words)
        if not file.created:
            return
        access = Processor(file, self.hostile, self.frames)  # type: ignore[arg-type]
        regs = thread.Registers(rip=0x1000)
        regs.rbx, regs.rcx, regs.rdx = (words.number() + file.base for _ in range(3))
        leaf, inside = words.byte() % 12, self.inside.get(id(file))
        if inside is None:
            if leaf & 1:
                self.inside[id(file)] = thread.eenter(file.state, access, regs)
            else:
                self.inside[id(file)] = thread.eresume(file.state, access, regs, bytes(576))[0]
        elif leaf == 4:
            thread.eexit(file.state, regs, inside)
            del self.inside[id(file)]
        elif leaf == 3:
            thread.asynchronous_exit(file.state, access, regs, bytes(576), inside, vector=14, addr=regs.rbx)
            del self.inside[id(file)]
        else:
            access.leaf(leaf, regs, inside)

    def operand(self, words: Words) -> None:
        """The enclave writes into its own memory what the next leaf takes as an operand."""
        file = self.file(words)
        if file.created:
            block = struct.pack("<8Q", words.number(), *(7 * (words.byte() & 1,)))
            Processor(file, self.hostile, self.frames).write(file.base + words.number(), block)  # type: ignore[arg-type]

    # -- what must hold ---------------------------------------------------------------

    def check(self) -> None:
        """Invariants; then the neighbour reads its pages, and all goes away."""
        machine = self.driver.machine
        invariants.check(machine)
        used = sum(self.driver.pager.slots_in_use(file.enclave) for file in self.driver.files.values())
        evicted = sum(file.enclave.evicted for file in self.driver.files.values())
        assert used == evicted, f"{used} VA slots for {evicted} evicted pages"
        self.inside.clear()
        for file in self.files:
            file.release()
        self.vepc.release()
        machine.settle()
        if not self.neighbour.disabled:  # v5 may choose it when all EPC is short (spec 5.2)
            self._read_neighbour()
        self.neighbour.release()
        machine.settle()
        assert machine.free == EPC_PAGES, f"{EPC_PAGES - machine.free} pages are still in use"
        assert machine.usage(machine.groups.root) == 0
        assert self.driver.pager.store.used == 0
        assert not self.frames.contents

    def _read_neighbour(self) -> None:
        machine, enclave = self.driver.machine, self.neighbour.enclave
        for index in range(_NEIGHBOUR_PAGES):
            while enclave.pages.get(index) is None:
                self.driver.fault(self.neighbour, BASE + index * PAGE_SIZE, "r", self.friendly)
                machine.settle()
            found = self.frames.read(enclave.id, index, 0, PAGE_SIZE)
            assert found == _contents(index), f"page {index} of the neighbour has changed"


def _secs() -> Secs:
    return Secs(size_bytes=SIZE, base=BASE, xfrm=3, attributes=6)


def _contents(number: int) -> bytes:
    return bytes([number + 1]) * PAGE_SIZE


def _pointer(mem: FakeMemory, data: bytes) -> int:
    return mem.put(mem.put(data).to_bytes(8, "little"))


def _certificate(file: EnclaveFile) -> bytes:
    secs = file.state.secs
    return _signed(file.state.measurement.digest(), secs.attributes, secs.xfrm, secs.miscselect)


Operation = Callable[[Machine, Words], None]
OPERATIONS: tuple[Operation, ...] = (
    *(3 * (Machine.wild_ioctl,)), *(2 * (Machine.create, Machine.add_pages, Machine.fault, Machine.enclu)),
    Machine.init, Machine.operand, Machine.debug, Machine.map, Machine.guest, Machine.limit,
    Machine.background, Machine.open, Machine.close,
)  # fmt: skip


def one_input(data: bytes) -> None:
    """Play one input; raises whatever should not have happened."""
    words = Words(data)
    machine = Machine(POLICIES[words.byte() % len(POLICIES)])
    while words.more:
        try:
            OPERATIONS[words.byte() % len(OPERATIONS)](machine, words)
        except (Refused, OSError, LeafFault, BusError):
            pass  # the documented answers
        finally:
            machine.mem.race = None
    machine.check()


def random_inputs(seconds: float, seed: int) -> int:
    """Random inputs for a while; how many."""
    chance, until, count = random.Random(seed), time.monotonic() + seconds, 0
    while time.monotonic() < until:
        data = chance.randbytes(chance.randrange(8, 400))
        try:
            one_input(data)
        except BaseException:
            print(f"input: {data.hex()}", file=sys.stderr)
            raise
        count += 1
    return count


def main() -> None:
    if sys.argv[1:2] == ["--random"]:
        print(f"{random_inputs(float(sys.argv[2]), int(sys.argv[3]))} inputs, nothing broken")
    elif len(sys.argv) == 2 and Path(sys.argv[1]).is_file():
        one_input(Path(sys.argv[1]).read_bytes())
    else:
        atheris.Setup(sys.argv, one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
