from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epcgroup.live.enclave.insnlen import length

LINE = re.compile(r"\s*[0-9a-f]+:\t((?:[0-9a-f]{2} )+)\s*\t?(.*)")


@pytest.mark.parametrize(
    "code",
    [
        "0fa2", "0f05", "0f01d7", "0f0b", "cd80", "c3", "f30f1efa",  # cpuid … endbr64
        "e90fa2ffff", "0f84112233ff", "eb10", "e811223344",  # jumps and calls
        "48c7c004000000", "b804000000", "48b81122334455667788", "66b81122",  # moves of immediates
        "48a11122334455667788", "67a111223344",  # moves from absolute addresses
        "488b442408", "8b0511223344", "8b042511223344", "8b84c811223344", "42c7441dfc11223344",
        "f6c101", "f7c111223344", "66f7c11122", "f7d9", "48f7e1",  # TEST has an immediate, NEG not
        "c8112233", "c21122", "6a01", "6811223344", "69c011223344", "6bc001", "80ca01", "6681c91122",
        "0fba6a0105", "0fc6c111", "660f3a0fc108", "660f3800c1", "0f20c0",
        "c5f877", "c5f96ec0", "c4e37d18c101", "c4e2f9f7c1", "c5f970c1e4",
        "62f17c48100511223344", "62f3fd48c2c101", "62f57c4858c1", "8fe97880c1", "8fe878c0c101",
        "660f78c00102", "f0480fb10f", "64488b042528000000", "66660f1f840000000000", "0f0fc1b4",
    ],
)  # fmt: skip
def test_lengths_of_every_form(code: str) -> None:
    data = bytes.fromhex(code)
    assert length(data + bytes(16)) == len(data)
    assert length(data) == len(data)
    assert length(data[:-1]) == 0, "an instruction cut off is none"


@pytest.mark.parametrize(
    "code", ["06", "0e", "27", "60", "82c001", "9a112233445566", "d4", "ea", "0f04", "0f0a"]
)
def test_what_is_no_instruction_in_64_bit_mode(code: str) -> None:
    assert length(bytes.fromhex(code) + bytes(16)) == 0


@given(st.binary(max_size=20), st.integers(0, 20))
def test_any_bytes_have_a_length_within_them(code: bytes, at: int) -> None:
    assert 0 <= length(code, at) <= max(0, min(15, len(code) - at))


def _loaded_library(name: str) -> Path:
    """A library that this Python has mapped, whatever distribution it is of."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = Path(line.split(None, 5)[-1])
        if path.name.startswith(name):
            return path
    pytest.fail(f"no {name} in this process")


@pytest.mark.needs("x86-64", "gcc")
@pytest.mark.parametrize("name", ["ld-", "libm"])
def test_agrees_with_objdump_on_real_libraries(name: str) -> None:
    """The loader is plain C, libm has the vector instructions of every generation."""
    listing = subprocess.run(
        ["objdump", "-d", "-w", "--insn-width=16", _loaded_library(name)],
        capture_output=True, text=True, check=True, timeout=60,
    ).stdout  # fmt: skip
    seen = 0
    for match in filter(None, map(LINE.match, listing.splitlines())):
        code, text = bytes.fromhex(match[1].replace(" ", "")), match[2]
        if "(bad)" in text:
            continue
        # FWAIT before an x87 instruction is one for objdump, two for the processor.
        if code[0] == 0x9B and len(code) > 1:
            code = code[1:]
        assert length(code + bytes(16)) == len(code), f"{code.hex()} {text}"
        seen += 1
    assert seen > 10_000
