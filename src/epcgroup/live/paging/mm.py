"""Address spaces: which parts of a process map which enclave, and how.

One AddressSpace stands for one mm of the kernel: threads and vfork children
share it, fork makes a copy, exec leaves it. It owns the userfaultfd through
which the page service serves the mm and the pagemap file that shows which
pages were touched.

A mapping has two protections. The *virtual* one is what the program asked for
and what the driver checked; the *real* one is what the kernel was given. They
differ in X alone: userfaultfd can hide a page or make it read-only, but cannot
forbid execution, so a mapping is executable for the kernel only where the EPCM
of every page in it allows that (SDM: EPCM.X; spec 6.9). The rest is granted
page by page when a fetch faults. Runtimes make thousands of such pieces, so
nothing here walks all of them, and pieces that became alike are joined, as in
the kernel.
"""

from __future__ import annotations

import bisect
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from epcgroup.live.paging import pagemap, uffd
from epcgroup.live.tracing import procfs
from epcgroup.units import PAGE_SHIFT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from epcgroup.live.devices import Device
    from epcgroup.live.fastpath.space import FastSpace
    from epcgroup.live.paging.service import PageService
    from epcgroup.live.tracing.task import Trap

PROT_READ, PROT_WRITE, PROT_EXEC = 1, 2, 4
_ANY = PROT_READ | PROT_WRITE | PROT_EXEC


@dataclass(frozen=True, slots=True)
class EnclaveVma:
    """``[start, end)`` of one mm maps ``device``; protections as PROT_* bits.

    In a virtual EPC the place in the file counts, at ``bias`` bytes above the address.
    ``inherited``: a child of fork has it too.
    """

    start: int
    end: int
    device: Device
    prot: int
    real: int
    bias: int = 0
    inherited: bool = True

    def index(self, addr: int) -> int:
        """Index of the page at ``addr``; may lie outside the enclave."""
        return (addr - self.device.base + self.bias) >> PAGE_SHIFT

    def too_much(self, addr: int) -> bool:
        """Whether this permits more than the page at ``addr`` does: a touch is a SIGBUS then."""
        file = self.device.file
        return file is not None and bool(self.prot & ~file.maximum.get(self.index(addr), _ANY))

    def continued_by(self, other: EnclaveVma) -> bool:
        """Whether ``other`` begins where this ends and is like it in everything else."""
        return (
            self.end == other.start
            and self.device is other.device
            and (self.prot, self.real, self.bias) == (other.prot, other.real, other.bias)
            and self.inherited == other.inherited
        )


