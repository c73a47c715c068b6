"""What the stress enclave is made of: pages, measurement, signature.

    0               code                      r-x   measured
    4096 × (1+2t)   TCS of thread t                 measured
    4096 × (2+2t)   its one SSA frame         rw-   measured
    heap            zeros                     rw-   not measured
    … size          nothing, up to a power of two

One SSA frame per thread is enough: the kernel's signal delivery and the vDSO
resume or report, and never enter a second time on the same TCS. The heap is not
measured, because its 16 EEXTENDs per page would make loading ten times slower
and the code checks the zeros anyway.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from epcgroup.errors import BadInput
from epcgroup.sgx.layouts import PageType, R, SecInfo, Secs, SigStruct, Tcs, W, X, secinfo_flags
from epcgroup.sgx.measure import Measurement
from epcgroup.sgx.sign import SigningKey, sign
from epcgroup.stress.code import code_for
from epcgroup.units import PAGE_SIZE, format_size

MAX_THREADS = 256
MAX_HEAP = 1 << 36  # an ELRANGE of 2^36 fits the smallest CPUs with SGX

_CODE = secinfo_flags(PageType.REG, R | X)
_DATA = secinfo_flags(PageType.REG, R | W)
_TCS = secinfo_flags(PageType.TCS, 0)
_SIGNED_ON = 0x20260101  # BCD; any date does, a fixed one keeps MRENCLAVE's signature reproducible


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive pages that are added with one SECINFO.

    ``contents`` is empty for pages of zeros.
    """

    offset: int
    pages: int
    flags: int
    measured: bool
    contents: bytes = b""

    @property
    def length(self) -> int:
        """Bytes."""
        return self.pages * PAGE_SIZE

    @property
    def secinfo(self) -> bytes:
        return SecInfo(self.flags).pack()


@dataclass(frozen=True, slots=True)
class Image:
    """A stress enclave before it is loaded."""

    threads: int
    heap_pages: int
    measured: bool = False  # the heap too, as most runtimes have it: 16 EEXTENDs a page

    def __post_init__(self) -> None:
        if not 1 <= self.threads <= MAX_THREADS:
            raise BadInput(f"{self.threads} threads: from 1 to {MAX_THREADS} can be in one enclave")
        if self.heap_pages < self.threads:
            raise BadInput(
                f"{self.heap_pages} pages of heap are less than one per thread; "
                f"take at least {self.threads * 4}K for {self.threads}"
            )
        if self.heap_pages * PAGE_SIZE > MAX_HEAP:
            raise BadInput(f"a heap of {format_size(self.heap_pages * PAGE_SIZE)}: an enclave may have 64G")

    @property
    def heap(self) -> int:
        """Offset of the heap in bytes."""
        return PAGE_SIZE * (1 + 2 * self.threads)

    @property
    def size(self) -> int:
        """Bytes of the enclave's address range: a power of two."""
        return 1 << (self.heap + self.heap_pages * PAGE_SIZE - 1).bit_length()

    @property
    def pages(self) -> int:
        """Pages that ADD_PAGES brings in."""
        return 1 + 2 * self.threads + self.heap_pages

    def tcs(self, thread: int) -> int:
        """Offset of the TCS of ``thread``."""
        return PAGE_SIZE * (1 + 2 * thread)

    def segments(self) -> Iterator[Segment]:
        """What to add, in order."""
        code = code_for(self.heap, self.heap_pages)
        yield Segment(0, 1, _CODE, measured=True, contents=code.ljust(PAGE_SIZE, b"\0"))
        for thread in range(self.threads):
            at = self.tcs(thread)
            yield Segment(at, 1, _TCS, measured=True, contents=Tcs(ossa=at + PAGE_SIZE).pack())
            yield Segment(at + PAGE_SIZE, 1, _DATA, measured=True)
        yield Segment(self.heap, self.heap_pages, _DATA, measured=self.measured)

    def secs(self, base: int) -> bytes:
        """The SECS image for ECREATE at address ``base``."""
        return Secs(size_bytes=self.size, base=base).pack()

    def measure(self) -> bytes:
        """MRENCLAVE of this enclave."""
        measurement = Measurement(ssa_frame_size=1, size=self.size)
        for segment in self.segments():
            for offset in range(segment.offset, segment.offset + segment.length, PAGE_SIZE):
                measurement.eadd(offset, segment.flags)
                if segment.measured:
                    measurement.eextend_page(offset, segment.contents or bytes(PAGE_SIZE))
        return measurement.digest()

    def certificate(self, key: SigningKey) -> bytes:
        """The SIGSTRUCT of this enclave, signed with ``key``."""
        return sign(SigStruct(date=_SIGNED_ON, mrenclave=self.measure()), key).pack()
