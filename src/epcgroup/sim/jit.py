"""Compiling with numba, and where the machine code is kept.

numba compiles each function with all that it calls, anew for each caller: fifty
functions that call one another take sixteen seconds. So only :func:`entry`
functions become machine code. A :func:`part` is typed and translated once, and
optimised as a part of the entry that calls it: a third of the time, and one file
to load. numba has no switch for that; ``_Part`` and ``_Parts`` below give it, from
numba's inside. Where a numba of another version looks different there, parts are
compiled in numba's usual way: slower to start, the same results.

numba's cache goes by the time stamp of a function's own file: a
function that calls another module's keeps the old machine code of the callee
after an edit. So the cache lives in a folder named after a hash of everything
that can change the result (all kernel sources, numba, Python, the processor's
name): an old cache is never looked at.

The folder is ``$EPCGROUP_CACHE_DIR`` or ``$XDG_CACHE_HOME/epcgroup`` or
``~/.cache/epcgroup``.
"""

from __future__ import annotations

import gc
import hashlib
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, cast

from epcgroup.errors import MissingCapability

try:
    import numba
    from numba.core import ir, types
    from numba.core.compiler import CompilerBase, DefaultPassBuilder
    from numba.core.compiler_machinery import FunctionPass, register_pass
except ImportError as missing:
    raise MissingCapability("simulation needs numba: pip install 'epcgroup[sim]'") from missing

F = TypeVar("F", bound=Callable[..., object])

SOURCES = ("jit", "columns", "tables", "lists", "reclaim", "charge", "background", "enclaves", "kernel")
_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "boundscheck": False,
    "no_cfunc_wrapper": True,
}


def cache_dir() -> Path:
    """The folder of this version's machine code."""
    digest = hashlib.sha256(f"{numba.__version__} {sys.version} {platform.machine()}".encode())
    for name in SOURCES:
        digest.update(Path(__file__).with_name(f"{name}.py").read_bytes())
    base = os.environ.get("EPCGROUP_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME")
    root = Path(base) if base else Path.home() / ".cache"
    return root / "epcgroup" / f"kernel-{digest.hexdigest()[:16]}"


_CACHE = cache_dir()


def is_cached() -> bool:
    """Whether the machine code of this version is there already."""
    return _CACHE.is_dir() and any(_CACHE.rglob("*.nbc"))


@register_pass(mutates_CFG=False, analysis_only=False)
class _Fold(FunctionPass):  # type: ignore[misc]
    """``module.NAME`` is a constant before types are inferred: half of all statements go."""

    _name = "epcgroup_fold"

    def __init__(self) -> None:
        FunctionPass.__init__(self)

    def run_pass(self, state: Any) -> bool:
        for block in state.func_ir.blocks.values():
            modules: dict[str, ModuleType] = {}
            kept = []
            for one in block.body:
                value = one.value if isinstance(one, ir.Assign) else None
                if isinstance(value, ir.Global) and isinstance(value.value, ModuleType):
                    modules[one.target.name] = value.value
                    continue
                if isinstance(value, ir.Expr) and value.op == "getattr" and value.value.name in modules:
                    found = getattr(modules[value.value.name], value.attr)
                    made = ir.Const if isinstance(found, int) else None
                    one.value = made(found, value.loc) if made else ir.Global(value.attr, found, value.loc)
                kept.append(one)
            block.body = kept
        return True


class _Entries(CompilerBase):  # type: ignore[misc]
    """numba's pipeline, with constants folded first."""

    def define_pipelines(self) -> list[Any]:
        passes = DefaultPassBuilder.define_nopython_pipeline(self.state)
        self.adapt(passes)
        passes.finalize()
        return [passes]

    def adapt(self, passes: Any) -> None:
        """Change the pipeline."""
        from numba.core.untyped_passes import FixupArgs

        passes.add_pass_after(_Fold, FixupArgs)


def _parts_pipeline() -> type[_Entries] | None:
    """The pipeline for parts, or None where numba is not built as expected."""
    try:
        from numba.core.codegen import JITCodeLibrary
    except ImportError:
        return None
    if not hasattr(JITCodeLibrary, "_finalize_dynamic_globals") or not hasattr(
        JITCodeLibrary, "_optimize_final_module"
    ):
        return None

    class Quiet:
        """A code generator that is not told of environments: no machine code, no place for one."""

        def __init__(self, inner: Any) -> None:
            self._inner = inner

        def set_env(self, name: str, environment: object) -> None:
            """Nothing."""

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

    class Part(JITCodeLibrary):  # type: ignore[misc]
        """A library that is there to be linked into others, and has no machine code itself."""

        @property
        def codegen(self) -> Any:
            return Quiet(self._codegen)

        def _optimize_final_module(self) -> None:
            pass

        def _finalize_final_module(self) -> None:
            self._finalize_dynamic_globals()
            self._finalized = True

        def get_pointer_to_function(self, name: str) -> int:  # noqa: ARG002  (numba's signature)
            self._ensure_finalized()
            return 0

    @register_pass(mutates_CFG=False, analysis_only=False)
    class AsPart(FunctionPass):  # type: ignore[misc]
        _name = "epcgroup_as_part"

        def __init__(self) -> None:
            FunctionPass.__init__(self)

        def run_pass(self, state: Any) -> bool:
            state.library = Part(state.targetctx.codegen(), state.func_id.func_qualname)
            return True

    class Parts(_Entries):
        def adapt(self, passes: Any) -> None:
            super().adapt(passes)
            passes.add_pass_after(AsPart, _Fold)

    return Parts


_PARTS = _parts_pipeline()


def part(function: F) -> F:
    """``function`` for use by other compiled functions only."""
    made = numba.njit(pipeline_class=_PARTS or _Entries, no_cpython_wrapper=_PARTS is not None, **_OPTIONS)(
        function
    )
    by_type = made.get_call_template
    # One version per function, not one for each constant that it is called with.
    unliteral = types.unliteral  # type: ignore[attr-defined]
    made.get_call_template = lambda arguments, named: by_type(tuple(map(unliteral, arguments)), named)
    return cast(F, made)


def entry(signature: str) -> Callable[[F], F]:
    """A function that Python calls: machine code at its first call, kept on disk."""

    def decorate(function: F) -> F:
        before = numba.config.CACHE_DIR
        numba.config.CACHE_DIR = str(_CACHE)
        try:
            made = numba.njit(cache=True, pipeline_class=_Entries, **_OPTIONS)(function)
        finally:
            numba.config.CACHE_DIR = before

        def called(*arguments: Any) -> Any:
            if not made.signatures:
                collecting = gc.isenabled()
                gc.disable()  # the compiler makes millions of objects, and keeps nearly all
                try:
                    made.compile(signature)
                finally:
                    if collecting:
                        gc.enable()
            return made(*arguments)

        return cast(F, called)

    return decorate
