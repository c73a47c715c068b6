#!/usr/bin/env python3
"""Prepare this checkout: system packages, the virtual environment, locked packages.

    python3 tools/setup.py demo    what `epcgroup demo` needs (core, plot)
    python3 tools/setup.py venv    all Python packages, tests and checks included
    python3 tools/setup.py test    the same, and a compiler with its headers
    python3 tools/setup.py bench   the same, and the packages that we are compared with

Called by the Makefile before everything else, so it is quick when nothing is
to be done: each step leaves a stamp in ``.venv`` that names what it did, and a
step whose stamp still fits is passed over.

Only this file runs outside the environment. It therefore uses the standard
library alone, and syntax that an older Python can read far enough to be told
that it is too old.

Packages come from ``requirements/*.txt`` with ``--require-hashes --no-deps``:
what is installed is what was locked. The project itself is installed with
``--no-build-isolation``, its build backend being one of the locked packages;
so nothing unlocked is ever fetched, and no package is built from source.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

OLDEST = (3, 11)
ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LEVELS = {
    "demo": ["demo.txt"],
    "venv": ["test.txt"],
    "test": ["test.txt"],
    "bench": ["test.txt", "bench.txt"],
}


def main(arguments: list[str]) -> int:
    """Bring the checkout to the level named on the command line; 0 when it is there."""
    if len(arguments) != 1 or arguments[0] not in LEVELS:
        sys.stderr.write(__doc__ or "")
        return 2
    level = arguments[0]
    require_python()
    missing = missing_for_venv()
    if level in ("test", "bench"):
        missing += missing_for_tests()
    if missing:
        install_system(missing)
    with (ROOT / "requirements" / LEVELS[level][0]).open() as turns:
        fcntl.flock(turns, fcntl.LOCK_EX)  # two makes at once take turns
        make_venv()
        for lock in LEVELS[level]:
            install_locked(lock)
        install_project()
    return 0


def say(text: str) -> None:
    """One line for the person who waits."""
    sys.stderr.write(f"epcgroup: {text}\n")


def stop(text: str) -> None:
    """End with a message that says what would be right."""
    say(text)
    raise SystemExit(1)


def require_python() -> None:
    """Stop unless the interpreter is new enough."""
    if sys.version_info[:2] < OLDEST:
        found = ".".join(str(number) for number in sys.version_info[:3])
        stop(
            f"Python 3.11 or newer is needed; {sys.executable} is {found}.\n"
            "  Install a newer one and name it: make PYTHON=python3.12 …"
        )


# -- system packages ---------------------------------------------------------


def missing_for_venv() -> list[tuple[str, str]]:
    """(Debian package, why) that must be there before an environment can be made."""
    if venv_works():
        return []
    probe = [sys.executable, "-c", "import ensurepip, venv"]
    if subprocess.run(probe, stderr=subprocess.DEVNULL, check=False).returncode == 0:
        return []
    if not sys.executable.startswith("/usr/bin/"):
        stop(
            f"{sys.executable} has no venv and ensurepip modules, which make the virtual environment.\n"
            "  Install them for that Python, or name another: make PYTHON=/usr/bin/python3 …"
        )
    return [("python3-venv", "makes the virtual environment")]


def missing_for_tests() -> list[tuple[str, str]]:
    """(Debian package, why) that the tests lack: a compiler, and the clients they run."""
    wanted = [
        ("make", "make", "builds the kernel's SGX selftest"),
        ("gcc", "gcc", "compiles the test programs"),
        ("ld", "binutils", "links the test programs"),
        ("objcopy", "binutils", "links the test programs"),
        ("xz", "xz-utils", "unpacks the kernel's source"),
        ("pgrep", "procps", "finds the processes that an end-to-end test must not leave behind"),
        ("fusermount3", "fuse3", "has the library and the tool that mount the cgroup files"),
        ("cgset", "cgroup-tools", "is a client that the cgroup files are tested with"),
        ("inotifywait", "inotify-tools", "watches the cgroup files in a test"),
        ("qemu-system-x86_64", "qemu-system-x86", "the virtual machine monitor of the contract tests"),
        ("runc", "runc", "is a container runtime that the machine is tested with"),
        ("crun", "crun", "is a container runtime that the machine is tested with"),
        ("podman", "podman", "is a container engine that the machine is tested with"),
        ("ctr", "containerd", "is a container engine that the machine is tested with"),
        ("busybox", "busybox-static", "is the user land of the containers in the tests"),
        ("systemd-cgls", "systemd", "is a client that the cgroup files are tested with"),
        ("valgrind", "valgrind", "records memory traces of real programs"),
        ("sqlite3", "sqlite3", "is a real program whose memory trace is recorded"),
        ("promtool", "prometheus", "checks the exporter's output"),
        ("chromium", "chromium", "shows the web page in a test"),
        ("chromedriver", "chromium-driver", "drives the browser in a test"),
        ("strace", "strace", "is a tracer: in our way outside the machine, at work in it"),
        ("gdb", "gdb", "is a debugger that the machine is tested with"),
        ("go", "golang-go", "builds a static program in a test"),
        ("rustc", "rustc", "builds a static program in a test"),
        ("git", "git", "lists the files that the house tests look through"),
    ]
    missing = {package: why for tool, package, why in wanted if shutil.which(tool) is None}
    for header, package in (("stdio.h", "libc6-dev"), ("openssl/evp.h", "libssl-dev")):
        if not has_header(header):
            missing[package] = f"has <{header}>, which the test programs include"
    for library, package in (
        ("python3.*/config-*/libpython3.*-pic.a", "libpython3-dev"),
        ("*/libsqlite3.a", "libsqlite3-dev"),
    ):
        if not any(Path("/usr/lib").glob(library)):
            missing[package] = "is a real program that runs inside an enclave in a test"
    return list(missing.items())


def has_header(header: str) -> bool:
    """Whether the C compiler finds ``header``; False without a compiler."""
    compiler = shutil.which("gcc")
    if compiler is None:
        return False
    command = [compiler, "-E", "-x", "c", "-include", header, "-o", os.devnull, os.devnull]
    return subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0


def install_system(missing: list[tuple[str, str]]) -> None:
    """Install Debian packages when we may; else say which, and stop."""
    names = [package for package, _ in missing]
    for package, why in missing:
        say(f"missing: {package} ({why})")
    if shutil.which("apt-get") is None:
        stop("install these by your system's package manager (the names are Debian's), then run make again")
    if os.geteuid() != 0:
        stop(f"run this, then make again:\n  sudo apt-get install {' '.join(names)}")
    say(f"installing with apt-get: {' '.join(names)}")
    environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    for command in (["update", "-q"], ["install", "-y", "-q", "--no-install-recommends", *names]):
        done = subprocess.run(
            ["apt-get", *command], env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        # A failed update may be one archive's of many; what counts is whether the install works.
        if done.returncode != 0 and command[0] == "install":
            sys.stderr.write(done.stdout.decode(errors="replace"))
            stop(f"apt-get install failed (above); install by hand, then run make again: {' '.join(names)}")


# -- the environment ---------------------------------------------------------


def venv_works() -> bool:
    """Whether ``.venv`` was made here, with a Python that still runs and is new enough."""
    if not PYTHON.exists():
        return False
    probe = f"import pip, sys; assert sys.version_info >= {OLDEST}; print(sys.prefix)"
    done = subprocess.run(
        [str(PYTHON), "-c", probe], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False
    )
    moved = stamp("project").exists() and not stamp("project").read_text().endswith(f"{VENV}\n")
    return done.returncode == 0 and done.stdout.decode().strip() == str(VENV) and not moved


def make_venv() -> None:
    """Make ``.venv`` unless a working one is there; a broken or moved one is made anew."""
    if venv_works():
        return
    say(f"making .venv with {sys.executable} ({'.'.join(map(str, sys.version_info[:3]))})")
    run([sys.executable, "-m", "venv", "--clear", str(VENV)])


def install_locked(lock: str) -> None:
    """Install the packages of one lock file, by hash, wheels only."""
    path = ROOT / "requirements" / lock
    facts = digest(path)
    if stamp(lock).exists() and stamp(lock).read_text() == facts:
        return
    say(f"installing the packages locked in requirements/{lock}")
    # The locks pin the same versions (a test sees to it), and the larger one holds the smaller.
    satisfied = ("demo.txt", "test.txt") if lock == "test.txt" else (lock,)
    before = {name: digest(ROOT / "requirements" / name) for name in satisfied}  # pip takes a while
    pip("--require-hashes", "--no-deps", "--only-binary=:all:", "-r", str(path))
    for name, text in before.items():
        stamp(name).write_text(text)


def install_project() -> None:
    """Install epcgroup itself, editable, with the locked build backend."""
    facts = digest(ROOT / "pyproject.toml", ROOT / "src" / "epcgroup" / "__init__.py")
    if stamp("project").exists() and stamp("project").read_text() == facts:
        return
    say("installing epcgroup itself")
    pip("--no-deps", "--no-build-isolation", "--no-index", "--editable", str(ROOT))
    stamp("project").write_text(facts)


def pip(*arguments: str) -> None:
    """Run the environment's pip install; no version check, no questions."""
    run([str(PYTHON), "-m", "pip", "--disable-pip-version-check", "--no-input", "install", "-q", *arguments])


def run(command: list[str]) -> None:
    """Run a step whose failure ends the set-up; its own message stands above ours."""
    if subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode != 0:
        stop(f"this step failed: {' '.join(command)}")


def stamp(name: str) -> Path:
    """The stamp file of one step."""
    return VENV / f"epcgroup-{name}.stamp"


def digest(*paths: Path) -> str:
    """What a stamp says: the digest of the step's inputs, and where the environment is."""
    total = hashlib.sha256()
    for path in paths:
        total.update(path.read_bytes())
    return f"{total.hexdigest()} {VENV}\n"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
