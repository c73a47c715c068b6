"""gdb and strace, unmodified, debug programs of a machine from inside it."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.e2e.machine import EPCGROUP, NEEDS, programs, started
from tests.e2e.processes import state_of
from tests.e2e.served import eventually

pytestmark = [pytest.mark.needs(*NEEDS, "gdb"), pytest.mark.timeout(240)]

HERE = Path(__file__).parent
SECONDS = 120  # for what hangs
MACHINE = (EPCGROUP, "run", "--epc", "100 pages", "--report", "none", "--")
GDB = ("gdb", "-q", "-nx", "-batch", "-ex", "set pagination off", "-ex", "set confirm off")


@pytest.fixture(scope="module")
def debugged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled("debugged", tmp_path_factory.mktemp("gdb"))


def compiled(name: str, where: Path) -> Path:
    """A program of this directory with an enclave, and debug information."""
    built, target = programs(), where / name
    objects = [path for path in built.glob("host_*.o") if path.name != "host_check.c.o"]
    include = f"-I{HERE.parents[1] / 'programs' / 'host'}"
    command = ["gcc", "-g", "-O0", include, "-pthread", "-o", target, HERE / f"{name}.c", *objects]
    subprocess.run([*command, built / "image.o", "-ldl"], check=True, timeout=SECONDS)
    return target


def script(*commands: str) -> list[str]:
    """As options of gdb."""
    return [word for command in commands for word in ("-ex", command)]


def output_of(*argv: str | Path) -> str:
    with started([str(word) for word in argv], stderr=subprocess.STDOUT) as process:
        output, _ = process.communicate(timeout=SECONDS)
    return output


def test_a_program_is_started_stopped_looked_at_and_changed(debugged: Path) -> None:
    """Breakpoints, a backtrace, a finish, a watchpoint; evicted pages of its enclave; a bit of a TCS."""
    seen = output_of(
        *MACHINE, *GDB,
        *script(
            "break leaf", "run", "bt", "p/x $rdi == n", "finish",
            "x/gx e.heap + 8", "x/2gx e.heap + 4096 * 57", "x/gx e.heap + 4096 * 150",
            "set var *(long *)(e.heap + 8) = 0x77", "x/gx e.heap + 8",
            "x/gx e.tcs[0] + 8", "set var *(long *)(e.tcs[0] + 8) = 1", "x/gx e.tcs[0] + 8",
            "set var *(long *)(e.tcs[0] + 8) = 2",
            "delete", "watch counter", "continue", "continue", "delete",
            "break compute", "continue", "info threads", "delete", "continue",
        ),
        debugged,
    )  # fmt: skip
    expected = [
        r"Breakpoint 1, leaf \(n=0\) at .*debugged\.c:17",
        r"#0  leaf \(n=0\)",
        r"#1  0x\w+ in middle \(n=0\)",
        r"#2  0x\w+ in main \(argc=1",
        r"\$1 = 0x1",
        r"Value returned is \$2 = 0",
        r"0x\w+:\s+0x1122334455667788",
        rf"0x\w+:\s+{pattern(9, 56, 0):#018x}\s+{pattern(9, 56, 1):#018x}",
        rf"0x\w+:\s+{pattern(9, 149, 0):#018x}",
        r"0x\w+:\s+0x0000000000000077",
        r"0x\w+:\s+0x0000000000000000",
        r"0x\w+:\s+0x0000000000000001",
        r"Cannot access memory at address 0x\w+",
        r"Old value = 0\nNew value = 1\n",
        r"Old value = 1\nNew value = 3\n",
        r"hit Breakpoint 3, compute \(",
        r"  1    Thread .*LWP",
        r"\* 2    Thread .*LWP .* compute \(",
        r"sum 7, heap 0x77\n",
        r"exited with code 03\]",
    ]
    assert re.search(".*?".join(expected), seen, re.DOTALL), seen


def test_a_breakpoint_and_steps_inside_an_enclave(tmp_path: Path) -> None:
    """With a library in gdb that shows it the registers in the SSA, as sgx-gdb of library OSes has one.

    A step begins at ERESUME and is the enclave's next instruction; the code was evicted before.
    """
    program, library = compiled("inside", tmp_path), tmp_path / "preloaded.so"
    gcc = [
        "gcc",
        "-shared",
        "-fPIC",
        "-O2",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-o",
        library,
        HERE / "preloaded.c",
    ]
    subprocess.run(gcc, check=True, timeout=SECONDS)
    seen = output_of(
        *MACHINE, "env", f"LD_PRELOAD={library}", *GDB,
        *script(
            "set exec-wrapper env -u LD_PRELOAD", "break ready", "run", "break *e.code", "continue",
            "p $rip == e.code", "x/i $rip", "stepi", "p $rax", "p (long) $rip - e.code", "stepi", "p $rax",
            "set var $rax = 100", "stepi", "p $rax", "p exits", "delete 2", "continue", "continue",
        ),
        program,
    )  # fmt: skip
    expected = [
        r"Breakpoint 2, 0x\w+ in ", r"\$1 = 1\n", r"mov    \$0x7,%eax\n", r"\$2 = 7\n", r"\$3 = 5\n",
        r"\$4 = 8\n", r"\$5 = 102\n", r"\$6 = 0\n", "answer 102\n", r"exited normally\]",
    ]  # fmt: skip
    assert re.search(".*?".join(expected), seen, re.DOTALL), seen


def pattern(seed: int, page: int, word: int) -> int:
    """What the test enclave fills its heap with (request.h)."""
    value = (seed * 0x9E3779B97F4A7C15) & (1 << 64) - 1 ^ page << 20 ^ word
    return (value * 0xFF51AFD7ED558CCD + page) & (1 << 64) - 1


@contextmanager
def waiting(debugged: Path, then: str) -> Iterator[subprocess.Popen[str]]:
    """A machine in which ``debugged`` runs as process $P until ``stop`` is set, and a shell does ``then``.

    ``$GDB`` is gdb without questions, of that process.
    """
    out = debugged.parent / "out"
    out.unlink(missing_ok=True)
    shell = (
        f"{debugged} wait > {out} & P=$!; until grep -qs ready {out}; do sleep 0.05; done; "
        f"GDB='gdb -q -nx -batch -p '$P; {then}"
    )
    with started([*MACHINE, "sh", "-c", shell], stderr=subprocess.STDOUT) as process:
        yield process


def test_it_attaches_to_a_thread_inside_an_enclave_and_lets_it_go(debugged: Path) -> None:
    """The thread is seen where it left: at the AEP, about to resume (RAX is ERESUME, RBX its TCS)."""
    commands = debugged.parent / "attach.gdb"
    commands.write_text(
        "set pagination off\nthread 2\np $rax == 3 && $rbx == e.tcs[1] && $rip == $rcx\n"
        "p/x *(long *)(e.heap + 8)\nbreak leaf\ncontinue\nbt 2\ndelete\nset var stop=1\ndetach\n"
    )
    then = f"$GDB -x {commands}; wait $P; echo ended $?"
    with waiting(debugged, then) as run:
        seen, _ = run.communicate(timeout=SECONDS)
    expected = [
        r"\$1 = 1\n", r"\$2 = 0x1122334455667788\n", r"hit Breakpoint 1, leaf \(n=1\)", r"#1  0x\w+ in main",
        r"\[Inferior 1 \(process \d+\) detached\]", "ended 3\n",
    ]  # fmt: skip
    assert re.search(".*?".join(expected), seen, re.DOTALL), seen
    assert (debugged.parent / "out").read_text() == "ready\nsum 7, heap 0x1122334455667788\n"


def test_its_program_survives_a_gdb_that_is_killed(debugged: Path) -> None:
    """It was stopped, and goes on; another gdb comes and ends it."""
    held = "-ex 'shell echo held' -ex 'python import time; time.sleep(1000)'"
    then = f"$GDB {held} & echo pids $P $!; wait $!; read go; $GDB -ex kill; wait $P; echo ended $?"
    with waiting(debugged, then) as run:
        assert run.stdout is not None
        lines = list(itertools.takewhile(lambda line: line != "held\n", run.stdout))
        (pids,) = [line.split()[1:] for line in lines if line.startswith("pids ")]
        app, gdb = map(int, pids)
        eventually(lambda: state_of(app) == "t")
        os.kill(gdb, signal.SIGKILL)
        eventually(lambda: state_of(app) in {"R", "S"})
        rest, _ = run.communicate("go\n", timeout=SECONDS)
    assert f"[Inferior 1 (process {app}) killed]" in rest
    assert "ended 137\n" in rest


@pytest.mark.needs("strace")
def test_strace_says_what_it_says_outside(tmp_path: Path) -> None:
    """Calls, children, signals and ends; of the calls that we answer too."""

    def said(name: str, *how: str) -> list[str]:
        files = (
            "strace",
            "-ff",
            "-o",
            str(tmp_path / name),
            "-e",
            "trace=openat,wait4,kill,execve,exit_group",
        )
        output_of(*how, *files, "sh", "-c", "cat /dev/null; (exit 4); kill -USR1 $$")
        lines = [line for file in tmp_path.glob(f"{name}.*") for line in file.read_text().splitlines()]
        steady = (re.sub(r"si_.time=.*?(?=[,}])|0x\w+|\b\d{2,}\b", "N", line) for line in lines)
        return sorted(re.sub(r" +", " ", line) for line in steady)

    inside = said("inside", *MACHINE)
    assert "+++ killed by SIGUSR1 +++" in inside
    assert inside == said("outside")
