"""The express lane's loop in machine code: read a fault, unseal the page, fill it, note it.

This is the part of `service` that decides nothing: the page is evicted and sealed in
full, its table entry says where, and the engine has granted room for it beforehand
(`express`). Everything else goes back to Python with the event. A round trip through
Python costs a fault twice what it is worth here, most of it in an interpreter whose
code and branch predictions the switch of processes has thrown out of the caches.

It works on one block of 64-bit words that both sides see, at the offsets below, under
a spin lock in its first word: the loop holds it from the look at the credit to the
note in the log. All memory is addressed by number.

Written in the dialect of `epcgroup.sim.compiler.compiler`. What the code calls (system calls by
libc, AES-GCM by libcrypto, which opens what `sgx.seal` sealed) it finds by address in
its block, so that the machine code can be kept on disk.

Needs llvmlite (extra ``sim``) and libcrypto.so; importing raises MissingCapability else.
"""

from __future__ import annotations

import ctypes
from typing import Any, Final

from epcgroup.errors import MissingCapability, to_install

try:
    from llvmlite import ir
except ImportError as missing:
    raise MissingCapability(f"machine code needs llvmlite: {to_install('sim')}") from missing

from epcgroup.live.paging import ciphers
from epcgroup.sim.compiler.dialect import I64, INT, Builtin, Value
from epcgroup.sim.compiler.jit import Entry, part

# Words of the block, as byte offsets.
LOCK: Final = 0
CREDIT: Final = 8  # pages that may still be loaded
NOTED: Final = 16  # entries in the log
START: Final = 24  # the range of addresses
END: Final = 32
BASE: Final = 40  # address of the enclave's page 0
ENCLAVE: Final = 48  # its number
TABLE: Final = 56  # address of its table
PROT: Final = 64  # of the mapping
UFFD: Final = 72
CIPHER: Final = 80  # EVP_CIPHER_CTX for opening
PAGE: Final = 88  # address of a page of scratch memory
MESSAGE: Final = 96  # struct uffd_msg: 32 bytes
_NONCE: Final = 128  # 12 bytes
_AAD: Final = 144  # 25 bytes: flags, address, enclave, all zero
_COUNT: Final = 176
_COPY: Final = 184  # struct uffdio_copy: 40 bytes
_TIME: Final = 224  # struct timespec
_CALLS: Final = 256  # addresses of what is called
LOG_LENGTH: Final = 64
_COLUMN: Final = LOG_LENGTH * 8
LOG: Final = 384  # columns of a word for each load: index, thread, start, end (ns of CLOCK_MONOTONIC)
SIZE: Final = LOG + 4 * _COLUMN
#: How serving ends: reading was interrupted, or there is no more to read; the event in
#: MESSAGE is not answered; the last page was loaded for which there was credit.
NOTHING, UNANSWERED, USED_UP = 0, 1, 2

# Words of a job of eviction; what is private is as in the block.
COUNT: Final = 0  # pages
VERSION: Final = 8  # of the first one, the others follow
MEMFD: Final = 16
UFFD_OF_JOB: Final = 24
BASE_OF_JOB: Final = 32  # as BASE
ENCLAVE_OF_JOB: Final = 40
SEALING: Final = 56  # EVP_CIPHER_CTX
PLAIN: Final = 64  # as PAGE
_ARGUMENT: Final = 184  # struct uffdio_writeprotect
JOB_LENGTH: Final = LOG_LENGTH
PAGES: Final = 384  # columns of a word for each page: its index,
WORDS: Final = PAGES + _COLUMN  # its EPCM word,
PLACES: Final = WORDS + _COLUMN  # where to seal it,
ZEROS: Final = PLACES + _COLUMN  # out: 1 for one that is all zero, and left a MAC alone
JOB_SIZE: Final = ZEROS + _COLUMN

# Words of a look at ages; COUNT as in a job.
PAGEMAP: Final = 8
PIDFD: Final = 16
MAY_DROP: Final = 24  # whether page table entries may be dropped
BASE_OF_LOOK: Final = 32  # as BASE
LOOKS: Final = 384  # columns as in a job: index,
PRESENT: Final = LOOKS + _COLUMN  # in and out: whether it has a page table entry
_RANGES: Final = PRESENT + _COLUMN  # struct iovec, as many as there are pages
_SCRATCH: Final = _RANGES + JOB_LENGTH * 16  # entries of the pagemap file; struct sysinfo
LOOK_SIZE: Final = _SCRATCH + JOB_LENGTH * 8
#: What is left to do when a look ends: nothing; the entries are still there.
DROPPED, KEPT = 0, 1

