"""Whether an instruction writes memory: the W bit of a page-fault error code.

ptrace does not show the error code of a fault. For a fault that userfaultfd did
not report (a hole in the mappings, a mapping without permissions) the answer
must come from the instruction itself. Covered are the instructions that
compilers emit for stores; read-modify-write counts as a write, as it does for
the processor. Anything unknown counts as a read.

Rejected: letting the kernel build a signal frame, which has the code. It would
be written onto the enclave's stack.
"""

from __future__ import annotations

_PREFIXES = bytes([0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3])
# One-byte opcodes whose memory operand, if any, is the destination.
_ALU_TO_MEMORY = {base | form for base in range(0, 0x38, 8) for form in (0, 1)}
_TO_MEMORY = _ALU_TO_MEMORY | {
    0x86,
    0x87,
    0x88,
    0x89,
    0x8C,
    0xC6,
    0xC7,
    0x8F,
    *range(0xC0, 0xC2),
    *range(0xD0, 0xD4),
}
_IMPLICIT = {0xA4, 0xA5, 0xAA, 0xAB, 0xE8, *range(0x50, 0x58), 0x68, 0x6A, 0x9C, 0xC8, 0xA2, 0xA3}
# Groups: the reg field of ModRM decides.
_GROUPS = {
    0x80: range(7), 0x81: range(7), 0x83: range(7),  # ADD … XOR, not CMP
    0xF6: (2, 3), 0xF7: (2, 3),  # NOT, NEG
    0xFE: (0, 1), 0xFF: (0, 1),  # INC, DEC
}  # fmt: skip
# Behind 0F: SSE stores, SETcc, CMPXCHG, XADD, shifts by count, bit tests that change.
_TWO_BYTE = {
    0x11, 0x13, 0x17, 0x29, 0x2B, 0x7E, 0x7F, 0xD6, 0xE7, *range(0x90, 0xA0), 0xA4, 0xA5, 0xAB, 0xAC, 0xAD,
    0xB0, 0xB1, 0xB3, 0xBB, 0xC0, 0xC1, 0xC3, 0xC7,
}  # fmt: skip
_VEX_STORES = {0x11, 0x13, 0x17, 0x29, 0x2B, 0x7E, 0x7F, 0xD6, 0xE7}


def writes_memory(code: bytes) -> bool:
    """Whether the instruction that ``code`` begins with may store to memory.

    >>> writes_memory(bytes.fromhex("488903")), writes_memory(bytes.fromhex("488b03"))
    (True, False)
    """
    at = 0
    while at < len(code) and code[at] in _PREFIXES:
        at += 1
    if at < len(code) and 0x40 <= code[at] < 0x50:
        at += 1
    rest = code[at : at + 5]
    if len(rest) < 2:
        return False
    opcode, following = rest[0], rest[1]
    if opcode == 0x0F:
        return following in _TWO_BYTE
    if opcode in (0xC4, 0xC5, 0x62):
        skip = {0xC5: 2, 0xC4: 3, 0x62: 4}[opcode]
        return len(rest) > skip and rest[skip] in _VEX_STORES
    if opcode in _IMPLICIT:
        return True
    if opcode in _GROUPS:
        number = following >> 3 & 7
        if opcode == 0xFF and number in (2, 3, 6):
            return True  # CALL and PUSH store to the stack
        return number in _GROUPS[opcode] and following < 0xC0
    return opcode in _TO_MEMORY and following < 0xC0
