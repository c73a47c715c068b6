"""A loaded driver, a program's memory, and an enclave built by real ioctls."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache

import pytest

from epcgroup import epc
from epcgroup.driver import Driver, EnclaveFile, Ioctl, numbers
from epcgroup.sgx.layouts import SecInfo, Secs, SigStruct, Tcs
from epcgroup.sgx.platform import Platform
from epcgroup.sgx.sign import SigningKey, sign
from epcgroup.testing.frames import DictFrames
from epcgroup.testing.user_memory import FakeMemory

BASE = 0x40000000
REG_RW, REG_RX, TCS = 0x203, 0x205, 0x100


signing_key = lru_cache(SigningKey.generate)
signed = lru_cache(sign)  # signing takes a tenth of a second; most enclaves here are alike


@dataclass
class World:
    """One machine and one program that uses it."""

    driver: Driver
    frames: DictFrames
    log: list[str]
    mem: FakeMemory = field(default_factory=FakeMemory)
    pending: Callable[[], bool] = lambda: False

    @property
    def machine(self) -> epc.Machine:
        return self.driver.machine

    def __post_init__(self) -> None:
        self.group = self.machine.groups.mkdir("/tenant")
        self.caller = epc.Caller(self.group, lambda: self.pending())

    @property
    def usage(self) -> int:
        """Pages charged to the program's group."""
        return self.machine.usage(self.group) // 4096

    def limit(self, pages: int | None) -> None:
        self.machine.set_max(self.group, None if pages is None else pages * 4096)

    def secs(self, **changes: object) -> Secs:
        return replace(Secs(size_bytes=1 << 22, base=BASE, xfrm=7), **changes)

    def ioctl(self, file: EnclaveFile, cmd: int, arg: int) -> int:
        return file.ioctl(cmd, arg, self.mem, self.caller)

    def fails(self, file: EnclaveFile, cmd: int, arg: int) -> str:
        """The name of the errno with which the ioctl fails."""
        with pytest.raises(OSError) as refused:  # noqa: PT011 - the number is the assertion
            self.ioctl(file, cmd, arg)
        number = refused.value.errno or 0
        return "ERESTARTSYS" if number == 512 else errno.errorcode[number]

    def pointer(self, data: bytes) -> int:
        """Address of a pointer to ``data``: the argument of CREATE and INIT."""
        return self.mem.put(self.mem.put(data).to_bytes(8, "little"))

    def create(self, **changes: object) -> EnclaveFile:
        file = self.driver.open()
        assert self.ioctl(file, Ioctl.CREATE, self.pointer(self.secs(**changes).pack())) == 0
        return file

    def add_arg(
        self,
        data: bytes = bytes(4096),
        offset: int = 0,
        flags: int = REG_RW,
        measure: bool = True,
        **changes: int,
    ) -> int:
        fields = {
            "src": changes.get("src", -1),
            "offset": offset,
            "length": len(data),
            "secinfo": -1,
            "flags": int(measure),
            "count": 77,
        } | changes
        if fields["src"] == -1:
            fields["src"] = self.mem.put(data)
        if fields["secinfo"] == -1:
            fields["secinfo"] = self.mem.put(SecInfo(flags).pack())
        return self.mem.put(numbers.ADD_PAGES.pack(*fields.values()))

    def add(self, file: EnclaveFile, data: bytes, offset: int = 0, flags: int = REG_RW, measure: bool = True):
        arg = self.add_arg(data, offset, flags, measure)
        assert self.ioctl(file, Ioctl.ADD_PAGES, arg) == 0
        assert self.count(arg) == len(data)

    def count(self, arg: int) -> int:
        return int.from_bytes(self.mem.read(arg + 40, 8), "little")

    def certificate(self, file: EnclaveFile, **changes: object) -> SigStruct:
        secs = file.state.secs
        return replace(
            SigStruct(
                mrenclave=file.state.measurement.digest(),
                attributes=secs.attributes,
                xfrm=secs.xfrm,
                miscselect=secs.miscselect,
            ),
            **changes,
        )

    def init_arg(self, file: EnclaveFile, **changes: object) -> int:
        return self.pointer(signed(self.certificate(file, **changes), signing_key()).pack())

    def build(
        self, pages: int = 8, init: bool = True, data: bytes | None = None, **changes: object
    ) -> EnclaveFile:
        """An enclave with a TCS in page 0 and ``pages`` data pages behind it."""
        file = self.create(**changes)
        self.add(file, Tcs(ossa=0x1000, nssa=2).pack(), 0, TCS)
        if pages:
            self.add(file, data if data is not None else bytes(pages * 4096), 0x1000, measure=False)
        if init:
            assert self.ioctl(file, Ioctl.INIT, self.init_arg(file)) == 0
        return file

    def evict(self, file: EnclaveFile) -> None:
        """Have every page of the group written out, then lift the limit again."""
        self.limit(len(file.enclave.va_pages) + 1)  # lower, and the policy may disable it
        self.machine.settle()
        if file.enclave.child_count:  # a policy that does nothing before the next charge
            self.touch(file, (file.size >> 12) - 1)
            self.machine.settle()
        self.limit(None)
        assert all(page is None for page in file.enclave.pages.values())

    def touch(self, file: EnclaveFile, index: int, access: str = "r"):
        return self.driver.fault(file, file.base + index * 4096, access, self.caller)


@pytest.fixture
def default_policy() -> str:
    """The policy of machines that ask for none; a module may parametrize it."""
    return "standard"


@pytest.fixture
def world(default_policy: str) -> Callable[..., World]:
    """``world(policy="standard", epc_pages=256, sgx2=True, …)``."""

    def make(
        policy: str = default_policy, epc_pages: int = 256, sgx2: bool = True, **options: object
    ) -> World:
        frames, log = DictFrames(), []
        driver = Driver(
            epc_pages=epc_pages,
            policy=epc.by_name(policy),
            frames=frames,
            root_key=b"r" * 16,
            paging_key=os.urandom(16),
            platform=Platform(sgx2=sgx2),
            log=log.append,
            **options,
        )
        return World(driver, frames, log)

    return make
