"""A process that already runs joins a machine, and leaves it unharmed while it owns nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from tests.e2e.late import NATIVE, SGX, attached, late, refusal
from tests.e2e.machine import NEEDS, programs
from tests.e2e.processes import tree, wait_until_gone
from tests.e2e.served import eventually, served
from tests.e2e.traced import compile_c

pytestmark = [pytest.mark.needs(*NEEDS), pytest.mark.timeout(240)]
both_ways = pytest.mark.usefixtures("enclu")

NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
# The supervisor also has to read its own files, wherever the checkout lies.
READER = ("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search")
EPC = ("--epc", "64 pages")
#: Joins a process and lets it go, so many times, without a pause or after a few milliseconds.
JOIN_AND_LET_GO = """
import sys, threading
from epcgroup.live import Supervisor
pid, times = map(int, sys.argv[1:])
with Supervisor(16) as machine:
    for i in range(times):
        assert machine.attach(pid)[0] == pid
        later = threading.Timer(i % 4 * 0.005, lambda: machine._tracer.post(machine.let_go))
        later.start()
        machine.run()
        later.join()
"""


@contextmanager
def shell(script: str) -> Iterator[subprocess.Popen[str]]:
    """A shell that runs ``script`` natively."""
    process = subprocess.Popen(
        ["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@both_ways
def test_a_running_process_gets_sgx_with_all_its_threads_and_children() -> None:
    """Its enclave is larger than the EPC; threads that sleep or compute beside it never see an error."""
    with late() as program, attached(*EPC, program.pid) as supervisor:
        assert program.ask("cpuid") == "cpuid 1"
        assert program.ask("look") == SGX
        assert program.ask("own 100") == "own 100"
        assert program.ask("check") == "check 0 0"
        assert program.ask("drop") == "drop"
        assert (program.ask("thread"), program.hear()) == ("own 50", "check 0 0")
        assert (program.ask("fork"), program.hear(), program.hear()) == ("own 50", "check 0 0", "fork 0")
        assert program.ask("look") == SGX
        program.process.communicate()
        _, report = supervisor.communicate(timeout=60)
        assert supervisor.returncode == 0, report
        assert "late" in report


@both_ways
def test_the_first_open_may_be_a_threads_or_a_childs() -> None:
    """Who opens first binds the process; here it is never the thread that was there first."""
    with late() as program, attached(*EPC, program.pid):
        assert (program.ask("thread"), program.hear()) == ("own 50", "check 0 0")
    with late() as program, attached(*EPC, program.pid):
        assert (program.ask("fork"), program.hear(), program.hear()) == ("own 50", "check 0 0", "fork 0")
        assert program.status("Seccomp") == "0", "the parent has no filter of ours"
        assert program.ask("own 20") == "own 20"


def test_a_call_that_sleeps_sleeps_on() -> None:
    """nanosleep is neither cut short nor failed by being joined."""
    with late() as program:
        assert program.ask("sleep 1500") == "sleeping"
        with attached(*EPC, program.pid):
            assert program.hear() == "slept 0 1"
            assert program.ask("look") == SGX


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda end: end.name)
def test_a_process_without_an_enclave_survives_the_end_of_its_supervisor_unchanged(end: int) -> None:
    """No filter, no trap, no stop is left, and it can be joined again, however the supervisor ended."""
    with late() as program:
        for _ in range(3):
            with attached(*EPC, program.pid) as supervisor:
                assert program.ask("cpuid") == "cpuid 1"
                guards = [pid for pid in tree(supervisor.pid) if pid != supervisor.pid]
                supervisor.send_signal(end)
                supervisor.communicate(timeout=60)
            eventually(lambda: program.status("TracerPid") == "0")
            assert not wait_until_gone(guards)  # a CPUID before would be a UD2
            assert program.ask("look") == NATIVE
            assert program.status("Seccomp") == "0"
            assert program.status("State")[0] in "SR"
        with attached(*EPC, program.pid):
            assert program.ask("own 100") == "own 100"


def test_children_made_while_it_was_joined_survive_as_well() -> None:
    """They were born traced; a fork's copy of our traps is taken out of it too."""
    with shell("read x; sleep 1000 & echo $!; read y; wait") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with attached(*EPC, process.pid) as supervisor:
            process.stdin.write("\n")
            process.stdin.flush()
            child = int(process.stdout.readline())
            tracer = f"TracerPid:\t{supervisor.pid}"
            assert tracer in Path(f"/proc/{child}/status").read_text()
            supervisor.kill()
            supervisor.communicate()
        eventually(lambda: "TracerPid:\t0" in Path(f"/proc/{child}/status").read_text())
        assert "Seccomp:\t0" in Path(f"/proc/{child}/status").read_text()


@both_ways
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL], ids=lambda end: end.name)
def test_an_owner_ends_with_its_supervisor(end: int) -> None:
    """Its evicted pages would come back as zeros; so it must not see them."""
    with late() as program, attached(*EPC, program.pid) as supervisor:
        assert program.ask("own 100") == "own 100"
        supervisor.send_signal(end)
        _, errors = supervisor.communicate(timeout=60)
        assert program.process.wait(60) == -signal.SIGKILL
        assert (
            end == signal.SIGKILL
            or f"process {program.pid} (late) holds an SGX device and is ended" in errors
        )


@both_ways
def test_what_it_execs_is_joined() -> None:
    """The programs that a joined shell starts have SGX, static ones and their children too."""
    directory = programs()
    script = f"read x; {directory}/basics cpuid threads; exec {directory}/basics-static cpuid heap"
    with shell(script) as process, attached(*EPC, process.pid):
        output, _ = process.communicate("\n", timeout=60)
        assert output.splitlines() == ["ok cpuid", "ok threads", "ok cpuid", "ok heap"]


