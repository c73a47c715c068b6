"""Real programs, unmodified, inside an enclave: CPython and SQLite under a library OS, as with Gramine.

The library OS is ours (``tests/programs/libos``): each system call of the program is a #UD in its enclave, an
asynchronous exit, an entry of the handler at CSSA 1, and a resumption of a frame that the handler has
changed. What is asked of the machine is the sum of what our small programs ask one by one.
"""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from tests.e2e.machine import NEEDS, Ended, run
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
    tmp_path: Path, edmm: tuple[str, ...], enclu: str, policy: str, service: str
) -> None:
    """256 pages of EPC, and a database outside that another process reads afterwards."""
    mine, other = tmp_path / "inside.db", tmp_path / "outside.db"
    words = ("--heap", "16", *edmm, built() / "sql", mine, STATEMENTS)
    ended = inside(*words, epc=256, policy=policy, options=("--enclu", enclu, "--page-service", service))
    assert ended.output == outside("sql", other, STATEMENTS)
    assert mine.read_bytes() == other.read_bytes()
    assert ended.report is not None
    assert ended.report["groups"][-1]["pages_in"] > 500


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
    tmp_path: Path, edmm: tuple[str, ...], enclu: str, policy: str, service: str
) -> None:
    """It imports (libraries by dlopen, too), sorts, hashes, writes, reads, has threads, and always pages."""
    words = ("--heap", "48", *edmm, built() / "python", "-B", WORK, tmp_path / "inside")
    ended = inside(*words, epc=1024, policy=policy, options=("--enclu", enclu, "--page-service", service))
    assert ended.output == outside("python", "-B", WORK, tmp_path / "outside")
    assert (tmp_path / "inside").read_bytes() == (tmp_path / "outside").read_bytes()
    assert ended.report is not None
    assert ended.report["groups"][-1]["pages_in"] > 2000


def test_a_program_that_cannot_be_loaded_is_named() -> None:
    """The loader's own errors are not mistaken for the program's."""
    ended = run(built() / "libos", sys.executable, epc=1024)
    assert ended.status == 125
    assert "libos: the program: it is not static" in ended.errors + ended.output
