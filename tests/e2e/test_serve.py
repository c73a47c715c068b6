"""`epcgroup serve` and `exec`: a real mount, real programs, real enclaves."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.served import EPCGROUP, NEEDS, Served, eventually, served, stressed

pytestmark = pytest.mark.needs(*NEEDS)

MIB = 1 << 20


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("serve"), "--resource", "sev=99", "--resource", "tdx=15") as server:
        yield server


@pytest.fixture
def group(machine: Served, request: pytest.FixtureRequest) -> Iterator[str]:
    """A cgroup for one test."""
    name = re.sub(r"\W", "_", request.node.name)[:60]
    machine.path(name).mkdir()
    yield name
    with open(machine.path(name) / "cgroup.kill", "w") as kill:  # noqa: PTH123
        kill.write("1")
    eventually(lambda: "populated 0" in machine.read(f"{name}/cgroup.events"))
    for path, _, _ in os.walk(machine.path(name), topdown=False):
        Path(path).rmdir()


# -- the files ---------------------------------------------------------------


def test_the_capacity_names_every_resource_of_the_command_line(machine: Served) -> None:
    assert machine.read("misc.capacity") == f"sev 99\nsgx_epc {16 * MIB}\ntdx 15\n"


def test_the_shell_sets_a_limit_and_reads_it_back(machine: Served, group: str) -> None:
    script = 'echo "sgx_epc 8388608" > misc.max; cat misc.max'
    done = subprocess.run(
        ["sh", "-c", script], cwd=machine.path(group), capture_output=True, text=True, check=True
    )
    assert done.stdout == "sev max\nsgx_epc 8388608\ntdx max\n"


def test_a_refused_write_carries_the_kernels_errno(machine: Served, group: str) -> None:
    for text, number in (("sgx_epc 4k", errno.EINVAL), ("sgx_epc 99999999999999999999", errno.ERANGE)):
        with pytest.raises(OSError, match=r".") as error:
            machine.write(f"{group}/misc.max", text)
        assert error.value.errno == number


def test_nobody_makes_or_removes_files(machine: Served, group: str) -> None:
    with pytest.raises(PermissionError):
        (machine.path(group) / "new").write_text("")
    with pytest.raises(PermissionError):
        (machine.path(group) / "misc.max").unlink()
    with pytest.raises(PermissionError):
        machine.path(group).rename(machine.path("other"))


def test_files_have_the_modes_of_the_kernel(machine: Served, group: str) -> None:
    for name, mode in (("misc.max", 0o644), ("misc.current", 0o444), ("cgroup.kill", 0o200)):
        assert stat.S_IMODE((machine.path(group) / name).stat().st_mode) == mode


def test_a_reader_by_sendfile_sees_the_text(machine: Served, group: str, tmp_path: Path) -> None:
    """Some `cat`s copy by sendfile(2), which stops at the reported size."""
    with (machine.path(group) / "misc.max").open("rb") as source, (tmp_path / "copy").open("wb") as target:
        while os.sendfile(target.fileno(), source.fileno(), None, 4096):
            pass
    assert (tmp_path / "copy").read_text() == machine.read(f"{group}/misc.max")


@pytest.mark.needs("root")
def test_an_ordinary_user_reads_but_does_not_raise_its_limit(machine: Served, group: str) -> None:
    os.chown(machine.path(group), 65534, 65534)
    script = (
        "import os, sys\nos.setgid(65534); os.setuid(65534)\nos.chdir(sys.argv[1])\nos.mkdir('mine')\n"
        "print(open('misc.max').read(), end='')\n"
        "for name in ('misc.max', 'misc.current'):\n"
        "    try: open(name, 'w'); print('opened', name)\n"
        "    except PermissionError: print('refused', name)\n"
    )
    for parent in machine.mount.parents:  # the directories of a test are their maker's own
        if parent.stat().st_uid == os.geteuid() and "pytest" in str(parent):
            parent.chmod(parent.stat().st_mode | 0o011)
    words = [sys.executable, "-I", "-c", script, str(machine.path(group))]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    refused = "refused misc.max\nrefused misc.current\n"
    assert done.stdout == f"sev max\nsgx_epc max\ntdx max\n{refused}", done.stderr
    assert (machine.path(group) / "mine").stat().st_uid == 65534


# -- programs ----------------------------------------------------------------


def test_a_command_runs_with_our_stdio_directory_environment_and_status(
    machine: Served, group: str, tmp_path: Path
) -> None:
    script = "cat; pwd; echo $WORD; echo oops >&2; exit 7"
    done = machine.exec(
        group, "sh", "-c", script, input="hello\n", stdin=None, cwd=tmp_path, env={**os.environ, "WORD": "w"}
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, f"hello\n{tmp_path}\nw\n", "oops\n")


def test_a_command_that_a_signal_ended_ends_exec_the_same_way(machine: Served, group: str) -> None:
    assert machine.exec(group, "sh", "-c", "kill -TERM $$").returncode == -signal.SIGTERM


def test_what_exec_was_started_to_ignore_its_command_ignores(machine: Served, group: str) -> None:
    argv = machine.argv(group, "sh", "-c", "kill -HUP $$; echo alive")
    done = subprocess.run(["nohup", *argv], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


def test_a_signal_to_exec_reaches_the_command(machine: Served, group: str) -> None:
    script = "trap 'echo got it; exit 3' TERM; echo ready; while :; do sleep 0.05; done"
    command = machine.argv(group, "sh", "-c", script)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.stdout.readline() == "got it\n"
    assert process.returncode == 3


def test_a_command_whose_client_is_killed_is_hung_up(machine: Served, group: str) -> None:
    with subprocess.Popen(machine.argv(group, "sleep", "600")) as process:
        eventually(lambda: machine.read(f"{group}/cgroup.procs"))
        process.kill()
    eventually(lambda: machine.read(f"{group}/cgroup.procs") == "")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("-g", "nowhere", "--", "true"), "no cgroup '/nowhere'"),
        (("--", "no-such-program"), "no-such-program: no such program"),
    ],
)
def test_what_cannot_be_started_is_said(machine: Served, words: tuple[str, ...], why: str) -> None:
    command = [EPCGROUP, "exec", "--dir", str(machine.directory), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert why in done.stderr


def test_forks_and_threads_are_listed_and_gone_at_the_end(machine: Served, group: str) -> None:
    script = "sleep 600 & sleep 600 & echo $$; wait"
    command = machine.argv(group, "sh", "-c", script)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = process.stdout.readline()
        eventually(lambda: len(machine.read(f"{group}/cgroup.procs").split()) == 3)
        assert pid in machine.read(f"{group}/cgroup.procs")
        with pytest.raises(OSError, match=r".") as error:
            machine.path(group).rmdir()
        assert error.value.errno == errno.EBUSY
        machine.write(f"{group}/cgroup.kill", "1")
    assert process.returncode == -signal.SIGKILL
    eventually(lambda: machine.read(f"{group}/cgroup.events") == "populated 0\nfrozen 0\n")


def test_freezing_stops_a_program_and_thawing_lets_it_go_on(machine: Served, group: str) -> None:
    script = "trap 'exit 3' TERM; while :; do echo on; sleep 0.02; done"
    with subprocess.Popen(machine.argv(group, "sh", "-c", script), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        eventually(process.stdout.read)
        machine.write(f"{group}/cgroup.freeze", "1")
        assert machine.read(f"{group}/cgroup.events") == "populated 1\nfrozen 1\n"
        process.stdout.read()
        time.sleep(0.3)
        assert process.stdout.read() is None
        machine.write(f"{group}/cgroup.freeze", "0")
        eventually(process.stdout.read)
        process.terminate()
        assert process.wait(60) == 3


# -- enclaves ----------------------------------------------------------------


def test_an_enclave_holds_its_limit_and_the_files_say_so(machine: Served, group: str) -> None:
    limit = 2 * MIB
    machine.write(f"{group}/misc.max", f"sgx_epc {limit}")
    seen: list[int] = []

    def look() -> bool:
        """Often, and often when it is full."""
        seen.append(int(machine.value(f"{group}/misc.current")))
        return sum(pages > limit * 3 // 4 for pages in seen) >= 30

    with stressed(machine, group, "--heap", "6M"):
        eventually(look)
    assert max(seen) <= limit
    assert int(machine.value(f"{group}/misc.events", "sgx_epc.max")) > 0
    assert machine.value(f"{group}/misc.current") == "0"
    assert int(machine.value(f"{group}/misc.peak")) <= limit


def test_a_moved_process_is_charged_elsewhere_and_leaves_its_pages(machine: Served, group: str) -> None:
    """Spec 8.3: charges stay; faults from now on are the new group's."""
    machine.write(f"{group}/cgroup.subtree_control", "+misc")
    for name in ("a", "b"):
        machine.path(f"{group}/{name}").mkdir()
    machine.write(f"{group}/a/misc.max", f"sgx_epc {2 * MIB}")
    with stressed(machine, f"{group}/a", "--heap", "6M"):
        eventually(lambda: int(machine.value(f"{group}/a/misc.events", "sgx_epc.max")) > 50)
        assert machine.value(f"{group}/b/misc.current") == "0"
        pid = machine.read(f"{group}/a/cgroup.procs").split()[0]
        machine.write(f"{group}/b/cgroup.procs", pid)
        eventually(lambda: int(machine.value(f"{group}/b/misc.current")) > MIB)
        left = int(machine.value(f"{group}/a/misc.current"))
        both = int(machine.value(f"{group}/misc.current"))
        assert 0 < left <= 2 * MIB
        assert both > left
    assert machine.value(f"{group}/misc.current") == "0"


