"""A page of a program's memory, borrowed for what its next system calls read or write."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from epcgroup.units import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from epcgroup.live.tracing.task import Task
    from epcgroup.live.tracing.tracer import Tracer

_SYS_MMAP, _SYS_MUNMAP = 9, 11
_PRIVATE_ANON, _READ_WRITE = 0x22, 3
_NO_FD = -1 & 0xFFFFFFFFFFFFFFFF


@contextlib.contextmanager
def page(tracer: Tracer, task: Task) -> Iterator[int]:
    """Address of a writable page of zeros in ``task``, which is stopped; gone at the end.

    Two injections (100 µs). The program's own stack will not do: below a Go
    routine's stack lies somebody else's memory.
    """
    at = tracer.inject(task, _SYS_MMAP, 0, PAGE_SIZE, _READ_WRITE, _PRIVATE_ANON, _NO_FD, 0)
    try:
        yield at
    finally:
        with contextlib.suppress(ProcessLookupError):
            tracer.inject(task, _SYS_MUNMAP, at, PAGE_SIZE)


__all__ = ["page"]
