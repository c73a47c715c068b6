"""What the tests of single mechanisms share: small programs built when they are asked for, pipes, numbers."""

from __future__ import annotations

import functools
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.e2e.traced import compile_c

PROGRAMS = Path(__file__).parent / "programs"
PAGE = 4096
SYS_GETPID, SYS_PAUSE, SYS_MMAP, SYS_OPENAT = 39, 34, 9, 257
ILL = (signal.SIGILL, 0)


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
