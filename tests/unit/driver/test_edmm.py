"""The SGX2 ioctls, with the enclave's side of each change (spec 6.5)."""

from __future__ import annotations

import struct

import pytest

from epcgroup.driver import Fault, Ioctl
from epcgroup.sgx import enclu
from epcgroup.sgx.epcm import describe
from epcgroup.sgx.layouts import SecInfo, SgxError, Tcs

RESTRICT, MODIFY, REMOVE = Ioctl.RESTRICT_PERMISSIONS, Ioctl.MODIFY_TYPES, Ioctl.REMOVE_PAGES
TCS, REG, TRIM = 1, 2, 4
PAGE = 0x1000

pytestmark = pytest.mark.parametrize("default_policy", ["v5", "v17", "standard"])


class Edmm:
    """One SGX2 ioctl and what it wrote back."""

    def __init__(self, w, file):
        self.w, self.file = w, file
        self.addr = 0

    def arg(self, cmd, offset=PAGE, length=PAGE, value=1, result=0, count=0) -> int:
        fields = (offset, length, count) if cmd == REMOVE else (offset, length, value, result, count)
        self.addr = self.w.mem.put(struct.pack(f"<{len(fields)}Q", *fields))
        return self.addr

    def __call__(self, cmd, offset=PAGE, length=PAGE, value=1, **more):
        return self.w.ioctl(self.file, cmd, self.arg(cmd, offset, length, value, **more))

    def fails(self, cmd, offset=PAGE, length=PAGE, value=1, **more) -> str:
        return self.w.fails(self.file, cmd, self.arg(cmd, offset, length, value, **more))

    def written(self, cmd) -> tuple[int, int]:
        """(result, count) as written back; REMOVE has no result."""
        if cmd == REMOVE:
            return 0, struct.unpack("<Q", self.w.mem.read(self.addr + 16, 8))[0]
        return struct.unpack("<QQ", self.w.mem.read(self.addr + 24, 16))

    def accept(self, index, flags) -> int:
        """EACCEPT by the enclave, its SECINFO on page 8."""
        memory = self.w.driver.memory(self.file, self.w.caller)
        info = self.file.base + 8 * PAGE
        memory.write(info, SecInfo(flags).pack())
        return enclu.eaccept(self.file.state, memory, info, self.file.base + index * PAGE).rax


@pytest.fixture
def edmm(world):
    w = world()
    return Edmm(w, w.build())


VALUE = {RESTRICT: 1, MODIFY: TRIM, REMOVE: 0}
ALL = pytest.mark.parametrize("cmd", [RESTRICT, MODIFY, REMOVE])


@ALL
def test_a_processor_without_sgx2_is_enodev_first(world, cmd):
    w = world(sgx2=False)
    assert Edmm(w, w.driver.open()).fails(cmd, offset=1) == "ENODEV"


@ALL
def test_probing_a_fresh_file_or_an_uninitialised_enclave_is_einval(world, cmd):
    w = world()
    for file in (w.driver.open(), w.create(), w.build(init=False)):
        assert w.fails(file, cmd, 0xBAD000) == "EINVAL"


@ALL
def test_a_disabled_enclave_is_enomem_before_the_argument_is_read(edmm, cmd):
    edmm.file.enclave.disabled = True
    assert edmm.w.fails(edmm.file, cmd, 0xBAD000) == "ENOMEM"


@ALL
def test_an_unreadable_argument_is_efault(edmm, cmd):
    assert edmm.w.fails(edmm.file, cmd, 0xBAD000) == "EFAULT"


@ALL
@pytest.mark.parametrize(
    ("offset", "length"), [(1, PAGE), (0, 0), (0, 1), ((1 << 64) - PAGE, 2 * PAGE), (1 << 22, PAGE)]
)
def test_a_bad_range_is_einval(edmm, cmd, offset, length):
    assert edmm.fails(cmd, offset, length, VALUE[cmd]) == "EINVAL"


@ALL
def test_result_and_count_must_come_in_as_zero(edmm, cmd):
    assert edmm.fails(cmd, value=VALUE[cmd], count=1) == "EINVAL"
    if cmd != REMOVE:
        assert edmm.fails(cmd, value=VALUE[cmd], result=1) == "EINVAL"


@ALL
def test_a_count_that_cannot_be_written_back_is_efault(edmm, cmd):
    arg = edmm.arg(cmd, value=VALUE[cmd])
    edmm.w.mem.read_only.add(arg)
    assert edmm.w.fails(edmm.file, cmd, arg) == "EFAULT"


