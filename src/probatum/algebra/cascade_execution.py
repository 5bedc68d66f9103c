"""Running a cascade on tensors: the reference interpreter, and the blocked executor for cascades of one pass.

Both evaluate a statement the same way: sums of products by `contract` over the reals (torch.einsum), sums under max, min and
lse by `contract` over MAXPLUS, MINPLUS and LOG, everything else by broadcasting and reducing. They differ in what they keep.
`reference` makes every tensor whole and drops it after its last reader. `blocked` walks the iterative rank, holds one step's
tiles and the carried tensors, and cuts ranks that every output has and nothing reduces (`tile`); gradients recompute a step at
a time from the carried tensors.

Empty points: a division by zero gives 0 (the paper's ÷(←) touches nothing there), and exp(a - b) with b = -inf takes 0 for b,
so that a tile that is filtered out whole adds nothing instead of nan.
"""

import math
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from probatum.algebra.cascade_graph import COMPARE, Graph
from probatum.algebra.cascade_syntax import Apply, Condition, Coordinate, Expression, Extent, Index, Number, Reference, Statement, variables
from probatum.algebra.contraction import contract
from probatum.algebra.semirings import LOG, MAXPLUS, MINPLUS, REAL
from probatum.errors import ProbatumError

__all__ = ["TILE_POINTS", "default_tile", "run_blocked", "run_reference", "tileable"]

TILE_POINTS = 1 << 20  # points of the largest tensor of a step, 4 MiB of float32: below it the interpreter costs, above it memory
SEMIRINGS = {"sum": ("*", REAL), "max": ("+", MAXPLUS), "min": ("+", MINPLUS), "lse": ("+", LOG)}
IDENTITY = {"sum": 0.0, "prod": 1.0, "max": -math.inf, "min": math.inf, "lse": -math.inf}
UNARY = {
    "exp": torch.exp, "log": torch.log, "sqrt": torch.sqrt, "rsqrt": torch.rsqrt, "tanh": torch.tanh, "sigmoid": torch.sigmoid,
    "relu": torch.relu, "abs": torch.abs, "sin": torch.sin, "cos": torch.cos, "erf": torch.erf, "square": torch.square,
    "negative": torch.neg,
}  # fmt: skip
Cut = tuple[int, int]  # start, length


