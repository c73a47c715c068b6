"""mmap and mprotect of an enclave (spec 6.2)."""

from __future__ import annotations

import errno

import pytest

from epcgroup.driver.numbers import MAP_PRIVATE, MAP_SHARED_VALIDATE
from epcgroup.errors import Refused

BASE = 0x40000000
R, W, X = 1, 2, 4


def refusal(call, *arguments, **options) -> str:
    try:
        call(*arguments, **options)
    except Refused as refused:
        return errno.errorcode[refused.errno or 0]
    return "ok"


@pytest.fixture
def built(world):
    """Page 0 TCS, 1 rw-, 2 r-x, 3 r--; nothing else."""
    w = world()
    file = w.create()
    for index, flags in enumerate((0x100, 0x203, 0x205, 0x201)):
        w.add(file, bytes(4096), index * 4096, flags)
    return w, file


def test_a_private_mapping_is_einval_and_the_shared_ones_are_taken(built):
    _, file = built
    assert refusal(file.may_map, BASE, 4096, R, MAP_PRIVATE) == "EINVAL"
    assert refusal(file.may_map, BASE, 4096, R, MAP_SHARED_VALIDATE) == "ok"


@pytest.mark.parametrize(
    ("index", "prot", "answer"),
    [
        (0, R | W, "ok"),
        (0, X, "EACCES"),
        (1, R | W, "ok"),
        (1, X, "EACCES"),
        (2, R | X, "ok"),
        (2, W, "EACCES"),
        (3, R, "ok"),
        (3, W, "EACCES"),
        (4, R | W | X, "ok"),
    ],
)
def test_each_page_allows_what_its_secinfo_said(built, index, prot, answer):
    _, file = built
    assert refusal(file.may_map, BASE + index * 4096, 4096, prot) == answer
    assert refusal(file.may_protect, BASE + index * 4096, 4096, prot) == answer


def test_one_page_that_refuses_refuses_the_range(built):
    _, file = built
    assert refusal(file.may_map, BASE + 4096, 3 * 4096, W) == "EACCES"
    assert refusal(file.may_map, BASE + 4 * 4096, 100 * 4096, W) == "ok"
    assert refusal(file.may_map, BASE, 1 << 22, W) == "EACCES"
    assert refusal(file.may_map, BASE, 1 << 22, 0) == "ok"


def test_pages_beside_a_large_range_do_not_matter(built):
    w, file = built
    w.add(file, bytes(4096), 100 * 4096, 0x201)
    assert refusal(file.may_map, BASE + 10 * 4096, 90 * 4096, W) == "ok"
    assert refusal(file.may_map, BASE + 10 * 4096, 91 * 4096, W) == "EACCES"


def test_only_an_initialised_enclave_insists_on_its_range(world):
    w = world()
    young, ready = w.build(init=False), w.build()
    for start, length in ((BASE - 4096, 4096), (BASE + (1 << 22) - 4096, 8192), (0, 4096)):
        assert refusal(young.may_map, start, length, 0) == "ok"
        assert refusal(ready.may_map, start, length, 0) == "EACCES"


def test_a_file_without_an_enclave_may_be_mapped_anywhere(world):
    assert refusal(world().driver.open().may_map, 0x10000, 1 << 40, 7) == "ok"


def test_read_implies_exec_is_eacces(built):
    _, file = built
    assert refusal(file.may_map, BASE, 4096, R, read_implies_exec=True) == "EACCES"


def test_a_disabled_enclave_is_enomem_but_only_after_the_permission_check(built):
    _, file = built
    file.enclave.disabled = True
    assert refusal(file.may_map, BASE + 4096, 4096, X) == "EACCES"
    assert refusal(file.may_map, BASE + 4096, 4096, R) == "ENOMEM"
    assert refusal(file.may_protect, BASE + 4096, 4096, R) == "ok"


def test_a_mapping_is_executable_for_the_kernel_only_where_every_page_is(built):
    w, file = built
    assert file.all_executable(2, 3)
    assert not file.all_executable(1, 3)
    assert not file.all_executable(2, 5)
    assert not file.all_executable(0, 1 << 28)
    w.evict(file)
    assert file.all_executable(2, 3)
