"""When an enclave file counts as closed: the last descriptor and the last mapping."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Iterator

import pytest

from epcgroup.errors import Refused
from epcgroup.live.devices import Device, DeviceTable, Kind


@pytest.fixture
def table() -> Iterator[DeviceTable]:
    devices = DeviceTable()
    yield devices
    for device in devices:
        devices.forget(device)
        device.close()
    devices.close()


@pytest.fixture
def device(table: DeviceTable) -> Device:
    opened = Device(Kind.PROVISION, None, os.getpid(), "test", "/")
    table.add(opened)
    os.ftruncate(opened.memfd, 4096)
    return opened


def program_opens(device: Device) -> int:
    """What a program's open of the device becomes."""
    return os.open(device.path().decode(), os.O_RDWR)


def test_the_last_close_releases(table: DeviceTable, device: Device) -> None:
    fd = program_opens(device)
    assert table.of_fd(os.getpid(), fd) is device
    assert table.closed() == []
    os.close(fd)
    assert table.closed() == [device]
    assert table.of_inode(device.inode) is None


def test_a_duplicate_keeps_it_open(table: DeviceTable, device: Device) -> None:
    fd = program_opens(device)
    second = os.dup(fd)
    os.close(fd)
    assert table.closed() == []
    os.close(second)
    assert table.closed() == [device]


def test_a_mapping_keeps_it_open_without_any_descriptor(table: DeviceTable, device: Device) -> None:
    fd = program_opens(device)
    mapping = mmap.mmap(fd, 4096)  # (mmap keeps a duplicate of the descriptor, too)
    os.close(fd)
    assert table.closed() == []
    mapping.close()
    assert table.closed() == [device]


def test_a_child_that_inherited_it_keeps_it_open(table: DeviceTable, device: Device) -> None:
    fd = program_opens(device)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(read, 1)
        os._exit(0)
    os.close(fd)
    assert table.closed() == []
    os.write(write, b"x")
    os.waitpid(child, 0)
    os.close(read)
    os.close(write)
    assert table.closed() == [device]


def test_a_thread_inside_keeps_it_until_it_has_left(table: DeviceTable, device: Device) -> None:
    fd = program_opens(device)
    device.threads = 1
    os.close(fd)
    assert table.closed() == []
    device.threads = 0
    assert table.closed() == [device]


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR])
def test_a_second_open_that_is_closed_leaves_the_first(
    table: DeviceTable, device: Device, flags: int
) -> None:
    """By /proc/self/fd, as a program may."""
    fd = program_opens(device)
    os.close(os.open(f"/proc/self/fd/{fd}", flags))
    assert table.closed() == []
    os.close(fd)
    assert table.closed() == [device]


def test_its_size_and_its_seals_are_fixed_and_it_is_empty(table: DeviceTable, device: Device) -> None:
    """A program that could forbid us to punch pages out would take the whole EPC with it."""
    fd = program_opens(device)
    os.pwrite(fd, b"early", 0)
    device.fix_size(1 << 20)
    assert os.fstat(fd).st_blocks == 0
    for seal in (fcntl.F_SEAL_WRITE, 0x10, fcntl.F_SEAL_SHRINK):
        with pytest.raises(PermissionError):
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seal)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    os.close(fd)
    assert table.closed() == [device]


@pytest.mark.parametrize("seal", [fcntl.F_SEAL_SEAL, fcntl.F_SEAL_GROW, 0x10])
def test_one_that_was_sealed_already_is_refused(device: Device, seal: int) -> None:
    fd = program_opens(device)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seal)
    os.close(fd)
    with pytest.raises(Refused, match="descriptor of the device was sealed"):
        device.fix_size(1 << 20)


def test_other_files_are_not_ours(table: DeviceTable) -> None:
    assert table.of_fd(os.getpid(), 0) is None
    assert table.of_fd(os.getpid(), 9999) is None
