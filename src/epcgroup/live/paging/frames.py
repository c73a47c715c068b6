"""Where resident pages live: the memfd's page cache, seen through userfaultfd.

This is the driver's `Frames` for real processes. The tricks and their reasons:

* A page is *put* by UFFDIO_COPY where a thread waits for it, else by a plain
  pwrite into the memfd, which needs no mapping at all.
* A page is *taken* by revoking it everywhere first (`revoke`).
* *Young* is "a PTE is present" (`age`).
* A page that may not be touched at all is kept out of the memfd (`hidden`), so
  that a touch comes to us; a page that may not be written is write-protected.

Rejected: a copy of every page in the supervisor.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from epcgroup.live.fastpath.table import BusyTcs
from epcgroup.live.paging import revoke, uffd
from epcgroup.live.paging.age import Age, PlainAge
from epcgroup.sgx import epcm
from epcgroup.sgx.layouts import TYPE_SHIFT, PageType, R, W, X
from epcgroup.units import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from epcgroup.driver import EnclaveFile
    from epcgroup.epc import EpcPage
    from epcgroup.live.devices import Device
    from epcgroup.live.paging.mm import AddressSpace

_ZERO_PAGE = bytes(PAGE_SIZE)
_WRITABLE = PageType.REG << TYPE_SHIFT | R | W


class MemfdFrames:
    """The driver's `Frames` over the memfds of all open enclave files."""

    def __init__(self) -> None:
        self._devices: dict[int, Device] = {}  # by enclave id
        self.age: Age = PlainAge(self._devices)
        self._waiting: AddressSpace | None = None
        self._waiting_at = 0
        self._woken = False
        self._page = uffd.PageBuffer()
        self._view = self._page.view

    def bind(self, enclave: int, device: Device) -> None:
        """Enclave ``enclave`` of the engine lives in ``device``."""
        self._devices[enclave] = device
        assert device.file is not None
        device.base = device.file.base
        device.file.state.busy = BusyTcs(device.enterable)

    def unbind(self, enclave: int) -> None:
        """The enclave was released."""
        self._devices.pop(enclave, None)

    def file(self, enclave: int) -> EnclaveFile:
        """The driver's side of an enclave."""
        file = self._devices[enclave].file
        assert file is not None
        return file

    def inhabited(self) -> dict[int, Device]:
        """The devices that hold an enclave, by its id."""
        return self._devices

    def touch(self, enclave: int, index: int) -> None:
        """The processor accessed a page on the enclave's behalf: it is young."""
        self._devices[enclave].touched.add(index)

    # ---- a waiting thread ----------------------------------------------------

    def expect(self, space: AddressSpace, page: int) -> None:
        """A thread of ``space`` waits for the page at address ``page``."""
        self._waiting, self._waiting_at = space, page
        self._woken = False

    def expected(self) -> bool:
        """Whether that thread was woken by the page's arrival."""
        self._waiting = None
        return self._woken

    def join(self, space: AddressSpace, device: Device, start: int = 0, end: int = 1 << 64) -> None:
        """A new mapping shows resident pages: protect those that must not be written."""
        if device.state is None:
            return
        words = device.state.epcm
        first = max(start - device.base, 0) >> PAGE_SHIFT
        last = (end - device.base) >> PAGE_SHIFT
        few = last - first < len(words)  # a program maps a large enclave in several pieces
        for index in range(first, last) if few else list(words):
            word = words.get(index)
            if word is None or not first <= index < last or epcm.allows(word, "w") or index in device.hidden:
                continue
            revoke.writeprotect(space, device.base + (index << PAGE_SHIFT), PAGE_SIZE, True)

    # ---- Frames ----------------------------------------------------------------

    def add(self, enclave: int, index: int, contents: bytes, word: int) -> None:
        """A page was added and measured; its EEXITs may become jumps now."""
        device = self._devices[enclave]
        if device.exits is not None and word & X:
            contents = device.exits.patch(device.base + (index << PAGE_SHIFT), contents)
        self.put(enclave, index, contents, word)

    def put(self, enclave: int, index: int, contents: bytes, word: int) -> None:
        """The page becomes resident."""
        device = self._devices[enclave]
        if epcm.hidden(word):
            device.hidden[index] = bytearray(contents)
            return
        self._show(device, index, contents, epcm.allows(word, "w"))

    def zero(self, enclave: int, index: int, space: AddressSpace) -> None:
        """A new page of zeros that may be written becomes resident, for a thread of ``space``."""
        device = self._devices[enclave]
        if len(device.mms) == 1:
            try:
                uffd.zeropage(space.uffd, device.base + (index << PAGE_SHIFT))
            except (FileNotFoundError, FileExistsError, ProcessLookupError):
                pass  # not mapped here, written behind our back; or the process has ended
            else:
                device.filled.add(index)
                return
        self.put(enclave, index, _ZERO_PAGE, _WRITABLE)

    def leaving(self, enclave: int, indices: Sequence[int]) -> Device:
        """These pages are about to be taken from their device."""
        device = self._devices[enclave]
        if device.touched:
            device.touched.difference_update(indices)
        if device.filled:
            device.filled.difference_update(indices)
        device.enterable.take_out_all_of(indices)
        return device

    def take(self, enclave: int, indices: Sequence[int]) -> list[bytes]:
        """Revoke the pages everywhere and return their final contents."""
        device = self.leaving(enclave, indices)
        shown = [index for index in indices if index not in device.hidden] if device.hidden else indices
        contents = revoke.hide(device, shown)
        if len(shown) == len(indices):
            return contents
        left = iter(contents)
        return [
            bytes(device.hidden.pop(index)) if index in device.hidden else next(left) for index in indices
        ]

    def drop(self, enclave: int, index: int) -> None:
        """Revoke the page and forget its contents."""
        device = self._devices.get(enclave)
        if device is None:
            return
        device.touched.discard(index)
        device.filled.discard(index)
        device.enterable.changes(index)
        if device.hidden.pop(index, None) is None:
            revoke.punch(device, index)

    def read(self, enclave: int, index: int, offset: int, length: int) -> bytes:
        """Bytes of a resident page."""
        device = self._devices[enclave]
        hidden = device.hidden.get(index)
        if hidden is not None:
            return bytes(hidden[offset : offset + length])
        return os.pread(device.memfd, length, (index << PAGE_SHIFT) + offset)

    def write(self, enclave: int, index: int, offset: int, data: bytes) -> None:
        """Change bytes of a resident page."""
        device = self._devices[enclave]
        hidden = device.hidden.get(index)
        if hidden is not None:
            hidden[offset : offset + len(data)] = data
        else:
            os.pwrite(device.memfd, data, (index << PAGE_SHIFT) + offset)

    def protect(self, enclave: int, index: int, word: int) -> None:
        """The EPCM word of a resident page changed."""
        device = self._devices[enclave]
        device.enterable.changes(index)
        if epcm.hidden(word):
            if index not in device.hidden:
                device.hidden[index] = bytearray(revoke.hide(device, (index,))[0])
            return
        hidden = device.hidden.pop(index, None)
        writable = epcm.allows(word, "w")
        if hidden is not None:
            self._show(device, index, bytes(hidden), writable)
            return
        addr = device.base + (index << PAGE_SHIFT)
        for space in list(device.mms):
            revoke.writeprotect(space, addr, PAGE_SIZE, not writable)

    def disable(self, enclave: int) -> None:
        """Every page goes out of reach; contents are lost with the enclave."""
        device = self._devices[enclave]
        device.enterable.take_out_all()
        if device.state is not None:
            for index in device.state.epcm:
                if index not in device.hidden:
                    device.hidden[index] = bytearray(revoke.hide(device, (index,))[0])

    def lost(self, enclave: int, index: int) -> bool:
        """Whether a resident page that may be touched is not there: the program itself punched it out."""
        device = self._devices[enclave]
        return index not in device.hidden and not revoke.is_there(device, index)

    def young(self, pages: Sequence[EpcPage]) -> Sequence[bool]:
        """Which pages were touched since they were last asked about; forgets it."""
        return self.age.young(pages)

    # ---- showing ---------------------------------------------------------------

    def _show(self, device: Device, index: int, contents: bytes, writable: bool) -> None:
        """Fill the page, for a waiting thread if there is one."""
        addr = device.base + (index << PAGE_SHIFT)
        waiting = self._waiting
        if (
            waiting is None
            or addr != self._waiting_at
            or not self._copy_in(device, waiting, index, contents, writable)
        ):
            os.pwrite(device.memfd, contents, index << PAGE_SHIFT)
            waiting = None
        if waiting is None or len(device.mms) > 1:
            for space in list(device.mms):
                if space is not waiting:
                    # Also takes away the marker that an eviction left in the other mm.
                    revoke.writeprotect(space, addr, PAGE_SIZE, not writable)

    def _copy_in(
        self, device: Device, waiting: AddressSpace, index: int, contents: bytes, writable: bool
    ) -> bool:
        """Fill the page and wake the thread in one request.

        False where the page was just unmapped, or the process has ended, or the program has
        put something there by its descriptor, which is then overwritten.
        """
        if waiting not in device.mms:
            return False
        self._view[:] = contents
        addr, source = device.base + (index << PAGE_SHIFT), self._page.address
        try:
            uffd.copy(waiting.uffd, addr, source, PAGE_SIZE, 0 if writable else uffd.COPY_WP)
        except (FileNotFoundError, FileExistsError, ProcessLookupError):
            return False
        device.filled.add(index)
        self._woken = True
        return True


__all__ = ["MemfdFrames"]
