"""The driver: one machine, its paging keys, and the device files opened on it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from epcgroup.driver import fault as faults
from epcgroup.driver.faulty import Dice, HostileStore, ShortMachine
from epcgroup.driver.file import EnclaveFile
from epcgroup.driver.inject import Plan
from epcgroup.driver.memory import EnclaveMemory
from epcgroup.driver.pager import SealingPager
from epcgroup.driver.rules import rules_for
from epcgroup.driver.seams import Frames, Log
from epcgroup.driver.store import BackingStore
from epcgroup.driver.vepc import VepcFile
from epcgroup.epc import Caller, Machine, Policy, Section
from epcgroup.sgx.keys import KeyRoot
from epcgroup.sgx.platform import Platform
from epcgroup.sgx.seal import PageSealer


def _silent(_message: str) -> None:
    """Say nothing."""


class Driver:
    """An SGX machine with its driver loaded.

    ``root_key`` (16 bytes) is what EGETKEY and EREPORT derive from: keep it for
    sealed files to open again. ``paging_key`` protects evicted pages; by default
    it is random and dies with the machine, as in hardware. ``store`` is where
    evicted pages go; by default ordinary memory without a limit. ``plan`` has
    faults happen (`inject`), by a seed of its own or one that follows from the root key.
    """

    def __init__(
        self,
        *,
        epc_pages: int,
        policy: Policy,
        frames: Frames,
        root_key: bytes,
        paging_key: bytes | None = None,
        platform: Platform | None = None,
        store: BackingStore | None = None,
        plan: Plan | None = None,
        resources: Mapping[str, int] | None = None,
        sections: Sequence[Section] = (),
        log: Log = _silent,
    ) -> None:
        self.frames = frames
        self.platform = platform if platform is not None else Platform()
        self.keys = KeyRoot(root_key)
        self.rules = rules_for(policy)
        self.log = log
        self.dice: Dice | None = None
        self.spoilt = plan.at("sigbus") if plan is not None else frozenset()
        self.victim: EnclaveFile | None = None  # the first enclave, which a plan's pages belong to
        if plan is not None:
            seed = int.from_bytes(root_key[:4], "little") if plan.seed is None else plan.seed
            self.dice = Dice(plan, seed)
            store = HostileStore(plan, self.dice)
            log(f"faults are injected; with --inject seed={seed} they fall alike again")
        sealer = PageSealer(paging_key if paging_key is not None else os.urandom(16))
        self.pager = SealingPager(frames, sealer, store if store is not None else BackingStore(), log)
        parts: dict[str, Any] = {
            "epc_pages": epc_pages,
            "policy": policy,
            "pager": self.pager,
            "resources": resources or {},
            "sections": sections,
        }
        self.machine = Machine(**parts) if self.dice is None else ShortMachine(self.dice, **parts)
        self.files: dict[int, EnclaveFile] = {}  # by enclave id
        self.zombies: list[VepcFile] = []  # closed, with SECS pages that have children elsewhere

    def open(self) -> EnclaveFile:
        """open("/dev/sgx_enclave"): an empty enclave."""
        return EnclaveFile(self)

    def open_vepc(self) -> VepcFile:
        """open("/dev/sgx_vepc"): a guest's EPC without pages."""
        return VepcFile(self)

    def adopt(self, file: EnclaveFile) -> None:
        """CREATE succeeded for ``file``."""
        self.files[file.enclave.id] = file
        if self.victim is None:
            self.victim = file
        self.pager.adopt(file.enclave, file.state)

    def release(self, file: EnclaveFile) -> None:
        """Free everything of an enclave; harmless when done before."""
        if file.created and not file.released:
            file.released = True
            self.machine.release(file.enclave)
            self.pager.forget(file.enclave)
            del self.files[file.enclave.id]
            file.maximum.clear()

    def fault(
        self, file: EnclaveFile, addr: int, access: str, caller: Caller, vma_prot: int = 0
    ) -> faults.Fault:
        """A page fault on enclave memory; see ``driver.fault``."""
        return faults.fault(file, addr, access, caller, vma_prot)

    def memory(self, file: EnclaveFile, caller: Caller) -> EnclaveMemory:
        """The enclave's memory for ENCLU leaves and thread state."""
        return EnclaveMemory(file, caller)
