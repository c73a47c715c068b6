"""Instructions that an enclave may not execute: #UD there, whatever they do outside.

Outside an enclave a program gets #GP for most of them, and so do we see them
(SDM, "Illegal instructions" of enclave mode: what may leave to a virtual machine
monitor, what does input and output, what changes segments or privilege). Of those
that do not fault outside, SYSCALL and ``int $0x80`` are caught by a filter; the
rest runs: CPUID where the processor cannot be told to fault on it, RDTSC as on
an SGX2 processor, far transfers and segment loads with good selectors.
"""

from __future__ import annotations

_PREFIXES = bytes([0x66, 0x67, 0xF0, 0xF2, 0xF3, 0x2E, 0x36, 0x3E, 0x26, 0x64, 0x65])
_REX = range(0x40, 0x50)
_ONE_BYTE = {
    0xE4, 0xE5, 0xE6, 0xE7, 0xEC, 0xED, 0xEE, 0xEF,  # IN, OUT
    0x6C, 0x6D, 0x6E, 0x6F,  # INS, OUTS
    0xCD, 0xCF,  # INT n, IRET
    0xCA, 0xCB,  # far RET
    0x8E,  # MOV to a segment register
}  # fmt: skip
_TWO_BYTE = {
    0x33, 0x34, 0x37, 0xA2,  # RDPMC, SYSENTER, GETSEC, CPUID
    0xA1, 0xA9, 0xB2, 0xB4, 0xB5,  # POP FS, POP GS, LSS, LFS, LGS
}  # fmt: skip
_FAR = (3, 5)  # reg field of FF: far CALL, far JMP
_TABLES = {0x00: (0, 1), 0x01: (0, 1, 4)}  # SLDT, STR; SGDT, SIDT, SMSW


def illegal_inside(code: bytes) -> bool:
    """Whether the instruction that ``code`` begins with is one of them.

    >>> illegal_inside(bytes.fromhex("e480")), illegal_inside(bytes.fromhex("8a00"))
    (True, False)
    """
    rest = code.lstrip(_PREFIXES)
    if rest and rest[0] in _REX:
        rest = rest[1:]
    if not rest:
        return False
    if rest[0] == 0x0F:
        second, modrm = rest[1:2], rest[2:3]
        if not second:
            return False
        wanted = _TABLES.get(second[0], ()) if modrm else ()
        return second[0] in _TWO_BYTE or (bool(modrm) and modrm[0] >> 3 & 7 in wanted)
    if rest[0] == 0xFF:
        return len(rest) > 1 and rest[1] >> 3 & 7 in _FAR
    return rest[0] in _ONE_BYTE
