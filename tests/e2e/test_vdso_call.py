"""The enclave call in the vDSO: found every way, bound by the dynamic linker, and it works."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.e2e.mechanisms import (
    ILL,
    built,
    linkage,
    reading,
)
from tests.e2e.traced import Traced, compile_c

from epcgroup.live.enclave import enter_enclave, vdso
from epcgroup.live.tracing import inject, memory, ptrace

pytestmark = [pytest.mark.needs("x86-64", "gcc", "ptrace", "userfaultfd"), pytest.mark.timeout(240)]


def run_vdso_program(flags: tuple[str, ...], *args: str) -> list[str]:
    """find_vdso's lines; every ENCLU is answered: exit, exception, then two exits."""
    with reading() as (ours, theirs), Traced([built("find_vdso", *flags), *args], stdout=theirs) as child:
        child.to_exec()
        assert vdso.supported(child.pid)
        info = vdso.install(child.pid, child.injector)
        assert memory.read(child.pid, info.syscall_insn, 2) == inject.SYSCALL_INSN
        ptrace.cont(child.pid)
        entries = 0
        while child.run_until(lambda stop: stop == ILL):
            regs = ptrace.getregs(child.pid)
            assert (regs.rip, regs.rcx, regs.rbx) == (info.enclu, info.enclu, 0x123000)
            entries += 1
            if entries == 2:
                regs.rip, regs.rax = info.fixup, 2
                regs.rdi, regs.rsi, regs.rdx = 14, 0x8007, 0x5000
            else:
                regs.rip += len(enter_enclave.ENCLU_INSN)
                regs.rax = 4
                regs.rdi, regs.rsi, regs.rdx, regs.r8, regs.r9 = 11, 12, 13, 14, 15
                regs.rsp -= 200 if entries == 3 else 0  # the enclave leaves something on the stack
            ptrace.setregs(child.pid, regs)
            ptrace.cont(child.pid)
        assert child.status == 0
        return os.read(ours, 4096).decode().splitlines()


CALLS = [
    "bad leaf -22",
    "reserved -22",
    "exit 0 function 4",
    "exception 0 function 2 vector 14 code 32775 addr 5000",
    "handler 11 12 13 1 14 15 function 4 aligned 1",
    "handler 11 12 13 1 14 15 function 4 aligned 1",
    "handled -2 calls 2",
]


@linkage
def test_the_vdso_call_is_found_every_way_and_works(flags: tuple[str, ...]) -> None:
    """By PT_DYNAMIC, by section headers, by dlsym and by dlvsym; a static program has no dlsym."""
    assert run_vdso_program(flags) == ["found 1"] * 4 + CALLS


@linkage
def test_a_kernels_own_call_is_led_to_ours(flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Played with a function that every kernel's vDSO exports."""
    monkeypatch.setattr(vdso, "SYMBOL", b"__vdso_getcpu")
    assert run_vdso_program(flags, "__vdso_getcpu") == ["found 1"] * 4 + CALLS


def test_the_dynamic_linker_binds_the_call(tmp_path: Path) -> None:
    """A program may need linux-vdso.so.1 like any library, with a versioned symbol."""
    (tmp_path / "stub.c").write_text("int __vdso_sgx_enter_enclave(void) { return 0; }\n")
    (tmp_path / "stub.map").write_text("LINUX_2.6 { __vdso_sgx_enter_enclave; };\n")
    (tmp_path / "main.c").write_text(
        "extern int __vdso_sgx_enter_enclave(void) __attribute__((weak));\n"
        "int main(void) { return __vdso_sgx_enter_enclave ? 42 : 1; }\n"
    )
    library = tmp_path / "linux-vdso.so.1"
    compile_c(
        tmp_path / "stub.c", library, "-shared", "-Wl,-soname,linux-vdso.so.1",
        f"-Wl,--version-script={tmp_path / 'stub.map'}",
    )  # fmt: skip
    program = compile_c(tmp_path / "main.c", tmp_path / "main", "-fPIC", "-Wl,--no-as-needed", str(library))
    with Traced([str(program)]) as child:
        child.to_exec()
        vdso.install(child.pid, child.injector)
        assert child.finish() == 42
