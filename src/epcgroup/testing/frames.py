"""Frames without a kernel: resident pages in a dict."""

from __future__ import annotations

from collections.abc import Sequence

from epcgroup.epc import EpcPage
from epcgroup.errors import InternalError
from epcgroup.units import PAGE_SIZE


class DictFrames:
    """Implements ``driver.Frames``.

    Set ``accessed`` to make pages young; read ``words`` to see what programs may
    do with each page; ``most`` is the largest number ever resident at once.
    """

    def __init__(self) -> None:
        self.contents: dict[tuple[int, int], bytearray] = {}
        self.words: dict[tuple[int, int], int] = {}
        self.accessed: set[tuple[int, int]] = set()
        self.disabled: set[int] = set()
        self.most = 0

    def young(self, pages: Sequence[EpcPage]) -> Sequence[bool]:
        found = [(page.enclave.id, page.index) in self.accessed for page in pages]
        self.accessed.difference_update((page.enclave.id, page.index) for page in pages)
        return found

    def add(self, enclave: int, index: int, contents: bytes, word: int) -> None:
        self.put(enclave, index, contents, word)

    def put(self, enclave: int, index: int, contents: bytes, word: int) -> None:
        if len(contents) != PAGE_SIZE:
            raise InternalError(f"a page of {len(contents)} bytes was put into a frame")
        if (enclave, index) in self.contents:
            raise InternalError(f"page {index} of enclave {enclave} is put twice")
        self.contents[enclave, index] = bytearray(contents)
        self.words[enclave, index] = word
        self.most = max(self.most, len(self.contents))

    def take(self, enclave: int, indices: Sequence[int]) -> list[bytes]:
        for index in indices:
            del self.words[enclave, index]
        return [bytes(self.contents.pop((enclave, index))) for index in indices]

    def drop(self, enclave: int, index: int) -> None:
        self.words.pop((enclave, index), None)
        self.contents.pop((enclave, index), None)

    def read(self, enclave: int, index: int, offset: int, length: int) -> bytes:
        return bytes(self.contents[enclave, index][offset : offset + length])

    def write(self, enclave: int, index: int, offset: int, data: bytes) -> None:
        self.contents[enclave, index][offset : offset + len(data)] = data

    def protect(self, enclave: int, index: int, word: int) -> None:
        if (enclave, index) not in self.contents:
            raise InternalError(f"page {index} of enclave {enclave} is not resident")
        self.words[enclave, index] = word

    def disable(self, enclave: int) -> None:
        self.disabled.add(enclave)
