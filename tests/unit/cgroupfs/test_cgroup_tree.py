"""Directories and processes: the rules of cgroup v2, and who is charged."""

from __future__ import annotations

import errno

import pytest
from tests.unit.cgroupfs.fakes import make, read, write

from epcgroup.cgroupfs import Credentials, files
from epcgroup.errors import Refused
from epcgroup.misc import Group

USER = Credentials(1000, 1000)


def test_an_inner_cgroup_that_delegates_has_no_processes() -> None:
    tree = make()
    tree.mkdir("/a")
    write(tree, "/a", "cgroup.procs", "20")
    with pytest.raises(Refused) as error:
        write(tree, "/a", "cgroup.subtree_control", "+misc")
    assert error.value.errno == errno.EBUSY
    tree.ended(20)
    write(tree, "/a", "cgroup.subtree_control", "+misc")
    with pytest.raises(Refused) as error:
        write(tree, "/a", "cgroup.procs", "20")
    assert error.value.errno == errno.EBUSY


def test_the_root_may_delegate_and_have_processes() -> None:
    tree = make()
    write(tree, "/", "cgroup.procs", "20")
    assert read(tree, "/", "cgroup.procs") == "20\n"


def test_a_controller_stays_while_a_child_passes_it_on() -> None:
    tree = make()
    tree.mkdir("/a")
    write(tree, "/a", "cgroup.subtree_control", "+misc")
    with pytest.raises(Refused) as error:
        write(tree, "/", "cgroup.subtree_control", "-misc")
    assert error.value.errno == errno.EBUSY


def test_processes_follow_the_controller_up_and_down() -> None:
    """Who has no group of its own is charged to the nearest above."""
    tree = make()
    told: list[tuple[int, str]] = []
    tree.moved = lambda pid, group: told.append((pid, group.path))
    tree.mkdir("/a")
    tree.mkdir("/a/b")
    write(tree, "/a/b", "cgroup.procs", "20")
    write(tree, "/a", "cgroup.subtree_control", "+misc")
    write(tree, "/a", "cgroup.subtree_control", "-misc")
    assert told == [(20, "/a"), (20, "/a/b"), (20, "/a")]
    assert tree.lookup("/a").effective.tasks == 1


def test_a_new_controller_begins_without_a_limit() -> None:
    tree = make()
    tree.mkdir("/a")
    write(tree, "/a", "misc.max", "sgx_epc 4096")
    write(tree, "/", "cgroup.subtree_control", "-misc")
    write(tree, "/", "cgroup.subtree_control", "+misc")
    assert read(tree, "/a", "misc.max") == "sev max\nsgx_epc max\n"


@pytest.mark.parametrize(
    ("name", "number"), [("x\ny", errno.EINVAL), ("..", errno.EINVAL), ("a", errno.EEXIST)]
)
def test_a_name_that_cannot_be_is_refused(name: str, number: int) -> None:
    tree = make()
    tree.mkdir("/a")
    with pytest.raises(Refused) as error:
        tree.mkdir(f"/{name}")
    assert error.value.errno == number
    assert tree.root.descendants == 1


def test_depth_and_descendants_limit_every_subtree() -> None:
    tree = make()
    tree.mkdir("/a")
    write(tree, "/", "cgroup.max.depth", "1")
    with pytest.raises(Refused) as error:
        tree.mkdir("/a/b")
    assert error.value.errno == errno.EAGAIN
    write(tree, "/", "cgroup.max.depth", "max")
    write(tree, "/", "cgroup.max.descendants", "1")
    with pytest.raises(Refused) as error:
        tree.mkdir("/b")
    assert error.value.errno == errno.EAGAIN
    assert read(tree, "/", "cgroup.max.descendants") == "1\n"


def test_a_cgroup_goes_when_it_is_empty_and_not_before() -> None:
    tree = make()
    tree.mkdir("/a")
    tree.mkdir("/a/b")
    write(tree, "/a/b", "cgroup.procs", "20")
    for path in ("/a", "/a/b", "/"):
        with pytest.raises(Refused) as error:
            tree.rmdir(path)
        assert error.value.errno == errno.EBUSY
    tree.ended(20)
    tree.rmdir("/a/b")
    tree.rmdir("/a")
    assert (tree.root.descendants, tree.root.populated) == (0, 0)
    assert [group.path for group in tree.misc.online()] == ["/"]


def test_a_child_process_begins_where_its_parent_is() -> None:
    tree = make()
    tree.mkdir("/a")
    write(tree, "/a", "cgroup.procs", "20")
    assert tree.forked(20, 30).path == "/a"
    assert read(tree, "/a", "cgroup.procs") == "20\n30\n"


def test_a_user_moves_within_what_is_delegated_to_it_and_not_beyond() -> None:
    """Entering and leaving need cgroup.procs of the common ancestor."""
    tree = make()
    tree.mkdir("/u")
    write(tree, "/u", "cgroup.subtree_control", "+misc")
    for file in (None, "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"):
        tree.set_attributes(tree.lookup("/u"), file, uid=1000, gid=1000)
    for path in ("/u/x", "/u/y"):
        tree.mkdir(path, USER)
    tree.mkdir("/other")
    mine = files.Writer(20, USER)
    with pytest.raises(Refused) as error:
        write(tree, "/u/x", "cgroup.procs", "20", mine)  # from the root: not contained
    assert error.value.errno == errno.EACCES
    write(tree, "/u/x", "cgroup.procs", "20")
    write(tree, "/u/y", "cgroup.procs", "20", mine)
    assert read(tree, "/u/y", "cgroup.procs") == "20\n"


def test_delegation_gives_the_directory_and_not_its_limit() -> None:
    tree = make()
    cgroup = tree.mkdir("/u")
    tree.set_attributes(cgroup, None, uid=1000, gid=1000)
    assert not tree.attributes(cgroup, "misc.max").writable_by(USER)
    child = tree.mkdir("/u/x", USER)
    assert tree.attributes(child, "cgroup.procs").writable_by(USER)


def test_auto_delegation_spares_tools_the_controller() -> None:
    tree = make(auto_delegate=True)
    tree.mkdir("/a")
    tree.mkdir("/a/b")
    assert isinstance(tree.lookup("/a/b").group, Group)
    assert read(tree, "/a", "cgroup.subtree_control") == "misc\n"
