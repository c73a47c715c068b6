"""What an operation did to pages, noted as it passes the frames, and the invariants of just those pages.

Whatever happens to a page of an enclave passes `MemfdFrames`: it is put, taken,
protected, dropped, or asked for its age. So these are listened to, on the machine that
checks itself (`paranoid`) alone: nothing else pays for it.
"""

from __future__ import annotations

import errno
import functools
import os
from typing import TYPE_CHECKING, Any

from epcgroup.epc import invariants
from epcgroup.errors import InternalError
from epcgroup.units import PAGE_SHIFT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from epcgroup.driver import EnclaveFile
    from epcgroup.epc import EpcPage, Machine
    from epcgroup.live.devices import Device
    from epcgroup.live.paging.frames import MemfdFrames
    from epcgroup.live.world import World


class Touched:
    """The pages that were touched since they were last checked, or forgotten."""

    def __init__(self, frames: MemfdFrames, machine: Machine) -> None:
        """Listens to both from now on."""
        self._pages: dict[int, set[int]] = {}  # enclave → indices
        for name in ("put", "zero", "drop", "write", "protect"):
            self._listen(frames, name, lambda enclave, index, *_: self._note(enclave, (index,)))
        self._listen(frames, "leaving", self._note)
        self._listen(machine, "arrived", lambda _, enclave, indices: self._note(enclave.id, indices))
        self._listen(frames, "young", self._asked)
        self._listen(frames, "disable", self._disabled)
        self.too_many = False  # whole enclaves were

    def _listen(self, to: MemfdFrames | Machine, name: str, note: Callable[..., None]) -> None:
        method = getattr(to, name)

        @functools.wraps(method)
        def noting(*arguments: Any) -> Any:
            note(*arguments)
            return method(*arguments)

        setattr(to, name, noting)

    def _note(self, enclave: int, indices: Iterable[int]) -> None:
        self._pages.setdefault(enclave, set()).update(indices)

    def _asked(self, pages: Sequence[EpcPage]) -> None:
        for page in pages:
            self._note(page.enclave.id, (page.index,))

    def _disabled(self, _: int) -> None:
        self.too_many = True

    def forget(self) -> None:
        """They are looked at by somebody else."""
        self._pages.clear()
        self.too_many = False

    def check(self, world: World) -> None:
        """Raise InternalError, naming the invariant, if one does not hold for them. Hold the lock."""
        for number, indices in self._pages.items():
            device, file = world.frames.inhabited().get(number), world.driver.files.get(number)
            if device is None or file is None:
                continue  # released
            for index in indices:
                if index >= 0:  # a SECS has no frame
                    invariants.check_page(file.enclave, index)
                    _check_place(world, file, device, index)
        self._pages.clear()


def _check_place(world: World, file: EnclaveFile, device: Device, index: int) -> None:
    shown, hidden = is_present(device.memfd, index), index in device.hidden
    resident = file.enclave.pages.get(index) is not None
    sealed = world.driver.pager.store.get(file.enclave.id, index) is not None
    if shown and hidden:
        raise InternalError(f"LIVE-2 does not hold: {file.enclave}: [{index}] both shown and hidden")
    if not resident == (shown or hidden) == (index in file.words):
        where = [name for name, there in (("shown", shown), ("hidden", hidden)) if there]
        raise InternalError(
            f"LIVE-2 does not hold: {file.enclave}: page {index} is {where}, resident: {resident}, "
            f"in the EPCM: {index in file.words}"
        )
    if sealed is not (index in file.enclave.pages and not resident):
        raise InternalError(f"LIVE-3 does not hold: {file.enclave}: page {index} sealed: {sealed}")


def is_present(memfd: int, index: int) -> bool:
    """Whether a memfd really has a page, by the kernel's own account."""
    return _data(memfd, index << PAGE_SHIFT) == index << PAGE_SHIFT


def present(memfd: int) -> Iterator[int]:
    """Indices of the pages that a memfd really has, by the kernel's own account."""
    at = 0
    while (at := _data(memfd, at)) >= 0:
        end = os.lseek(memfd, at, os.SEEK_HOLE)
        yield from range(at >> PAGE_SHIFT, end >> PAGE_SHIFT)
        at = end


def _data(memfd: int, at: int) -> int:
    """Where the next page of a memfd is, in bytes; -1 when there is none."""
    try:
        return os.lseek(memfd, at, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return -1


__all__ = ["Touched", "is_present", "present"]
