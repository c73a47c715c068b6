"""Mappings of enclaves in the hostile program's processes, beside a model of single pages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from epcgroup.live.paging.mappings import real_protection
from epcgroup.live.paging.mm import AddressSpace, EnclaveVma
from epcgroup.units import PAGE_SHIFT, PAGE_SIZE

from .words import BASE, PAGES, Words

if TYPE_CHECKING:
    from epcgroup.driver import EnclaveFile

_PROCESSES = 3
_Page = tuple["Mapped", int, int]  # whose, virtual and real protection


class Mapped:
    """What a mapping knows of its device (live's `Device` without a memfd)."""

    def __init__(self, file: EnclaveFile) -> None:
        self.file, self.base = file, file.base
        self.guest = None
        self.mms: set[AddressSpace] = set()


class Mappings:
    """Up to three processes; what each of them maps, once as live keeps it and once page by page."""

    def __init__(self) -> None:
        self._spaces: list[tuple[AddressSpace, dict[int, _Page]]] = [(AddressSpace(1), {})]
        self._devices: dict[EnclaveFile, Mapped] = {}

    def change(self, words: Words, file: EnclaveFile) -> None:
        """One system call of one process. Raises what the driver refuses."""
        call = words.byte()
        number = words.byte() % len(self._spaces)
        space, pages = self._spaces[number]
        start = BASE + words.byte() % (PAGES + 8) * PAGE_SIZE - 4 * PAGE_SIZE
        end = start + (words.byte() % 24 + 1) * PAGE_SIZE
        prot = call >> 5
        if call & 7 < 3:
            self._map(space, pages, file, start, end, prot, words)
        elif call & 7 == 3:
            space.unmap(start, end)
            for at in range(start, end, PAGE_SIZE):
                pages.pop(at, None)
        elif call & 7 < 6:
            self._protect(space, pages, start, end, prot)
        elif call & 7 == 6 and len(self._spaces) < _PROCESSES:
            self._spaces.append((space.forked(len(self._spaces) + 1), dict(pages)))
        elif call & 7 == 7 and number:
            space.close()
            del self._spaces[number]

    def _map(
        self, space: AddressSpace, pages: dict[int, _Page], file: EnclaveFile,
        start: int, end: int, prot: int, words: Words,
    ) -> None:  # fmt: skip
        if not file.created:
            return
        file.may_map(start, end - start, prot, 1 + (words.byte() == 1), words.byte() == 1)
        if start < file.base or end > file.base + file.size:
            return  # allowed before EINIT, and of no meaning
        device = self._devices.setdefault(file, Mapped(file))
        real = real_protection(device, start, end, prot)  # type: ignore[arg-type]
        space.map(EnclaveVma(start, end, device, prot, real))  # type: ignore[arg-type]
        pages.update(dict.fromkeys(range(start, end, PAGE_SIZE), (device, prot, real)))

    def _protect(self, space: AddressSpace, pages: dict[int, _Page], start: int, end: int, prot: int) -> None:
        real = prot
        for vma in space.overlapping(start, end):
            low, high = max(start, vma.start), min(end, vma.end)
            assert vma.device.file is not None
            vma.device.file.may_protect(low, high - low, prot)
            real &= real_protection(vma.device, low, high, prot)
        space.protect(start, end, prot=prot, real=real)
        for at in range(start, end, PAGE_SIZE):
            if at in pages:
                pages[at] = (pages[at][0], prot, real)

    def find(self, number: int, addr: int) -> tuple[EnclaveFile, int, int] | None:
        """File, address and protection of a mapping of process ``number``."""
        vma = self._spaces[number % len(self._spaces)][0].find(addr)
        return None if vma is None or vma.device.file is None else (vma.device.file, addr, vma.prot)

    def forget(self, file: EnclaveFile) -> None:
        """Nobody maps it any more."""
        for space, pages in self._spaces:
            space.unmap(file.base, file.base + file.size)
            for at in [at for at, page in pages.items() if file.base <= at < file.base + file.size]:
                del pages[at]
        self._devices.pop(file, None)

    def check(self) -> None:
        """Live's account is that of the model, in as few pieces as can be."""
        for space, pages in self._spaces:
            found: dict[int, _Page] = {}
            last = None
            for vma in space:
                assert vma.start < vma.end
                assert last is None or last.end <= vma.start, "mappings overlap"
                assert last is None or not last.continued_by(vma), "two pieces that are one"
                assert vma.index(vma.start) == (vma.start - vma.device.base) >> PAGE_SHIFT
                piece = (vma.device, vma.prot, vma.real)
                found |= dict.fromkeys(range(vma.start, vma.end, PAGE_SIZE), piece)  # type: ignore[arg-type]
                last = vma
            assert found == pages, "mappings are not what they were asked to be"
            used = {page[0] for page in pages.values()}
            assert space.devices() == used
            for device in self._devices.values():
                assert (space in device.mms) is (device in used)

    def close(self) -> None:
        """All processes end; the first one is there anew."""
        for space, _ in self._spaces:
            space.close()
        assert not any(device.mms for device in self._devices.values())
        self.__init__()  # type: ignore[misc]
