"""Entering and leaving enclaves without a trap: that it happens, that it can be refused, that nothing shows.

What must not show is in tests/programs/cases/paths.c and paths_shared.c, and each case runs on both ways; so
do the cases of test_traps, the lost updates and the kernel's selftest.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.machine import ENCLU, NEEDS, PAGE, ahead, all_cases, cases, expect_case, programs, run

pytestmark = [pytest.mark.needs(*NEEDS), pytest.mark.timeout(240)]

EPC = 128
PROGRAMS = ("paths", "paths_shared")
SOURCES = Path(__file__).parents[1] / "programs/cases"
LISTED = re.compile(r'^\t\t\{ "(\w+)",', re.MULTILINE)
CASES = [(name, case) for name in PROGRAMS for case in LISTED.findall((SOURCES / f"{name}.c").read_text())]
ROUNDS = 500
HEAP = 100  # pages
WAYS = ("vdso", "bare", "masked", "handler")


@pytest.fixture(scope="module", autouse=True)
def _two_at_a_time(request: pytest.FixtureRequest) -> Iterator[None]:
    with ahead(request, {"test_case": lambda program, case, enclu: cases(program, EPC, (), enclu)}):  # noqa: ARG005
        yield


@pytest.mark.parametrize("enclu", ENCLU)
@pytest.mark.parametrize(("program", "case"), CASES)
def test_case(program: str, case: str, enclu: str) -> None:
    expect_case(program, case, EPC, enclu)


def test_the_list_of_cases_is_read_right() -> None:
    found = {(name, case) for name in PROGRAMS for case in all_cases(name, EPC, enclu=ENCLU[0]).cases}
    assert found == set(CASES)


def stops(*command: str, options: tuple[str, ...] = ()) -> dict[str, int]:
    """How often the thread was off its processor of its own accord in ROUNDS entries, by each way in."""
    ended = run(*command, "switches", ROUNDS, epc=EPC, options=options)
    assert ended.status == 0, ended.errors[-3000:]
    return {name: int(count) for name, count in map(str.split, ended.output.splitlines())}


def test_no_entry_stops_the_thread() -> None:
    """Neither through the vDSO nor by an ENCLU of the program's own, nor as the handler of an exception,
    nor with SIGILL blocked, as it is in a handler of SIGILL."""
    assert all(stops("calls")[way] < ROUNDS // 10 for way in WAYS)


def test_every_entry_and_exit_is_a_trap_where_that_is_asked_for() -> None:
    found = stops("calls", options=("--enclu", "trap"))
    assert all(found[way] >= 2 * ROUNDS for way in WAYS)


def test_one_program_of_a_machine_can_ask_for_traps() -> None:
    found = stops("env", "EPCGROUP_ENCLU=trap", str(programs() / "calls"))
    assert all(found[way] >= 2 * ROUNDS for way in WAYS)


@pytest.mark.parametrize("options", [(), ("--enclu", "trap")], ids=ENCLU)
def test_code_is_changed_only_on_the_fast_way(options: tuple[str, ...]) -> None:
    """The host sees the page as the enclave would; EINIT has accepted that of the unchanged one."""
    ended = run("calls", "code", 100, epc=EPC, options=options)
    assert ended.status == 0, ended.errors[-3000:]
    assert (bytes.fromhex(ended.output) == added()) is bool(options)


def added() -> bytes:
    return (programs() / "enclave.bin").read_bytes().ljust(PAGE, b"\0")[:PAGE]


@pytest.fixture(scope="module")
def identities() -> dict[str, str]:
    """MRENCLAVE and MRSIGNER of the enclave that `calls` makes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EPCGROUP_DEBUG", "1")
        ended = run("calls", "own", HEAP, epc=EPC)
    return dict(re.findall(r"(MRENCLAVE|MRSIGNER) ([0-9a-f]{64})", ended.errors))


@pytest.mark.parametrize("epc", [EPC, HEAP // 2], ids=["resident", "evicted"])
@pytest.mark.parametrize("by", ["MRENCLAVE", "MRSIGNER"])
def test_an_enclave_reads_its_own_code_unchanged_if_it_is_named(
    by: str, epc: int, identities: dict[str, str]
) -> None:
    """Its pages of code may have been evicted before EINIT tells who it is."""
    ended = run("calls", "own", HEAP, epc=epc, options=("--unpatched", identities[by]))
    assert ended.status == 0, ended.errors[-3000:]
    assert bytes.fromhex(ended.output) == added()


def test_one_that_is_not_named_sees_the_jumps(identities: dict[str, str]) -> None:
    other = "0" * 64
    ended = run("calls", "own", HEAP, epc=EPC, options=("--unpatched", other))
    assert ended.status == 0, ended.errors[-3000:]
    assert bytes.fromhex(ended.output) != added()
    assert identities["MRENCLAVE"] != other


def test_a_program_names_its_enclaves_in_its_environment(identities: dict[str, str]) -> None:
    """A named enclave is still entered without a trap: there is one stop a round, not two."""
    named = f"EPCGROUP_UNPATCHED={identities['MRSIGNER']}"
    ended = run("env", named, str(programs() / "calls"), "own", HEAP, epc=EPC)
    assert bytes.fromhex(ended.output) == added(), ended.errors[-3000:]
    found = stops("env", named, str(programs() / "calls"))
    assert all(ROUNDS <= found[way] < ROUNDS * 3 // 2 for way in WAYS), found


def test_a_name_that_is_none_is_refused_in_words() -> None:
    ended = run("true", epc=EPC, options=("--unpatched", "MRENCLAVE"))
    assert ended.status == 2
    assert "64 hexadecimal digits" in ended.errors


def test_a_program_in_another_pid_namespace_is_served_alike() -> None:
    """What gettid says there is another number than ours."""
    if os.geteuid():
        pytest.xfail("only root may make a pid namespace")
    cases = {
        "paths": ("outer_stack", "signals_on_the_way", "grown"),
        "paths_shared": ("busy_for_relatives", "forked_while_inside"),
    }
    for name, some in cases.items():
        ended = run("unshare", "--fork", "--pid", "--mount-proc", str(programs() / name), *some, epc=EPC)
        assert ended.cases == dict.fromkeys(some, "ok"), ended.errors[-3000:]
