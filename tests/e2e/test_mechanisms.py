"""The mechanisms of room live, each on a real process of its own.

What the supervisor builds from them is tested elsewhere; a failure here says
which piece of the ground gave way.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import select
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from tests.e2e.traced import Traced, compile_c

from epcgroup.live.enclave import cpuid, enter_enclave, traps, vdso
from epcgroup.live.paging import pagemap, uffd
from epcgroup.live.tracing import inject, memory, procfs, ptrace, seccomp

pytestmark = [pytest.mark.needs("x86-64", "gcc", "ptrace", "userfaultfd"), pytest.mark.timeout(240)]

PROGRAMS = Path(__file__).parent / "programs"
PAGE = 4096
SYS_GETPID, SYS_PAUSE, SYS_MMAP, SYS_OPENAT = 39, 34, 9, 257
ILL = (signal.SIGILL, 0)


def readable(fd: int) -> bool:
    """Whether an event waits; a blocking userfaultfd would answer poll(2) with POLLERR."""
    os.set_blocking(fd, False)
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return any(events & select.POLLIN for _, events in poll.poll(0))
    finally:
        os.set_blocking(fd, True)


def fill(fd: int, addr: int, contents: bytes, mode: int = 0) -> None:
    """Bring a missing page."""
    buffer = uffd.PageBuffer()
    buffer.view[:] = contents
    uffd.copy(fd, addr, buffer.address, PAGE, mode)


linkage = pytest.mark.parametrize("flags", [(), ("-static", "-DSTATIC")], ids=["dynamic", "static"])


@functools.cache
def _directory() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="epcgroup-mechanisms-")


@functools.cache
def built(name: str, *flags: str, output: str = "") -> str:
    """Path of a compiled program."""
    target = Path(_directory().name, output or name + "".join(flags).replace("/", "_"))
    return str(compile_c(PROGRAMS / f"{name}.c", target, *flags))


@contextmanager
def reading() -> Iterator[tuple[int, int]]:
    """A pipe: (end to read, end to give to a child)."""
    ours, theirs = os.pipe()
    try:
        yield ours, theirs
    finally:
        os.close(ours)
        os.close(theirs)


# ---- injection ---------------------------------------------------------------


def test_a_call_is_injected_at_an_exec_before_anything_runs() -> None:
    with Traced(["/bin/true"]) as child:
        assert child.run_until(lambda stop: stop[1] == ptrace.EVENT_EXEC)
        before = ptrace.getregs(child.pid)
        addr = child.inject(SYS_MMAP, 0, 2 * PAGE, 3, 0x22, -1, 0)
        memory.write(child.pid, addr, b"here")
        assert memory.read(child.pid, addr, 4) == b"here"
        after = ptrace.getregs(child.pid)
        assert (after.rip, after.rsp, after.rax) == (before.rip, before.rsp, 0)
        assert child.finish() == 0


def test_a_failed_injected_call_is_an_error_with_its_errno() -> None:
    with Traced(["/bin/true"]) as child:
        child.to_exec()
        with pytest.raises(OSError, match="injected into thread") as error:
            child.inject(SYS_MMAP, 1, PAGE, 3, 0x32, -1, 0)
        assert error.value.errno == errno.EINVAL
        assert child.finish() == 0


def test_at_a_seccomp_stop_the_programs_call_is_skipped_first() -> None:
    """So the supervisor can make it itself, with other arguments, and give its own answer."""
    with reading() as (ours, theirs), Traced(["/bin/cat", "/nonexistent"], stdout=theirs) as child:
        while memory.read_cstring(child.pid, child.at_syscall(SYS_OPENAT).rsi) != b"/nonexistent":
            ptrace.cont(child.pid)
        regs = ptrace.getregs(child.pid)
        memory.write(child.pid, regs.rsi, b"/proc/uptime")
        fd = child.inject(SYS_OPENAT, regs.rdi, regs.rsi, 0)
        after = ptrace.getregs(child.pid)
        assert (after.rip, after.rdi, after.rsi) == (regs.rip, regs.rdi, regs.rsi)
        after.rax = fd
        ptrace.setregs(child.pid, after)
        assert child.finish() == 0
        assert b"." in os.read(ours, 100)


def test_a_call_is_emulated_in_one_stop() -> None:
    with Traced(["/bin/cat", "/dev/null"]) as child:
        while memory.read_cstring(child.pid, child.at_syscall(SYS_OPENAT).rsi) != b"/dev/null":
            ptrace.cont(child.pid)
        regs = ptrace.getregs(child.pid)
        regs.orig_rax, regs.rax = ptrace.NO_SYSCALL, -errno.EACCES % 2**64
        ptrace.setregs(child.pid, regs)
        assert child.finish() == 1


def to_sleep(child: Traced, ours: int) -> None:
    """Run sleeper.c until it sleeps."""
    assert child.run_until(lambda stop: stop[1] == ptrace.EVENT_EXEC)
    ptrace.cont(child.pid)
    os.set_blocking(ours, False)
    while True:
        with suppress(BlockingIOError):
            assert os.read(ours, 6) == b"ready\n"
            break
        if (stop := ptrace.wait_any()) is not None:
            child.go_on(ptrace.stop_of(stop[1]))
    while procfs.status(child.pid)["State"][0] != "S":
        time.sleep(0.001)


def test_an_interrupted_sleep_goes_on_after_an_injection() -> None:
    """One that began again would end 1.6 s late each time; a busy machine is not that late three times."""
    late = 0
    while late < 3:
        with reading() as (ours, theirs), Traced([built("sleeper"), "2"], stdout=theirs) as child:
            to_sleep(child, ours)
            started = time.monotonic()
            time.sleep(1.6)
            child.stop()
            assert child.inject(SYS_GETPID) == child.pid
            assert child.finish() == 0
            slept = time.monotonic() - started
            assert os.read(ours, 200) == b"slept 0\n"
        assert slept > 1.95, "it slept too short"
        if slept < 3.5:
            return
        late += 1
    pytest.fail("it began again")


def test_a_signal_that_comes_during_an_injection_is_delivered_once_as_it_was_sent() -> None:
    with reading() as (ours, theirs), Traced([built("sleeper")], stdout=theirs) as child:
        to_sleep(child, ours)
        child.stop()
        _queue(child.pid, signal.SIGUSR1, 4711)
        assert child.inject(SYS_GETPID) == child.pid
        ptrace.cont(child.pid)
        assert child.run_until(lambda stop: stop == (signal.SIGUSR1, 0))
        assert child.injector.restore_siginfo(child.pid, signal.SIGUSR1)
        ptrace.cont(child.pid, signal.SIGUSR1)
        assert child.run_until(lambda stop: stop == (signal.SIGUSR1, 0)) is None, "it came twice"
        assert os.read(ours, 200).splitlines()[0] == b"signal %d code -1 value 4711" % signal.SIGUSR1


def _queue(pid: int, sig: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.sigqueue(pid, sig, ctypes.c_void_p(value)) == 0


def test_a_thread_killed_during_an_injected_call_is_reported() -> None:
    with Traced(["/bin/true"]) as child:
        child.to_exec()
        threading.Timer(0.05, os.kill, (child.pid, signal.SIGKILL)).start()
        with pytest.raises(ProcessLookupError):
            child.inject(SYS_PAUSE)
        assert child.injector.events, "the supervisor must still see its last stop"
        assert child.run_until(lambda _: False) is None
        assert child.status is not None
        assert os.waitstatus_to_exitcode(child.status) == -signal.SIGKILL


def test_the_state_of_a_stopped_thread_can_be_changed() -> None:
    with Traced(["/bin/true"]) as child:
        child.to_exec()
        xstate = bytearray(ptrace.get_xstate(child.pid))
        xstate[160:176] = b"sixteen bytes xx"  # XMM0
        xstate[512] |= 2  # XSTATE_BV: SSE is in use
        ptrace.set_xstate(child.pid, xstate)
        assert ptrace.get_xstate(child.pid)[160:176] == b"sixteen bytes xx"
        ptrace.setsigmask(child.pid, 1 << (signal.SIGUSR2 - 1))
        assert ptrace.getsigmask(child.pid) == 1 << (signal.SIGUSR2 - 1)
        regs = ptrace.getregs(child.pid)
        regs.fs_base, regs.r12 = 0x1234000, 77
        ptrace.setregs(child.pid, regs)
        assert ptrace.getregs(child.pid).fs_base == 0x1234000
        with pytest.raises(ProcessLookupError):
            ptrace.getregs(os.getppid())
        assert child.finish() == 0


# ---- filters -----------------------------------------------------------------


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


# ---- page faults and page tables ---------------------------------------------


class Touched:
    """touch.c with its mapping registered; faults are answered as the test says."""

    def __init__(self, child: Traced, commands: int, answers: int, memfd: int, pages: int) -> None:
        self.child, self.memfd, self.pages = child, memfd, pages
        self._commands, self._answers = commands, answers
        while (regs := child.at_syscall(SYS_MMAP)).r8 != memfd:
            ptrace.cont(child.pid)
        self.base = child.inject(SYS_MMAP, 0, pages * PAGE, 3, 1, memfd, 0)
        regs = ptrace.getregs(child.pid)
        regs.rax = self.base
        ptrace.setregs(child.pid, regs)
        insn = inject.find_syscall_insn(child.pid)
        self.uffd, self.kernel_faults = uffd.create_in(child.pid, child.injector, insn)
        uffd.register(self.uffd, self.base, pages * PAGE)
        self.pagemap = pagemap.open_pagemap(child.pid)
        self.pidfd = procfs.pidfd_open(child.pid)
        ptrace.cont(child.pid)

    def addr(self, page: int) -> int:
        return self.base + page * PAGE

    def command(self, op: str, page: int) -> None:
        os.write(self._commands, bytes([ord(op), page]))

    def answer(self) -> bytes:
        return os.read(self._answers, 1)

    def event(self) -> uffd.Event:
        (event,) = uffd.read_events(self.uffd)
        return event

    def young(self) -> list[int]:
        touched = pagemap.young(self.pagemap, [self.addr(n) for n in range(self.pages)])
        return [n for n in range(self.pages) if self.addr(n) in touched]

    def punch(self, page: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.fallocate(self.memfd, 3, ctypes.c_long(page * PAGE), ctypes.c_long(PAGE)) == 0

    def close(self) -> None:
        for fd in (self.uffd, self.pagemap, self.pidfd):
            os.close(fd)


@pytest.fixture
def touched() -> Iterator[Touched]:
    pages = 64
    memfd = os.memfd_create("touched", 0)
    os.ftruncate(memfd, pages * PAGE)
    commands_in, commands = os.pipe()
    answers, answers_in = os.pipe()
    with Traced([built("touch"), str(memfd), str(pages)], stdin=commands_in, stdout=answers_in) as child:
        it = Touched(child, commands, answers, memfd, pages)
        yield it
        it.close()
    for fd in (memfd, commands_in, commands, answers, answers_in):
        os.close(fd)


def test_a_missing_page_is_served_from_outside(touched: Touched) -> None:
    touched.command("r", 3)
    assert touched.event() == (uffd.EVENT_PAGEFAULT, 0, touched.addr(3), touched.child.pid)
    fill(touched.uffd, touched.addr(3), b"Q" * PAGE)
    assert touched.answer() == b"Q"
    buffer = uffd.PageBuffer()
    buffer.view[:1] = b"B"
    touched.command("w", 40)
    assert touched.event()[1] == uffd.FLAG_WRITE
    uffd.copy(touched.uffd, touched.addr(40), buffer.address)
    assert touched.answer() == b"w"
    with pytest.raises(FileExistsError):
        uffd.copy(touched.uffd, touched.addr(40), buffer.address)
    assert os.pread(touched.memfd, 1, 40 * PAGE) == b"w"


def test_a_protected_page_reports_writes_only(touched: Touched) -> None:
    fill(touched.uffd, touched.addr(5), b"P" * PAGE, uffd.COPY_WP)
    touched.command("r", 5)
    assert touched.answer() == b"P"
    touched.command("w", 5)
    assert touched.event()[1:3] == (uffd.FLAG_WRITE | uffd.FLAG_WP, touched.addr(5))
    assert not readable(touched.uffd)
    uffd.writeprotect(touched.uffd, touched.addr(5), PAGE, False)
    assert touched.answer() == b"w"


def test_the_marker_of_an_evicted_page_does_not_prevent_poison(touched: Touched) -> None:
    fill(touched.uffd, touched.addr(9), b"X" * PAGE)
    uffd.writeprotect(touched.uffd, touched.addr(9), PAGE, True)
    touched.punch(9)
    if not uffd.poison(touched.uffd, touched.addr(9)):
        assert not uffd.supported() & uffd.FEATURE_POISON
        return
    touched.command("r", 9)
    assert touched.child.wait() == (signal.SIGBUS, 0)


def test_a_pending_fault_waits_until_it_is_read(touched: Touched) -> None:
    assert not readable(touched.uffd)
    touched.command("r", 1)
    while not readable(touched.uffd):
        pass
    assert touched.event()[2] == touched.addr(1)
    fill(touched.uffd, touched.addr(1), b"1" * PAGE)
    assert touched.answer() == b"1"


def test_a_signal_ends_a_wait_for_events_once_another_file_is_in_its_place(touched: Touched) -> None:
    """Nothing else wakes a reader whose address space is gone: Python reads again after a signal."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    before = signal.signal(signal.SIGALRM, lambda *_: os.dup2(nothing, touched.uffd))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        assert uffd.read_events(touched.uffd) == []
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        os.close(nothing)


