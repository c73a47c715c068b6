from __future__ import annotations

import pytest

from epcgroup.live.enclave import cpuid
from epcgroup.sgx.platform import Platform

pytestmark = pytest.mark.needs("x86-64")

GIB = 1 << 30


def test_leaf_0_admits_that_the_sgx_leaf_exists() -> None:
    """AMD processors end below 0x12; programs ask before they look."""
    answer = cpuid.answer(0, 0, [], 7)
    assert answer is not None
    assert answer[0] >= cpuid.LEAF_SGX
    assert answer[1:] == cpuid.native(0)[1:]


def test_leaf_7_adds_sgx_and_changes_nothing_else() -> None:
    answer, native = cpuid.answer(7, 0, [], 7), cpuid.native(7, 0)
    assert answer is not None
    assert answer == (native[0], native[1] | 1 << 2, native[2] | 1 << 30, native[3])
    assert cpuid.answer(7, 1, [], 7) is None


def test_sgx_capabilities() -> None:
    """SGX1, SGX2, EDECCSSA; EXINFO; 2^31 and 2^47 bytes at most."""
    assert cpuid.answer(0x12, 0, [], 7) == (0b11 | 1 << 11, 1, 0, 0x2F1F)


def test_attributes_and_the_real_xcr0() -> None:
    assert cpuid.answer(0x12, 1, [], 0x1_0000_02E7) == (0x4B6, 0, 0x2E7, 1)


def test_sections_are_split_as_the_manual_says() -> None:
    """EAX 31:12 and EBX 19:0 are the base, ECX 31:12 and EDX 19:0 the size; type 1 each."""
    sections = [(0x12_3456_7000, 6 * GIB), (0x8000_0000, 64 << 20)]
    assert cpuid.answer(0x12, 2, sections, 7) == (0x34567001, 0x12, 0x80000001, 0x1)
    assert cpuid.answer(0x12, 3, sections, 7) == (0x80000001, 0, 0x04000001, 0)
    assert cpuid.answer(0x12, 4, sections, 7) == (0, 0, 0, 0)


def test_the_sections_of_a_machine_lie_one_behind_the_other() -> None:
    (first, _, size, _), (second, *_), end = (cpuid.execute(0x12, n, [64 << 20, 32 << 20]) for n in (2, 3, 4))
    assert (size, second - first) == (64 << 20 | 1, 64 << 20)
    assert end == (0, 0, 0, 0)


def test_other_leaves_are_the_processors_own() -> None:
    assert cpuid.answer(1, 0, [], 7) is None
    assert cpuid.execute(0x80000002, 0, [GIB]) == cpuid.native(0x80000002)


def test_xcr0_has_x87_and_sse() -> None:
    assert cpuid.xcr0() & 3 == 3


def test_what_cpuid_offers_ecreate_accepts() -> None:
    """An attribute that is offered is honoured, and the other way round."""
    assert Platform().attributes == cpuid.ATTRIBUTES
