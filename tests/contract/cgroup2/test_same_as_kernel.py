"""Our cgroup files beside this machine's own cgroup2: the same steps, the same text, the same errno.

The kernel has no misc controller here, but the files of cgroup v2 do not depend
on which controller it is: one that cannot be threaded (hugetlb …) plays its part.
What we leave out on purpose (docs/cgroupfs.md) is not among the steps.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.e2e.served import NEEDS, served

pytestmark = pytest.mark.needs(*NEEDS, "root", "cgroup2")

STAND_INS = ("misc", "hugetlb", "rdma", "io", "memory")
FILES = (
    "controllers",
    "subtree_control",
    "type",
    "events",
    "freeze",
    "max.depth",
    "max.descendants",
    "procs",
)
Step = Callable[["Tree"], object]


@dataclass(frozen=True)
class Tree:
    """A directory of cgroups; ``controller`` is what CTL in a step stands for."""

    top: Path
    controller: str

    def path(self, name: str) -> Path:
        return self.top / name

    def read(self, name: str) -> str:
        fd = os.open(self.top / name, os.O_RDONLY)
        try:
            return os.read(fd, 65536).decode().replace(self.controller, "CTL")
        finally:
            os.close(fd)

    def write(self, name: str, text: str) -> int:
        """Bytes that were left over."""
        data = text.replace("CTL", self.controller).encode()
        fd = os.open(self.top / name, os.O_WRONLY)
        try:
            return len(data) - os.write(fd, data)
        finally:
            os.close(fd)


def result(tree: Tree, step: Step) -> object:
    try:
        return step(tree)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Tree, Tree]]:
    """(the kernel's, ours), each a cgroup of its own with the controller enabled for children."""
    mount = tmp_path_factory.mktemp("cgroup2")
    subprocess.run(["mount", "-t", "cgroup2", "none", mount], check=True)
    control = mount / "cgroup.subtree_control"
    top = mount / f"epcgroup-{os.getpid()}"
    enabled = control.read_text().split()
    there = (mount / "cgroup.controllers").read_text().split()
    controller = next(name for name in STAND_INS if name in there)
    try:
        control.write_text(f"+{controller}")
        top.mkdir()
        with served(tmp_path_factory.mktemp("serve")) as server:
            server.path("top").mkdir()
            yield Tree(top, controller), Tree(server.path("top"), "misc")
    finally:
        with contextlib.suppress(OSError):
            (top / "cgroup.kill").write_text("1")
        for path, _, _ in os.walk(top, topdown=False):
            Path(path).rmdir()
        if controller not in enabled:
            control.write_text(f"-{controller}")
        subprocess.run(["umount", mount], check=True)


@pytest.fixture
def same(trees: tuple[Tree, Tree]) -> Iterator[Callable[[str, Step], None]]:
    """``same(words, step)``: the step has one outcome in both trees."""

    def compare(words: str, step: Step) -> None:
        kernel, ours = (result(tree, step) for tree in trees)
        assert ours == kernel, f"{words}: ours {ours!r}, the kernel's {kernel!r}"

    yield compare
    for tree in trees:
        tree.write("cgroup.kill", "1")
        end = time.monotonic() + 60
        while "populated 1" in tree.read("cgroup.events") and time.monotonic() < end:
            time.sleep(0.01)
        for path, _, _ in os.walk(tree.top, topdown=False):
            if Path(path) != tree.top:
                Path(path).rmdir()
        tree.write("cgroup.subtree_control", "-CTL")


def make(same: Callable[[str, Step], None], *names: str) -> None:
    for name in names:
        same(f"mkdir {name}", lambda tree, name=name: tree.path(name).mkdir())


def test_a_new_cgroup_has_the_same_files_modes_and_text(same: Callable[[str, Step], None]) -> None:
    same("+CTL", lambda tree: tree.write("cgroup.subtree_control", "+CTL"))
    make(same, "a", "a/b", "a/b/c")
    for name in ("a", "a/b"):
        for file in FILES:
            same(f"{name}/{file}", lambda tree, at=f"{name}/cgroup.{file}": tree.read(at))
        for file in (*FILES, "kill", "threads", "stat"):
            same(
                f"mode of {file}", lambda tree, at=f"{name}/cgroup.{file}": oct(tree.path(at).stat().st_mode)
            )
        same("links", lambda tree, name=name: tree.path(name).stat().st_nlink)
    same("reading cgroup.kill", lambda tree: tree.read("a/cgroup.kill"))


def test_cgroup_stat_counts_the_same(same: Callable[[str, Step], None]) -> None:
    def counts(name: str) -> Step:
        def step(tree: Tree) -> list[str]:
            lines = tree.read(f"{name}/cgroup.stat").splitlines()
            return [line for line in lines if "descendants" in line or "CTL" in line]

        return step

    same("+CTL", lambda tree: tree.write("cgroup.subtree_control", "+CTL"))
    make(same, "a", "a/b", "a/b/c", "a/d")
    for enable in ("+CTL", "-CTL"):
        same(enable, lambda tree, text=enable: tree.write("a/cgroup.subtree_control", text))
        for name in (".", "a", "a/b", "a/b/c"):
            same(f"stat of {name} after {enable}", lambda tree, name=name: settled(tree, counts(name)))


def settled(tree: Tree, step: Step) -> object:
    """The outcome once nothing is dying: the kernel frees groups when it likes."""
    end = time.monotonic() + 60
    while "nr_dying_descendants 0" not in tree.read("cgroup.stat") or any(
        line.startswith("nr_dying") and not line.endswith(" 0")
        for line in tree.read("cgroup.stat").splitlines()
    ):
        assert time.monotonic() < end
        time.sleep(0.01)
    return step(tree)


def test_subtree_control_takes_and_refuses_the_same(same: Callable[[str, Step], None]) -> None:
    same("+CTL", lambda tree: tree.write("cgroup.subtree_control", "+CTL"))
    make(same, "a", "a/b", "a/b/c")
    texts = (
        "+CTL", "-CTL", "CTL", "+nonsense", "", "\n", " ", "+CTL -CTL", "-CTL +CTL", "+CTL\n", "  +CTL  ",
        "+CTL\t", "+", "+ CTL", "+CTL +CTL", "+CTL\0junk", "\0", "x" * 4096, "x" * 4097,
    )  # fmt: skip
    for text in texts:
        same(f"write {text[:20]!r}", lambda tree, text=text: tree.write("a/cgroup.subtree_control", text))
        same(f"state after {text[:20]!r}", lambda tree: tree.read("a/cgroup.subtree_control"))
        same(f"child after {text[:20]!r}", lambda tree: tree.read("a/b/cgroup.controllers"))
    for name, text in (("a", "-CTL"), ("a/b", "+CTL"), ("a", "+CTL"), ("a/b", "+CTL"), ("a", "-CTL")):
        same(f"{text} in {name}", lambda tree, n=name, t=text: tree.write(f"{n}/cgroup.subtree_control", t))


def test_processes_move_and_are_refused_the_same(same: Callable[[str, Step], None]) -> None:
    same("+CTL", lambda tree: tree.write("cgroup.subtree_control", "+CTL"))
    make(same, "a", "a/b", "a/b/c", "e")
    same("+CTL in a", lambda tree: tree.write("a/cgroup.subtree_control", "+CTL"))
    pids: dict[Tree, int] = {}

    def start(tree: Tree) -> None:
        pids[tree] = os.posix_spawnp("sleep", ["sleep", "600"], os.environ)

    def write(name: str, text: str) -> Step:
        return lambda tree: tree.write(name, text.replace("PID", str(pids[tree])))

    same("start", start)
    for name in ("a/cgroup.procs", "a/b/cgroup.procs", "a/b/c/cgroup.procs", "a/b/c/cgroup.threads"):
        same(f"enter {name}", write(name, "PID"))
    same("control over a process", write("a/b/c/cgroup.subtree_control", "+CTL"))
    for text in (
        "-1", "", "\n", "x", "1x", "0x", "99999999", "4294967297", "99999999999999999999", "+PID", " PID \n",
        "PID\0junk", "1 2", "2",
    ):  # fmt: skip
        same(f"procs {text!r}", write("a/b/c/cgroup.procs", text))
        same(f"threads {text!r}", write("a/b/c/cgroup.threads", text))
    same("a thread elsewhere", write("e/cgroup.threads", "PID"))
    for name in ("a", "a/b", "a/b/c", "e"):
        same(f"events of {name}", lambda tree, name=name: tree.read(f"{name}/cgroup.events"))
        same(f"rmdir {name}", lambda tree, name=name: tree.path(name).rmdir() if name != "e" else None)
    for text in ("0", "2", "x", "-1", "", "1\n"):
        same(f"kill {text!r}", write("a/cgroup.kill", text))
    same("the end", lambda tree: os.waitpid(pids[tree], 0)[1])


@pytest.mark.parametrize(
    "file", ["cgroup.max.depth", "cgroup.max.descendants", "cgroup.freeze", "cgroup.events"]
)
def test_numbers_are_read_the_same(same: Callable[[str, Step], None], file: str) -> None:
    make(same, "d")
    for text in (
        "0", "1", "max", "-1", "-2", "x", "", "max\n", " 5 ", "2147483647", "2147483648", "0x10", "010", "+3",
        "99999999999999999999999", "Max", "-0", "1 ", "x" * 4097, "0",
    ):  # fmt: skip
        same(f"write {text[:24]!r}", lambda tree, text=text: tree.write(f"d/{file}", text))
        if file != "cgroup.events":
            same(f"state after {text[:24]!r}", lambda tree: tree.read(f"d/{file}"))


def test_depth_and_descendants_hold_the_same(same: Callable[[str, Step], None]) -> None:
    make(same, "d", "d/e")
    same("depth 0", lambda tree: tree.write("d/cgroup.max.depth", "0"))
    make(same, "d/g")
    same("depth 1", lambda tree: tree.write("d/cgroup.max.depth", "1"))
    make(same, "d/g", "d/e/h")
    same("no depth", lambda tree: tree.write("d/cgroup.max.depth", "max"))
    same("3 descendants", lambda tree: tree.write("d/cgroup.max.descendants", "3"))
    make(same, "d/h", "d/i", "d/e/i")


def test_what_a_directory_refuses_is_the_same(same: Callable[[str, Step], None]) -> None:
    make(same, "d", "d/e", "d/x\ny", "n" * 255, "cgroup.procs", "cgroup.foo", " sp ace", "\\x", ".h", "d")
    steps: dict[str, Step] = {
        "rename": lambda tree: tree.path("d/e").rename(tree.path("d/z")),
        "create": lambda tree: os.open(tree.path("d/new"), os.O_CREAT | os.O_WRONLY),
        "fifo": lambda tree: os.mkfifo(tree.path("d/new")),
        "device": lambda tree: os.mknod(tree.path("d/new"), stat.S_IFCHR | 0o600, os.makedev(1, 3)),
        "regular": lambda tree: os.mknod(tree.path("d/new"), stat.S_IFREG | 0o600),
        "unlink": lambda tree: tree.path("d/cgroup.procs").unlink(),
        "unlink directory": lambda tree: tree.path("d/e").unlink(),
        "rmdir file": lambda tree: tree.path("d/cgroup.procs").rmdir(),
        "rmdir inner": lambda tree: tree.path("d").rmdir(),
        "link": lambda tree: os.link(tree.path("d/cgroup.procs"), tree.path("d/new")),
        "symlink": lambda tree: tree.path("d/new").symlink_to("x"),
        "no file": lambda tree: tree.read("d/nothing"),
        "truncate": lambda tree: os.truncate(tree.path("d/cgroup.procs"), 5),
        "write what is read-only": lambda tree: tree.write("d/cgroup.stat", "1"),
        "write nothing": lambda tree: tree.write("d/cgroup.stat", ""),
        "chmod": lambda tree: tree.path("d/cgroup.procs").chmod(0o666),
        "mode": lambda tree: oct(tree.path("d/cgroup.procs").stat().st_mode),
        "chown": lambda tree: os.chown(tree.path("d/e"), 7, 8),
        "owner": lambda tree: tree.path("d/e").stat()[4:6],
        "owner of its file": lambda tree: tree.path("d/e/cgroup.procs").stat()[4:6],
    }
    for words, step in steps.items():
        same(words, step)


def test_offsets_mean_the_same(same: Callable[[str, Step], None]) -> None:
    make(same, "d")

    def offsets(tree: Tree) -> list[object]:
        fd = os.open(tree.path("d/cgroup.max.depth"), os.O_RDWR)
        try:
            reads = [os.pread(fd, size, at) for size, at in ((2, 0), (10, 1), (10, 10), (3, 2))]
            return [
                *reads,
                os.read(fd, 2),
                os.read(fd, 9),
                os.read(fd, 9),
                os.pwrite(fd, b"7", 100),
                os.pread(fd, 9, 0),
            ]
        finally:
            os.close(fd)

    same("offsets", offsets)


def test_poll_says_the_same(same: Callable[[str, Step], None]) -> None:
    make(same, "d")

    def polled(name: str, ask: int) -> Step:
        def step(tree: Tree) -> list[list[int]]:
            fd = os.open(tree.path(name), os.O_RDONLY)
            poll = select.poll()
            poll.register(fd, ask)
            try:
                before = [event for _, event in poll.poll(0)]
                os.read(fd, 100)
                return [before, [event for _, event in poll.poll(0)]]
            finally:
                os.close(fd)

        return step

    for name in ("d/cgroup.events", "d/cgroup.max.depth"):
        for ask in (0x7FFF, select.POLLPRI, select.POLLIN):
            same(f"poll {name} for {ask:#x}", polled(name, ask))


def test_a_file_of_a_removed_cgroup_says_the_same(same: Callable[[str, Step], None]) -> None:
    make(same, "k")
    files: dict[Tree, int] = {}

    def take(tree: Tree) -> None:
        files[tree] = os.open(tree.path("k/cgroup.max.depth"), os.O_RDWR)
        tree.path("k").rmdir()

    same("rmdir with a file open", take)
    same("read", lambda tree: os.read(files[tree], 10))
    same("write", lambda tree: os.write(files[tree], b"1"))
    for fd in files.values():
        os.close(fd)
