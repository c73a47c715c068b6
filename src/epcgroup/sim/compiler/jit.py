"""Machine code: made once for this processor, kept on disk, found again.

A file of machine code is named after a hash of everything that can change it: LLVM,
Python, the processor, this compiler, the file of the function and every file of ours
that it imports, however far, since a part or a constant may come from any of them.
Old machine code is never looked at, and where a part comes from a file that was not
hashed, compiling it is an error. The file is written beside its place and renamed,
and carries its own checksum, so what a crash or a full disk left of it is not run.

Rejected: a list of the sources, which somebody forgets; hashing LLVM's text, which
takes half as long as compiling it.

The folder is ``$EPCGROUP_CACHE_DIR`` or ``$XDG_CACHE_HOME/epcgroup`` or
``~/.cache/epcgroup``; where none can be written, each process compiles.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

from epcgroup.errors import InternalError, MissingCapability, to_install

try:
    import llvmlite
    from llvmlite import binding as llvm
except ImportError as missing:
    raise MissingCapability(f"simulation needs llvmlite: {to_install('sim')}") from missing

from epcgroup.sim.compiler.compiler import Program
from epcgroup.sim.compiler.dialect import Kind, Part

F = TypeVar("F", bound=Callable[..., object])

_PACKAGE = Path(__file__).parents[2]
_IMPORT = re.compile(
    r"^\s*(?:from (epcgroup[\w.]*) import (\([^)]*\)|.*)|import (epcgroup[\w.]*))", re.MULTILINE
)
_C: dict[str, Any] = {"int": ctypes.c_int64, "real": ctypes.c_double}
_CHECKSUM = hashlib.sha256().digest_size


def part(function: F) -> F:
    """``function`` for use by other compiled functions only."""
    return cast(F, Part(function))


def part_apart(function: F) -> F:
    """The same for what a hot loop calls seldom: it is never merged into its caller."""
    return cast(F, Part(function, apart=True))


def _processor() -> tuple[str, str]:
    """Name and features of this processor, as LLVM knows them."""
    return llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()


def _imported(text: str) -> Iterator[Path]:
    for origin, names, module in _IMPORT.findall(text):
        whole = origin or module
        for name in (whole, *(f"{whole}.{one}" for one in re.findall(r"\w+", names))):
            place = _PACKAGE.joinpath(*name.split(".")[1:])
            for file in (place.with_suffix(".py"), place / "__init__.py"):
                if file.is_file():
                    yield file


def sources(file: Path) -> dict[Path, str]:
    """What machine code from a file can be made of: its text, the compiler's, what these import of ours."""
    found: dict[Path, str] = {}
    todo = [file, Path(__file__)]
    while todo:
        one = todo.pop()
        if one not in found:
            found[one] = one.read_text(encoding="utf-8")
            todo.extend(_imported(found[one]))
    return found


def _folder() -> Path:
    base = os.environ.get("EPCGROUP_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME")
    root = Path(base) if base else Path.home() / ".cache"
    return root / "epcgroup" / "kernel"


class Entry:
    """A function that Python calls: machine code at its first call, without the interpreter's lock."""

    def __init__(
        self,
        function: Callable[..., Any],
        kinds: tuple[Kind, ...],
        *,
        keep: bool = True,
        tell: bool = True,
    ) -> None:
        self._function = function
        self._kinds = kinds
        self._keep = keep  # on disk
        self._tell = tell  # the user, when it takes a while
        self._engine: Any = None
        self._call: Any = None

    def __call__(self, *arguments: float) -> int:
        """Integers, reals and addresses, in the order of the function's arguments."""
        if self._call is None:
            self.load()
        return self._call(*arguments)  # type: ignore[no-any-return]

    def load(self) -> None:
        """Have the machine code ready, before it is called for the first time."""
        self._call = self._load()

    def place(self) -> Path:
        """Where the machine code is kept, if it is."""
        known = (llvmlite.__version__, llvm.llvm_version_info, sys.version, *_processor(), self._kinds)
        digest = hashlib.sha256(repr(known).encode())
        for _, text in sorted(self._sources().items()):
            digest.update(text.encode())
        return _folder() / f"{self._function.__name__}-{digest.hexdigest()[:24]}.o"

    def _sources(self) -> dict[Path, str]:
        return sources(Path(self._function.__code__.co_filename))

    def _load(self) -> Any:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        name, features = _processor()
        target = llvm.Target.from_default_triple().create_target_machine(
            cpu=name, features=features, opt=3, reloc="pic", codemodel="small", jit=True
        )
        place = self.place()
        image = _read(place) if self._keep else None
        if image is None:
            if self._keep and self._tell:
                print(
                    "epcgroup: compiling the engine for this processor, once …", file=sys.stderr, flush=True
                )
            image = self._compile(target)
            if self._keep:
                _write(place, image)
        self._engine = llvm.create_lljit_compiler(target)
        symbol = self._function.__name__
        library = llvm.JITLibraryBuilder().add_object_img(image).add_current_process()
        library.export_symbol(symbol)
        self._engine = library.link(self._engine, "epcgroup"), self._engine
        kinds = [_C.get(kind.name, ctypes.c_void_p) for kind in self._kinds]
        return ctypes.CFUNCTYPE(ctypes.c_int64, *kinds)(self._engine[0][symbol])

    def _compile(self, target: Any) -> bytes:
        program = Program()
        text = program.entry(self._function, self._kinds)
        strange = program.files - self._sources().keys()
        if strange:
            raise InternalError(f"{self._function.__name__}: its file does not import {sorted(strange)[0]}")
        module = llvm.parse_assembly(text)
        module.triple = target.triple
        module.data_layout = str(target.target_data)
        options = llvm.create_pipeline_tuning_options(speed_level=3)
        builder = llvm.create_pass_builder(target, options)
        builder.getModulePassManager().run(module, builder)
        return bytes(target.emit_object(module))


def _read(place: Path) -> bytes | None:
    try:
        kept = place.read_bytes()
    except OSError:
        return None
    image = kept[_CHECKSUM:]
    return image if hashlib.sha256(image).digest() == kept[:_CHECKSUM] else None


def _write(place: Path, image: bytes) -> None:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=place.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(image).digest() + image)
        Path(name).replace(place)
    except OSError:
        return  # no room to keep it: the next process compiles again
