"""Nothing is left behind, whoever ends first and however; and the command's ending is the run's ending."""

from __future__ import annotations

import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
from tests.e2e.machine import ENCLU, NEEDS, Ended, ahead, command, once, programs, run, started
from tests.e2e.processes import cpu_ticks, programs_below, state_of, tree, wait_until_gone
from tests.e2e.served import eventually

pytestmark = [pytest.mark.needs(*NEEDS), pytest.mark.timeout(240)]
both_ways = pytest.mark.usefixtures("enclu")


@pytest.fixture
def _leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No file, no device, no mount is there after the test that was not there before."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    def traces() -> tuple[set[str], set[str]]:
        shared = {path for path in Path("/dev/shm").iterdir() if "epc" in path.name or "sgx" in path.name}
        devices = {path for path in Path("/dev").iterdir() if "sgx" in path.name}
        mounts = Path("/proc/self/mounts").read_text().splitlines()
        ours = {mount for mount in mounts if str(tmp_path) in mount}
        return {str(path) for path in [*tmp_path.iterdir(), *shared, *devices]}, ours

    before = traces()
    yield
    assert [new - old for new, old in zip(traces(), before, strict=True)] == [set()] * 2


@pytest.mark.usefixtures("_leaves_nothing", "enclu")
@pytest.mark.parametrize("seed", range(5))
def test_killing_the_supervisor_ends_its_enclaves(seed: int) -> None:
    """At a random moment, while pages are evicted and loaded: no target survives, stopped or alive.

    A survivor would find zeros where its evicted pages were; `load hold` would then say "the heap changed".
    """
    with started(command("load", "hold", 600, epc=150)) as process:
        assert process.stdout is not None
        if seed:  # seed 0: while it is still starting
            assert process.stdout.readline() == "ready\n"
        time.sleep(random.Random(seed).uniform(0.05, 1.0))
        below = [pid for pid in tree(process.pid) if pid != process.pid]
        assert below or not seed
        os.kill(process.pid, signal.SIGKILL)
        rest, _ = process.communicate(timeout=60)
        assert wait_until_gone(below) == {}
        assert "changed" not in rest


@both_ways
def test_killing_the_supervisor_of_many_processes() -> None:
    load = command("load", epc=1)[-1]
    script = "for i in 1 2 3 4; do $LOAD hold 100 & done; wait"
    with started(command("env", f"LOAD={load}", "bash", "-c", script, epc=150)) as process:
        assert process.stdout is not None
        for _ in range(4):
            assert process.stdout.readline() == "ready\n"
        below = [pid for pid in tree(process.pid) if pid != process.pid]
        assert len(below) >= 5
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        assert wait_until_gone(below) == {}


def test_a_late_wake_up_does_not_end_the_supervisor() -> None:
    """The page service may wake the tracer in the very moment in which the last program has ended."""
    script = """
import signal
from epcgroup.live import Supervisor
from epcgroup.live.world import WAKE_SIGNAL
with Supervisor(16) as machine:
    signal.pthread_kill(machine.world.tracer_thread, WAKE_SIGNAL)
print("alive")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


# -- the status is the command's ----------------------------------------------


def exits(status: int) -> Future[Ended]:
    return once(run, "sh", "-c", f"exit {status}", epc=64)


def dies(name: str, enclu: str) -> Future[Ended]:
    return once(run, "load", "signal", int(signal.Signals[name]), epc=64, options=("--enclu", enclu))


@pytest.fixture(scope="module", autouse=True)
def _two_at_a_time(request: pytest.FixtureRequest) -> Iterator[None]:
    runs = {"test_the_exit_status_passes_through": exits, "test_death_by_a_signal_passes_through": dies}
    with ahead(request, runs):
        yield


@pytest.mark.parametrize("status", [0, 1, 3, 77, 126, 255])
def test_the_exit_status_passes_through(status: int) -> None:
    assert exits(status).result().status == status


@both_ways
def test_the_exit_status_of_an_enclave_owner_passes_through() -> None:
    assert run("load", "exit", 42, epc=64).status == 42


@pytest.mark.parametrize("enclu", ENCLU)
@pytest.mark.parametrize("name", ["SIGSEGV", "SIGILL", "SIGKILL", "SIGABRT", "SIGTERM", "SIGBUS", "SIGTRAP"])
def test_death_by_a_signal_passes_through(name: str, enclu: str) -> None:
    assert dies(name, enclu).result().status == -signal.Signals[name]


def test_a_command_that_is_not_there_is_said_so() -> None:
    ended = run("/nowhere/no-such-program", epc=64)
    assert ended.status == 2
    assert "/nowhere/no-such-program: no such program" in ended.errors


@pytest.mark.parametrize("name", ["SIGHUP", "SIGINT"])
def test_what_we_were_started_to_ignore_our_command_ignores(name: str) -> None:
    """As under nohup, or as a background job of a script."""
    argv = command("sh", "-c", f"kill -{name[3:]} $$; echo alive", epc=64)
    shell = f"trap '' {name[3:]}; exec {shlex.join(argv)}"
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


def test_a_script_without_an_interpreter_runs_and_its_limits_end_it(tmp_path: Path) -> None:
    """SIGXFSZ, which Python ignores, is the command's own again."""
    script = tmp_path / "script"
    script.write_text("ulimit -f 1; head -c 9999 /dev/zero > $1; kill -l $?\n")
    script.chmod(0o755)
    ended = run(script, tmp_path / "big", epc=64)
    assert ended.output == "XFSZ\n", ended.errors