# One entry of a table: address of the sealed bytes (0: ask Python), version, EPCM word
# with the page's maximum protection in the bits from MAXIMUM_SHIFT on.
ENTRY: Final = 24
MAXIMUM_SHIFT: Final = 32

_ENOENT, _ESRCH, _EIO = 2, 3, 5
_TOTALSWAP: Final = 64  # bytes into struct sysinfo
_PROCESS_MADVISE, _MADV_PAGEOUT = 440, 21
_PUNCH: Final = 3  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
_UFFDIO_WRITEPROTECT: Final = 0xC018AA06
_UFFDIO_COPY: Final = 0xC028AA03
_WRITE, _WP = 1, 2
_W: Final = 2  # of an EPCM word
_COPY_WP: Final = 2
_PAGE_SIZE: Final = 4096
_GET_TAG, _SET_TAG = 0x10, 0x11
_MAC: Final = 16
_AAD_SIZE: Final = 25

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


peek = Builtin(_peek_word)  # the word at an address
poke = Builtin(_poke_word)  # store a word
exchange = Builtin(_exchange_words)  # store a word, give the old one: one step for all processors

_functions: list[Any] = []


def _function(library: ctypes.CDLL, name: str, bits: int = 32) -> Builtin:
    """A call of a C function; the first argument is the block, that of the result has so many bits."""
    number = len(_functions)
    _functions.append(getattr(library, name))
    result = ir.IntType(bits)

    def emit(builder: Any, arguments: list[Value]) -> Value:
        block, *given = (argument.it for argument in arguments)
        place = builder.add(block, ir.Constant(I64, _CALLS + 8 * number))
        kind = ir.FunctionType(result, [I64] * len(given)).as_pointer()
        found = builder.call(builder.inttoptr(builder.load(builder.inttoptr(place, _POINTER)), kind), given)
        return Value(INT, found if bits == 64 else builder.sext(found, I64))

    return Builtin(emit)


_libc = ctypes.CDLL(None)
_read = _function(_libc, "read", 64)
_pread = _function(_libc, "pread", 64)
_ioctl = _function(_libc, "ioctl")
_fallocate = _function(_libc, "fallocate")
_sched_yield = _function(_libc, "sched_yield")
_clock_gettime = _function(_libc, "clock_gettime")
_sysinfo = _function(_libc, "sysinfo")
_syscall = _function(_libc, "syscall", 64)
_errno_location = _function(_libc, "__errno_location", 64)
_open_init = _function(ciphers.libcrypto, "EVP_DecryptInit_ex")
_open_update = _function(ciphers.libcrypto, "EVP_DecryptUpdate")
_open_final = _function(ciphers.libcrypto, "EVP_DecryptFinal_ex")
_seal_init = _function(ciphers.libcrypto, "EVP_EncryptInit_ex")
_seal_update = _function(ciphers.libcrypto, "EVP_EncryptUpdate")
_seal_final = _function(ciphers.libcrypto, "EVP_EncryptFinal_ex")
_control = _function(ciphers.libcrypto, "EVP_CIPHER_CTX_ctrl")


def _acquire(block: int) -> int:
    """Take the block's lock; what is in the block holds still then."""
    while exchange(block + LOCK, 1):
        _sched_yield(block)
    return 0


