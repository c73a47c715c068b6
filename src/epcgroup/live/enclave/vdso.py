"""The vDSO call __vdso_sgx_enter_enclave, for kernels that do not export it.

The kernel's vDSO stays in place (its fast clocks are worth keeping), only its
*tables* are replaced: our function and extended copies of the symbol table, its
strings, versions and hash lie in a new mapping, and the places that lead to the
tables are redirected. There are three ways to the symbol, and programs use all:

* PT_DYNAMIC with DT_HASH, DT_SYMTAB, DT_STRTAB (the kernel's documentation);
* the dynamic linker: dlsym, dlvsym with version LINUX_2.6, weak references;
* the section headers .dynsym and .dynstr, as a debugger would (Intel's SDK).

Table addresses are relative to the vDSO, modulo 2**64. DT_GNU_HASH becomes
DT_DEBUG, because a linker that finds it ignores DT_HASH; a vDSO that has no
DT_HASH gets it in that entry. Where the kernel exports the symbol already, its
function starts with a jump to ours.

Rejected: a vDSO of our own at another address (AT_SYSINFO_EHDR is read before
we could change every copy of it), preloading (static programs, raw parsers).
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from epcgroup.live.enclave import enter_enclave
from epcgroup.live.fastpath import code as fastcode
from epcgroup.live.tracing import inject, memory, procfs
from epcgroup.units import PAGE_SIZE, page_ceil

if TYPE_CHECKING:
    from epcgroup.live.tracing.inject import Injector

SYMBOL = b"__vdso_sgx_enter_enclave"
_FUNC_GLOBAL = 0x12  # STT_FUNC, STB_GLOBAL

_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_NULL, _DT_HASH, _DT_STRTAB, _DT_SYMTAB, _DT_STRSZ, _DT_DEBUG = 0, 4, 5, 6, 10, 21
_DT_GNU_HASH, _DT_VERSYM = 0x6FFFFEF5, 0x6FFFFFF0
_SECTIONS = {b".dynsym": "symtab", b".dynstr": "strtab", b".gnu.version": "versym", b".hash": "hash"}
_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_SHDR = struct.Struct("<IIQQQQIIQQ")
_SYM = struct.Struct("<IBBHQQ")
_DYN = struct.Struct("<QQ")
_JUMP = b"\xff\x25\0\0\0\0"  # jmp *0(%rip); the address follows
_U64 = 2**64 - 1

_SYS_MMAP = 9
_PROT_READ_EXEC, _MAP_PRIVATE_ANONYMOUS = 5, 0x22


@dataclass(frozen=True, slots=True)
class VdsoInfo:
    """Where our part of a process's vDSO lies (addresses in that process)."""

    base: int  # the kernel's vDSO
    start: int  # our mapping, [start, end)
    end: int
    function: int  # __vdso_sgx_enter_enclave
    enclu: int  # its ENCLU, the AEP of entries through it
    fixup: int  # where an exception there goes on: rdi vector, rsi code, rdx address
    enter: int  # a page for the way in without a trap, see `open_fast`
    syscall_insn: int  # a SYSCALL instruction for injection


@dataclass(slots=True)
class _Image:
    """The vDSO's tables, cut out of its memory."""

    dynamic: dict[int, tuple[int, int]]  # tag → (offset of its entry, value)
    symbols: list[bytes]
    strings: bytes
    versions: list[int]  # empty if it has none

    def find(self, name: bytes) -> int | None:
        """Value of the defined symbol ``name``."""
        for raw in self.symbols:
            st_name, _, _, shndx, value, _ = _SYM.unpack(raw)
            if shndx and self.strings[st_name : self.strings.index(0, st_name)] == name:
                return int(value)
        return None


def supported(pid: int) -> bool:
    """Whether ``pid`` has a 64-bit vDSO at all."""
    base = procfs.auxv(pid).get(procfs.AT_SYSINFO_EHDR)
    return base is not None and memory.read(pid, base, 5) == b"\x7fELF\x02"


