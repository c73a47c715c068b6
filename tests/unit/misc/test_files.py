"""The text of misc.*: what may be written, what is read back (spec 1.2, 1.3)."""

from __future__ import annotations

import errno

import pytest

from epcgroup.errors import Refused
from epcgroup.misc import STANDARD, V5, V6_12, V17, Group, Rules, Tree, files, try_charge
from epcgroup.units import U64_MAX

MIB = 1 << 20


@pytest.fixture
def tree() -> Tree[Group]:
    tree = Tree(STANDARD, Group)
    tree.set_capacity("sgx_epc", 64 * MIB)
    tree.mkdir("/a")
    return tree


def write(tree: Tree[Group], text: str) -> int:
    return files.write(tree, tree.lookup("/a"), "max", text.encode())


def limit(tree: Tree[Group]) -> int:
    return tree.lookup("/a").max[tree.resource("sgx_epc")]


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("sgx_epc 1048576", 1048576),
        ("sgx_epc max", U64_MAX),
        ("sgx_epc 0x100000", 0x100000),
        ("sgx_epc 0X1F", 0x1F),
        ("sgx_epc +4096", 4096),
        ("sgx_epc 010", 8),
        ("sgx_epc 0", 0),
        ("sgx_epc 18446744073709551615", U64_MAX),
        ("  sgx_epc 4096\n", 4096),
        ("\tsgx_epc 4096 \n\n", 4096),
    ],
)
def test_a_limit_that_is_accepted_is_stored_and_every_byte_is_taken(
    tree: Tree[Group], text: str, stored: int
) -> None:
    assert write(tree, text) == len(text)
    assert limit(tree) == stored


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("sgx_epc  4096", errno.EINVAL),
        ("sgx_epc\t4096", errno.EINVAL),
        ("sgx_epc -1", errno.EINVAL),
        ("sgx_epc 4096 4096", errno.EINVAL),
        ("sgx_epc 4k", errno.EINVAL),
        ("sgx_epc MAX", errno.EINVAL),
        ("sgx_epc 0x", errno.EINVAL),
        ("sgx_epc 08", errno.EINVAL),
        ("sgx_epc 18446744073709551616", errno.ERANGE),
        ("sgx_epc 99999999999999999999x", errno.ERANGE),
        ("foo 1", errno.EINVAL),
        ("SGX_EPC 1", errno.EINVAL),
        ("sgx_epc", errno.EINVAL),
        ("\n", errno.EINVAL),
        ("sgx_epc 1\nsev 2", errno.EINVAL),
        ("sev 5", errno.EINVAL),  # compiled in, not present
        ("sev 99999999999999999999", errno.ERANGE),  # the number is parsed first
        ("x" * 4097, errno.E2BIG),
    ],
)
def test_a_refused_write_has_its_errno_and_changes_nothing(tree: Tree[Group], text: str, code: int) -> None:
    write(tree, "sgx_epc 77")
    with pytest.raises(Refused) as refusal:
        write(tree, text)
    assert refusal.value.errno == code
    assert limit(tree) == 77


def test_a_write_of_nothing_never_arrives(tree: Tree[Group]) -> None:
    assert write(tree, "") == 0
    assert files.write(tree, tree.lookup("/a"), "current", b"") == 0


def test_a_limit_reads_back_as_written_and_the_largest_as_max(tree: Tree[Group]) -> None:
    """MISC-13, MISC-14: bytes, not rounded to pages."""
    write(tree, "sgx_epc 4097")
    assert files.read(tree, tree.lookup("/a"), "max") == b"sgx_epc 4097\n"
    write(tree, "sgx_epc 18446744073709551615")
    assert files.read(tree, tree.lookup("/a"), "max") == b"sgx_epc max\n"


def test_a_limit_above_the_capacity_is_kept(tree: Tree[Group]) -> None:
    write(tree, f"sgx_epc {1 << 40}")
    assert files.read(tree, tree.lookup("/a"), "max") == b"sgx_epc 1099511627776\n"


def test_lines_come_in_the_order_of_the_resources(tree: Tree[Group]) -> None:
    tree.set_capacity("sev", 10)
    assert files.read(tree, tree.root, "capacity") == b"sev 10\nsgx_epc 67108864\n"


def test_without_any_resource_every_file_is_empty_and_writes_are_refused() -> None:
    """MISC-12, and B-09, B-10: groups made before the driver is up, or after it failed."""
    tree = Tree(STANDARD, Group)
    group = tree.mkdir("/a")
    for name in files.names(tree, group):
        assert files.read(tree, group, name) == b""
    assert files.read(tree, tree.root, "capacity") == b""
    with pytest.raises(Refused) as refusal:
        files.write(tree, group, "max", b"sgx_epc 1")
    assert refusal.value.errno == errno.EINVAL
    tree.rmdir("/a")
    assert tree.release_next()


def test_a_count_stays_visible_after_its_resource_went(tree: Tree[Group]) -> None:
    """MISC-11: usage, peak and events are printed while they are not zero."""
    number = tree.resource("sgx_epc")
    try_charge(tree, tree.lookup("/a"), number, 4096)
    write(tree, "sgx_epc 4096")
    try_charge(tree, tree.lookup("/a"), number, 4096)
    tree.set_capacity("sgx_epc", 0)
    shown = {name: files.read(tree, tree.lookup("/a"), name) for name in ("max", "current", "events")}
    assert shown == {"max": b"", "current": b"sgx_epc 4096\n", "events": b"sgx_epc.max 1\n"}


@pytest.mark.parametrize(
    ("rules", "root", "group"),
    [
        (V5, {"capacity"}, {"max", "current", "events"}),
        (
            V6_12,
            {"capacity", "current", "peak"},
            {"max", "current", "peak", "events", "events.local"},
        ),
        (V17, {"capacity", "current", "peak"}, {"max", "current", "peak", "events", "events.local"}),
    ],
)
def test_each_variant_has_its_files(rules: Rules, root: set[str], group: set[str]) -> None:
    tree = Tree(rules, Group)
    assert files.names(tree, tree.root) == root
    assert files.names(tree, tree.mkdir("/a")) == group


def test_reading_what_is_not_there_is_enoent_and_writing_what_cannot_be_written_einval(
    tree: Tree[Group],
) -> None:
    with pytest.raises(Refused) as refusal:
        files.read(tree, tree.root, "max")
    assert refusal.value.errno == errno.ENOENT
    with pytest.raises(Refused) as refusal:
        files.write(tree, tree.lookup("/a"), "current", b"0")
    assert refusal.value.errno == errno.EINVAL
