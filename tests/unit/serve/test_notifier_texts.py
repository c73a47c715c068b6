"""Mount tables and buffers as a program of the machine gets them."""

from __future__ import annotations

import struct

import pytest

from epcgroup.cgroupfs.names import STATFS_MARK
from epcgroup.serve.notifier import texts

FUSE = b"rw,user_id=0,group_id=0,default_permissions,allow_other"
HOST = b"33 22 0:40 / /run/epcgroup/cgroup rw,nosuid - fuse.epcgroup epcgroup-7 " + FUSE + b"\n"
TREE = b"49 48 0:40 / /sys/fs/cgroup rw,nosuid master:3 - fuse.epcgroup epcgroup-7 " + FUSE + b"\n"
CONTAINER = b"50 48 0:40 /pods/a /x/rootfs/sys/fs/cgroup ro - fuse.epcgroup epcgroup-7 " + FUSE + b"\n"
OTHER = b"51 48 0:41 / /elsewhere rw - fuse.epcgroup epcgroup-8 " + FUSE + b"\n"
KERNELS = (
    b"52 48 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n53 1 0:2 / /m rw - cgroup cgroup rw,cpu\n"
)
PLAIN = b"22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw\n"


def mountinfo(text: bytes) -> bytes | None:
    return texts.mountinfo(text, b"epcgroup-7", b"/run/epcgroup/cgroup")


def test_the_tree_is_a_cgroup2_wherever_it_is_bound() -> None:
    assert mountinfo(TREE + CONTAINER) == (
        b"49 48 0:40 / /sys/fs/cgroup rw,nosuid master:3 - cgroup2 cgroup2 rw\n"
        b"50 48 0:40 /pods/a /x/rootfs/sys/fs/cgroup ro - cgroup2 cgroup2 rw\n"
    )


def test_other_file_systems_and_other_servers_trees_stay_as_they_are() -> None:
    told = mountinfo(PLAIN + TREE + OTHER)
    assert told is not None
    assert told.startswith(PLAIN)
    assert told.endswith(OTHER)


def test_the_kernels_cgroups_and_the_hosts_mount_of_the_tree_are_left_out() -> None:
    """A client that takes the first cgroup2 it finds must find the one."""
    assert mountinfo(HOST + KERNELS + TREE) == mountinfo(TREE)


@pytest.mark.parametrize("text", [b"", PLAIN, PLAIN + HOST + KERNELS + OTHER])
def test_a_table_without_the_tree_is_not_touched(text: bytes) -> None:
    assert mountinfo(text) is None


def test_a_cgroup_namespace_counts_from_its_own_root() -> None:
    told = texts.mountinfo(TREE + CONTAINER, b"epcgroup-7", b"", "/pods/a")
    assert told is not None
    assert [line.split(b" ")[3] for line in told.splitlines()] == [b"/../..", b"/"]


def test_mounts_says_the_same() -> None:
    lines = (
        b"/dev/sda1 / ext4 rw,relatime 0 0\n"
        b"epcgroup-7 /run/epcgroup/cgroup fuse.epcgroup rw," + FUSE + b" 0 0\n"
        b"cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n"
        b"epcgroup-7 /sys/fs/cgroup fuse.epcgroup rw,nosuid,user_id=0,group_id=0,allow_other 0 0\n"
    )
    assert texts.mounts(lines, b"epcgroup-7", b"/run/epcgroup/cgroup") == (
        b"/dev/sda1 / ext4 rw,relatime 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n"
    )
    assert texts.mounts(lines, b"epcgroup-9", b"") is None


def test_a_mount_point_with_a_carriage_return_is_one_line() -> None:
    """Two to splitlines: whoever read a mount table was ended as by a bug of ours."""
    odd = b"54 48 0:50 / /a\rb rw - tmpfs none rw\n"
    assert mountinfo(odd + TREE) == odd + (mountinfo(TREE) or b"")
    told = texts.mounts(b"none /a\rb tmpfs rw 0 0\nepcgroup-7 /x fuse.epcgroup rw 0 0\n", b"epcgroup-7", b"")
    assert told == b"none /a\rb tmpfs rw 0 0\ncgroup2 /x cgroup2 rw 0 0\n"


def test_a_path_is_escaped_as_mount_tables_do() -> None:
    assert texts.escaped("/a b\\c\td\udcff") == b"/a\\040b\\134c\\011d\xff"


def test_statfs_of_the_tree_says_cgroup2_and_no_files() -> None:
    ours = struct.pack("<qqQQQQQ", texts.FUSE_MAGIC, 4096, 0, 0, 0, STATFS_MARK, 0)
    assert texts.statfs(ours + b"rest") == struct.pack("<qqQQQQQ", 0x63677270, 4096, 0, 0, 0, 0, 0)


@pytest.mark.parametrize(("kind", "files"), [(0x65735546, 7), (0xEF53, STATFS_MARK)])
def test_statfs_of_anything_else_stays_true(kind: int, files: int) -> None:
    assert texts.statfs(struct.pack("<qqQQQQQ", kind, 4096, 0, 0, 0, files, 0)) is None


def test_a_process_is_in_one_cgroup_of_one_hierarchy() -> None:
    assert texts.cgroup("/pods/a") == b"0::/pods/a\n"