@ALL
def test_a_page_that_does_not_exist_is_efault_with_the_count_before_it(edmm, cmd):
    assert edmm.fails(cmd, 20 * PAGE, PAGE, VALUE[cmd]) == "EFAULT"
    if cmd != REMOVE:
        assert edmm.fails(cmd, 7 * PAGE, 4 * PAGE, VALUE[cmd]) == "EFAULT"
        assert edmm.written(cmd) == (0, 2 * PAGE)


@ALL
def test_a_page_that_cannot_be_loaded_now_is_eagain_and_the_call_can_be_repeated(edmm, cmd, default_policy):
    """Not under v17: its SGX2 ioctls reclaim from a group near its limit first."""
    w, file = edmm.w, edmm.file
    if cmd == REMOVE:
        edmm(MODIFY, value=TRIM)
        assert edmm.accept(1, 0x110) == SgxError.PAGE_ATTRIBUTES_MISMATCH
        assert edmm.accept(1, 0x410) == 0
    w.evict(file)
    other = w.build()
    w.limit(w.usage)
    if default_policy == "v17":
        assert edmm(cmd, value=VALUE[cmd]) == 0
        return
    assert edmm.fails(cmd, value=VALUE[cmd]) == "EAGAIN"
    assert edmm.written(cmd) == (0, 0)
    for _ in range(10):
        w.machine.settle()
        arg = edmm.arg(cmd, value=VALUE[cmd])
        try:
            w.ioctl(file, cmd, arg)
            break
        except OSError as again:
            assert again.errno == 11  # noqa: PT017
    assert edmm.written(cmd) == (0, PAGE)
    assert other.initialised


@ALL
def test_a_page_that_is_lost_is_efault(edmm, cmd):
    edmm.w.evict(edmm.file)
    edmm.w.driver.pager.store.pages(edmm.file.enclave.id)[1].sealed = bytes(4112)
    assert edmm.fails(cmd, value=VALUE[cmd]) == "EFAULT"


# -- RESTRICT_PERMISSIONS -------------------------------------------------------


@pytest.mark.parametrize("prot", [8, 2, 6, 1 << 63])
def test_impossible_permissions_are_einval(edmm, prot):
    assert edmm.fails(RESTRICT, value=prot) == "EINVAL"


def test_restricting_takes_effect_at_once_and_can_be_accepted(edmm):
    w, file = edmm.w, edmm.file
    assert edmm(RESTRICT, length=3 * PAGE, value=1) == 0
    assert edmm.written(RESTRICT) == (0, 3 * PAGE)
    assert describe(file.words[2]) == "REG r-- PR"
    assert w.touch(file, 2, "w").code == 0x8007
    assert w.touch(file, 2, "r") is Fault.RESIDENT
    assert edmm.accept(2, 0x221) == 0
    assert describe(file.words[2]) == "REG r--"
    assert w.frames.words[file.enclave.id, 2] == 0x201
    assert file.maximum[2] == 3  # what may be mapped is not what the EPCM allows


def test_a_page_without_any_permission_is_hidden(edmm):
    edmm(RESTRICT, value=0)
    assert edmm.w.touch(edmm.file, 1, "r").code == 0x8005


def test_only_regular_pages_are_restricted(edmm):
    assert edmm.fails(RESTRICT, offset=0, value=1) == "EINVAL"
    assert edmm.written(RESTRICT) == (0, 0)


def test_the_leafs_code_comes_back_in_result(edmm):
    edmm.w.touch(edmm.file, 9)
    assert edmm.fails(RESTRICT, 8 * PAGE, 2 * PAGE) == "EFAULT"
    assert edmm.written(RESTRICT) == (SgxError.PAGE_NOT_MODIFIABLE, PAGE)


# -- MODIFY_TYPES ---------------------------------------------------------------


@pytest.mark.parametrize("kind", [0, REG, 3, 5, 0xFF, 0x100, 0x101])
def test_a_page_becomes_a_tcs_or_is_trimmed_and_nothing_else(edmm, kind):
    assert edmm.fails(MODIFY, value=kind) == "EINVAL"


