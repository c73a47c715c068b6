"""Where the supervisor itself runs out of something, a program is told or ended; nothing hangs."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest
from tests.e2e.machine import NEEDS, PAGE, command, programs

from epcgroup.driver.arena import Arena
from epcgroup.live import Supervisor
from epcgroup.live.paging import uffd
from epcgroup.live.paging.express import Express
from epcgroup.live.paging.service import PageService

pytestmark = [pytest.mark.needs(*NEEDS), pytest.mark.timeout(240)]


def limited(limits: str, *program: str | int) -> subprocess.CompletedProcess[str]:
    """The run, under these limits of the shell's; it ends by itself."""
    argv = command(*map(str, program), epc=1000, limit=200, options=("--report", "none"))
    shell = ["bash", "-c", f'ulimit {limits} && exec "$@"', "bash", *argv]
    return subprocess.run(shell, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.usefixtures("enclu")
def test_the_limit_of_files_is_not_one_of_enclaves() -> None:
    """Enclaves lie in memfds, which RLIMIT_FSIZE bounds; the program keeps the limit for its own files."""
    ended = limited("-S -f 100", "load", "once", 300)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert limited("-S -f 100", "bash", "-c", "ulimit -f").stdout == "100\n"


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ("-f 100", "`ulimit -f`"),
        ("-n 10", "Too many open files"),
    ],
)
def test_a_limit_of_ours_is_said_in_words(limits: str, words: str) -> None:
    """Never with a stack trace, never for ever."""
    ended = limited(limits, "load", "once", 20000)
    assert ended.returncode in (4, -signal.SIGKILL), f"{ended.stdout}\n{ended.stderr}"
    assert words in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.usefixtures("enclu")
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOMEM])
@pytest.mark.parametrize("room", [0, 40])
def test_no_room_for_a_page_that_is_added_is_enomem_at_the_ioctl(
    number: int, room: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Pages of memfds are shared memory, of which there may be no more; what was charged is given back."""
    pwrite, filled = os.pwrite, 0

    def failing(fd: int, data: bytes, offset: int) -> int:
        nonlocal filled
        if len(data) == PAGE and "memfd:" in str(Path(f"/proc/self/fd/{fd}").readlink()):
            filled += 1
            if filled > room:
                raise OSError(number, os.strerror(number))
        return pwrite(fd, data, offset)

    log, said = io.StringIO(), tmp_path / "output"
    output = os.open(said, os.O_WRONLY | os.O_CREAT)
    try:
        with Supervisor(300, log=log, paranoid=True) as machine:
            monkeypatch.setattr(os, "pwrite", failing)
            pid = machine.spawn([str(programs() / "load"), "once", "200"], stdout=output)
            status = machine.run()[pid]
            monkeypatch.undo()
            assert (os.waitstatus_to_exitcode(status), said.read_text()) == (
                4,
                "add: Cannot allocate memory\n",
            ), log.getvalue()
            pid = machine.spawn([str(programs() / "load"), "once", "200"], stdout=output)
            assert machine.run()[pid] == 0, log.getvalue()
    finally:
        os.close(output)


@pytest.mark.usefixtures("enclu")
def test_no_room_for_a_page_that_is_loaded_is_a_sigbus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its program ends, the log says why, and the machine goes on."""
    copy, filled = uffd.copy, 0

    def failing(*what: int) -> None:
        nonlocal filled
        filled += 1
        if filled == 50:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        copy(*what)

    log = io.StringIO()
    load = [str(programs() / "load"), "once", "200"]
    with Supervisor(300, log=log) as machine:
        machine.mkdir("/small", limit=100 * PAGE)
        monkeypatch.setattr(uffd, "copy", failing)
        victim = machine.spawn(load, "/small")
        assert machine.run()[victim] != 0
        assert "its frame cannot be filled" in log.getvalue()
        assert "Cannot allocate memory" in log.getvalue()
        neighbour = machine.spawn(load, "/small")
        assert machine.run()[neighbour] == 0, log.getvalue()


@pytest.mark.usefixtures("enclu")
def test_a_page_service_that_fails_ends_its_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else would answer the threads that wait for pages."""

    def failing(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(Express, "lane", failing)
    log = io.StringIO()
    with Supervisor(300, log=log) as machine:
        pid = machine.spawn([str(programs() / "load"), "once", "200"])
        assert os.waitstatus_to_exitcode(machine.run()[pid]) == -signal.SIGKILL
    assert "nobody serves its pages any more" in log.getvalue()


def run_load(log: io.StringIO) -> int:
    """The exit status of a program that needs more than its limit."""
    with Supervisor(300, log=log) as machine:
        machine.mkdir("/small", limit=100 * PAGE)
        pid = machine.spawn([str(programs() / "load"), "once", "200"], "/small")
        return os.waitstatus_to_exitcode(machine.run()[pid])


def test_no_thread_for_a_program_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(PageService, "start", failing)
    log = io.StringIO()
    assert run_load(log) == -signal.SIGKILL
    assert "raise its `ulimit" in log.getvalue()
    assert "Traceback" not in log.getvalue()


def test_no_memory_for_evicted_pages_is_enomem_at_the_ioctl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Arena, "grow", lambda _: False)
    log = io.StringIO()
    assert run_load(log) == 4, log.getvalue()
