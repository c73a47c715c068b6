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
from typing import Any, NamedTuple

from llvmlite import ir

from epcgroup.sim.compiler.dialect import ANNOTATED, I64, INT, Kind, Part, Value, several
from epcgroup.sim.compiler.expressions import Expressions


@cache
def _tree(path: str) -> dict[str, ast.FunctionDef]:
    parsed = ast.parse(Path(path).read_text(encoding="utf-8"), path)
    return {one.name: one for one in parsed.body if isinstance(one, ast.FunctionDef)}


class Instance(NamedTuple):
    """A part, compiled for arguments of some kinds."""

    function: ir.Function
    kinds: tuple[Kind, ...]
    returns: tuple[Kind, ...]


@dataclass
class Program:
    """One LLVM module in the making: an entry and all that it calls."""

    module: ir.Module = field(default_factory=lambda: ir.Module("epcgroup"))
    _made: dict[tuple[str, tuple[Kind, ...]], Instance] = field(default_factory=dict)
    _todo: list[_Body] = field(default_factory=list)
    _tags: dict[str, Any] = field(default_factory=dict)
    _files: set[str] = field(default_factory=set)

    @property
    def files(self) -> set[Path]:
        """Where the code of what has been compiled stands."""
        return {Path(path) for path in self._files}

    def entry(self, function: Callable[..., Any], kinds: Sequence[Kind]) -> str:
        """Compile a function for arguments of these kinds, and all that it calls; LLVM's text."""
        made = self.instance(Part(function), tuple(kinds)).function
        made.linkage, made.calling_convention = "external", ""
        for argument in made.args:
            if isinstance(argument.type, ir.PointerType):
                argument.add_attribute("noalias")
        while self._todo:
            self._todo.pop().compile()
        return str(self.module)

    def instance(self, part: Part, given: tuple[Kind, ...]) -> Instance:
        """A part for arguments of these kinds."""
        code = part.function.__code__
        self._files.add(code.co_filename)
        found = _tree(code.co_filename)[part.function.__name__]
        kinds = tuple(
            ANNOTATED.get(ast.unparse(a.annotation or ast.Name("")), kind)
            for a, kind in zip(found.args.args, given, strict=True)
        )
        key = (f"{code.co_filename}:{found.name}", kinds)
        if key not in self._made:
            said = ast.unparse(found.returns) if found.returns else "None"
            names = said.removeprefix("tuple[").removesuffix("]").split(", ")
            returns = () if said == "None" else tuple(ANNOTATED[name] for name in names)
            whole = ir.VoidType() if not returns else several(returns)
            name = self.module.get_unique_name(found.name)
            function = ir.Function(self.module, ir.FunctionType(whole, [k.type for k in kinds]), name)
            function.linkage, function.calling_convention = "internal", "fastcc"
            function.attributes.add("nounwind")
            if part.apart:
                function.attributes.add("noinline")
            self._made[key] = Instance(function, kinds, returns)
            self._todo.append(_Body(self, part, found, function, kinds, returns))
        return self._made[key]

    def tag(self, kind: Kind, column: int | None) -> Any:
        """For LLVM: this memory is no other table's, and no other column's."""
        label = kind.label if column is None else f"{kind.label}.{column}"
        if label not in self._tags:
            if "" not in self._tags:
                self._tags[""] = self.module.add_metadata(["epcgroup"])
            zero = ir.Constant(I64, 0)
            one = self.module.add_metadata([label, self._tags[""], zero])
            self._tags[label] = self.module.add_metadata([one, one, zero])
        return self._tags[label]


class _Body(Expressions):
    """Statements of one function being compiled."""

    def __init__(
        self,
        program: Program,
        part: Part,
        tree: ast.FunctionDef,
        function: ir.Function,
        kinds: tuple[Kind, ...],
        returns: tuple[Kind, ...],
    ) -> None:
        super().__init__(program, part, function)
        self.tree = tree
        self.returns = returns
        self._loops: list[tuple[Any, Any]] = []  # (continue, break)
        self._kinds = kinds

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
        start, stop = (ir.Constant(I64, 0), given[0]) if len(given) == 1 else given[:2]
        counter = self._room(INT)
        self.builder.store(start, counter)
        test, body, step, after = (self._new(name) for name in ("test", "body", "step", "after"))
        self._go(test)
        self.builder.position_at_end(test)
        now = self.builder.load(counter)
        self.builder.cbranch(self.builder.icmp_signed("<", now, stop), body, after)
        self.builder.position_at_end(step)
        self.builder.store(
            self.builder.add(self.builder.load(counter), ir.Constant(I64, 1), flags=["nsw"]), counter
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
            whole = ir.Constant(several(self.returns), ir.Undefined)
            for at, (one, kind) in enumerate(zip(node.value.elts, self.returns, strict=True)):
                whole = self.builder.insert_value(whole, self._as(self._value(one), kind, node), at)
            self.builder.ret(whole)
            return
        value = self._value(node.value)
        self.builder.ret(value.it if value.kind is None else self._as(value, self.returns[0], node))