@both_ways
def test_libraries_vfork_and_threads_that_exec_below_a_joined_shell() -> None:
    """The traps of watched programs come and go with what they load, share and become."""
    directory = programs()
    script = (
        f"cd {directory}; read x; ./dlopener; ./kinds vfork_and_exec thread_execs; ./processes fork_shares"
    )
    with shell(script) as process, attached("--epc", "128 pages", process.pid):
        output, _ = process.communicate("\n", timeout=120)
        assert "not ok" not in output
        wanted = {
            "in_one_thread",
            "in_many_threads",
            "plain",
            "vfork_and_exec",
            "thread_execs",
            "fork_shares",
        }
        assert set(output.split()) == {"ok", *wanted}


@both_ways
def test_children_that_are_there_are_joined() -> None:
    """A shell's running child is joined with it."""
    script = f"sh -c 'read x; exec {programs()}/basics cpuid heap'; echo done"
    with shell(script) as process:
        listing = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        eventually(lambda: listing.read_text())
        with attached(*EPC, process.pid):
            output, _ = process.communicate("\n", timeout=60)
            assert output.splitlines() == ["ok cpuid", "ok heap", "done"]


def test_a_process_whose_threads_exec_all_the_time_is_joined_and_let_go(tmp_path: Path) -> None:
    """To seize a thread waits for an exec, which waits for threads that are seized: both went on for ever.

    Whoever takes the first thread's place by exec is not lost, nor let go with a trap of ours in its code.
    """
    program = compile_c(Path(__file__).parent / "programs/execer.c", tmp_path / "execer", "-pthread")
    with subprocess.Popen([str(program)]) as process:
        try:
            words = [sys.executable, "-c", JOIN_AND_LET_GO, str(process.pid), "60"]
            done = subprocess.run(words, capture_output=True, text=True, timeout=150, check=False)
            assert (done.returncode, done.stderr) == (0, "")
            assert process.poll() is None
        finally:
            process.kill()


def test_a_stopped_job_stays_stopped_until_it_is_continued() -> None:
    """Joining is not SIGCONT."""
    with late() as program:
        program.process.send_signal(signal.SIGSTOP)
        eventually(lambda: program.status("State").startswith("T"))
        with attached(*EPC, program.pid) as supervisor:
            program.tell("look")
            time.sleep(0.3)
            assert program.status("State")[0] in "tT"
            program.process.send_signal(signal.SIGCONT)
            assert program.hear() == SGX
            program.process.send_signal(signal.SIGSTOP)
            eventually(lambda: program.status("State")[0] in "tT")
            supervisor.terminate()
        eventually(lambda: program.status("TracerPid") == "0")


@pytest.mark.needs("root")
def test_an_ordinary_user_attaches_to_a_process_of_hers(tmp_path: Path) -> None:
    """Without root nothing but the same user is needed; where Yama forbids it, it says so."""
    if Path("/proc/sys/kernel/yama/ptrace_scope").exists():
        Path("/proc/sys/kernel/yama/ptrace_scope").write_text("0")
    tmp_path.chmod(0o777)
    wrap = (*NOBODY, *READER, "env", f"XDG_STATE_HOME={tmp_path}")
    with late(*NOBODY) as program, attached(*EPC, program.pid, wrap=wrap):
        assert program.ask("own 100") == "own 100"
        assert program.ask("check") == "check 0 0"
        assert program.status("NoNewPrivs") == "1"


@both_ways
@pytest.mark.needs("fuse")
def test_a_process_joins_a_server_and_a_cgroup_of_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    """`attach -g` returns at once; the process is in cgroup.procs, charged there, and can be moved."""
    with served(tmp_path_factory.mktemp("s"), epc="64 pages") as server, late() as program:
        place = ("--dir", str(server.directory))
        assert "no cgroup '/web'" in refusal(*place, "-g", "web", str(program.pid))
        assert "--epc describes a machine" in refusal(*place, "--epc", "1M", "-g", "web", str(program.pid))
        with attached(*place, "--create", "-g", "web", program.pid) as client:
            assert client.wait(60) == 0
        assert server.read("web/cgroup.procs").split() == [str(program.pid)]
        assert program.ask("cpuid") == "cpuid 1"
        assert program.ask("own 100") == "own 100"
        assert int(server.value("web/misc.current")) > 32 * 4096
        assert (program.ask("fork"), program.hear(), program.hear()) == ("own 50", "check 0 0", "fork 0")
        assert "in this machine already" in refusal(*place, "-g", "web", str(program.pid))
        with late() as other:
            with attached(*place, other.pid) as client:
                assert client.wait(60) == 0
            assert str(other.pid) in server.read("cgroup.procs").split()
            assert other.ask("cpuid") == "cpuid 1"
            _, errors = server.stop()
            assert f"process {program.pid} (late) holds an SGX device and is ended" in errors
            assert program.process.wait(60) == -signal.SIGKILL
            assert other.ask("look") == NATIVE


def test_a_refusal_says_why() -> None:
    """No process, a thread, a kernel thread, somebody else's tracee."""
    assert "there is no process 4194304" in refusal("4194304")
    assert "there is no process 2 with a program" in refusal("2") or os.geteuid()
    with late() as program:
        thread = max(int(task.name) for task in Path(f"/proc/{program.pid}/task").iterdir())
        assert f"{thread} is a thread; its process is {program.pid}" in refusal(str(thread))
        with attached(*EPC, program.pid) as supervisor:
            said = refusal(str(program.pid))
            assert f"process {program.pid} is traced by process {supervisor.pid} (epcgroup) already" in said
            assert program.ask("look") == SGX
