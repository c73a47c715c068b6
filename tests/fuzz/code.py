"""Machine code and libraries as a hostile program would write them, for what reads them before they run."""

from __future__ import annotations

import struct

from epcgroup.live.enclave import codesites, insnlen
from epcgroup.live.fastpath import sites

from .words import Words

CPUID = b"\x0f\xa2"
#: What code that is looked for is made of; a byte below their number stands for one.
_PIECES = (
    b"\xb8\x04\0\0\0", b"\x48\xc7\xc0\x05\0\0\0", b"\xb8\x02\0\0\0", sites.ENCLU, b"\x31\xc9",
    b"\x48\x8d\x0d\0\0\0\0", CPUID, b"\x48\x01\xd2", b"\xc3", b"\x66\x0f\x1f\x44\0\0", b"\xe8\0\0\0\0",
    b"\xc5\xf8\x77", b"\x62", b"\xf3\xa4", 8 * b"\x90",
)  # fmt: skip
_AT = 0x400  # of the code in the library, in the file and in memory


def _code(content: bytes) -> bytes:
    return b"".join(_PIECES[byte] if byte < len(_PIECES) else bytes([byte]) for byte in content)


def read_page(content: bytes) -> None:
    """Where jumps would be laid into a page of an enclave, and what would be moved out of it."""
    page = _code(content)
    for leaf in (4, 5):
        for site in sites.with_leaf(page, leaf):
            assert 0 <= site.at < site.at + site.length <= site.enclu <= len(page) - 3
            between = page[site.at + site.length : site.enclu]
            assert len(sites.moved(between, 0x1000)) >= len(between)
    at = page.find(sites.ENCLU)
    if at >= 0:
        found = sites.before(page, at, 2)
        assert found is None or 5 <= found.length <= at - found.at
    at = 0
    while at < len(page):
        size = insnlen.length(page, at)
        assert 0 <= size <= min(15, len(page) - at)
        at += size or 1


def _library(content: bytes) -> bytearray:
    """An ELF file with a table of functions and one symbol, and this as its code."""
    code = _code(content).ljust(16, b"\xc3")
    symbols = struct.pack("<IBBHQQ", 0, 2, 0, 1, _AT, len(code))
    symbols += struct.pack("<IBBHQQ", 0, 1, 0, 1, _AT + 8, 4)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 3, 62, 1, _AT, 64, 0x200, 0, 64, 56, 2, 64, 1, 0
    )
    segments = struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, _AT + len(code), _AT + len(code), 0x1000)
    segments += struct.pack("<IIQQQQQQ", 0x6474E550, 4, 0x140, 0x140, 0x140, 20, 20, 4)
    unwind = b"\x01\x1b\x03\x3b" + struct.pack("<iIii", 0, 1, _AT - 0x140, 0x180 - 0x140)
    table = struct.pack("<IIiI", 12, 0, _AT - 0x188, len(code) // 2)
    sections = struct.pack("<IIQQQQIIQQ", 0, 2, 0, 0, 0x280, len(symbols), 0, 0, 8, 24)
    made = bytearray(_AT) + code
    parts = {0: header, 64: segments, 0x140: unwind, 0x180: table, 0x200: sections, 0x280: symbols}
    for at, part in parts.items():
        made[at : at + len(part)] = part
    return made


def read_library(content: bytes, words: Words) -> None:
    """Where CPUID is in it, whole or damaged."""
    made = _library(content)
    for _ in range(words.byte() & 3):
        made[int.from_bytes(words.bytes(2), "little") % len(made)] = words.byte()
    for at in codesites.find(bytes(made), CPUID):
        assert made[at : at + 2] == CPUID
