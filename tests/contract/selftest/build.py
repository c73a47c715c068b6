"""Build the kernel's own SGX selftest, unmodified, from Debian's kernel source.

`test_sgx` is the program by which the kernel's developers judge an SGX driver
on real hardware; it knows nothing of us, so it is our best witness. The source
is GPL and stays outside this repository: Debian's package ``linux-source-6.12``
(else ``6.1``) is downloaded into the cache, the few files that the selftest
needs are unpacked from it, and `make` builds them as they are.

A build is kept in ``$XDG_CACHE_HOME/epcgroup`` (else ``~/.cache/epcgroup``) under
the package's version, and appears there only when it is whole: it is made in a
temporary directory and renamed. Any later call takes it from there at once.

Where there is no Debian archive, build the selftest by hand in a kernel tree
(``make -C tools/testing/selftests/sgx``) and name its directory in
``$EPCGROUP_SELFTEST``.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

PACKAGES = {
    "linux-source-6.12": ["tools/include/uapi/linux/bits.h"],
    "linux-source-6.1": [],
}  # in order of preference, with the files that only this version needs

# Without x86/check_cc.sh the Makefile finds nothing to do, and says so with status 0.
FILES = [
    "arch/x86/include/asm/enclu.h",
    "arch/x86/include/asm/sgx.h",
    "arch/x86/include/uapi/asm/sgx.h",
    "tools/include/asm-generic/bitsperlong.h",
    "tools/include/linux/bits.h",
    "tools/include/linux/build_bug.h",
    "tools/include/linux/compiler-gcc.h",
    "tools/include/linux/compiler.h",
    "tools/include/linux/compiler_types.h",
    "tools/include/linux/const.h",
    "tools/include/linux/types.h",
    "tools/include/uapi/asm-generic/bitsperlong.h",
    "tools/include/uapi/linux/const.h",
    "tools/include/vdso/bits.h",
    "tools/include/vdso/const.h",
    "tools/testing/selftests/kselftest.h",
    "tools/testing/selftests/kselftest_harness.h",
    "tools/testing/selftests/lib.mk",
    "tools/testing/selftests/sgx",
    "tools/testing/selftests/x86/check_cc.sh",
    "tools/testing/selftests/x86/trivial_64bit_program.c",
]

PRODUCTS = ("test_sgx", "test_encl.elf")  # the program opens test_encl.elf in its working directory


class CannotBuild(Exception):
    """The selftest is not to be had here; the message says why and what helps."""


def selftest() -> Path:
    """The directory that holds ``test_sgx`` and ``test_encl.elf``, built when first asked for.

    Raises CannotBuild.
    """
    named = os.environ.get("EPCGROUP_SELFTEST")
    if named:
        if not complete(Path(named)):
            raise CannotBuild(f"EPCGROUP_SELFTEST={named}: no {' and '.join(PRODUCTS)} there")
        return Path(named).absolute()
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs at once build once
        return cached(cache) or build(cache)


def cache_directory() -> Path:
    """Where builds are kept, outside the repository."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "epcgroup" / "selftest"


def complete(directory: Path) -> bool:
    """Whether ``directory`` holds a finished build."""
    return all((directory / name).is_file() for name in PRODUCTS)


def cached(cache: Path) -> Path | None:
    """A build of the most preferred package that the cache has, newest first."""
    for package in PACKAGES:
        builds = sorted(cache.glob(f"{package}_*"), key=lambda path: path.stat().st_mtime, reverse=True)
        for directory in builds:
            if complete(directory / "sgx"):
                return directory / "sgx"
    return None


def build(cache: Path) -> Path:
    """Download, unpack and build the first package that the archive has.

    Raises CannotBuild.
    """
    with tempfile.TemporaryDirectory(prefix="building-", dir=cache) as scratch:
        package, archive = download(Path(scratch))
        root = unpack(package, archive, Path(scratch))
        source = root / "tools/testing/selftests/sgx"
        make(source)
        # The tree is kept with the program: its version says what was tested.
        target = cache / archive.name.rsplit("_", 1)[0]
        shutil.rmtree(target, ignore_errors=True)
        (root / "sgx").symlink_to("tools/testing/selftests/sgx")
        root.rename(target)
    return target / "sgx"


def download(directory: Path) -> tuple[str, Path]:
    """Download the kernel's source package into ``directory``: (name, the .deb file)."""
    if shutil.which("apt-get") is None:
        raise CannotBuild("no apt-get here; build the selftest by hand and name it in EPCGROUP_SELFTEST")
    failures = []
    for attempt in ("as the lists are", "after apt-get update"):
        if attempt != "as the lists are" and os.geteuid() == 0:
            # a fresh machine has no lists, an old one names versions that are gone
            run(["apt-get", "update", "-qq"], directory)
        for package in PACKAGES:
            try:
                run(["apt-get", "download", "-qq", package], directory)
            except CannotBuild as failure:
                failures.append(str(failure))
                continue
            return package, next(directory.glob(f"{package}_*.deb"))
    raise CannotBuild(
        f"neither of {', '.join(PACKAGES)} could be downloaded (try: apt-get update)\n" + "\n".join(failures)
    )


def unpack(package: str, archive: Path, directory: Path) -> Path:
    """Unpack the files of FILES from the tarball inside the package: the tree's root."""
    pipeline(
        [
            ["dpkg-deb", "--fsys-tarfile", str(archive)],
            ["tar", "--extract", "--to-stdout", f"./usr/src/{package}.tar.xz"],
            ["tar", "--extract", "--xz", *(f"{package}/{name}" for name in FILES + PACKAGES[package])],
        ],
        directory,
    )
    return directory / package


def make(source: Path) -> None:
    """Build the selftest in its own directory, as its Makefile says."""
    run(["make", "-s", f"OUTPUT={source}"], source)
    if not complete(source):
        raise CannotBuild(f"make in {source} succeeded but left no {' and '.join(PRODUCTS)}")


def plain_environment() -> dict[str, str]:
    """Our environment without the variables of a make that runs these tests."""
    kept = ("PATH", "HOME", "TMPDIR", "http_proxy", "https_proxy")
    return {**{name: os.environ[name] for name in kept if name in os.environ}, "LC_ALL": "C"}


def run(command: Sequence[str], directory: Path) -> None:
    """Run one command; raises CannotBuild with what it said."""
    try:
        done = subprocess.run(
            command, cwd=directory, env=plain_environment(), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600, check=False,
        )  # fmt: skip
    except FileNotFoundError as missing:
        raise CannotBuild(f"{command[0]} is missing: {missing}") from missing
    if done.returncode != 0:
        raise CannotBuild(f"{' '.join(command)}: status {done.returncode}\n{done.stdout[-4000:]}")


def pipeline(commands: Sequence[Sequence[str]], directory: Path) -> None:
    """Run commands as a shell pipe would; raises CannotBuild when any of them fails."""
    stages: list[subprocess.Popen[bytes]] = []
    for command in commands:
        last = command is commands[-1]
        stage = subprocess.Popen(
            command, cwd=directory, env=plain_environment(),
            stdin=stages[-1].stdout if stages else subprocess.DEVNULL,
            stdout=None if last else subprocess.PIPE,
        )  # fmt: skip
        if stages and stages[-1].stdout is not None:
            stages[-1].stdout.close()
        stages.append(stage)
    failed = [command[0] for command, stage in zip(commands, stages, strict=True) if stage.wait() != 0]
    if failed:
        raise CannotBuild(f"unpacking failed in: {', '.join(failed)}")


if __name__ == "__main__":
    print(selftest())
