"""An open /dev/sgx_enclave: one enclave, its ioctls, its life (spec 6.1, 6.5).

A long ioctl is a generator of steps, so that its caller can let go of the
machine between them: background reclaim and other threads get their turn, as in
the kernel. ``ioctl`` runs all steps at once.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Generator, Mapping
from typing import TYPE_CHECKING

from epcgroup.driver import add_pages, create, edmm, init, mapping
from epcgroup.driver.numbers import MAP_SHARED, Ioctl
from epcgroup.driver.refuse import awaited, copy_in, require
from epcgroup.driver.seams import UserMemory
from epcgroup.epc import Caller, Enclave
from epcgroup.errors import InternalError, Refused
from epcgroup.sgx.enclave import EnclaveState
from epcgroup.sgx.layouts import UNPRIVILEGED_ATTRIBUTES, Attribute, X

if TYPE_CHECKING:
    from epcgroup.driver.driver import Driver

Steps = Generator[None, None, int]


class EnclaveFile:
    """One open file description of /dev/sgx_enclave.

    ``maximum`` maps page index → the most a mapping of the page may allow, as
    R=1, W=2, X=4 (spec 6.2); its keys are all pages the enclave has.
    """

    __slots__ = (
        "_running",
        "_state",
        "attributes",
        "attributes_mask",
        "base",
        "driver",
        "held",
        "maximum",
        "prot_counts",
        "refusal",
        "released",
        "size",
    )

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.base = 0  # linear address and
        self.size = 0  # bytes of the enclave, once created
        self.attributes = 0
        self.attributes_mask = UNPRIVILEGED_ATTRIBUTES
        self.maximum: dict[int, int] = {}
        self.prot_counts = [0] * 8  # pages by maximum, so that most mappings need no scan
        self.refusal = ""  # why a touch was last refused (SIGBUS)
        self.released = False
        self.held: Enclave | None = None  # the engine's side, once created
        self._state: EnclaveState | None = None
        self._running = False

    # -- state ------------------------------------------------------------------

    @property
    def created(self) -> bool:
        """Whether ECREATE succeeded."""
        return self.held is not None

    @property
    def enclave(self) -> Enclave:
        """The engine's side. Raises InternalError before CREATE."""
        if self.held is None:
            raise InternalError("the enclave is not created yet")
        return self.held

    @property
    def state(self) -> EnclaveState:
        """The processor's side. Raises InternalError before CREATE."""
        if self._state is None:
            raise InternalError("the enclave is not created yet")
        return self._state

    @property
    def initialised(self) -> bool:
        """Whether EINIT succeeded."""
        return self.held is not None and self.held.initialised

    @property
    def disabled(self) -> bool:
        """Whether the enclave lost its memory for good (NO_MEMORY, spec 5.3)."""
        return self.held is not None and self.held.disabled

    @property
    def debug(self) -> bool:
        """Whether the enclave may be debugged."""
        return bool(self.attributes & int(Attribute.DEBUG))

    @property
    def words(self) -> Mapping[int, int]:
        """EPCM words of the resident pages, by index."""
        return self._state.epcm if self._state is not None else {}

    def word(self, index: int) -> int:
        """EPCM word of a page, resident or evicted; 0 where there is none."""
        if self._state is None or self.held is None:
            return 0
        word = self._state.epcm.get(index)
        if word is None:
            entry = self.driver.pager.store.get(self.held.id, index)
            return entry.flags if entry is not None else 0
        return word

    def all_executable(self, first: int, last: int) -> bool:
        """Whether every page in ``[first, last)`` exists and has EPCM.X."""
        if last - first > len(self.maximum):
            return False
        return all(self.word(index) & X for index in range(first, last))

    # -- used by the ioctls -------------------------------------------------------

    def bind(self, enclave: Enclave, state: EnclaveState) -> None:
        """CREATE succeeded."""
        self.held, self._state = enclave, state
        self.base, self.size = state.base, state.size
        self.attributes = state.secs.attributes

    def set_maximum(self, index: int, prot: int) -> None:
        """Note a page's maximum protection; new or changed."""
        old = self.maximum.get(index)
        if old is not None:
            self.prot_counts[old] -= 1
        self.maximum[index] = prot
        self.prot_counts[prot] += 1

    def forget_page(self, index: int) -> None:
        """The page was removed."""
        self.prot_counts[self.maximum.pop(index)] -= 1

    # -- system calls -------------------------------------------------------------

    def ioctl(self, cmd: int, arg: int, mem: UserMemory, caller: Caller) -> int:
        """One ioctl from beginning to end. Raises OSError with the errno."""
        return run(self.ioctl_steps(cmd, arg, mem, caller))

    def ioctl_steps(self, cmd: int, arg: int, mem: UserMemory, caller: Caller) -> Steps:
        """The same in steps: let go of the machine at each yield, then resume.

        A second ioctl that begins before the first has ended is refused with
        EBUSY. Close the generator to abandon the ioctl (its process died).
        """
        require(not self._running, errno.EBUSY, "another ioctl is running on this enclave")
        handler = _HANDLERS.get(cmd)
        if handler is None:
            raise Refused(f"ioctl {cmd:#x} is unknown to /dev/sgx_enclave", errno.ENOTTY)
        if self.driver.dice is not None:
            self.driver.dice.ioctl(cmd)
        self._running = True
        try:
            yield from awaited(mem, arg, cmd >> _SIZE_SHIFT & _SIZE_MASK)
            return (yield from handler(self, arg, mem, caller))
        finally:
            self._running = False

    def may_map(
        self, start: int, length: int, prot: int, flags: int = MAP_SHARED, read_implies_exec: bool = False
    ) -> None:
        """mmap. Raises Refused: EINVAL (private), EACCES, ENOMEM (spec 6.2)."""
        mapping.may_map(self, start, length, prot, flags, read_implies_exec)

    def may_protect(self, start: int, length: int, prot: int, read_implies_exec: bool = False) -> None:
        """mprotect. Raises Refused: EACCES."""
        mapping.may_protect(self, start, length, prot, read_implies_exec)

    def release(self) -> None:
        """The last descriptor and mapping are gone: everything goes back (spec 6.1)."""
        self.driver.release(self)


def _provision(file: EnclaveFile, arg: int, mem: UserMemory, _caller: Caller) -> Steps:
    """PROVISION: an open /dev/sgx_provision is the right to ask for PROVISIONKEY."""
    fd = int.from_bytes(copy_in(mem, arg, 8), "little")
    require(mem.is_provision(fd), errno.EINVAL, f"descriptor {fd} is not /dev/sgx_provision")
    file.attributes_mask |= int(Attribute.PROVISIONKEY)
    return 0
    yield


_SIZE_SHIFT, _SIZE_MASK = 16, 0x3FFF  # of the argument, in the command (_IOC_SIZE)
_HANDLERS: dict[int, Callable[[EnclaveFile, int, UserMemory, Caller], Steps]] = {
    Ioctl.CREATE: create.create,
    Ioctl.ADD_PAGES: add_pages.add_pages,
    Ioctl.INIT: init.init,
    Ioctl.PROVISION: _provision,
    Ioctl.RESTRICT_PERMISSIONS: edmm.restrict_permissions,
    Ioctl.MODIFY_TYPES: edmm.modify_types,
    Ioctl.REMOVE_PAGES: edmm.remove_pages,
}


def run(steps: Steps) -> int:
    """Run an ioctl's steps to the end; its result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return int(end.value)
