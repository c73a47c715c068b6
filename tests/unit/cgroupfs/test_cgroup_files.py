"""The files of a cgroup: their text, their errno, as the kernel has them."""

from __future__ import annotations

import errno
import json

import pytest
from tests.unit.cgroupfs.fakes import WRITER, make, read, write

from epcgroup.cgroupfs import CgroupTree, Credentials, files, state
from epcgroup.errors import BadInput
from epcgroup.misc import V5, Group, try_charge
from epcgroup.misc import files as misc_files


def test_the_root_has_no_limit_files_and_a_child_has_them() -> None:
    tree = make()
    tree.mkdir("/a")
    root, child = (set(files.names(tree, tree.lookup(path))) for path in ("/", "/a"))
    assert {"misc.capacity", "misc.current", "misc.peak", "cgroup.procs", "cgroup.stat"} <= root
    assert not {"misc.max", "misc.events", "cgroup.events", "cgroup.kill", "cgroup.type"} & root
    assert {"misc.max", "misc.current", "misc.events", "misc.events.local", "misc.peak"} <= child
    assert {"cgroup.events", "cgroup.freeze", "cgroup.kill", "cgroup.type"} <= child
    assert "misc.capacity" not in child


def test_v5_has_the_files_of_its_time() -> None:
    tree = make(V5)
    tree.mkdir("/a")
    names = files.names(tree, tree.lookup("/a"))
    assert [name for name in names if name.startswith("misc.")] == ["misc.current", "misc.events", "misc.max"]


def test_misc_files_exist_only_where_the_parent_delegates() -> None:
    tree = make()
    tree.mkdir("/a")
    tree.mkdir("/a/b")
    assert not [name for name in files.names(tree, tree.lookup("/a/b")) if name.startswith("misc.")]
    assert read(tree, "/a/b", "cgroup.controllers") == ""
    write(tree, "/a", "cgroup.subtree_control", "+misc\n")
    assert read(tree, "/a", "cgroup.subtree_control") == "misc\n"
    assert read(tree, "/a/b", "cgroup.controllers") == "misc\n"
    assert read(tree, "/a/b", "misc.max") == "sev max\nsgx_epc max\n"
    write(tree, "/a", "cgroup.subtree_control", "-misc")
    assert not files.exists(tree, tree.lookup("/a/b"), "misc.max")


@pytest.mark.parametrize(
    ("path", "name", "text", "number"),
    [
        ("/a", "cgroup.subtree_control", "+cpu", errno.EINVAL),
        ("/a", "cgroup.subtree_control", "misc", errno.EINVAL),
        ("/a/b", "cgroup.subtree_control", "+misc", errno.ENOENT),
        ("/", "misc.max", "sgx_epc 1", errno.ENOENT),
        ("/a", "misc.max", "sgx_epc 4k", errno.EINVAL),
        ("/a", "misc.max", "sgx_epc 18446744073709551616", errno.ERANGE),
        ("/a", "misc.max", "sev_es 1", errno.EINVAL),
        ("/a", "misc.max", "x" * 4097, errno.E2BIG),
        ("/a", "misc.current", "1", errno.EINVAL),
        ("/a", "cgroup.events", "1", errno.EINVAL),
        ("/a", "cgroup.procs", "-5", errno.EINVAL),
        ("/a", "cgroup.procs", "word", errno.EINVAL),
        ("/a", "cgroup.procs", "5000", errno.ESRCH),
        ("/a", "cgroup.procs", "990", errno.EINVAL),
        ("/a", "cgroup.threads", "990", errno.EINVAL),
        ("/a", "cgroup.threads", "20", errno.EOPNOTSUPP),
        ("/a", "cgroup.kill", "2", errno.ERANGE),
        ("/a", "cgroup.freeze", "2", errno.ERANGE),
        ("/a", "cgroup.freeze", "x", errno.EINVAL),
        ("/a", "cgroup.type", "domain", errno.EINVAL),
        ("/a", "cgroup.type", "threaded", errno.EOPNOTSUPP),
        ("/a", "cgroup.max.depth", "-1", errno.ERANGE),
        ("/a", "cgroup.max.depth", "99999999999", errno.ERANGE),
    ],
)
def test_a_wrong_write_fails_with_the_kernels_errno(path: str, name: str, text: str, number: int) -> None:
    tree = make()
    tree.mkdir("/a")
    tree.mkdir("/a/b")
    with pytest.raises(OSError, match=r".") as refused:
        files.write(tree, tree.lookup(path), name, text.encode(), WRITER)
    assert refused.value.errno == number


def test_a_write_of_nothing_is_no_error_even_to_a_read_only_file() -> None:
    tree = make()
    assert files.write(tree, tree.root, "misc.capacity", b"", WRITER) == 0


def test_a_limit_reads_back_as_written() -> None:
    tree = make()
    tree.mkdir("/a")
    write(tree, "/a", "misc.max", "sgx_epc 0x100001\n")
    assert read(tree, "/a", "misc.max") == "sev max\nsgx_epc 1048577\n"


