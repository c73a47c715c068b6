"""Pages with a memory error: no access reaches them, so that each touch comes to the driver."""

from __future__ import annotations

from epcgroup.live.paging.frames import MemfdFrames

_NOTHING = 0  # an EPCM word that allows no access


class SpoiltFrames(MemfdFrames):
    """MemfdFrames in which some pages of one enclave stay hidden."""

    def __init__(self, pages: frozenset[int]) -> None:
        super().__init__()
        self._pages = pages
        self._first: int | None = None

    def _word(self, enclave: int, index: int, word: int) -> int:
        if self._first is None:
            self._first = enclave
        return _NOTHING if enclave == self._first and index in self._pages else word

    def add(self, enclave: int, index: int, contents: bytes, word: int) -> None:
        super().add(enclave, index, contents, self._word(enclave, index, word))

    def put(self, enclave: int, index: int, contents: bytes, word: int) -> None:
        super().put(enclave, index, contents, self._word(enclave, index, word))

    def protect(self, enclave: int, index: int, word: int) -> None:
        super().protect(enclave, index, self._word(enclave, index, word))
