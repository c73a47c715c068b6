"""The set-up: it says what is missing, installs what it may, and does nothing twice."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "setup.py"


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The set-up tool, loaded anew, at work on a small checkout that has nothing yet."""
    spec = importlib.util.spec_from_file_location("epcgroup_setup", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "requirements").mkdir()
    (tmp_path / "src" / "epcgroup").mkdir(parents=True)
    locks = [f"requirements/{name}.txt" for name in ("demo", "test", "bench")]
    for name in [*locks, "pyproject.toml", "src/epcgroup/__init__.py"]:
        (tmp_path / name).write_text(f"# {name}\n")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(module, "PYTHON", tmp_path / ".venv" / "bin" / "python")
    return module


@pytest.fixture
def commands(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """What the set-up runs, recorded; an environment appears, packages do not."""
    recorded: list[Sequence[str]] = []

    def run(command: Sequence[str]) -> None:
        recorded.append(command)
        setup.PYTHON.parent.mkdir(parents=True, exist_ok=True)
        setup.PYTHON.touch()

    monkeypatch.setattr(setup, "run", run)
    monkeypatch.setattr(setup, "venv_works", lambda: setup.PYTHON.exists())
    monkeypatch.setattr(setup, "missing_for_venv", list)
    monkeypatch.setattr(setup, "missing_for_tests", list)
    return recorded


def steps(commands: list[Sequence[str]]) -> list[str]:
    """The telling word of each command."""
    words = {"venv": "venv", "--require-hashes": "packages", "--editable": "project"}
    return [next(step for word, step in words.items() if word in command) for command in commands]


def test_the_first_run_does_everything_and_the_second_nothing(
    setup: ModuleType, commands: list[Sequence[str]]
) -> None:
    assert setup.main(["demo"]) == 0
    assert steps(commands) == ["venv", "packages", "project"]
    commands.clear()
    assert setup.main(["demo"]) == 0
    assert commands == []


def test_who_has_the_test_packages_has_those_of_the_demo(
    setup: ModuleType, commands: list[Sequence[str]]
) -> None:
    setup.main(["venv"])
    commands.clear()
    setup.main(["demo"])
    assert commands == []


def test_the_benchmarks_peers_come_beside_the_test_packages(
    setup: ModuleType, commands: list[Sequence[str]]
) -> None:
    setup.main(["test"])
    commands.clear()
    setup.main(["bench"])
    assert [command[-1] for command in commands] == [str(setup.ROOT / "requirements/bench.txt")]


@pytest.mark.parametrize(
    ("changed", "redone"), [("requirements/test.txt", "packages"), ("pyproject.toml", "project")]
)
def test_a_changed_input_repeats_its_own_step_only(
    setup: ModuleType, commands: list[Sequence[str]], changed: str, redone: str
) -> None:
    setup.main(["venv"])
    commands.clear()
    (setup.ROOT / changed).write_text("# changed\n")
    setup.main(["venv"])
    assert steps(commands) == [redone]


def test_packages_come_by_hash_as_wheels_and_the_project_without_a_network(
    setup: ModuleType, commands: list[Sequence[str]]
) -> None:
    setup.main(["test"])
    _, packages, project = commands
    assert {"--require-hashes", "--no-deps", "--only-binary=:all:"} <= set(packages)
    assert {"--no-index", "--no-deps", "--no-build-isolation"} <= set(project)


def test_a_step_that_fails_ends_the_set_up_and_leaves_no_stamp(
    setup: ModuleType, commands: list[Sequence[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    setup.main(["demo"])
    (setup.ROOT / "requirements/demo.txt").write_text("# changed\n")
    commands.clear()

    def fail(command: Sequence[str]) -> None:  # noqa: ARG001 - stands for run
        setup.stop("this step failed")

    monkeypatch.setattr(setup, "run", fail)
    with pytest.raises(SystemExit):
        setup.main(["demo"])
    assert setup.stamp("demo.txt").read_text() != setup.digest(setup.ROOT / "requirements/demo.txt")


def test_an_old_python_is_told_what_is_needed(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(setup.sys, "version_info", (3, 9, 2))
    with pytest.raises(SystemExit) as end:
        setup.main(["demo"])
    assert end.value.code == 1
    message = capsys.readouterr().err
    assert "3.11" in message
    assert "3.9.2" in message
    assert "make PYTHON=" in message


def test_who_is_not_root_is_given_the_command_and_nothing_is_run(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(setup.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(setup.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(setup.subprocess, "run", never)
    with pytest.raises(SystemExit):
        setup.install_system([("gcc", "compiles the test programs"), ("xz-utils", "unpacks")])
    message = capsys.readouterr().err
    assert "gcc (compiles the test programs)" in message
    assert "sudo apt-get install gcc xz-utils" in message


def test_where_there_is_no_apt_the_packages_are_named(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(setup.shutil, "which", lambda name: None)  # noqa: ARG005 - stands for which
    monkeypatch.setattr(setup.subprocess, "run", never)
    with pytest.raises(SystemExit):
        setup.install_system([("gcc", "compiles the test programs")])
    assert "the names are Debian's" in capsys.readouterr().err


def never(*_: Any, **__: Any) -> None:
    """Stands for what must not be called."""
    pytest.fail("the set-up ran a command that it must not run")


def test_apt_gets_the_missing_packages_and_is_heard_only_when_it_fails(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[Sequence[str]] = []

    def apt(command: Sequence[str], **_: Any) -> SimpleNamespace:
        ran.append(command)
        return SimpleNamespace(returncode=100 if "gcc" in command else 0, stdout=b"E: no such package\n")

    monkeypatch.setattr(setup.os, "geteuid", lambda: 0)
    monkeypatch.setattr(setup.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(setup.subprocess, "run", apt)
    setup.install_system([("xz-utils", "unpacks")])
    assert [command[:2] for command in ran] == [["apt-get", "update"], ["apt-get", "install"]]
    assert "E:" not in capsys.readouterr().err
    with pytest.raises(SystemExit):
        setup.install_system([("gcc", "compiles")])
    assert "E: no such package" in capsys.readouterr().err


def test_without_a_compiler_every_header_counts_as_missing(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup.shutil, "which", lambda name: None)  # noqa: ARG005 - stands for which
    names = [package for package, _ in setup.missing_for_tests()]
    assert "gcc" in names
    assert names[-2:] == ["libc6-dev", "libssl-dev"]


@pytest.mark.needs("gcc")
def test_a_header_is_found_by_asking_the_compiler(setup: ModuleType) -> None:
    assert setup.has_header("stdio.h")
    assert not setup.has_header("no/such/header.h")


def test_a_moved_environment_is_not_trusted(setup: ModuleType) -> None:
    """Its scripts name the old place in their first lines."""
    setup.VENV.mkdir()
    made = subprocess.run([setup.sys.executable, "-m", "venv", str(setup.VENV)], check=False)
    assert made.returncode == 0
    assert setup.venv_works()
    setup.stamp("project").write_text("digest /elsewhere/.venv\n")
    assert not setup.venv_works()
    shutil.rmtree(setup.VENV)
    assert not setup.venv_works()
