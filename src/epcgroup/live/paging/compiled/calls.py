"""What machine code of ours is written with: words at addresses, and functions of C.

The code can be kept on disk, so nothing in it may be an address of this process. It finds the
functions by the numbers in its block, from `CALLS` on.
"""

from __future__ import annotations

import ctypes
from typing import Any, Final

from epcgroup.errors import MissingCapability, to_install

try:
    from llvmlite import ir
except ImportError as missing:
    raise MissingCapability(f"machine code needs llvmlite: {to_install('sim')}") from missing

from epcgroup.live.paging.compiled import ciphers
from epcgroup.sim.compiler.dialect import I64, INT, Builtin, Value
from epcgroup.sim.compiler.jit import part

# Of every block, as byte offsets: what is private to the code, from here
SCRATCH: Final = 128
CALLS: Final = 256  # addresses of what is called
OWN: Final = 416  # and from here on what a block has of its own, beside the words before SCRATCH

PAGE_SIZE: Final = 4096
WORD: Final = 8
LENGTH: Final = 64  # pages of a batch, notes of a lane's log
COLUMN: Final = LENGTH * WORD

_POINTER = I64.as_pointer()


def _peek_word(builder: Any, arguments: list[Value]) -> Value:
    return Value(INT, builder.load(builder.inttoptr(arguments[0].it, _POINTER)))


def _poke_word(builder: Any, arguments: list[Value]) -> Value:
    address, value = arguments
    builder.store(value.it, builder.inttoptr(address.it, _POINTER))
    return value


def _exchange_words(builder: Any, arguments: list[Value]) -> Value:
    address, value = arguments
    return Value(INT, builder.atomic_rmw("xchg", builder.inttoptr(address.it, _POINTER), value.it, "seq_cst"))


def _count_trailing_zeros(builder: Any, arguments: list[Value]) -> Value:
    return Value(INT, builder.cttz(arguments[0].it, ir.Constant(ir.IntType(1), 0)))


peek = Builtin(_peek_word)  # the word at an address
poke = Builtin(_poke_word)  # store a word
exchange = Builtin(_exchange_words)  # store a word, give the old one: one step for all processors
trailing_zeros = Builtin(_count_trailing_zeros)  # the number of the lowest bit

_functions: list[Any] = []


def _function(library: ctypes.CDLL, name: str, bits: int = 32) -> Builtin:
    """A call of a C function; the first argument is the block, that of the result has so many bits."""
    number = len(_functions)
    _functions.append(getattr(library, name))
    result = ir.IntType(bits)

    def emit(builder: Any, arguments: list[Value]) -> Value:
        block, *given = (argument.it for argument in arguments)
        place = builder.add(block, ir.Constant(I64, CALLS + WORD * number))
        kind = ir.FunctionType(result, [I64] * len(given)).as_pointer()
        found = builder.call(builder.inttoptr(builder.load(builder.inttoptr(place, _POINTER)), kind), given)
        return Value(INT, found if bits == 64 else builder.sext(found, I64))

    return Builtin(emit)


_libc = ctypes.CDLL(None)
read = _function(_libc, "read", 64)
pread = _function(_libc, "pread", 64)
ioctl = _function(_libc, "ioctl")
fallocate = _function(_libc, "fallocate")
sched_yield = _function(_libc, "sched_yield")
clock_gettime = _function(_libc, "clock_gettime")
sysinfo = _function(_libc, "sysinfo")
syscall = _function(_libc, "syscall", 64)
_errno_location = _function(_libc, "__errno_location", 64)
open_init = _function(ciphers.libcrypto, "EVP_DecryptInit_ex")
open_update = _function(ciphers.libcrypto, "EVP_DecryptUpdate")
open_final = _function(ciphers.libcrypto, "EVP_DecryptFinal_ex")
seal_init = _function(ciphers.libcrypto, "EVP_EncryptInit_ex")
seal_update = _function(ciphers.libcrypto, "EVP_EncryptUpdate")
seal_final = _function(ciphers.libcrypto, "EVP_EncryptFinal_ex")
control = _function(ciphers.libcrypto, "EVP_CIPHER_CTX_ctrl")
assert CALLS + WORD * len(_functions) <= OWN


@part
def errno(block: int) -> int:
    """Why a call failed."""
    return peek(_errno_location(block)) & 0xFFFFFFFF  # type: ignore[no-any-return]


def new_block(size: int) -> ctypes.Array[ctypes.c_uint64]:
    """A block of ``size`` bytes, with the addresses of what is called in it."""
    block = (ctypes.c_uint64 * (size // WORD))()
    for number, function in enumerate(_functions):
        block[CALLS // WORD + number] = ctypes.cast(function, ctypes.c_void_p).value or 0
    return block
