"""Who may do what to a served tree, and what its names may do to a terminal: nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.e2e.processes import opened
from tests.e2e.served import EPCGROUP, NEEDS, Served, eventually, served

pytestmark = pytest.mark.needs(*NEEDS, "root")

USER = 65534


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    directory = tmp_path_factory.mktemp("guard")
    for parent in (directory, *directory.parents):
        if "pytest" in str(parent):  # the directories of a test are their maker's own
            parent.chmod(parent.stat().st_mode | 0o011)
    with served(directory) as server:
        yield server


#: Before every script of the user: it is the user, and can try things.
BEGIN = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
def tried(what, *how):
    try:
        return what(*how)
    except OSError as error:
        return error.strerror
def write(path, text):
    with open(path, 'w') as file:
        return file.write(text) and None
"""


def as_user(script: str, *arguments: object) -> list[str]:
    """Lines that a Python script prints as an ordinary user."""
    words = [sys.executable, "-I", "-c", BEGIN + script, *map(str, arguments)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_who_is_delegated_a_cgroup_rules_below_it_and_nowhere_else(machine: Served) -> None:
    """cgroup v2, "Delegation": the directory and its cgroup.* files are given, its limits are not."""
    top = machine.path("team")
    top.mkdir()
    machine.write("team/misc.max", "sgx_epc 8192")
    machine.write("team/cgroup.subtree_control", "+misc")
    machine.path("other").mkdir()
    for name in ("", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"):
        os.chown(top / name, USER, USER)
    script = """
os.chdir(sys.argv[1])
print(tried(write, 'misc.max', 'sgx_epc max'))
print(tried(os.chmod, 'misc.max', 0o666), tried(os.chown, 'misc.max', 65534, -1), sep=', ')
print(tried(os.rmdir, '.'), tried(os.rename, '../team', '../mine'), tried(os.mkdir, '../new'))
os.mkdir('x'); os.mkdir('y')
print(tried(write, 'x/misc.max', 'sgx_epc 4096'), open('x/misc.max').read().strip())
print(tried(write, 'x/cgroup.procs', str(os.getpid())))
"""
    assert as_user(script, str(top)) == [
        "Permission denied",
        "Operation not permitted, Operation not permitted",
        "Invalid argument Permission denied Permission denied",
        "None sgx_epc 4096",
        "Permission denied",  # it is in the root yet: only the owner of the common ancestor brings it in
    ]
    assert machine.value("team/misc.max") == "8192"
    inside = """
os.chdir(sys.argv[1])
sys.stdin.readline()
me = str(os.getpid())
print(tried(write, 'y/cgroup.procs', me), open('y/cgroup.procs').read().split() == [me])
print(tried(write, '../other/cgroup.procs', me), tried(write, '../cgroup.procs', me))
print(tried(write, 'cgroup.procs', me), flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-I", "-c", BEGIN + inside, str(top)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        machine.write("team/x/cgroup.procs", str(process.pid))
        output, _ = process.communicate("go\n", timeout=60)
    assert output.splitlines() == [
        "None True",
        "Permission denied Permission denied",
        "Device or resource busy",  # team passes misc on
    ]
    eventually(lambda: machine.read("team/y/cgroup.procs") == "")


def test_the_control_socket_lets_nobody_else_in(machine: Served) -> None:
    script = """
print(tried(socket.socket(socket.AF_UNIX).connect, sys.argv[1]))
print(tried(open, sys.argv[2], 'rb'), tried(os.unlink, sys.argv[1]), sep=', ')
"""
    machine.path("saved").mkdir()
    state = machine.directory / "state"
    eventually(lambda: "/saved" in state.read_text())
    said = as_user(script, machine.directory / "control", state)
    assert said == ["Permission denied", "Permission denied, Permission denied"]


def test_the_server_listens_on_no_network(machine: Served) -> None:
    sockets = set()
    for link in Path(f"/proc/{machine.process.pid}/fd").iterdir():
        target = str(link.readlink())
        if target.startswith("socket:"):
            sockets.add(target.removeprefix("socket:[").rstrip("]"))
    assert sockets  # the control socket is one
    for protocol in ("tcp", "tcp6", "udp", "udp6", "raw"):
        table = Path(f"/proc/net/{protocol}")
        lines = table.read_text().splitlines()[1:] if table.exists() else []
        assert not sockets & {line.split()[9] for line in lines}, protocol


def test_a_server_that_is_stopped_makes_nobody_wait(machine: Served) -> None:
    """It is no dead one, whose mount may be taken away; commands look for another tree."""
    machine.process.send_signal(signal.SIGSTOP)
    try:
        time.sleep(1.2)  # until the kernel has forgotten what it knew
        script = "import sys; from epcgroup.host import discover, mounts; point = sys.argv[1]\n"
        script += "print(mounts.is_dead(point), discover.trees([mounts.Mount(point, mounts.TYPE)]))"
        words = [sys.executable, "-c", script, str(machine.mount)]
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
        assert done.stdout == "False []\n"
    finally:
        machine.process.send_signal(signal.SIGCONT)
    assert machine.read("cgroup.controllers") == "misc\n"


def test_a_name_is_bytes_and_no_terminal_obeys_it(machine: Served) -> None:
    name = b"\x1b]0;owned\x07\x1b[2J\xff\xe2\x80\xae"
    path = os.fsencode(machine.mount) + b"/" + name
    os.mkdir(path)  # noqa: PTH102
    try:
        assert name in os.listdir(os.fsencode(machine.mount))  # noqa: PTH208
        with open(path + b"/misc.max", "wb", buffering=0) as file:  # noqa: PTH123
            file.write(b"sgx_epc 8192")
        group = os.fsdecode(name)
        for words in (["tree"], ["get", group], ["set", group, "4096"], ["top", "--once"]):
            command = [EPCGROUP, *words]
            command += (
                ["--dir", str(machine.directory)] if words[0] == "top" else ["--root", str(machine.mount)]
            )
            done = subprocess.run(command, capture_output=True, timeout=60, check=False)
            assert done.returncode == 0, (words, done.stderr)
            expect_printable(done.stdout + done.stderr)
        told = subprocess.run(
            [EPCGROUP, "tree", "--json", "--root", machine.mount], capture_output=True, check=True, timeout=60
        )
        assert any(view["path"] == f"/{group}" for view in json.loads(told.stdout)["cgroups"])
        words = [EPCGROUP, "events", "--root", str(machine.mount), group]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as follower:
            eventually(lambda: any(group in target for target in opened(follower.pid)))
            os.rmdir(path)  # noqa: PTH106
            output, _ = follower.communicate(timeout=60)
        assert output.endswith(b"  removed\n")
        expect_printable(output)
    finally:
        with suppress(FileNotFoundError):
            os.rmdir(path)  # noqa: PTH106


def expect_printable(output: bytes) -> None:
    assert not set(b"\x1b\x07\xff") & set(output), output
    assert b"\xe2\x80\xae" not in output, output  # right-to-left override