# -- waiting -----------------------------------------------------------------


def test_poll_wakes_when_the_limit_was_hit_and_reading_rearms_it(machine: Served, group: str) -> None:
    machine.write(f"{group}/misc.max", f"sgx_epc {MIB}")
    fd = os.open(machine.path(group) / "misc.events", os.O_RDONLY)
    try:
        poll = select.poll()
        poll.register(fd, select.POLLPRI)
        assert poll.poll(0) == [(fd, select.POLLERR | select.POLLPRI)]  # never read: as the kernel does
        os.pread(fd, 4096, 0)
        assert poll.poll(100) == []
        with stressed(machine, group, "--heap", "3M"):
            assert poll.poll(60_000) == [(fd, select.POLLERR | select.POLLPRI)]
        eventually(lambda: os.pread(fd, 4096, 0) and poll.poll(100) == [])
    finally:
        os.close(fd)


@pytest.mark.needs("inotifywait", "root")
def test_inotify_wakes_at_events_at_most_a_hundred_times_a_second(machine: Served, group: str) -> None:
    machine.write(f"{group}/misc.max", f"sgx_epc {MIB}")
    watch = ["inotifywait", "-m", "-e", "modify", str(machine.path(group) / "misc.events")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(watch, text=True, **pipes) as watcher:  # type: ignore[call-overload]
        while "Watches established" not in watcher.stderr.readline():
            assert watcher.poll() is None
        started = time.monotonic()
        with stressed(machine, group, "--heap", "3M"):
            lines = [watcher.stdout.readline() for _ in range(30)]
        watcher.terminate()
        lines += watcher.communicate()[0].splitlines()
        seconds = time.monotonic() - started
    assert all("MODIFY" in line for line in lines)
    assert len(lines) <= 100 * seconds + 2


# -- the life of a server ----------------------------------------------------


def test_a_second_server_refuses_and_the_first_goes_on(machine: Served) -> None:
    for options in (("--dir", str(machine.directory)), ("--dir", f"{machine.directory}2")):
        words = [EPCGROUP, "serve", *options, "--mount", str(machine.mount)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1
        assert re.search(r"already runs in|is served already", done.stderr), done.stderr
    assert machine.read("cgroup.controllers") == "misc\n"


def test_tree_and_limits_survive_a_restart(tmp_path: Path) -> None:
    with served(tmp_path) as first:
        first.path("pods").mkdir()
        first.write("pods/misc.max", "sgx_epc 4194304")
        first.write("pods/cgroup.subtree_control", "+misc")
        first.path("pods/a").mkdir()
        status, _ = first.stop()
        assert status == 0
        assert not first.mount.exists()
    with served(tmp_path) as second:
        assert second.value("pods/misc.max") == "4194304"
        assert second.value("pods/a/misc.max") == "max"


def test_after_kill_9_programs_are_dead_and_a_restart_puts_all_right(tmp_path: Path) -> None:
    """Also where it is named by a link, as /var/run is one: mount tables have the true name."""
    (tmp_path / "true").mkdir()
    (link := tmp_path / "link").symlink_to("true")
    with served(link) as first:
        first.path("pods").mkdir()
        with subprocess.Popen(first.argv("pods", "sleep", "600"), stderr=subprocess.DEVNULL) as client:
            eventually(lambda: first.read("pods/cgroup.procs"))
            pid = int(first.read("pods/cgroup.procs"))
            eventually(lambda: first.saved("pods"))
            first.stop(signal.SIGKILL)
            eventually(lambda: not Path(f"/proc/{pid}").exists())
            assert client.wait(60) == 1
        with pytest.raises(OSError, match=r".") as error:
            first.read("cgroup.procs")
        assert error.value.errno == errno.ENOTCONN
        with served(link) as second:
            assert second.read("pods/cgroup.procs") == ""
            assert second.exec("pods", "true").returncode == 0
            assert second.stop()[0] == 0
    assert not (link / "cgroup").exists()


@pytest.mark.needs("root", "inotifywait")
def test_no_thread_of_the_server_waits_for_its_own_files(tmp_path: Path) -> None:
    """It would wait for ever if the server were killed meanwhile, and all who look at the mount with it."""
    with served(tmp_path) as server:
        server.path("a").mkdir()
        server.write("a/misc.max", f"sgx_epc {MIB}")
        pid, waits = server.process.pid, set()
        watch = ["inotifywait", "-q", "-m", "-e", "modify", str(server.path("a/misc.events"))]
        with subprocess.Popen(watch, stdout=subprocess.PIPE, text=True) as watcher:
            assert watcher.stdout is not None
            with stressed(server, "a", "--heap", "3M"):
                assert "MODIFY" in watcher.stdout.readline()
                for _ in range(3000):
                    for thread in Path(f"/proc/{pid}/task").iterdir():
                        with contextlib.suppress(OSError):  # it has just ended
                            waits.add((thread / "wchan").read_text())
            watcher.terminate()
            watcher.communicate()
    assert "futex_do_wait" in waits or "futex_wait_queue" in waits  # the kernel says it
    assert "request_wait_answer" not in waits


@pytest.mark.needs("root")
def test_who_unmounts_the_tree_ends_the_server(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        server.path("a").mkdir()
        server.exec("a", "true")  # announces cgroup.events, for which a file is open for a moment
        eventually(
            lambda: (
                subprocess.run(["umount", server.mount], stderr=subprocess.DEVNULL, check=False).returncode
                == 0
            )
        )
        _, errors = server.process.communicate(timeout=60)
        assert server.process.returncode == 1
        assert "the tree was unmounted" in errors
    assert not server.mount.exists()


def test_the_control_socket_is_its_owners_alone(machine: Served) -> None:
    assert stat.S_IMODE((machine.directory / "control").stat().st_mode) == 0o600


def test_without_a_server_exec_says_how_to_start_one(tmp_path: Path) -> None:
    words = [EPCGROUP, "exec", "--dir", str(tmp_path), "--", "true"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "epcgroup serve" in done.stderr
