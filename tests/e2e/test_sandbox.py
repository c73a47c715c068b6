"""A program that restricts itself by seccomp, as browsers, daemons and containers do, keeps its enclave."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.e2e.machine import NEEDS
from tests.programs.build import build

EPCGROUP = str(Path(sys.executable).parent / "epcgroup")

pytestmark = [pytest.mark.needs(*NEEDS), pytest.mark.usefixtures("enclu"), pytest.mark.timeout(240)]

# Kills for calls of another architecture; refuses mkdir and userfaultfd; then becomes the program.
RESTRICTED = """
import ctypes, mmap, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
filter = [(0x20, 0, 0, 4), (0x15, 1, 0, 0xC000003E), (6, 0, 0, 0x80000000), (0x20, 0, 0, 0),
          (0x15, 1, 0, 83), (0x15, 0, 1, 323), (6, 0, 0, 0x00050001), (6, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *line) for line in filter))
head = ctypes.create_string_buffer(struct.pack("<H6xQ", len(filter), ctypes.addressof(code)))
assert libc.prctl(38, 1, 0, 0, 0) == 0
by = sys.argv[1]
if by == "prctl":
    assert libc.prctl(22, 2, head) == 0
else:
    assert libc.syscall(317, 1, 0, head) == 0
try:
    os.mkdir("made")
except PermissionError:
    print("mkdir refused")
page = mmap.mmap(-1, 4096, prot=7)
page.write(b"\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3")  # getpid, the 32-bit way
call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
print("32-bit call", call(), flush=True)
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.mark.parametrize("by", ["seccomp", "prctl"])
def test_an_enclave_pages_under_a_programs_own_filter(by: str, tmp_path: Path) -> None:
    """Its filter would kill for our traps, and refuse what we have it call; for its own calls it holds."""
    report = tmp_path / "report"
    words = [EPCGROUP, "run", "--epc", "2M", "--report", "json", "--report-file", str(report), "--"]
    program = [sys.executable, "-c", RESTRICTED, by, str(build() / "load"), "once", "768"]
    done = subprocess.run(
        [*words, *program], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "mkdir refused\n32-bit call -38\nready\n"
    assert json.loads(report.read_text())["groups"][0]["pages_out"] > 256
