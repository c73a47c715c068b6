"""The enclave's code, assembled again and run in ordinary memory."""

from __future__ import annotations

import struct
import subprocess
from array import array
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import epcgroup.stress
from epcgroup.stress.code import CODE, Call, Mode, next_random, page_words
from epcgroup.stress.image import Image

from .plain import PlainDoor, PlainEnclave

SOURCE = Path(epcgroup.stress.__file__).parent / "enclave.S"
SEED = 0x1234_5678_9ABC_DEF0


class Host:
    """One enclave of eight pages, its version table and a call block."""

    def __init__(self, pages: int = 8) -> None:
        self.enclave = PlainEnclave(Image(threads=1, heap_pages=pages))
        self.versions = array("Q", bytes(8 * pages))
        self.block = Call(versions=self.versions.buffer_info()[0], seed=SEED, write=1, length=pages)

    def touch(self, count: int) -> Call:
        self.block.count = count
        PlainDoor(self.enclave, 0).call(self.block)
        return self.block


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.mark.needs("x86-64", "gcc")
def test_embedded_bytes_are_the_assembled_source(tmp_path: Path) -> None:
    done, raw = tmp_path / "enclave.o", tmp_path / "enclave.bin"
    subprocess.run(["gcc", "-c", SOURCE, "-o", done], check=True)
    subprocess.run(["objcopy", "-O", "binary", "-j", ".text", done, raw], check=True)
    assert raw.read_bytes() == CODE


def test_exit_is_the_one_instruction_pair_that_emulators_know() -> None:
    assert CODE.count(bytes.fromhex("b8040000000f01d7")) == CODE.count(bytes.fromhex("0f01d7")) == 1


def test_first_touch_expects_zeros_and_writes_version_one(host: Host) -> None:
    block = host.touch(8)
    assert (block.done, block.mismatches, block.refused) == (8, 0, 0)
    assert list(host.versions) == [1] * 8
    assert [host.enclave.page(n) for n in range(8)] == [
        struct.pack("<512Q", *page_words(SEED, n, 1)) for n in range(8)
    ]


def test_order_goes_round_and_comes_back(host: Host) -> None:
    block = host.touch(11)
    assert list(host.versions) == [2, 2, 2, 1, 1, 1, 1, 1]
    assert block.state == 3
    assert block.mismatches == 0


def test_range_is_respected(host: Host) -> None:
    host.block.first, host.block.length = 5, 2
    host.touch(4)
    assert list(host.versions) == [0, 0, 0, 0, 0, 2, 2, 0]


def test_random_pages_are_those_of_the_generator(host: Host) -> None:
    host.block.mode, host.block.state = Mode.RANDOM, 99
    host.touch(100)
    state, expected = 99, [0] * 8
    for _ in range(100):
        state, page = next_random(state, 8)
        expected[page] += 1
    assert list(host.versions) == expected
    assert host.block.state == state


def test_listed_pages_are_touched_in_turn(host: Host) -> None:
    pages = array("I", [7, 0, 7, 3])
    host.block.mode, host.block.list = Mode.LIST, pages.buffer_info()[0]
    host.touch(4)
    assert list(host.versions) == [1, 0, 0, 1, 0, 0, 0, 2]
    assert host.block.state == 4


def test_checking_alone_leaves_pages_and_versions(host: Host) -> None:
    host.touch(8)
    host.block.write = 0
    host.touch(8)
    assert list(host.versions) == [1] * 8
    assert host.block.mismatches == 0


@given(page=st.integers(0, 7), word=st.integers(0, 511), bit=st.integers(0, 63))
def test_any_flipped_bit_is_found_and_named(page: int, word: int, bit: int) -> None:
    host = Host()
    host.touch(8)
    right = page_words(SEED, page, 1)[word]
    host.enclave.put(page, struct.pack("<Q", right ^ (1 << bit)), at=8 * word)
    block = host.touch(8)
    assert (block.mismatches, block.bad_page, block.bad_word) == (1, page, word)
    assert (block.wanted, block.found, block.version) == (right, right ^ (1 << bit), 1)


def test_old_copy_of_a_page_is_found(host: Host) -> None:
    host.touch(8)
    old = host.enclave.page(3)
    host.touch(8)
    host.enclave.put(3, old)
    block = host.touch(8)
    assert (block.mismatches, block.bad_page, block.bad_word) == (1, 3, 1)
    assert (block.bad_number, block.bad_version, block.version) == (3, 1, 2)


def test_swapped_pages_are_both_found(host: Host) -> None:
    host.touch(8)
    one, two = host.enclave.page(1), host.enclave.page(2)
    host.enclave.put(1, two)
    host.enclave.put(2, one)
    block = host.touch(8)
    assert (block.mismatches, block.bad_page, block.bad_number) == (2, 1, 2)


def test_lost_page_is_found(host: Host) -> None:
    """A page that comes back as zeros is wrong, however plausible zeros look."""
    host.touch(8)
    host.enclave.put(6, bytes(4096))
    assert host.touch(8).bad_page == 6


def test_mismatch_is_repaired_so_that_it_counts_once(host: Host) -> None:
    host.touch(8)
    host.enclave.put(0, bytes(4096))
    host.touch(8)
    host.block.mismatches = 0
    assert host.touch(8).mismatches == 0


def test_page_outside_the_heap_is_refused(host: Host) -> None:
    host.block.first = 8
    block = host.touch(1)
    assert (block.refused, block.done) == (1, 0)


def test_seeds_make_different_pages() -> None:
    assert page_words(1, 0, 1)[2:] != page_words(2, 0, 1)[2:]
