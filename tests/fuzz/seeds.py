"""Inputs to begin with: programs that do what a well-behaved one does, so that nobody need find that out.

Chance does not build, sign and enter an enclave. From these it goes on: what it changes of them is met in
the middle of an enclave's life and not before its beginning.
"""

from __future__ import annotations

from collections.abc import Iterator

from .hostile import OPERATIONS, Hostile, Operation
from .surface import POLICIES

_TCS_AT, _CODE_AT, _OPERANDS_AT, _NEW_AT = 8, 9, 10, 40
_MEASURED = 8


def _do(operation: Operation, *words: int) -> bytes:
    return bytes([OPERATIONS.index(operation), *words])


def _enclave(kind: int = 0, flags: int = 0, file: int = 0) -> bytes:
    """One of 6 pages, a TCS with two SSA frames behind it, code, and a heap; initialised."""
    call = (file, 0, 0)
    return b"".join(
        (
            _do(Hostile.create, file, kind << 4, 0, 0),
            _do(Hostile.provision, 1, *call),
            _do(Hostile.add_pages, 5, _MEASURED | 0x10, 0, *call),
            _do(Hostile.add_pages, 0, 2 | _MEASURED, 1 | 3 << 3 | flags << 6, _TCS_AT, *call),
            _do(Hostile.add_pages, 0, 1 | _MEASURED, _CODE_AT, *call),
            _do(Hostile.add_pages, 5, 0, _OPERANDS_AT, *call),
            _do(Hostile.init, file, 0, 0, 0),
        )
    )


def _enclu(leaf: int, rbx: int = 0, rcx: int = 0, rdx: int = 0, *more: int, thread: int = 0) -> bytes:
    return _do(Hostile.enclu, 0, thread, leaf, 0, rbx, rcx, rdx, *more)


def _operand(kind: int, *words: int, at: int = _OPERANDS_AT) -> bytes:
    return _do(Hostile.operand, 0, kind, *words, 0, at)


def _secinfo(number: int) -> bytes:
    return _operand(number << 2)


_ENTER, _LEAVE = _enclu(1, _TCS_AT), _enclu(4, 1)
_AEX, _RESUME = _enclu(3, 1, 0, 0, 1, 4), _enclu(2, _TCS_AT)


def _accept(page: int) -> bytes:
    return _enclu(5, _OPERANDS_AT, page)


def _fault(page: int, access: str = "r") -> bytes:
    return _do(Hostile.fault, 0, page, "rwx".index(access), 0, 0)


def _modify(kind: int, what: int, page: int, count: int = 1) -> bytes:
    return _do(Hostile.modify, page, count, what << 3 | (kind - what * 8) % 3, 0, 0, 0)


_RESTRICT, _TYPES, _REMOVE = range(3)


def _lives() -> Iterator[bytes]:
    """Enclaves that are entered, interrupted, asked for keys, grown, changed and shrunk."""
    for kind in range(6):
        yield _enclave(kind, flags=2 if kind in (3, 5) else 0) + _ENTER + _LEAVE
    inside = _enclave() + _ENTER
    yield inside + _AEX + _ENTER + _AEX + _ENTER + _enclu(9) + _LEAVE + _RESUME + _LEAVE
    yield _enclave(3, flags=2) + _ENTER + _AEX + _RESUME + _enclu(9) + _LEAVE
    for name in range(6):
        asked = _operand(1 | name << 2, 1, 0, at=11) + _enclu(1, 11, 12)
        yield inside + asked + _operand(2, 7, at=11) + _enclu(0, 11, 12, 13)
    yield _enclave(5, flags=2) + _ENTER + _operand(1 | 4 << 2, 0x1F, 0, at=11) + _enclu(1, 11, 12)
    grown = inside + _fault(_NEW_AT) + _fault(_NEW_AT + 1, "w")
    yield grown + _secinfo(2) + _accept(_NEW_AT) + _secinfo(0) + _enclu(6, _OPERANDS_AT, _NEW_AT)
    copied = _enclu(7, _OPERANDS_AT, _NEW_AT, 2) + _enclu(7, _OPERANDS_AT, _NEW_AT + 1, 3)
    yield grown + _secinfo(0) + copied
    restricted = inside + _modify(_RESTRICT, 1, 2, 3) + _secinfo(6) + _accept(2) + _accept(3)
    yield restricted + _secinfo(11) + _enclu(6, _OPERANDS_AT, 2)
    trimmed = inside + _modify(_TYPES, 4, 2, 3)
    yield trimmed + _secinfo(9) + _accept(2) + _accept(3) + _accept(4) + _modify(_REMOVE, 0, 2, 3)
    yield trimmed + _modify(_REMOVE, 0, 2, 3)
    made_tcs = _operand(7, 2, 0, 0, at=2) + _modify(_TYPES, 1, 2) + _secinfo(8) + _accept(2)
    yield inside + made_tcs + _LEAVE + _enclu(1, 2)


