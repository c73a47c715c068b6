"""A small compiler: functions over integers and tables, from Python's syntax tree to LLVM.

The engine's parts use a few words of Python: integers, ``while``, ``if``, ``for … in
range``, tables opened by name, calls of one another. A general compiler of Python
spends eight seconds of a first start on them, nearly all of it on finding out
types that are plain here, and on arrays that might be anything. This one takes a
second, most of it LLVM's, and knows what a general one cannot: no two tables
overlap, nor do two columns of one table, so a store into one keeps what was loaded
from the other (LLVM's type-based alias analysis is told so).

What differs from Python: integers have 64 bits, indexes are not negative and not
checked, ``and``, ``or`` and ``not`` give truth values, a name has one type in a function.
What is not known here is an InternalError with file and line.

Rejected: numba (8 s to compile, its inside had to be changed to get that far), C
(needs a compiler where epcgroup is installed), code compiled in advance (not
for this processor).
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir

from epcgroup.errors import InternalError

_I64, _I1, _REAL = ir.IntType(64), ir.IntType(1), ir.DoubleType()
_ITEMS = {"i64": _I64, "u64": _I64, "i32": ir.IntType(32), "i8": ir.IntType(8), "u8": ir.IntType(8), "f64": _REAL}


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
            return _ITEMS[self.item].as_pointer()
        return {"int": _I64, "word": _I64, "bool": _I1, "real": _REAL}[self.name]


INT, WORD, BOOL, REAL = Kind("int"), Kind("word"), Kind("bool"), Kind("real")
_ANNOTATED = {"int": INT, "bool": BOOL, "float": REAL}


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
        raise InternalError("tables are opened in compiled code only")


@dataclass(frozen=True)
class Builtin:
    """A call that is an instruction: ``emit(compiling, arguments)``."""

    emit: Callable[[_Body, list[Value]], Value]

    def __call__(self, *arguments: Any) -> Any:
        """For parts, not for Python."""
        raise InternalError("builtins are for compiled code only")


def _lowest(body: _Body, arguments: list[Value]) -> Value:
    count = body.builder.cttz(arguments[0].it, ir.Constant(_I1, 1))
    return Value(INT, count)


lowest = Builtin(_lowest)
"""Number of the lowest bit that is set, of a word that is not zero."""


@dataclass
class Part:
    """A function that is compiled into others."""

    function: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        """For parts, not for Python."""
        raise InternalError(f"{self.function.__name__} runs in compiled code only")


@cache
def _tree(path: str) -> dict[str, ast.FunctionDef]:
    parsed = ast.parse(Path(path).read_text(), path)
    return {one.name: one for one in parsed.body if isinstance(one, ast.FunctionDef)}


@dataclass
class Program:
    """One LLVM module in the making: an entry and all that it calls."""

    module: ir.Module = field(default_factory=lambda: ir.Module("epcgroup"))
    _made: dict[tuple[str, tuple[Kind, ...]], tuple[ir.Function, tuple[Kind, ...]]] = field(default_factory=dict)
    _todo: list[_Body] = field(default_factory=list)
    _tags: dict[str, Any] = field(default_factory=dict)

    def entry(self, function: Callable[..., Any], kinds: Sequence[Kind]) -> str:
        """Compile a function for arguments of these kinds, and all that it calls; LLVM's text."""
        made, _ = self.instance(Part(function), tuple(kinds))
        made.linkage, made.calling_convention = "external", ""
        for argument in made.args:
            if isinstance(argument.type, ir.PointerType):
                argument.add_attribute("noalias")
        while self._todo:
            self._todo.pop().compile()
        return str(self.module)

    def instance(self, part: Part, given: tuple[Kind, ...]) -> tuple[ir.Function, tuple[Kind, ...]]:
        """A part for arguments of these kinds: the function, and what it returns."""
        code = part.function.__code__
        found = _tree(code.co_filename)[part.function.__name__]
        kinds = tuple(
            _ANNOTATED.get(ast.unparse(a.annotation or ast.Name("")), kind)
            for a, kind in zip(found.args.args, given, strict=True)
        )
        key = (f"{code.co_filename}:{found.name}", kinds)
        if key not in self._made:
            said = ast.unparse(found.returns) if found.returns else "None"
            names = said.removeprefix("tuple[").removesuffix("]").split(", ")
            returns = () if said == "None" else tuple(_ANNOTATED[name] for name in names)
            whole = ir.VoidType() if not returns else _several(returns)
            name = self.module.get_unique_name(found.name)
            function = ir.Function(self.module, ir.FunctionType(whole, [k.type for k in kinds]), name)
            function.linkage, function.calling_convention = "internal", "fastcc"
            function.attributes.add("nounwind")
            self._made[key] = function, returns
            self._todo.append(_Body(self, part, found, function, kinds, returns))
        return self._made[key]

    def tag(self, kind: Kind, column: int | None) -> Any:
        """For LLVM: this memory is no other table's, and no other column's."""
        label = kind.label if column is None else f"{kind.label}.{column}"
        if label not in self._tags:
            if "" not in self._tags:
                self._tags[""] = self.module.add_metadata(["epcgroup"])
            zero = ir.Constant(_I64, 0)
            one = self.module.add_metadata([label, self._tags[""], zero])
            self._tags[label] = self.module.add_metadata([one, one, zero])
        return self._tags[label]


