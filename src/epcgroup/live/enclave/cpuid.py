"""The CPUID instruction, answered as a processor with SGX would.

Each CPUID in the files that a program maps as code is replaced by an instruction
that traps (`traps`). Code that a program generates, and code inside enclaves,
keeps the native CPUID. (Intel processors could be told to fault on every CPUID,
arch_prctl(ARCH_SET_CPUID); not used: AMD's cannot, and one way is enough.)

Answers: SGX1 and SGX2 (leaf 0x12), that they exist (leaf 7), that leaf 0x12
exists (leaf 0); everything else is the processor's own.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import mmap
from typing import TYPE_CHECKING

from epcgroup.units import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence

LEAF_SGX = 0x12
_LEAF_FEATURES = 7
_EBX_SGX, _ECX_SGX_LC = 1 << 2, 1 << 30
_SGX1, _SGX2, _EDECCSSA = 1 << 0, 1 << 1, 1 << 11
_MISC_EXINFO = 1
_MAX_SIZES = 0x2F1F  # log2 of the largest enclave: 47 in 64-bit mode, 31 outside
#: DEBUG, MODE64BIT, PROVISIONKEY, EINITTOKENKEY, KSS, ASYNC_EXIT_NOTIFY.
ATTRIBUTES = 0x4B6
# Where a made-up processor has its EPC; physical addresses nobody uses.
_EPC_BASE = 0x40_0000_0000

Registers = tuple[int, int, int, int]
"""eax, ebx, ecx, edx"""


def answer(
    leaf: int,
    subleaf: int,
    epc_sections: Sequence[tuple[int, int]],
    xcr0: int,
) -> Registers | None:
    """What the emulated processor says; None where it has nothing of its own to say.

    ``epc_sections`` are (physical base, size in bytes); ``xcr0`` limits XFRM
    (spec 1.1 EPC-01, SDM volume 3, "CPUID leaf 12H").
    """
    if leaf == 0:
        eax, ebx, ecx, edx = native(0, 0)
        return max(eax, LEAF_SGX), ebx, ecx, edx
    if leaf == _LEAF_FEATURES and subleaf == 0:
        eax, ebx, ecx, edx = native(leaf, 0)
        return eax, ebx | _EBX_SGX, ecx | _ECX_SGX_LC, edx
    if leaf != LEAF_SGX:
        return None
    if subleaf == 0:
        return _SGX1 | _SGX2 | _EDECCSSA, _MISC_EXINFO, 0, _MAX_SIZES
    if subleaf == 1:
        return ATTRIBUTES & 0xFFFFFFFF, ATTRIBUTES >> 32, xcr0 & 0xFFFFFFFF, xcr0 >> 32
    if subleaf - 2 < len(epc_sections):
        base, size = epc_sections[subleaf - 2]
        # Low words carry bits 31:12; type 1 = a section, protection 1 = confidential and integral.
        return base & 0xFFFFF000 | 1, base >> 32 & 0xFFFFF, size & 0xFFFFF000 | 1, size >> 32 & 0xFFFFF
    return 0, 0, 0, 0


def execute(leaf: int, subleaf: int, sections: Sequence[int]) -> Registers:
    """CPUID on a machine whose EPC has sections of so many bytes, one behind the other."""
    bases = itertools.accumulate(sections, initial=_EPC_BASE)
    emulated = answer(leaf, subleaf, list(zip(bases, sections, strict=False)), xcr0())
    return native(leaf, subleaf) if emulated is None else emulated


# ---- the processor's own answers ------------------------------------------

# u32 regs[4] in RDX:          push rbx; mov eax, edi; mov ecx, esi; mov r8, rdx; cpuid
# mov [r8], eax; mov [r8+4], ebx; mov [r8+8], ecx; mov [r8+12], edx; pop rbx; ret
_CPUID_CODE = bytes.fromhex("53 89f8 89f1 4989d0 0fa2 418900 41895804 41894808 4189500c 5b c3")
# xor ecx, ecx; xgetbv; shl rdx, 32; or rax, rdx; ret
_XGETBV_CODE = bytes.fromhex("31c9 0f01d0 48c1e220 4809d0 c3")
_XGETBV_AT = 64


@functools.cache
def _code() -> tuple[mmap.mmap, int]:
    area = mmap.mmap(-1, PAGE_SIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    area[: len(_CPUID_CODE)] = _CPUID_CODE
    area[_XGETBV_AT : _XGETBV_AT + len(_XGETBV_CODE)] = _XGETBV_CODE
    return area, ctypes.addressof(ctypes.c_char.from_buffer(area))


def native(leaf: int, subleaf: int = 0) -> Registers:
    """What this processor says."""
    registers = (ctypes.c_uint32 * 4)()
    call = ctypes.CFUNCTYPE(None, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)(_code()[1])
    call(leaf, subleaf, ctypes.addressof(registers))
    eax, ebx, ecx, edx = registers
    return eax, ebx, ecx, edx


@functools.cache
def xcr0() -> int:
    """XSAVE components that the kernel enabled; 3 (x87, SSE) on processors without XSAVE."""
    if not native(1)[2] >> 27 & 1:  # OSXSAVE
        return 3
    return int(ctypes.CFUNCTYPE(ctypes.c_uint64)(_code()[1] + _XGETBV_AT)())