@dataclass
class Frame:
    """What is known at one place of an execution.

    `whole`: tensors with all their indices. `local`: tensors of this step, without the iterative index, cut to the tile.
    `now`, `following`: carried tensors before and after the step. `fixed`: the iterative coordinate. `cut`: the tile.
    `gradients`: where gradients of whole tensors are added, in the recomputing backward.
    """

    graph: Graph
    extents: dict[str, int]
    dtype: torch.dtype
    device: torch.device
    whole: dict[str, Tensor] = field(default_factory=dict)
    local: dict[str, Tensor] = field(default_factory=dict)
    now: dict[str, Tensor] = field(default_factory=dict)
    following: dict[str, Tensor] = field(default_factory=dict)
    fixed: dict[str, int] = field(default_factory=dict)
    cut: dict[str, Cut] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)

    def range_of(self, v: str) -> Cut:
        """Start and length of a free variable here."""
        return self.cut.get(v, (0, self.extents[v.upper()]))

    def read(self, ref: Reference) -> tuple[Tensor, tuple[str, ...]]:
        """A tensor at a reference, with the variables of its axes; no variable twice."""
        indices = ref.indices
        loop = self.graph.iterative
        if ref.name in self.graph.carried:
            along = next(k for k, i in enumerate(self.graph.indices_of(ref.name)) if i.shifted == (loop, 1))
            value = self.following[ref.name] if indices[along].shifted == (loop, 1) else self.now[ref.name]
            indices = indices[:along] + indices[along + 1 :]
            return self._pick(value, indices, local=True)
        if ref.name in self.local:
            own = self.graph.indices_of(ref.name)
            rest = tuple(i for i, made in zip(indices, own, strict=True) if not (loop in self.fixed and made.plain == loop))
            return self._pick(self.local[ref.name], rest, local=True)
        return self._pick(self.whole[ref.name], indices, local=False, name=ref.name)

    def _pick(self, value: Tensor, indices: tuple[Index, ...], *, local: bool, name: str = "") -> tuple[Tensor, tuple[str, ...]]:
        """Select, narrow, split or gather each axis. Narrowing comes first and is a view, so that gradients can be added in place."""
        basic: list[Any] = []
        later: list[Index | str] = []
        for axis, index in enumerate(indices):
            free = [v for v in index.variables if v not in self.fixed]
            base = _resolve(index.offset, self.extents) + sum(
                _resolve(a, self.extents) * self.fixed[v] for a, v in index.terms if v in self.fixed
            )
            if not free:
                self._inside(base, value.shape[axis], index)
                basic.append(base)
            elif len(free) == 1 and _coefficient(index, free[0]) == 1:
                start, length = (0, value.shape[axis]) if local and index.plain else self.range_of(free[0])
                self._inside(base + start + length - 1, value.shape[axis], index)
                basic.append(slice(base + start, base + start + length))
                later.append(free[0])
            else:
                basic.append(slice(None))
                later.append(index)
        if name in self.gradients:
            value = _Window.apply(value, self.gradients[name], tuple(basic))
        else:
            value = value[tuple(basic)] if indices else value
        names: list[str] = []
        for kept in later:
            axis = len(names)
            if isinstance(kept, str):
                names.append(kept)
                continue
            index = kept
            if index.split and not any(v in self.fixed or v in self.cut for v in index.split):
                outer, inner = index.split
                value = value.unflatten(axis, (self.extents[outer.upper()], self.extents[inner.upper()]))
                names += [outer, inner]
            else:
                place, free = self._positions(index)
                self._inside(int(place.max()), value.shape[axis], index)
                value = value.index_select(axis, place.flatten()).unflatten(axis, place.shape)
                names += free
        if len(set(names)) < len(names):
            letters = dict(zip(dict.fromkeys(names), string.ascii_letters, strict=False))
            unique = list(dict.fromkeys(names))
            value = torch.einsum("".join(letters[v] for v in names) + "->" + "".join(letters[v] for v in unique), value)
            names = unique
        return value, tuple(names)

    def _inside(self, last: int, size: int, index: Index) -> None:
        if not 0 <= last < size:
            raise ProbatumError(f"index {index} reaches {last}, but the axis has size {size}")

    def _positions(self, index: Index) -> tuple[Tensor, list[str]]:
        free = [v for v in index.variables if v not in self.fixed]
        total: Tensor | int = _resolve(index.offset, self.extents)
        for a, v in index.terms:
            if v in self.fixed:
                total = total + _resolve(a, self.extents) * self.fixed[v]
        for k, v in enumerate(free):
            start, length = self.range_of(v)
            along = torch.arange(start, start + length, device=self.device) * _resolve(_coefficient(index, v), self.extents)
            total = total + along.reshape([-1 if j == k else 1 for j in range(len(free))])
        return total, free  # type: ignore[return-value]

    def evaluate(self, statement: Statement) -> Tensor:
        """One statement here; axes are the free variables of its left side, in order."""
        kept = _free_target(statement.target, self.fixed)
        filters = self._filter(statement)
        if filters is False:
            return self.empty(statement)
        if filters is None:
            done = self._contract(statement, kept)
            if done is not None:
                return done
        space = tuple(v for v in statement.space if v not in self.fixed)
        value = self._lay(statement.expression, space)
        if not isinstance(value, Tensor):
            value = torch.full([1] * len(space), value, dtype=self.dtype, device=self.device)
        reduced = [(how, v) for how, v in statement.reduced if v not in self.fixed]
        if isinstance(filters, Tensor):
            value = value.masked_fill(~filters, IDENTITY[reduced[0][0]] if reduced else 0.0)
        value = value.expand([self.range_of(v)[1] for v in space])
        names = list(space)
        while reduced:  # neighbours of the same kind in one call
            how, group = reduced[0][0], [v for h, v in reduced if h == reduced[0][0]]
            if any(h != how for h, _ in reduced[: len(group)]):
                group = group[:1]
            value = _reduce(how, value, sorted(names.index(v) for v in group))
            names = [v for v in names if v not in group]
            reduced = reduced[len(group) :]
        return value.permute([names.index(v) for v in kept])

    def empty(self, statement: Statement) -> Tensor:
        """The result where every point is filtered out."""
        reduced = [how for how, v in statement.reduced if v not in self.fixed]
        value = 0.0
        for k, how in enumerate(reduced):
            value = IDENTITY[how] if k == 0 or how != "sum" or math.isinf(value) else value
        shape = [self.range_of(v)[1] for v in _free_target(statement.target, self.fixed)]
        return torch.full(shape, value, dtype=self.dtype, device=self.device)

    def _filter(self, statement: Statement) -> Tensor | bool | None:
        """Where the statement's points are kept: a mask over its space, None for everywhere, False for nowhere."""
        space = tuple(v for v in statement.space if v not in self.fixed)
        mask: Tensor | None = None
        for condition in statement.filters:
            known = self.decided(condition)
            if known is False:
                return False
            if known is None:
                left, right = self._lay(condition.left, space), self._lay(condition.right, space)
                here = COMPARE[condition.comparison](left, right)
                mask = here if mask is None else mask & here
        return mask

    def decided(self, condition: Condition) -> bool | None:
        """A filter of coordinates alone that is the same for the whole tile, by interval arithmetic."""
        ends = [self._interval(side) for side in (condition.left, condition.right)]
        if None in ends:
            return None
        (a, b), (c, d) = ends  # type: ignore[misc]
        corners = {COMPARE[condition.comparison](x, y) for x in (a, b) for y in (c, d)}
        if condition.comparison in ("==", "!="):
            apart = b < c or d < a
            return (condition.comparison == "!=") if apart else (condition.comparison == "==") if a == b == c == d else None
        return corners.pop() if len(corners) == 1 else None

    def _interval(self, node: Expression) -> tuple[float, float] | None:
        if isinstance(node, Number):
            return node.value, node.value
        if isinstance(node, Extent):
            return self.extents[node.name], self.extents[node.name]
        if isinstance(node, Reference) and node.name in self.whole and not node.indices and self.whole[node.name].device.type == "cpu":
            value = self.whole[node.name].item()
            return value, value
        if isinstance(node, Coordinate):
            if node.name in self.fixed:
                return self.fixed[node.name], self.fixed[node.name]
            start, length = self.range_of(node.name)
            return start, start + length - 1
        if isinstance(node, Apply) and node.operator in ("+", "-", "*", "negative"):
            parts = [found for argument in node.arguments if (found := self._interval(argument)) is not None]
            if len(parts) < len(node.arguments):
                return None
            (a, b), *rest = parts
            if node.operator == "negative":
                return -b, -a
            c, d = rest[0]
            if node.operator == "+":
                return a + c, b + d
            if node.operator == "-":
                return a - d, b - c
            products = (a * c, a * d, b * c, b * d)
            return min(products), max(products)
        return None

    def _contract(self, statement: Statement, kept: tuple[str, ...]) -> Tensor | None:
        """A product summed, or a sum under max, min or lse, as one contraction; None where the statement is something else."""
        reduced = [(how, v) for how, v in statement.reduced if v not in self.fixed]
        kinds = {how for how, _ in reduced}
        if len(kinds) != 1 or (how := kinds.pop()) not in SEMIRINGS:
            return None
        operator, semiring = SEMIRINGS[how]
        refs, others = _chain(statement, operator)
        if len(refs) < 2:
            return None
        operands = [self.read(ref) for ref in refs]
        if {v for _, v in reduced} - {v for _, names in operands for v in names}:
            return None
        constant: float | Tensor = 1.0 if operator == "*" else 0.0
        for part in others:
            value = self._lay(part, ())
            constant = constant * value if operator == "*" else constant + value
        if not (isinstance(constant, float) and constant == (1.0 if operator == "*" else 0.0)):
            small = min(range(len(operands)), key=lambda k: operands[k][0].numel())
            tensor, names = operands[small]
            operands[small] = (tensor * constant if operator == "*" else tensor + constant), names
        letters = dict(zip(dict.fromkeys(v for _, names in operands for v in names), string.ascii_letters, strict=False))
        spec = ",".join("".join(letters[v] for v in names) for _, names in operands)
        return contract(semiring, f"{spec}->{''.join(letters[v] for v in kept)}", *(tensor for tensor, _ in operands))  # type: ignore[index]

    def _lay(self, node: Expression, space: tuple[str, ...]) -> Any:
        """An expression over a space: a tensor with one axis a variable (size 1 where it does not depend on it), or a number."""
        if isinstance(node, Number):
            return node.value
        if isinstance(node, Extent):
            return float(self.extents[node.name])
        if isinstance(node, Coordinate):
            if node.name in self.fixed:
                return self.fixed[node.name]
            start, length = self.range_of(node.name)
            shape = [-1 if v == node.name else 1 for v in space]
            return torch.arange(start, start + length, device=self.device).reshape(shape)
        if isinstance(node, Reference):
            value, names = self.read(node)
            value = value.permute([names.index(v) for v in space if v in names])
            return value.reshape([value.shape[sum(u in names for u in space[:k])] if v in names else 1 for k, v in enumerate(space)])
        if node.operator == "exp" and isinstance(node.arguments[0], Apply) and node.arguments[0].operator == "-":
            left, right = (self._lay(argument, space) for argument in node.arguments[0].arguments)
            if isinstance(right, Tensor) and right.is_floating_point():
                right = torch.where(right == -math.inf, 0.0, right)  # a finite stand-in: -inf - -inf would be nan
            difference = left - right
            return _exp(difference)
        arguments = [self._lay(argument, space) for argument in node.arguments]
        return _apply(node.operator, arguments)


