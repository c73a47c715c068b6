"""A small enclave whose pages lie in a dict; one signing key for all tests."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import pytest

from epcgroup.sgx import leaves
from epcgroup.sgx.enclave import EnclaveState
from epcgroup.sgx.epcm import allows
from epcgroup.sgx.faults import PageFault, epcm_code
from epcgroup.sgx.layouts import Attribute, Secs, SigStruct, Tcs
from epcgroup.sgx.platform import Platform
from epcgroup.sgx.sign import SigningKey, sign

signed = lru_cache(sign)  # the same enclave is built again and again; signing takes a tenth of a second


class PlainMemory:
    """An enclave's memory that is always resident."""

    def __init__(self, state: EnclaveState) -> None:
        self.state = state
        self.pages: dict[int, bytearray] = {}

    def word(self, addr: int) -> int:
        try:
            return self.state.epcm[self.state.index(addr)]
        except KeyError:
            raise PageFault(addr, 0x8005) from None

    def set_word(self, addr: int, word: int) -> None:
        self.state.epcm[self.state.index(addr)] = word

    def check(self, addr: int, access: str) -> None:
        if not allows(self.word(addr), access):
            raise PageFault(addr, epcm_code(access))

    def read(self, addr: int, length: int) -> bytes:
        return b"".join(self._byte(at, "r") for at in range(addr, addr + length))

    def _byte(self, addr: int, access: str) -> bytes:
        self.check(addr, access)
        at = addr % 4096
        return bytes(self.pages[self.state.index(addr)][at : at + 1])

    def write(self, addr: int, data: bytes) -> None:
        for at in range(addr, addr + len(data)):
            self.check(at, "w")
            self.pages[self.state.index(at)][at % 4096] = data[at - addr]

    def copy_page(self, source: int, target: int) -> None:
        self.pages[self.state.index(target)][:] = self.pages[self.state.index(source)]

    def tcs_read(self, addr: int) -> bytes:
        return bytes(self.pages[self.state.index(addr)])

    def tcs_write(self, addr: int, offset: int, data: bytes) -> None:
        self.pages[self.state.index(addr)][offset : offset + len(data)] = data

    def add(self, index: int, contents: bytes = bytes(4096), flags: int = 0x203) -> None:
        self.pages[index] = bytearray(leaves.eadd(self.state, index, flags, contents))

    def augment(self, index: int) -> int:
        """EAUG; the page's address."""
        leaves.eaug(self.state, index)
        self.pages[index] = bytearray(4096)
        return self.state.addr(index)


@pytest.fixture(scope="session")
def signing_key() -> SigningKey:
    return SigningKey.generate()


@pytest.fixture
def secs() -> Secs:
    return Secs(size_bytes=0x20000, base=0x100000, ssa_frame_size=2, miscselect=1, xfrm=7)


@pytest.fixture
def build(secs, signing_key):
    """Build an enclave: TCS in page 0, data from page 1, SSA from page 4; initialise unless told."""

    def build(initialise: bool = True, tcs: Tcs | None = None, platform: Platform | None = None, **changes):
        mine = replace(secs, **changes)
        state = leaves.ecreate(mine.pack(), 1, platform or Platform())
        memory = PlainMemory(state)
        tcs = tcs or Tcs(ossa=0x4000, nssa=2, oentry=0x1234, ofs_base=0x2000, ogs_base=0x3000)
        memory.add(0, tcs.pack(), 0x100)
        for index in range(1, 4 + 2 * mine.ssa_frame_size):
            memory.add(index)
        if initialise:
            cert = SigStruct(
                mrenclave=state.measurement.digest(),
                attributes=mine.attributes,
                xfrm=mine.xfrm,
                miscselect=mine.miscselect,
                isv_prod_id=5,
                isv_svn=3,
            )
            assert leaves.einit(state, signed(cert, signing_key).pack()) == 0
        return state, memory

    return build


@pytest.fixture
def debug_attributes() -> int:
    return int(Attribute.MODE64BIT | Attribute.DEBUG)
