"""The numbers of the user interface (spec 6.5)."""

from __future__ import annotations

from epcgroup.driver import Ioctl, numbers


def test_arguments_have_the_sizes_of_the_kernel_header():
    assert numbers.ADD_PAGES.size == 48
    assert numbers.EDMM.size == 40
    assert numbers.REMOVE.size == 24


def test_each_command_number_holds_its_argument_size():
    sizes = {command.name: (command >> 16) & 0x3FFF for command in Ioctl}
    assert sizes == {
        "CREATE": 8,
        "ADD_PAGES": 48,
        "INIT": 8,
        "PROVISION": 8,
        "RESTRICT_PERMISSIONS": 40,
        "MODIFY_TYPES": 40,
        "REMOVE_PAGES": 24,
    }
    assert {(command >> 8) & 0xFF for command in Ioctl} == {0xA4}
