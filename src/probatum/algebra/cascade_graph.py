"""The dependence graph of a cascade: checked statements in an order that respects dependences, ranks, extents.

>>> graph = build("do: Y = A[k]*B[k]   Z = Y*A[k]")
>>> graph.inputs, graph.outputs, graph.families
(('A', 'B'), ('Z',), (('k',),))
>>> build("do: Y[i] = A[i,k]*Z[i]  Z[i] = Y[i]")                # doctest: +ELLIPSIS
Traceback (most recent call last):
    ...
probatum.errors.ProbatumError: line 1, column 5: a cycle without an iterative rank: Y <- Z <- Y; one of them must be built as ...
  do: Y[i] = A[i,k]*Z[i]  Z[i] = Y[i]
      ^
"""

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from probatum.algebra.cascade_syntax import (
    Apply,
    Condition,
    Coordinate,
    Expression,
    Extent,
    Index,
    Number,
    Place,
    Reference,
    Statement,
    complaint,
    parse,
    references,
    variables,
)  # fmt: skip
from probatum.errors import ProbatumError, did_you_mean

__all__ = ["Graph", "build"]

Role = Literal["init", "before", "loop", "after"]


@dataclass(frozen=True)
class Graph:
    """A checked cascade.

    Attributes:
        statements: initial ones first, then in an order in which every tensor is made before it is read.
        roles: of each statement: "init", "before" the iteration, in the "loop", "after" it.
        iterative: the variable of the iterative rank, or None.
        carried: tensors built along it.
        inputs, outputs: tensors that no statement makes; tensors made that no other statement reads.
        variables: index variables in order of appearance.
        equations: extents that the text fixes, name -> expression.
        until: last coordinate condition, or None.
    """

    statements: tuple[Statement, ...]
    roles: tuple[Role, ...]
    iterative: str | None
    carried: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    variables: tuple[str, ...]
    equations: tuple[tuple[str, Expression], ...]
    until: Condition | None
    text: str
    splits: tuple[tuple[str, str], ...] = field(default=())

    @property
    def families(self) -> tuple[tuple[str, ...], ...]:
        """Rank families: the parts of a partitioned rank together, every other rank alone."""
        parents = {v: v for v in self.variables}

        def root(v: str) -> str:
            while parents[v] != v:
                v = parents[v]
            return v

        for outer, inner in self.splits:
            parents[root(inner)] = root(outer)
        groups: dict[str, list[str]] = {}
        for v in self.variables:
            if v.rstrip("_") == v or v.rstrip("_") not in parents:
                groups.setdefault(root(v), []).append(v)
        return tuple(tuple(group) for group in groups.values())

    def made_by(self, name: str) -> list[int]:
        """Numbers of the statements that make a tensor."""
        return [i for i, s in enumerate(self.statements) if s.target.name == name]

    def readers(self, name: str) -> list[int]:
        """Numbers of the statements that read a tensor."""
        return [i for i, s in enumerate(self.statements) if any(r.name == name for r in s.reads)]

    def indices_of(self, name: str) -> tuple[Index, ...]:
        """How a tensor is indexed where it is made, or first read."""
        return self._indices[name]

    @functools.cached_property
    def _indices(self) -> dict[str, tuple[Index, ...]]:
        made = {s.target.name: s.target.indices for s in self.statements}
        read = {r.name: r.indices for s in reversed(self.statements) for r in reversed(s.reads)}
        return {**read, **made}

    def edges(self) -> Iterator[tuple[int, int, Reference]]:
        """(maker, reader, reference) for every read of a tensor that is made here."""
        for j, statement in enumerate(self.statements):
            for reference in statement.reads:
                for i in self.made_by(reference.name):
                    if not self.statements[i].initial or self.statements[j].initial:
                        yield i, j, reference

    def reads_previous(self, statement: Statement, reference: Reference) -> bool:
        """Whether a reference is to the last step's value of a carried tensor."""
        return reference.name in self.carried and any(i.plain == self.iterative for i in reference.indices)

    def solve(self, known: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]] | None = None) -> dict[str, int]:
        """All extents that can be told from given ones and from the shapes of inputs.

        Args:
            known: extent -> value, as {"M0": 512}; they stand above the text's `extents:`.
            shapes: input -> shape.
        Raises:
            ProbatumError: two sources disagree (both are named), a shape of the wrong rank, an extent that does not divide.
        """
        names = {v.upper(): v for v in self.variables}
        extents: dict[str, int] = {}
        source: dict[str, str] = {}

        def put(name: str, value: int, where: str) -> bool:
            if name in extents:
                if extents[name] != value:
                    raise ProbatumError(f"extents disagree: {name} is {extents[name]} by {source[name]}, but {value} by {where}")
                return False
            extents[name], source[name] = value, where
            return True

        for name, value in known.items():
            if name not in names and name not in dict(self.equations):
                raise ProbatumError(f"extents: {name!r} is no rank of this cascade: {did_you_mean(name, names)}")
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ProbatumError(f"extents[{name!r}] must be an integer of at least 1, got {value!r}")
            put(name, value, "extents")
        for name, shape in (shapes or {}).items():
            wanted = len(self.indices_of(name))
            if len(shape) != wanted:
                raise ProbatumError(f"input {name} has {wanted} indices in the cascade, got shape {tuple(shape)}")
        defaults = dict(self.equations)
        for _ in range(2 * len(names) + 2):
            changed = False
            for name, shape in (shapes or {}).items():
                for statement in self.statements:
                    for ref in statement.reads:
                        if ref.name != name:
                            continue
                        for axis, index in enumerate(ref.indices):
                            changed |= self._from_shape(ref, axis, index, shape[axis], extents, put)
            if changed:
                continue
            for name, expression in defaults.items():
                if name not in known and (fixed := _value(expression, extents)) is not None:
                    changed |= put(name, fixed, "the text")
            for v in self.variables:  # p and p_ are two variables of one rank
                base = v.rstrip("_").upper()
                if base != v.upper() and base in names:
                    for this, other in ((v.upper(), base), (base, v.upper())):
                        if other in extents:
                            changed |= put(this, extents[other], f"{other} = {extents[other]} (one rank)")
            if not changed:
                break
        return extents

    def _from_shape(self, ref: Reference, axis: int, index: Index, size: int, extents: dict[str, int], put) -> bool:
        where = f"{ref.name}, axis {axis} of size {size}, read as {ref}"
        if index.plain:
            return put(index.plain.upper(), size, where)
        if index.split:
            outer, inner = (v.upper() for v in index.split)
            for this, other in ((outer, inner), (inner, outer)):
                if other in extents and this not in extents:
                    if size % extents[other]:
                        near = [d for d in range(1, size + 1) if size % d == 0]
                        best = sorted(near, key=lambda d: abs(d - extents[other]))[:3]
                        raise ProbatumError(
                            f"{size} is not divisible by {other} = {extents[other]} ({where}): take one of "
                            f"{', '.join(map(str, sorted(best)))}, "
                            f"or pad {ref.name} and filter the padding out"
                        )
                    return put(this, size // extents[other], where)
            if outer in extents and inner in extents and extents[outer] * extents[inner] != size:
                raise ProbatumError(f"extents disagree: {outer} * {inner} = {extents[outer] * extents[inner]}, but {where}")
            return False
        if index.terms and all(v.upper() in extents for v in index.variables):
            top = sum(_times(a, extents) * (extents[v.upper()] - 1) for a, v in index.terms) + _times(index.offset, extents)
            if top >= size:
                raise ProbatumError(f"extents disagree: {ref} reaches index {top}, but {where}")
        return False

    def shape_of(self, name: str, extents: Mapping[str, int]) -> tuple[int, ...]:
        """Shape of a tensor under extents.

        Raises:
            ProbatumError: an extent is missing.
        """
        sizes = []
        for index in self.indices_of(name):
            try:
                if index.plain:
                    sizes.append(extents[index.plain.upper()])
                elif index.terms:
                    top = sum(_times(a, extents) * (extents[v.upper()] - 1) for a, v in index.terms)
                    sizes.append(top + _times(index.offset, extents) + 1)
                else:
                    sizes.append(_times(index.offset, extents) + 1)
            except KeyError as error:
                raise ProbatumError(
                    f"the extent {error.args[0]} is not known: give extents={{{error.args[0]!r}: ...}} or an input that has it"
                ) from None
        return tuple(sizes)

    def volume(self, names: tuple[str, ...], extents: Mapping[str, int]) -> int:
        """Points of an iteration space."""
        missing = [v.upper() for v in names if v.upper() not in extents]
        if missing:
            raise ProbatumError(f"the extents {', '.join(missing)} are not known: give extents={{{missing[0]!r}: ...}}")
        return math.prod(extents[v.upper()] for v in names)

    def steps(self, extents: Mapping[str, int]) -> int:
        """Steps of the iteration; 0 without one."""
        if self.iterative is None:
            return 0
        total = self.volume((self.iterative,), extents)
        if self.until is None:
            return total
        for i in range(total + 1):
            left, right = (_value(side, {**extents, self.iterative: i}) for side in (self.until.left, self.until.right))
            if left is not None and right is not None and COMPARE[self.until.comparison](left, right):
                return i
        return total


COMPARE = {
    "<=": lambda a, b: a <= b, ">=": lambda a, b: a >= b, "<": lambda a, b: a < b, ">": lambda a, b: a > b,
    "==": lambda a, b: a == b, "!=": lambda a, b: a != b,
}  # fmt: skip


def _times(value: int | str, extents: Mapping[str, int]) -> int:
    return value if isinstance(value, int) else extents[value]


def _value(node: Expression, known: Mapping[str, int]) -> int | None:
    """An integer expression of extents and coordinates, or None where something is unknown."""
    if isinstance(node, Number):
        return int(node.value) if math.isfinite(node.value) else None
    if isinstance(node, (Extent, Coordinate, Reference)):
        return known.get(node.name)
    parts = [_value(a, known) for a in node.arguments]
    if None in parts:
        return None
    a, *b = parts
    match node.operator:
        case "+":
            return a + b[0]  # type: ignore[operator]
        case "-":
            return a - b[0]  # type: ignore[operator]
        case "*":
            return a * b[0]  # type: ignore[operator]
        case "/":
            return a // b[0]  # type: ignore[operator]
        case "negative":
            return -a  # type: ignore[operator]
    return None


def build(text: str) -> Graph:
    """Parse and check a cascade.

    Raises:
        ProbatumError: with line and column: a syntax error; a left index missing on the right; an unknown rank; tensors used with
            different numbers of indices or with ranks that do not fit; a cycle without an iterative rank; a tensor made twice.
    """
    description = parse(text)
    fixed = {name for name, _ in description.extents}
    made = {s.target.name for s in description.statements}
    names: dict[str, None] = {}
    for s in description.statements:
        for v in s.space:
            names.setdefault(v)
    known = {v.upper() for v in names} | fixed

    def resolve(node: Expression) -> Expression:
        if isinstance(node, Reference):
            if not node.indices and node.name not in made and node.name in known:
                return Extent(node.name)
            return replace(node, filters=tuple(Condition(resolve(c.left), c.comparison, resolve(c.right)) for c in node.filters))
        return Apply(node.operator, tuple(map(resolve, node.arguments))) if isinstance(node, Apply) else node

    statements = [replace(s, target=resolve(s.target), expression=resolve(s.expression)) for s in description.statements]  # type: ignore[arg-type]
    until = description.until
    if until is not None:
        until = Condition(resolve(until.left), until.comparison, resolve(until.right))

    def fail(place: Place, message: str) -> ProbatumError:
        return complaint(text, place, message)

    iterative, carried = _iteration(statements, fail)
    _check_tensors(statements, iterative, carried, known, fail)
    if until is not None:
        used = {*variables(until.left), *variables(until.right)}
        if iterative is None or used - {iterative} or [*references(until.left), *references(until.right)]:
            raise ProbatumError(
                f"until compares the iterative variable ({iterative or 'there is none'}) with numbers and extents, got {until}"
            )
    order = _sorted(statements, iterative, carried, fail)
    statements = [statements[i] for i in order]
    read = {r.name for s in statements for r in s.reads}
    inputs = tuple(dict.fromkeys(r.name for s in statements for r in s.reads if r.name not in made))
    outputs = tuple(dict.fromkeys(s.target.name for s in statements if not s.initial and not _read_elsewhere(s.target.name, statements)))
    splits = tuple(dict.fromkeys(i.split for s in statements for r in (s.target, *s.reads) for i in r.indices if i.split))
    roles = _roles(statements, iterative, carried)
    graph = Graph(
        tuple(statements), roles, iterative, carried, inputs, outputs or tuple(dict.fromkeys(m for m in made if m not in read)),
        tuple(names), description.extents, until, text, splits,
    )  # fmt: skip
    graph.solve({})
    return graph


def _read_elsewhere(name: str, statements: list[Statement]) -> bool:
    return any(r.name == name for s in statements if s.target.name != name for r in s.reads)


def _iteration(statements: list[Statement], fail) -> tuple[str | None, tuple[str, ...]]:
    found: dict[str, str] = {}
    for s in statements:
        for index in s.target.indices:
            if index.shifted and index.shifted[1]:
                if s.initial or index.shifted[1] != 1:
                    raise fail(index.place, f"the left side may be shifted by +1 only, in do:, got {index}")
                found[s.target.name] = index.shifted[0]
            elif len(index.terms) > 1 or (index.terms and index.plain is None):
                raise fail(index.place, f"an index of the left side is a variable, a variable + 1 or an integer, got {index}")
    if len(set(found.values())) > 1:
        raise ProbatumError(f"one iterative rank at most, got {', '.join(sorted(set(found.values())))}")
    for s in statements:
        if s.initial and s.target.name not in found:
            raise fail(s.target.place, f"init makes {s.target.name}, but no statement of do: builds {s.target.name}[i+1, ...] from it")
    for name in found:
        if not any(s.initial and s.target.name == name for s in statements):
            place = next(s.target.place for s in statements if s.target.name == name)
            raise fail(place, f"{name} is built iteratively, but init: gives it no first value")
    return (next(iter(found.values())) if found else None), tuple(found)


def _check_tensors(statements: list[Statement], iterative: str | None, carried: tuple[str, ...], known: set[str], fail) -> None:
    first: dict[str, Reference] = {}
    made: dict[str, Reference] = {}
    for s in statements:
        if s.target.name in made and not s.initial:
            raise fail(s.target.place, f"{s.target.name} is made twice; a tensor is the left side of one statement")
        if not s.initial:
            made[s.target.name] = s.target
    for s in statements:
        right = set(variables(s.expression)) | {v for c in s.filters for side in (c.left, c.right) for v in variables(side)}
        constant = s.initial and not list(references(s.expression))
        for index in s.target.indices:
            for v in index.variables:
                if v not in right and not constant:
                    raise fail(
                        index.place, f"the left index {v!r} does not occur on the right of {s.target.name}: its extent would be unknown"
                    )
        for how, names in s.reductions:
            for v in names:
                if v not in s.space:
                    raise fail(s.target.place, f"unknown rank {v!r} in {how}({v}): {s.target.name} has {', '.join(s.space) or 'none'}")
                if any(v in index.variables for index in s.target.indices):
                    raise fail(s.target.place, f"{how}({v}) reduces an index that the left side of {s.target.name} keeps")
        for ref in (s.target, *s.reads):
            seen = first.setdefault(ref.name, ref)
            if len(seen.indices) != len(ref.indices):
                raise fail(ref.place, f"{ref.name} has {len(ref.indices)} indices here and {len(seen.indices)} at {seen.place}")
            for index in ref.indices:
                for name in [a for a, _ in index.terms] + [index.offset]:
                    if isinstance(name, str) and name not in known:
                        raise fail(index.place, f"unknown rank: no index variable has the extent {name}: {did_you_mean(name, known)}")
        for ref in s.reads:
            if ref.name not in made:
                continue
            for axis, (index, own) in enumerate(zip(ref.indices, made[ref.name].indices, strict=True)):
                if own.plain and index.plain and own.plain != index.plain and not _one_rank(own.plain, index.plain):
                    raise fail(
                        index.place,
                        f"extents disagree: {made[ref.name]} has extent {own.plain.upper()} on index {axis + 1}, {ref} reads it over "
                        f"{index.plain.upper()}; use the same variable, or {own.plain}_ for a second one of that rank",
                    )
                if (
                    own.shifted
                    and own.shifted[1] == 1
                    and not (
                        index.shifted in ((iterative, 0), (iterative, 1)) or (not index.terms and index.offset == iterative.upper())  # type: ignore[union-attr]
                    )
                ):
                    raise fail(
                        index.place, f"{ref.name} is built along {iterative}: read it at {iterative}, {iterative}+1, or, after the last "
                        f"step, at "
                        f"{iterative.upper()}, got {index}",  # type: ignore[union-attr]
                    )  # fmt: skip


def _one_rank(a: str, b: str) -> bool:
    """p and p_ are two variables of one rank."""
    return a.rstrip("_") == b.rstrip("_")


def _sorted(statements: list[Statement], iterative: str | None, carried: tuple[str, ...], fail) -> list[int]:
    maker = {s.target.name: i for i, s in enumerate(statements) if not s.initial}
    needs: list[list[int]] = []
    for s in statements:
        own: list[int] = []
        for r in s.reads:
            previous = r.name in carried and any(i.plain == iterative for i in r.indices)
            if r.name in maker and not previous and not s.initial:
                own.append(maker[r.name])
            if s.initial and r.name in maker:
                raise fail(r.place, f"init reads {r.name}, which do: makes")
        needs.append(own)
    order = [i for i, s in enumerate(statements) if s.initial]
    state = dict.fromkeys(order, 2)
    for root in range(len(statements)):
        path = [(root, iter(needs[root]))] if not state.get(root) else []
        state.setdefault(root, 1)
        while path:
            node, rest = path[-1]
            following = next(rest, None)
            if following is None:
                state[node] = 2
                order.append(node)
                path.pop()
            elif state.get(following) == 1:
                cycle = [n for n, _ in path]
                cycle = [*cycle[cycle.index(following) :], following]
                told = " <- ".join(statements[i].target.name for i in cycle)
                raise fail(
                    statements[following].target.place,
                    f"a cycle without an iterative rank: {told}; one of them must be built as NAME[i+1, ...] from NAME[i, ...]",
                )
            elif not state.get(following):
                state[following] = 1
                path.append((following, iter(needs[following])))
    return order


def _roles(statements: list[Statement], iterative: str | None, carried: tuple[str, ...]) -> tuple[Role, ...]:
    """Where each statement runs; statements without the iterative rank run before it if nothing they need is made in it."""
    roles: list[Role] = []
    late: set[str] = set(carried)
    for s in statements:
        kept = {v for index in s.target.indices for v in index.variables}
        if s.initial:
            roles.append("init")
        elif iterative is not None and iterative in kept:
            roles.append("loop")
            late.add(s.target.name)
        elif any(r.name in late for r in s.reads):
            roles.append("after")
            late.add(s.target.name)
        else:
            roles.append("before")
    return tuple(roles)
