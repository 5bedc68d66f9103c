"""A Triton kernel from a one-pass cascade: one program a tile of the outer rank, a loop over the iterative one.

The carried tensors stay in registers, sums of products of two matrices become `tl.dot`, nothing but inputs is read and nothing
but outputs is written. The generator only writes text, so it needs neither Triton nor a GPU; running the text needs both.
"""

from collections.abc import Mapping
from typing import Any

from probatum.algebra.cascade_graph import Graph
from probatum.algebra.cascade_syntax import Apply, Condition, Coordinate, Expression, Extent, Index, Number, Reference, Statement, variables
from probatum.errors import ProbatumError

__all__ = ["generate"]

Block = tuple[str, tuple[str, ...]]  # code, the variables of its axes
IDENTITY = {"sum": "0.0", "max": 'float("-inf")', "min": 'float("inf")'}
CALLS = {
    "exp": "tl.exp({})", "log": "tl.log({})", "sqrt": "tl.sqrt({})", "rsqrt": "tl.rsqrt({})",
    "sigmoid": "tl.sigmoid({})", "abs": "tl.abs({})",
    "sin": "tl.sin({})", "cos": "tl.cos({})", "erf": "tl.erf({})", "tanh": "(2.0 * tl.sigmoid(2.0 * ({})) - 1.0)",
    "relu": "tl.maximum({}, 0.0)", "negative": "(-{})", "square": "(({0}) * ({0}))",
}  # fmt: skip


def generate(graph: Graph, extents: Mapping[str, int], block: int, name: str) -> str:
    """Source text of `name` (the kernel) and `launch_<name>` (tensors in the order of the cascade's inputs -> outputs).

    Raises:
        ProbatumError: block or an inner extent is no power of two or not known, a rank that is neither tiled, inner nor a grid axis in
            more than two dimensions, a reduction other than sum, max and min.
    """
    return _Writer(graph, extents, block, name).text()


def _power_of_two(n: int) -> bool:
    return n >= 1 and n & (n - 1) == 0


