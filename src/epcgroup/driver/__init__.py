"""The kernel driver's behaviour: /dev/sgx_enclave and /dev/sgx_provision.

Start with :class:`Driver`; give it :class:`Frames` (where resident pages lie).
"""

from epcgroup.driver.driver import Driver
from epcgroup.driver.fault import Fault
from epcgroup.driver.file import EnclaveFile, run
from epcgroup.driver.memory import BusError, EnclaveMemory
from epcgroup.driver.numbers import Ioctl
from epcgroup.driver.seams import Frames, UserMemory
from epcgroup.driver.store import BackingStore, Evicted

__all__ = [
    "BackingStore",
    "BusError",
    "Driver",
    "EnclaveFile",
    "EnclaveMemory",
    "Evicted",
    "Fault",
    "Frames",
    "Ioctl",
    "UserMemory",
    "run",
]
