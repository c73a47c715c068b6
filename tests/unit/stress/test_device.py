"""Loading through a device whose answers the test gives."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from epcgroup.errors import MissingCapability, NoEpc, Refused
from epcgroup.sgx.sign import SigningKey
from epcgroup.stress import device
from epcgroup.stress.device import Enclave
from epcgroup.stress.image import Image

CREATE, ADD, INIT = 0x4008A400, 0xC030A401, 0x4008A402
PAGE = 4096


class FakeDriver:
    """Adds pages as told; ``answer(already)`` gives (errno, bytes to add) for an ADD_PAGES call."""

    def __init__(self, answer: Callable[[int], tuple[int, int]] | None = None) -> None:
        self.answer = answer
        self.pages: dict[int, tuple[bytes, int, int]] = {}
        self.calls: list[int] = []
        self.init_errors: list[int] = []
        self.base = 0

    def ioctl(self, fd: int, command: int, argument: device._AddPages) -> int:
        del fd
        self.calls.append(command)
        if command == ADD:
            return self._add(argument)
        if command == INIT:
            return self.init_errors.pop(0) if self.init_errors else 0
        secs = ctypes.string_at(argument.value, PAGE)  # type: ignore[attr-defined]
        self.base = int.from_bytes(secs[8:16], "little")
        return 0

    def _add(self, argument: device._AddPages) -> int:
        assert argument.src % PAGE == 0
        assert argument.secinfo % 64 == 0
        number, length = self.answer(len(self.pages)) if self.answer else (0, argument.length)
        length = min(length, argument.length)
        for at in range(0, length, PAGE):
            flags = int.from_bytes(ctypes.string_at(argument.secinfo, 8), "little")
            assert argument.offset + at not in self.pages
            self.pages[argument.offset + at] = (
                ctypes.string_at(argument.src + at, PAGE),
                flags,
                argument.flags,
            )
        argument.count = length
        return number


@pytest.fixture
def file(tmp_path: Path) -> str:
    """Stands for the device; long enough to be mapped."""
    path = tmp_path / "device"
    path.write_bytes(bytes(1 << 16))
    return str(path)


def load(
    file: str, driver: FakeDriver, key: SigningKey, monkeypatch: pytest.MonkeyPatch, heap: int = 300
) -> Enclave:
    monkeypatch.setattr(device, "_ioctl", driver.ioctl)
    enclave = Enclave(Image(threads=2, heap_pages=heap), file)
    try:
        enclave.load(key)
    except BaseException:
        enclave.close()
        raise
    return enclave


def expected_pages(image: Image) -> dict[int, tuple[bytes, int, int]]:
    return {
        segment.offset + at: (
            segment.contents[at : at + PAGE] or bytes(PAGE),
            segment.flags,
            int(segment.measured),
        )
        for segment in image.segments()
        for at in range(0, segment.length, PAGE)
    }


def test_all_pages_arrive_with_contents_and_flags(
    file: str, signing_key: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = FakeDriver()
    with load(file, driver, signing_key, monkeypatch) as enclave:
        assert driver.pages == expected_pages(enclave.image)
        assert driver.calls[0] == CREATE
        assert driver.calls[-1] == INIT
        assert enclave.base % enclave.image.size == 0
        assert driver.base == enclave.base


@pytest.mark.parametrize("number", [0, errno.EINTR, errno.EAGAIN])
def test_short_count_is_carried_on(
    number: int, file: str, signing_key: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal ends ADD_PAGES early with success and a short count: that is no success."""
    driver = FakeDriver(lambda already: (number, 7 * PAGE if already % 2 else PAGE))
    with load(file, driver, signing_key, monkeypatch) as enclave:
        assert driver.pages == expected_pages(enclave.image)


def test_nothing_added_at_first_is_asked_for_again(
    file: str, signing_key: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = iter([errno.EINTR, errno.EAGAIN] * 3)

    def answer(already: int) -> tuple[int, int]:
        del already
        number = next(refusals, 0)
        return (number, 0) if number else (0, 1 << 30)

    driver = FakeDriver(answer)
    with load(file, driver, signing_key, monkeypatch) as enclave:
        assert driver.pages == expected_pages(enclave.image)


def test_limit_is_named_with_the_page_it_struck_at(
    file: str, signing_key: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = FakeDriver(lambda already: (errno.ENOMEM, 0) if already >= 20 else (0, 3 * PAGE))
    with pytest.raises(NoEpc, match=r"ADD_PAGES: out of EPC at page 2\d of 305 .*misc\.max"):
        load(file, driver, signing_key, monkeypatch)


def test_refused_signature_is_explained(
    file: str, signing_key: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = FakeDriver()
    driver.init_errors = [errno.EINTR, errno.EPERM]
    with pytest.raises(Refused, match=r"ENCLAVE_INIT.*EPERM.*signature") as caught:
        load(file, driver, signing_key, monkeypatch)
    assert caught.value.errno == errno.EPERM


def test_failed_load_leaves_no_descriptor_and_no_mapping(
    file: str, signing_key: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = FakeDriver(lambda already: (errno.EIO, 0) if already else (0, PAGE))
    before = os.listdir("/proc/self/fd")  # noqa: PTH208 - the number of descriptors is what counts
    with pytest.raises(Refused, match="EIO"):
        load(file, driver, signing_key, monkeypatch)
    assert len(os.listdir("/proc/self/fd")) == len(before)  # noqa: PTH208
    assert f"{driver.base:x}-" not in Path("/proc/self/maps").read_text()


def test_missing_device_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(MissingCapability, match="epcgroup run -- epcgroup stress"):
        Enclave(Image(1, 1), str(tmp_path / "sgx_enclave"))


def test_mappings_allow_what_the_pages_allow(
    file: str, signing_key: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    with load(file, FakeDriver(), signing_key, monkeypatch, heap=3) as enclave:
        lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
        modes = {line[0]: line[1] for line in lines if line[-1] == file}
        end = enclave.base + enclave.image.pages * PAGE
        assert modes == {
            f"{enclave.base:x}-{enclave.base + PAGE:x}": "r-xs",
            f"{enclave.base + PAGE:x}-{end:x}": "rw-s",
        }
