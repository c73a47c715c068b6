"""What this machine must have for live mode, and the processor we pretend it is."""

from __future__ import annotations

import contextlib
import os
import platform as host
import sys

from epcgroup.errors import MissingCapability
from epcgroup.live.enclave import cpuid
from epcgroup.live.paging import uffd
from epcgroup.live.tracing import procfs
from epcgroup.sgx.platform import Platform
from epcgroup.units import PAGE_SIZE


def require() -> None:
    """Raise MissingCapability, saying what is missing, unless live mode can work here."""
    if sys.platform != "linux" or host.machine() != "x86_64":
        raise MissingCapability("running SGX programs needs Linux on x86-64")
    have = uffd.supported()
    if have & uffd.REQUIRED != uffd.REQUIRED:
        raise MissingCapability(
            "running SGX programs needs userfaultfd with write-protection of shared memory "
            "(Linux 5.19 or newer, CONFIG_USERFAULTFD); this kernel has no such thing"
        )
    if _memory_comes_in_huge_pages():
        raise MissingCapability(
            "shared memory comes in huge pages here, an EPC page has 4 KiB: "
            "echo never > /sys/kernel/mm/transparent_hugepage/shmem_enabled"
        )
    supervisor = procfs.tracer_of(os.getpid())
    if supervisor and procfs.is_ours(supervisor):
        raise MissingCapability(
            f"this process is itself in the emulated machine of process {supervisor}: what starts here has "
            "SGX already; start the program directly, or a second machine outside of the first"
        )


def _memory_comes_in_huge_pages() -> bool:
    # Then neighbours of a page that is there are there too, as zeros, and no fault tells of their touch.
    memfd = os.memfd_create("probe", os.MFD_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # `ulimit -Hf`: that a page will not have room is said then
            os.ftruncate(memfd, 4 << 20)
        os.pwrite(memfd, bytes(PAGE_SIZE), 0)
        return os.fstat(memfd).st_blocks * 512 > PAGE_SIZE
    finally:
        os.close(memfd)


def sgx() -> Platform:
    """An SGX2 processor with the host's XSAVE components."""
    xcr0 = cpuid.xcr0()
    components = {}
    for bit in range(2, 63):
        if xcr0 >> bit & 1:
            size, offset, _, _ = cpuid.native(0xD, bit)
            components[bit] = (offset, size)
    return Platform(xfrm=xcr0, components=components)
