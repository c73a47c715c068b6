"""System calls that are put into a stopped thread, and threads that are changed while they are stopped."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest
from tests.e2e.mechanisms import (
    PAGE,
    SYS_GETPID,
    SYS_MMAP,
    SYS_OPENAT,
    SYS_PAUSE,
    built,
    reading,
)
from tests.e2e.traced import Traced

from epcgroup.live.tracing import memory, procfs, ptrace

pytestmark = [pytest.mark.needs("x86-64", "gcc", "ptrace", "userfaultfd"), pytest.mark.timeout(240)]


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


def test_a_first_thread_that_ended_before_the_others_is_not_waited_for() -> None:
    """The kernel tells of its end after theirs, and they may be stopped until they are looked after."""
    dies = "threading.Thread(target=time.sleep, args=(60,)).start(); ctypes.CDLL(None).syscall(60, 0)"
    child = subprocess.Popen([sys.executable, "-c", f"import ctypes, threading, time; {dies}"])
    try:
        with pytest.raises(ProcessLookupError, match="has ended before others"):
            ptrace.wait_for(child.pid, 60)
    finally:
        child.kill()
        child.wait()


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
            time.sleep(1.6)
            child.stop()
            assert child.inject(SYS_GETPID) == child.pid
            assert child.finish() == 0
            slept, result, milliseconds = os.read(ours, 200).split()
            assert (slept, result) == (b"slept", b"0")
        assert int(milliseconds) >= 2000, "it slept too short"
        if int(milliseconds) < 3500:
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


def _kill_in_its_sleep(pid: int) -> None:
    while procfs.status(pid)["State"][0] != "S":
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)


def test_a_thread_killed_during_an_injected_call_is_reported() -> None:
    with Traced(["/bin/true"]) as child:
        child.to_exec()
        killer = threading.Thread(target=_kill_in_its_sleep, args=(child.pid,))
        killer.start()
        with pytest.raises(ProcessLookupError):
            child.inject(SYS_PAUSE)
        killer.join()
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
