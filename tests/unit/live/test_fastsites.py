from __future__ import annotations

import pytest

from epcgroup.live.fastpath import sites as fastsites
from epcgroup.live.fastpath.sites import Site

USUAL = bytes.fromhex("4889c8 4889d1 4889fe 4889c8 4889d1 4889fe 4889c8 4889d1 4889fe")
ENCLU = fastsites.ENCLU
MOV_EAX, MOV_RAX = bytes.fromhex("b804000000"), bytes.fromhex("48c7c004000000")
# xor of all registers that the SDK clears, and the add that sets the flags.
SDK = bytes.fromhex("4831c9 4831d2 4d31c0 4d31c9 4d31d2 4d31db 4d31e4 4d31ed 4d31f6 4d31ff 4801d2")


@pytest.mark.parametrize("between", [b"", SDK, bytes.fromhex("4889fb4889f1")], ids=["none", "sdk", "gramine"])
@pytest.mark.parametrize("mov", [MOV_EAX, MOV_RAX], ids=["eax", "rax"])
def test_an_eexit_is_found_whatever_harmless_stands_before_it(mov: bytes, between: bytes) -> None:
    code = USUAL + mov + between + ENCLU + USUAL
    at = len(USUAL)
    assert list(fastsites.with_leaf(code, 4)) == [Site(at, len(mov), at + len(mov) + len(between))]


@pytest.mark.parametrize(
    "between",
    ["50", "31c0", "4889c3", "488b0424", "e800000000", "7500", "488d0500000000", "b803000000", "0f0b"],
    ids=["push", "xor-eax", "reads-rax", "load", "call", "jump", "lea-rip-rax", "other-leaf", "ud2"],
)
def test_what_cannot_be_done_elsewhere_is_left_alone(between: str) -> None:
    code = USUAL + MOV_EAX + bytes.fromhex(between) + ENCLU + USUAL
    assert list(fastsites.with_leaf(code, 4)) == []


def test_another_leaf_is_none_of_ours() -> None:
    assert list(fastsites.with_leaf(USUAL + bytes.fromhex("b805000000") + ENCLU, 4)) == []


def test_a_mov_to_another_register_is_not_mistaken() -> None:
    """41 b8 is mov to R8D: its last five bytes look like a mov to EAX."""
    assert list(fastsites.with_leaf(USUAL + b"\x41" + MOV_EAX + ENCLU + USUAL, 4)) == []


def test_bytes_of_a_constant_are_not_an_instruction() -> None:
    hidden = b"\x48\xb9" + MOV_EAX + ENCLU  # movabs: the next ten bytes are its constant
    assert list(fastsites.with_leaf(USUAL + hidden + USUAL, 4)) == []


def test_host_code_that_loads_the_aep_last() -> None:
    code = USUAL + bytes.fromhex("488d0d10000000") + ENCLU
    assert fastsites.before(code, len(code) - 3, 2) == Site(len(USUAL), 7, len(code) - 3)


def test_a_moved_lea_still_names_the_same_address() -> None:
    moved = fastsites.moved(bytes.fromhex("4889fb 488d0df0ffffff"), 0x7000)
    assert moved == bytes.fromhex("4889fb 48b9") + (0x7000 + 10 - 16).to_bytes(8, "little")
