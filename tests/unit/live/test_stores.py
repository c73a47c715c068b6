"""The W bit of a page fault, told from the instruction that faulted."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from epcgroup.live.paging.stores import writes_memory

STORES = [
    "mov %rax, (%rbx)", "movb $1, (%rbx)", "mov %r9d, 8(%r12,%r13,4)", "add %rax, (%rbx)", "lock incl (%rbx)",
    "lock cmpxchg %rcx, (%rbx)", "xchg %rax, (%rbx)", "push %rax", "push %r15", "call *%rax", "stosb",
    "rep movsb", "movups %xmm0, (%rbx)", "movaps %xmm9, (%r9)", "vmovdqu %ymm1, (%rbx)",
    "vmovups %ymm1, (%r11)", "sete (%rbx)", "xadd %rax, (%rbx)", "notq (%rbx)", "movnti %rax, (%rbx)",
    "shll $3, (%rbx)", "andl $1, (%rbx)", "popq (%rbx)",
]  # fmt: skip
LOADS = [
    "mov (%rbx), %rax", "movzbl (%rbx), %eax", "cmpl $1, (%rbx)", "cmp %rax, (%rbx)", "test %al, (%rbx)",
    "add (%rbx), %rax", "movups (%rbx), %xmm0", "vmovdqu (%rbx), %ymm1", "lodsb", "pop %rax", "ret",
    "jmp *(%rbx)", "imul (%rbx), %rax", "mulq (%rbx)", "add %rax, %rbx", "inc %eax",
]  # fmt: skip


def assemble(tmp_path: Path, instructions: list[str]) -> list[bytes]:
    """The machine code of each instruction, by the real assembler."""
    assert shutil.which("as"), "binutils (as, objcopy) are needed"
    source, obj, raw = tmp_path / "x.s", tmp_path / "x.o", tmp_path / "x.bin"
    source.write_text("".join(f"\t.p2align 4\n\t{line}\n" for line in instructions) + "\t.p2align 4\n")
    subprocess.run(["as", "-o", obj, source], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", obj, raw], check=True)
    code = raw.read_bytes()
    return [code[16 * n : 16 * n + 16] for n in range(len(instructions))]


@pytest.mark.parametrize(
    ("instructions", "answer"), [(STORES, True), (LOADS, False)], ids=["stores", "loads"]
)
def test_what_the_assembler_makes_is_told_apart(
    tmp_path: Path, instructions: list[str], answer: bool
) -> None:
    wrong = [
        line
        for line, code in zip(instructions, assemble(tmp_path, instructions), strict=True)
        if writes_memory(code) is not answer
    ]
    assert not wrong
