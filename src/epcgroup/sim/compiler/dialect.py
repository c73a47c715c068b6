"""What compiled code is written with: kinds of values, tables, parts; see :mod:`.compiler`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from llvmlite import ir

from epcgroup.errors import InternalError

I64, I1, DOUBLE = ir.IntType(64), ir.IntType(1), ir.DoubleType()
ITEMS = {
    "i64": I64,
    "u64": I64,
    "i32": ir.IntType(32),
    "i8": ir.IntType(8),
    "u8": ir.IntType(8),
    "f64": DOUBLE,
}


@dataclass(frozen=True)
class Kind:
    """What a value is: int, word (unsigned), bool, real, or a ``view`` of a table's memory."""

    name: str
    item: str = ""  # of a view: what is stored
    width: int = 0  # of a view: columns of a row, 0 for a row or a flat table
    stride: int = 0  # of a view: the scalar that holds the width, where it is not constant
    columns: bool = False  # of a view: columns are different things, always named by a constant
    label: str = ""  # of a view: which table

    @property
    def type(self) -> Any:
        """LLVM's type."""
        if self.name == "view":
            return ITEMS[self.item].as_pointer()
        return {"int": I64, "word": I64, "bool": I1, "real": DOUBLE}[self.name]


INT, WORD, BOOL, REAL = Kind("int"), Kind("word"), Kind("bool"), Kind("real")
ANNOTATED = {"int": INT, "bool": BOOL, "float": REAL}


def view(label: str, item: str, *, width: int = 0, stride: int = 0, columns: bool = False) -> Kind:
    """The memory of a table; see :class:`Kind`."""
    return Kind("view", item, width, stride, columns, label)


class Value(NamedTuple):
    """A value while compiling; ``kind`` None stands for several (a tuple's struct)."""

    kind: Kind | None
    it: Any
    kinds: tuple[Kind, ...] = ()


@dataclass(frozen=True)
class Table:
    """``table(s)`` opens the memory whose address is the scalar ``at``."""

    at: int
    kind: Kind

    def __call__(self, s: Any) -> Any:
        """For parts, not for Python."""
        raise InternalError(f"table {self.kind.label} is opened in compiled code only, not with {s!r}")


@dataclass(frozen=True)
class Builtin:
    """A call that is an instruction: ``emit(builder, arguments)``."""

    emit: Callable[[Any, list[Value]], Value]

    def __call__(self, *arguments: Any) -> Any:
        """For parts, not for Python."""
        raise InternalError(f"an instruction for compiled code only, not with {arguments!r}")


def _lowest(builder: Any, arguments: list[Value]) -> Value:
    count = builder.cttz(arguments[0].it, ir.Constant(I1, 1))
    return Value(INT, count)


lowest = Builtin(_lowest)
"""Number of the lowest bit that is set, of a word that is not zero."""


def _fetch(builder: Any, arguments: list[Value]) -> Value:
    table, row = arguments
    assert table.kind is not None
    offset = builder.mul(row.it, ir.Constant(I64, table.kind.width or 1), flags=["nsw"])
    byte, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
    declared = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
    place = builder.bitcast(builder.gep(table.it, [offset]), byte)
    to_read, keep, data = ir.Constant(flag, 0), ir.Constant(flag, 3), ir.Constant(flag, 1)
    return Value(None, builder.call(declared, [place, to_read, keep, data]))


fetch = Builtin(_fetch)
"""``fetch(table, row)`` has the row's line brought near, without waiting for it; any row will do."""


def at(kind: Kind) -> Builtin:
    """What makes a view of the memory at an address."""
    return Builtin(lambda builder, given: Value(kind, builder.inttoptr(given[0].it, kind.type)))


@dataclass
class Part:
    """A function that is compiled into others.

    ``apart``: never merged into its caller, whose registers stay those of its own loop.
    """

    function: Callable[..., Any]
    apart: bool = False

    def __call__(self, *arguments: Any) -> Any:
        """For parts, not for Python."""
        raise InternalError(f"{self.function.__name__} runs in compiled code only, not with {arguments!r}")


def several(kinds: tuple[Kind, ...]) -> Any:
    return kinds[0].type if len(kinds) == 1 else ir.LiteralStructType([kind.type for kind in kinds])
