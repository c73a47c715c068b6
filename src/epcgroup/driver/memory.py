"""An enclave's own memory, as its code and the processor's microcode see it.

This is what the leaves of ``sgx.enclu`` and ``sgx.thread`` work on: every access
makes the page resident as a page fault would, then obeys the EPCM. It reaches
frames directly and never through the program's address space, where the page
may be hidden, protected or gone at any moment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from epcgroup.driver.fault import Fault, make_resident
from epcgroup.epc import Caller
from epcgroup.errors import Busy, EpcgroupError
from epcgroup.sgx.epcm import allows
from epcgroup.sgx.faults import PageFault, epcm_code
from epcgroup.units import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from epcgroup.driver.file import EnclaveFile


class BusError(EpcgroupError):
    """The page at ``addr`` cannot be had: a SIGBUS for the thread (#PF first)."""

    def __init__(self, addr: int, why: str = "") -> None:
        super().__init__(f"enclave page at {addr:#x} cannot be had{why and f': {why}'}")
        self.addr = addr


class EnclaveMemory:
    """Memory of one enclave on behalf of one thread.

    Implements ``sgx.enclu.Memory`` and ``sgx.ssa.FrameMemory``. All methods may
    raise Busy (run background work and repeat the instruction) and BusError.
    """

    __slots__ = ("_caller", "_file")

    def __init__(self, file: EnclaveFile, caller: Caller) -> None:
        self._file = file
        self._caller = caller

    def word(self, addr: int) -> int:
        """EPCM word of the page, made resident; a hole is filled by EAUG."""
        outcome = make_resident(self._file, addr, self._caller)
        if outcome is Fault.RETRY:
            raise Busy(f"enclave page at {addr:#x} cannot be had now")
        if outcome is not Fault.RESIDENT:
            raise BusError(addr, self._file.refusal)
        return self._file.state.epcm[(addr - self._file.base) >> PAGE_SHIFT]

    def set_word(self, addr: int, word: int) -> None:
        file = self._file
        index = (addr - file.base) >> PAGE_SHIFT
        file.state.epcm[index] = word
        file.driver.frames.protect(file.enclave.id, index, word)

    def check(self, addr: int, access: str) -> None:
        """Raises PageFault unless enclave code may make this access."""
        if not allows(self.word(addr), access):
            raise PageFault(addr, epcm_code(access))

    def read(self, addr: int, length: int) -> bytes:
        parts = []
        for at, count in _pages(addr, length):
            self.check(at, "r")
            parts.append(self._read(at, count))
        return b"".join(parts)

    def write(self, addr: int, data: bytes) -> None:
        pieces = list(_pages(addr, len(data)))
        for at, _ in pieces:
            self.check(at, "w")
        for at, count in pieces:
            self._write(at, data[at - addr : at - addr + count])

    def copy_page(self, source: int, target: int) -> None:
        """The contents of one resident page into another, whatever its state."""
        self.word(target)
        self._write(target, self._read(source, PAGE_SIZE))

    def tcs_read(self, addr: int) -> bytes:
        self.word(addr)
        return self._read(addr, PAGE_SIZE)

    def tcs_write(self, addr: int, offset: int, data: bytes) -> None:
        self.word(addr)
        self._write(addr + offset, data)

    def _read(self, addr: int, length: int) -> bytes:
        file = self._file
        at = addr - file.base
        return file.driver.frames.read(file.enclave.id, at >> PAGE_SHIFT, at % PAGE_SIZE, length)

    def _write(self, addr: int, data: bytes) -> None:
        file = self._file
        at = addr - file.base
        file.driver.frames.write(file.enclave.id, at >> PAGE_SHIFT, at % PAGE_SIZE, data)


class LostMemory(EnclaveMemory):
    """Memory of an enclave that is disabled, for a thread that is still inside and has to leave.

    A processor leaves through pages whose places it remembers, mapped or not. They are read where they
    are (`contents`: a page's bytes by its index), and charge nobody; what is written is forgotten, since
    nobody can enter again.
    """

    __slots__ = ("_contents",)

    def __init__(self, file: EnclaveFile, caller: Caller, contents: Callable[[int], bytes]) -> None:
        super().__init__(file, caller)
        self._contents = contents

    def word(self, addr: int) -> int:  # noqa: ARG002 - nothing depends on it
        return 0

    def check(self, addr: int, access: str) -> None:
        """Every access is allowed: the processor's own are."""

    def _read(self, addr: int, length: int) -> bytes:
        index, at = divmod(addr - self._file.base, PAGE_SIZE)
        return self._contents(index)[at : at + length]

    def _write(self, addr: int, data: bytes) -> None:
        """Forgotten."""


def _pages(addr: int, length: int) -> list[tuple[int, int]]:
    """``[addr, addr+length)`` cut at page boundaries: (address, bytes)."""
    cuts, end = [], addr + length
    while addr < end:
        count = min(PAGE_SIZE - addr % PAGE_SIZE, end - addr)
        cuts.append((addr, count))
        addr += count
    return cuts