def test_a_new_tcs_is_accepted_and_is_the_kernels_to_map(edmm):
    file = edmm.file
    edmm.w.driver.memory(file, edmm.w.caller).write(file.base + PAGE, Tcs().pack())
    assert edmm(MODIFY, value=TCS) == 0
    assert file.maximum[1] == 3
    assert describe(file.words[1]) == "TCS --- MODIFIED"
    assert edmm.w.touch(file, 1).code == 0x8005
    assert edmm.accept(1, 0x110) == 0
    assert describe(file.words[1]) == "TCS ---"


def test_a_tcs_is_trimmed_but_never_regular_and_not_twice_a_tcs(edmm):
    assert edmm.fails(MODIFY, offset=0, value=TCS) == "EINVAL"
    assert edmm(MODIFY, offset=0, value=TRIM) == 0


def test_a_page_that_was_never_both_readable_and_writable_is_no_tcs(world):
    w = world()
    file = w.build(init=False)
    w.add(file, bytes(4096), 20 * PAGE, 0x205)
    w.ioctl(file, Ioctl.INIT, w.init_arg(file))
    change = Edmm(w, file)
    assert change.fails(MODIFY, 20 * PAGE, PAGE, TCS) == "EPERM"
    assert file.maximum[20] == 5
    assert change(MODIFY, 20 * PAGE, PAGE, TRIM) == 0


def test_a_failed_change_gives_the_old_maximum_back(edmm):
    edmm.w.touch(edmm.file, 9)
    assert edmm.fails(MODIFY, 9 * PAGE, PAGE, TCS) == "EFAULT"
    assert edmm.written(MODIFY) == (SgxError.PAGE_NOT_MODIFIABLE, 0)
    assert edmm.file.maximum[9] == 7


def test_a_page_that_became_a_tcs_can_still_be_evicted(edmm):
    edmm(MODIFY, value=TCS)
    edmm.w.evict(edmm.file)
    edmm.w.touch(edmm.file, 1)
    assert describe(edmm.file.words[1]) == "TCS --- MODIFIED"


# -- REMOVE_PAGES ---------------------------------------------------------------


def test_a_trimmed_and_accepted_page_is_freed_and_can_be_added_again(edmm):
    w, file = edmm.w, edmm.file
    w.frames.write(file.enclave.id, 1, 0, b"old")
    before = w.usage
    assert edmm(MODIFY, value=TRIM) == 0
    assert edmm.accept(1, 0x410) == 0
    assert edmm(REMOVE) == 0
    assert edmm.written(REMOVE) == (0, PAGE)
    assert (w.usage, 1 in file.maximum, 1 in file.words) == (before - 1, False, False)
    w.touch(file, 1)
    assert edmm.accept(1, 0x20B) == 0
    assert w.frames.read(file.enclave.id, 1, 0, 3) == bytes(3)


def test_a_page_in_use_or_not_accepted_is_not_removed(edmm):
    assert edmm.fails(REMOVE) == "EPERM"
    edmm(MODIFY, value=TRIM)
    assert edmm.fails(REMOVE) == "EPERM"
    assert edmm.written(REMOVE) == (0, 0)


def test_a_long_change_lets_others_in_between_and_counts_exactly(world):
    w = world()
    file = w.build(pages=100)
    change = Edmm(w, file)
    arg = change.arg(RESTRICT, length=100 * PAGE)
    steps = file.ioctl_steps(RESTRICT, arg, w.mem, w.caller)
    assert len(list(steps)) >= 5
    assert change.written(RESTRICT) == (0, 100 * PAGE)


def test_augment_accept_use_trim_accept_remove_over_many_pages_under_a_limit(world):
    w = world()
    file = w.build()
    change = Edmm(w, file)
    w.limit(24)

    def until(call):
        while True:
            try:
                return call()
            except OSError as error:
                assert error.errno in (11, 16)  # noqa: PT017
                w.machine.settle()

    memory = w.driver.memory(file, w.caller)
    for index in range(100, 160):
        assert until(lambda index=index: change.accept(index, 0x20B)) == 0
        until(lambda index=index: memory.write(file.base + index * PAGE, index.to_bytes(8, "little")))
        w.machine.settle()
    assert w.usage <= 24
    for index in range(100, 160):
        got = until(lambda index=index: memory.read(file.base + index * PAGE, 8))
        assert int.from_bytes(got, "little") == index
        until(lambda index=index: change(MODIFY, index * PAGE, PAGE, TRIM))
        assert until(lambda index=index: change.accept(index, 0x410)) == 0
        until(lambda index=index: change(REMOVE, index * PAGE, PAGE))
    assert len(file.maximum) == 9
