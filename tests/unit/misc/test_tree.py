"""Groups come, go offline, and are freed when nothing pins them (spec 1.7)."""

from __future__ import annotations

import errno

import pytest

from epcgroup.errors import OutOfRange, Refused
from epcgroup.misc import STANDARD, Group, Tree


@pytest.fixture
def tree() -> Tree[Group]:
    tree = Tree(STANDARD, Group)
    for path in ("/a", "/a/b", "/a/c", "/d"):
        tree.mkdir(path)
    return tree


def walk(tree: Tree[Group]) -> list[str]:
    return [group.path for group in tree.walk(tree.root)]


def test_a_walk_is_pre_order_in_order_of_creation(tree: Tree[Group]) -> None:
    tree.mkdir("/a/b/x")
    assert walk(tree) == ["/", "/a", "/a/b", "/a/b/x", "/a/c", "/d"]
    assert [g.path for g in tree.walk(tree.lookup("/a"))] == ["/a", "/a/b", "/a/b/x", "/a/c"]


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/a", errno.EEXIST),
        ("/x/y", errno.ENOENT),
        ("a", errno.EINVAL),
        ("/a/", errno.EINVAL),
        ("//", errno.EINVAL),
    ],
)
def test_a_group_that_cannot_be_made_says_why(tree: Tree[Group], path: str, code: int) -> None:
    before = walk(tree)
    with pytest.raises(Refused) as refusal:
        tree.mkdir(path)
    assert refusal.value.errno == code
    assert walk(tree) == before


def test_a_group_with_processes_or_children_is_not_removed(tree: Tree[Group]) -> None:
    with pytest.raises(Refused, match="child"):
        tree.rmdir("/a")
    tree.attach(tree.lookup("/d"))
    with pytest.raises(Refused, match="process"):
        tree.rmdir("/d")
    tree.detach(tree.lookup("/d"))
    tree.rmdir("/d")
    assert "/d" not in tree
    with pytest.raises(Refused, match="root"):
        tree.rmdir("/")
    with pytest.raises(OutOfRange):
        tree.rmdir("/d")


def test_a_charge_does_not_block_removal_but_keeps_the_group_in_the_tree(tree: Tree[Group]) -> None:
    """MISC-64, MISC-65."""
    group = tree.lookup("/a/b")
    tree.pin(group)
    tree.rmdir("/a/b")
    assert "/a/b" in walk(tree)
    assert not tree.release_next()
    tree.unpin(group)
    assert tree.release_next()
    assert "/a/b" not in walk(tree)


def test_the_path_of_a_removed_group_is_free_at_once(tree: Tree[Group]) -> None:
    old = tree.lookup("/a/b")
    tree.pin(old)
    tree.rmdir("/a/b")
    new = tree.mkdir("/a/b")
    assert new is not old
    assert tree.lookup("/a/b") is new


def test_a_parent_waits_until_its_children_are_released(tree: Tree[Group]) -> None:
    child = tree.lookup("/a/b")
    tree.pin(child)
    for path in ("/a/b", "/a/c", "/a"):
        tree.rmdir(path)
    assert tree.release_next()  # /a/c
    assert not tree.release_next()
    tree.unpin(child)
    assert [tree.release_next() for _ in range(3)] == [True, True, False]
    assert walk(tree) == ["/", "/d"]


def test_groups_are_released_in_the_order_in_which_they_began_to_wait(tree: Tree[Group]) -> None:
    freed: list[str] = []
    tree.group_freed = lambda group: freed.append(group.path)
    for path in ("/d", "/a/c", "/a/b"):
        tree.rmdir(path)
    while tree.release_next():
        pass
    assert freed == ["/d", "/a/c", "/a/b"]


def test_b03_a_group_whose_private_part_cannot_be_made_does_not_exist() -> None:
    """The parent is as before, and the next mkdir works."""

    class Picky(Group):
        __slots__ = ()
        broken = False

        def __init__(self, group_id: int, parent: Group | None, name: str, resources: int) -> None:
            if Picky.broken:
                raise Refused("no memory", errno.ENOMEM)
            super().__init__(group_id, parent, name, resources)

    tree = Tree(STANDARD, Picky)
    Picky.broken = True
    with pytest.raises(Refused) as refusal:
        tree.mkdir("/a")
    assert refusal.value.errno == errno.ENOMEM
    assert walk(tree) == ["/"]  # type: ignore[arg-type]
    Picky.broken = False
    assert tree.mkdir("/a").path == "/a"


def test_b07_every_stored_limit_is_told_and_the_last_one_stays(tree: Tree[Group]) -> None:
    from epcgroup.misc import files

    tree.set_capacity("sgx_epc", 4096)
    told: list[tuple[str, int]] = []
    tree.max_written = lambda group, resource: told.append((group.path, group.max[resource]))
    for value in (5, 5, 7):
        files.write(tree, tree.lookup("/a"), "max", b"sgx_epc %d" % value)
    assert told == [("/a", 5), ("/a", 5), ("/a", 7)]
