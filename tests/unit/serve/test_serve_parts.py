"""The server's parts, each alone: messages, places, announcements, outsiders."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
import subprocess
import threading
import time
from pathlib import Path

import pytest
from tests.unit.cgroupfs.fakes import make

from epcgroup.cgroupfs.announce import Announcer
from epcgroup.cli.serve import parse_resource
from epcgroup.errors import BadInput, Refused
from epcgroup.serve import client, places, wire
from epcgroup.serve.places import Places
from epcgroup.serve.processes import Outsiders, SystemProcesses

# -- messages ----------------------------------------------------------------


def test_a_message_arrives_with_its_descriptors_and_any_bytes() -> None:
    left, right = socket.socketpair()
    reading, writing = os.pipe()
    with left, right:
        wire.send(left, {"argv": ["caf\udce9", "€"]}, [writing])
        received = wire.receive(right)
        assert received is not None
        message, fds = received
        assert message == {"argv": ["caf\udce9", "€"]}
        assert not os.get_inheritable(fds[0])
        os.write(fds[0], b"x")
        assert os.read(reading, 1) == b"x"
        for fd in (reading, writing, *fds):
            os.close(fd)


def test_the_end_of_a_connection_is_no_message() -> None:
    left, right = socket.socketpair()
    left.close()
    with right:
        assert wire.receive(right) is None


@pytest.mark.parametrize(
    "sent", [struct.pack("!I", 1 << 30), struct.pack("!I", 9) + b"{", struct.pack("!I", 2) + b"[]"]
)
def test_what_is_no_message_is_refused(sent: bytes) -> None:
    left, right = socket.socketpair()
    with right:
        left.sendall(sent)
        left.close()
        with pytest.raises(BadInput):
            wire.receive(right)


# -- places --------------------------------------------------------------------


def test_one_directory_has_one_server(tmp_path: Path) -> None:
    at = Places(tmp_path / "run")
    fd = places.take(at)
    with pytest.raises(Refused, match=rf"pid {os.getpid()}\) already runs in") as error:
        places.take(at)
    assert error.value.errno == errno.EBUSY
    os.close(fd)
    os.close(places.take(at))


def test_a_directory_that_was_there_keeps_its_rights_and_is_nobody_elses(tmp_path: Path) -> None:
    """`--dir /tmp` must not close /tmp to everyone; where others may write, they could replace the socket."""
    at = Places(tmp_path / "run")
    at.directory.mkdir()
    for mode in (0o755, 0o1777):
        at.directory.chmod(mode)
        os.close(places.take(at))
        assert stat.S_IMODE(at.directory.stat().st_mode) == mode
    at.directory.chmod(0o777)
    with pytest.raises(BadInput, match="run may be written by others; chmod go-w"):
        places.take(at)


def test_where_no_server_answers_the_client_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="epcgroup serve --epc"):
        client.connect(Places(tmp_path))


@pytest.mark.parametrize("spec", ["sev", "sev=", "sev=x", "=5", "sev=0", "s ev=1", "sgx_epc=1", "sev=-1"])
def test_a_resource_that_makes_no_sense_is_refused(spec: str) -> None:
    with pytest.raises(BadInput, match=r"NAME=CAPACITY"):
        parse_resource(spec)


# -- announcements -------------------------------------------------------------


def test_a_storm_of_changes_is_announced_at_intervals_and_the_last_is_not_lost() -> None:
    woken: list[float] = []
    last = threading.Event()
    storm_over = 0.0

    def wake(path: str, file: str) -> None:
        assert (path, file) == ("/a", "misc.events")
        woken.append(time.monotonic())
        if storm_over:
            last.set()

    announcer = Announcer(wake, None)
    announcer.start()
    started = time.monotonic()
    while len(woken) < 2 or time.monotonic() < started + 0.1:
        announcer.changed("/a", "misc.events")
    storm_over = time.monotonic()
    announcer.changed("/a", "misc.events")
    assert last.wait(60)
    announcer.end()
    assert not announcer.is_alive()
    assert 2 <= len(woken) <= (woken[-1] - started) / 0.01 + 2


# -- processes -----------------------------------------------------------------


def test_the_end_of_a_process_that_is_not_traced_is_noticed() -> None:
    lock = threading.Lock()
    tree = make()
    outsiders = Outsiders(lock)
    outsiders.tree = tree
    outsiders.start()
    with subprocess.Popen(["sleep", "600"]) as process:
        with lock:
            tree.forked(1, process.pid)
            outsiders.watch(process.pid)
        assert tree.root.populated == 1
        process.kill()
    end = time.monotonic() + 60
    while tree.root.populated and time.monotonic() < end:
        time.sleep(0.01)
    outsiders.end()
    assert tree.root.populated == 0


def test_a_thread_belongs_to_its_process_and_a_number_may_be_nobody() -> None:
    processes = SystemProcesses({})
    assert processes.leader(threading.get_native_id()) == os.getpid()
    assert processes.leader(2**22 + 1) is None
    assert threading.get_native_id() in processes.threads(os.getpid())
    processes.kill(2**22 + 1)  # nobody: no error