def _serve(block: int) -> int:
    """Answer faults as long as there is credit for them; how it ended."""
    message = block + MESSAGE
    while True:
        if _read(block, peek(block + UFFD), message, 32) != 32:
            return NOTHING
        flags, addr = peek(message + 8), peek(message + 16)
        _clock_gettime(block, 1, block + _TIME)
        started = peek(block + _TIME) * 1000000000 + peek(block + _TIME + 8)
        while exchange(block + LOCK, 1):
            _sched_yield(block)
        served, left = False, 0
        inside = peek(block + START) <= addr and addr < peek(block + END)
        if peek(block + CREDIT) > 0 and inside and not flags & _WP:
            index = (addr - peek(block + BASE)) >> 12
            entry = peek(block + TABLE) + index * ENTRY
            sealed, word = peek(entry), peek(entry + 16)
            writable = word & _W
            allowed = not peek(block + PROT) & ~(word >> MAXIMUM_SHIFT)
            if sealed and allowed and (writable or not flags & _WRITE):
                page, cipher = peek(block + PAGE), peek(block + CIPHER)
                place = addr & ~(_PAGE_SIZE - 1)
                poke(block + _NONCE, peek(entry + 8))
                poke(block + _NONCE + 8, 0)
                poke(block + _AAD, word & 0xFFFFFFFF)
                poke(block + _AAD + 8, place)
                poke(block + _AAD + 16, peek(block + ENCLAVE))
                poke(block + _AAD + 24, 0)
                good = (
                    _open_init(block, cipher, 0, 0, 0, block + _NONCE) > 0
                    and _open_update(block, cipher, 0, block + _COUNT, block + _AAD, _AAD_SIZE) > 0
                    and _open_update(block, cipher, page, block + _COUNT, sealed, _PAGE_SIZE) > 0
                    and _control(block, cipher, _SET_TAG, _MAC, sealed + _PAGE_SIZE) > 0
                    and _open_final(block, cipher, page + _PAGE_SIZE, block + _COUNT) > 0
                )
                if good:
                    poke(block + _COPY, place)
                    poke(block + _COPY + 8, page)
                    poke(block + _COPY + 16, _PAGE_SIZE)
                    poke(block + _COPY + 24, 0 if writable else _COPY_WP)
                    served = _ioctl(block, peek(block + UFFD), _UFFDIO_COPY, block + _COPY) == 0
                if served:
                    poke(entry, 0)
                    left = peek(block + CREDIT) - 1
                    poke(block + CREDIT, left)
                    noted = peek(block + NOTED)
                    note = block + LOG + noted * 8
                    _clock_gettime(block, 1, block + _TIME)
                    poke(note, index)
                    poke(note + _COLUMN, peek(message + 24) & 0xFFFFFFFF)
                    poke(note + 2 * _COLUMN, started)
                    poke(note + 3 * _COLUMN, peek(block + _TIME) * 1000000000 + peek(block + _TIME + 8))
                    poke(block + NOTED, noted + 1)
        exchange(block + LOCK, 0)
        if not served:
            return UNANSWERED
        if not left:
            return USED_UP


@part
def _neighbours(indices: int, at: int, count: int) -> int:
    """Of a list of ``count`` pages: how many from ``at`` on are in a row."""
    first, run = peek(indices + at * 8), 1
    while at + run < count and peek(indices + (at + run) * 8) == first + run:
        run += 1
    return run


@part
def _protect(job: int, addr: int, pages: int) -> int:
    """Write-protect neighbours; 0, or the errno."""
    poke(job + _ARGUMENT, addr)
    poke(job + _ARGUMENT + 8, pages << 12)
    poke(job + _ARGUMENT + 16, 1)
    if _ioctl(job, peek(job + UFFD_OF_JOB), _UFFDIO_WRITEPROTECT, job + _ARGUMENT) == 0:
        return 0
    return peek(_errno_location(job)) & 0xFFFFFFFF  # type: ignore[no-any-return]


