"""Signals that the user means for the command reach it, once, whoever sends them and by which way."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.e2e.machine import NEEDS, command, started
from tests.e2e.processes import state_of, wait_until_gone
from tests.e2e.served import eventually
from tests.e2e.terminal import Terminal, foreground

pytestmark = [pytest.mark.needs(*NEEDS), pytest.mark.timeout(240)]
both_ways = pytest.mark.usefixtures("enclu")

# A script that says which signals reach it.
REPORTER = """
trap 'echo INT; exit 5' INT
trap 'echo TERM; exit 6' TERM
trap 'echo HUP; exit 7' HUP
echo ready
while :; do sleep 0.05; done
"""


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 5), ("SIGTERM", 6), ("SIGHUP", 7)])
def test_a_signal_sent_to_us_reaches_the_command(name: str, status: int) -> None:
    with started(command("bash", "-c", REPORTER, epc=64, options=("--report", "none"))) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.kill(process.pid, signal.Signals[name])
        rest, _ = process.communicate(timeout=60)
        assert rest == f"{name[3:]}\n"
        assert process.returncode == status


def test_control_c_belongs_to_the_command() -> None:
    terminal = Terminal(command("bash", "-c", REPORTER, epc=64, options=("--report", "none")))
    terminal.wait_for("ready")
    terminal.type(b"\x03")
    terminal.wait_for("INT")
    assert terminal.end() == 5


@both_ways
def test_control_c_ends_an_enclave_owner() -> None:
    terminal = Terminal(command("load", "hold", 300, epc=150, options=("--report", "none")))
    terminal.wait_for("ready")
    terminal.type(b"\x03")
    assert terminal.end() == -signal.SIGINT


@both_ways
def test_control_z_stops_the_job_and_fg_continues_it() -> None:
    """As any job of a shell: it stops, the shell has the terminal, it goes on where it was."""
    line = shlex.join(command("load", "hold", 300, epc=150, options=("--report", "none")))
    terminal = Terminal(["/bin/bash", "--norc", "-i"])
    terminal.type(f"{line}\n".encode())
    terminal.wait_for("ready\r\n")
    terminal.type(b"\x1a")
    terminal.wait_for("Stopped")
    terminal.type(b"fg\n")
    eventually(lambda: foreground(terminal.pid) != terminal.pid)
    terminal.type(b"\x03")
    terminal.type(b"echo it ended with $?\n")
    terminal.wait_for("it ended with 130\r\n")
    assert "changed" not in terminal.seen
    terminal.type(b"exit\n")
    assert terminal.end() == 0


# A script that counts interrupts, and tells them at the end.
COUNTER = """
count=0
trap 'count=$((count + 1)); echo counted' INT
trap 'echo $count interrupts; exit' TERM
"""


def test_control_c_reaches_the_command_once() -> None:
    """The terminal has sent it to the command already."""
    script = COUNTER + "echo ready; while :; do sleep 0.05; done"
    terminal = Terminal(command("bash", "-c", script, epc=64, options=("--report", "none")))
    terminal.wait_for("ready")
    terminal.type(b"\x03")
    terminal.wait_for("counted")
    os.kill(terminal.pid, signal.SIGTERM)  # taken after an interrupt that waits
    terminal.wait_for("1 interrupts")
    assert terminal.end() == 0


def test_what_the_command_sends_to_its_whole_group_is_not_sent_back() -> None:
    script = COUNTER + "for i in 1 2; do kill -INT 0; sleep 0.2; done; echo sent\n"
    script += "while :; do sleep 0.05; done"
    with started(command("bash", "-c", script, epc=64, options=("--report", "none"))) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(3)] == ["counted\n"] * 2 + ["sent\n"]
        os.kill(process.pid, signal.SIGTERM)
        assert process.communicate(timeout=60)[0] == "2 interrupts\n"


@pytest.mark.parametrize("way", ["handler", "sigwait", "signalfd"])
def test_a_signal_reaches_the_command_once_however_it_takes_it_and_to_whomever_it_was_sent(way: str) -> None:
    """Who takes signals by a call does not stop for us before it; nor does the kernel say to whom it went."""
    words = command("signals", way, epc=64, options=("--report", "none"))
    with started(words, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout.readline() == f"1 {signal.SIGINT:d}\n"
        wait_until_taken(process.pid)
        time.sleep(0.5)  # from the taking to the judging; two within a moment may mean one, as of timeout(1)
        os.kill(process.pid, signal.SIGINT)  # from the same sender, and for us alone
        assert process.stdout.readline() == f"2 {signal.SIGINT:d}\n"
        os.kill(process.pid, signal.SIGTERM)
        os.killpg(process.pid, signal.SIGTERM)  # as timeout(1): it means one
        assert process.stdout.readline() == f"3 {signal.SIGTERM:d}\n"
        for pid in of_session(process.pid):  # as a service manager that ends all processes of a cgroup
            os.kill(pid, signal.SIGHUP)
        assert process.stdout.readline() == f"4 {signal.SIGHUP:d}\n"
        time.sleep(0.3)  # for one too many to come
        assert process.communicate(timeout=60)[0] == ""


def wait_until_taken(pid: int) -> None:
    """Until no signal waits for the process."""
    status = Path(f"/proc/{pid}/status")
    eventually(lambda: re.findall(r"(?:Sig|Shd)Pnd:\t(\w+)", status.read_text()) == ["0" * 16] * 2)


def of_session(leader: int) -> list[int]:
    """Its processes, the oldest first."""
    everybody = (int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal())
    return sorted(pid for pid in everybody if session_of(pid) == leader)


def session_of(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return 0


def test_timeout_in_front_of_us_ends_the_command_once() -> None:
    """timeout(1) signals us, and then its whole group. That its time is over it learns by SIGALRM."""
    script = "trap 'echo counted; n=0' TERM; n=-99999; echo ready; "
    script += "while [ $((n++)) -lt 20 ]; do sleep 0.02; done"  # a while longer, for one too many to come
    words = command("bash", "-c", script, epc=64, options=("--report", "none"))
    with started(["timeout", "600", *words]) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.kill(process.pid, signal.SIGALRM)
        assert process.communicate(timeout=60)[0] == "counted\n"
        assert process.returncode == 124


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_there_is_a_command_ends_us(number: signal.Signals, tmp_path: Path) -> None:
    """It is neither lost nor a traceback. The key that does not come holds us up there."""
    fifo = tmp_path / "key"
    os.mkfifo(fifo)
    with started(command("echo", "begun", epc=64, options=("--seed", str(fifo)))) as process:
        with fifo.open("w") as key:  # opens when we are about to read it
            os.kill(process.pid, number)
            key.write("0" * 32)
        assert process.communicate(timeout=60) == ("", "")
        assert process.returncode == -number


def test_a_signal_after_the_commands_end_reaches_what_it_left() -> None:
    """Else nothing but SIGKILL would end us, and with us what is still served."""
    script = "(trap 'echo told; exit' TERM; while :; do sleep 0.05; done) & echo $$"
    with started(command("bash", "-c", script, epc=64, options=("--report", "none"))) as process:
        assert process.stdout is not None
        ended = int(process.stdout.readline())
        assert wait_until_gone([ended]) == {}
        os.kill(process.pid, signal.SIGTERM)
        assert process.communicate(timeout=60)[0] == "told\n"
        assert process.returncode == 0


def test_a_terminal_that_hangs_up_ends_what_it_would_have_ended_without_us(tmp_path: Path) -> None:
    """As session leader we alone are told. The command ends, then its group; what nohup protects goes on."""
    pids = tmp_path / "pids"
    script = f"sleep 600 & a=$!; nohup sleep 600 >/dev/null & echo $a $! > {pids}; echo ready; wait"
    terminal = Terminal(command("bash", "-c", script, epc=64, options=("--report", "none")))
    terminal.wait_for("ready")
    plain, protected = map(int, pids.read_text().split())
    eventually(lambda: Path(f"/proc/{protected}/comm").read_text() == "sleep\n")  # nohup has done its part
    terminal.hang_up()
    assert wait_until_gone([plain]) == {}
    assert state_of(protected) in ("S", "t")
    os.kill(terminal.pid, signal.SIGTERM)
    assert terminal.end() == -signal.SIGHUP
    assert wait_until_gone([protected]) == {}


def test_control_c_while_the_command_line_is_still_imported_is_no_traceback() -> None:
    script = """
import os, signal, sys
from epcgroup.cli.start import start
class Interrupting:
    def find_spec(self, name, path, target=None):
        if name == "epcgroup.cli.main":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
start()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")
