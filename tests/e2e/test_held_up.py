"""A program that is held up by what it opens, or holds itself up, holds up nobody else of its machine.

One thread answers everybody. So it never waits for a FIFO, a file system in user space or a program's memory.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from tests.e2e.served import NEEDS, Served, eventually, served, unmount
from tests.e2e.traced import compile_c

pytestmark = [pytest.mark.needs(*NEEDS, "root", "gcc"), pytest.mark.timeout(240)]

PROGRAMS = Path(__file__).parent / "programs"
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")

# A file system with a file "mountinfo". Of how it is doing it says nothing, nor of closes, nor of
# anything once a file "armed" lies beside it.
SILENT = """
import errno, mfusepy, os, stat, sys, threading
class Silent(mfusepy.Operations):
    use_ns = True
    def getattr(self, path, fh=None):
        if os.path.exists(sys.argv[1] + "/armed"):
            self.statfs(path)
        if path not in ("/", "/mountinfo"):
            raise mfusepy.FuseOSError(errno.ENOENT)
        return {"st_mode": stat.S_IFDIR | 0o755 if path == "/" else stat.S_IFREG | 0o444, "st_nlink": 1,
                "st_size": 4096}
    def open(self, path, info):
        return 0
    def read(self, path, size, offset, info):
        return bytes(size)
    def statfs(self, path):
        threading.Event().wait()
    def flush(self, path, info):
        threading.Event().wait()
mfusepy.FUSE(Silent(), sys.argv[1] + "/1", foreground=True, attr_timeout=0, allow_other=True)
"""
# Maps its file when nothing about it can be asked any more, and ends.
MAPPER = """
import ctypes, os, sys
fd = os.open(sys.argv[1] + "/1/mountinfo", os.O_RDONLY)
open(sys.argv[1] + "/armed", "w").close()
mmap = ctypes.CDLL(None, use_errno=True).mmap
mmap.restype = ctypes.c_long
mmap.argtypes = [ctypes.c_long] * 6
os.write(1, b"mapped\\n" if mmap(0, 4096, 1, 1, fd, 0) > 0 else b"not mapped\\n")
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("held")) as machine:
        machine.path("a").mkdir()
        yield machine


def others_go_on(machine: Served) -> None:
    done = machine.exec("a", "cat", "/proc/self/cgroup")
    assert (done.returncode, done.stdout) == (0, "0::/a\n"), done.stderr


@contextmanager
def inside(machine: Served, *command: str) -> Iterator[subprocess.Popen[str]]:
    """A command that runs in the machine meanwhile."""
    process = subprocess.Popen(machine.argv("a", *command), stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_fifo_in_the_place_of_a_file_of_proc(machine: Served, tmp_path: Path) -> None:
    """Who opens it waits, as without us, and reads what is written there."""
    script = "cd $0; mkfifo mounts; mount --bind . /proc; touch in; read x < /proc/mounts; echo $x"
    with inside(machine, "unshare", "--mount", "sh", "-ec", script, str(tmp_path)) as process:
        eventually((tmp_path / "in").exists)
        others_go_on(machine)
        assert process.poll() is None
        (tmp_path / "mounts").write_text("written\n")
        assert process.communicate(timeout=60)[0] == "written\n"


def test_a_name_that_changes_under_us_to_that_of_a_fifo(machine: Served, tmp_path: Path) -> None:
    """Nobody's opens are first made by a name of ours, which she may not follow, and then by her own."""
    program = compile_c(PROGRAMS / "swapper.c", tmp_path / "swapper", "-pthread")
    fifo = Path("/tmp", f"s{machine.process.pid}")
    subprocess.run(["mkfifo", "-m", "666", fifo], check=True)
    try:
        for parent in (tmp_path, *tmp_path.parents):
            if "pytest" in str(parent):
                parent.chmod(parent.stat().st_mode | 0o011)
        with inside(machine, *NOBODY, str(program), "/proc/self/cgroup", str(fifo), "300") as process:
            others_go_on(machine)
            assert process.communicate(timeout=150)[0] == "some were the file\n"
        others_go_on(machine)
    finally:
        fifo.unlink()


def test_a_file_system_that_does_not_answer(machine: Served, tmp_path: Path) -> None:
    """It is opened, mapped and closed at a program's end; the program waits for it, and nobody else."""
    (tmp_path / "1").mkdir()
    server = subprocess.Popen([sys.executable, "-c", SILENT, str(tmp_path)])
    try:
        eventually(lambda: (tmp_path / "1").is_mount())
        with inside(machine, sys.executable, "-c", MAPPER, str(tmp_path)) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "mapped\n"
            others_go_on(machine)
            server.kill()
            assert process.wait(60) == 0
    finally:
        server.kill()
        server.wait()
        with suppress(OSError):
            unmount(tmp_path / "1")
