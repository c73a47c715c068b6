"""mmap and mprotect of an enclave file (spec 6.2).

Only pages that exist are looked at, never every page of a range: an enclave's
address range can be a terabyte.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from epcgroup.driver.numbers import MAP_PRIVATE, MAP_TYPE
from epcgroup.driver.refuse import require
from epcgroup.units import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from epcgroup.driver.file import EnclaveFile


def may_map(
    file: EnclaveFile, start: int, length: int, prot: int, flags: int, read_implies_exec: bool
) -> None:
    """Raises Refused: EINVAL, EACCES, ENOMEM."""
    require(flags & MAP_TYPE != MAP_PRIVATE, errno.EINVAL, "an enclave cannot be mapped private")
    may_protect(file, start, length, prot, read_implies_exec)
    require(not file.disabled, errno.ENOMEM, "the enclave has lost its memory")


def may_protect(file: EnclaveFile, start: int, length: int, prot: int, read_implies_exec: bool) -> None:
    """Raises Refused: EACCES."""
    end = start + length
    if file.initialised:
        inside = file.base <= start and end <= file.base + file.size
        require(inside, errno.EACCES, f"{start:#x}+{length:#x} lies outside the enclave")
    require(not read_implies_exec, errno.EACCES, "the READ_IMPLIES_EXEC personality cannot map enclaves")
    wanted = prot & 7
    if not any(count and wanted & ~allowed for allowed, count in enumerate(file.prot_counts)):
        return  # every page the enclave has would allow it
    first = max((start - file.base) >> PAGE_SHIFT, 0)
    last = (end - file.base + PAGE_SIZE - 1) >> PAGE_SHIFT
    maximum = file.maximum
    if last - first <= len(maximum):
        found = next((i for i in range(first, last) if wanted & ~maximum.get(i, 7)), None)
    else:
        found = next((i for i, most in maximum.items() if first <= i < last and wanted & ~most), None)
    require(found is None, errno.EACCES, f"page {found} of the enclave allows less than protection {wanted}")
