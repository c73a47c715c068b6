"""Reading and writing a tree by its files: the same for a kernel's mount and ours."""

from __future__ import annotations

import argparse
import errno
import json
from pathlib import Path

import pytest

from epcgroup.cli import hierarchy, main
from epcgroup.cli import tree as tree_command
from epcgroup.errors import BadInput, Refused
from epcgroup.host import Hierarchy, discover, doctor, find, mounts
from epcgroup.host import cgroup as host_cgroup
from epcgroup.host.mounts import Mount


def cgroup(root: Path, path: str, **files: str) -> None:
    """A cgroup directory as a kernel shows it; ``misc_max`` is misc.max."""
    directory = root / path
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in {"cgroup_controllers": "misc\n", **files}.items():
        (directory / name.replace("_", ".", 1)).write_text(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Root, /pods with 8 MiB, /pods/a with 16 MiB, /pods/b without a limit, /plain without misc."""
    cgroup(tmp_path, "", misc_capacity="sev 99\nsgx_epc 67108864\n", misc_current="sev 0\nsgx_epc 4096\n")
    values = {"misc_current": "sev 1\nsgx_epc 4096\n", "misc_events": "sev.max 0\nsgx_epc.max 3\n"}
    cgroup(tmp_path, "pods", misc_max="sev max\nsgx_epc 8388608\n", **values)
    cgroup(tmp_path, "pods/a", misc_max="sev 5\nsgx_epc 16777216\n", **values)
    cgroup(tmp_path, "pods/b", misc_max="sev max\nsgx_epc max\n", **values)
    cgroup(tmp_path, "plain")
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = main.main(list(words))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_the_smallest_limit_up_to_the_root_is_the_effective_one(root: Path) -> None:
    tree = Hierarchy(root)
    assert tree.effective("/pods/a") == (8388608, "/pods")
    assert tree.effective("/pods/b") == (8388608, "/pods")
    assert tree.effective("/plain") == (None, None)


def test_a_view_has_what_the_files_say_and_none_for_what_is_not_there(root: Path) -> None:
    view = Hierarchy(root).view("pods/a")
    assert (view.max, view.effective, view.current, view.events) == (16777216, 8388608, 4096, 3)
    assert (view.peak, view.events_local, view.capacity) == (None, None, None)
    assert not Hierarchy(root).view("/plain").enabled
    assert Hierarchy(root, "sev").view("/pods/a").max == 5


def test_a_limit_is_written_as_the_kernel_reads_it(root: Path) -> None:
    tree = Hierarchy(root)
    tree.set_max("/pods/a", 4096)
    assert (root / "pods/a/misc.max").read_text() == "sgx_epc 4096"
    assert tree.plan("/pods/b", None)[1] == "sgx_epc max"
    assert (root / "pods/b/misc.max").read_text() == "sev max\nsgx_epc max\n"


@pytest.mark.parametrize(
    ("path", "resource", "number", "hint"),
    [
        ("/nowhere", "sgx_epc", errno.ENOENT, "no cgroup /nowhere"),
        ("/plain", "sgx_epc", errno.ENOENT, r"echo \+misc > .*/cgroup.subtree_control"),
        ("/pods", "tdx", errno.EINVAL, "there are: sev, sgx_epc"),
    ],
)
def test_what_cannot_be_set_says_why(root: Path, path: str, resource: str, number: int, hint: str) -> None:
    with pytest.raises(Refused, match=hint) as error:
        Hierarchy(root, resource).set_max(path, 1)
    assert error.value.errno == number


@pytest.mark.parametrize("path", ["/", "..", "/pods/../.."])
def test_a_path_stays_in_the_tree_and_the_root_has_no_limit(root: Path, path: str) -> None:
    with pytest.raises(BadInput):
        Hierarchy(root).plan(path, 1)


def test_the_kernels_tree_is_preferred_to_ours() -> None:
    found = [Mount("/a", mounts.TYPE), Mount("/b", "cgroup2"), Mount("/c", "ext4"), Mount("/b", "cgroup2")]
    assert [mount.point for mount in discover.trees(found)] == ["/b", "/a"]


def test_a_named_directory_must_be_a_cgroup(tmp_path: Path, root: Path) -> None:
    assert find(root, "anything") == root
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"no cgroup.controllers"):
        find(tmp_path / "empty", "sgx_epc")


def test_get_prints_a_table_with_units(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "get", "--root", str(root), "/pods", "pods/a")
    assert status == 0
    assert [line.split() for line in out.splitlines()] == [
        ["cgroup", "max", "effective", "current", "peak", "events"],
        ["/pods", "8M", "8M", "4K", "-", "3"],
        ["/pods/a", "16M", "8M", "4K", "-", "3"],
    ]


def test_get_and_tree_give_the_same_json(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, listed, _ = run(capsys, "get", "--root", str(root), "--json")
    _, drawn, _ = run(capsys, "tree", "--root", str(root), "--json")
    assert listed == drawn
    paths = [entry["path"] for entry in json.loads(listed)["cgroups"]]
    assert paths == ["/", "/plain", "/pods", "/pods/a", "/pods/b"]


def test_tree_draws_the_branches(root: Path) -> None:
    views = Hierarchy(root).views()
    assert tree_command.branches(views) == ["/", "├─ plain", "└─ pods", "   ├─ a", "   └─ b"]


def test_set_takes_units_and_says_what_a_person_may_not_expect(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(capsys, "set", "--root", str(root), "pods/a", "9M")
    assert status == 0
    assert "wrote 'sgx_epc 9437184' (before: 16M)" in out
    assert "the limit of /pods, 8M, holds before this one" in err
    _, _, err = run(capsys, "set", "--root", str(root), "pods/a", "1000")
    assert "the last 1000 bytes beyond 0 are never used" in err
    assert "usage is 4K now, above the limit" in err


def test_a_dry_run_writes_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (root / "pods/misc.max").read_text()
    status, out, _ = run(capsys, "set", "--root", str(root), "--dry-run", "--json", "pods", "max")
    assert (status, json.loads(out)["line"], json.loads(out)["written"]) == (0, "sgx_epc max", False)
    assert (root / "pods/misc.max").read_text() == before


def test_another_resource_is_counted_and_has_no_units(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("set", "--root", str(root), "--resource", "sev", "--dry-run", "pods")
    assert "'sev 7'" in run(capsys, *words, "7")[1]
    assert run(capsys, *words, "7M")[0] == 2


def test_watch_prints_a_group_again_only_when_it_changed(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("watch", "--root", str(root), "--json", "--count", "3", "--interval", "0.01", "/pods")
    _, out, _ = run(capsys, *words)
    assert len(out.splitlines()) == 1
    assert json.loads(out)["current"] == 4096


def test_no_name_moves_the_terminals_cursor() -> None:
    assert hierarchy.printable("/a\x1b[2J\r\udcff€") == "/a\\x1b[2J\\r\\udcff€"


def test_an_absent_amount_is_a_dash() -> None:
    args = argparse.Namespace(resource="sgx_epc", bytes=False)
    assert [hierarchy.amount(value, args) for value in (None, 0, 1 << 26)] == ["-", "0", "64M"]


def test_soft_limits_are_set_where_there_are_any(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, said = run(capsys, "set", "pods/a", "8M", "--file", "low", "--root", str(root))
    assert status == 1
    assert "serve --extensions" in said
    cgroup(root, "pods/a", misc_low="sgx_epc 0\n", misc_high="sgx_epc max\n")
    status, output, _ = run(capsys, "set", "pods/a", "8M", "--file", "low", "--root", str(root))
    assert status == 0
    assert "wrote 'sgx_epc 8388608' (before: 0)" in output
    assert (root / "pods/a/misc.low").read_text() == "sgx_epc 8388608"
    status, output, _ = run(capsys, "set", "pods/a", "4M", "--file", "high", "--dry-run", "--root", str(root))
    assert "would write 'sgx_epc 4194304' (before: max)" in output
    assert (root / "pods/a/misc.max").read_text() == "sev 5\nsgx_epc 16777216\n"


def test_reclaim_writes_bytes_and_says_where_it_cannot(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, said = run(capsys, "reclaim", "pods/a", "1M", "--root", str(root))
    assert status == 1
    assert "has no misc.reclaim" in said
    cgroup(root, "pods/a", misc_reclaim="")
    status, output, _ = run(capsys, "reclaim", "pods/a", "1M", "--root", str(root))
    assert (status, output) == (0, "usage 4K before, 4K after\n")
    assert (root / "pods/a/misc.reclaim").read_text() == "sgx_epc 1048576"


def test_a_large_reclaim_is_written_piece_by_piece(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one piece is evicted the tree answers nobody else."""
    cgroup(root, "pods/a", misc_reclaim="")
    lines: list[str] = []
    monkeypatch.setattr(host_cgroup, "_write", lambda _, line: lines.append(line))
    Hierarchy(root).reclaim("/pods/a", (9 << 20) + 4096)
    assert lines == ["sgx_epc 4194304", "sgx_epc 4194304", "sgx_epc 1052672"]


def test_a_mount_point_may_have_any_line_end_but_the_one() -> None:
    r"""The kernel escapes \n, and neither \r nor what Unicode knows."""
    line = "36 35 98:0 / /a\rb\x85c\u2028d rw - tmpfs none rw\n"
    assert mounts.mounts(line) == [Mount("/a\rb\x85c\u2028d", "tmpfs")]


def test_mount_points_are_unescaped() -> None:
    line = "36 35 98:0 /a /mnt\\040x rw,noatime shared:1 - cgroup2 cgroup2 rw\n"
    assert mounts.mounts(line) == [Mount("/mnt x", "cgroup2", "/a")]


def test_doctor_doubts_limits_that_do_not_mean_what_they_say(root: Path) -> None:
    tree = Hierarchy(root)
    tree.set_max("/pods/b", 5000)
    details = [text for view in tree.views() for text, _ in doctor._doubts(view, root)]
    assert any("no whole number of pages" in text for text in details)
    assert any("too small for any enclave" in text for text in details)
    assert any("the limit of /pods (8388608) holds before its own (16777216)" in text for text in details)
    assert any("the parent does not enable misc" in text for text in details)


def test_doctor_doubts_a_limit_that_was_hit(root: Path) -> None:
    full = "sgx_epc 8192\n"
    cgroup(root, "tight", misc_max=full, misc_peak=full, misc_events="sgx_epc.max 7\n")
    details = [text for text, _ in doctor._doubts(Hierarchy(root).view("/tight"), root)]
    assert any("hit 7 times" in text for text in details)


def test_doctor_adds_up_the_sections_of_the_nodes(tmp_path: Path) -> None:
    for node, size in (("node0", "67108864"), ("node1", "33554432"), ("node2", "?")):
        (tmp_path / node / "x86").mkdir(parents=True)
        (tmp_path / node / "x86" / "sgx_total_bytes").write_text(f"{size}\n")
    assert doctor.epc_of_nodes(tmp_path) == {"node0": 64 << 20, "node1": 32 << 20}


def test_doctor_knows_what_each_face_needs(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "doctor", "--json")
    report = json.loads(out)
    facts = {(fact["face"], fact["what"]) for fact in report["facts"]}
    assert {
        ("run", "ptrace"),
        ("run", "userfaultfd"),
        ("serve", "/dev/fuse"),
        ("kernel", "SGX processor"),
    } <= facts
    assert status == int(not (report["usable"]["run"] and report["usable"]["serve"]))
    assert all(fact["fix"] for fact in report["facts"] if fact["ok"] is False)
