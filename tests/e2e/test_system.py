"""`epcgroup serve --system`: whoever opens an SGX device joins the machine, with no wrapper.

The server has a /dev of its own here (a mount namespace), so that no other test sees the placeholders;
the programs are started in that namespace natively.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from tests.e2e.late import late
from tests.e2e.machine import EPCGROUP, NEEDS, programs
from tests.e2e.served import Served, eventually, unmount

pytestmark = [pytest.mark.needs(*NEEDS, "fuse", "root"), pytest.mark.timeout(240)]
both_ways = pytest.mark.usefixtures("enclu")

NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
BOUND = "look cpuid 1 open 0 stat 0 broken 0"
# A /dev with what everybody needs, below the directory in $1; then the rest of the arguments.
OWN_DEV = """
mkdir -p "$1/dev" && mount -t tmpfs -o mode=755 none "$1/dev" &&
cp -a /dev/null /dev/zero /dev/urandom /dev/random /dev/tty /dev/fuse "$1/dev/" && mkdir "$1/dev/shm" &&
mount --bind "$1/dev" /dev && shift && exec "$@"
"""


class System(Served):
    """A server for a whole system, which is a mount namespace here."""

    def inside(self, *command: str | Path) -> list[str]:
        """A command in that system, native."""
        return ["nsenter", f"--mount=/proc/{self.process.pid}/ns/mnt", *map(str, command)]

    def run(self, *command: str | Path) -> str:
        """What a native command there prints, with its errors."""
        done = subprocess.run(
            self.inside(*command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=90, check=False,
        )  # fmt: skip
        return done.stdout


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path: the control socket lies in it."""
    with tempfile.TemporaryDirectory(prefix="epcgroup-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@contextmanager
def namespace(directory: Path) -> Iterator[list[str]]:
    """The prefix that starts a command in a mount namespace with a /dev of its own, which lasts."""
    words = ["unshare", "--mount", "sh", "-c", OWN_DEV, "sh", str(directory), "sleep", "1000"]
    keeper = subprocess.Popen(words)
    try:
        mounts = Path(f"/proc/{keeper.pid}/mounts")
        eventually(lambda: f"none {directory}/dev" in mounts.read_text() and " /dev " in mounts.read_text())
        eventually(lambda: b"sleep" in Path(f"/proc/{keeper.pid}/cmdline").read_bytes()[:5])
        yield ["nsenter", f"--mount=/proc/{keeper.pid}/ns/mnt"]
    finally:
        keeper.kill()
        keeper.wait()


@contextmanager
def system(prefix: list[str], directory: Path, *options: str) -> Iterator[System]:
    """A server in such a namespace, when it serves."""
    words = [*prefix, EPCGROUP, "serve", "--dir", str(directory / "s"), "--epc", "64 pages", "--system"]
    process = subprocess.Popen(
        [*words, *options], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    mount = directory / "s" / "cgroup"
    try:
        assert process.stderr is not None
        said = [process.stderr.readline()]
        while "serving" not in said[-1]:
            assert said[-1], f"the server ended: {said}"
            said.append(process.stderr.readline())
        yield System(process, directory / "s", Path(f"/proc/{process.pid}/root{mount}"))
    finally:
        process.kill()
        process.wait()
        with suppress(ValueError):
            process.communicate()
        subprocess.run([*prefix, "fusermount3", "-uz", str(mount)], stderr=subprocess.DEVNULL, check=False)
        unmount(mount)


@contextmanager
def serving(directory: Path, *options: str) -> Iterator[System]:
    """Both."""
    with namespace(directory) as prefix, system(prefix, directory, *options) as server:
        yield server


@both_ways
@pytest.mark.parametrize(
    "wrap",
    [(), NOBODY, ("unshare", "--mount", "--pid", "--fork", "--mount-proc", "--net", "--ipc")],
    ids=["root", "nobody", "container"],
)
def test_whoever_opens_the_device_has_sgx(directory: Path, wrap: tuple[str, ...]) -> None:
    """Dynamic and static programs, of other users, in other namespaces: none of them knows of us."""
    with serving(directory) as server:
        for program in ("basics", "basics-static", "basics-fixed"):
            output = server.run(*wrap, programs() / program, "enter_vdso", "heap", "threads")
            assert output.splitlines() == ["ok enter_vdso", "ok heap", "ok threads"]
        output = server.run(*wrap, programs() / "processes")
        cases = {
            "fork_shares",
            "child_outlives_parent",
            "exec_with_an_enclave",
            "close_while_mapped",
            "dup_and_many",
            "first_thread_ends",
        }
        assert set(output.split()) == {"ok", *cases}


def test_a_container_with_a_dev_of_its_own_needs_the_file_bound_into_it(directory: Path) -> None:
    """As `podman run -v /dev/sgx_enclave:/dev/sgx_enclave` does."""
    script = """
    mkdir -p "$1/c" && mount -t tmpfs none "$1/c" && cp -a /dev/null /dev/zero /dev/urandom "$1/c" &&
    touch "$1/c/sgx_enclave" && mount --bind /dev/sgx_enclave "$1/c/sgx_enclave" &&
    mount --rbind "$1/c" /dev && exec "$2" enter_vdso heap
    """
    with serving(directory) as server:
        container = ("unshare", "--mount", "--pid", "--fork", "--mount-proc", "sh", "-c", script, "sh")
        output = server.run(*container, directory, programs() / "basics")
        assert output.splitlines() == ["ok enter_vdso", "ok heap"]


@both_ways
def test_a_process_is_charged_to_the_cgroup_it_was_put_into(directory: Path) -> None:
    """By others, through cgroup.procs; its children too, which nobody saw born."""
    with serving(directory) as server:
        for name in ("web", "batch"):
            server.path(name).mkdir()
        with late(*server.inside()) as program:
            server.write("web/cgroup.procs", str(program.pid))
            assert program.ask("cpuid") == "cpuid 0", "the processor's own: it has opened nothing yet"
            assert program.ask("look") == BOUND
            assert program.ask("own 100") == "own 100"
            assert program.ask("check") == "check 0 0"
            assert int(server.value("web/misc.current")) >= 32 * 4096
            assert server.value("misc.current") == server.value("web/misc.current")
            assert program.ask("drop") == "drop"
            server.write("batch/cgroup.procs", str(program.pid))
            assert (program.ask("thread"), program.hear()) == ("own 50", "check 0 0")
            assert int(server.value("batch/misc.current")) >= 32 * 4096
        eventually(lambda: server.value("misc.current") == "0")
        shell = f"read x; {programs()}/late < /dev/null; {programs()}/basics heap; read y"
        with subprocess.Popen(
            server.inside("sh", "-c", shell), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdin is not None
            server.write("web/cgroup.procs", str(process.pid))
            before = int(server.value("web/misc.events", "sgx_epc.max"))
            output, _ = process.communicate("\n\n", timeout=60)
            assert "ok heap" in output
            assert int(server.value("web/misc.peak")) >= 32 * 4096
            assert before <= int(server.value("web/misc.events", "sgx_epc.max"))


def test_a_tree_that_mirrors_the_kernels_needs_no_cgroup_procs(directory: Path) -> None:
    """The cgroup of the same path pays."""
    hierarchies = [
        line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if " cgroup2 " in line
    ]
    name = f"epcgroup-test-{os.getpid()}"
    kernels = Path(hierarchies[0], name)
    kernels.mkdir()
    try:
        with serving(directory) as server:
            server.path(name).mkdir()
            with late(*server.inside()) as program:
                (kernels / "cgroup.procs").write_text(str(program.pid))
                assert program.ask("own 30") == "own 30"
                assert int(server.value(f"{name}/misc.current")) >= 30 * 4096
    finally:
        eventually(lambda: not (kernels / "cgroup.procs").read_text())
        kernels.rmdir()


def test_a_tree_over_a_real_cgroup2_charges_where_a_process_is(directory: Path) -> None:
    """With --mirror the kernel says where; a process from outside is charged to the root and not moved."""
    lines = Path("/proc/mounts").read_text().splitlines()
    kernels = Path(
        next(line.split()[1] for line in lines if " cgroup2 " in line), f"epcgroup-test-{os.getpid()}"
    )
    kernels.mkdir()
    (kernels / "web").mkdir()
    try:
        with serving(directory, "--mirror", str(kernels)) as server:
            with late(*server.inside()) as program, late(*server.inside()) as stranger:
                before = Path(f"/proc/{stranger.pid}/cgroup").read_text()
                (kernels / "web" / "cgroup.procs").write_text(str(program.pid))
                assert program.ask("own 20") == "own 20"
                assert int(server.value("web/misc.current")) >= 20 * 4096
                assert stranger.ask("own 20") == "own 20"
                assert int(server.value("misc.current")) >= int(server.value("web/misc.current")) + 20 * 4096
                assert Path(f"/proc/{stranger.pid}/cgroup").read_text() == before
            server.stop()
    finally:
        eventually(lambda: not (kernels / "web" / "cgroup.procs").read_text())
        for place in (kernels / "web", kernels):
            place.rmdir()


@both_ways
def test_threads_that_open_at_the_same_time_all_get_a_device(directory: Path) -> None:
    """Eight threads of one process; one of them binds it, all of them own an enclave."""
    with serving(directory) as server:
        output = server.run(programs() / "many", "together", "8")
        assert output.splitlines()[-1] == "together 8 0"


def test_an_opener_never_hangs_when_the_server_dies(directory: Path) -> None:
    """The kernel answers for it: the open succeeds and gives the placeholder, no device."""
    with serving(directory) as server, late(*server.inside()) as program:
        server.process.send_signal(signal.SIGSTOP)
        program.tell("look")
        time.sleep(0.5)
        assert program.status("State")[0] in "DS"
        server.process.kill()
        assert program.hear() == "look cpuid 0 open 0 stat 1 broken 0"
        assert program.status("Seccomp") == "0"


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=lambda end: end.name)
def test_no_device_is_left_after_any_end(directory: Path, end: int) -> None:
    """SIGTERM takes the placeholders away; after a kill -9 `doctor --fix` and the next start do."""
    with namespace(directory) as prefix:
        devices = [f"/dev/sgx_{name}" for name in ("enclave", "provision", "vepc")]

        def there() -> str:
            return subprocess.run([*prefix, "ls", "/dev"], capture_output=True, text=True, check=True).stdout

        for mend in ("doctor", "start"):
            with system(prefix, directory) as server:
                assert there().count("sgx_") == 3
                server.process.send_signal(end)
                server.process.wait(60)
            assert there().count("sgx_") == (3 if end == signal.SIGKILL else 0)
            if mend == "doctor":
                doctor = [*prefix, EPCGROUP, "doctor"]
                seen = subprocess.run(doctor, capture_output=True, text=True, timeout=60, check=False).stdout
                assert all(
                    (f"{device}: a placeholder" in seen) == (end == signal.SIGKILL) for device in devices
                )
                done = subprocess.run(
                    [*doctor, "--fix"], capture_output=True, text=True, timeout=60, check=False
                )
                assert done.stdout.count("removed /dev/sgx_") == (3 if end == signal.SIGKILL else 0)
            else:
                with system(prefix, directory) as server:
                    server.stop()
            assert "sgx_" not in there()


def test_real_devices_and_other_servers_are_left_alone(directory: Path) -> None:
    """It refuses, and says what is in the way."""
    with namespace(directory) as prefix:

        def refusal(place: str) -> str:
            words = [*prefix, EPCGROUP, "serve", "--dir", str(directory / place), "--epc", "1M", "--system"]
            words += ["--metrics", "0"]  # what has not begun yet holds up nothing
            done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 1, done.stderr
            return done.stderr

        with system(prefix, directory) as server:
            assert "another `epcgroup serve --system` has the devices" in refusal("other")
            assert "ok heap" in server.run(programs() / "basics", "heap")
            server.stop()
        subprocess.run([*prefix, "mknod", "/dev/sgx_provision", "c", "10", "126"], check=True)
        assert "/dev/sgx_provision is there already: this system has SGX" in refusal("other")
        listed = subprocess.run([*prefix, "ls", "/dev"], capture_output=True, text=True, check=True).stdout
        assert "sgx_provision" in listed
        assert "sgx_enclave" not in listed


@pytest.mark.needs("strace")
def test_a_process_with_another_tracer_is_refused_and_told(directory: Path) -> None:
    """One tracer a process: its open fails with EPERM, and the server says who has it."""
    with serving(directory) as server:
        output = server.run("strace", "-f", "-o", "/dev/null", programs() / "basics", "enter_vdso")
        assert "Operation not permitted" in output
        _, errors = server.stop()
        assert "is traced by process" in errors
        assert "(strace) already" in errors
