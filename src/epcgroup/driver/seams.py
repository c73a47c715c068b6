"""What the driver needs from its surroundings: where pages lie, a program's memory.

Live implements both with memfds and process_vm_readv; ``epcgroup.testing`` has
fakes with a dict and a bytearray.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from epcgroup.epc import EpcPage

#: State of source memory for ADD_PAGES: usable; missing or not readable; on a
#: mapping that can never be executable.
Source = Literal["ok", "fault", "noexec"]
Log = Callable[[str], None]


class Frames(Protocol):
    """The plaintext of resident pages. ``enclave`` is the engine's enclave id.

    ``word`` is the page's EPCM word (``sgx.epcm``): it says whether programs may
    read, write or execute the page, or whether it must be hidden from them.
    """

    def young(self, pages: Sequence[EpcPage]) -> Sequence[bool]:
        """Test and clear "was accessed" of these pages, in order."""

    def add(self, enclave: int, index: int, contents: bytes, word: int) -> None:
        """A new page, just measured, becomes resident. From now on it is what lies there that counts."""

    def put(self, enclave: int, index: int, contents: bytes, word: int) -> None:
        """A page becomes resident again, or is new and zero."""

    def take(self, enclave: int, indices: Sequence[int]) -> list[bytes]:
        """Revoke pages everywhere, free their frames, return their final contents in order."""

    def drop(self, enclave: int, index: int) -> None:
        """Revoke a page and forget its contents; harmless when it is not there."""

    def read(self, enclave: int, index: int, offset: int, length: int) -> bytes:
        """Bytes of a resident page, also of a hidden one."""

    def write(self, enclave: int, index: int, offset: int, data: bytes) -> None:
        """Change bytes of a resident page, also of a hidden or write-protected one."""

    def protect(self, enclave: int, index: int, word: int) -> None:
        """A resident page's EPCM word changed: hide, show, write-protect, take X."""

    def disable(self, enclave: int) -> None:
        """Unmap the whole enclave from every address space, for good."""


class UserMemory(Protocol):
    """The calling program's memory and files, as an ioctl sees them."""

    def read(self, addr: int, length: int) -> bytes:
        """Raises OSError(EFAULT) unless all of it can be read."""

    def write(self, addr: int, data: bytes) -> None:
        """Raises OSError(EFAULT) unless all of it can be written."""

    def pending(self, addr: int, length: int) -> bool:
        """Whether the memory is still being brought in, by somebody who may take any time; ask again.

        A copy does not wait for that: it fails.
        """

    def source_ok(self, addr: int, length: int) -> tuple[Source, int]:
        """State of the memory at ``addr``, and for how many bytes (at most ``length``,
        at least to the end of the page) it is the same."""

    def is_provision(self, fd: int) -> bool:
        """Whether ``fd`` is an open /dev/sgx_provision of the calling process."""
