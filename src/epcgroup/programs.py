"""Programs that we start for a user: which one is meant, how it is run, what it inherits."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from epcgroup.errors import BadInput

_SHELL = "/bin/sh"
_LOOK = 128  # bytes; as shells do before they take a file for a script

ignored = frozenset(
    number
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP)
    if signal.getsignal(number) is signal.SIG_IGN
)
"""Signals that we were started to ignore (by nohup, as a background job of a script): so are our programs."""

blocked: frozenset[int] = frozenset(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""The signal mask that we were started with: what we block is not our programs' business."""


def find_program(name: str) -> str:
    """Path of the program ``name``; BadInput, with the reason, when it cannot be one."""
    import shutil  # brings twenty modules, which a help text need not wait for

    path = shutil.which(name)
    if path is not None:
        return path
    if "/" in name and Path(name).is_dir():
        raise BadInput(f"{name}: it is a directory, not a program")
    if "/" in name and Path(name).exists():
        raise BadInput(f"{name}: it may not be executed; chmod +x {name}?")
    raise BadInput(f"{name or repr(name)}: no such program; give a path or a name on PATH")


def shell_for(path: str, argv: list[str]) -> tuple[str, list[str]] | None:
    """How execvp(3) and every shell run a file that the kernel does not know (ENOEXEC).

    By the shell, if it is a text; None for anything else.
    """
    try:
        with Path(path).open("rb") as file:
            if b"\0" in file.read(_LOOK):
                return None
    except OSError:
        return None
    return _SHELL, [_SHELL, path, *argv[1:]]


def not_started(path: str, error: OSError) -> str:
    """Why ``path`` could not be executed, in words."""
    if isinstance(error, FileNotFoundError) and os.path.lexists(path):
        return f"{path}: the interpreter that it names is not there"
    return f"{path}: {error.strerror}"
