"""Where code executes ENCLU in a way that a jump can stand in for.

ENCLU has three bytes, a jump that reaches code of ours five. So what is replaced
is the instruction that says which leaf, if it comes shortly before:

    mov $2, %eax ; enclu                                  (Gramine, Intel's urts)
    mov $4, %rax ; xor %rcx, %rcx ; … ; add %rdx, %rdx ; enclu   (Intel's trts)
    lea aep(%rip), %rcx ; enclu                           (host code)

One whole instruction becomes the jump; the harmless ones that follow it are
repeated in the stub, and the ENCLU itself stays, so code that jumps to any of
them still does what it did. Harmless: between registers, on constants, without
memory, stack or RAX.

Rejected: to replace as many short instructions as a jump needs (code may jump
into the middle); `jmp *%rax` in the place of ENCLU, to code on page zero (needs
vm.mmap_min_addr=0, and a null pointer would be code).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from epcgroup.live.enclave.codesites import arrives
from epcgroup.live.enclave.insnlen import length

if TYPE_CHECKING:
    from collections.abc import Iterator

ENCLU = b"\x0f\x01\xd7"
LOOK_BACK = 96  # bytes; from the leaf to the ENCLU
# MOV, XOR, ADD, SUB, AND, OR, TEST between registers.
_BETWEEN_REGISTERS = frozenset(bytes.fromhex("88898a8b30313233000102032829 2a2b20212223 08090a0b 8485"))
_LEA_AEP = b"\x48\x8d\x0d"  # lea disp32(%rip), %rcx


@dataclass(frozen=True, slots=True)
class Site:
    """An ENCLU at offset ``enclu``, and the instruction at ``[at, at + length)`` that a jump can replace."""

    at: int
    length: int
    enclu: int


def with_leaf(code: bytes, leaf: int) -> Iterator[Site]:
    """Places where ENCLU is executed with a constant ``leaf``."""
    movs = (b"\xb8" + leaf.to_bytes(4, "little"), b"\x48\xc7\xc0" + leaf.to_bytes(4, "little"))
    at = code.find(ENCLU)
    while at >= 0:
        site = _leaf_before(code, at, movs)
        if site is not None:
            yield site
        at = code.find(ENCLU, at + 1)


def before(code: bytes, enclu: int, leaf: int) -> Site | None:
    """The replaceable instruction before the ENCLU at offset ``enclu`` of host code."""
    movs = (b"\xb8" + leaf.to_bytes(4, "little"), b"\x48\xc7\xc0" + leaf.to_bytes(4, "little"))
    return _leaf_before(code, enclu, movs) or _leaf_before(code, enclu, (_LEA_AEP,), 4)


def _leaf_before(code: bytes, enclu: int, heads: tuple[bytes, ...], more: int = 0) -> Site | None:
    for head in heads:
        at = code.rfind(head, max(enclu - LOOK_BACK, 0), enclu)
        size = len(head) + more
        if at >= 0 and at + size <= enclu and _harmless(code[at + size : enclu]) and arrives(code, at):
            return Site(at, size, enclu)
    return None


def _harmless(code: bytes) -> bool:
    """Whether all of ``code`` can be executed anywhere else, and leaves RAX alone."""
    at = 0
    while at < len(code):
        size = length(code, at)
        if not size or at + size > len(code) or not _is_harmless(code[at : at + size]):
            return False
        at += size
    return True


def _is_harmless(insn: bytes) -> bool:
    if insn.startswith(_LEA_AEP):
        return True
    rex = insn[0] if 0x40 <= insn[0] < 0x50 else 0
    opcode, *rest = insn[1:] if rex else insn
    if 0xB8 <= opcode < 0xC0:  # mov constant, register
        return opcode != 0xB8 or bool(rex & 1)
    if opcode not in _BETWEEN_REGISTERS or not rest or rest[0] < 0xC0:
        return False
    first = rest[0] >> 3 & 7 | (rex & 4) << 1
    second = rest[0] & 7 | (rex & 1) << 3
    return 0 not in (first, second)


def moved(code: bytes, old: int) -> bytes:
    """``code``, which stood at address ``old``, so that it does the same anywhere."""
    parts, at = [], 0
    while at < len(code):
        size = length(code, at)
        insn = code[at : at + size]
        if insn.startswith(_LEA_AEP):
            target = old + at + size + int.from_bytes(insn[3:], "little", signed=True)
            insn = b"\x48\xb9" + (target & 2**64 - 1).to_bytes(8, "little")  # mov $target, %rcx
        parts.append(insn)
        at += size
    return b"".join(parts)