def _several(kinds: tuple[Kind, ...]) -> Any:
    return kinds[0].type if len(kinds) == 1 else ir.LiteralStructType([kind.type for kind in kinds])


class _Body:
    """One function being compiled."""

    def __init__(
        self,
        program: Program,
        part: Part,
        tree: ast.FunctionDef,
        function: ir.Function,
        kinds: tuple[Kind, ...],
        returns: tuple[Kind, ...],
    ) -> None:
        self.program = program
        self.part = part
        self.tree = tree
        self.function = function
        self.returns = returns
        self.builder = ir.IRBuilder(function.append_basic_block("entry"))
        self._names: dict[str, tuple[Kind, Any]] = {}
        self._loops: list[tuple[Any, Any]] = []  # (continue, break)
        self._kinds = kinds

    # -- statements --------------------------------------------------------------

    def compile(self) -> None:
        """Fill the function."""
        for argument, kind, it in zip(self.tree.args.args, self._kinds, self.function.args, strict=True):
            self._assign_name(argument.arg, Value(kind, it), argument)
        self._block(self.tree.body)
        if not self._ended:
            if self.returns:
                self.builder.unreachable()
            else:
                self.builder.ret_void()

    @property
    def _ended(self) -> bool:
        return bool(self.builder.block.is_terminated)

    def _block(self, body: list[ast.stmt]) -> None:
        for statement in body:
            if self._ended:
                return
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                continue  # a docstring
            emit = getattr(self, f"_{type(statement).__name__.lower()}", None)
            if emit is None:
                raise self._fault(statement, "is not known to this compiler")
            emit(statement)

    def _fault(self, node: Any, what: str) -> InternalError:
        place = f"{self.part.function.__code__.co_filename}:{node.lineno}"
        return InternalError(f"{place}: {ast.unparse(node).splitlines()[0]!r} {what}")

    def _expr(self, node: ast.Expr) -> None:
        self._value(node.value)

    def _assign(self, node: ast.Assign) -> None:
        target = node.targets[0]
        if isinstance(target, ast.Tuple):
            self._unpack(target, node.value)
            return
        value = self._value(node.value)
        for each in node.targets:
            self._store(each, value)

    def _unpack(self, target: ast.Tuple, source: ast.expr) -> None:
        if isinstance(source, ast.Tuple):
            values = [self._value(one) for one in source.elts]
        else:
            whole = self._value(source)
            values = [
                Value(kind, self.builder.extract_value(whole.it, at)) for at, kind in enumerate(whole.kinds)
            ]
        for one, value in zip(target.elts, values, strict=True):
            self._store(one, value)

    def _augassign(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Name):
            old = self._value(ast.copy_location(ast.Name(node.target.id, ast.Load()), node))
            self._store(node.target, self._operate(node, node.op, old, self._value(node.value)))
            return
        assert isinstance(node.target, ast.Subscript)
        kind, pointer, tag = self._place(node.target)
        old = self._load(kind, pointer, tag)
        self._put(kind, pointer, tag, self._operate(node, node.op, old, self._value(node.value)), node)

    def _if(self, node: ast.If) -> None:
        then, after = self._new("then"), self._new("after")
        other = self._new("else") if node.orelse else after
        self.builder.cbranch(self._truth(node.test), then, other)
        for block, body in ((then, node.body), (other, node.orelse)):
            if block is after:
                continue
            self.builder.position_at_end(block)
            self._block(body)
            self._go(after)
        self.builder.position_at_end(after)

    def _while(self, node: ast.While) -> None:
        test, body, after = self._new("test"), self._new("body"), self._new("after")
        self._go(test)
        self.builder.position_at_end(test)
        if isinstance(node.test, ast.Constant) and node.test.value is True:
            self._go(body)
        else:
            self.builder.cbranch(self._truth(node.test), body, after)
        self._loop(node.body, body, test, after)

    def _for(self, node: ast.For) -> None:
        call = node.iter
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "range"):
            raise self._fault(node, "loops over something else than a range")
        given = [self._int(one) for one in call.args]
        start, stop = (ir.Constant(_I64, 0), given[0]) if len(given) == 1 else given[:2]
        counter = self._room(INT)
        self.builder.store(start, counter)
        test, body, step, after = (self._new(name) for name in ("test", "body", "step", "after"))
        self._go(test)
        self.builder.position_at_end(test)
        now = self.builder.load(counter)
        self.builder.cbranch(self.builder.icmp_signed("<", now, stop), body, after)
        self.builder.position_at_end(step)
        self.builder.store(
            self.builder.add(self.builder.load(counter), ir.Constant(_I64, 1), flags=["nsw"]), counter
        )
        self.builder.branch(test)
        self.builder.position_at_end(body)
        self._store(node.target, Value(INT, now))
        self._loop(node.body, body, step, after)

    def _loop(self, statements: list[ast.stmt], body: Any, again: Any, after: Any) -> None:
        self._loops.append((again, after))
        self.builder.position_at_end(body)
        self._block(statements)
        self._go(again)
        self._loops.pop()
        self.builder.position_at_end(after)

    def _break(self, _node: ast.Break) -> None:
        self.builder.branch(self._loops[-1][1])

    def _continue(self, _node: ast.Continue) -> None:
        self.builder.branch(self._loops[-1][0])

    def _return(self, node: ast.Return) -> None:
        if node.value is None:
            self.builder.ret_void()
            return
        if isinstance(node.value, ast.Tuple):
            whole = ir.Constant(_several(self.returns), ir.Undefined)
            for at, (one, kind) in enumerate(zip(node.value.elts, self.returns, strict=True)):
                whole = self.builder.insert_value(whole, self._as(self._value(one), kind, node), at)
            self.builder.ret(whole)
            return
        value = self._value(node.value)
        self.builder.ret(value.it if value.kind is None else self._as(value, self.returns[0], node))

    # -- names and memory --------------------------------------------------------

    def _new(self, name: str) -> Any:
        return self.function.append_basic_block(name)

    def _go(self, block: Any) -> None:
        if not self._ended:
            self.builder.branch(block)

    def _room(self, kind: Kind) -> Any:
        with self.builder.goto_entry_block():
            return self.builder.alloca(kind.type)

    def _assign_name(self, name: str, value: Value, node: Any) -> None:
        if value.kind is None:
            raise self._fault(node, "keeps a tuple")
        if name not in self._names:
            self._names[name] = value.kind, self._room(value.kind)
        kind, room = self._names[name]
        self.builder.store(self._as(value, kind, node), room)

    def _store(self, target: ast.expr, value: Value) -> None:
        if isinstance(target, ast.Name):
            self._assign_name(target.id, value, target)
        elif isinstance(target, ast.Subscript):
            kind, pointer, tag = self._place(target)
            self._put(kind, pointer, tag, value, target)
        else:
            raise self._fault(target, "cannot be assigned to")

    def _place(self, node: ast.Subscript) -> tuple[Kind, Any, Any]:
        """Where ``table[…]`` is: (the view indexed, pointer, alias tag)."""
        base = self._value(node.value)
        kind = base.kind
        if kind is None or kind.name != "view":
            raise self._fault(node, "indexes what is no table")
        if isinstance(node.slice, ast.Tuple):
            row, column = (self._value(one) for one in node.slice.elts)
            if kind.stride:
                width = self._scalar(kind.stride)
            else:
                width = ir.Constant(_I64, kind.width)
            offset = self.builder.mul(row.it, width, flags=["nsw"])
            offset = self.builder.add(offset, column.it, flags=["nsw"])
        else:
            column = self._value(node.slice)
            offset = column.it
        number = column.it.constant if isinstance(column.it, ir.Constant) else None
        if kind.columns and number is None:
            raise self._fault(node, "wants a constant column")
        pointer = self.builder.gep(base.it, [offset], inbounds=True)
        return kind, pointer, self.program.tag(kind, number if kind.columns else None)

    def _scalar(self, number: int) -> Any:
        # A scalar that never changes while compiled code runs: a table's address or width.
        kind, room = self._names["s"]
        place = self.builder.gep(self.builder.load(room), [ir.Constant(_I64, number)], inbounds=True)
        found = self.builder.load(place)
        found.set_metadata("tbaa", self.program.tag(kind, number))
        found.set_metadata("invariant.load", self.program.module.add_metadata([]))
        return found

    def _load(self, kind: Kind, pointer: Any, tag: Any) -> Value:
        found = self.builder.load(pointer)
        found.set_metadata("tbaa", tag)
        if kind.item == "f64":
            return Value(REAL, found)
        if kind.item == "u8":
            return Value(INT, self.builder.zext(found, _I64))
        if kind.item in ("i32", "i8"):
            return Value(INT, self.builder.sext(found, _I64))
        return Value(WORD if kind.item == "u64" else INT, found)

    def _put(self, kind: Kind, pointer: Any, tag: Any, value: Value, node: Any) -> None:
        wanted = REAL if kind.item == "f64" else WORD if kind.item == "u64" else INT
        it = self._as(value, wanted, node)
        if wanted is INT and kind.item != "i64":
            it = self.builder.trunc(it, _ITEMS[kind.item])
        self.builder.store(it, pointer).set_metadata("tbaa", tag)

    # -- expressions -------------------------------------------------------------

    def _as(self, value: Value, kind: Kind, node: Any) -> Any:
        if value.kind == kind:
            return value.it
        if value.kind == BOOL and kind == INT:
            return self.builder.zext(value.it, _I64)
        if value.kind in (INT, BOOL) and kind == REAL:
            return self.builder.sitofp(self._as(value, INT, node), _REAL)
        raise self._fault(node, f"is {value.kind and value.kind.name}; want {kind.name}")

    def _int(self, node: ast.expr) -> Any:
        return self._as(self._value(node), INT, node)

    def _truth(self, node: ast.expr) -> Any:
        value = self._value(node)
        if value.kind == BOOL:
            return value.it
        if value.kind not in (INT, WORD):
            raise self._fault(node, "is no truth value")
        return self.builder.icmp_signed("!=", value.it, ir.Constant(_I64, 0))

    def _value(self, node: ast.expr) -> Value:
        if isinstance(node, ast.Name) and node.id in self._names:
            kind, room = self._names[node.id]
            return Value(kind, self.builder.load(room))
        emit = getattr(self, f"_{type(node).__name__.lower()}_value", None)
        if emit is not None:
            found: Value = emit(node)
            return found
        constant = self._constant(node)
        if isinstance(constant, bool):
            return Value(BOOL, ir.Constant(_I1, int(constant)))
        if isinstance(constant, np.uint64):
            return Value(WORD, ir.Constant(_I64, int(constant)))
        if isinstance(constant, int):
            return Value(INT, ir.Constant(_I64, constant))
        if isinstance(constant, float):
            return Value(REAL, ir.Constant(_REAL, constant))
        raise self._fault(node, "is not known to this compiler")

    def _constant(self, node: ast.expr) -> Any:
        """What a name or ``module.NAME`` stands for outside of the function, or None."""
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name):
            return self.part.function.__globals__.get(node.id)
        if isinstance(node, ast.Attribute):
            module = self._constant(node.value)
            if isinstance(module, ModuleType):
                return getattr(module, node.attr)
        return None

    def _subscript_value(self, node: ast.Subscript) -> Value:
        whole = self._value(node.value)
        if whole.kind is not None and whole.kind.width and not isinstance(node.slice, ast.Tuple):
            kind = whole.kind
            offset = self.builder.mul(
                self._int(node.slice), ir.Constant(_I64, kind.width), flags=["nsw"]
            )
            row = view(kind.label, kind.item, columns=kind.columns)
            return Value(row, self.builder.gep(whole.it, [offset], inbounds=True))
        return self._load(*self._place(node))

    def _binop_value(self, node: ast.BinOp) -> Value:
        return self._operate(node, node.op, self._value(node.left), self._value(node.right))

    def _operate(self, node: Any, op: ast.operator, left: Value, right: Value) -> Value:
        b, name = self.builder, type(op).__name__
        if REAL in (left.kind, right.kind) or name == "Div":
            one, other = (self._as(side, REAL, node) for side in (left, right))
            real = {"Add": b.fadd, "Sub": b.fsub, "Mult": b.fmul, "Div": b.fdiv}.get(name)
            if real is None:
                raise self._fault(node, "is not known for reals")
            return Value(REAL, real(one, other))
        if WORD in (left.kind, right.kind):
            bits = {"BitOr": b.or_, "BitAnd": b.and_, "BitXor": b.xor, "LShift": b.shl, "RShift": b.lshr}
            if name not in bits or left.kind != right.kind:
                raise self._fault(node, "mixes words and others")
            return Value(WORD, bits[name](left.it, right.it))
        one, other = (self._as(side, INT, node) for side in (left, right))
        if name in ("FloorDiv", "Mod"):
            return Value(INT, self._floor(name, one, other))
        signed = {"Add": b.add, "Sub": b.sub, "Mult": b.mul}
        if name in signed:
            return Value(INT, signed[name](one, other, flags=["nsw"]))
        bits = {"BitOr": b.or_, "BitAnd": b.and_, "BitXor": b.xor, "LShift": b.shl, "RShift": b.ashr}
        if name not in bits:
            raise self._fault(node, "is not known to this compiler")
        return Value(INT, bits[name](one, other))

    def _floor(self, name: str, one: Any, other: Any) -> Any:
        # Python rounds down, the processor towards zero.
        b, zero = self.builder, ir.Constant(_I64, 0)
        rest = b.srem(one, other)
        wrong = b.and_(
            b.icmp_signed("!=", rest, zero), b.icmp_signed("<", b.xor(rest, other), zero)
        )
        if name == "Mod":
            return b.select(wrong, b.add(rest, other), rest)
        quotient = b.sdiv(one, other)
        return b.sub(quotient, b.zext(wrong, _I64))

    def _unaryop_value(self, node: ast.UnaryOp) -> Value:
        if isinstance(node.op, ast.Not):
            return Value(BOOL, self.builder.not_(self._truth(node.operand)))
        value = self._value(node.operand)
        if isinstance(node.op, ast.Invert):
            return Value(value.kind, self.builder.not_(value.it))
        if isinstance(node.op, ast.USub):
            if isinstance(value.it, ir.Constant):
                return Value(value.kind, ir.Constant(value.it.type, -value.it.constant))
            return Value(INT, self.builder.neg(self._as(value, INT, node)))
        raise self._fault(node, "is not known to this compiler")

    def _boolop_value(self, node: ast.BoolOp) -> Value:
        both = isinstance(node.op, ast.And)
        after, ways = self._new("known"), []
        for at, operand in enumerate(node.values):
            truth = self._truth(operand)
            ways.append((truth, self.builder.block))
            if at == len(node.values) - 1:
                self.builder.branch(after)
            else:
                more = self._new("more")
                self.builder.cbranch(truth, *((more, after) if both else (after, more)))
                self.builder.position_at_end(more)
        self.builder.position_at_end(after)
        found = self.builder.phi(_I1)
        for truth, block in ways:
            found.add_incoming(truth, block)
        return Value(BOOL, found)

    def _compare_value(self, node: ast.Compare) -> Value:
        sides = [self._value(one) for one in (node.left, *node.comparators)]
        found = None
        for op, left, right in zip(node.ops, sides, sides[1:], strict=False):
            sign = {"Lt": "<", "LtE": "<=", "Gt": ">", "GtE": ">=", "Eq": "==", "NotEq": "!="}
            how = sign.get(type(op).__name__)
            if how is None:
                raise self._fault(node, "is not known to this compiler")
            if REAL in (left.kind, right.kind):
                both = [self._as(side, REAL, node) for side in (left, right)]
                one = self.builder.fcmp_ordered(how, *both)
            else:
                both = [self._as(side, INT, node) for side in (left, right)]
                one = self.builder.icmp_signed(how, *both)
            found = one if found is None else self.builder.and_(found, one)
        return Value(BOOL, found)

    def _ifexp_value(self, node: ast.IfExp) -> Value:
        then, other, after = self._new("then"), self._new("else"), self._new("after")
        self.builder.cbranch(self._truth(node.test), then, other)
        ways = []
        for block, side in ((then, node.body), (other, node.orelse)):
            self.builder.position_at_end(block)
            ways.append((self._int(side), self.builder.block))
            self.builder.branch(after)
        self.builder.position_at_end(after)
        found = self.builder.phi(_I64)
        for it, block in ways:
            found.add_incoming(it, block)
        return Value(INT, found)

    def _call_value(self, node: ast.Call) -> Value:
        arguments = [self._value(one) for one in node.args]
        called = self._constant(node.func)
        if isinstance(called, Table):
            address = self._scalar(called.at)
            return Value(called.kind, self.builder.inttoptr(address, called.kind.type))
        if isinstance(called, Builtin):
            return called.emit(self, arguments)
        if isinstance(called, Part):
            function, returns = self.program.instance(
                called, tuple(one.kind or INT for one in arguments)
            )
            _, wanted = next(key for key, made in self.program._made.items() if made[0] is function)
            given = [self._as(one, kind, node) for one, kind in zip(arguments, wanted, strict=True)]
            it = self.builder.call(function, given, cconv="fastcc")
            return Value(returns[0], it) if len(returns) == 1 else Value(None, it, returns)
        if called is np.uint64:
            return Value(WORD, self._as(arguments[0], INT, node))
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name in ("min", "max"):
            return self._extreme(node, "<" if name == "min" else ">", arguments)
        if name == "int" and arguments[0].kind == REAL:
            return Value(INT, self.builder.fptosi(arguments[0].it, _I64))
        raise self._fault(node, "calls what this compiler does not know")

    def _extreme(self, node: ast.Call, how: str, arguments: list[Value]) -> Value:
        one, other = (self._as(side, INT, node) for side in arguments)
        return Value(INT, self.builder.select(self.builder.icmp_signed(how, one, other), one, other))
