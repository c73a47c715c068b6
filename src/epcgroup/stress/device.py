"""Loading an enclave through /dev/sgx_enclave, as on real hardware.

Reserve an aligned address range, CREATE, ADD_PAGES, INIT, then map the device
over the range (spec 6.2, 6.5). Calls go through ctypes: the Python mmap module
cannot map at a chosen address.

ADD_PAGES may stop early, with 0 and a short count when a signal came, or with
EINTR or EAGAIN; both mean "go on from there".
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from types import TracebackType

from epcgroup.errors import BadInput, EpcgroupError, MissingCapability, NoEpc, Refused
from epcgroup.sgx.sign import SigningKey
from epcgroup.stress.image import Image, Segment
from epcgroup.units import PAGE_SIZE

DEVICE = "/dev/sgx_enclave"

_CREATE, _ADD_PAGES, _INIT = 0x4008A400, 0xC030A401, 0x4008A402
_MEASURE = 1
_TRY_AGAIN = (errno.EINTR, errno.EAGAIN)
_CHUNK = 256  # pages per ADD_PAGES of zeros: the size of the zero buffer
_R, _W, _X = 1, 2, 4
_SHARED, _PRIVATE, _FIXED, _ANONYMOUS, _NORESERVE = 1, 2, 0x10, 0x20, 0x4000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long),
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)
_MAP_FAILED = ctypes.c_void_p(-1).value

_INIT_MEANING = {
    errno.EPERM: "signature, measurement or attributes are not accepted; on hardware without flexible launch "
    "control only the platform's own keys may sign",
    errno.EACCES: "the enclave asks for an attribute it may not have",
}


class _AddPages(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_uint64) for name in ["src", "offset", "length", "secinfo", "flags", "count"]
    )
    src: int
    offset: int
    length: int
    secinfo: int
    flags: int
    count: int


class Enclave:
    """One loaded stress enclave; close() or the process's end releases it."""

    def __init__(self, image: Image, device: str = DEVICE) -> None:
        """Open the device. Raises MissingCapability without a usable one."""
        self.image = image
        self.base = 0
        self.fd = _open(device)

    def load(self, key: SigningKey) -> None:
        """Create, fill, initialise and map the enclave, signed with ``key``.

        Raises NoEpc when the limit or the machine has no page left, Refused for
        any other refusal.
        """
        self.build(self.image.certificate(key))

    def build(self, certificate: bytes) -> None:
        """The same with a signature that was made before."""
        self.base = _reserve(self.image.size)
        self._create()
        buffer = _Buffer(min(_CHUNK, self.image.heap_pages) * PAGE_SIZE)
        for segment in self.image.segments():
            self._add(segment, buffer)
        self._init(certificate)
        self._map()

    def __enter__(self) -> Enclave:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unmap and close: the enclave's EPC pages go back."""
        if self.base:
            _libc.munmap(self.base, self.image.size)
            self.base = 0
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def tcs(self, thread: int) -> int:
        """Address of the TCS of ``thread``."""
        return self.base + self.image.tcs(thread)

    def _create(self) -> None:
        secs = ctypes.create_string_buffer(self.image.secs(self.base), PAGE_SIZE)
        argument = ctypes.c_uint64(ctypes.addressof(secs))
        while (number := _ioctl(self.fd, _CREATE, argument)) in _TRY_AGAIN:
            pass
        if number:
            raise _refusal("ENCLAVE_CREATE", number, "before its first page")

    def _add(self, segment: Segment, buffer: _Buffer) -> None:
        """Add every page of ``segment``, however many calls it takes."""
        # SECINFO must be 64-byte aligned; the second page-aligned buffer sees to that.
        secinfo = _Buffer(PAGE_SIZE)
        secinfo.fill(segment.secinfo)
        buffer.fill(segment.contents)
        at, end = segment.offset, segment.offset + segment.length
        while at < end:
            length = min(end - at, buffer.size)
            flags = _MEASURE if segment.measured else 0
            argument = _AddPages(buffer.address, at, length, secinfo.address, flags, 0)
            number = _ioctl(self.fd, _ADD_PAGES, argument)
            # On any outcome count says how far it came; what is short is asked for again.
            at += argument.count
            if number and number not in _TRY_AGAIN:
                where = f"at page {at // PAGE_SIZE} of {self.image.pages}"
                raise _refusal("ENCLAVE_ADD_PAGES", number, where)
        buffer.fill(bytes(len(segment.contents)))

    def _init(self, certificate: bytes) -> None:
        sigstruct = ctypes.create_string_buffer(certificate, len(certificate))
        argument = ctypes.c_uint64(ctypes.addressof(sigstruct))
        while (number := _ioctl(self.fd, _INIT, argument)) in _TRY_AGAIN:
            pass
        if number:
            raise _refusal("ENCLAVE_INIT", number, _INIT_MEANING.get(number, "of a fully loaded enclave"))

    def _map(self) -> None:
        """Code executable, the rest read-write: what each page allows at most."""
        rest = (1 + 2 * self.image.threads + self.image.heap_pages) * PAGE_SIZE - PAGE_SIZE
        for offset, length, prot in ((0, PAGE_SIZE, _R | _X), (PAGE_SIZE, rest, _R | _W)):
            if _mmap(self.base + offset, length, prot, _SHARED | _FIXED, self.fd, offset=0) is None:
                number = ctypes.get_errno()
                raise Refused(f"mmap of the enclave: {os.strerror(number)}", number)