def install(tid: int, injector: Injector, *, enclu: bytes = enter_enclave.ENCLU_INSN) -> VdsoInfo:
    """Give the new image of stopped thread ``tid`` the call.

    To be called at the exit of its execve, before the dynamic linker runs.
    ``enclu``: three bytes to put in the place of ENCLU (a cheaper trap).
    OSError(ENOEXEC) if the vDSO cannot be understood.
    """
    pid = procfs.tgid(tid)
    base = procfs.auxv(pid)[procfs.AT_SYSINFO_EHDR]
    vdso = _read(pid, base)
    before = _installed(pid, base, vdso)
    image = _parse(vdso) if before is None else None
    code = bytearray(enter_enclave.CODE)
    code[enter_enclave.ENCLU : enter_enclave.ENCLU + 3] = enclu
    insn = vdso.find(inject.SYSCALL_INSN)
    syscall_insn = base + insn if insn >= 0 else inject.find_syscall_insn(pid)

    if image is None:  # by a supervisor that has gone since; the place is good for us too
        assert before is not None
        memory.poke_text(pid, before.start, bytes(code))
        return _info(base, before.start, before.end, syscall_insn)
    exported = image.find(SYMBOL)
    length = (page_ceil(len(code) + 2 * len(vdso)) + 1) * PAGE_SIZE
    near = base + page_ceil(len(vdso)) * PAGE_SIZE
    start = injector.inject(
        tid,
        _SYS_MMAP,
        near,
        length,
        _PROT_READ_EXEC,
        _MAP_PRIVATE_ANONYMOUS,
        -1,
        0,
        syscall_insn=syscall_insn,
    )
    if exported is not None:
        memory.poke_text(pid, start, bytes(code))
        memory.poke_text(pid, base + exported & _U64, _JUMP + start.to_bytes(8, "little"))
    else:
        _replace_tables(pid, base, vdso, image, start, bytes(code))
    return _info(base, start, start + length, syscall_insn)


def open_fast(pid: int, info: VdsoInfo) -> int:
    """Have the call enter without a trap where it can; the end of the code that does it.

    Five bytes change at once, in code that nobody needs who owns no enclave yet.
    """
    code = fastcode.ENTER + fastcode.enter_stub(b"", info.enclu, info.enter)
    memory.poke_text(pid, info.enter, code)
    place = info.function + enter_enclave.JUMP
    memory.poke_text(pid, place, fastcode.jmp(place, info.enter + len(fastcode.ENTER)))
    return info.enter + len(code)


def _info(base: int, start: int, end: int, syscall_insn: int) -> VdsoInfo:
    return VdsoInfo(
        base=base,
        start=start,
        end=end,
        function=start,
        enclu=start + enter_enclave.ENCLU,
        fixup=start + enter_enclave.FIXUP,
        enter=end - 2 * PAGE_SIZE,  # the last page is `Tracer.scratch`
        syscall_insn=syscall_insn,
    )


def _installed(pid: int, base: int, vdso: bytes) -> procfs.Mapping | None:
    """Our mapping, if this vDSO leads to one already."""
    dynamic = _dynamic(vdso)
    symtab, table = dynamic.get(_DT_SYMTAB, (0, 0))[1], dynamic.get(_DT_HASH, (0, 0))[1]
    if symtab < len(vdso):
        exported = _parse(vdso).find(SYMBOL)
        if exported is None or vdso[exported : exported + len(_JUMP)] != _JUMP:
            return None
        function = int.from_bytes(vdso[exported + len(_JUMP) :][:8], "little")
    else:
        count = struct.unpack("<I", memory.read(pid, base + table + 4 & _U64, 4))[0]
        last = memory.read(pid, base + symtab + (count - 1) * _SYM.size & _U64, _SYM.size)
        function = base + _SYM.unpack(last)[4] & _U64
    return next((m for m in procfs.maps(pid) if m.start == function and m.executable), None)


def _read(pid: int, base: int) -> bytes:
    """The whole vDSO: what its mapping holds."""
    for mapping in procfs.maps(pid):
        if mapping.start == base:
            return memory.read(pid, base, mapping.end - base)
    raise OSError(errno.ENOEXEC, f"the vDSO of process {pid} is not mapped at {base:#x}")


def _dynamic(vdso: bytes) -> dict[int, tuple[int, int]]:
    header = _EHDR.unpack_from(vdso)
    phoff, phnum = header[5], header[10]
    dynamic: dict[int, tuple[int, int]] = {}
    for n in range(phnum):
        kind, _, _, vaddr, _, _, memsz, _ = _PHDR.unpack_from(vdso, phoff + n * _PHDR.size)
        if kind == _PT_DYNAMIC:
            for at in range(vaddr, vaddr + memsz, _DYN.size):
                tag, value = _DYN.unpack_from(vdso, at)
                if tag == _DT_NULL:
                    break
                dynamic[tag] = (at, value)
    return dynamic


def _parse(vdso: bytes) -> _Image:
    dynamic = _dynamic(vdso)
    try:
        strtab, symtab = dynamic[_DT_STRTAB][1], dynamic[_DT_SYMTAB][1]
        strings = vdso[strtab : strtab + dynamic[_DT_STRSZ][1]]
        count = _symbol_count(vdso, dynamic)
    except (KeyError, struct.error) as error:
        raise OSError(errno.ENOEXEC, f"the vDSO has no usable dynamic section ({error})") from error
    symbols = [vdso[at : at + _SYM.size] for at in range(symtab, symtab + count * _SYM.size, _SYM.size)]
    versions: list[int] = []
    if _DT_VERSYM in dynamic:
        versions = list(struct.unpack_from(f"<{count}H", vdso, dynamic[_DT_VERSYM][1]))
    return _Image(dynamic, symbols, strings, versions)


