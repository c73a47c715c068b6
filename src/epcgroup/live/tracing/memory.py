"""Memory of another process, asked for by the id of one of its threads.

The first thread will do only while it is there: when it has ended and others go on, what
the kernel knows under its number is empty.

Reads and writes go through process_vm_readv(2) and process_vm_writev(2). They
may sleep in a page fault of the target; where that page is served by us and the
caller holds the EPC lock, that is a deadlock: enclave addresses are read through
the page store, never here. (/proc/PID/mem does not sleep: it fails with EIO.)
"""

from __future__ import annotations

import ctypes
import errno
import os

from epcgroup.units import PAGE_SIZE

_libc = ctypes.CDLL(None, use_errno=True)  # gives the interpreter lock away: see above
_Iovecs = ctypes.c_uint64 * 4
_signature = (ctypes.c_long, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong)
_readv, _writev = _libc.process_vm_readv, _libc.process_vm_writev
_readv.argtypes = _writev.argtypes = _signature
_readv.restype = _writev.restype = ctypes.c_long


def _fail(pid: int, addr: int, size: int) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"memory of process {pid} at {addr:#x}, {size} bytes: {os.strerror(number)}")


def _short(pid: int, addr: int, size: int) -> OSError:
    return OSError(errno.EFAULT, f"memory of process {pid} at {addr:#x}: not all of {size} bytes are there")


def read(pid: int, addr: int, size: int) -> bytes:
    """``size`` bytes at ``addr``; OSError(EFAULT) unless all can be read."""
    if size <= 0:
        return b""
    buffer = ctypes.create_string_buffer(size)
    here = ctypes.addressof(buffer)
    iov = _Iovecs(here, size, addr, size)
    at = ctypes.addressof(iov)
    done = _readv(pid, at, 1, at + 16, 1, 0)
    if done == size:
        return ctypes.string_at(here, size)
    raise _fail(pid, addr, size) if done < 0 else _short(pid, addr, size)


def write(pid: int, addr: int, data: bytes | bytearray) -> None:
    """Store ``data`` at ``addr``; OSError(EFAULT) unless all could be stored."""
    size = len(data)
    if not size:
        return
    buffer = (ctypes.c_char * size).from_buffer_copy(data)
    iov = _Iovecs(ctypes.addressof(buffer), size, addr, size)
    at = ctypes.addressof(iov)
    done = _writev(pid, at, 1, at + 16, 1, 0)
    if done != size:
        raise _fail(pid, addr, size) if done < 0 else _short(pid, addr, size)


def read_cstring(pid: int, addr: int, limit: int = PAGE_SIZE) -> bytes:
    """The bytes at ``addr`` up to the first NUL.

    OSError: EFAULT if unreadable memory comes first, ENAMETOOLONG if no NUL is
    among the first ``limit`` bytes.
    """
    found = b""
    while len(found) < limit:
        # Never beyond a page: the next one need not be there.
        piece = read(pid, addr, min(PAGE_SIZE - addr % PAGE_SIZE, limit - len(found), 256))
        head, nul, _ = piece.partition(b"\0")
        found += head
        if nul:
            return found
        addr += len(piece)
    raise OSError(errno.ENAMETOOLONG, f"string of process {pid} is longer than {limit} bytes")


def poke_text(pid: int, addr: int, data: bytes) -> None:
    """Store ``data`` even where the mapping is read-only (a private copy is made).

    We must trace ``pid``. OSError if nothing is mapped there, or if the mapping
    is shared and read-only.
    """
    fd = os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)
    try:
        done = os.pwrite(fd, data, addr)
    finally:
        os.close(fd)
    if done != len(data):
        raise _short(pid, addr, len(data))


def peek_text(pid: int, addr: int, size: int) -> bytes:
    """``size`` bytes at ``addr``, even where the mapping is execute-only. Never sleeps."""
    fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.pread(fd, size, addr)
    finally:
        os.close(fd)
    if len(data) != size:
        raise _short(pid, addr, size)
    return data
