"""A kernel's files as a source of views."""

from __future__ import annotations

from pathlib import Path

import pytest

from epcgroup.errors import Refused
from epcgroup.serve.sources import FilesSource


def cgroup(root: Path, path: str, **files: int | str) -> None:
    """A cgroup directory; ``misc_events`` counts refusals, ``misc_events_local`` those of its own limit."""
    directory = root / path
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "cgroup.controllers").write_text("misc\n")
    for name, value in files.items():
        key = "sgx_epc.max" if "events" in name else "sgx_epc"
        (directory / name.replace("_", ".")).write_text(f"sev 0\n{key} {value}\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    cgroup(tmp_path, "", misc_capacity=1 << 20, misc_current=8192)
    cgroup(tmp_path, "a", misc_max=16384, misc_current=8192, misc_peak=12288, misc_events=9)
    cgroup(tmp_path, "a/b", misc_max="max", misc_current=4096, misc_events=4)
    cgroup(tmp_path, "plain")
    return tmp_path


def test_what_the_files_say_is_the_view_and_a_cgroup_without_misc_is_none(root: Path) -> None:
    snapshot = FilesSource(root).snapshot()
    assert [group.path for group in snapshot.groups] == ["/", "/a", "/a/b"]
    a = snapshot.groups[1]
    assert (a.limit, a.current, a.peak, a.events) == (16384, 8192, 12288, 9)
    assert (snapshot.epc_pages, snapshot.free_pages) == (256, 254)


def test_without_a_local_file_what_no_child_counted_is_the_cgroups_own(root: Path) -> None:
    assert [group.events_local for group in FilesSource(root).snapshot().groups] == [0, 5, 4]
    cgroup(root, "a", misc_events_local=7)
    assert [group.events_local for group in FilesSource(root).snapshot().groups] == [0, 7, 4]


def test_changes_between_two_snapshots_are_events(root: Path) -> None:
    source = FilesSource(root)
    source.snapshot()
    source.set_max("/a", 4096)
    cgroup(root, "a/b", misc_events=6)
    cgroup(root, "a", misc_events=11)
    source.snapshot()
    assert [(event.kind, event.group) for event in source.events()] == [("set", "/a"), ("limit", "/a/b")]


def test_a_tree_without_epc_is_refused(tmp_path: Path) -> None:
    cgroup(tmp_path, "")
    with pytest.raises(Refused, match=r"its misc\.capacity has no sgx_epc"):
        FilesSource(tmp_path)
