"""An input as a source of numbers."""

from __future__ import annotations

EPC_PAGES = 48
BASE = 0x40000000
SIZE = 1 << 18
PAGES = SIZE >> 12
ARGUMENTS = 0x7E0000000000  # where prepared arguments lie
#: Numbers that checks are about; the rest is left to the fuzzer.
TELLING = (
    0, 1, 2, 3, 4, 7, 8, 63, 64, 0x100, 0x200, 0x203, 0x205, 0x207, 0x400, 0xFFF, 0x1000, 0x1001, 0x2000,
    0x4000, SIZE - 0x1000, SIZE, SIZE + 1, BASE, BASE + 0x1000, BASE + SIZE - 0x1000, BASE + SIZE, 1 << 31,
    (1 << 32) - 1, 1 << 47, (1 << 47) - 0x1000, 1 << 63, (1 << 64) - 0x1000, (1 << 64) - 1,
    ARGUMENTS, ARGUMENTS + 0x1000,
)  # fmt: skip


class Words:
    """Bytes taken from the front; zeros when there are no more."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def more(self) -> bool:
        return self._at < len(self._data)

    def byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def number(self) -> int:
        """A telling number, or eight bytes as they stand."""
        choice = self.byte()
        if choice < 0xF0:
            return TELLING[choice % len(TELLING)]
        return int.from_bytes(self.bytes(8), "little")

    def bytes(self, count: int) -> bytes:
        self._at += count
        return self._data[self._at - count : self._at].ljust(count, b"\0")

    def place(self) -> int:
        """An offset in an enclave: mostly a page's, sometimes one within it, sometimes a wild number."""
        choice = self.byte()
        if choice < 0xC0:
            return choice % (PAGES + 2) << 12
        if choice < 0xE0:
            return (choice - 0xC0) << 12 | self.byte() << 4
        return self.number()
