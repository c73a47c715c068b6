"""The kernel driver's behaviour: /dev/sgx_enclave, /dev/sgx_provision and /dev/sgx_vepc.

Start with :class:`Driver`; give it :class:`Frames` (where resident pages lie).
"""

from epcgroup.driver.driver import Driver
from epcgroup.driver.evicted import Evicted
from epcgroup.driver.fault import Fault
from epcgroup.driver.file import EnclaveFile, run
from epcgroup.driver.memory import BusError, EnclaveMemory, LostMemory
from epcgroup.driver.numbers import Ioctl, VepcIoctl
from epcgroup.driver.seams import Frames, UserMemory
from epcgroup.driver.store import BackingStore
from epcgroup.driver.vepc import VepcFile

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
    "LostMemory",
    "UserMemory",
    "VepcFile",
    "VepcIoctl",
    "run",
]
