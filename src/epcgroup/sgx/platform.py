"""What the emulated processor can do: CPUID leaf 0x12 and the XSAVE layout.

Sizes and offsets of XSAVE components are those of the standard (not compacted)
format, CPUID leaf 0xD. The defaults are the fixed architectural ones for the
legacy area and AVX; live fills in what the host has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from epcgroup.sgx.layouts import (
    GPRSGX_SIZE,
    KNOWN_ATTRIBUTES,
    MISC_EXINFO,
    XFRM_LEGACY,
    Attribute,
    ExInfo,
)
from epcgroup.units import PAGE_SIZE

XSAVE_HEADER = 512
XSAVE_LEGACY = 576  # x87, SSE and the header

#: Component number → (offset, size), CPUID 0xD sub-leaves 2 and up.
AVX = {2: (576, 256)}


@dataclass(frozen=True)
class Platform:
    """One SGX capable processor."""

    sgx2: bool = True
    attributes: int = KNOWN_ATTRIBUTES & ~int(Attribute.INIT)
    xfrm: int = XFRM_LEGACY | 4
    miscselect: int = MISC_EXINFO
    max_size_64: int = 1 << 47  # bytes
    max_size_32: int = 1 << 31
    components: Mapping[int, tuple[int, int]] = field(default_factory=lambda: dict(AVX))
    cpu_svn: bytes = bytes(16)
    _sizes: dict[int, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    def xsave_size(self, xfrm: int) -> int:
        """Bytes of the XSAVE area for the components in ``xfrm``."""
        known = self._sizes.get(xfrm)
        if known is None:
            ends = [start + size for bit, (start, size) in self.components.items() if xfrm >> bit & 1]
            known = self._sizes[xfrm] = max([XSAVE_LEGACY, *ends])
        return known

    def min_ssa_pages(self, xfrm: int, miscselect: int) -> int:
        """Least SSAFRAMESIZE that holds XSAVE area, EXINFO and GPRSGX."""
        size = self.xsave_size(xfrm) + GPRSGX_SIZE
        if miscselect & MISC_EXINFO:
            size += ExInfo.size()
        return -(-size // PAGE_SIZE)
