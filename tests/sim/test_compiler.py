"""The compiler: what it makes of a function is what Python makes of it, or it says where it stops."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from epcgroup.errors import InternalError
from epcgroup.sim.compiler import jit
from epcgroup.sim.compiler.compiler import Program
from epcgroup.sim.compiler.dialect import INT, fetch, lowest, view
from epcgroup.sim.kernel import entry

TABLE = view("table", "i64")


def arithmetic(a: int, b: int, _t: Any) -> int:
    """Division and remainder round down; shifts of negative numbers too."""
    total = a + 3 * b - (a & b) + (a | b) + (a ^ b) + (~a) + (-b) + (a >> 3) + (b << 2)
    if b:
        total += a // b * 7 + a % b
    total -= a // 16 + b % 512
    return total + min(a, b) - max(a, 5)


def choices(a: int, b: int, _t: Any) -> int:
    """Truth, chains, both kinds of loops, early ends."""
    found = 0
    late = False
    for i in range(3, 20):
        if i % 5 == 0:
            continue
        if i > a and not late:
            late = True
            found += 1000
        if 0 < b < i or (a > b and i == 7):
            break
        found += i + late
    while found > 50:
        found -= 37 if a < b else 11
    while True:
        found += 1
        if found % 3 == 0:
            return found
    return 0


def memory(a: int, b: int, t: Any) -> int:
    """Stores, loads, sums in place, swaps."""
    for i in range(8):
        t[i] = a + i * b
    t[0], t[1] = t[1], t[0]
    t[2] += t[3]
    t[4] = t[5] = 9
    t[6] |= 1
    total = 0
    for i in range(8):
        total = total * 3 + t[i]
    return total


def real(a: int, b: int, _t: Any) -> int:
    """Reals and back."""
    share = a / 7.0 + b
    if share < 0.0:
        share = share * -1.5
    return int(share)


@pytest.mark.parametrize("function", [arithmetic, choices, memory, real])
def test_compiled_functions_give_what_python_gives(function: Callable[..., int]) -> None:
    compiled = jit.Entry(function, (INT, INT, TABLE), keep=False)
    chance = random.Random(1)
    for _ in range(300):
        a, b = (chance.choice((chance.randint(-9, 9), chance.randint(-70_000, 70_000))) for _ in range(2))
        ours, theirs = np.zeros(8, np.int64), [0] * 8
        assert compiled(a, b, ours.ctypes.data) == function(a, b, theirs), (a, b)
        assert ours.tolist() == theirs


def bits(a: int, _b: int, _t: Any) -> int:
    return lowest(np.uint64(1) << np.uint64(a))  # type: ignore[no-any-return]


def test_the_lowest_bit_is_found() -> None:
    compiled = jit.Entry(bits, (INT, INT, TABLE), keep=False)
    assert [compiled(n, 0, 0) for n in range(64)] == list(range(64))


def asks_ahead(a: int, _b: int, t: Any) -> int:
    fetch(t, a * 1_000_000)
    return t[1]  # type: ignore[no-any-return]


def test_asking_for_memory_ahead_changes_nothing_wherever_it_lies() -> None:
    table = np.arange(8, dtype=np.int64)
    compiled = jit.Entry(asks_ahead, (INT, INT, TABLE), keep=False)
    assert [compiled(n, 0, table.ctypes.data) for n in (0, 1, -5, 10**9)] == [1, 1, 1, 1]
    assert table.tolist() == list(range(8))


def uses_a_list(a: int) -> int:
    return [a][0]


def changes_its_mind(a: int) -> int:
    found = a > 3
    found = a
    return found + 1


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (uses_a_list, r"test_compiler.py:\d+: '\[a\]' is not known"),
        (changes_its_mind, r"'found' is int; want bool"),
    ],
)
def test_what_the_compiler_does_not_know_is_an_error_with_its_line(
    function: Callable[..., int], said: str
) -> None:
    with pytest.raises(InternalError, match=said):
        Program().entry(function, (INT,))


def _function(file: Path, text: str) -> Callable[..., int]:
    """The function ``f`` of a file of such a text."""
    file.write_text(text)
    names: dict[str, Any] = {}
    exec(compile(text, str(file), "exec"), names)
    return names["f"]  # type: ignore[no-any-return]


def test_machine_code_is_named_after_every_file_that_its_source_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part or a constant may come from any of them; old machine code must never be met."""
    package = tmp_path / "epcgroup"
    (package / "room").mkdir(parents=True)
    monkeypatch.setattr(jit, "_PACKAGE", package)
    texts = {
        "near.py": "from epcgroup.room import (\n    far,\n)\n",
        "room/__init__.py": "import epcgroup.farthest\n",
        "room/far.py": "",
        "farthest.py": "",
    }
    for name, text in texts.items():
        (package / name).write_text(text)
    function = _function(tmp_path / "own.py", "def f(a):\n    from epcgroup import near\n")
    seen = {jit.Entry(function, (INT,)).place()}
    for name, text in texts.items():
        (package / name).write_text(f"{text}# changed\n")
        seen.add(jit.Entry(function, (INT,)).place())
    assert len(seen) == 1 + len(texts)
    assert jit.Entry(function, (INT, INT)).place() not in seen


def test_the_engines_files_are_found() -> None:
    found = {path.name for path in jit.sources(Path(entry.__file__))}
    assert {"jit.py", "expressions.py", "columns.py", "tables.py", "reclaim.py", "replay.py"} <= found


def test_a_part_from_a_file_that_is_not_imported_is_an_error(tmp_path: Path) -> None:
    """Its changes would not be seen."""
    function = _function(tmp_path / "own.py", "def f(a: int) -> int:\n    return g(a)\n")
    other = _function(tmp_path / "other.py", "def f(a: int) -> int:\n    return a + 1\n")
    function.__globals__["g"] = jit.part(other)
    with pytest.raises(InternalError, match=r"does not import .*other\.py"):
        jit.Entry(function, (INT,), keep=False)(3)


def test_damaged_machine_code_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EPCGROUP_CACHE_DIR", str(tmp_path))
    kinds = (INT, INT, TABLE)
    assert jit.Entry(real, kinds)(70, 1, 0) == 11
    assert "compiling the engine" in capsys.readouterr().err
    assert jit.Entry(real, kinds)(70, 1, 0) == 11
    assert capsys.readouterr().err == ""
    (kept,) = tmp_path.rglob("*.o")
    kept.write_bytes(kept.read_bytes()[:-100])
    assert jit.Entry(real, kinds)(70, 1, 0) == 11
    assert "compiling the engine" in capsys.readouterr().err


def test_where_nothing_can_be_kept_every_process_compiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("EPCGROUP_CACHE_DIR", str(tmp_path / "file"))
    assert jit.Entry(real, (INT, INT, TABLE))(70, 1, 0) == 11