def test_a_process_is_listed_once_with_its_threads() -> None:
    tree = make()
    tree.mkdir("/a")
    write(tree, "/a", "cgroup.procs", "21\n")  # a thread of process 20
    write(tree, "/a", "cgroup.procs", "0\n")  # whoever writes
    assert read(tree, "/a", "cgroup.procs") == "20\n500\n"
    assert read(tree, "/a", "cgroup.threads") == "20\n21\n500\n501\n"
    write(tree, "/a", "cgroup.threads", "21")  # it is there: nothing to move


def test_cgroup_events_follow_the_subtree_and_say_so() -> None:
    tree = make()
    tree.mkdir("/a")
    tree.mkdir("/a/b")
    told: list[tuple[str, str]] = []
    tree.announce = lambda path, file: told.append((path, file))
    write(tree, "/a/b", "cgroup.procs", "20")
    assert read(tree, "/a", "cgroup.events") == "populated 1\nfrozen 0\n"
    tree.ended(20)
    assert read(tree, "/a", "cgroup.events") == "populated 0\nfrozen 0\n"
    assert told == [("/a/b", "cgroup.events"), ("/a", "cgroup.events")] * 2


def test_freezing_stops_the_subtree_and_whoever_comes() -> None:
    tree = make()
    for path in ("/a", "/a/b", "/c"):
        tree.mkdir(path)
    write(tree, "/a/b", "cgroup.procs", "20")
    write(tree, "/a", "cgroup.freeze", "1")
    assert read(tree, "/a/b", "cgroup.events") == "populated 1\nfrozen 1\n"
    assert read(tree, "/a/b", "cgroup.freeze") == "0\n"
    write(tree, "/a/b", "cgroup.procs", "30")
    assert tree.processes.stopped == {20, 30}  # type: ignore[attr-defined]
    write(tree, "/c", "cgroup.procs", "30")
    write(tree, "/a", "cgroup.freeze", "0")
    assert tree.processes.stopped == set()  # type: ignore[attr-defined]


def test_kill_reaches_the_whole_subtree_and_nobody_else() -> None:
    tree = make()
    for path in ("/a", "/a/b", "/c"):
        tree.mkdir(path)
    for path, pid in (("/a", 20), ("/a/b", 30), ("/c", 40)):
        write(tree, path, "cgroup.procs", str(pid))
    write(tree, "/a", "cgroup.kill", "1\n")
    assert tree.processes.killed == [20, 30]  # type: ignore[attr-defined]


def test_stat_counts_descendants_and_those_that_charges_keep() -> None:
    tree = make()
    tree.mkdir("/a")
    epc = tree.misc.resource("sgx_epc")
    group = tree.lookup("/a").effective
    assert try_charge(tree.misc, group, epc, 4096) is None
    tree.misc.pin(group)
    assert _stat(tree) == [1, 2, 0, 0]
    tree.rmdir("/a")
    assert _stat(tree) == [0, 1, 1, 1]
    assert misc_files.read(tree.misc, tree.misc.root, "current") == b"sev 0\nsgx_epc 4096\n"
    tree.misc.unpin(group)
    assert tree.misc.release_next()
    assert _stat(tree) == [0, 1, 0, 0]


def test_a_group_that_ended_with_the_controller_is_dying_and_its_directory_is_not() -> None:
    tree = make()
    tree.mkdir("/a")
    tree.misc.pin(tree.lookup("/a").effective)
    write(tree, "/", "cgroup.subtree_control", "-misc")
    assert _stat(tree) == [1, 1, 0, 1]
    assert _stat(tree, "/a") == [0, 0, 0, 1]


def test_a_kernel_before_6_12_counts_no_subsystems() -> None:
    tree = make(V5)
    assert read(tree, "/", "cgroup.stat") == "nr_descendants 0\nnr_dying_descendants 0\n"


def _stat(tree: CgroupTree[Group], path: str = "/") -> list[int]:
    """Descendants, misc groups, dying descendants, dying misc groups."""
    lines = dict(line.split() for line in read(tree, path, "cgroup.stat").splitlines())
    names = ("nr_descendants", "nr_subsys_misc", "nr_dying_descendants", "nr_dying_subsys_misc")
    assert tuple(lines) == names
    return [int(lines[name]) for name in names]


def test_the_state_of_a_tree_survives_and_processes_do_not() -> None:
    tree = make()
    owner = Credentials(1000, 100)
    tree.mkdir("/a", owner)
    tree.control(tree.lookup("/a"), True)
    tree.mkdir("/a/b")
    write(tree, "/a", "misc.max", "sgx_epc 8192")
    write(tree, "/a", "cgroup.max.descendants", "0")
    tree.set_attributes(tree.lookup("/a/b"), "misc.max", uid=7, mode=0o600)
    write(tree, "/a/b", "cgroup.procs", "20")
    saved = state.dump(tree)
    again = make()
    again.control(again.root, False)
    state.load(again, json.loads(saved))
    assert state.dump(again) == saved
    assert read(again, "/a", "misc.max") == "sev max\nsgx_epc 8192\n"
    assert read(again, "/a/b", "cgroup.procs") == ""


BAD = [None, [], {"format": 0}, {"format": 1}, {"format": 1, "cgroups": [{"path": "/a/b"}]}]


@pytest.mark.parametrize("bad", BAD)
def test_a_state_that_is_none_is_refused(bad: object) -> None:
    with pytest.raises(BadInput, match="state"):
        state.load(make(), bad)
