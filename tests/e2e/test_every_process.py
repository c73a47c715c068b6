"""Every kind of process can own an enclave: of other users, in other namespaces, of other languages."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tests.e2e.machine import EPCGROUP, NEEDS, programs, run
from tests.programs import package

pytestmark = [pytest.mark.needs(*NEEDS), pytest.mark.timeout(300)]
both_ways = pytest.mark.usefixtures("enclu")

CONTAINER = ("unshare", "--pid", "--fork", "--mount-proc", "--net")
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
CASES = ("cpuid", "enter_vdso", "enter_bare", "heap", "two_enclaves", "threads")


@both_ways
@pytest.mark.needs("root")
@pytest.mark.parametrize("wrap", [CONTAINER, NOBODY], ids=["container", "nobody"])
def test_programs_that_cannot_see_the_supervisor_get_the_device(wrap: tuple[str, ...]) -> None:
    """It is handed to them: they cannot open /proc/PID/fd of a process that they do not see or own."""
    ended = run(*wrap, programs() / "basics", *CASES, epc=128)
    assert ended.cases == dict.fromkeys(CASES, "ok"), ended.errors


@both_ways
@pytest.mark.parametrize(
    "language",
    [
        pytest.param("go", marks=pytest.mark.needs("go")),
        pytest.param("rust", marks=pytest.mark.needs("rustc")),
    ],
)
def test_static_programs_of_other_languages_load_and_enter(language: str, tmp_path: Path) -> None:
    """No libc (Go), raw system calls, threads on small stacks that are signalled while they are inside."""
    enclave = package.write(tmp_path / "enclave")
    ended = run(package.loader(language), enclave, epc=48)
    threads = [f"ok thread {n}: {20 * package.HEAP // package.THREADS} done, 0 wrong" for n in (0, 1)]
    assert ended.output.splitlines() == threads, ended.errors


@both_ways
def test_programs_may_vfork_exec_from_any_thread_and_debug() -> None:
    """Also while another thread is inside."""
    ended = run("kinds", epc=15)
    cases = ("vfork_and_exec", "thread_execs", "is_a_debugger", "plain")
    assert ended.cases == dict.fromkeys(cases, "ok"), ended.errors


@both_ways
def test_a_process_owns_32_enclaves_at_once() -> None:
    """All alive, entered in turn, in an EPC that holds a quarter of their pages."""
    assert run("many", "enclaves", "32", epc=128).output == "enclaves 32 0\n"


@both_ways
@pytest.mark.parametrize(("times", "places"), [(500, 1), (300, 300)], ids=["same place", "new places"])
def test_enclaves_may_be_closed_and_made_again_and_again(times: int, places: int) -> None:
    """Each costs a millisecond or so and leaves nothing: no page, no filter, no descriptor."""
    ended = run("many", "again", str(times), str(places), epc=64)
    assert ended.output == f"again {times} 0\n", ended.errors
    assert ended.report is not None
    assert ended.report["groups"][0]["current"] == 0


@both_ways
def test_a_full_table_of_descriptors_is_an_error_for_the_program() -> None:
    """What we open in it is above its limit, where we may raise that; else EMFILE, never its end."""
    ended = run("many", "fds", "3", epc=64)
    assert ended.output == "fds 3 0\n", ended.errors


def test_a_supervisor_without_descriptors_refuses_the_open() -> None:
    """The program sees ENFILE, as where the whole system has no files left, and lives on."""
    words = [
        EPCGROUP,
        "run",
        "--report",
        "none",
        "--epc",
        "1M",
        "--",
        str(programs() / "many"),
        "enclaves",
        "32",
    ]
    shell = ["sh", "-c", 'ulimit -n 60; exec "$@"', "sh", *words]
    ended = subprocess.run(shell, capture_output=True, text=True, timeout=90, check=False)
    assert "open: Too many open files in system" in ended.stdout + ended.stderr
    assert ended.returncode == 1


def test_a_32_bit_program_runs(tmp_path: Path) -> None:
    """It cannot use SGX; each of its system calls stops, and is let go."""
    source = tmp_path / "hello.S"
    source.write_text(
        "_start: mov $4,%eax; mov $1,%ebx; mov $text,%ecx; mov $6,%edx; int $0x80\n"
        'mov $1,%eax; xor %ebx,%ebx; int $0x80\n.globl _start\n.data\ntext: .ascii "32bit\\n"\n'
    )
    for tool in (
        ["as", "--32", "-o", "hello.o", "hello.S"],
        ["ld", "-m", "elf_i386", "-o", "hello", "hello.o"],
    ):
        subprocess.run(tool, cwd=tmp_path, check=True, timeout=200)
    ended = run(tmp_path / "hello", epc=64)
    assert (ended.status, ended.output) == (0, "32bit\n")