def test_closed_standard_streams_stay_closed_and_hurt_nobody() -> None:
    """Else a file of ours, an enclave's memory perhaps, would get what is printed; and printing failed."""
    look = "[ -e /proc/$$/fd/1 ] || exec $0 exit 42"
    argv = command("sh", "-c", look, programs() / "load", epc=64, options=("--report", "table"))
    done = subprocess.run(
        ["sh", "-c", f"exec {shlex.join(argv)} <&- >&- 2>&-"], capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (42, b"", b"")


def test_standard_streams_are_the_commands_own() -> None:
    """Standard output carries nothing of ours; standard input arrives."""
    argv = command("cat", epc=64, options=("--report", "none"))
    done = subprocess.run(
        argv, input="four words for cat", capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "four words for cat", "")


@pytest.mark.usefixtures("_leaves_nothing", "enclu")
@pytest.mark.parametrize(
    "program", [("true",), ("load", "once", 100), ("processes", "child_outlives_parent")]
)
def test_a_finished_run_leaves_nothing(program: tuple[str | int, ...], tmp_path: Path) -> None:
    with started(command(*map(str, program), epc=64, options=("--report", "none"))) as process:
        assert process.wait(60) == 0
    assert list(tmp_path.iterdir()) == []


@both_ways
def test_a_stopped_command_goes_on_where_it_was() -> None:
    """SIGSTOP and SIGCONT work on an enclave's owner as on any process."""
    with started(command("load", "hold", 300, epc=150)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        (target,) = programs_below(process.pid)
        for _ in range(3):
            os.kill(target, signal.SIGSTOP)
            eventually(lambda: state_of(target) in ("T", "t"))
            os.kill(target, signal.SIGCONT)
            ticks = cpu_ticks(target)
            eventually(lambda ticks=ticks: cpu_ticks(target) > ticks)  # it runs after SIGCONT
        os.kill(target, signal.SIGTERM)
        assert process.wait(60) == -signal.SIGTERM


#: A supervisor that is killed when its first child exists, before that has asked to end with it.
KILLED_EARLY = """
import ctypes, os, signal, time
from epcgroup.live import Supervisor
from epcgroup.live.tracing import loader

class Late:
    def CDLL(name):  # called by the child alone, first of all
        os.write(1, b"%d\\n" % os.getpid())
        time.sleep(0.3)  # until the supervisor waits for us to stop
        os.kill(supervisor, signal.SIGKILL)
        while os.getppid() == supervisor:
            time.sleep(0.01)
        return ctypes.CDLL(name)

supervisor, loader.ctypes = os.getpid(), Late
with Supervisor(64) as machine:
    machine.spawn(["true"])
"""


def test_a_supervisor_killed_before_it_traces_its_command_leaves_nothing_behind() -> None:
    """The child waits, stopped, to be traced: nobody would ever let it go on."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED_EARLY], stdout=subprocess.PIPE, check=False, timeout=60
    )
    assert done.returncode == -signal.SIGKILL
    assert not wait_until_gone([int(done.stdout)])
