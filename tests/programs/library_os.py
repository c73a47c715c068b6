"""The small library OS (``libos``), and the programs that run in an enclave by it.

    python -m tests.programs.library_os        prints the directory with them

``python`` and ``sql`` are CPython and SQLite as the distribution's static libraries have them, linked into
static-PIE programs like any other; nothing in them knows of enclaves.
"""

from __future__ import annotations

from pathlib import Path

from tests.programs.build import COMMON, ENCLAVE, HERE, BuildError, build, cached, run

HOME = HERE / "libos"


def static_python() -> Path | None:
    """The distribution's position-independent libpython3.*.a, the newest; None where it is not installed."""
    found = Path("/usr/lib").glob("python3.*/config-*/libpython3.*-pic.a")
    return max(found, key=lambda path: int(path.parts[3].removeprefix("python3.")), default=None)


def library_os() -> Path:
    """The directory with ``libos``, ``python``, ``sql`` and ``threads``, built now if it is not there."""
    loader = build()  # whose objects are linked in
    library = static_python()
    version = f"{loader} {library} {library and library.stat().st_mtime_ns}"
    sources = sorted(p for p in [*HOME.rglob("*"), Path(__file__)] if p.is_file())
    return cached(version.encode(), sources, lambda work: _compile(work, loader, library))


def _compile(work: Path, loader: Path, library: Path | None) -> None:
    for source in sorted((HOME / "inside").glob("*.[cS]")):
        run(work, "gcc", *ENCLAVE, "-mrdrnd", "-c", source, "-o", f"inside_{source.name}.o")
    parts = sorted(work.glob("inside_*.o"))
    run(work, "ld", "-T", HOME / "inside/link.ld", "-o", "inside.elf", *parts)
    run(work, "objcopy", "-O", "binary", "inside.elf", "inside.bin")
    objects = [path for path in loader.glob("host_*.o") if path.name != "host_check.c.o"]
    sources = sorted((HOME / "outside").glob("*.[cS]"))
    include = ["-I.", f"-I{HERE}/host"]
    run(work, "gcc", *COMMON, *include, "-pthread", "-o", "libos", *sources, *objects, loader / "image.o")
    static = ["gcc", "-O2", "-static-pie", "-pthread", "-o"]
    run(work, *static, "threads", HOME / "programs/threads.c")
    run(work, *static, "sql", HOME / "programs/sql.c", "-lsqlite3", "-lm", "-ldl")
    if library is None:
        raise BuildError("no static CPython: apt-get install libpython3-dev")
    headers = f"-I/usr/include/{library.parts[3]}"
    needs = ["-lexpat", "-lz", "-lm", "-ldl", "-lutil"]
    run(work, *static, "python", headers, HOME / "programs/python.c", library, *needs)


if __name__ == "__main__":
    print(library_os())