@pytest.mark.usefixtures("one_processor")
def test_exactly_the_touched_pages_are_young(touched: Touched) -> None:
    """The neighbours of a touched page are not mapped along with it, and reads count."""
    for page in range(touched.pages):
        os.pwrite(touched.memfd, b"d", page * PAGE)  # all in the page cache: no event will come
    assert touched.young() == []
    for op, page in (("r", 3), ("w", 17), ("r", 63)):
        touched.command(op, page)
        assert touched.answer() in b"dw"
    assert touched.young() == [3, 17, 63]
    if not pagemap.swap_in_use():
        pagemap.drop(touched.pidfd, [(touched.addr(0), touched.addr(64))])
        assert touched.young() == []
    touched.command("r", 17)
    assert touched.answer() == b"w", "a dropped entry must not lose the page"
    assert 17 in touched.young()
    assert pagemap.swap_in_use() or touched.young() == [17]


def test_a_drop_that_does_nothing_is_noticed(touched: Touched) -> None:
    """The kernel leaves the page alone when a second address space maps it."""
    os.pwrite(touched.memfd, b"d", 0)
    touched.command("r", 0)
    touched.answer()
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
    )  # fmt: skip
    second = libc.mmap(None, PAGE, 1, 1, touched.memfd, 0)
    assert ctypes.string_at(second, 1) == b"d"
    try:
        both = [(touched.addr(0), touched.addr(1))]
        pagemap.drop(touched.pidfd, both)
        assert touched.young() == [0]
    finally:
        libc.munmap(ctypes.c_void_p(second), ctypes.c_size_t(PAGE))


# ---- vDSO --------------------------------------------------------------------


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


# ---- CPUID -------------------------------------------------------------------


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
