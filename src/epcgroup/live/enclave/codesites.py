"""Where in an executable file an instruction stands.

The bytes of CPUID (0f a2) occur in jump displacements, constants and tables as
well: in Intel's urts 31 times, of which one in a jump that a byte search broke.
A place counts only if the code that leads to it, read instruction by instruction
from a known start, arrives exactly there. Known starts are, in this order:

* functions listed in .eh_frame_hdr, which stripped programs have too;
* symbols;
* between functions (hand-written code has no unwind tables), and in files that
  have neither: the end of the function before, or 4 KiB before the place. The
  x86 code stream falls back into step within a few instructions. But tables of
  constants lie between functions too, so here the neighbours must look like
  code: valid, and none of the opcodes that compilers and programmers never use.
  A run of 16 random instructions passes that once in a thousand times.

Rejected: disassembling everything from the start of the section. It takes
seconds for a large library, and the first table of constants derails it.
"""

from __future__ import annotations

import bisect
import mmap
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from epcgroup.live.enclave.insnlen import length

if TYPE_CHECKING:
    from collections.abc import Iterator

_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_SHDR = struct.Struct("<IIQQQQIIQQ")
_SYM = struct.Struct("<IBBHQQ")
_MACHINE_X86_64 = 62
_PT_LOAD, _PT_GNU_EH_FRAME, _PF_X = 1, 0x6474E550, 1
_SHT_SYMTAB, _SHT_DYNSYM = 2, 11
_STT_NOTYPE, _STT_OBJECT, _STT_FUNC = 0, 1, 2
_HDR_ENCODINGS = b"\x01\x1b\x03\x3b"  # version 1; pcrel sdata4, udata4, datarel sdata4
_FALL_INTO_STEP = 4096
_NEIGHBOURS = 8
_PREFIXES = bytes([0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3, *range(0x40, 0x50)])
# Privileged, segment, port, far and BCD-age instructions; 00 00 is a table's zero.
_NEVER_USED = frozenset(
    bytes.fromhex("00 6c6d6e6f 8c8e 9b a0a1a2a3 c8 cacb cdcecf d7 e0e1e2e3 e4e5e6e7 ecedeeef f1 f4 fafb")
)
_GOES_AWAY = b"\xc2\xc3\xe9\xeb"  # RET, JMP


@dataclass(frozen=True, slots=True)
class _Segment:
    offset: int
    size: int
    vaddr: int


class _Elf:
    """What is needed of one ELF file. Addresses are those of the file itself."""

    def __init__(self, data: mmap.mmap | bytes) -> None:
        self.data = data
        header = _EHDR.unpack_from(data)
        self._shoff, self._shnum = header[6], header[12]
        self.code: list[_Segment] = []
        self._segments: list[_Segment] = []
        self._hdr = 0
        for n in range(header[10]):
            kind, flags, offset, vaddr, _, filesz, _, _ = _PHDR.unpack_from(data, header[5] + n * _PHDR.size)
            if kind == _PT_LOAD:
                segment = _Segment(offset, filesz, vaddr)
                self._segments.append(segment)
                if flags & _PF_X:
                    self.code.append(segment)
            elif kind == _PT_GNU_EH_FRAME and data[offset : offset + 4] == _HDR_ENCODINGS:
                self._hdr = vaddr
        self._symbols: list[tuple[int, int, bool]] | None = None

    def offset(self, vaddr: int) -> int:
        """File offset of an address; IndexError if the file does not hold it."""
        for segment in self._segments:
            if segment.vaddr <= vaddr < segment.vaddr + segment.size:
                return vaddr - segment.vaddr + segment.offset
        raise IndexError(f"address {vaddr:#x} is in no segment")

    def unwound_function(self, vaddr: int) -> tuple[int | None, int]:
        """(start of the function around ``vaddr`` or None, end of the one before).

        By binary search in .eh_frame_hdr; (None, 0) if that knows nothing.
        """
        if not self._hdr:
            return None, 0
        table = self.offset(self._hdr) + 12
        count = struct.unpack_from("<I", self.data, table - 4)[0]

        def start(n: int) -> int:
            return int(self._hdr + struct.unpack_from("<i", self.data, table + 8 * n)[0])

        n = bisect.bisect_right(range(count), vaddr, key=start) - 1
        if n < 0:
            return None, 0
        begin = start(n)
        fde = self._hdr + struct.unpack_from("<i", self.data, table + 8 * n + 4)[0]
        pc_begin, pc_range = struct.unpack_from("<iI", self.data, self.offset(fde) + 8)
        if fde + 8 + pc_begin != begin:
            return begin, 0  # another encoding; the function's length is not known
        end = begin + pc_range
        return (begin, 0) if vaddr < end else (None, end)

    def named(self, vaddr: int) -> tuple[int, bool] | None:
        """(start, is it code) of the symbol around ``vaddr``."""
        symbols = self._load_symbols()
        n = bisect.bisect_right(symbols, (vaddr, 1 << 64, True)) - 1
        if n < 0:
            return None
        begin, size, is_code = symbols[n]
        return (begin, is_code) if not size or vaddr < begin + size else None

    def _load_symbols(self) -> list[tuple[int, int, bool]]:
        if self._symbols is None:
            self._symbols = sorted(set(self._read_symbols()))
        return self._symbols

    def _read_symbols(self) -> Iterator[tuple[int, int, bool]]:
        if not self._shoff or self._shoff + self._shnum * _SHDR.size > len(self.data):
            return
        ranges = [(s.vaddr, s.vaddr + s.size) for s in self.code]
        for at in range(self._shoff, self._shoff + self._shnum * _SHDR.size, _SHDR.size):
            _, kind, _, _, offset, size, _, _, _, _ = _SHDR.unpack_from(self.data, at)
            if kind not in (_SHT_SYMTAB, _SHT_DYNSYM):
                continue
            table = self.data[offset : offset + size - size % _SYM.size]
            for _, info, _, shndx, value, extent in _SYM.iter_unpack(table):
                symbol = info & 0xF
                if not shndx or symbol not in (_STT_NOTYPE, _STT_OBJECT, _STT_FUNC):
                    continue
                if any(low <= value < high for low, high in ranges):
                    yield value, extent, symbol != _STT_OBJECT


