"""Instructions that are #UD inside an enclave."""

from __future__ import annotations

import pytest

from epcgroup.live.enclave.illegal import illegal_inside

ILLEGAL = {
    "in al, 0x80": "e480", "out dx, eax": "ef", "rep insb": "f36c", "outsd": "6f", "int 0x21": "cd21",
    "iretq": "48cf", "retfq": "48cb", "mov ds, eax": "8ed8", "rdpmc": "0f33", "sysenter": "0f34",
    "getsec": "0f37", "cpuid": "0fa2", "pop fs": "0fa1", "lss rax, [rdi]": "480fb207", "sgdt [rdi]": "0f0107",
    "sidt [rdi]": "0f010f", "smsw eax": "0f01e0", "sldt eax": "0f00c0", "call far [rdi]": "ff1f",
    "jmp far [rdi]": "48ff2f", "addr32 in al, dx": "67ec",
}  # fmt: skip
LEGAL = {
    "mov al, [rax]": "8a00", "push rbx": "53", "call rax": "ffd0", "jmp [rdi]": "ff27", "rdtsc": "0f31",
    "enclu": "0f01d7", "xgetbv": "0f01d0", "mov eax, ds": "8cd8", "ud2": "0f0b", "int3": "cc", "hlt": "f4",
    "nothing": "", "only prefixes": "6648", "cut short": "0f", "cut in the middle": "0f01", "cut ff": "ff",
}  # fmt: skip


@pytest.mark.parametrize("code", ILLEGAL.values(), ids=ILLEGAL)
def test_illegal(code: str) -> None:
    assert illegal_inside(bytes.fromhex(code))


@pytest.mark.parametrize("code", LEGAL.values(), ids=LEGAL)
def test_legal(code: str) -> None:
    assert not illegal_inside(bytes.fromhex(code))
