"""Faults answered from outside, ages read from page tables, pages dropped: each on a process of its own."""

from __future__ import annotations

import ctypes
import os
import select
import signal
from collections.abc import Iterator

import pytest
from tests.e2e.mechanisms import (
    PAGE,
    SYS_MMAP,
    built,
)
from tests.e2e.traced import Traced

from epcgroup.live.paging import pagemap, uffd
from epcgroup.live.tracing import inject, procfs, ptrace

pytestmark = [pytest.mark.needs("x86-64", "gcc", "ptrace", "userfaultfd"), pytest.mark.timeout(240)]


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
