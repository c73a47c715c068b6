"""`serve --mirror`: our tree over a real cgroup2. What is done in one is done in the other."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.served import EPCGROUP, NEEDS, Served, catches_sigterm, eventually, served, unmount

pytestmark = pytest.mark.needs(*NEEDS, "root", "cgroup2")

MIB = 1 << 20


@pytest.fixture(scope="module")
def cgroup2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A mount of this machine's cgroup2."""
    mount = tmp_path_factory.mktemp("cgroup2")
    subprocess.run(["mount", "-t", "cgroup2", "none", mount], check=True)
    yield mount
    subprocess.run(["umount", mount], check=True)


def remove(top: Path) -> None:
    """A cgroup and all below, when their processes have ended."""
    for path, _, _ in os.walk(top, topdown=False):
        eventually(lambda path=path: "populated 0" in Path(path, "cgroup.events").read_text())
        Path(path).rmdir()


@pytest.fixture(scope="module")
def real(cgroup2: Path) -> Iterator[Path]:
    """Where the mirrored tree will be: not there yet; gone, with all below, in the end."""
    top = cgroup2 / f"epcgroup-mirror-{os.getpid()}"
    yield top
    remove(top)


@pytest.fixture(scope="module")
def server(real: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("mirror"), "--mirror", str(real)) as server:
        yield server
        server.stop()


@pytest.fixture
def machine(server: Served, real: Path) -> Iterator[Served]:
    """The server, emptied after each test."""
    yield server
    for path in [path for path in real.iterdir() if path.is_dir()]:
        remove(path)


def test_directories_and_the_kernels_files_are_those_of_the_real_tree(machine: Served, real: Path) -> None:
    machine.path("a").mkdir()
    own = {path.name for path in (real / "a").iterdir()}
    seen = {path.name for path in machine.path("a").iterdir()}
    assert own <= seen
    assert seen - own == {f"misc.{name}" for name in ("max", "current", "peak", "events", "events.local")}
    assert machine.read("a/cgroup.controllers").split()[-1] == "misc"
    assert machine.read("a/cpu.stat").startswith("usage_usec ")
    machine.write("a/cgroup.max.depth", "3")
    assert (real / "a/cgroup.max.depth").read_text() == "3\n"
    with pytest.raises(OSError, match=r".") as error:
        machine.write("a/cgroup.max.depth", "x")
    assert error.value.errno == errno.EINVAL
    machine.path("a/b").mkdir()
    with pytest.raises(OSError, match=r".") as error:
        machine.path("a").rmdir()
    assert error.value.errno == errno.EBUSY
    machine.path("a/b").rmdir()
    machine.path("a").rmdir()
    assert not (real / "a").exists()


def test_controllers_of_both_are_enabled_by_one_write_or_none(machine: Served, real: Path) -> None:
    machine.path("a").mkdir()
    machine.path("a/b").mkdir()
    with pytest.raises(OSError, match=r".") as error:
        machine.write("a/cgroup.subtree_control", "+misc +nonsense")
    assert error.value.errno == errno.EINVAL
    assert "misc" not in machine.read("a/cgroup.subtree_control")
    others = machine.read("a/cgroup.controllers").split()[:-1]
    machine.write("a/cgroup.subtree_control", " ".join(f"+{name}" for name in [*others, "misc"]))
    assert machine.read("a/cgroup.subtree_control").split() == [*others, "misc"]
    assert (real / "a/cgroup.subtree_control").read_text().split() == others
    assert machine.path("a/b/misc.max").exists()


