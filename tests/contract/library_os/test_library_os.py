"""Real programs, unmodified, inside an enclave: CPython and SQLite under a library OS, as with Gramine.

The library OS is ours (``tests/programs/libos``): each system call of the program is a #UD in its enclave, an
asynchronous exit, an entry of the handler at CSSA 1, and a resumption of a frame that the handler has
changed. What is asked of the machine is the sum of what our small programs ask one by one.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.machine import NEEDS, Ended, ahead, once, run
from tests.programs.build import BuildError
from tests.programs.library_os import library_os

pytestmark = [pytest.mark.needs(*NEEDS, "static-python", "static-sqlite"), pytest.mark.timeout(240)]

WORK = Path(__file__).parent / "work.py"
STATEMENTS = """
create table t(k integer primary key, v text);
with recursive n(i) as (select 1 union all select i + 1 from n where i < 1500)
    insert into t select i, hex(i * i) || printf('%032d', i) from n;
create index x on t(v);
delete from t where k % 3 = 0;
vacuum;
select count(*), sum(length(v)), max(v), round(avg(k), 9) from t;
pragma integrity_check;
"""


@cache
def built() -> Path:
    try:
        return library_os()
    except BuildError as reason:
        pytest.fail(f"the library OS cannot be built: {reason}", pytrace=False)


def outside(program: str, *arguments: str | Path) -> str:
    """What the same program writes without an enclave."""
    command = [str(built() / program), *map(str, arguments)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=True).stdout


def inside(*words: str | Path, epc: int, policy: str, options: tuple[str, ...]) -> Ended:
    """Run ``libos`` with these words, to the end, on a machine with ``epc`` pages."""
    ended = run(built() / "libos", *words, epc=epc, policy=policy, options=options)
    assert ended.status == 0, ended.errors[-3000:]
    assert ended.report is not None
    assert ended.report["groups"][-1]["current"] == 0
    return ended


@dataclass(frozen=True)
class Work:
    """What a program wrote, to its output and into its file, and how many pages came back meanwhile."""

    output: str
    file: bytes
    pages_in: int = 0


def both(
    words: tuple[str, ...], before: tuple[str | Path, ...], after: tuple[str, ...], **machine: Any
) -> tuple[Work, Work]:
    """The same work inside an enclave and outside; the name of its file comes between the words."""
    with tempfile.TemporaryDirectory(prefix="epcgroup-test-") as directory:
        mine, other = Path(directory, "inside"), Path(directory, "outside")
        program, *arguments = before
        ended = inside(*words, built() / program, *arguments, mine, *after, **machine)
        assert ended.report is not None
        there = Work(ended.output, mine.read_bytes(), ended.report["groups"][-1]["pages_in"])
        return there, Work(outside(str(program), *arguments, other, *after), other.read_bytes())


def sqlite(edmm: tuple[str, ...], enclu: str, policy: str, service: str) -> tuple[Work, Work]:
    options = ("--enclu", enclu, "--page-service", service)
    return both(("--heap", "16", *edmm), ("sql",), (STATEMENTS,), epc=256, policy=policy, options=options)


def cpython(edmm: tuple[str, ...], enclu: str, policy: str, service: str) -> tuple[Work, Work]:
    options = ("--enclu", enclu, "--page-service", service)
    return both(("--heap", "48", *edmm), ("python", "-B", WORK), (), epc=1024, policy=policy, options=options)


@pytest.fixture(scope="module", autouse=True)
def _two_at_a_time(request: pytest.FixtureRequest) -> Iterator[None]:
    runs = {
        "test_sqlite_keeps_its_database_from_inside_an_enclave": lambda edmm, enclu, policy, service: once(
            sqlite, edmm, enclu, policy, service
        ),
        "test_cpython_works_with_4_mib_of_epc": lambda edmm, enclu, policy, service: once(
            cpython, edmm, enclu, policy, service
        ),
    }
    built()
    with ahead(request, runs):
        yield


@pytest.mark.parametrize(
    ("edmm", "enclu", "policy", "service"),
    [
        ((), "fast", "v17", "compiled"),
        ((), "trap", "standard", "python"),
        (("--edmm",), "fast", "standard", "compiled"),
        (("--edmm",), "trap", "v5", "python"),
    ],
)
def test_sqlite_keeps_its_database_from_inside_an_enclave(
    edmm: tuple[str, ...], enclu: str, policy: str, service: str
) -> None:
    """256 pages of EPC, and a database outside that another process reads afterwards."""
    there, here = once(sqlite, edmm, enclu, policy, service).result()
    assert (there.output, there.file) == (here.output, here.file)
    assert there.pages_in > 500


@pytest.mark.parametrize("enclu", ["fast", "trap"])
def test_threads_and_memory_come_and_go(enclu: str) -> None:
    """mmap, mprotect and munmap of four threads at once with EDMM; each TCS has one thread after another."""
    words = ("--heap", "16", "--edmm", built() / "threads")
    ended = inside(*words, epc=300, policy="standard", options=("--enclu", enclu))
    assert ended.output == outside("threads") == "42\n"


@pytest.mark.parametrize(
    ("edmm", "enclu", "policy", "service"),
    [((), "trap", "v17", "compiled"), (("--edmm",), "fast", "standard", "auto")],
)
def test_cpython_works_with_4_mib_of_epc(
    edmm: tuple[str, ...], enclu: str, policy: str, service: str
) -> None:
    """It imports (libraries by dlopen, too), sorts, hashes, writes, reads, has threads, and always pages."""
    there, here = once(cpython, edmm, enclu, policy, service).result()
    assert (there.output, there.file) == (here.output, here.file)
    assert there.pages_in > 2000


def test_a_program_that_cannot_be_loaded_is_named() -> None:
    """The loader's own errors are not mistaken for the program's."""
    ended = run(built() / "libos", sys.executable, epc=1024)
    assert ended.status == 125
    assert "libos: the program: it is not static" in ended.errors + ended.output
