"""The length of an x86-64 instruction.

Looking for the two bytes of CPUID finds jump displacements and constants too.
To know which pair of bytes is an instruction, the code before it must be read
instruction by instruction, for which lengths suffice:

    prefixes, REX | VEX | EVEX | XOP, opcode, ModRM, SIB, displacement, immediate

Only four facts per opcode matter: is there a ModRM byte, and how many immediate
bytes follow. They are written below as ranges, one line per fact (SDM volume 2,
appendix A; AMD64 manual volume 3, appendix A for XOP, SSE4a and 3DNow!).
"""

from __future__ import annotations

_MODRM = 0x10  # flag: a ModRM byte follows
_INVALID = 0x20
# Immediates (low four bits of a table entry).
_NONE, _IB, _IW, _IZ, _IV, _MOFFS, _IW_IB, _REL32, _GROUP3, _IB_IB = range(10)


def _opcodes(text: str) -> set[int]:
    """``"00-03 0f"`` → {0, 1, 2, 3, 15}."""
    found: set[int] = set()
    for word in text.split():
        low, _, high = word.partition("-")
        found.update(range(int(low, 16), int(high or low, 16) + 1))
    return found


def _table(modrm: str, immediates: dict[int, str], invalid: str = "") -> bytes:
    entries = bytearray(256)
    for opcode in _opcodes(modrm):
        entries[opcode] |= _MODRM
    for kind, text in immediates.items():
        for opcode in _opcodes(text):
            entries[opcode] |= kind
    for opcode in _opcodes(invalid):
        entries[opcode] = _INVALID
    return bytes(entries)


_ONE_BYTE = _table(
    "00-03 08-0b 10-13 18-1b 20-23 28-2b 30-33 38-3b 63 69 6b 80-81 83-8f "
    "c0-c1 c6-c7 d0-d3 d8-df f6-f7 fe-ff",
    {
        _IB: "04 0c 14 1c 24 2c 34 3c 6a 6b 70-7f 80 83 a8 b0-b7 c0-c1 c6 cd e0-e7 eb",
        _IW: "c2 ca",
        _IZ: "05 0d 15 1d 25 2d 35 3d 68 69 81 a9 c7",
        _IV: "b8-bf",
        _MOFFS: "a0-a3",
        _IW_IB: "c8",
        _REL32: "e8 e9",
        _GROUP3: "f6 f7",
    },
    "06-07 0e 16-17 1e-1f 27 2f 37 3f 60-61 82 9a ce d4-d6 ea",
)
_0F = _table(
    "00-03 0d 0f-23 28-2f 40-76 78-7f 90-9f a3-a5 ab-af b0-c7 d0-ff",
    {_IB: "0f 70-73 a4 ac ba c2 c4-c6", _REL32: "80-8f"},
    "04 0a 0c 24-27 36 39 3b-3f 7a-7b a6-a7",
)
_0F38 = _table("00-ff", {})
_0F3A = _table("00-ff", {_IB: "00-ff"})
# VEX and EVEX have other numbers of operands, but the same immediates.
_VEX_0F = _table("00-76 78-ff", {_IB: "70-73 c2 c4-c6"})
_VEX = {1: _VEX_0F, 2: _0F38, 3: _0F3A}
_EVEX = {1: _VEX_0F, 2: _0F38, 3: _0F3A, 5: _0F38, 6: _0F38}
_XOP = {8: _0F3A, 9: _0F38, 10: _table("00-ff", {_IZ: "00-ff"})}

_PREFIXES = frozenset(b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3")
_LONGEST = 15


def length(code: bytes, at: int = 0) -> int:
    """Bytes of the instruction at ``code[at]``; 0 if there is none.

    >>> length(bytes.fromhex("0fa2")), length(bytes.fromhex("e90fa2ffff")), length(b"\\x06")
    (2, 5, 0)
    """
    try:
        size = _length(code, at)
    except IndexError:
        return 0
    return size if size <= _LONGEST and at + size <= len(code) else 0


def _length(code: bytes, start: int) -> int:
    at = start
    operand16 = address32 = rex_w = False
    opcode = code[at]
    while opcode in _PREFIXES:
        operand16 |= opcode == 0x66
        address32 |= opcode == 0x67
        at += 1
        opcode = code[at]
    repeated = code[start:at]
    if opcode & 0xF0 == 0x40:
        rex_w = bool(opcode & 8)
        at += 1
        opcode = code[at]
    at += 1

    table: bytes | None = _ONE_BYTE
    if opcode == 0x0F:
        opcode = code[at]
        at += 1
        table = _0F
        if opcode in (0x38, 0x3A):
            table = _0F38 if opcode == 0x38 else _0F3A
            opcode = code[at]
            at += 1
    elif opcode == 0xC5:
        table, opcode = _VEX_0F, code[at + 1]
        at += 2
    elif opcode == 0xC4:
        table, opcode = _VEX.get(code[at] & 0x1F), code[at + 2]
        at += 3
    elif opcode == 0x62:
        table, opcode = _EVEX.get(code[at] & 7), code[at + 3]
        at += 4
    elif opcode == 0x8F and code[at] & 0x1F >= 8:
        table, opcode = _XOP.get(code[at] & 0x1F), code[at + 2]
        at += 3
    if table is None:
        return 0
    entry = table[opcode]
    if entry & _INVALID:
        return 0
    kind = entry & 0xF
    if entry & _MODRM:
        modrm = code[at]
        if table is _0F:
            if 0x20 <= opcode <= 0x23:
                modrm |= 0xC0  # control and debug registers: never memory
            elif opcode == 0x78 and (b"\x66" in repeated or b"\xf2" in repeated):
                kind = _IB_IB  # EXTRQ, INSERTQ
        if kind == _GROUP3:
            kind = (_IB if opcode == 0xF6 else _IZ) if modrm & 0x30 == 0 else _NONE
        at += 1 + _address(code, at, modrm)
    return at - start + _immediate(kind, operand16, address32, rex_w)


def _address(code: bytes, at: int, modrm: int) -> int:
    """Bytes of SIB and displacement behind the ModRM byte at ``code[at]``."""
    mod, rm = modrm >> 6, modrm & 7
    if mod == 3:
        return 0
    size = (0, 1, 4)[mod]
    if rm == 4:
        if mod == 0 and code[at + 1] & 7 == 5:
            size = 4
        return size + 1
    return 4 if mod == 0 and rm == 5 else size


def _immediate(kind: int, operand16: bool, address32: bool, rex_w: bool) -> int:
    if kind == _IZ:
        return 2 if operand16 and not rex_w else 4
    if kind == _IV:
        return 8 if rex_w else 2 if operand16 else 4
    if kind == _MOFFS:
        return 4 if address32 else 8
    return (0, 1, 2, 0, 0, 0, 3, 4, 0, 2)[kind]
