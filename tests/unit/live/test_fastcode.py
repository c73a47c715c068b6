from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from epcgroup.live.fastpath import code as fastcode
from epcgroup.live.fastpath import table as fasttable

HERE = Path(fastcode.__file__).parent


@pytest.mark.needs("gcc")
@pytest.mark.parametrize(
    ("source", "code", "places"),
    [
        (
            "fast_enter.S",
            fastcode.ENTER,
            {
                "enter": 0,
                "at_body": fastcode.ENTER_BODY,
                "at_commit": fastcode.ENTER_COMMIT,
                "at_bail": fastcode.ENTER_BAIL,
                "at_table": fastcode.ENTER_TABLE,
            },
        ),
        (
            "fast_exit.S",
            fastcode.EXIT,
            {
                "exit": 0,
                "at_park": fastcode.EXIT_PARK,
                "at_parked": fastcode.EXIT_PARKED,
                "at_trap": fastcode.EXIT_TRAP,
                "at_table": fastcode.EXIT_TABLE,
            },
        ),
    ],
)
def test_the_bytes_are_those_of_the_source(
    tmp_path: Path, source: str, code: bytes, places: dict[str, int]
) -> None:
    subprocess.run(["gcc", "-c", "-o", tmp_path / "a.o", HERE / source], check=True, timeout=60)
    subprocess.run(
        ["objcopy", "-O", "binary", "-j", ".text", tmp_path / "a.o", tmp_path / "a.bin"], check=True
    )
    assert (tmp_path / "a.bin").read_bytes() == code
    listing = subprocess.run(["nm", tmp_path / "a.o"], capture_output=True, text=True, check=True).stdout
    assert places == {
        name: int(value, 16) for value, kind, name in map(str.split, listing.splitlines()) if kind == "T"
    }


def test_nothing_in_the_code_waits_for_a_linker() -> None:
    """All addresses are within the code: it is copied as it is."""
    for source in ("fast_enter.S", "fast_exit.S"):
        text = (HERE / source).read_text()
        assert "at_table(%rip)" not in text.replace(".Ltable(%rip)", "")


def test_a_jump_leads_where_it_should() -> None:
    assert fastcode.jmp(0x1000, 0x1005) == b"\xe9\0\0\0\0"
    assert fastcode.jmp(0x2000, 0x1000) == b"\xe9" + (-0x1005 & 0xFFFFFFFF).to_bytes(4, "little")
    with pytest.raises(OverflowError):
        fastcode.jmp(0, 1 << 32)


def test_the_table_and_the_code_agree_on_its_shape() -> None:
    """The sizes are written in the assembly as well."""
    text = (HERE / "fast_enter.S").read_text()
    assert f"SLOTS, {fasttable.SLOTS}\t" in text
    assert f"shrl\t${32 - fasttable.BUCKETS.bit_length() + 1}, %edi" in text
    assert text.count("addq\t$64, %r8") == fasttable.PROBES - 1
