"""SSA frames: where an asynchronous exit saves a thread.

A frame is SSAFRAMESIZE pages, filled from both ends (SDM, "State Save Area"):

    0          XSAVE area of the components in XFRM, standard format
    end - 200  EXINFO, 16 bytes, if MISCSELECT bit 0
    end - 184  GPRSGX

All state is read back from the frame at ERESUME, never from a copy: runtimes
rewrite it there (a second-stage exception handler changes rip, rsp and the
XSAVE area of frame 0 and lets ERESUME take it).
"""

from __future__ import annotations

from typing import Protocol

from epcgroup.sgx.enclave import EnclaveState
from epcgroup.sgx.faults import VECTOR_BP, VECTOR_DB, VECTOR_GP, VECTOR_PF, VECTOR_UD, GeneralProtection
from epcgroup.sgx.layouts import (
    EXITINFO_HARDWARE,
    EXITINFO_SOFTWARE,
    EXITINFO_VALID,
    GPRSGX_SIZE,
    MISC_EXINFO,
    ExInfo,
    GprSgx,
    Tcs,
)
from epcgroup.units import PAGE_SIZE

VECTOR_DE, VECTOR_BR, VECTOR_MF, VECTOR_AC, VECTOR_XM, VECTOR_CP = 0, 5, 16, 17, 19, 21
_ALWAYS_REPORTED = frozenset(
    (VECTOR_DE, VECTOR_DB, VECTOR_BP, VECTOR_BR, VECTOR_UD, VECTOR_MF, VECTOR_AC, VECTOR_XM)
)
_WITH_EXINFO = frozenset((VECTOR_PF, VECTOR_GP, VECTOR_CP))
_URSP_AT = 144


class FrameMemory(Protocol):
    """Enclave memory as the processor itself accesses it.

    ``check`` raises PageFault unless enclave code may make the access
    (``"r"``, ``"w"``) to the page at ``addr``. ``tcs_read`` and ``tcs_write``
    reach into a TCS page, which no program may; ``word`` is the EPCM word of
    the page at an address. All make pages resident and may raise Busy: nothing
    happened, run background work and call again.
    """

    def read(self, addr: int, length: int) -> bytes: ...
    def write(self, addr: int, data: bytes) -> None: ...
    def check(self, addr: int, access: str) -> None: ...
    def word(self, addr: int) -> int: ...
    def tcs_read(self, addr: int) -> bytes: ...
    def tcs_write(self, addr: int, offset: int, data: bytes) -> None: ...


class Frame:
    """SSA frame ``slot`` of the thread with this TCS."""

    __slots__ = ("_exinfo", "_memory", "end", "exinfo_at", "gpr_at", "start", "xsave_size")

    def __init__(self, state: EnclaveState, memory: FrameMemory, tcs: Tcs, slot: int) -> None:
        secs = state.secs
        size = secs.ssa_frame_size * PAGE_SIZE
        self._memory = memory
        self._exinfo = bool(secs.miscselect & MISC_EXINFO)
        self.start = state.base + tcs.ossa + slot * size
        self.end = self.start + size
        self.gpr_at = self.end - GPRSGX_SIZE
        self.exinfo_at = self.gpr_at - ExInfo.size()
        self.xsave_size = state.platform.xsave_size(secs.xfrm)
        if not state.contains(self.start, size):
            raise GeneralProtection(f"SSA frame {slot} at {self.start:#x} lies outside the enclave")

    def probe(self) -> None:
        """Raise PageFault unless every page of the frame can be read and written."""
        for page in range(self.start, self.end, PAGE_SIZE):
            self._memory.check(page, "r")
            self._memory.check(page, "w")

    def gpr(self) -> GprSgx:
        return GprSgx.unpack(self._memory.read(self.gpr_at, GPRSGX_SIZE))

    def xsave(self) -> bytes:
        return self._memory.read(self.start, self.xsave_size)

    def write_outer_stack(self, rsp: int, rbp: int) -> None:
        """URSP and URBP: the stack an asynchronous exit returns to."""
        self._memory.write(self.gpr_at + _URSP_AT, rsp.to_bytes(8, "little") + rbp.to_bytes(8, "little"))

    def save(self, gpr: GprSgx, xsave: bytes, exinfo: ExInfo | None) -> None:
        """Write the frame. GPRSGX last, so that a Busy on the way repeats cleanly."""
        self._memory.write(self.start, xsave)
        if self._exinfo and exinfo is not None:
            self._memory.write(self.exinfo_at, exinfo.pack())
        self._memory.write(self.gpr_at, gpr.pack())


def exit_info(vector: int | None, miscselect: int) -> int:
    """EXITINFO of an exit by exception ``vector``, or by an interrupt (None).

    Interrupts report nothing; #PF, #GP and #CP only to an enclave that asked
    for EXINFO. #BP is the one software exception.
    """
    if vector is None:
        return 0
    reported = vector in _ALWAYS_REPORTED or (vector in _WITH_EXINFO and miscselect & MISC_EXINFO)
    if not reported:
        return 0
    kind = EXITINFO_SOFTWARE if vector == VECTOR_BP else EXITINFO_HARDWARE
    return EXITINFO_VALID | kind | vector


def exception_info(vector: int | None, addr: int, error_code: int) -> ExInfo | None:
    """EXINFO of an exit; None where hardware leaves the old one."""
    if vector == VECTOR_PF:
        return ExInfo(addr, error_code)
    if vector in (VECTOR_GP, VECTOR_CP):
        return ExInfo(0, error_code)
    return None