def find(data: mmap.mmap | bytes, instruction: bytes) -> list[int]:
    """File offsets at which ``instruction`` stands in the code of an ELF file.

    Empty for what is no x86-64 ELF file.
    """
    if len(data) < _EHDR.size or data[:6] != b"\x7fELF\x02\x01" or data[18] != _MACHINE_X86_64:
        return []
    try:
        elf = _Elf(data)
        return [
            offset
            for segment in elf.code
            for offset in _occurrences(data, instruction, segment)
            if _stands_at(elf, segment, offset)
        ]
    except (struct.error, IndexError, OverflowError):  # a damaged file: the kernel would not run it
        return []


def _occurrences(data: mmap.mmap | bytes, instruction: bytes, segment: _Segment) -> Iterator[int]:
    end = segment.offset + segment.size
    at = data.find(instruction, segment.offset, end)
    while at >= 0:
        yield at
        at = data.find(instruction, at + 1, end)


def _stands_at(elf: _Elf, segment: _Segment, offset: int) -> bool:
    vaddr = offset - segment.offset + segment.vaddr
    begin, gap = elf.unwound_function(vaddr)
    if begin is None:
        symbol = elf.named(vaddr)
        if symbol is not None and not symbol[1]:
            return False
        begin = symbol[0] if symbol is not None else None
    if begin is not None:
        at = elf.offset(begin)
        return _leads_to(elf.data[at : offset + 2], offset - at)
    start = max(segment.offset, gap - segment.vaddr + segment.offset, offset - _FALL_INTO_STEP)
    return _looks_like_code(elf.data[start : offset + 15 * _NEIGHBOURS], offset - start)


def _leads_to(code: bytes, target: int) -> bool:
    """Whether reading ``code`` from its start arrives at ``target``."""
    at = 0
    while at < target:
        size = length(code, at)
        if not size:
            return False
        at += size
    return at == target


def arrives(code: bytes, target: int) -> bool:
    """As _leads_to, from anywhere; the instructions before ``target`` must be usual ones."""
    at = usual = 0
    while at < target:
        usual = usual + 1 if _is_usual(code, at) else 0
        at += length(code, at) or 1
    return at == target and (usual >= _NEIGHBOURS or usual >= target // 4)


def _looks_like_code(code: bytes, target: int) -> bool:
    """As arrives, and the instructions behind ``target`` must be usual ones too."""
    if not arrives(code, target):
        return False
    at = target
    for _ in range(_NEIGHBOURS):
        if at + 15 > len(code):
            return True  # the segment ends here
        if not _is_usual(code, at):
            return False
        if code[at] in _GOES_AWAY:
            return True  # what follows need not be code
        at += length(code, at)
    return True


def _is_usual(code: bytes, at: int) -> bool:
    size = length(code, at)
    opcode = code[at : at + size].lstrip(_PREFIXES)[:1]
    return bool(opcode) and opcode[0] not in _NEVER_USED


_cache: dict[tuple[int, int, int, int, bytes], tuple[int, ...]] = {}


def find_in_file(fd: int, instruction: bytes) -> tuple[int, ...]:
    """As `find`, for an open file; remembered by device, inode, size and time."""
    stat = os.fstat(fd)
    key = (stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size, instruction)
    known = _cache.get(key)
    if known is None:
        known = ()
        if stat.st_size:
            with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as data:
                known = tuple(find(data, instruction))
        _cache[key] = known
    return known
