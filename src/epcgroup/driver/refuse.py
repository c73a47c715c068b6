"""Refusals of the driver: an errno and a sentence, and copies that may fault."""

from __future__ import annotations

import errno
from collections.abc import Callable, Generator
from types import TracebackType

from epcgroup.driver.seams import UserMemory
from epcgroup.errors import Refused
from epcgroup.units import PAGE_SIZE


def require(condition: object, number: int, why: str) -> None:
    """Raise Refused with ``number`` unless ``condition`` holds."""
    if not condition:
        raise Refused(why, number)


def copy_in(mem: UserMemory, addr: int, length: int) -> bytes:
    """copy_from_user: EFAULT for whatever goes wrong."""
    try:
        return mem.read(addr, length)
    except OSError as error:
        raise Refused(f"cannot read {length} bytes at {addr:#x}", errno.EFAULT) from error


def awaited(mem: UserMemory, addr: int, length: int) -> Generator[None]:
    """Let go of the machine until a copy of this memory need not wait for the program itself."""
    while mem.pending(addr, length):
        yield


def copy_out(mem: UserMemory, addr: int, data: bytes) -> None:
    """copy_to_user: EFAULT for whatever goes wrong."""
    try:
        mem.write(addr, data)
    except OSError as error:
        raise Refused(f"cannot write {len(data)} bytes at {addr:#x}", errno.EFAULT) from error


def check_range(offset: int, length: int, size: int) -> None:
    """The rule for offset and length shared by ADD_PAGES and the SGX2 ioctls."""
    require(not offset % PAGE_SIZE, errno.EINVAL, f"offset {offset:#x} is not page aligned")
    require(
        length and not length % PAGE_SIZE, errno.EINVAL, f"length {length:#x} is zero or not page aligned"
    )
    require(offset + length < 1 << 64, errno.EINVAL, f"range {offset:#x}+{length:#x} wraps around")
    require(
        offset + length - PAGE_SIZE < size, errno.EINVAL, f"range {offset:#x}+{length:#x} exceeds the enclave"
    )


class WriteBack:
    """Writes a result back when the block ends, however it ends.

    A failing copy turns any outcome into EFAULT, as in the kernel. Not when the
    ioctl is abandoned because its process is gone: nobody is there to read it.
    """

    __slots__ = ("_addr", "_data", "_mem")

    def __init__(self, mem: UserMemory, addr: int, data: Callable[[], bytes]) -> None:
        self._mem = mem
        self._addr = addr
        self._data = data

    def __enter__(self) -> None:
        """Nothing to do yet."""

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if kind is not GeneratorExit:
            copy_out(self._mem, self._addr, self._data())
