"""Compiling with numba, and where the machine code is kept.

numba caches compiled functions by the time stamp of their own file only: a
function that calls another module's keeps the old machine code of the callee
after an edit. So the cache lives in a folder named after a hash of everything
that can change the result (all kernel sources, numba, Python, the processor's
name): an old cache is never looked at.

The folder is ``$EPCGROUP_CACHE_DIR`` or ``$XDG_CACHE_HOME/epcgroup`` or
``~/.cache/epcgroup``.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

from epcgroup.errors import MissingCapability

try:
    import numba
    from numba.core import types
except ImportError as missing:
    raise MissingCapability("simulation needs numba: pip install 'epcgroup[sim]'") from missing

F = TypeVar("F", bound=Callable[..., object])

SOURCES = ("jit", "columns", "tables", "lists", "reclaim", "charge", "background", "enclaves", "kernel")


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


def compiled(function: F) -> F:
    """``function`` compiled at its first call, without the GIL, wrap-around or zero checks."""
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(_CACHE)
    try:
        made = numba.njit(
            cache=True, nogil=True, error_model="numpy", boundscheck=False, no_cfunc_wrapper=True
        )(function)
    finally:
        numba.config.CACHE_DIR = before
    by_type = made.get_call_template
    # One version per function, not one for each constant that it is called with.
    unliteral = types.unliteral  # type: ignore[attr-defined]
    made.get_call_template = lambda arguments, named: by_type(tuple(map(unliteral, arguments)), named)
    return cast(F, made)
