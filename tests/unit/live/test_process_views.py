"""memory, procfs, pagemap and ptrace's structures, on our own process."""

from __future__ import annotations

import ctypes
import errno
import itertools
import mmap
import os
import signal
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epcgroup.live.paging import pagemap
from epcgroup.live.tracing import inject, memory, procfs, ptrace

PAGE = 4096


@pytest.fixture
def area() -> Iterator[tuple[mmap.mmap, int]]:
    """Eight shared pages of ours; the address behind the last is not mapped."""
    with mmap.mmap(-1, 9 * PAGE) as pages:
        holder = ctypes.c_char.from_buffer(pages)
        addr = ctypes.addressof(holder)
        libc = ctypes.CDLL(None)
        assert libc.mprotect(ctypes.c_void_p(addr + 8 * PAGE), PAGE, 0) == 0
        yield pages, addr
        del holder


def test_reads_what_is_there_and_writes_it(area: tuple[mmap.mmap, int]) -> None:
    pages, addr = area
    pages[10:15] = b"hello"
    assert memory.read(os.getpid(), addr + 10, 5) == b"hello"
    memory.write(os.getpid(), addr + PAGE - 2, b"over")
    assert pages[PAGE - 2 : PAGE + 2] == b"over"
    assert memory.read(os.getpid(), 0, 0) == b""


@pytest.mark.parametrize("offset", [8 * PAGE, 8 * PAGE - 1])
def test_a_short_read_or_write_is_efault(area: tuple[mmap.mmap, int], offset: int) -> None:
    for call in (
        lambda at: memory.read(os.getpid(), at, 8),
        lambda at: memory.write(os.getpid(), at, bytes(8)),
    ):
        with pytest.raises(OSError, match=f"process {os.getpid()}") as error:
            call(area[1] + offset)
        assert error.value.errno == errno.EFAULT


MOUNTS = r"""21 1 254:1 / / rw,relatime - ext4 /dev/vda rw
22 21 0:5 / /a\040b rw,nosuid,noexec - tmpfs none rw
23 22 0:6 / /a\040b/c rw - tmpfs none rw
24 21 0:7 / /d rw,noexec - tmpfs none rw
25 21 0:8 / /d rw - tmpfs none rw
"""
MOUNTS += "26 21 0:9 / /e\rf rw,noexec - tmpfs none rw\n"


