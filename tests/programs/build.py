"""Build the SGX test programs with the system's C compiler, into a cache outside the repository.

    python tests/programs/build.py        prints the directory with the programs

The cache is keyed by the sources and the compiler, so a second call costs a few milliseconds.
The signing key of the test enclaves is made here once per cache and never leaves it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import rsa

HERE = Path(__file__).resolve().parent
COMMON = ["-O2", "-Wall", "-Wextra", "-Werror"]
# One flat image without data, without calls the compiler invents, without vector registers:
# what a register test finds changed, somebody else changed.
ENCLAVE = [
    *COMMON, "-ffreestanding", "-fpie", "-fvisibility=hidden", "-fno-stack-protector", "-fcf-protection=none",
    "-fno-asynchronous-unwind-tables", "-fno-jump-tables", "-fno-tree-loop-distribute-patterns",
    "-mgeneral-regs-only", "-mno-red-zone",
]  # fmt: skip
HOST = [*COMMON, "-fPIC", "-pthread", "-Wno-clobbered"]
STATIC = ["basics", "load", "processes", "t1_sigill", "t3_state", "t6_syscall"]


class BuildError(Exception):
    """The compiler is missing or refused a source."""


def cache_root() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "epcgroup" / "programs"


def build() -> Path:
    """The directory with all programs, built now if it is not there.

    Raises BuildError with the compiler's words.
    """
    if shutil.which("gcc") is None or shutil.which("ld") is None:
        raise BuildError("the SGX test programs need gcc and binutils: apt install gcc libc6-dev")
    version = subprocess.run(["gcc", "-v"], capture_output=True, check=True).stderr
    return cached(version, _sources(), _compile)


def cached(version: bytes, sources: list[Path], compile_into: Callable[[Path], None]) -> Path:
    """The directory that ``compile_into`` filled for these sources and this compiler, now or before."""
    root = cache_root()
    root.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(version)
    for path in sources:
        digest.update(f"{path.relative_to(HERE)}\0".encode() + path.read_bytes())
    target = root / digest.hexdigest()[:20]
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            work = root / f"{target.name}.{os.getpid()}"
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            compile_into(work)
            work.rename(target)
    return target


def _sources() -> list[Path]:
    rooms = [path for room in ("enclave", "host", "cases") for path in (HERE / room).iterdir()]
    return sorted([*rooms, Path(__file__).resolve()])


def run(work: Path, *command: str | Path) -> None:
    """Run a tool in ``work``; BuildError with its words if it fails."""
    done = subprocess.run([*map(str, command)], cwd=work, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{' '.join(map(str, command))}\n{done.stderr}")


def _compile(work: Path) -> None:
    _make_key(work / "key.h")
    _enclave_image(work)
    run(work, "gcc", "-c", HERE / "host/image.S", "-o", "image.o")  # .incbin enclave.bin from here
    host = [p for p in sorted((HERE / "host").glob("*.[cS]")) if p.name != "image.S"]
    objects = [f"host_{p.name}.o" for p in host]
    cases = sorted((HERE / "cases").glob("*.c"))
    jobs = [*zip(host, objects, strict=True), *((p, f"{p.stem}.o") for p in cases)]
    flags = [*HOST, "-I.", f"-I{HERE}/host"]  # key.h lies in the work directory
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda job: run(work, "gcc", *flags, "-c", job[0], "-o", job[1]), jobs))
    objects.append("image.o")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda p: _link(work, p.stem, objects), cases))


def _enclave_image(work: Path) -> None:
    parts = []
    for source in sorted((HERE / "enclave").glob("*.[cS]")):
        parts.append(f"enclave_{source.name}.o")
        run(work, "gcc", *ENCLAVE, "-c", source, "-o", parts[-1])
    run(work, "ld", "--no-warn-rwx-segments", "-T", HERE / "enclave/link.ld", "-o", "enclave.elf", *parts)
    run(work, "objcopy", "-O", "binary", "enclave.elf", "enclave.bin")


def _link(work: Path, name: str, objects: list[str]) -> None:
    if name == "plugin":
        run(work, "gcc", "-shared", "-pthread", "-Wl,-Bsymbolic", "-o", "plugin.so", "plugin.o", *objects)
    elif name == "vdso_weak":
        # A stand-in with the vDSO's name at link time; at run time the loader has the real one.
        (work / "stub.c").write_text("int __vdso_sgx_enter_enclave(void) { return 0; }\n")
        run(work, "gcc", "-shared", "-Wl,-soname,linux-vdso.so.1", "-o", "libvdsostub.so", "stub.c")
        objects = [*objects, "-Wl,--no-as-needed", "libvdsostub.so"]
    if name != "plugin":
        run(work, "gcc", "-pthread", "-o", name, f"{name}.o", *objects, "-ldl")
    if name in STATIC:
        run(work, "gcc", "-static-pie", "-pthread", "-o", f"{name}-static", f"{name}.o", *objects)
    if name == "basics":  # also at a fixed address, the way most static programs are
        run(work, "gcc", "-static", "-no-pie", "-pthread", "-o", f"{name}-fixed", f"{name}.o", *objects)


def _make_key(path: Path) -> None:
    key = rsa.generate_private_key(public_exponent=3, key_size=3072)
    numbers = {"n": key.public_key().public_numbers().n, "d": key.private_numbers().d}
    lines = []
    for name, value in numbers.items():
        words = ", ".join(f"{value >> 64 * i & (1 << 64) - 1:#x}UL" for i in range(48))
        lines.append(f"static const unsigned long key_{name}[48] = {{ {words} }};")
    path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    print(build())
