"""How often a cascade must go over a rank, what it must keep meanwhile, and how much it computes.

>>> from probatum.algebra.cascade_graph import build
>>> two = build("do: Y = A[k]*B[k]   Z = Y*A[k]")                      # Y needs all of A before Z may read it again
>>> passes_of(two, ("k",)).count
2
>>> one = build("do: Y = A[k]*B[k]   X = A[k] :: sum(k)   Z = Y*X")    # the same Z: multiply later
>>> passes_of(one, ("k",)).count
1

Source: FuseMax, section III-A defines a pass; the procedure is ours.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from probatum.algebra.cascade_graph import Graph
from probatum.algebra.cascade_syntax import Apply, Expression, Reference, Statement, variables
from probatum.errors import ProbatumError, did_you_mean

__all__ = ["Footprint", "Passes", "default_family", "footprints_of", "operations_of", "passes_of"]


@dataclass(frozen=True)
class Passes:
    """The passes of a cascade over a rank family.

    Attributes:
        family: the variables of the rank.
        count: passes that any implementation must make.
        of_statement: number of each statement's pass, 0 where it needs none of the family.
        full: whether a statement's iteration space holds all of the family.
        of_tensor: tensor -> the passes in which full statements read it.
        made_in: tensor -> the pass that makes it (0: free of the family); inputs are not in it.
        carriers: tensors that have a rank of the family.
    """

    family: tuple[str, ...]
    count: int
    of_statement: tuple[int, ...]
    full: tuple[bool, ...]
    of_tensor: dict[str, tuple[int, ...]]
    made_in: dict[str, int]
    carriers: frozenset[str]

    def buffered(self, name: str) -> bool:
        """Whether a whole fibre of the tensor must be kept, or read again: read later than made, or an input read twice."""
        read = self.of_tensor.get(name, ())
        made = self.made_in.get(name)
        return bool(read) and name in self.carriers and (len(read) > 1 if made is None else max(read) > made)


@dataclass(frozen=True)
class Footprint:
    """What a tensor needs.

    Attributes:
        name: the tensor; role: "input", "intermediate" or "output".
        passes: passes in which it is read.
        needs: "fibre" (all of the family, or a re-read), "tile" (one step's part), "state" (carried along the iteration), "stream".
        live: extents whose product must be on chip for each point of the remaining ranks.
        words: that product with the remaining ranks, all at once; None while an extent is unknown.
        live_words: the product of `live`, None while an extent is unknown.
    """

    name: str
    role: Literal["input", "intermediate", "output"]
    passes: tuple[int, ...]
    needs: Literal["fibre", "tile", "state", "stream"]
    live: tuple[str, ...]
    words: int | None
    live_words: int | None


def default_family(graph: Graph) -> tuple[str, ...]:
    """The family of the iterative rank; else the one that needs most passes; of equals a reduced one, then the first."""
    if graph.iterative is not None:
        return next(f for f in graph.families if graph.iterative in f)
    if not graph.families:
        raise ProbatumError("the cascade has no ranks")
    reduced = {v for statement in graph.statements for _, v in statement.reduced}
    return max(graph.families, key=lambda family: (passes_of(graph, family).count, bool(reduced & set(family))))


def passes_of(graph: Graph, family: tuple[str, ...]) -> Passes:
    """Walk the statements in order and give every tensor a state: streamed in pass k, or done after pass k.

    Raises:
        ProbatumError: the family is empty or names an unknown rank.
    """
    if not family:
        raise ProbatumError("family must name one rank or more, got none")
    for v in family:
        if v not in graph.variables:
            raise ProbatumError(f"family: unknown rank {v!r}: {did_you_mean(v, graph.variables)}")
    chosen = {_base(v) for v in family}
    number: dict[str, int] = {}
    of_statement, full_of = [], []
    reads: dict[str, set[int]] = {}
    for statement in graph.statements:
        full = chosen <= set(map(_base, statement.space))
        p = 1 if full else 0
        for ref in statement.reads:
            if graph.reads_previous(statement, ref):
                continue  # the value of the step before adds nothing: it is the same sweep
            carries = bool(chosen & {_base(v) for index in ref.indices for v in index.variables})
            own = number.get(ref.name, 1 if carries else 0)
            p = max(p, own if carries or not full else own + 1)
        for ref in statement.reads if full else ():
            reads.setdefault(ref.name, set()).add(p)
        of_statement.append(p)
        full_of.append(full)
        if not statement.initial:
            number[statement.target.name] = p
    made = {s.target.name for s in graph.statements}
    return Passes(
        tuple(family), max(of_statement, default=0), tuple(of_statement), tuple(full_of),
        {name: tuple(sorted(found)) for name, found in reads.items()}, {name: p for name, p in number.items() if name in made},
        frozenset(
            r.name for s in graph.statements for r in (s.target, *s.reads) if chosen & {_base(v) for i in r.indices for v in i.variables}
        ),
    )  # fmt: skip


def _base(variable: str) -> str:
    """n_ runs over the rank of n."""
    return variable.rstrip("_")


def footprints_of(graph: Graph, family: tuple[str, ...], extents: Mapping[str, int]) -> list[Footprint]:
    """What every tensor needs under a rank family; `extents` may lack some, then the words are None."""
    passes = passes_of(graph, family)
    inner = tuple(v for v in family if v != graph.iterative)
    tiles = passes_of(graph, inner) if graph.iterative in family and inner else None
    found = []
    for name in dict.fromkeys([*graph.inputs, *(s.target.name for s in graph.statements)]):
        indices = graph.indices_of(name)
        own = tuple(dict.fromkeys(v for index in indices for v in index.variables))
        carried = tuple(v for v in own if _base(v) in family)
        needs: Literal["fibre", "tile", "state", "stream"] = "stream"
        live: tuple[str, ...] = ()
        if name in graph.carried:
            needs = "state"
        elif passes.buffered(name) and carried:
            needs, live = "fibre", tuple(v.upper() for v in carried)
        elif tiles is not None and tiles.buffered(name) and (held := tuple(v for v in own if v in inner)):
            needs, live = "tile", tuple(v.upper() for v in held)
        rest = tuple(v.upper() for v in own if _base(v) not in family)
        live_words = math.prod(extents[x] for x in live) if all(x in extents for x in live) else None
        words = None
        if live_words is not None and all(x in extents for x in rest):
            words = 0 if needs == "stream" else live_words * math.prod(extents[x] for x in rest)
        role: Literal["input", "intermediate", "output"] = (
            "input" if name in graph.inputs else "output" if name in graph.outputs else "intermediate"
        )
        found.append(Footprint(name, role, passes.of_tensor.get(name, ()), needs, live, words, live_words))
    return found


def operations_of(graph: Graph, extents: Mapping[str, int]) -> list[Counter[str]]:
    """Operations of each statement by kind: "+", "-", "*", "/", "exp", "max", ...; a reduction over n points counts n operations.

    Statements of the iteration count all its steps. A sum of products is n "*" and n "+", two operations a point. Factors and divisors
    free of ranks (a scale) count nothing: they fold into the smallest operand.
    """
    found = []
    for statement in graph.statements:
        counts: Counter[str] = Counter()
        _count(statement.expression, statement, graph, extents, counts)
        space = list(statement.space)
        for how, v in statement.reduced:
            counts[{"sum": "+", "prod": "*", "lse": "exp"}.get(how, how)] += graph.volume(tuple(space), extents)
            space.remove(v)
        found.append(counts)
    return found


def _count(node: Expression, statement: Statement, graph: Graph, extents: Mapping[str, int], counts: Counter[str]) -> None:
    if isinstance(node, Apply):
        used = set(variables(node))
        scale = node.operator in ("*", "/") and not all(
            variables(argument) for argument in node.arguments[1 if node.operator == "/" else 0 :]
        )
        if used and not scale:
            counts[node.operator] += graph.volume(tuple(v for v in statement.space if v in used), extents)
        for argument in node.arguments:
            _count(argument, statement, graph, extents, counts)


def is_contraction(statement: Statement) -> bool:
    """A sum of products of two or more tensors: what a matrix unit does."""

    def factors(node: Expression) -> int | None:
        if isinstance(node, Reference):
            return 1
        if isinstance(node, Apply) and node.operator == "*":
            parts = [factors(a) for a in node.arguments]
            return None if None in parts else sum(parts)  # type: ignore[arg-type]
        if isinstance(node, Apply) and node.operator == "/" and not variables(node.arguments[1]):
            return factors(node.arguments[0])
        return None if variables(node) else 0

    return any(how == "sum" for how, _ in statement.reduced) and (factors(statement.expression) or 0) > 1
