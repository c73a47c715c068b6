"""The filters, run by an interpreter; tests/e2e/test_trapped_instructions.py has the kernel run them."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epcgroup.live.tracing import seccomp
from epcgroup.live.tracing.seccomp import RET_ALLOW, RET_TRACE, SYS

I386 = 0x40000003
MAP_SHARED, MAP_PRIVATE, MAP_SHARED_VALIDATE, MAP_FIXED, MAP_ANONYMOUS = 1, 2, 3, 0x10, 0x20
PROT_EXEC = 4
BASE, SIZE = 0x7F_F000_0000, 0x1_2000_0000  # its end differs from its start in both halves

FD = 7

filters = pytest.mark.parametrize(
    "program",
    [
        seccomp.base_filter(), seccomp.enclave_filter(BASE, SIZE), seccomp.descriptor_filter(FD),
        seccomp.debugger_filter(),
    ],
)  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "open", "openat", "openat2", "creat", "stat", "lstat", "newfstatat", "statx", "access",
        "faccessat", "faccessat2",
    ],
)  # fmt: skip
def test_every_call_that_names_a_file_stops(name: str) -> None:
    assert seccomp.run(seccomp.base_filter(), SYS[name]) == RET_TRACE


def test_locking_all_memory_stops() -> None:
    """It concerns mappings to come, so it may be before there is any enclave."""
    assert seccomp.run(seccomp.base_filter(), SYS["mlockall"], [3]) == RET_TRACE


def test_who_begins_to_trace_stops_and_nothing_else_of_ptrace() -> None:
    program = seccomp.base_filter()
    for request in seccomp.PTRACE_BEGINS:
        assert seccomp.run(program, SYS["ptrace"], [request, 5]) == RET_TRACE
    assert seccomp.run(program, SYS["ptrace"], [7, 5]) == RET_ALLOW


def test_an_fstat_of_libc_passes() -> None:
    """They are many, and have no path."""
    program = seccomp.base_filter()
    assert seccomp.run(program, SYS["newfstatat"], [3, 0, 0, 0x1000]) == RET_ALLOW
    assert seccomp.run(program, SYS["statx"], [3, 0, 0x1000]) == RET_ALLOW


@given(st.integers(0, 2**32 - 1))
def test_only_sgx_ioctls_stop(command: int) -> None:
    expected = RET_TRACE if command >> 8 & 0xFF == 0xA4 else RET_ALLOW
    assert seccomp.run(seccomp.base_filter(), SYS["ioctl"], [3, command]) == expected


@pytest.mark.parametrize("command", [0x4008A400, 0xC030A401, 0xC018A407])
def test_sgx_ioctls_stop(command: int) -> None:
    assert seccomp.run(seccomp.base_filter(), SYS["ioctl"], [3, command]) == RET_TRACE


@pytest.mark.parametrize(
    ("flags", "prot", "stops", "stops_with_private"),
    [
        (MAP_SHARED, 3, True, True),
        (MAP_SHARED_VALIDATE, 3, True, True),
        (MAP_SHARED | MAP_FIXED, PROT_EXEC | 1, True, True),
        (MAP_SHARED | MAP_ANONYMOUS, 3, False, False),
        (MAP_PRIVATE, 1, False, True),
        (MAP_PRIVATE | MAP_FIXED, PROT_EXEC | 1, False, True),
        (MAP_PRIVATE | MAP_ANONYMOUS, PROT_EXEC | 3, False, False),
    ],
)
def test_mappings_that_may_concern_us_stop(
    flags: int, prot: int, stops: bool, stops_with_private: bool
) -> None:
    args = [0, 4096, prot, flags, 3, 0]
    assert (seccomp.run(seccomp.base_filter(), SYS["mmap"], args) == RET_TRACE) is stops
    assert (seccomp.run(seccomp.base_filter(private=True), SYS["mmap"], args) == RET_TRACE) is (
        stops_with_private
    )


def test_closes_stop_when_asked_for() -> None:
    for name in ("close", "close_range"):
        assert seccomp.run(seccomp.base_filter(), SYS[name]) == RET_ALLOW
        assert seccomp.run(seccomp.base_filter(closes=True), SYS[name]) == RET_TRACE


@filters
def test_ordinary_calls_pass(program: bytes) -> None:
    for nr in (0, 1, 7, 13, 14, 39, 202, 228, 231):
        assert seccomp.run(program, nr, [BASE, SIZE]) == RET_ALLOW


@filters
def test_32_bit_calls_pass(program: bytes) -> None:
    """Their numbers mean other things; 5 is open there."""
    assert all(seccomp.run(program, nr, arch=I386) == RET_ALLOW for nr in (2, 5, 54, 90, 91, 125))


def test_32_bit_calls_stop_when_they_are_our_trap() -> None:
    assert seccomp.run(seccomp.base_filter(int80=True), 2, arch=I386) == RET_TRACE
    assert seccomp.run(seccomp.base_filter(int80=True), 39) == RET_ALLOW


addresses = st.one_of(
    st.integers(0, 2**47),
    st.builds(
        lambda edge, off: edge + off, st.sampled_from([BASE, BASE + SIZE, 1 << 32]), st.integers(-9000, 9000)
    ),
)
lengths = st.one_of(
    st.integers(1, 2**47),
    st.integers(1, 9000),
    st.builds(lambda size, off: size + off, st.sampled_from([SIZE, 1 << 32]), st.integers(-9000, 9000)),
)


@given(
    st.sampled_from(["mmap", "mprotect", "munmap", "madvise", "pkey_mprotect", "mlock", "mlock2"]),
    addresses,
    lengths,
)
def test_changes_of_enclave_memory_stop(name: str, addr: int, length: int) -> None:
    overlaps = addr < BASE + SIZE and addr + length > BASE
    expected = RET_TRACE if overlaps else RET_ALLOW
    assert seccomp.run(seccomp.enclave_filter(BASE, SIZE), SYS[name], [addr, length]) == expected


@given(addresses, lengths, addresses, lengths)
def test_moves_from_and_to_enclave_memory_stop(old: int, old_length: int, new: int, new_length: int) -> None:
    overlaps = any(
        addr < BASE + SIZE and addr + length > BASE for addr, length in ((old, old_length), (new, new_length))
    )
    result = seccomp.run(
        seccomp.enclave_filter(BASE, SIZE), SYS["mremap"], [old, old_length, new_length, 0, new]
    )
    assert (result == RET_TRACE) is overlaps


@given(addresses)
def test_any_call_from_inside_the_enclave_stops(place: int) -> None:
    """The instruction pointer that the filter sees is behind the SYSCALL."""
    result = seccomp.run(seccomp.enclave_filter(BASE, SIZE), 39, ip=place + 2)
    assert (result == RET_TRACE) is (BASE <= place < BASE + SIZE)


@pytest.mark.parametrize("name", ["sched_setaffinity", "sched_getaffinity", "sched_setattr"])
def test_an_owner_of_enclaves_stops_for_calls_about_its_processors(name: str) -> None:
    assert seccomp.run(seccomp.enclave_filter(BASE, SIZE), SYS[name], [0]) == RET_TRACE
    assert seccomp.run(seccomp.base_filter(), SYS[name], [0]) == RET_ALLOW


def test_the_image_points_at_the_filter_behind_it() -> None:
    program = seccomp.base_filter()
    image = seccomp.image(program, 0x1000)
    assert int.from_bytes(image[:2], "little") == len(program) // 8
    assert int.from_bytes(image[8:16], "little") == 0x1010
    assert image[16:] == program


@given(
    st.sampled_from(["read", "write", "pread64", "pwrite64"]), st.integers(0, 20), st.integers(0, 2**32 - 1)
)
def test_reads_and_writes_of_one_descriptor_stop(name: str, fd: int, upper: int) -> None:
    """The kernel looks at the lower half of the argument alone."""
    verdict = seccomp.run(seccomp.descriptor_filter(FD), SYS[name], [upper << 32 | fd, 0, 8, 0])
    assert verdict == (RET_TRACE if fd == FD else RET_ALLOW)


@pytest.mark.parametrize("name", ["ptrace", "wait4", "waitid"])
def test_a_debuggers_calls_stop_whatever_they_ask(name: str) -> None:
    assert seccomp.run(seccomp.debugger_filter(), SYS[name], [12]) == RET_TRACE
    assert seccomp.run(seccomp.base_filter(), SYS[name], [12]) == RET_ALLOW


def test_further_calls_stop_when_somebody_answers_them() -> None:
    for name in ("statfs", "fstatfs", "bpf", "mount", "fsopen", "clone3"):
        assert seccomp.run(seccomp.base_filter(), SYS[name]) == RET_ALLOW
        assert seccomp.run(seccomp.base_filter(view=[SYS[name]]), SYS[name]) == RET_TRACE


@pytest.mark.parametrize("name", ["close", "ioctl", "open", "mmap"])
def test_other_calls_with_that_descriptor_pass(name: str) -> None:
    assert seccomp.run(seccomp.descriptor_filter(FD), SYS[name], [FD]) == RET_ALLOW


@pytest.mark.parametrize(
    ("nr", "arch", "expected"),
    [
        (seccomp.LEAF_CALL + 5, 0x40000003, seccomp.RET_USER_NOTIF),
        (seccomp.LEAF_CALL + 6, 0x40000003, seccomp.RET_USER_NOTIF),
        (20, 0x40000003, seccomp.RET_ALLOW),
        (seccomp.LEAF_CALL + 5, 0xC000003E, seccomp.RET_USER_NOTIF),
        (SYS["mmap"], 0xC000003E, seccomp.RET_ALLOW),
    ],
    ids=["EACCEPT by int 0x80", "EMODPE by int 0x80", "another int 0x80", "EACCEPT", "another call"],
)
def test_leaves_are_asked_for_by_a_number_that_is_no_call(nr: int, arch: int, expected: int) -> None:
    assert seccomp.run(seccomp.leaf_filter(), nr, arch=arch) == expected


def test_a_programs_own_filter_does_not_see_what_is_ours() -> None:
    """Neither our traps nor questions for leaves; everything else it judges as before."""
    longer = seccomp.PASS_OURS + struct.pack("<HBBI", 0x06, 0, 0, 0x80000000)  # a filter that kills
    assert seccomp.run(longer, 20, arch=0x40000003) == RET_ALLOW
    assert seccomp.run(longer, seccomp.LEAF_CALL + 6) == RET_ALLOW
    assert seccomp.run(longer, SYS["mmap"]) == 0x80000000
    assert seccomp.run(longer, seccomp.LEAF_CALL + 256) == 0x80000000
