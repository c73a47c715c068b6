"""Have a stopped thread make a system call on our behalf.

The thread's registers are saved, it is pointed at a SYSCALL instruction in its
vDSO, runs one call, and gets its registers back. What makes this delicate:

* The thread may have stopped inside a call of its own. At a seccomp or entry
  stop that call has not run: it is *skipped*, and the injection takes place at
  its exit stop. The caller then sets rax to what the program shall see, or
  makes the call itself with `inject`. At an exec, fork or clone event the call
  is run to its exit first.
* A blocking call that our stop interrupted has left a restart code in rax. The
  kernel acts on it only on the way out of *that* stop, which the injection uses
  up, so the restart is done by hand (`undo_interruption`).
* Signals that arrive in between stop the thread too. They are held back, sent
  again by tkill(2) when the injection is over, and their siginfo is put back
  when they stop the thread again (`restore_siginfo`). A PTRACE_INTERRUPT or a
  group stop that is met in between is asked for again likewise.
* The thread may be killed meanwhile. Its last stop is kept in `events` for the
  supervisor's loop; the caller gets ProcessLookupError.
* While one thread makes a call for us, nobody else is answered. So only calls that
  do not wait are injected. Other threads can bring it about that they do (a close
  of what has become a file of a FUSE server that never answers): who is not back
  after `PATIENCE` is killed.

After an injection the thread is at a system call exit stop, with the registers
it had before. The signal that it was stopped *for*, if any, is used up: inject
only where that signal is not to be delivered, or deliver it by cont().

Rejected: stepping over the SYSCALL instruction, one stop instead of two. The
trap is a forced SIGTRAP, which resets the program's handler if it is blocked.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import struct
from collections import deque
from collections.abc import Callable, Iterator

from epcgroup.live.tracing import memory, procfs, ptrace
from epcgroup.live.tracing.ptrace import NO_SYSCALL, SYSCALL_STOP, UserRegs

SYSCALL_INSN = b"\x0f\x05"
PATIENCE = 20.0  # s; what is injected takes microseconds

_SYS_TKILL, _SYS_RESTART_SYSCALL = 200, 219
_ERESTARTSYS, _ERESTARTNOINTR, _ERESTARTNOHAND, _ERESTART_RESTARTBLOCK = 512, 513, 514, 516
_SI_TKILL = -6
_IN_A_CALL = {ptrace.EVENT_FORK, ptrace.EVENT_VFORK, ptrace.EVENT_CLONE, ptrace.EVENT_EXEC}
_SIGINFO = struct.Struct("<iii4xi")  # si_signo, si_errno, si_code, si_pid
_U64 = 2**64 - 1
_libc = ctypes.CDLL(None, use_errno=True)


def find_syscall_insn(pid: int) -> int:
    """Address of a SYSCALL instruction in the vDSO of ``pid``.

    Without a vDSO, in any executable mapping. OSError(ENOEXEC) if there is none.
    """
    vdso = procfs.auxv(pid).get(procfs.AT_SYSINFO_EHDR, 0)
    mappings = [m for m in procfs.maps(pid) if m.executable]
    for mapping in sorted(mappings, key=lambda m: m.start != vdso):
        try:
            text = memory.read(pid, mapping.start, mapping.end - mapping.start)
        except OSError:
            continue
        at = text.find(SYSCALL_INSN)
        if at >= 0:
            return mapping.start + at
    raise OSError(errno.ENOEXEC, f"process {pid} has no SYSCALL instruction in its memory")


def undo_interruption(regs: UserRegs) -> bool:
    """Make a call that a stop interrupted start again; whether there was one.

    Changes ``regs`` only. For stops that deliver no signal: where one is
    delivered, the kernel must choose between EINTR and restart.
    """
    if regs.orig_rax >> 63:
        return False
    code = (-regs.rax) & _U64
    if code in (_ERESTARTSYS, _ERESTARTNOINTR, _ERESTARTNOHAND):
        regs.rax = regs.orig_rax
    elif code == _ERESTART_RESTARTBLOCK:
        regs.rax = _SYS_RESTART_SYSCALL
    else:
        return False
    regs.rip -= len(SYSCALL_INSN)
    regs.orig_rax = NO_SYSCALL
    return True


class Injector:
    """Injects system calls, and keeps what happened to threads meanwhile.

    ``events``: (tid, wait status) that the supervisor's loop must still handle.
    """

    def __init__(self, log: Callable[[str], None] = lambda _: None) -> None:
        self._log = log
        self.events: deque[tuple[int, int]] = deque()
        #: Threads under filters of their own, which injected calls are not to meet.
        self.sandboxed: set[int] = set()
        self._held: dict[int, list[bytes]] = {}  # tid → siginfo of signals sent again

    def inject(self, tid: int, nr: int, *args: int, syscall_insn: int) -> int:
        """Result of system call ``nr`` made by stopped thread ``tid``; about 50 µs.

        OSError with the call's errno if it failed; ProcessLookupError if the
        thread is gone, or was killed meanwhile (see ``events``).
        """
        with self._unfiltered(tid):
            return self._inject(tid, nr, args, syscall_insn)

    @contextlib.contextmanager
    def _unfiltered(self, tid: int) -> Iterator[None]:
        """The thread's seccomp filters are suspended, where we may do that."""
        suspended = False
        if tid in self.sandboxed:
            with contextlib.suppress(PermissionError):
                ptrace.setoptions(tid, ptrace.OPTIONS | ptrace.O_SUSPEND_SECCOMP)
                suspended = True
        try:
            yield
        finally:
            if suspended:
                with contextlib.suppress(ProcessLookupError):  # killed meanwhile
                    ptrace.setoptions(tid, ptrace.OPTIONS)

    def _inject(self, tid: int, nr: int, args: tuple[int, ...], syscall_insn: int) -> int:
        interrupted = _Interruptions()
        saved = self.settle(tid, interrupted)
        regs = saved.copy()
        regs.rip, regs.rax, regs.orig_rax = syscall_insn, nr, NO_SYSCALL
        rdi, rsi, rdx, r10, r8, r9 = [arg & _U64 for arg in (*args, 0, 0, 0, 0, 0, 0)[:6]]
        regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9 = rdi, rsi, rdx, r10, r8, r9
        ptrace.setregs(tid, regs)
        self._to_call_stop(tid, interrupted)
        self._to_call_stop(tid, interrupted)
        ptrace.getregs(tid, regs)
        ptrace.setregs(tid, saved)
        self._send_again(tid, interrupted)
        result = regs.rax
        if result > _U64 - 4095:
            number = _U64 + 1 - result
            raise OSError(number, f"system call {nr} injected into thread {tid}: {os.strerror(number)}")
        return result

    def settle(self, tid: int, interrupted: _Interruptions | None = None) -> UserRegs:
        """Bring a thread that stopped within a call to the exit of that call.

        At a seccomp or entry stop the call is skipped. Returns the registers
        that the thread is to go on with. Changes nothing at other stops, except
        that an interrupted call will start again.
        """
        met = _Interruptions() if interrupted is None else interrupted
        regs = UserRegs()
        op = ptrace.syscall_op(tid)
        if op in (ptrace.OP_SECCOMP, ptrace.OP_ENTRY):
            ptrace.getregs(tid, regs)
            regs.orig_rax = NO_SYSCALL
            ptrace.setregs(tid, regs)
            self._to_call_stop(tid, met)
        elif op == ptrace.OP_NONE and _SIGINFO.unpack_from(ptrace.getsiginfo(tid))[2] >> 8 in _IN_A_CALL:
            self._to_call_stop(tid, met)
        ptrace.getregs(tid, regs)
        if op == ptrace.OP_NONE:
            undo_interruption(regs)
        if interrupted is None:
            ptrace.setregs(tid, regs)
            self._send_again(tid, met)
        return regs

    def restore_siginfo(self, tid: int, sig: int) -> bool:
        """At the stop of a signal that was sent again: put its own siginfo back.

        To be called at every signal delivery stop; cheap if nothing was held.
        """
        held = self._held.get(tid)
        if not held:
            return False
        _, _, code, sender = _SIGINFO.unpack_from(ptrace.getsiginfo(tid))
        if code != _SI_TKILL or sender != os.getpid():
            return False
        for info in held:
            if _SIGINFO.unpack_from(info)[0] == sig:
                held.remove(info)
                ptrace.setsiginfo(tid, info)
                return True
        return False

    def inherit(self, parent: int, child: int) -> None:
        """Thread ``child`` begins under the filters of ``parent``."""
        if parent in self.sandboxed:
            self.sandboxed.add(child)

    def forget(self, tid: int) -> None:
        """The thread is gone: drop what was held for it."""
        self._held.pop(tid, None)

    def _to_call_stop(self, tid: int, met: _Interruptions) -> None:
        """Let the thread run to its next system call stop."""
        while True:
            ptrace.syscall(tid)
            status = self.wait(tid)
            sig, event = ptrace.stop_of(status)
            if not os.WIFSTOPPED(status) or event == ptrace.EVENT_EXIT:
                self.events.append((tid, status))
                raise ProcessLookupError(errno.ESRCH, f"thread {tid} was killed during an injected call")
            if sig == SYSCALL_STOP:
                return
            if event == 0:
                met.signals.append(ptrace.getsiginfo(tid))
            elif event == ptrace.EVENT_STOP:
                met.stopped = True

    def wait(self, tid: int) -> int:
        """The next wait status of a thread that was made to run for a moment.

        ProcessLookupError if it has to be killed; what becomes of it is heard of by the loop.
        """
        try:
            return ptrace.wait_for(tid, PATIENCE)
        except TimeoutError:
            self._log(f"thread {tid} is held up in a system call made for it, and killed: all others wait")
            with contextlib.suppress(ProcessLookupError):
                os.kill(tid, signal.SIGKILL)
            raise ProcessLookupError(errno.ESRCH, f"thread {tid} was held up, and killed") from None

    def send_again(self, tid: int, signals: list[bytes]) -> None:
        """Send signals (siginfo) that were held back; see restore_siginfo."""
        self._held.setdefault(tid, []).extend(signals)
        for info in signals:
            _libc.syscall(_SYS_TKILL, tid, _SIGINFO.unpack_from(info)[0])

    def send_as(self, tid: int, info: bytes) -> None:
        """Send the signal of ``info`` (siginfo) to a thread, as if from whom it names.

        One that waits already is replaced, for the kernel keeps one of each number.
        """
        sig = _SIGINFO.unpack_from(info)[0]
        held = self._held.setdefault(tid, [])
        held[:] = [other for other in held if _SIGINFO.unpack_from(other)[0] != sig]
        self.send_again(tid, [info])

    def _send_again(self, tid: int, met: _Interruptions) -> None:
        if met.signals:
            self.send_again(tid, met.signals)
        if met.stopped:
            ptrace.interrupt(tid)


class _Interruptions:
    """What came between: signals (as siginfo), and whether a stop was asked for."""

    __slots__ = ("signals", "stopped")

    def __init__(self) -> None:
        self.signals: list[bytes] = []
        self.stopped = False