class _Writer:
    def __init__(self, graph: Graph, extents: Mapping[str, int], block: int, name: str) -> None:
        from probatum.algebra.cascade_execution import tileable

        if not name.isidentifier():
            raise ProbatumError(f"name must be an identifier, got {name!r}")
        if isinstance(block, bool) or not isinstance(block, int) or not _power_of_two(block) or block < 16:
            raise ProbatumError(f"block must be a power of two of at least 16, got {block!r}")
        self.graph, self.name, self.block, self.loop = graph, name, block, graph.iterative
        free = tileable(graph)
        made = [{i.shifted[0] for i in s.target.indices if i.shifted} for s in graph.statements]
        state = [{i.shifted[0] for i in graph.indices_of(n) if i.shifted} for n in graph.carried]
        programs = [v for v in free if all(v in own for own in state)]  # what every carried tensor has can be spread
        shared = set.intersection(*({v for i in graph.indices_of(n) for v in i.variables} for n in graph.inputs if graph.indices_of(n)))
        outer = [v for v in programs if v not in shared] or programs
        if not outer:
            raise ProbatumError(
                "the cascade has no rank that all outputs have and nothing reduces: there is nothing to spread over programs"
            )
        self.outer = max(reversed(outer), key=lambda v: sum(v in own for own in made))
        self.grid = [v for v in programs if v != self.outer]
        self.inner = [v for v in graph.variables if v not in (self.loop, self.outer, *self.grid)]
        for v in self.inner:
            if v.upper() not in extents:
                raise ProbatumError(f"extents must give {v.upper()}: {v} is neither tiled nor an axis of the grid")
            if not _power_of_two(extents[v.upper()]):
                raise ProbatumError(f"extents[{v.upper()!r}] must be a power of two for a block, got {extents[v.upper()]}")
        self.extents = extents
        self.values: dict[str, Block] = {}
        self.loads: dict[str, Block] = {}
        self.before: list[str] = []
        self.body: list[str] = []
        self.into = self.before
        self.count = 0

    def text(self) -> str:
        graph = self.graph
        roles = list(zip(graph.statements, graph.roles, strict=True))
        for s, role in roles:
            if role in ("init", "before"):
                self.emit(s, s.target.name)
        carried_vars = {
            n: tuple(v for i in graph.indices_of(n) if i.shifted and (v := i.shifted[0]) not in (*self.grid, self.loop))
            for n in graph.carried
        }
        for n, names in carried_vars.items():  # initial values in their full shape, since a loop may not change shapes
            code, own = self.values[n]
            self.before.append(f"{n} = tl.zeros(({self.shape(names)}), tl.float32) + {self.align((code, own), names)}")
            self.values[n] = (n, names)
        self.into = self.body
        self.following: dict[str, Block] = {}
        for s, role in roles:
            if role == "loop":
                target = s.target.name
                done = self.emit(s, f"{target}_next" if target in graph.carried else target)
                if target in graph.carried:
                    self.following[target] = done
        for n in graph.carried:
            code, own = self.following[n]
            self.body.append(f"{n} = {self.align((code, own), carried_vars[n])}")
        tail: list[str] = []
        self.into = tail
        for s, role in roles:
            if role == "after":
                self.emit(s, s.target.name)
        for n in graph.outputs:
            code, own = self.values[n]
            pointer, names = self.pointer(Reference(n, graph.indices_of(n)), n)
            mask = self.mask(names)
            tail.append(
                f"tl.store({pointer}, ({self.align((code, own), names)}).to({n}_ptr.dtype.element_ty){f', mask={mask}' if mask else ''})"
            )
        return self.assemble(tail)

    # Values

    def emit(self, statement: Statement, name: str) -> Block:
        if self.is_alias(statement.target.name) and not statement.filters:
            code, names = self.read(statement.expression, raw=True)  # type: ignore[arg-type]
        else:
            code, names = self.statement(statement)
        self.into.append(f"{name} = {code}")
        if name == statement.target.name:
            self.values[name] = (name, names)
        return name, names

    def fresh(self, code: str) -> str:
        self.count += 1
        self.into.append(f"t{self.count} = {code}")
        return f"t{self.count}"

    def statement(self, statement: Statement) -> Block:
        if not statement.filters and (dot := self.dot(statement)) is not None:
            return dot
        code, names = self.lay(statement.expression)
        reduced = [(how, v) for how, v in statement.reduced if v != self.loop]
        for condition in statement.filters:
            test, at = self.condition(condition)
            names_all = self.union(names, at)
            if how_unknown := [how for how, _ in reduced if how not in IDENTITY]:
                raise ProbatumError(f"a reduction of kind {how_unknown[0]} has no Triton form here; sum, max and min have")
            other = IDENTITY[reduced[0][0]] if reduced else "0.0"
            code = f"tl.where({self.align((test, at), names_all)}, {self.align((code, names), names_all)}, {other})"
            names = names_all
        for how, v in reduced:
            if how not in IDENTITY:
                raise ProbatumError(f"a reduction of kind {how} has no Triton form here; sum, max and min have")
            if v not in names:
                names_all = (*names, v)
                code, names = f"({self.align((code, names), names_all)} + tl.zeros(({self.shape(names_all)}), tl.float32))", names_all
            if v == self.outer:
                raise ProbatumError(f"{statement.target.name} reduces {v}, which is spread over programs")
            code, names = f"tl.{how}({code}, {names.index(v)})", tuple(u for u in names if u != v)
        return code, names

    def dot(self, statement: Statement) -> Block | None:
        from probatum.algebra.cascade_execution import _chain

        reduced = [(how, v) for how, v in statement.reduced if v != self.loop]
        if len(reduced) != 1 or reduced[0][0] != "sum":
            return None
        refs, constants = _chain(statement, "*")
        if len(refs) != 2:
            return None
        k = reduced[0][1]
        (a, left), (b, right) = (self.read(ref, raw=True) for ref in refs)
        if len(left) != 2 or len(right) != 2 or k not in left or k not in right or len(set(left) | set(right)) != 3:
            return None
        if left.index(k) == 0:
            a, left = f"tl.trans({a})", left[::-1]
        if right.index(k) == 1:
            b, right = f"tl.trans({b})", right[::-1]
        raw = [code.removeprefix("tl.trans(").removesuffix(")") for code in (a, b)]
        typed = [self.loaded(code) for code in raw]
        if typed == [False, True]:  # computed in float32: to the type of the loaded operand, which the matrix unit wants
            a = f"({a}).to({raw[1]}.dtype)"
        elif typed == [True, False]:
            b = f"({b}).to({raw[0]}.dtype)"
        scale = "".join(f" * ({self.lay(c)[0]})" for c in constants)
        return f"tl.dot({a}, {b}){scale}", (left[0], right[1])

    def loaded(self, code: str) -> bool:
        return any(code == own for own, _ in self.loads.values()) or any(code == n and self.is_alias(n) for n in self.values)

    def is_alias(self, name: str) -> bool:
        made = [s for s in self.graph.statements if s.target.name == name]
        plain = [s for s in made if isinstance(s.expression, Reference) and not s.filters and not s.reduced]
        return bool(plain) and plain[0].expression.name in self.graph.inputs  # type: ignore[union-attr]

    def read(self, ref: Reference, raw: bool = False) -> Block:
        if ref.name in self.graph.carried:
            along = next(i for i in ref.indices if (i.shifted and i.shifted[0] == self.loop) or not i.terms)
            return self.following[ref.name] if along.shifted == (self.loop, 1) else self.values[ref.name]
        if ref.name in self.values:
            code, names = self.values[ref.name]
            return (code, names) if raw or not self.is_alias(ref.name) else (f"{code}.to(tl.float32)", names)
        key = str(ref)
        if key not in self.loads:
            pointer, names = self.pointer(ref, ref.name)
            mask = self.mask(names)
            kept, self.into = self.into, self.body if self.loop in self.indices(ref) else self.before
            tail = f", mask={mask}, other=0.0" if mask else ""
            self.loads[key] = self.fresh(f"tl.load({pointer}{tail})"), names
            self.into = kept
        code, names = self.loads[key]
        return (code, names) if raw else (f"{code}.to(tl.float32)", names)

    def indices(self, ref: Reference) -> set[str]:
        return {v for i in ref.indices for v in i.variables}

    def pointer(self, ref: Reference, name: str) -> Block:
        names = tuple(dict.fromkeys(v for i in ref.indices for v in i.variables if v not in (*self.grid, self.loop)))
        parts = [f"{name}_ptr"]
        for axis, index in enumerate(ref.indices):
            parts.append(f"({self.position(index, names)}) * {name}_s{axis}")
        return " + ".join(parts), names

    def position(self, index: Index, names: tuple[str, ...]) -> str:
        parts = [f"{a} * {self.align((v, (v,)), names)}" if v in names else f"{a} * {v}" for a, v in index.terms]
        if index.offset != 0 or not parts:
            parts.append(str(index.offset))
        return " + ".join(parts).replace("1 * ", "")

    def mask(self, names: tuple[str, ...]) -> str:
        return self.align((f"{self.outer}_in", (self.outer,)), names) if self.outer in names else ""

    def shape(self, names: tuple[str, ...]) -> str:
        return "".join(f"{'BLOCK' if v == self.outer else v.upper()}, " for v in names).strip() or "1,"

    def union(self, *groups: tuple[str, ...]) -> tuple[str, ...]:
        found = set().union(*groups)
        return tuple(v for v in self.graph.variables if v in found)

    def align(self, value: Block, names: tuple[str, ...]) -> str:
        code, own = value
        if not own or own == names:
            return code
        if tuple(v for v in names if v in own) != own:
            code, own = f"tl.trans({code})", own[::-1]
            if tuple(v for v in names if v in own) != own:
                raise ProbatumError(f"a value over {', '.join(own)} has too many axes for a block")
        if own == names:
            return code
        code = code if code.isidentifier() else f"({code})"
        return f"{code}[{', '.join(':' if v in own else 'None' for v in names)}]"

    def condition(self, condition: Condition) -> Block:
        left, right = self.lay(condition.left), self.lay(condition.right)
        names = self.union(left[1], right[1])
        return f"({self.align(left, names)} {condition.comparison} {self.align(right, names)})", names

    def lay(self, node: Expression) -> Block:
        if isinstance(node, Number):
            text = repr(node.value)
            return (f'float("{text}")' if "inf" in text else text), ()
        if isinstance(node, Extent):
            return node.name, ()
        if isinstance(node, Coordinate):
            return node.name, () if node.name in (*self.grid, self.loop) else (node.name,)
        if isinstance(node, Reference):
            return self.read(node)
        if not variables(node) and not any(True for _ in _tensors(node)):  # constants are folded where all extents are known
            value = _fold(node, self.extents)
            if value is not None:
                return repr(value), ()
        if node.operator == "exp" and isinstance(node.arguments[0], Apply) and node.arguments[0].operator == "-":
            a, b = (self.lay(x) for x in node.arguments[0].arguments)
            safe = self.fresh(f'tl.where({b[0]} == float("-inf"), 0.0, {b[0]})') if b[1] else b[0]
            names = self.union(a[1], b[1])
            return f"tl.exp({self.align(a, names)} - {self.align((safe, b[1]), names)})", names
        parts = [self.lay(x) for x in node.arguments]
        if node.operator in CALLS:
            return CALLS[node.operator].format(parts[0][0]), parts[0][1]
        a, b = parts
        names = self.union(a[1], b[1])
        x, y = self.align(a, names), self.align(b, names)
        if node.operator in ("max", "min"):
            return f"tl.{node.operator}imum({x}, {y})", names
        if node.operator == "/" and b[1]:
            safe = self.align((self.fresh(f'tl.where({b[0]} == 0.0, float("inf"), {b[0]})'), b[1]), names)
            return f"({x} / {safe})", names
        return f"({x} {node.operator} {y})", names

    # Text

    def assemble(self, tail: list[str]) -> str:
        graph = self.graph
        tensors = [*graph.inputs, *graph.outputs]
        strides = [f"{n}_s{axis}" for n in tensors for axis in range(len(graph.indices_of(n)))]
        runtime = [v.upper() for v in (self.outer, *self.grid, self.loop)]  # type: ignore[union-attr]
        constants = [v.upper() for v in self.inner]
        head = [
            "import torch", "import triton", "import triton.language as tl", "", "", "@triton.jit", f"def {self.name}(",
            "    " + ", ".join(f"{n}_ptr" for n in tensors) + ",", "    " + "".join(f"{s}, " for s in strides).strip(),
            "    " + ", ".join(runtime) + ",", "    " + "".join(f"{c}: tl.constexpr, " for c in constants) + "BLOCK: tl.constexpr,", "):",
        ]  # fmt: skip
        setup = ["program = tl.program_id(0)", f"tiles = tl.cdiv({self.outer.upper()}, BLOCK)"]
        setup += [
            f"{self.outer} = (program % tiles) * BLOCK + tl.arange(0, BLOCK)",
            f"{self.outer}_in = {self.outer} < {self.outer.upper()}",
        ]
        rest = "program // tiles"
        for v in reversed(self.grid):
            setup += [f"{v} = ({rest}) % {v.upper()}"]
            rest += f" // {v.upper()}"
        setup += [f"{v} = tl.arange(0, {v.upper()})" for v in self.inner]
        lines = [*setup, *self.before, f"for {self.loop} in range({self.loop.upper()}):", *("    " + row for row in self.body), *tail]  # type: ignore[union-attr]
        return "\n".join([*head, *("    " + row for row in lines), "", "", *self.launcher(tensors, runtime, constants)]) + "\n"

    def launcher(self, tensors: list[str], runtime: list[str], constants: list[str]) -> list[str]:
        graph = self.graph
        known: dict[str, str] = {v.upper(): str(self.extents[v.upper()]) for v in self.inner}
        rows = [f"{name} = {value}" for name, value in known.items()]
        checks = []
        for n in graph.inputs:
            for axis, index in enumerate(graph.indices_of(n)):
                size = f"{n}.shape[{axis}]"
                if index.plain and index.plain.upper() not in known:
                    known[index.plain.upper()] = size
                    rows.append(f"{index.plain.upper()} = {size}")
                elif index.plain:
                    checks.append(f"assert {size} == {index.plain.upper()}, '{n}, axis {axis}'")
                elif index.split and index.split[0].upper() not in known:
                    outer, inner = (v.upper() for v in index.split)
                    known[outer] = size
                    rows += [
                        f"assert {size} % {inner} == 0, '{n}, axis {axis}: pad to a multiple of {inner}'",
                        f"{outer} = {size} // {inner}",
                    ]
        missing = [name for name in runtime if name not in known]
        if missing:
            raise ProbatumError(f"the extents {', '.join(missing)} follow from no input")
        steps = rows + checks
        for n in graph.outputs:
            shape = "".join(f"{i.plain.upper()}, " for i in graph.indices_of(n) if i.plain)
            first = next(m for m in graph.inputs if graph.indices_of(m))
            steps.append(f"{n} = torch.empty(({shape.strip()}), dtype={first}.dtype, device={first}.device)")
        count = " * ".join([f"triton.cdiv({self.outer.upper()}, {self.block})", *(v.upper() for v in self.grid)])
        strides = "".join(f"*{n}.stride(), " for n in tensors)
        arguments = f"{', '.join(tensors)}, {strides}{', '.join(runtime)}, {''.join(f'{c}, ' for c in constants)}{self.block}"
        call = f"{self.name}[({count},)]({arguments})"
        steps += [call, "return " + ", ".join(graph.outputs)]
        return [f"def launch_{self.name}({', '.join(graph.inputs)}):", *("    " + row for row in steps)]


def _tensors(node: Expression) -> Any:
    if isinstance(node, Reference):
        yield node
    elif isinstance(node, Apply):
        for argument in node.arguments:
            yield from _tensors(argument)


def _fold(node: Expression, extents: Mapping[str, int]) -> float | None:
    from probatum.algebra.cascade_execution import _on_numbers

    if isinstance(node, Number):
        return node.value
    if isinstance(node, Extent):
        return float(extents[node.name]) if node.name in extents else None
    if not isinstance(node, Apply):
        return None
    parts = [_fold(a, extents) for a in node.arguments]
    return None if None in parts else _on_numbers(node.operator, parts)  # type: ignore[arg-type]
