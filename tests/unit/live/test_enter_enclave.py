from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from epcgroup.live.enclave import enter_enclave

SOURCE = Path(enter_enclave.__file__).with_name("enter_enclave.S")


@pytest.mark.needs("gcc")
def test_the_bytes_are_those_of_the_source(tmp_path: Path) -> None:
    subprocess.run(["gcc", "-c", "-o", tmp_path / "a.o", SOURCE], check=True, timeout=60)
    subprocess.run(
        ["objcopy", "-O", "binary", "-j", ".text", tmp_path / "a.o", tmp_path / "a.bin"], check=True
    )
    assert (tmp_path / "a.bin").read_bytes() == enter_enclave.CODE
    listing = subprocess.run(["nm", tmp_path / "a.o"], capture_output=True, text=True, check=True).stdout
    places = {
        name: int(value, 16) for value, kind, name in map(str.split, listing.splitlines()) if kind == "T"
    }
    assert places == {
        "enter_enclave": 0,
        "at_jump": enter_enclave.JUMP,
        "at_enclu": enter_enclave.ENCLU,
        "at_fixup": enter_enclave.FIXUP,
    }


def test_the_enclu_is_where_it_should_be() -> None:
    at = enter_enclave.ENCLU
    assert enter_enclave.CODE[at : at + 3] == enter_enclave.ENCLU_INSN