def _symbol_count(vdso: bytes, dynamic: dict[int, tuple[int, int]]) -> int:
    if _DT_HASH in dynamic:
        return int(struct.unpack_from("<I", vdso, dynamic[_DT_HASH][1] + 4)[0])
    # The GNU hash table has no count: the last symbol is the end of the last chain.
    table = dynamic[_DT_GNU_HASH][1]
    buckets, first, bloom, _ = struct.unpack_from("<4I", vdso, table)
    chains = table + 16 + 8 * bloom + 4 * buckets
    last = max(struct.unpack_from(f"<{buckets}I", vdso, chains - 4 * buckets))
    while not struct.unpack_from("<I", vdso, chains + 4 * (last - first))[0] & 1:
        last += 1
    return int(last) + 1


def _replace_tables(pid: int, base: int, vdso: bytes, image: _Image, start: int, code: bytes) -> None:
    """Write our mapping and redirect the dynamic section and section headers to it."""
    function = struct.pack("<IBBH", len(image.strings), _FUNC_GLOBAL, 0, _text_index(image))
    function += struct.pack("<QQ", start - base & _U64, len(code))
    tables = {
        "symtab": b"".join([*image.symbols, function]),
        "strtab": image.strings + SYMBOL + b"\0",
        "hash": _one_bucket_hash(len(image.symbols) + 1),
    }
    if image.versions:
        # The version of any other function: the vDSO defines only one.
        defined = next(n for n, raw in enumerate(image.symbols) if _SYM.unpack(raw)[1] & 0xF == 2)
        versions = [*image.versions, image.versions[defined]]
        tables["versym"] = struct.pack(f"<{len(versions)}H", *versions)
    body = bytearray(code)
    places: dict[str, int] = {}
    for name, content in tables.items():
        body += bytes(-len(body) % 16)
        places[name] = start + len(body) - base & _U64
        body += content
    memory.poke_text(pid, start, bytes(body))

    patched = bytearray(vdso)
    _redirect_dynamic(patched, image.dynamic, places, len(tables["strtab"]))
    _redirect_sections(patched, places, tables)
    changed = [at for at in range(0, len(vdso), 8) if patched[at : at + 8] != vdso[at : at + 8]]
    memory.poke_text(pid, base + changed[0], bytes(patched[changed[0] : changed[-1] + 8]))


def _text_index(image: _Image) -> int:
    """Section index that the other functions have."""
    return next(int(s[3]) for s in map(_SYM.unpack, image.symbols) if s[1] & 0xF == 2 and s[3])


def _one_bucket_hash(count: int) -> bytes:
    """A SysV hash table whose only chain leads through all symbols."""
    chain = [0, *range(2, count), 0]
    return struct.pack(f"<{3 + count}I", 1, count, 1, *chain)


def _redirect_dynamic(
    vdso: bytearray, dynamic: dict[int, tuple[int, int]], places: dict[str, int], strings: int
) -> None:
    entries = {_DT_SYMTAB: places["symtab"], _DT_STRTAB: places["strtab"], _DT_STRSZ: strings}
    if "versym" in places:
        entries[_DT_VERSYM] = places["versym"]
    for tag, value in entries.items():
        _DYN.pack_into(vdso, dynamic[tag][0], tag, value)
    if _DT_HASH in dynamic:
        _DYN.pack_into(vdso, dynamic[_DT_HASH][0], _DT_HASH, places["hash"])
        if _DT_GNU_HASH in dynamic:
            _DYN.pack_into(vdso, dynamic[_DT_GNU_HASH][0], _DT_DEBUG, 0)
    else:
        _DYN.pack_into(vdso, dynamic[_DT_GNU_HASH][0], _DT_HASH, places["hash"])


def _redirect_sections(vdso: bytearray, places: dict[str, int], tables: dict[str, bytes]) -> None:
    """The same for those who read section headers; a vDSO may have none."""
    header = _EHDR.unpack_from(vdso)
    shoff, shnum, shstrndx = header[6], header[12], header[13]
    if not shoff or shoff + shnum * _SHDR.size > len(vdso) or shstrndx >= shnum:
        return
    names = _SHDR.unpack_from(vdso, shoff + shstrndx * _SHDR.size)[4]
    for at in range(shoff, shoff + shnum * _SHDR.size, _SHDR.size):
        name, kind, flags, addr, offset, size, *rest = _SHDR.unpack_from(vdso, at)
        begin = names + name
        table = _SECTIONS.get(bytes(vdso[begin : vdso.index(0, begin)]))
        if table in places:
            addr = offset = places[table]
            size = len(tables[table])
            _SHDR.pack_into(vdso, at, name, kind, flags, addr, offset, size, *rest)
