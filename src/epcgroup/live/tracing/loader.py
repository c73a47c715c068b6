"""Starting programs, and preparing each new program image.

A child is forked, stops itself, is seized, puts itself under the seccomp filter
and execs. After *every* exec, its own and its descendants', the new image is
made to believe in SGX before its first instruction (ld.so included) runs: the
vDSO gets the enclave call, CPUID and ENCLU instructions are made to come to us.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

from epcgroup.live.enclave import traps, vdso
from epcgroup.live.fastpath import programs as fastpath
from epcgroup.live.tracing import procfs, room, seccomp
from epcgroup.live.tracing.task import Trap
from epcgroup.programs import blocked, find_program, ignored, not_started, shell_for

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from epcgroup.live.tracing.task import Task
    from epcgroup.live.tracing.tracer import Tracer

_PR_SET_PDEATHSIG = 1


def spawn(
    argv: Sequence[str],
    env: Mapping[str, str] | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
    cwd: str | None = None,
    *,
    stdin: int | None = None,
    session: bool = False,
    program: bytes,
    enter: Callable[[], None] | None = None,
) -> int:
    """Fork a child that waits, stopped, to be traced and will exec ``argv``.

    Returns its pid once it has stopped. ``stdin``, ``stdout`` and ``stderr`` are
    descriptors; None inherits ours. ``session``: the child leads a session of its own.
    ``program``: the seccomp filter. ``enter`` is called in the child before its chdir.
    """
    path = find_program(argv[0])
    sys.stdout.flush()
    sys.stderr.flush()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)  # else our handlers take what is for the child
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _wait_to_be_traced(parent)
        _child(path, argv, env, (stdin, stdout, stderr), cwd, session, program, enter)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    os.waitpid(pid, os.WUNTRACED)
    return pid


def release(pid: int) -> None:
    """Let a seized child of `spawn` go on to its exec."""
    os.kill(pid, signal.SIGCONT)


def _wait_to_be_traced(parent: int) -> None:
    """Stop, until `release`; and end if we end before the child is ours."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # killed before that
        os._exit(126)
    os.kill(os.getpid(), signal.SIGSTOP)
    libc.prctl(_PR_SET_PDEATHSIG, 0)


def _child(
    path: str,
    argv: Sequence[str],
    env: Mapping[str, str] | None,
    stdio: tuple[int | None, int | None, int | None],
    cwd: str | None,
    session: bool,
    program: bytes,
    enter: Callable[[], None] | None,
) -> NoReturn:
    what = path
    try:
        # What the supervisor changed for itself is not the program's business.
        for sig in _HANDLED:
            signal.signal(sig, signal.SIG_IGN if sig in ignored else signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        if session:
            os.setsid()
        for target, source in enumerate(stdio):
            if source is not None:
                os.dup2(source, target)
        for limit, values in room.inherited.items():
            resource.setrlimit(limit, values)
        if enter is not None:
            enter()
        if cwd is not None:
            what = cwd
            os.chdir(cwd)
        what = path
        seccomp.install(program)
        _execute(path, list(argv), dict(os.environ if env is None else env))
    except OSError as error:
        print(f"epcgroup: {not_started(what, error)}", file=sys.stderr, flush=True)
    os._exit(126)


def _execute(path: str, argv: list[str], env: dict[str, str]) -> NoReturn:
    try:
        os.execve(path, argv, env)
    except OSError as error:
        script = shell_for(path, argv) if error.errno == errno.ENOEXEC else None
        if script is None:
            raise
        os.execve(*script, env)


#: What a supervisor may have handlers for, and what Python ignores on its own account.
_HANDLED = (
    signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ,
)  # fmt: skip


def prepare(tracer: Tracer, task: Task) -> None:
    """A new image, stopped at the exit of its execve: make it an SGX machine, unless it is to be let go."""
    if not task.leaving:
        equip(tracer, task)
    tracer.resume(task)


def equip(tracer: Tracer, task: Task) -> None:
    """Make the image of stopped ``task`` believe in SGX.

    What is only watched gets traps that need no filter, and no ENCLU yet (see `attach`).
    """
    with contextlib.suppress(OSError):
        task.command = procfs.command(task.pid)
    enclu, trap = (traps.ENCLU, traps.UD2) if task.watched else (traps.ENCLU_TRAP, traps.INT80)
    if vdso.supported(task.pid):
        task.vdso = vdso.install(task.tid, tracer.injector, enclu=enclu)
        if not task.watched:
            task.mm.traps[task.vdso.enclu] = Trap.ENCLU
    task.mm.traps.update(traps.patch(task.pid, trap))
    if task.watched:
        tracer.guard.keep(task.mm)
    else:
        fastpath.start(tracer, task)
        fastpath.replace(tracer, task, [at for at, kind in task.mm.traps.items() if kind is Trap.ENCLU])


__all__ = ["equip", "find_program", "prepare", "release", "spawn"]