class AddressSpace:
    """One mm: its enclave mappings in order of address, its userfaultfd, its users."""

    __slots__ = (
        "_counts",
        "_starts",
        "_vmas",
        "alive",
        "fast",
        "followed",
        "ignored",
        "locking",
        "pagemap",
        "pid",
        "pidfd",
        "service",
        "trap_ranges",
        "traps",
        "uffd",
        "users",
    )

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.users: set[int] = set()
        self.uffd = -1
        self.pagemap = -1
        self.pidfd = -1
        self.alive = True
        # Signals the program ignores, as bits; of those that instructions raise.
        self.ignored = 0
        # New mappings are locked, and filled, at once (mlockall); see `locked`.
        self.locking = False
        self.service: PageService | None = None
        # Ranges whose accesses the second seccomp filter reports to us.
        self.trap_ranges: set[tuple[int, int]] = set()
        # Addresses where we replaced an instruction by `int $0x80`.
        self.traps: dict[int, Trap] = {}
        # Entering enclaves without a trap; None where that is off.
        self.fast: FastSpace | None = None
        # Descriptors of some process's memory that the program opened, see `debugmem`.
        self.followed: set[int] = set()
        self._vmas: list[EnclaveVma] = []
        self._starts: list[int] = []
        self._counts: dict[Device, int] = {}  # of mappings

    def __iter__(self) -> Iterator[EnclaveVma]:
        return iter(self._vmas)

    def find(self, addr: int) -> EnclaveVma | None:
        """The enclave mapping that holds ``addr``."""
        at = bisect.bisect_right(self._starts, addr) - 1
        if at < 0:
            return None
        vma = self._vmas[at]
        return vma if addr < vma.end else None

    def overlapping(self, start: int, end: int) -> list[EnclaveVma]:
        """Enclave mappings that share an address with ``[start, end)``."""
        first, last = self._span(start, end)
        return self._vmas[first:last]

    def _span(self, start: int, end: int) -> tuple[int, int]:
        """Places ``[first, last)`` of the mappings that share an address with ``[start, end)``."""
        first = bisect.bisect_right(self._starts, start)
        if first and self._vmas[first - 1].end > start:
            first -= 1
        return first, max(first, bisect.bisect_left(self._starts, end))

    def devices(self) -> set[Device]:
        """Enclave devices that are mapped here."""
        return set(self._counts)

    def maps(self, device: Device) -> bool:
        """Whether any mapping of ``device`` is left."""
        return device in self._counts

    def unmap(self, start: int, end: int) -> None:
        """Forget what lies in ``[start, end)``; mappings are cut at its edges."""
        if self.fast is not None:
            self.fast.take_out(start, end)
        first, last = self._span(start, end)
        cut = self._vmas[first:last]
        kept = []
        if cut and cut[0].start < start:
            kept.append(replace(cut[0], end=start))
        if cut and end < cut[-1].end:
            kept.append(replace(cut[-1], start=end))
        self._splice(first, last, kept)

    def map(self, vma: EnclaveVma) -> None:
        """Add a mapping; what was there before is replaced, equal neighbours become one."""
        self.unmap(vma.start, vma.end)
        first = last = bisect.bisect_left(self._starts, vma.start)
        if first and self._vmas[first - 1].continued_by(vma):
            first -= 1
            vma = replace(vma, start=self._vmas[first].start)
        if last < len(self._vmas) and vma.continued_by(self._vmas[last]):
            vma = replace(vma, end=self._vmas[last].end)
            last += 1
        self._splice(first, last, [vma])

    def protect(self, start: int, end: int, *, prot: int | None = None, real: int | None = None) -> None:
        """Change protections inside ``[start, end)``."""
        if self.fast is not None and prot is not None:
            self.fast.take_out(start, end)
        for vma in self._parts(start, end):
            self.map(
                replace(
                    vma,
                    prot=vma.prot if prot is None else prot,
                    real=vma.real if real is None else real,
                )
            )

    def keep_from_children(self, start: int, end: int) -> None:
        """Children of fork shall not have what lies in ``[start, end)`` (VM_DONTCOPY)."""
        for vma in self._parts(start, end):
            self.map(replace(vma, inherited=False))

    def _parts(self, start: int, end: int) -> list[EnclaveVma]:
        return [
            replace(vma, start=max(vma.start, start), end=min(vma.end, end))
            for vma in self.overlapping(start, end)
        ]

    def _splice(self, first: int, last: int, vmas: list[EnclaveVma]) -> None:
        for vma in vmas:
            self._counts[vma.device] = self._counts.get(vma.device, 0) + 1
            vma.device.mms.add(self)
        for vma in self._vmas[first:last]:
            self._counts[vma.device] -= 1
            if not self._counts[vma.device]:
                del self._counts[vma.device]
                vma.device.mms.discard(self)
        self._vmas[first:last] = vmas
        self._starts[first:last] = [vma.start for vma in vmas]

    def open_pagemap(self) -> int:
        """Descriptor of this mm's pagemap, opened once."""
        if self.pagemap < 0:
            self.pagemap = pagemap.open_pagemap(self.pid)
        return self.pagemap

    def open_pidfd(self) -> int:
        """Descriptor that stands for a process with this mm, opened once."""
        if self.pidfd < 0:
            self.pidfd = procfs.pidfd_open(self.pid)
        return self.pidfd

    def forked(self, pid: int) -> AddressSpace:
        """The mm of a child of fork(2), before anybody serves its faults."""
        child = AddressSpace(pid)
        child.trap_ranges = set(self.trap_ranges)
        child.traps = dict(self.traps)
        child.ignored = self.ignored
        child.followed = set(self.followed)
        for vma in self._vmas:
            if vma.device.guest is None and vma.inherited:  # else the kernel does not copy it either
                child.map(vma)
        if self.fast is not None:
            child.fast = self.fast.forked(child)
        return child

    def register(self, start: int, end: int) -> None:
        """Have faults in ``[start, end)`` reported to us."""
        uffd.register(self.uffd, start, end - start)

    def close(self) -> None:
        """The mm is gone: give back its files, forget its mappings."""
        self.alive = False
        self._splice(0, len(self._vmas), [])
        if self.fast is not None:
            self.fast.close(self)
        for fd in (self.pagemap, self.pidfd):
            if fd >= 0:
                os.close(fd)
        self.pagemap = self.pidfd = -1
        # The userfaultfd is closed by the service that may be reading it.