class _Buffer:
    """Page-aligned, executable-capable memory that ADD_PAGES can read from."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._memory = mmap.mmap(-1, size)
        self._view = ctypes.c_char.from_buffer(self._memory)
        self.address = ctypes.addressof(self._view)

    def fill(self, contents: bytes) -> None:
        self._memory[: len(contents)] = contents


def _open(device: str) -> int:
    try:
        return os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except PermissionError:
        raise MissingCapability(f"{device}: permission denied; join the device's group, or be root") from None
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
            raise Refused(f"{device}: {error.strerror}", error.errno) from None
        raise MissingCapability(
            f"{device} is not there: this machine has no SGX, or its driver is off. "
            "Start an emulated one around it: epcgroup run -- epcgroup stress …"
        ) from None


def _reserve(size: int) -> int:
    """Address of ``size`` bytes, aligned to ``size`` as ECREATE demands, that nothing else gets."""
    area = _mmap(None, 2 * size, 0, _PRIVATE | _ANONYMOUS | _NORESERVE, -1, offset=0)
    if area is None:
        raise BadInput(f"no {size >> 20}M of address space left for an enclave; take a smaller --heap")
    base = (area + size - 1) & ~(size - 1)
    if base > area:
        _libc.munmap(area, base - area)
    if area + size > base:
        _libc.munmap(base + size, area + size - base)
    return base


def _mmap(address: int | None, size: int, prot: int, flags: int, fd: int, *, offset: int) -> int | None:
    result: int | None = _libc.mmap(address, size, prot, flags, fd, offset)
    return None if result == _MAP_FAILED else result


def _ioctl(fd: int, command: int, argument: ctypes._SimpleCData[int] | ctypes.Structure) -> int:
    """0, or the errno."""
    return 0 if _libc.ioctl(fd, command, ctypes.byref(argument)) >= 0 else ctypes.get_errno()


def _refusal(what: str, number: int, where: str) -> EpcgroupError:
    if number == errno.ENOMEM:
        return NoEpc(
            f"{what}: out of EPC {where} (ENOMEM). SECS, VA pages and at least one page of the enclave "
            "must fit in the cgroup's limit (sgx_epc in misc.max) and in the machine"
        )
    return Refused(f"{what}: {os.strerror(number)} ({errno.errorcode.get(number, number)}), {where}", number)
