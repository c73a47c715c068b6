"""Instructions of a program that must come to us: CPUID and ENCLU.

They are replaced in the code that a program maps from files, by an instruction
of the same length that traps: ``int $0x80``, the 32-bit system call, which no
64-bit program uses. The seccomp filter reports it with all registers intact.
Unlike the #UD of an ENCLU or a planted UD2 it raises no signal, so it works for
a thread that blocks SIGILL (the kernel resets the handler of a blocked signal
that an instruction raises, before a tracer can prevent it).

Only private file mappings are changed; enclave code is measured, and stays. A debugger
finds the instructions where they were (`as_it_was`, `change`): those of SGX tell by
the ENCLU at RIP whether a thread is in an enclave.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from epcgroup.live.enclave import codesites
from epcgroup.live.tracing import memory, procfs
from epcgroup.live.tracing.task import Trap

if TYPE_CHECKING:
    from epcgroup.live.tracing.task import Task

INT80 = b"\xcd\x80"
UD2 = b"\x0f\x0b"
NOP = b"\x90"
CPUID = b"\x0f\xa2"
ENCLU = b"\x0f\x01\xd7"
#: What stands in for ENCLU; same length, so that "behind it" is the same place.
ENCLU_TRAP = INT80 + NOP
_STOOD = {Trap.CPUID: (CPUID, (INT80, UD2)), Trap.ENCLU: (ENCLU, (ENCLU_TRAP,))}
_BREAKPOINT = 0xCC  # int3


def patch(pid: int, trap: bytes = INT80) -> dict[int, Trap]:
    """Replace CPUID and ENCLU in all code that ``pid`` has mapped from files.

    Returns what stood where. ``trap`` is the two-byte instruction to put there
    (with UD2, ENCLU needs no replacement). ``pid`` is stopped and ours.
    """
    traps: dict[int, Trap] = {}
    for mapping in procfs.maps(pid):
        if not mapping.executable or mapping.shared or not mapping.inode:
            continue
        with contextlib.suppress(OSError):  # unreadable file: its CPUID stays native
            fd = _open_mapped(pid, mapping)
            try:
                size = mapping.end - mapping.start
                traps.update(patch_mapping(pid, fd, mapping.start, size, mapping.offset, trap))
            finally:
                os.close(fd)
    return traps


def patch_mapping(
    pid: int, fd: int, start: int, length: int, offset: int, trap: bytes = INT80
) -> dict[int, Trap]:
    """Replace them in one private mapping of the file ``fd`` (ours) in ``pid``.

    For libraries, after their mmap. Costs a stat if the file is known to have none.
    """
    traps: dict[int, Trap] = {}
    for kind, instruction, replacement in _replacements(trap):
        for at in codesites.find_in_file(fd, instruction):
            if offset <= at <= offset + length - len(instruction):
                addr = start + at - offset
                if memory.peek_text(pid, addr, len(instruction)) == instruction:
                    memory.poke_text(pid, addr, replacement)
                    traps[addr] = kind
    return traps


def _replacements(trap: bytes) -> list[tuple[Trap, bytes, bytes]]:
    replaced = [(Trap.CPUID, CPUID, trap)]
    if trap == INT80:
        replaced.append((Trap.ENCLU, ENCLU, ENCLU_TRAP))
    return replaced


def patch_library(
    pid: int, remote_fd: int, start: int, length: int, offset: int, trap: bytes = INT80
) -> dict[int, Trap]:
    """As patch_mapping, by the descriptor that ``pid`` mapped the file from."""
    try:
        fd = os.open(f"/proc/{pid}/fd/{remote_fd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return {}
    try:
        return patch_mapping(pid, fd, start, length, offset, trap)
    finally:
        os.close(fd)


def has_any(target: Task, addr: int, length: int) -> bool:
    """Whether an instruction of ``target`` that we have replaced shares a byte with that range."""
    return bool(_sites(target, addr, length))


def as_it_was(target: Task, addr: int, length: int) -> bytes:
    """What would be read there without us."""
    data = bytearray(memory.peek_text(target.pid, addr, length))
    for site, instruction, traps in _sites(target, addr, length):
        if memory.peek_text(target.pid, site, len(instruction)) in traps:
            _lay(data, addr, site, instruction)
    return bytes(data)


def change(target: Task, addr: int, data: bytes) -> None:
    """Store ``data``, as if we had replaced nothing; an instruction that is whole afterwards traps again.

    A debugger's breakpoint on it takes a byte away and puts it back.
    """
    for site, instruction, traps in _sites(target, addr, len(data)):
        there = memory.peek_text(target.pid, site, len(instruction))
        if there not in traps and there[0] != _BREAKPOINT:
            continue  # other code by now
        whole = bytearray(instruction if there in traps else there)
        _lay(whole, site, addr, data)
        if whole == instruction:
            whole[:] = traps[-1 if target.watched else 0]
        start, end = min(site, addr), max(site + len(whole), addr + len(data))
        piece = bytearray(memory.peek_text(target.pid, start, end - start))
        _lay(piece, start, addr, data)
        _lay(piece, start, site, bytes(whole))
        addr, data = start, bytes(piece)
    memory.poke_text(target.pid, addr, data)


def _sites(target: Task, addr: int, length: int) -> list[tuple[int, bytes, tuple[bytes, ...]]]:
    """Replaced instructions that share a byte with it: where, what stood there, what may stand for it."""
    found = []
    for site, kind in target.mm.traps.items():
        if addr - len(ENCLU) < site < addr + length and kind in _STOOD:
            instruction, traps = _STOOD[kind]
            if site + len(instruction) > addr:
                found.append((site, instruction, traps))
    return found


def _lay(under: bytearray, at: int, start: int, data: bytes) -> None:
    """Put the part of ``data``, of address ``start``, that lies in ``under``, of address ``at``, over it."""
    first, last = max(at, start), min(at + len(under), start + len(data))
    if first < last:
        under[first - at : last - at] = data[first - start : last - start]


def _open_mapped(pid: int, mapping: procfs.Mapping) -> int:
    """The file behind a mapping, also if it is deleted or of another mount namespace."""
    flags = os.O_RDONLY | os.O_CLOEXEC
    try:
        return os.open(f"/proc/{pid}/map_files/{mapping.start:x}-{mapping.end:x}", flags)
    except PermissionError:
        return os.open(f"/proc/{pid}/root{mapping.path}", flags)
