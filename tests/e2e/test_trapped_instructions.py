"""Instructions that come to us: SYSCALL in enclave memory, CPUID of programs and libraries."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from tests.e2e.mechanisms import (
    ILL,
    PAGE,
    SYS_GETPID,
    SYS_MMAP,
    built,
    linkage,
    reading,
)
from tests.e2e.traced import Traced

from epcgroup.live.enclave import cpuid, traps
from epcgroup.live.tracing import memory, ptrace, seccomp

pytestmark = [pytest.mark.needs("x86-64", "gcc", "ptrace", "userfaultfd"), pytest.mark.timeout(240)]


def test_a_system_call_from_enclave_memory_stops() -> None:
    with Traced(["/bin/true"]) as child:
        child.to_exec()
        addr = child.inject(SYS_MMAP, 0, 4 * PAGE, 5, 0x22, -1, 0)
        program = seccomp.enclave_filter(addr, PAGE)
        memory.poke_text(child.pid, addr + PAGE, seccomp.image(program, addr + PAGE))
        flags = seccomp.FILTER_FLAG_TSYNC
        assert child.inject(seccomp.SYS["seccomp"], seccomp.SET_MODE_FILTER, flags, addr + PAGE) == 0

        code = bytes.fromhex("b8 27000000 0f05 cc")  # getpid, int3
        for place, stops in ((addr, True), (addr + 2 * PAGE, False)):
            memory.poke_text(child.pid, place, code)
            regs = ptrace.getregs(child.pid)
            regs.rip, regs.orig_rax = place, ptrace.NO_SYSCALL
            ptrace.setregs(child.pid, regs)
            ptrace.cont(child.pid)
            stop = child.wait()
            if stops:
                assert stop == (signal.SIGTRAP, ptrace.EVENT_SECCOMP)
                regs = ptrace.getregs(child.pid)
                assert (regs.orig_rax, regs.rip - 2) == (SYS_GETPID, place + 5)
                ptrace.cont(child.pid)
                stop = child.wait()
            assert stop == (signal.SIGTRAP, 0)
            assert ptrace.getregs(child.pid).rax == child.pid


def run_cpuid_program(argv: list[str], trap: bytes) -> str:
    """Its output, with every CPUID of program, dynamic linker and libraries answered."""
    program = seccomp.base_filter(private=True, int80=True)
    with reading() as (ours, theirs), Traced(argv, stdout=theirs, program=program) as child:
        child.to_exec()
        sites = dict(traps.patch(child.pid, trap))
        ptrace.cont(child.pid)
        while (stop := child.wait()) is not None:
            seccomp_stop = stop[1] == ptrace.EVENT_SECCOMP
            regs = ptrace.getregs(child.pid)
            at = regs.rip - 2 if seccomp_stop else regs.rip
            if (seccomp_stop or stop == ILL) and at in sites:
                leaf = (regs.orig_rax if seccomp_stop else regs.rax) & 0xFFFFFFFF
                regs.rax, regs.rbx, regs.rcx, regs.rdx = cpuid.execute(
                    leaf, regs.rcx & 0xFFFFFFFF, [64 << 20]
                )
                regs.rip, regs.orig_rax = at + 2, ptrace.NO_SYSCALL
                ptrace.setregs(child.pid, regs)
            elif seccomp_stop and regs.orig_rax == SYS_MMAP and regs.rdx & 4:
                ptrace.syscall(child.pid)
                assert child.wait() == (ptrace.SYSCALL_STOP, 0)
                addr = ptrace.getregs(child.pid).rax
                sites.update(traps.patch_library(child.pid, regs.r8, addr, regs.rsi, regs.r9, trap))
            elif stop == ILL:
                pytest.fail(f"SIGILL at {regs.rip:#x}")
            child.go_on((0, 1))
        assert child.status == 0
        return os.read(ours, 4096).decode()


@linkage
@pytest.mark.parametrize("trap", [traps.UD2, traps.INT80], ids=["ud2", "int80"])
def test_cpuid_of_a_program_is_answered(flags: tuple[str, ...], trap: bytes) -> None:
    assert run_cpuid_program([built("ask_cpuid", *flags)], trap) == "1 40 4000001 0 library -1\n"


def test_cpuid_of_a_library_is_answered() -> None:
    library = built("ask_cpuid", "-DLIBRARY", "-shared", "-fPIC", output="libask.so")
    rpath = f"-Wl,-rpath,{Path(library).parent}"
    program = built("ask_cpuid", "-DWITH_LIBRARY", library, rpath, output="ask_with_library")
    assert run_cpuid_program([program], traps.INT80) == "1 40 4000001 0 library 1\n"
