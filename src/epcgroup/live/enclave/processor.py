"""The enclave's memory and leaves as a thread of a real process uses them.

On top of the driver's `EnclaveMemory`: pages that the processor itself touches
(TCS, SSA frames, operands of ENCLU) count as accessed, which no page table shows
because no program touched them.

One instruction looks at the same few pages up to ten times. As loading a page never evicts another (the
machine's lock is held from the first look to the last), what was looked at once needs no second look.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from epcgroup.driver import EnclaveMemory
from epcgroup.sgx import enclu, thread
from epcgroup.sgx.faults import GeneralProtection, Result
from epcgroup.sgx.layouts import Enclu
from epcgroup.units import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from epcgroup.driver import EnclaveFile
    from epcgroup.epc import Caller
    from epcgroup.live.paging.frames import MemfdFrames
    from epcgroup.sgx.enclave import EnclaveState


class Processor(EnclaveMemory):
    """One thread's accesses to one enclave in one try of one instruction, under one hold of the lock."""

    __slots__ = ("_frames", "_seen")

    def __init__(self, file: EnclaveFile, caller: Caller, frames: MemfdFrames) -> None:
        super().__init__(file, caller)
        self._frames = frames
        self._seen: dict[int, int] = {}  # words of the pages that it has looked at

    @property
    def state(self) -> EnclaveState:
        """SECS and EPCM of the enclave."""
        return self._file.state

    def word(self, addr: int) -> int:
        """As EnclaveMemory.word; the page is young afterwards."""
        index = (addr - self._file.base) >> PAGE_SHIFT
        word = self._seen.get(index)
        if word is None:
            word = self._seen[index] = super().word(addr)
            self._frames.touch(self._file.enclave.id, index)
        return word

    def set_word(self, addr: int, word: int) -> None:
        super().set_word(addr, word)
        self._seen[(addr - self._file.base) >> PAGE_SHIFT] = word

    def fetch(self, addr: int, length: int) -> bytes:
        """Code at ``addr``, whatever its permissions: it has just been executed."""
        assert addr % PAGE_SIZE + length <= PAGE_SIZE
        self.word(addr)
        return self._read(addr, length)

    def replace_code(self, addr: int, code: bytes) -> None:
        """Change code at ``addr``, within a page, whatever its permissions."""
        assert addr % PAGE_SIZE + len(code) <= PAGE_SIZE
        self.word(addr)
        self._write(addr, code)

    def leaf(self, leaf: int, regs: thread.Registers, entry: thread.Inside) -> Result | None:
        """Execute an ENCLU leaf that stays inside (not EEXIT); None: no code, the registers stay.

        Raises LeafFault, Busy, BusError. Nothing has happened then.
        """
        state, keys = self._file.state, self._file.driver.keys
        if leaf == Enclu.EACCEPT:
            return enclu.eaccept(state, self, regs.rbx, regs.rcx)
        if leaf == Enclu.EMODPE:
            enclu.emodpe(state, self, regs.rbx, regs.rcx)
            return None
        if leaf == Enclu.EACCEPTCOPY:
            return enclu.eacceptcopy(state, self, regs.rbx, regs.rcx, regs.rdx)
        if leaf == Enclu.EREPORT:
            enclu.ereport(state, self, keys, regs.rbx, regs.rcx, regs.rdx)
            return None
        if leaf == Enclu.EGETKEY:
            return enclu.egetkey(state, self, keys, regs.rbx, regs.rcx)
        if leaf == Enclu.EDECCSSA:
            thread.edeccssa(state, self, entry)
            return None
        raise GeneralProtection(f"ENCLU leaf {leaf} inside an enclave")