def test_an_enclave_is_charged_where_the_kernel_has_its_process(machine: Served, real: Path) -> None:
    for name in ("a", "b"):
        machine.path(name).mkdir()
    machine.write("a/misc.max", f"sgx_epc {2 * MIB}")
    script = (
        f"trap 'kill $!; wait $!; exit $?' TERM; {EPCGROUP} stress --heap 4M --seconds 600 > /dev/null & wait"
    )
    with subprocess.Popen(machine.argv("a", "sh", "-c", script)) as process:
        eventually(lambda: int(machine.value("a/misc.events", "sgx_epc.max")) > 50)
        members = (real / "a/cgroup.procs").read_text().split()
        assert len(members) == 2  # the kernel followed the fork
        assert machine.read("a/cgroup.procs").split() == members
        assert machine.value("b/misc.current") == "0"
        machine.write("b/cgroup.procs", members[1])
        assert (real / "b/cgroup.procs").read_text().split() == [members[1]]
        eventually(lambda: int(machine.value("b/misc.current")) > MIB)
        assert int(machine.value("a/misc.current")) <= 2 * MIB
        eventually(lambda: catches_sigterm(int(members[1])))
        process.terminate()
    assert process.returncode == 0
    assert machine.value("b/misc.current") == "0"


def test_the_kernel_freezes_kills_and_tells(machine: Served) -> None:
    machine.path("a").mkdir()
    sleeper = os.posix_spawnp("sleep", ["sleep", "600"], os.environ)
    try:
        machine.write("a/cgroup.procs", str(sleeper))
        fd = os.open(machine.path("a/cgroup.events"), os.O_RDONLY)
        poll = select.poll()
        poll.register(fd, select.POLLPRI)
        eventually(lambda: os.pread(fd, 99, 0) == b"populated 1\nfrozen 0\n" and not poll.poll(0))
        machine.write("a/cgroup.freeze", "1")
        assert poll.poll(60_000)
        eventually(lambda: os.pread(fd, 99, 0) == b"populated 1\nfrozen 1\n")
        os.close(fd)
        machine.write("a/cgroup.kill", "1")
        assert os.waitpid(sleeper, 0)[1] == signal.SIGKILL
        eventually(lambda: "populated 0" in machine.read("a/cgroup.events"))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(sleeper, signal.SIGKILL)


def test_what_comes_and_goes_in_the_real_tree_comes_and_goes_here(machine: Served, real: Path) -> None:
    (real / "new").mkdir()
    assert machine.value("new/misc.max") == "max"
    machine.write("new/misc.max", "sgx_epc 4096")
    (real / "new").rmdir()
    eventually(lambda: not machine.path("new").exists())
    (real / "new").mkdir()
    eventually(lambda: machine.path("new").exists())
    assert machine.value("new/misc.max") == "max"  # it is another one
    (real / "new").rmdir()


def test_a_restart_after_kill_9_finds_the_tree_and_its_end_removes_it(cgroup2: Path, tmp_path: Path) -> None:
    real = cgroup2 / f"epcgroup-mirror-{os.getpid()}-9"
    with served(tmp_path, "--mirror", str(real)) as first:
        first.path("a").mkdir()
        first.path("a/b").mkdir()
        first.write("a/misc.max", "sgx_epc 8192")
        (real / "theirs").mkdir()
        eventually(lambda: first.saved("8192"))
        first.stop(signal.SIGKILL)
    assert (real / "a/b").is_dir()
    with served(tmp_path, "--mirror", str(real)) as second:
        assert second.value("a/misc.max") == "8192"
        assert second.stop()[0] == 0
    assert sorted(path.name for path in real.iterdir() if path.is_dir()) == ["theirs"]
    remove(real)


def test_the_tree_may_be_mounted_over_the_one_that_it_mirrors(cgroup2: Path, tmp_path: Path) -> None:
    real = cgroup2 / f"epcgroup-mirror-{os.getpid()}-over"
    with served(tmp_path, "--mirror", str(real), "--mount", str(cgroup2)) as server:
        try:
            assert (cgroup2 / "misc.capacity").exists()
            (cgroup2 / "a").mkdir()
            assert "populated 0" in (cgroup2 / "a/cgroup.events").read_text()
            assert server.stop()[0] == 0
        finally:
            if (cgroup2 / "misc.capacity").exists():
                unmount(cgroup2)
    assert not (cgroup2 / "misc.capacity").exists()
    assert not real.exists()


def test_only_a_cgroup2_can_be_mirrored(tmp_path: Path) -> None:
    words = [EPCGROUP, "serve", "--dir", str(tmp_path), "--mirror", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode != 0
    assert "no directory of a cgroup2" in done.stderr