def _exp(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return math.exp(value)
    return value.exp() if value.requires_grad or not value.is_floating_point() else value.exp_()  # the difference is ours


def _apply(operator: str, arguments: list[Any]) -> Any:
    if not any(isinstance(a, Tensor) for a in arguments):
        return _on_numbers(operator, [float(a) for a in arguments])
    if operator in UNARY:
        value = arguments[0]
        return UNARY[operator](value if value.is_floating_point() else value.to(torch.get_default_dtype()))
    a, b = arguments
    match operator:
        case "+":
            return a + b
        case "-":
            return a - b
        case "*":
            return a * b
        case "/":
            if isinstance(b, Tensor):
                return a / torch.where(b == 0, math.inf, b)  # ÷(←): no touch where the right operand is zero
            return a / b if b else torch.zeros_like(a)
    if not isinstance(b, Tensor):
        a, b = b, a
    if not isinstance(a, Tensor):
        return b.clamp(min=a) if operator == "max" else b.clamp(max=a)
    return torch.maximum(a, b) if operator == "max" else torch.minimum(a, b)


def _on_numbers(operator: str, values: list[float]) -> float:
    match operator:
        case "+":
            return values[0] + values[1]
        case "-":
            return values[0] - values[1]
        case "*":
            return values[0] * values[1]
        case "/":
            return values[0] / values[1] if values[1] else 0.0
        case "max":
            return max(values)
        case "min":
            return min(values)
    return float(UNARY[operator](torch.tensor(values[0], dtype=torch.float64)))


def _reduce(how: str, value: Tensor, axes: list[int]) -> Tensor:
    if how == "sum":
        return value.sum(axes)
    if how == "max":
        return value.amax(axes)
    if how == "min":
        return value.amin(axes)
    if how == "lse":
        return torch.logsumexp(value, axes)
    for axis in reversed(axes):
        value = value.prod(axis)
    return value


def _flatten(node: Expression, operator: str) -> list[Expression]:
    """Operands of a chain of one associative operator; x / constant counts as a product with its inverse."""
    if isinstance(node, Apply) and node.operator == operator:
        return [part for argument in node.arguments for part in _flatten(argument, operator)]
    if operator == "*" and isinstance(node, Apply) and node.operator == "/" and not variables(node.arguments[1]):
        return [*_flatten(node.arguments[0], operator), Apply("/", (Number(1.0), node.arguments[1]))]
    return [node]


def _chain(statement: Statement, operator: str) -> tuple[list[Reference], list[Expression]]:
    """(tensors, constants) of a chain of one operator; no tensors where something else takes part. Kept with the statement."""
    kept = statement.__dict__.setdefault("_chains", {})
    if operator not in kept:
        parts = _flatten(statement.expression, operator)
        refs = [part for part in parts if isinstance(part, Reference)]
        others = [part for part in parts if not isinstance(part, Reference)]
        kept[operator] = ([], []) if any(variables(part) for part in others) else (refs, others)
    return kept[operator]


def _coefficient(index: Index, variable: str) -> int | str:
    return next(a for a, v in index.terms if v == variable)


def _resolve(value: int | str, extents: Mapping[str, int]) -> int:
    return value if isinstance(value, int) else extents[value]


def _free_target(target: Reference, fixed: Mapping[str, int]) -> tuple[str, ...]:
    """Variables of a left side that remain: no constants, no iterative one."""
    return tuple(index.shifted[0] for index in target.indices if index.shifted and index.shifted[0] not in fixed)


class _Window(torch.autograd.Function):
    """A part of a tensor whose gradient is added in place where it belongs, so that no zero-filled whole is made a step."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradient: Tensor, where: tuple) -> Tensor:
        ctx.gradient, ctx.where = gradient, where
        return value[where].clone() if not where else value[where]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, None]:
        ctx.gradient[ctx.where] += grads[0]
        return None, None, None


def _start(frame: Frame) -> None:
    """Initial values of the carried tensors, in their full (tile) shape."""
    for statement, role in zip(frame.graph.statements, frame.graph.roles, strict=True):
        if role == "init":
            own = frame.graph.indices_of(statement.target.name)
            loop = frame.graph.iterative
            shape = [frame.range_of(i.plain)[1] for i in own if i.plain and i.plain != loop]
            named = [i.plain for i in own if i.plain and i.plain != loop]
            value = frame.evaluate(_initial(statement, frame))
            here = _free_target(statement.target, {})
            value = value.reshape([n if v in here else 1 for v, n in zip(named, shape, strict=True)])
            frame.now[statement.target.name] = value.expand(shape)


def _initial(statement: Statement, frame: Frame) -> Statement:
    """An initial statement without the constant index."""
    indices = tuple(i for i in statement.target.indices if i.terms)
    return Statement(Reference(statement.target.name, indices), statement.expression, statement.reductions, True)


def _step(frame: Frame, statements: list[Statement], keep: Sequence[str] = ()) -> None:
    """One step of the iteration: locals, then the carried tensors of the next coordinate; `keep` names locals wanted for themselves."""
    empty, idle = _idle(frame, statements, keep) if any(s.filters for s in statements) else (set(), set())
    for statement in statements:
        name = statement.target.name
        if name in idle:
            continue
        value = frame.empty(statement) if name in empty else frame.evaluate(statement)
        if name in frame.graph.carried:
            frame.following[name] = value
        else:
            frame.local[name] = value


def _idle(frame: Frame, statements: list[Statement], keep: Sequence[str]) -> tuple[set[str], set[str]]:
    """What a step need not compute because filters leave nothing of its tile: (tensors without a point, tensors that nobody reads then).

    A product with an empty tensor is empty (×(∩) touches only what both have). So a causal mask skips the tiles above the diagonal.
    """
    empty: set[str] = set()
    zero: set[str] = set()
    for statement in statements:
        sums = all(how == "sum" for how, _ in statement.reduced)
        if any(frame.decided(condition) is False for condition in statement.filters):
            empty.add(statement.target.name)
        elif not (sums and any(ref.name in zero for ref in _chain(statement, "*")[0])):
            continue
        else:
            empty.add(statement.target.name)
        if sums:
            zero.add(statement.target.name)
    if not empty:
        return empty, set()
    needed = {*frame.graph.carried, *keep}
    for statement in reversed(statements):
        if statement.target.name in needed and statement.target.name not in empty:
            needed |= {ref.name for ref in statement.reads}
    return empty, {s.target.name for s in statements} - needed


def run_reference(graph: Graph, inputs: Mapping[str, Tensor], extents: dict[str, int], outputs: tuple[str, ...]) -> dict[str, Tensor]:
    """Every tensor whole; tensors are dropped after their last reader. Gradients are torch's own.

    Args:
        graph, inputs, extents: checked and complete.
        outputs: tensors to return; a carried one comes with all its steps.
    """
    frame = _frame(graph, inputs, extents)
    loop = graph.iterative
    grow: set[str] = set(graph.carried)  # depends on a carried tensor: only these wait for the iteration
    stepwise, whole, after = [], [], []
    for statement, role in zip(graph.statements, graph.roles, strict=True):
        if role == "loop" and (statement.target.name in grow or any(r.name in grow for r in statement.reads)):
            grow.add(statement.target.name)
            stepwise.append(statement)
        elif role == "after":
            after.append(statement)
        elif role != "init":
            whole.append(statement)
    plan: list[Statement | None] = [*whole, *([None] if loop else []), *after]
    last: dict[str, int] = {}
    for k, entry in enumerate(plan):
        for statement in [entry] if entry is not None else stepwise:
            for ref in statement.reads:
                last[ref.name] = k
    for k, entry in enumerate(plan):
        if entry is not None:
            frame.whole[entry.target.name] = frame.evaluate(entry)
        else:
            _start(frame)
            kept = [
                s.target.name for s in stepwise if s.target.name in outputs or any(s.target.name == r.name for a in after for r in a.reads)
            ]
            history: dict[str, list[Tensor]] = {n: [frame.now[n]] if n in graph.carried else [] for n in kept}
            for i in range(graph.steps(extents)):
                frame.fixed = {loop: i}  # type: ignore[dict-item]
                _step(frame, stepwise, kept)
                for name in kept:
                    history[name].append(frame.following[name] if name in graph.carried else frame.local[name])
                frame.now, frame.following, frame.local = frame.following, {}, {}
            frame.fixed = {}
            for name, parts in history.items():
                if name in outputs or name not in graph.carried:
                    axis = next(a for a, i in enumerate(graph.indices_of(name)) if loop in i.variables)
                    frame.whole[name] = torch.stack(parts, axis)
        for name in [n for n, at in last.items() if at == k and n not in outputs and n not in inputs]:
            frame.whole.pop(name, None)
    return {name: frame.whole[name] for name in outputs}


def _frame(graph: Graph, inputs: Mapping[str, Tensor], extents: dict[str, int]) -> Frame:
    floating = [t.dtype for t in inputs.values() if t.is_floating_point()]
    dtype = floating[0] if floating else torch.get_default_dtype()
    for other in floating[1:]:
        dtype = torch.promote_types(dtype, other)
    device = next((t.device for t in inputs.values()), torch.device("cpu"))
    return Frame(graph, extents, dtype, device, dict(inputs))


def tileable(graph: Graph) -> tuple[str, ...]:
    """Ranks that the blocked executor may cut: every output has them as they are, nothing reduces them or shifts them."""
    carried = set(graph.variables) - ({graph.iterative} if graph.iterative else set())
    for name in graph.outputs:
        carried &= {i.plain for i in graph.indices_of(name)}
    for statement in graph.statements:
        carried -= {v for _, v in statement.reduced}
        for ref in (statement.target, *statement.reads):
            carried -= {v for i in ref.indices if i.plain is None for v in i.variables}
    return tuple(v for v in graph.variables if v in carried)


def default_tile(graph: Graph, extents: Mapping[str, int], points: int = TILE_POINTS) -> dict[str, int]:
    """Tile sizes that keep the largest tensor of a step near `points` entries; the largest rank is cut first, down to 64."""
    free = sorted(tileable(graph), key=lambda v: -extents[v.upper()])
    sizes = {v: extents[v.upper()] for v in free}

    def largest() -> int:
        most = 1
        for statement, role in zip(graph.statements, graph.roles, strict=True):
            if role == "loop":
                own = {i.plain or (i.shifted or ("",))[0] for i in statement.target.indices} - {graph.iterative}
                most = max(most, math.prod(sizes.get(v, extents[v.upper()]) for v in own))
        return most

    for floor in (64, 1):
        for v in sorted(sizes, key=lambda v: -sizes[v]) if floor > 1 else sorted(sizes, key=lambda v: sizes[v]):
            while largest() > points and sizes[v] > floor:
                sizes[v] = max(floor, -(-sizes[v] // 2))
    return {v: n for v, n in sizes.items() if n < extents[v.upper()]}


def run_blocked(
    graph: Graph, inputs: Mapping[str, Tensor], extents: dict[str, int], outputs: tuple[str, ...], tile: Mapping[str, int]
) -> dict[str, Tensor]:
    """A one-pass cascade as a loop over its iterative rank, tile by tile; differentiable, with recomputation.

    Args:
        outputs: tensors made after the iteration, or carried ones, of which the last step is returned.
        tile: rank -> size, of `tileable` ranks.
    """
    names = tuple(inputs)
    engine = _Blocked(graph, extents, outputs, dict(tile), names)
    results = _Recompute.apply(engine, *inputs.values())
    return dict(zip(outputs, results, strict=True))


class _Blocked:
    """The loop, and its backward a step at a time."""

    def __init__(
        self, graph: Graph, extents: dict[str, int], outputs: tuple[str, ...], tile: dict[str, int], names: tuple[str, ...]
    ) -> None:
        self.graph, self.extents, self.outputs, self.tile, self.names = graph, extents, outputs, tile, names
        self.loop = [s for s, role in zip(graph.statements, graph.roles, strict=True) if role == "loop"]
        self.before = [s for s, role in zip(graph.statements, graph.roles, strict=True) if role == "before"]
        self.after = [s for s, role in zip(graph.statements, graph.roles, strict=True) if role == "after"]
        self.steps = graph.steps(extents)

    def cuts(self) -> Iterator[dict[str, Cut]]:
        """All tiles."""
        found: list[dict[str, Cut]] = [{}]
        for v, size in self.tile.items():
            n = self.extents[v.upper()]
            found = [{**cut, v: (start, min(size, n - start))} for cut in found for start in range(0, n, size)]
        return iter(found)

    def frame(self, tensors: tuple[Tensor, ...], cut: dict[str, Cut]) -> Frame:
        frame = _frame(self.graph, dict(zip(self.names, tensors, strict=True)), self.extents)
        frame.cut = cut
        return frame

    def prepare(self, frame: Frame) -> None:
        for statement in self.before:
            frame.local[statement.target.name] = frame.evaluate(statement)

    def iterate(self, frame: Frame, keep: list[dict[str, Tensor]] | None = None) -> None:
        _start(frame)
        first = dict(frame.local)
        for i in range(self.steps):
            if keep is not None:
                keep.append(dict(frame.now))
            frame.fixed = {self.graph.iterative: i}  # type: ignore[dict-item]
            _step(frame, self.loop)
            frame.now, frame.following, frame.local = frame.following, {}, dict(first)
        frame.fixed = {}

    def finish(self, frame: Frame) -> list[Tensor]:
        for statement in self.after:
            frame.local[statement.target.name] = frame.evaluate(statement)
        return [frame.now[n] if n in self.graph.carried else frame.local[n] for n in self.outputs]

    def place(self, name: str, cut: dict[str, Cut]) -> tuple[slice, ...]:
        """Where a tile's output belongs."""
        own = [i.plain for i in self.graph.indices_of(name) if i.plain]
        return tuple(slice(cut[v][0], sum(cut[v])) if v in cut else slice(None) for v in own)

    def forward(self, tensors: tuple[Tensor, ...]) -> list[Tensor]:
        results: list[Tensor] = []
        for cut in self.cuts():
            frame = self.frame(tensors, cut)
            self.prepare(frame)
            self.iterate(frame)
            parts = self.finish(frame)
            if not results:
                for name, part in zip(self.outputs, parts, strict=True):
                    own = [i.plain for i in self.graph.indices_of(name) if i.plain]
                    results.append(part.new_empty([self.extents[v.upper()] for v in own]))
            for name, result, part in zip(self.outputs, results, parts, strict=True):
                result[self.place(name, cut)] = part
        return results

    def backward(self, tensors: tuple[Tensor, ...], wanted: list[bool], grads: tuple[Tensor | None, ...]) -> list[Tensor | None]:
        gradients = {n: torch.zeros_like(t) for n, t, want in zip(self.names, tensors, wanted, strict=True) if want}
        leaves = tuple(t.detach().requires_grad_(want) for t, want in zip(tensors, wanted, strict=True))
        for cut in self.cuts():
            history: list[dict[str, Tensor]] = []
            with torch.no_grad():
                frame = self.frame(tensors, cut)
                self.prepare(frame)
                self.iterate(frame, history)
                end = dict(frame.now)
            # Statements before the loop are small and made again in each step's graph, so their gradients need no extra channel.
            parts = [None if g is None else g[self.place(n, cut)] for n, g in zip(self.outputs, grads, strict=True)]
            state_gradients = self._pull(leaves, cut, gradients, None, end, parts)
            for i in reversed(range(self.steps)):
                state_gradients = self._pull(leaves, cut, gradients, i, history[i], state_gradients)
            self._pull(leaves, cut, gradients, -1, {}, state_gradients)
        return [gradients.get(n) for n in self.names]

    def _pull(self, leaves, cut, gradients, step: int | None, state: dict[str, Tensor], wanted: list[Tensor | None]) -> list[Tensor | None]:
        """Gradients with respect to the state before: of the end (step None), a step, or the initial values (step -1)."""
        names = list(self.graph.carried)
        with torch.enable_grad():
            frame = self.frame(leaves, cut)
            frame.gradients = gradients
            state = {n: t.detach().requires_grad_() for n, t in state.items()}
            frame.now = dict(state)
            self.prepare(frame)
            if step is None:
                results = self.finish(frame)
            elif step < 0:
                _start(frame)
                results = [frame.now[n] for n in names]
            else:
                frame.fixed = {self.graph.iterative: step}  # type: ignore[dict-item]
                _step(frame, self.loop)
                results = [frame.following[n] for n in names]
            pairs = [(r, g) for r, g in zip(results, wanted, strict=True) if g is not None and r.requires_grad]
            if not pairs:
                return [None] * len(names)
            torch.autograd.backward([r for r, _ in pairs], [g for _, g in pairs])
        return [state[n].grad if n in state else None for n in names]


class _Recompute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, engine: _Blocked, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.engine = engine
        ctx.save_for_backward(*tensors)
        return tuple(engine.forward(tensors))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        wanted = list(ctx.needs_input_grad[1:])
        return (None, *ctx.engine.backward(ctx.saved_tensors, wanted, grads))
