"""An enclave as a file that a small loader in any language can read: that of `epcgroup stress`.

u64 size, threads, segments; per segment u64 offset, length, SECINFO flags, measured, bytes of contents
SECS (BASE to be filled in); contents of the segments; SIGSTRUCT
"""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

from tests.programs.build import HERE, BuildError, cached

from epcgroup.sgx.sign import SigningKey
from epcgroup.stress.image import Image

THREADS, HEAP = 2, 64


def write(path: Path) -> Path:
    """Write one, freshly signed."""
    image = Image(THREADS, HEAP)
    segments = list(image.segments())
    head = struct.pack("<QQQ", image.size, image.threads, len(segments))
    for s in segments:
        head += struct.pack("<QQQQQ", s.offset, s.length, s.flags, s.measured, len(s.contents))
    contents = b"".join(segment.contents for segment in segments)
    path.write_bytes(head + image.secs(0) + contents + image.certificate(SigningKey.generate()))
    return path


def loader(language: str) -> Path:
    """The static loader in "go" or "rust", built once per source."""
    build = {
        "go": ["env", "CGO_ENABLED=0", "go", "build", "-trimpath", "-o", "{}", "."],
        "rust": [
            "rustc",
            "--edition",
            "2021",
            "-O",
            "-C",
            "target-feature=+crt-static",
            "-o",
            "{}",
            "main.rs",
        ],
    }[language]

    def compile_into(work: Path) -> None:
        words = [word.format(work / "loader") for word in build]
        done = subprocess.run(words, cwd=HERE / language, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BuildError(done.stderr)

    return cached(language.encode(), sorted((HERE / language).iterdir()), compile_into) / "loader"
