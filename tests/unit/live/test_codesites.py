from __future__ import annotations

import functools
import os
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epcgroup.live.enclave import codesites

pytestmark = pytest.mark.needs("x86-64", "gcc")

CPUID = b"\x0f\xa2"
MARK = b"\x90" * 11  # before each CPUID that is code

# Each CPUID that counts stands behind a row of NOPs; the others are bait.
SOURCE = r"""
#define NOPS ".rept 11\n nop\n .endr\n"
int plain(int leaf)
{
    unsigned a = leaf, b, c = 0, d;
    __asm__ volatile(NOPS "cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    return a + b + c + d;
}
int bait(int x)
{
    __asm__ volatile("movl $0xa20f, %%eax\n movl $0x00a20f00, %%ecx\n .byte 0xe9, 0x0f, 0xa2, 0, 0\n"
        ".skip 0xa20f, 0x90" ::: "eax", "ecx");
    return x;
}
__asm__(".text\n"
    ".type table, @object\n table: .byte 1, 2, 0x0f, 0xa2, 4, 5, 6, 7\n .size table, .-table\n"
    ".balign 16\n"
    "without_unwind_table: push %rbx\n mov %edi, %eax\n xor %ecx, %ecx\n" NOPS "cpuid\n"
    "mov %eax, (%rsi)\n mov %ebx, 4(%rsi)\n pop %rbx\n ret\n"
    ".balign 16, 0x90\n"
    ".byte 0xd6, 0x0c, 0x84, 0x6d, 0x98, 0x4f, 0x1c, 0xdb, 0x70, 0x4b, 0x0f, 0xa2, 0x93, 0x67, 0x5b, 0x98,"
    "0xa8, 0xef, 0x61, 0xd7, 0xe4, 0x01, 0xfa, 0xf4\n"
    ".balign 16, 0x90\n .skip 256, 0x90\n");
int main(int argc, char **argv)
{
    return plain(argc) + bait(argc);
}
"""


@functools.cache
def program(*flags: str) -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        source, target = Path(directory, "a.c"), Path(directory, "a")
        source.write_text(SOURCE)
        subprocess.run(["gcc", "-O1", *flags, "-o", target, source], check=True, timeout=60)
        return target.read_bytes()


def marked(data: bytes) -> list[int]:
    places, at = [], data.find(MARK + CPUID)
    while at >= 0:
        places.append(at + len(MARK))
        at = data.find(MARK + CPUID, at + 1)
    return places


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("-s",),
        ("-no-pie",),
        ("-fno-asynchronous-unwind-tables", "-nostartfiles", "-Wl,-e,main"),
        ("-s", "-fno-asynchronous-unwind-tables", "-nostartfiles", "-static", "-Wl,-e,main"),
    ],
    ids=["usual", "stripped", "fixed address", "symbols only", "nothing known"],
)
def test_finds_instructions_and_no_bait(flags: tuple[str, ...]) -> None:
    data = program(*flags)
    assert len(marked(data)) == 2
    assert data.count(CPUID) >= 6
    assert codesites.find(data, CPUID) == marked(data)


@settings(max_examples=200)
@given(st.data())
def test_a_damaged_file_is_no_error(draw: st.DataObject) -> None:
    """A program can map any file as code."""
    data = bytearray(program("-s"))
    for at in draw.draw(st.lists(st.integers(0, 1200), max_size=6)):
        data[at] = draw.draw(st.integers(0, 255))
    end = draw.draw(st.sampled_from([len(data), 64, 100, 1000, len(data) // 2]))
    codesites.find(bytes(data[:end]), CPUID)


@pytest.mark.parametrize("data", [b"", b"#!/bin/sh\n", b"\x7fELF", b"\x7fELF\x01\x01" + bytes(200)])
def test_other_files_have_none(data: bytes) -> None:
    assert codesites.find(data, CPUID) == []


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for data, count in ((program(), 2), (b"", 0), (program("-s"), 2)):
        path.unlink(missing_ok=True)
        path.write_bytes(data)
        fd = os.open(path, os.O_RDONLY)
        try:
            for _ in range(2):
                assert len(codesites.find_in_file(fd, CPUID)) == count
        finally:
            os.close(fd)
