"""Whatever is evicted and loaded, in whatever order: contents stay exact."""

from __future__ import annotations

import hashlib

from hypothesis import given, settings
from hypothesis import strategies as st

from epcgroup import epc
from epcgroup.driver import Driver, EnclaveFile, Fault, Ioctl, numbers
from epcgroup.epc.invariants import check
from epcgroup.sgx.layouts import SecInfo, Secs
from epcgroup.testing.frames import DictFrames
from epcgroup.testing.user_memory import FakeMemory

PAGES = 24
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("write"), st.integers(0, 1), st.integers(0, PAGES - 1), st.binary(min_size=1, max_size=8)
        ),
        st.tuples(st.just("read"), st.integers(0, 1), st.integers(0, PAGES - 1)),
        st.tuples(st.just("limit"), st.integers(8, 60)),
        st.tuples(st.just("work")),
        st.tuples(st.just("young"), st.integers(0, 1), st.integers(0, PAGES - 1)),
    ),
    max_size=60,
)


class Tenant:
    """A driver, two enclaves, and what their pages ought to contain."""

    def __init__(self, policy: str) -> None:
        self.frames = DictFrames()
        self.driver = Driver(
            epc_pages=64,
            policy=epc.by_name(policy),
            frames=self.frames,
            root_key=bytes(16),
            paging_key=bytes(16),
        )
        self.group = self.driver.machine.groups.mkdir("/t")
        self.caller = epc.Caller(self.group)
        self.mem = FakeMemory()
        self.expected: list[list[bytes]] = []
        self.files = [self._enclave(seed) for seed in (1, 2)]

    def _enclave(self, seed: int) -> EnclaveFile:
        pages = [
            hashlib.sha256(bytes([seed, i])).digest() * 128 if i % 3 else bytes(4096) for i in range(PAGES)
        ]
        self.expected.append(pages)
        file = self.driver.open()
        image = self.mem.put(Secs(size_bytes=1 << 20, base=seed << 32, xfrm=7).pack())
        file.ioctl(Ioctl.CREATE, self.mem.put(image.to_bytes(8, "little")), self.mem, self.caller)
        source, info = self.mem.put(b"".join(pages)), self.mem.put(SecInfo(0x203).pack())
        arg = self.mem.put(numbers.ADD_PAGES.pack(source, 0, PAGES * 4096, info, 0, 0))
        file.ioctl(Ioctl.ADD_PAGES, arg, self.mem, self.caller)
        file.enclave.initialised = True  # no certificate needed to page
        return file

    def touch(self, which: int, index: int, access: str) -> bool:
        file = self.files[which]
        for _ in range(200):
            outcome = self.driver.fault(file, file.base + index * 4096, access, self.caller)
            if outcome is not Fault.RETRY:
                return outcome is Fault.RESIDENT
            self.driver.machine.step()
        return False

    def do(self, step: tuple) -> None:
        if step[0] == "limit":
            self.driver.machine.set_max(self.group, step[1] * 4096)
        elif step[0] == "work":
            self.driver.machine.step()
        elif step[0] == "young":
            self.frames.accessed.add((self.files[step[1]].enclave.id, step[2]))
        else:
            self.access(*step)

    def access(self, kind: str, which: int, index: int, data: bytes = b"") -> None:
        enclave = self.files[which].enclave.id
        if not self.touch(which, index, kind[0]):
            return
        page = self.expected[which][index]
        assert self.frames.read(enclave, index, 0, 4096) == page
        if kind == "write":
            self.frames.write(enclave, index, index, data)
            self.expected[which][index] = page[:index] + data + page[index + len(data) :]

    def check(self) -> None:
        check(self.driver.machine)
        for file in self.files:
            enclave = file.enclave
            resident = {index for index, page in enclave.pages.items() if page is not None}
            assert resident == set(file.words)
            assert resident == {index for owner, index in self.frames.contents if owner == enclave.id}
            stored = self.driver.pager.store.pages(enclave.id)
            assert len(stored) == enclave.evicted == self.driver.pager.slots_in_use(enclave)
            assert file.state.secs_resident == (enclave.secs is not None)


@settings(max_examples=60)
@given(policy=st.sampled_from(["v5", "v17", "standard"]), steps=STEPS)
def test_contents_versions_and_counts_stay_exact(policy, steps):
    tenant = Tenant(policy)
    for step in steps:
        tenant.do(step)
        tenant.check()
    tenant.driver.machine.set_max(tenant.group, None)
    for which, file in enumerate(tenant.files):
        for index in range(PAGES):
            if not file.disabled:
                assert tenant.touch(which, index, "r")
                assert tenant.frames.read(file.enclave.id, index, 0, 4096) == tenant.expected[which][index]
        file.release()
    assert tenant.driver.machine.usage(tenant.group) == 0
    assert tenant.frames.contents == {}