def _circumstances() -> Iterator[bytes]:
    """What happens around an enclave: short memory, other enclaves, mappings, guests, signals, its end."""
    inside, work = _enclave() + _ENTER, _do(Hostile.background, 7)
    tight = _do(Hostile.limit, 0, 14) + inside
    yield tight + b"".join(_fault(page) + work for page in range(16)) + _LEAVE
    yield tight + _do(Hostile.limit, 0, 2) + work + _AEX + _do(Hostile.limit, 0, 255) + _RESUME
    others = b"".join(_do(Hostile.open) + _enclave(file=file) for file in (1, 2))
    yield inside + others + work + _LEAVE + _do(Hostile.close, 1) + _do(Hostile.killed)
    mmap, mprotect, munmap, fork, ended = 0x60, 0x24, 3, 6, 7

    def call(which: int, process: int, page: int, pages: int) -> bytes:
        return _do(Hostile.map, 0, which, process, page, pages, *((0, 0) if which == mmap else ()))

    mapped = _enclave() + call(mmap, 0, 4, 5)
    yield mapped + call(fork, 0, 0, 0) + call(mmap, 1, 6, 9) + _do(Hostile.touch, 1, 3, 0, 0)
    yield (
        mapped + call(mprotect, 0, 5, 1) + call(munmap, 0, 6, 2) + call(fork, 0, 0, 0) + call(ended, 1, 0, 0)
    )
    touched, made, removed = 4, 0x80, 0x30
    guests = ((0, 1, touched), (0, 2, touched), (0, 1, made), (0, 2, 0), (1, 3, touched), (1, 3, 0))
    yield b"".join(
        _do(Hostile.virtual_epc, 2 | which | how, page, *((0,) if how == touched else ()))
        for which, page, how in guests
    ) + 2 * _do(Hostile.virtual_epc, 2 | removed, 0, 0, 0)
    for page in (1, _TCS_AT):
        yield _enclave() + _do(Hostile.debug, 0, page, 0, 10, 0) + _do(Hostile.debug, 0, page, 1, 5, 1, 0)
    half = _do(Hostile.create, 0, 0, 0, 0) + _do(Hostile.add_pages, 5, 0, 0, 0, 0xC0, 0)
    yield half + work + _do(Hostile.resume, 0)
    yield _do(Hostile.signal, 3) + _enclave() + _do(Hostile.provision, 1, 0, 0, 0)
    for pieces in ((0, 4, 3, 6, 8), (1, 7, 4, 3), (2, 5, 3, 14, 6), (5, 3, 9, 10, 11, 6)):
        yield _do(Hostile.code, len(pieces), *pieces, 0)


def seeds() -> Iterator[bytes]:
    """Each program, on each policy."""
    for program in (*_lives(), *_circumstances()):
        for policy in range(len(POLICIES)):
            yield bytes([policy]) + program
