"""Finding a function in the vDSO, the kernel's own shared object.

The kernel maps it into every process and names its address in the auxiliary
vector; it is no file, so dlopen cannot reach it. Symbols are found as the
dynamic linker would: program headers → PT_DYNAMIC → symbol, string and hash
tables. Section headers are not used: they need not be mapped. Addresses in the
dynamic section are relative to the image and taken modulo 2^64, because an
emulator may have put extended tables in front of the image.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator

from epcgroup.errors import MissingCapability

SGX_SYMBOL = "__vdso_sgx_enter_enclave"

_AT_SYSINFO_EHDR = 33
_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_HASH, _DT_STRTAB, _DT_SYMTAB, _DT_GNU_HASH = 4, 5, 6, 0x6FFFFEF5
_SYM = struct.Struct("<IBBHQQ")
_U64 = (1 << 64) - 1


def image() -> int:
    """Address of this process's vDSO.

    Raises MissingCapability when there is none (booted with vdso=0).
    """
    getauxval = ctypes.CDLL(None).getauxval
    getauxval.restype = ctypes.c_ulong
    base = int(getauxval(ctypes.c_ulong(_AT_SYSINFO_EHDR)))
    if not base:
        raise MissingCapability("this process has no vDSO; was the kernel booted with vdso=0?")
    return base


def find(name: str) -> int:
    """Address of the vDSO function ``name``.

    Raises MissingCapability when this kernel's vDSO does not have it.
    """
    base = image()
    bias, tables = _dynamic(base)
    strings = tables[_DT_STRTAB]
    for number in range(_symbol_count(tables)):
        symbol = _bytes(tables[_DT_SYMTAB] + number * _SYM.size, _SYM.size)
        st_name, _, _, shndx, value, _ = _SYM.unpack(symbol)
        if shndx and ctypes.string_at((strings + st_name) & _U64) == name.encode():
            return int(bias + value) & _U64
    raise MissingCapability(
        f"this kernel's vDSO has no {name}: Linux 5.11 with CONFIG_X86_SGX has it, "
        "and so has a machine of ours (epcgroup run -- COMMAND)"
    )


def _bytes(address: int, size: int) -> bytes:
    return ctypes.string_at(address & _U64, size)


def _words(address: int, count: int) -> tuple[int, ...]:
    return struct.unpack(f"<{count}I", _bytes(address, 4 * count))


def _program_headers(base: int) -> Iterator[tuple[int, int, int]]:
    """Type, offset and virtual address of each."""
    (phoff,) = struct.unpack("<Q", _bytes(base + 32, 8))
    phentsize, phnum = struct.unpack("<HH", _bytes(base + 54, 4))
    for number in range(phnum):
        kind, _, offset, vaddr = struct.unpack("<IIQQ", _bytes(base + phoff + number * phentsize, 24))
        yield kind, offset, vaddr


def _dynamic(base: int) -> tuple[int, dict[int, int]]:
    """The load bias, and the tables of the dynamic section by tag, as addresses."""
    bias, at = base, 0
    for kind, offset, vaddr in _program_headers(base):
        if kind == _PT_LOAD and offset == 0:
            bias = (base - vaddr) & _U64
        elif kind == _PT_DYNAMIC:
            at = base + offset
    tables: dict[int, int] = {}
    while True:
        tag, value = struct.unpack("<QQ", _bytes(at, 16))
        if tag == 0:
            return bias, tables
        if tag in (_DT_HASH, _DT_STRTAB, _DT_SYMTAB, _DT_GNU_HASH):
            tables[tag] = (bias + value) & _U64
        at += 16


def _symbol_count(tables: dict[int, int]) -> int:
    """How many symbols there are: only the hash tables tell."""
    if _DT_HASH in tables:
        return _words(tables[_DT_HASH], 2)[1]  # nbucket, nchain
    gnu = tables[_DT_GNU_HASH]
    nbuckets, first, bloom, _ = _words(gnu, 4)
    buckets = gnu + 16 + 8 * bloom
    last = max(_words(buckets, nbuckets))
    if last < first:
        return first
    chains = buckets + 4 * nbuckets
    while not _words(chains + 4 * (last - first), 1)[0] & 1:  # bit 0 ends a chain
        last += 1
    return last + 1
