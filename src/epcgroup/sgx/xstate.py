"""The XSAVE area between a thread's registers and an SSA frame.

The registers come and go in the standard XSAVE format (what NT_X86_XSTATE
carries): legacy area 0..511, of which 464..511 are for software, header
512..575 (XSTATE_BV, XCOMP_BV, reserved), then the extended components.

An exit writes only the components in XFRM, and none of the software bytes; a
resume refuses a header that XRSTOR would refuse. Components outside XFRM stay
with the thread, on both ways.
"""

from __future__ import annotations

import struct

from epcgroup.sgx.faults import GeneralProtection
from epcgroup.sgx.layouts import XFRM_LEGACY
from epcgroup.sgx.platform import XSAVE_HEADER, XSAVE_LEGACY, Platform

_SOFTWARE = 464
_MXCSR_AT, _MXCSR_MASK_AT = 24, 28
_XMM_AT, _XMM_END = 160, 416
_INITIAL_FCW, _INITIAL_MXCSR = 0x37F, 0x1F80
_DEFAULT_MXCSR_MASK = 0xFFFF
_SSE = 2
_U64 = struct.Struct("<Q")


def initial(length: int) -> bytes:
    """The state outside after an exit: nothing in use, ``length`` bytes long."""
    area = bytearray(length)
    struct.pack_into("<H", area, 0, _INITIAL_FCW)
    struct.pack_into("<I", area, _MXCSR_AT, _INITIAL_MXCSR)
    return bytes(area)


def to_frame(host: bytes, xfrm: int, platform: Platform) -> bytes:
    """The XSAVE area that an exit leaves in the SSA frame."""
    size = platform.xsave_size(xfrm)
    area = bytearray(host[:size].ljust(size, b"\0"))
    in_use = _U64.unpack_from(area, XSAVE_HEADER)[0] & xfrm
    area[_SOFTWARE:XSAVE_LEGACY] = bytes(XSAVE_LEGACY - _SOFTWARE)
    _U64.pack_into(area, XSAVE_HEADER, in_use)
    for bit, (start, length) in platform.components.items():
        if start < size and not xfrm >> bit & 1:
            area[start : start + length] = bytes(length)
    return bytes(area)


def from_frame(frame: bytes, host: bytes, xfrm: int, platform: Platform) -> bytes:
    """The thread's state after a resume: ``frame`` over ``host``.

    Raises GeneralProtection when XRSTOR would: bits outside XFRM, a compacted
    or non-zero header, reserved bits of MXCSR.
    """
    in_use = _U64.unpack_from(frame, XSAVE_HEADER)[0]
    if in_use & ~xfrm:
        raise GeneralProtection(f"XSTATE_BV {in_use:#x} in the SSA has bits outside XFRM {xfrm:#x}")
    if any(frame[XSAVE_HEADER + 8 : XSAVE_LEGACY]):
        raise GeneralProtection("header of the XSAVE area in the SSA is not zero after XSTATE_BV")
    (mxcsr,) = struct.unpack_from("<I", frame, _MXCSR_AT)
    if mxcsr & ~_mxcsr_mask(host):
        raise GeneralProtection(f"MXCSR {mxcsr:#x} in the SSA has reserved bits")
    area = bytearray(host)
    area[:_SOFTWARE] = frame[:_SOFTWARE]
    if mxcsr != _INITIAL_MXCSR and not in_use & _SSE:
        # XRSTOR always loads MXCSR; the kernel does so only with SSE in use.
        in_use |= _SSE
        area[_XMM_AT:_XMM_END] = bytes(_XMM_END - _XMM_AT)
    for bit, (start, length) in platform.components.items():
        if xfrm >> bit & 1 and start + length <= len(area):
            area[start : start + length] = frame[start : start + length]
    kept = _U64.unpack_from(host, XSAVE_HEADER)[0] & ~(xfrm | XFRM_LEGACY)
    _U64.pack_into(area, XSAVE_HEADER, in_use | kept)
    return bytes(area)


def _mxcsr_mask(host: bytes) -> int:
    (mask,) = struct.unpack_from("<I", host, _MXCSR_MASK_AT)
    return int(mask) or _DEFAULT_MXCSR_MASK
