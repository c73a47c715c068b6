"""The compiler's lower half: names, memory, expressions; see :mod:`.compiler`."""

from __future__ import annotations

import ast
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from llvmlite import ir

from epcgroup.errors import InternalError
from epcgroup.sim.compiler.dialect import (
    BOOL,
    DOUBLE,
    I1,
    I64,
    INT,
    ITEMS,
    REAL,
    WORD,
    Builtin,
    Kind,
    Part,
    Table,
    Value,
    view,
)

if TYPE_CHECKING:
    from epcgroup.sim.compiler.compiler import Program


class Expressions:
    """Values of one function being compiled."""

    def __init__(self, program: Program, part: Part, function: ir.Function) -> None:
        self.program = program
        self.part = part
        self.function = function
        self.builder = ir.IRBuilder(function.append_basic_block("entry"))
        self._names: dict[str, tuple[Kind, Any]] = {}

    @property
    def _ended(self) -> bool:
        return bool(self.builder.block.is_terminated)

    def _fault(self, node: Any, what: str) -> InternalError:
        place = f"{self.part.function.__code__.co_filename}:{node.lineno}"
        return InternalError(f"{place}: {ast.unparse(node).splitlines()[0]!r} {what}")

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
            width = self._scalar(kind.stride) if kind.stride else ir.Constant(I64, kind.width)
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
        place = self.builder.gep(self.builder.load(room), [ir.Constant(I64, number)], inbounds=True)
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
            return Value(INT, self.builder.zext(found, I64))
        if kind.item in ("i32", "i8"):
            return Value(INT, self.builder.sext(found, I64))
        return Value(WORD if kind.item == "u64" else INT, found)

    def _put(self, kind: Kind, pointer: Any, tag: Any, value: Value, node: Any) -> None:
        wanted = REAL if kind.item == "f64" else WORD if kind.item == "u64" else INT
        it = self._as(value, wanted, node)
        if wanted is INT and kind.item != "i64":
            it = self.builder.trunc(it, ITEMS[kind.item])
        self.builder.store(it, pointer).set_metadata("tbaa", tag)

    # -- expressions -------------------------------------------------------------

    def _as(self, value: Value, kind: Kind, node: Any) -> Any:
        if value.kind == kind:
            return value.it
        if value.kind == BOOL and kind == INT:
            return self.builder.zext(value.it, I64)
        if value.kind in (INT, BOOL) and kind == REAL:
            return self.builder.sitofp(self._as(value, INT, node), DOUBLE)
        raise self._fault(node, f"is {value.kind and value.kind.name}; want {kind.name}")

    def _int(self, node: ast.expr) -> Any:
        return self._as(self._value(node), INT, node)

    def _truth(self, node: ast.expr) -> Any:
        value = self._value(node)
        if value.kind == BOOL:
            return value.it
        if value.kind not in (INT, WORD):
            raise self._fault(node, "is no truth value")
        return self.builder.icmp_signed("!=", value.it, ir.Constant(I64, 0))

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
            return Value(BOOL, ir.Constant(I1, int(constant)))
        if isinstance(constant, np.uint64):
            return Value(WORD, ir.Constant(I64, int(constant)))
        if isinstance(constant, int):
            return Value(INT, ir.Constant(I64, constant))
        if isinstance(constant, float):
            return Value(REAL, ir.Constant(DOUBLE, constant))
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
            offset = self.builder.mul(self._int(node.slice), ir.Constant(I64, kind.width), flags=["nsw"])
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
        b, zero = self.builder, ir.Constant(I64, 0)
        rest = b.srem(one, other)
        wrong = b.and_(b.icmp_signed("!=", rest, zero), b.icmp_signed("<", b.xor(rest, other), zero))
        if name == "Mod":
            return b.select(wrong, b.add(rest, other), rest)
        quotient = b.sdiv(one, other)
        return b.sub(quotient, b.zext(wrong, I64))

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
        found = self.builder.phi(I1)
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
        found = self.builder.phi(I64)
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
            return called.emit(self.builder, arguments)
        if isinstance(called, Part):
            made = self.program.instance(called, tuple(one.kind or INT for one in arguments))
            given = [self._as(one, kind, node) for one, kind in zip(arguments, made.kinds, strict=True)]
            it = self.builder.call(made.function, given, cconv="fastcc")
            return Value(made.returns[0], it) if len(made.returns) == 1 else Value(None, it, made.returns)
        if called is np.uint64:
            return Value(WORD, self._as(arguments[0], INT, node))
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name in ("min", "max"):
            return self._extreme(node, "<" if name == "min" else ">", arguments)
        if name == "int" and arguments[0].kind == REAL:
            return Value(INT, self.builder.fptosi(arguments[0].it, I64))
        raise self._fault(node, "calls what this compiler does not know")

    def _extreme(self, node: ast.Call, how: str, arguments: list[Value]) -> Value:
        one, other = (self._as(side, INT, node) for side in arguments)
        return Value(INT, self.builder.select(self.builder.icmp_signed(how, one, other), one, other))