@pytest.mark.parametrize(
    ("path", "noexec"),
    [("/x", 0), ("/a b/x", 1), ("/a b/c/x", 0), ("/a by/x", 0), ("/d/x", 0), ("/e\rf/x", 1)],
)
def test_whether_a_mount_is_noexec_is_known_without_its_file_system(
    path: str, noexec: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mount is the deepest above the path; of several at one place, the last."""
    monkeypatch.setattr(Path, "read_bytes", lambda *_: MOUNTS.encode())
    assert procfs.is_noexec(1, path) == noexec


def test_a_string_may_end_at_the_last_mapped_byte(area: tuple[mmap.mmap, int]) -> None:
    pages, addr = area
    pages[PAGE - 3 : PAGE + 4] = b"abcdef\0"
    assert memory.read_cstring(os.getpid(), addr + PAGE - 3) == b"abcdef"
    pages[8 * PAGE - 4 : 8 * PAGE] = b"end\0"
    assert memory.read_cstring(os.getpid(), addr + 8 * PAGE - 4) == b"end"
    pages[8 * PAGE - 1 : 8 * PAGE] = b"!"
    with pytest.raises(OSError, match="memory of process"):
        memory.read_cstring(os.getpid(), addr + 8 * PAGE - 4)
    pages[: 2 * PAGE] = b"x" * 2 * PAGE
    with pytest.raises(OSError, match="longer than 4096"):
        memory.read_cstring(os.getpid(), addr)


def test_gone_processes_are_process_lookup_errors() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    with pytest.raises(ProcessLookupError):
        memory.read(pid, 0x1000, 1)
    with pytest.raises(ProcessLookupError):
        ptrace.interrupt(pid)
    with pytest.raises(ProcessLookupError):
        procfs.pidfd_open(pid)
    with pytest.raises(FileNotFoundError):
        procfs.maps(pid)


def test_maps_show_what_was_mapped(area: tuple[mmap.mmap, int]) -> None:
    addr = area[1]
    found = {m.start: m for m in procfs.maps(os.getpid())}
    assert found[addr + 8 * PAGE].prot == 0
    at = next(m for m in found.values() if m.start <= addr < m.end)
    assert (at.prot, at.shared, at.executable) == (mmap.PROT_READ | mmap.PROT_WRITE, True, False)
    vdso = procfs.auxv(os.getpid())[procfs.AT_SYSINFO_EHDR]
    assert found[vdso].path == "[vdso]"
    assert found[vdso].executable


def test_mappings_of_a_memfd_are_found_by_its_inode() -> None:
    fd = os.memfd_create("some name")
    os.ftruncate(fd, 3 * PAGE)
    inode = procfs.fd_inode(os.getpid(), fd)
    with mmap.mmap(fd, PAGE, offset=2 * PAGE):
        (mapping,) = procfs.mappings_of_inode(os.getpid(), inode)
    assert (mapping.offset, mapping.end - mapping.start, mapping.inode) == (2 * PAGE, PAGE, inode)
    assert mapping.path == "/memfd:some name (deleted)"
    os.close(fd)


def test_tasks_and_processes() -> None:
    pid = os.getpid()
    assert pid in procfs.tasks(pid)
    assert procfs.tgid(pid) == pid
    assert procfs.same_mm(pid, pid)
    assert not procfs.same_mm(pid, os.getppid())


def test_pending_signals_are_those_that_are_not_blocked() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        signal.raise_signal(signal.SIGUSR1)  # for this thread; another might not block it
        assert procfs.pending_signals(os.getpid()) == 0
    finally:
        assert signal.sigwait({signal.SIGUSR1}) == signal.SIGUSR1
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})


def test_a_signal_that_waits_for_a_stopped_process_is_pending() -> None:
    with subprocess.Popen(["sleep", "60"]) as program:
        program.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, program.pid, os.WSTOPPED)
        program.send_signal(signal.SIGUSR1)
        assert procfs.pending_signals(program.pid) == 1 << (signal.SIGUSR1 - 1)
        program.kill()


def test_registers_have_the_kernels_layout() -> None:
    """struct user_regs_struct: 27 words; rip is the 17th."""
    assert ctypes.sizeof(ptrace.UserRegs) == 27 * 8
    assert (ptrace.UserRegs.orig_rax.offset, ptrace.UserRegs.rip.offset) == (15 * 8, 16 * 8)
    assert (ptrace.UserRegs.fs_base.offset, ptrace.UserRegs.gs.offset) == (21 * 8, 26 * 8)


def test_a_fault_has_the_kernels_siginfo() -> None:
    info = ptrace.fault_siginfo(signal.SIGSEGV, 2, 0x1234)
    assert len(info) == 128
    assert struct.unpack_from("<iii4xQ", info) == (11, 0, 2, 0x1234)


@pytest.mark.parametrize(
    ("rax", "orig_rax", "then"),
    [
        (-512, 0, (0, True)), (-513, 1, (1, True)), (-514, 232, (232, True)), (-516, 230, (219, True)),
        (-4, 0, (-4, False)), (3, 0, (3, False)), (-512, -1, (-512, False)),
    ],
)  # fmt: skip
def test_an_interrupted_call_starts_again(rax: int, orig_rax: int, then: tuple[int, bool]) -> None:
    regs = ptrace.UserRegs(rax=rax % 2**64, orig_rax=orig_rax % 2**64, rip=0x1002)
    assert inject.undo_interruption(regs) is then[1]
    assert regs.rax == then[0] % 2**64
    assert regs.rip == (0x1000 if then[1] else 0x1002)
    assert regs.orig_rax == (ptrace.NO_SYSCALL if then[1] else orig_rax % 2**64)


@given(st.sets(st.integers(0, 200)), st.integers(0, 10))
def test_ranges_cover_the_pages_and_bridge_small_gaps(numbers: set[int], gap: int) -> None:
    ranges = pagemap.coalesce((n * PAGE for n in sorted(numbers)), gap)
    covered = {page // PAGE for start, end in ranges for page in range(start, end, PAGE)}
    assert numbers <= covered
    for (_, end), (start, _) in itertools.pairwise(ranges):
        assert start - end > gap * PAGE
    if not gap:
        assert covered == numbers


def test_both_ways_of_reading_page_tables_agree(
    area: tuple[mmap.mmap, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PAGEMAP_SCAN is Linux 6.7; before, entries are read one by one."""
    pages, addr = area
    for n in (1, 2, 5):
        pages[n * PAGE] = 1
    every = [addr + n * PAGE for n in range(8)]
    fd = pagemap.open_pagemap(os.getpid())
    try:
        expected = {every[n] for n in (1, 2, 5)}
        assert pagemap.young(fd, every) == expected
        assert pagemap.young(fd, every[::-1]) == expected
        assert pagemap.young(fd, []) == set()
        monkeypatch.setattr(pagemap, "_scan_works", False)
        assert pagemap.young(fd, every) == expected
    finally:
        os.close(fd)
