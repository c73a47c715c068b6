"""A hostile program: what it can do to the machine, each thing driven by bytes.

Pointers lead to prepared arguments, to nothing, or to memory that changes while it is read (a second
thread that rewrites an argument between check and use). It has up to three device files, two threads in
each enclave, ioctls that are still running while it does other things, processes that it has forked.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator
from dataclasses import replace

from epcgroup import epc
from epcgroup.driver import EnclaveFile, Ioctl, VepcIoctl, debug, numbers, run
from epcgroup.live.enclave.processor import Processor
from epcgroup.sgx import thread
from epcgroup.sgx.layouts import KeyRequest, SecInfo, TargetInfo, Tcs
from epcgroup.testing.user_memory import FakeMemory
from epcgroup.units import PAGE_SIZE

from . import code
from .mappings import Mappings
from .stage import REG_RW, REG_RX, TCS, Stage, certificate, pointer, secs
from .words import ARGUMENTS, BASE, Words

IOCTLS = (*Ioctl, 0xA404, 0xC030A400, 0x5401, 0)
_ATTRIBUTES = (6, 4, 0x86, 0x406, 0x16, 0x486)  # debug, none; and KSS, AEX-Notify, PROVISIONKEY
_SECINFOS = (0x203, 0x205, 0x20B, 0x20A, 0x208, 0x211, 0x221, 0x223, 0x110, 0x410, 0x400, 0x207)
_PROVISION_FD = 7
_WORD = (1 << 64) - 1
Steps = Generator[None, None, int]


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


class Hostile:
    """The program, from its start to its end."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.driver, self.machine = stage.driver, stage.machine
        self.mem = ChangingMemory()
        self.mem.poke(ARGUMENTS, bytes(4 * PAGE_SIZE))
        self.mem.provision.add(_PROVISION_FD)
        self.files: list[EnclaveFile] = [self.driver.open()]
        self.guest = self.driver.open_vepc()
        self.second_guest = self.driver.open_vepc()
        self.mappings = Mappings()
        self.inside: dict[tuple[EnclaveFile, int], thread.Inside] = {}  # by file and number of thread
        self.running: list[tuple[EnclaveFile, Steps]] = []  # ioctls that have begun
        self.asked = -1  # how often it may yet be asked before a signal is there; negative: for ever
        self.callers = [epc.Caller(group, self._signal) for group in (stage.hostile, stage.inner)]

    def _signal(self) -> bool:
        self.asked -= self.asked > 0
        return not self.asked

    def act(self, words: Words) -> None:
        """One thing, which the words choose. Raises what the program is told."""
        try:
            OPERATIONS[words.byte() % len(OPERATIONS)](self, words)
        finally:
            self.mem.race = None

    def end(self) -> None:
        """It is killed: what it had is closed."""
        for _, steps in self.running:
            steps.close()
        self.running.clear()
        self.inside.clear()
        self.mappings.close()
        for file in self.files:
            file.release()
        for guest in (self.guest, self.second_guest):
            for page in guest.epcm.pages.values():
                page.active = False  # the machine's processors have stopped before its files are closed
            guest.release()

    def killed(self, _: Words) -> None:
        """It ends, and is started again."""
        self.end()
        self.files = [self.driver.open()]
        self.guest, self.second_guest = self.driver.open_vepc(), self.driver.open_vepc()

    # -- files ------------------------------------------------------------------------

    def file(self, words: Words) -> EnclaveFile:
        return self.files[words.byte() % len(self.files)]

    def caller(self, words: Words) -> epc.Caller:
        return self.callers[words.byte() & 1]

    def open(self, _: Words) -> None:
        if len(self.files) < 3:
            self.files.append(self.driver.open())

    def close(self, words: Words) -> None:
        number = words.byte() % len(self.files)
        file = self.files[number]
        if any(file is busy for busy, _ in self.running):
            return  # as long as a call runs on it, it stays open
        for of in [of for of in self.inside if of[0] is file]:
            del self.inside[of]
        self.mappings.forget(file)
        file.release()
        self.files[number] = self.driver.open()

    # -- ioctls -----------------------------------------------------------------------

    def ioctl(self, words: Words, file: EnclaveFile, cmd: int, arg: int) -> None:
        """The whole call, or its first step: what follows then comes between."""
        how = words.byte()
        self.mem.race = (how >> 4 & 3, 1 << (how & 7)) if how & 8 else None
        steps = file.ioctl_steps(cmd, arg, self.mem, self.caller(words))
        if how >> 6 == 3 and len(self.running) < 2:
            self.running.append((file, steps))
            self._step(len(self.running) - 1)
        else:
            run(steps)

    def resume(self, words: Words) -> None:
        """One more step of a call that runs, or the thread that makes it is killed."""
        if not self.running:
            return
        number = words.byte()
        chosen = number % len(self.running)
        if number & 0x40:
            self.running.pop(chosen)[1].close()
        else:
            self._step(chosen)

    def _step(self, chosen: int) -> None:
        try:
            next(self.running[chosen][1])
        except StopIteration:
            del self.running[chosen]
        except BaseException:
            del self.running[chosen]
            raise

    def wild_ioctl(self, words: Words) -> None:
        """Any command with any argument, over bytes of any kind."""
        self.mem.poke(ARGUMENTS, struct.pack("<6Q", *(words.number() for _ in range(6))))
        file, cmd = self.file(words), IOCTLS[words.byte() % len(IOCTLS)]
        self.ioctl(words, file, cmd, ARGUMENTS if words.byte() & 3 else words.number())

    def create(self, words: Words) -> None:
        file, kept = self.file(words), words.byte()
        wanted = secs(attributes=_ATTRIBUTES[(kept >> 4) % len(_ATTRIBUTES)])
        for bit, name in enumerate(("size_bytes", "base", "attributes", "miscselect")):
            if kept >> bit & 1:
                wanted = replace(wanted, **{name: words.number() & (_WORD if bit < 3 else 0xFFFFFFFF)})
        self.ioctl(words, file, Ioctl.CREATE, pointer(self.mem, wanted.pack()))

    def add_pages(self, words: Words) -> None:
        count, kind = words.byte() % 6 + 1, words.byte()
        flags = words.number() & 0xFFFF if kind & 3 == 3 else (REG_RW, REG_RX, TCS)[kind & 3]
        if flags == TCS:
            state = words.byte()
            data = Tcs(ossa=(state & 7) << 12, nssa=state >> 3 & 3, oentry=0, flags=state >> 6).pack()
        else:
            data = (count * PAGE_SIZE) * bytes([kind >> 4])
        source, offset = self.mem.put(data), words.place()
        secinfo = self.mem.put(SecInfo(flags).pack())
        length = words.number() if kind & 4 else len(data)
        arg = self.mem.put(numbers.ADD_PAGES.pack(source, offset, length, secinfo, kind >> 3 & 1, 0))
        self.ioctl(words, self.file(words), Ioctl.ADD_PAGES, arg)

    def init(self, words: Words) -> None:
        file = self.file(words)
        if not file.created or file.enclave.secs is None:
            return  # what was measured is read from the SECS, which may be evicted
        signed = bytearray(certificate(file))
        if words.byte() & 3 == 3:
            signed[words.number() % len(signed)] ^= 1 << (words.byte() & 7)
        self.ioctl(words, file, Ioctl.INIT, pointer(self.mem, bytes(signed)))

    def provision(self, words: Words) -> None:
        fd = _PROVISION_FD if words.byte() & 3 else words.number()
        self.ioctl(words, self.file(words), Ioctl.PROVISION, self.mem.put(fd.to_bytes(8, "little")))

    def modify(self, words: Words) -> None:
        """EMODPR, EMODT or the removal of some pages."""
        offset, length, kind = words.place(), (words.byte() % 20) * PAGE_SIZE, words.byte()
        cmd = (Ioctl.RESTRICT_PERMISSIONS, Ioctl.MODIFY_TYPES, Ioctl.REMOVE_PAGES)[kind % 3]
        if cmd == Ioctl.REMOVE_PAGES:
            arg = self.mem.put(numbers.REMOVE.pack(offset, length, 0))
        else:
            arg = self.mem.put(numbers.EDMM.pack(offset, length, kind >> 3 & 7, 0, 0))
        self.ioctl(words, self.file(words), cmd, arg)

    # -- memory -----------------------------------------------------------------------

    def fault(self, words: Words) -> None:
        file = self.file(words)
        addr = (file.base if file.created else 0) + words.place() & _WORD
        self.driver.fault(file, addr, "rwx"[words.byte() % 3], self.caller(words), words.byte() & 7)

    def touch(self, words: Words) -> None:
        """Through one of its mappings."""
        found = self.mappings.find(words.byte(), BASE + words.place())
        if found is not None:
            file, addr, prot = found
            self.driver.fault(file, addr, "rwx"[words.byte() % 3], self.caller(words), prot)

    def map(self, words: Words) -> None:
        """mmap, mprotect, munmap of some pages; fork; the end of a process."""
        self.mappings.change(words, self.file(words))

    def debug(self, words: Words) -> None:
        file = self.file(words)
        addr = (file.base if file.created else 0) + words.place()
        if words.byte() & 1:
            debug.write(file, addr, bytes([words.byte()]) * (words.number() % 5000), self.caller(words))
        else:
            debug.read(file, addr, words.number() % 5000, self.caller(words))

    def virtual_epc(self, words: Words) -> None:
        """A virtual machine touches its EPC and makes enclaves of it, which REMOVE_ALL and close meet."""
        which = words.byte()
        guest = self.second_guest if which & 1 else self.guest
        index = words.byte() % 40 if which & 2 else words.number()
        pages = guest.epcm.pages
        if which & 0x0C:
            guest.fault(index, self.caller(words))
        elif which & 0x10:
            guest.ioctl(VepcIoctl.REMOVE_ALL if which & 0x20 else words.number(), words.number())
        elif index in guest.guest.pages:
            if index in pages:
                pages[index].active = bool(which & 0x40)
            elif which & 0x80:
                guest.epcm.ecreate(index)
            else:
                owners = [page for page in self.guest.epcm.pages.values() if page.secs is None]
                if owners:
                    guest.epcm.eadd(index, owners[0])

    # -- limits and the background --------------------------------------------------

    def limit(self, words: Words) -> None:
        group = (self.stage.hostile, self.stage.inner)[words.byte() & 1]
        choice = words.byte()
        self.machine.set_max(group, None if choice > 200 else choice % 40 * PAGE_SIZE)

    def background(self, words: Words) -> None:
        for _ in range(words.byte() % 8):
            if not self.machine.step():
                return

    def signal(self, words: Words) -> None:
        """A signal comes, or will have come when the kernel has looked so many times."""
        self.asked = words.byte() % 8 - 1

    def code(self, words: Words) -> None:
        """Code that we read: of an enclave to be patched, or a library."""
        content = words.bytes(words.byte() & 0x1F)
        code.read_page(content)
        code.read_library(content, words)

    # -- threads in enclaves ----------------------------------------------------------

    def enclu(self, words: Words) -> None:
        """Any leaf with any operands; inside or outside, as the thread happens to be."""
        file, number, leaf = self.file(words), words.byte() & 1, words.byte() % 12
        if not file.created:
            return
        access = self._processor(file, words)
        regs = thread.Registers(rip=BASE + 0x1000)
        regs.rbx, regs.rcx, regs.rdx = (words.place() + file.base & _WORD for _ in range(3))
        inside = self.inside.get((file, number))
        if inside is None:
            if leaf & 1:
                self.inside[file, number] = thread.eenter(file.state, access, regs)
            else:
                self.inside[file, number] = thread.eresume(file.state, access, regs, bytes(832))[0]
        elif leaf == 4:
            thread.eexit(file.state, regs, inside)
            del self.inside[file, number]
        elif leaf == 3:
            vector = (None, 14, 13, 6, 3)[words.byte() % 5]
            more = {"vector": vector, "addr": regs.rbx, "error_code": words.byte()}
            thread.asynchronous_exit(file.state, access, regs, bytes(832), inside, **more)
            del self.inside[file, number]
        else:
            access.leaf(leaf, regs, inside)

    def operand(self, words: Words) -> None:
        """The enclave writes into its own memory what the next leaf takes as an operand."""
        file, kind = self.file(words), words.byte()
        if not file.created:
            return
        if kind & 3 == 0:
            block = SecInfo(_SECINFOS[(kind >> 2) % len(_SECINFOS)]).pack()
        elif kind & 3 == 1:
            block = KeyRequest(kind >> 2 & 7, words.byte(), config_svn=words.byte() & 1).pack()
        elif kind & 3 == 2:
            block = TargetInfo(bytes([words.byte()]) * 32, 6, 3).pack()
        elif kind & 4:
            nssa, cssa, flags = words.byte() & 3, words.byte() & 3, words.byte() & 3
            block = Tcs(ossa=0x1000, nssa=nssa, cssa=cssa, flags=flags).pack()
        else:
            block = struct.pack("<8Q", words.number(), *(7 * (words.byte() & 1,)))
        self._processor(file, words).write(file.base + words.place() & _WORD, block)

    def _processor(self, file: EnclaveFile, words: Words) -> Processor:
        return Processor(file, self.caller(words), self.stage.frames)  # type: ignore[arg-type]


Operation = Callable[[Hostile, Words], None]
OPERATIONS: tuple[Operation, ...] = (
    *(3 * (Hostile.wild_ioctl, Hostile.enclu)),
    *(2 * (Hostile.create, Hostile.add_pages, Hostile.fault, Hostile.touch, Hostile.modify, Hostile.operand,
           Hostile.map)),
    Hostile.init, Hostile.provision, Hostile.debug, Hostile.virtual_epc, Hostile.limit, Hostile.background,
    Hostile.resume, Hostile.signal, Hostile.code, Hostile.open, Hostile.close, Hostile.killed,
)  # fmt: skip
