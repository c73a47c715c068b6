"""`epcgroup top` and the choice of a source, by arguments and output."""

from __future__ import annotations

from pathlib import Path

import pytest

from epcgroup.cli.main import main


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The files of a kernel with one cgroup below the root, named to do harm."""
    for path, files in {
        "": {
            "cgroup.controllers": "misc",
            "misc.capacity": "sgx_epc 67108864",
            "misc.current": "sgx_epc 8192",
        },
        "a[red]\x1b[2J": {
            "cgroup.controllers": "misc",
            "misc.max": "sgx_epc 4096",
            "misc.current": "sgx_epc 4096",
        },
    }.items():
        (tmp_path / path).mkdir(exist_ok=True)
        for name, text in files.items():
            (tmp_path / path / name).write_text(text + "\n")
    return tmp_path


def test_once_prints_a_table_of_a_kernels_files(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--once", "--root", str(root)]) == 0
    shown = capsys.readouterr().out
    assert "EPC 64M, 64.0M free" in shown
    assert "a[red]\\x1b[2J" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--interval", "0"], "--interval 0: 0.05 to 3600 seconds"),
        ([], "top needs a terminal; --once prints a table anywhere"),
        (["--once", "--root", "/none", "--sim", "/none"], "give one of them"),
        (["--once", "--dir", "/none"], "no server answers at /none/control"),
        (["--once", "--sim", "/none"], "/none: no result of 'epcgroup sim'"),
        (["--once", "--sim", "/dev/null"], "/dev/null: no result of 'epcgroup sim' (Not a directory"),
        (["--once", "--root", "/none"], "/none is no cgroup v2 directory"),
    ],
)
def test_what_cannot_be_shown_is_said(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["top", *words]) in (1, 2)
    assert said in capsys.readouterr().err
