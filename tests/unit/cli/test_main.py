"""The frame of the command line."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from epcgroup import __version__
from epcgroup.cli import main as frame
from epcgroup.cli.examples import EXAMPLES
from epcgroup.errors import BadInput, EpcgroupError, InternalError, MissingCapability, NoEpc

MOST_MODULES = 150  # imported for a help text; a bare interpreter has 30 to 60


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], int]], None]:
    """Puts a command `try` in place whose run is the given function."""

    def put(function: Callable[[], int]) -> None:
        def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
            subparsers.add_parser("try").set_defaults(func=lambda _: function())

        monkeypatch.setattr(frame, "COMMANDS", {"try": "tries"})
        monkeypatch.setattr(
            frame,
            "importlib",
            SimpleNamespace(import_module=lambda _: SimpleNamespace(add_parser=add_parser)),
        )

    return put


def raising(error: BaseException) -> Callable[[], int]:
    def function() -> int:
        raise error

    return function


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (BadInput("4Q is no size"), 2, "epcgroup: 4Q is no size\n"),
        (MissingCapability("no device"), 2, "epcgroup: no device\n"),
        (NoEpc("the limit is too small"), 1, "epcgroup: the limit is too small\n"),
        (EpcgroupError("something"), 1, "epcgroup: something\n"),
        (InternalError("page owned twice"), 70, "epcgroup: bug: page owned twice\n"),
        (KeyboardInterrupt(), 130, ""),
        (OSError(28, "No space left on device"), 1, "epcgroup: No space left on device\n"),
        (FileNotFoundError(2, "No such file", "x"), 1, "epcgroup: x: No such file\n"),
        (MemoryError("4 PiB"), 1, "epcgroup: not enough memory; smaller sizes need less (4 PiB)\n"),
    ],
)
def test_errors_are_one_line_and_a_status(
    error: BaseException,
    status: int,
    said: str,
    command: Callable[[Callable[[], int]], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    command(raising(error))
    assert frame.main(["try"]) == status
    assert capsys.readouterr() == ("", said)


def test_status_of_the_command_is_passed_on(command: Callable[[Callable[[], int]], None]) -> None:
    command(lambda: 7)
    assert frame.main(["try"]) == 7


def test_traceback_can_be_had(
    command: Callable[[Callable[[], int]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    command(raising(BadInput("x")))
    monkeypatch.setenv("EPCGROUP_TRACEBACK", "1")
    with pytest.raises(BadInput):
        frame.main(["try"])


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_an_encoding_without_our_characters_is_no_failure(encoding: str) -> None:
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "epcgroup.cli.main", "run", "--help"]
    done = subprocess.run(
        command, env={**environment, "PYTHONIOENCODING": encoding}, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"SIZE[@NODE]," in done.stdout


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        frame.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"epcgroup {__version__}\n"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        frame.main(["--help"])
    shown = capsys.readouterr().out
    for name in frame.COMMANDS:
        assert f"    {name}" in shown


@pytest.mark.parametrize("words", [[], ["dance"], ["stress", "--dance"], ["doctor", "dance"]])
def test_wrong_usage_is_status_two(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """And the usage is that of the command, if there is one."""
    with pytest.raises(SystemExit) as caught:
        frame.main(words)
    assert caught.value.code == 2
    command = words[0] if len(words) == 2 else "[-h]"
    assert f"usage: epcgroup {command} " in capsys.readouterr().err


def test_every_command_has_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    for name in frame.COMMANDS:
        with pytest.raises(SystemExit) as caught:
            frame.main([name, "--help"])
        assert caught.value.code == 0
        assert f"usage: epcgroup {name}" in capsys.readouterr().out


@pytest.mark.parametrize("name", frame.COMMANDS)
def test_the_help_of_every_command_ends_with_an_example_that_is_understood(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    example = shlex.split(EXAMPLES[name].rpartition("; ")[2])
    assert example[0] == "epcgroup"
    assert name in example
    frame._parsed(example[1:])
    with pytest.raises(SystemExit):
        frame.main([name, "--help"])
    assert EXAMPLES[name] in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("words", [["--help"], ["stress", "--help"], ["run", "--help"]])
def test_help_comes_at_once(words: list[str]) -> None:
    """What takes time is importing, so it is imports that are counted, by the interpreter's own account."""
    command = [sys.executable, "-X", "importtime", "-m", "epcgroup.cli.main", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr.count("import time:") < MOST_MODULES


@pytest.mark.parametrize(
    ("command", "unwanted"),
    [
        ("run", ["rich", "cryptography", "epcgroup.live", "epcgroup.stress"]),
        ("stress", ["rich", "epcgroup.epc", "epcgroup.driver", "epcgroup.live", "epcgroup.observe"]),
    ],
)
def test_commands_load_only_what_they_need(command: str, unwanted: list[str]) -> None:
    code = (
        "import sys, contextlib\n"
        "from epcgroup.cli.main import main\n"
        f"with contextlib.suppress(SystemExit): main([{command!r}, '--help'])\n"
        f"print([name for name in {unwanted} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_reader_that_goes_away_is_no_error_message() -> None:
    code = "import sys; from epcgroup.cli.main import main; sys.exit(main(['conform', '--help']))"
    done = subprocess.run(
        ["sh", "-c", f'"{sys.executable}" -c "{code}" | true'], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""


@pytest.mark.parametrize("number", ["nan", "inf", "-1"])
@pytest.mark.parametrize(
    "words", [("watch", "/", "--interval"), ("events", "--timeout"), ("record", "t.parquet", "--seconds")]
)
def test_what_is_no_time_is_refused_before_anything_else(
    words: tuple[str, ...], number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not a number lasts neither long nor short: it never ended, or ended in a traceback."""
    assert frame.main([*words, number]) == 2
    assert f"{words[-1]} {number}" in capsys.readouterr().err