def _evict(job: int) -> int:
    """Revoke and seal the pages of a job: 0, or an errno and nothing has been taken out yet.

    Neighbours are protected and punched out together. A page of zeros gets a MAC and a mark.
    """
    count, base, memfd = peek(job + COUNT), peek(job + BASE_OF_JOB), peek(job + MEMFD)
    pages = job + PAGES
    at = 0
    while at < count:
        first, run = peek(pages + at * 8), _neighbours(pages, at, count)
        error = _protect(job, base + (first << 12), run)
        if error == _ENOENT and run > 1:  # it ended at the first page that is not mapped
            for page in range(first, first + run):
                error = _protect(job, base + (page << 12), 1)
                if error and error != _ENOENT and error != _ESRCH:
                    return error
        elif error and error != _ENOENT and error != _ESRCH:
            return error
        at += run
    page, cipher = peek(job + PLAIN), peek(job + SEALING)
    for at in range(count):
        row = job + at * 8
        index, flags, sealed = peek(row + PAGES), peek(row + WORDS) & 0xFFFFFFFF, peek(row + PLACES)
        if _pread(job, memfd, page, _PAGE_SIZE, index << 12) != _PAGE_SIZE:
            return _EIO
        word = 0
        while word < _PAGE_SIZE and not peek(page + word):
            word += 8
        zero = word == _PAGE_SIZE
        poke(job + _NONCE, peek(job + VERSION) + at)
        poke(job + _NONCE + 8, 0)
        poke(job + _AAD, flags)
        poke(job + _AAD + 8, base + (index << 12))
        poke(job + _AAD + 16, peek(job + ENCLAVE_OF_JOB))
        poke(job + _AAD + 24, 1 if zero else 0)
        size = 0 if zero else _PAGE_SIZE
        good = (
            _seal_init(job, cipher, 0, 0, 0, job + _NONCE) > 0
            and _seal_update(job, cipher, 0, job + _COUNT, job + _AAD, _AAD_SIZE) > 0
            and _seal_update(job, cipher, sealed, job + _COUNT, page, size) > 0
            and _seal_final(job, cipher, sealed + size, job + _COUNT) > 0
            and _control(job, cipher, _GET_TAG, _MAC, sealed + size) > 0
        )
        if not good:
            return _EIO
        poke(row + ZEROS, 1 if zero else 0)
    at = 0
    while at < count:
        first, run = peek(pages + at * 8), _neighbours(pages, at, count)
        if _fallocate(job, memfd, _PUNCH, first << 12, run << 12):
            return peek(_errno_location(job)) & 0xFFFFFFFF  # type: ignore[no-any-return]
        at += run
    return 0


@part
def _present_at(row: int, index: int) -> int:
    """Whether the row of a look is that of page ``index`` and found to have a page table entry."""
    return peek(row + LOOKS) == index and peek(row + PRESENT) != 0  # type: ignore[no-any-return]


def _look(job: int) -> int:
    """Find out which pages have a page table entry, and drop these: DROPPED, KEPT, or an errno below 0.

    Pages that are neighbours in the list are looked at together, and dropped together.
    """
    count, base, scratch = peek(job + COUNT), peek(job + BASE_OF_LOOK), job + _SCRATCH
    at = 0
    while at < count:
        row = job + at * 8
        first, run = peek(row + LOOKS), 1
        if not peek(row + PRESENT):
            run = _neighbours(job + LOOKS, at, count)
            found = _pread(job, peek(job + PAGEMAP), scratch, run << 3, ((base >> 12) + first) << 3)
            for page in range(run):
                if page << 3 < found and peek(scratch + (page << 3)) < 0:  # bit 63: present
                    poke(row + page * 8 + PRESENT, 1)
        at += run
    ranges = 0
    at = 0
    while at < count:
        row = job + at * 8
        first, run = peek(row + LOOKS), 0
        while at + run < count and _present_at(row + run * 8, first + run):
            run += 1
        if run:
            poke(job + _RANGES + ranges * 16, base + (first << 12))
            poke(job + _RANGES + ranges * 16 + 8, run << 12)
            ranges += 1
        at += max(run, 1)
    if not ranges:
        return DROPPED
    if not peek(job + MAY_DROP) or _sysinfo(job, scratch) or peek(scratch + _TOTALSWAP):
        return KEPT
    told = _syscall(job, _PROCESS_MADVISE, peek(job + PIDFD), job + _RANGES, ranges, _MADV_PAGEOUT, 0)
    return DROPPED if told >= 0 else -(peek(_errno_location(job)) & 0xFFFFFFFF)


acquire = Entry(_acquire, (INT,), tell=False)
serve = Entry(_serve, (INT,), tell=False)
evict = Entry(_evict, (INT,), tell=False)
look = Entry(_look, (INT,), tell=False)


def load() -> None:
    """Have all machine code ready, compiled now if it never was."""
    for entry in (acquire, serve, evict, look):
        entry.load()


def new_block(size: int) -> ctypes.Array[ctypes.c_uint64]:
    """A block or a job of ``size`` bytes, with the addresses of what is called in it."""
    block = (ctypes.c_uint64 * (size // 8))()
    for number, function in enumerate(_functions):
        block[(_CALLS >> 3) + number] = ctypes.cast(function, ctypes.c_void_p).value or 0
    return block
