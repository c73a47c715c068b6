"""The processor's view of one enclave: SECS, EPCM entries, running measurement.

EnclaveState holds what lies inside the EPC and what only leaves may change. It
knows nothing of drivers, limits, or where the plaintext of pages is kept.

The SECS is a page like others: it can be evicted (after its last child) and is
then gone from here; only its seal remains. Base and size are kept beside it
because the driver, too, knows them for ever.
"""

from __future__ import annotations

import struct
from dataclasses import replace

from epcgroup.errors import InternalError
from epcgroup.sgx.layouts import Attribute, Secs
from epcgroup.sgx.measure import Measurement
from epcgroup.sgx.platform import Platform
from epcgroup.units import PAGE_SHIFT, PAGE_SIZE

# Where this processor keeps its own fields inside the SECS's reserved bytes.
_PRIVATE = struct.Struct("<Q16s16s")
_PRIVATE_AT = PAGE_SIZE - _PRIVATE.size
_INIT = int(Attribute.INIT)


class EnclaveState:
    """One enclave between ECREATE and its last EREMOVE.

    ``epcm`` maps page index → EPCM word of each resident page; ``busy`` holds
    the indices of TCS pages with a thread inside.
    """

    __slots__ = (
        "_secs",
        "base",
        "busy",
        "eid",
        "epcm",
        "isv_ext_prod_id",
        "isv_family_id",
        "measurement",
        "platform",
        "size",
    )

    def __init__(self, secs: Secs, eid: int, platform: Platform) -> None:
        self._secs: Secs | None = secs
        self.base = secs.base
        self.size = secs.size_bytes
        self.eid = eid
        self.platform = platform
        self.measurement = Measurement(secs.ssa_frame_size, secs.size_bytes)
        self.epcm: dict[int, int] = {}
        self.busy: set[int] = set()
        self.isv_family_id = bytes(16)
        self.isv_ext_prod_id = bytes(16)

    @property
    def secs(self) -> Secs:
        """The SECS. Raises InternalError while it is evicted."""
        if self._secs is None:
            raise InternalError(f"SECS of enclave {self.eid} is used while evicted")
        return self._secs

    @property
    def secs_resident(self) -> bool:
        return self._secs is not None

    @property
    def initialised(self) -> bool:
        return bool(self.secs.attributes & _INIT)

    def change_secs(self, **fields: object) -> None:
        """Replace fields of the SECS."""
        self._secs = replace(self.secs, **fields)  # type: ignore[arg-type]

    def take_secs(self) -> bytes:
        """The SECS page, removed from here (EWB seals it)."""
        page = self.secs.pack()[:_PRIVATE_AT] + _PRIVATE.pack(
            self.eid, self.isv_family_id, self.isv_ext_prod_id
        )
        self._secs = None
        return page

    def put_secs(self, page: bytes) -> None:
        """The SECS page is back (ELDU)."""
        self._secs = Secs.unpack(page)
        self.eid, self.isv_family_id, self.isv_ext_prod_id = _PRIVATE.unpack_from(page, _PRIVATE_AT)

    def contains(self, addr: int, length: int = 1) -> bool:
        """Whether ``[addr, addr+length)`` lies inside ELRANGE."""
        return self.base <= addr and addr + length <= self.base + self.size

    def index(self, addr: int) -> int:
        """Page index of a linear address."""
        return (addr - self.base) >> PAGE_SHIFT

    def addr(self, index: int) -> int:
        """Linear address of a page."""
        return self.base + (index << PAGE_SHIFT)
