"""The program that a command line means."""

from __future__ import annotations

from pathlib import Path

import pytest

from epcgroup.errors import BadInput
from epcgroup.programs import find_program, not_started, shell_for


def test_what_cannot_be_executed_is_refused_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name, why in (
        (str(tmp_path), "it is a directory"),
        (str(tmp_path / "file"), "it may not be executed"),
        (str(tmp_path / "none"), "no such program"),
        ("", "'': no such program"),
    ):
        with pytest.raises(BadInput, match=why):
            find_program(name)
    assert find_program("/bin/sh") == "/bin/sh"


def test_a_text_without_an_interpreter_is_the_shells(tmp_path: Path) -> None:
    """As execvp does it, and so every program that starts others."""
    script, binary = tmp_path / "script", tmp_path / "binary"
    script.write_text("echo hi")
    binary.write_bytes(b"\x7fELF\0")
    assert shell_for(str(script), ["script", "a"]) == ("/bin/sh", ["/bin/sh", str(script), "a"])
    assert shell_for(str(binary), ["binary"]) is None
    assert shell_for(str(tmp_path / "none"), ["none"]) is None


def test_a_missing_interpreter_is_not_a_missing_program(tmp_path: Path) -> None:
    (tmp_path / "script").write_text("#!/nowhere/sh\n")
    missing = FileNotFoundError(2, "No such file or directory")
    assert "interpreter" in not_started(str(tmp_path / "script"), missing)
    assert not_started("/nowhere/x", missing) == "/nowhere/x: No such file or directory"
