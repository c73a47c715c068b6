"""The stress enclave in ordinary memory: its code runs as a plain function.

ENCLU becomes `jmp *%rbx`, which is what EEXIT does with the registers, and a
small thunk plays the vDSO: it puts the return address into rcx and jumps to the
entry.
"""

from __future__ import annotations

import ctypes
import mmap

from epcgroup.stress.code import Call
from epcgroup.stress.image import Image
from epcgroup.units import PAGE_SIZE

_ENCLU, _JMP_RBX = bytes.fromhex("0f01d7"), bytes.fromhex("ffe390")
# push rbx; lea rcx, [rip+2]; jmp rsi; pop rbx; ret   (rdi = block, rsi = entry)
_THUNK = bytes.fromhex("53488d0d02000000ffe65bc3")


class PlainEnclave:
    """Looks like stress.device.Enclave to the code that drives it."""

    def __init__(self, image: Image) -> None:
        self.image = image
        self._memory = mmap.mmap(-1, image.size + PAGE_SIZE, prot=7)
        self._view = ctypes.c_char.from_buffer(self._memory)
        self.base = ctypes.addressof(self._view)
        for segment in image.segments():
            contents = segment.contents.replace(_ENCLU, _JMP_RBX)
            self._memory[segment.offset : segment.offset + len(contents)] = contents
        self._memory[image.size : image.size + len(_THUNK)] = _THUNK
        self.enter = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64)(self.base + image.size)

    def page(self, number: int) -> bytes:
        """Contents of heap page ``number``."""
        at = self.image.heap + number * PAGE_SIZE
        return bytes(self._memory[at : at + PAGE_SIZE])

    def put(self, number: int, contents: bytes, at: int = 0) -> None:
        """Overwrite part of heap page ``number`` behind the enclave's back."""
        start = self.image.heap + number * PAGE_SIZE + at
        self._memory[start : start + len(contents)] = contents


class PlainDoor:
    """Looks like stress.enter.Door."""

    def __init__(self, enclave: PlainEnclave, thread: int) -> None:
        del thread
        self._enclave = enclave

    def call(self, block: Call) -> None:
        self._enclave.enter(ctypes.addressof(block), self._enclave.base)
