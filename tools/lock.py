#!/usr/bin/env python3
"""Compile the lock files from pyproject.toml: `make lock`.

``requirements/demo.txt`` holds what `make demo` needs: the dependencies, the
``plot`` extra and the build backend. ``requirements/test.txt`` adds the other
extras and is compiled under the first, so that a package has one version;
``requirements/bench.txt``, what `make bench` needs beside it, under the second
and without what these packages name as their own needs (libcachesim fetches
traces from a cloud; what we use of it needs numpy alone).

One version of each package serves every supported Python (``--universal``
with the fewest forks), and the hashes are those of all its files. The files
name no index: packages come from wherever pip is set up to look.

The compiler (uv) is installed into a temporary environment and leaves with it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEADER = "# Locked: what `make {}` needs{}. Compiled by `make lock`; do not edit.\n"
BESIDE = {"demo": "", "test": ", demo.txt included", "bench": " beside test.txt"}
EDITABLE = "editables"  # hatchling asks for it when a project is installed editable
OPTIONS = [
    "--universal", "--fork-strategy=fewest", "--python-version=3.11", "--generate-hashes",
    "--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links", "--upgrade", "--quiet",
]  # fmt: skip


def main() -> int:
    """Write the lock files; returns 0, or raises CalledProcessError from the compiler."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project, backend = pyproject["project"], pyproject["build-system"]["requires"]
    extras = project["optional-dependencies"]
    demo = [*backend, EDITABLE, *project["dependencies"], *extras["plot"]]
    test = demo + [need for name in ("audit", "observe", "serve", "sim", "test") for need in extras[name]]
    with tempfile.TemporaryDirectory() as directory:
        venv = Path(directory) / "venv"
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        subprocess.run([str(venv / "bin/python"), "-m", "pip", "install", "-q", "uv"], check=True)
        for name, wanted, under in (
            ("demo", demo, None), ("test", test, "demo"), ("bench", extras["bench"], "test")
        ):  # fmt: skip
            source, target = Path(directory) / f"{name}.in", ROOT / "requirements" / f"{name}.txt"
            source.write_text("\n".join(wanted) + "\n")
            command = [str(venv / "bin/uv"), "pip", "compile", *OPTIONS, str(source)]
            if name == "bench":
                command.append("--no-deps")
            if under is not None:
                command += ["--constraint", str(ROOT / f"requirements/{under}.txt")]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            header = HEADER.format(name, BESIDE[name])
            target.write_text(header + done.stdout)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
