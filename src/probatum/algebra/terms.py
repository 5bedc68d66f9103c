"""Terms: the description of a language or weighted language, before any semiring is chosen.

A term is a tree of sets of symbols, weights, alternatives, sequences, repetitions, pointwise products, references to
named rules and marks (which carry no weight and name parts of a parse). Nothing here recurses on the call stack.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, NamedTuple

from probatum.errors import ProbatumError, did_you_mean

__all__ = [
    "EPSILON",
    "NOTHING",
    "Symbols",
    "Term",
    "alternatives",
    "evaluate",
    "mark",
    "reference",
    "rename",
    "repeat",
    "revalue",
    "reverse",
    "sequence",
    "substitute",
    "symbols",
    "value",
]


class Symbols(NamedTuple):
    """A set of symbols, or its complement in an open alphabet."""

    members: frozenset[Hashable]
    negated: bool = False

    def __contains__(self, symbol: object) -> bool:
        return (symbol in self.members) is not self.negated


class Term:
    """A node: kind in {symbols, value, sum, product, star, both, reference, open, close}, its payload and its parts."""

    __slots__ = ("kind", "parts", "payload")

    def __init__(self, kind: str, payload: Any = None, parts: tuple["Term", ...] = ()) -> None:
        self.kind, self.payload, self.parts = kind, payload, parts

    def walk(self) -> Iterator["Term"]:
        """Every distinct node below and this one, parts before wholes."""
        seen: set[int] = set()
        stack: list[tuple[Term, bool]] = [(self, False)]
        while stack:
            term, expanded = stack.pop()
            if expanded:
                yield term
            elif id(term) not in seen:
                seen.add(id(term))
                stack.append((term, True))
                stack.extend((part, False) for part in reversed(term.parts))

    def __repr__(self) -> str:
        return f"Term({self.kind}, {self.payload!r}, {len(self.parts)} parts)"


NOTHING = Term("sum")
EPSILON = Term("product")


def symbols(members: Iterable[Hashable], negated: bool = False) -> Term:
    try:
        return Term("symbols", Symbols(frozenset(members), negated))
    except TypeError:
        raise ProbatumError(f"symbols must be hashable, got {members!r}") from None


def value(weight: Any) -> Term:
    return Term("value", weight)


def alternatives(parts: Iterable[Term]) -> Term:
    parts = tuple(parts)
    return parts[0] if len(parts) == 1 else Term("sum", None, parts)


def sequence(parts: Iterable[Term]) -> Term:
    parts = tuple(parts)
    return parts[0] if len(parts) == 1 else Term("product", None, parts)


def repeat(term: Term, least: int, most: int | None) -> Term:
    """From `least` to `most` times; None means any number. Nested, so that each number of times is one alternative."""
    if most is None:
        return sequence([term] * least + [Term("star", None, (term,))])
    tail = EPSILON
    for _ in range(most - least):
        tail = alternatives([EPSILON, sequence([term, tail] if tail is not EPSILON else [term])])
    return sequence([term] * least + ([tail] if most > least else []))


def reference(name: str) -> Term:
    return Term("reference", name)


def mark(name: str, term: Term) -> Term:
    return sequence([Term("open", name), term, Term("close", name)])


def _rebuild(term: Term, change: Callable[[Term, tuple[Term, ...]], Term]) -> Term:
    done: dict[int, Term] = {}
    for node in term.walk():
        done[id(node)] = change(node, tuple(done[id(part)] for part in node.parts))
    return done[id(term)]


def reverse(term: Term) -> Term:
    """The term of all words read backwards (marks are dropped)."""

    def change(node: Term, parts: tuple[Term, ...]) -> Term:
        if node.kind in ("open", "close"):
            return EPSILON
        return Term(node.kind, node.payload, parts[::-1] if node.kind == "product" else parts)

    return _rebuild(term, change)


def substitute(term: Term, image: Callable[[Hashable], Term]) -> Term:
    """Each symbol replaced by a term: the homomorphism of words that `image` generates."""

    def change(node: Term, parts: tuple[Term, ...]) -> Term:
        if node.kind == "symbols":
            if node.payload.negated:
                raise ProbatumError("map and bind need explicit symbols, and this term has a complemented set such as '.' or '[^a]'")
            return alternatives(image(symbol) for symbol in sorted(node.payload.members, key=repr))
        return Term(node.kind, node.payload, parts)

    return _rebuild(term, change)


def rename(term: Term, names: dict[str, str]) -> Term:
    """References renamed."""
    return _rebuild(
        term,
        lambda node, parts: Term(node.kind, names.get(node.payload, node.payload) if node.kind == "reference" else node.payload, parts),
    )


def revalue(term: Term, change: Callable[[Any], Any]) -> Term:
    """Weights converted."""
    return _rebuild(term, lambda node, parts: Term(node.kind, change(node.payload) if node.kind == "value" else node.payload, parts))


def reachable(term: Term, rules: dict[str, Term]) -> dict[str, Term]:
    """The rules that a term uses, directly or not.

    Raises:
        ProbatumError: a reference to a rule that does not exist.
    """
    used: dict[str, Term] = {}
    stack = [term]
    while stack:
        for node in stack.pop().walk():
            if node.kind == "reference" and node.payload not in used:
                if node.payload not in rules:
                    raise ProbatumError(f"rule {node.payload!r} is not defined: {did_you_mean(node.payload, rules) or 'no rules given'}")
                used[node.payload] = rules[node.payload]
                stack.append(rules[node.payload])
    return used


def evaluate(term: Term, rules: dict[str, Any], algebra: dict[str, Callable[..., Any]]) -> Any:
    """Fold a term: algebra[kind](payload, *values of the parts); a reference is looked up in `rules`."""
    done: dict[int, Any] = {}
    for node in term.walk():
        if node.kind == "reference":
            done[id(node)] = rules[node.payload]
        else:
            done[id(node)] = algebra[node.kind](node.payload, *(done[id(part)] for part in node.parts))
    return done[id(term)]


def fixed_point(
    rules: dict[str, Term],
    algebra: dict[str, Callable[..., Any]],
    bottom: Any,
    close: Callable[[Any, Any], bool],
    rounds: int,
    what: str,
) -> dict[str, Any]:
    """Values of all rules by Kleene iteration from `bottom` (least fixed point).

    Raises:
        ProbatumError: not settled after `rounds`; names the rules that still move.
    """
    values = dict.fromkeys(rules, bottom)
    moving: list[str] = []
    for _ in range(rounds):
        new = {name: evaluate(body, values, algebra) for name, body in rules.items()}
        moving = [name for name in rules if not close(new[name], values[name])]
        values = new
        if not moving:
            return values
    raise ProbatumError(f"{what} of rule {', '.join(map(repr, moving))} does not settle: its sum over derivations is infinite")


def left_recursion(rules: dict[str, Term]) -> list[str] | None:
    """A cycle of rules in which each may begin with the next, or None."""
    booleans: dict[str, Callable[..., Any]] = {
        "symbols": lambda _: False,
        "value": lambda _: True,
        "sum": lambda _, *p: any(p),
        "product": lambda _, *p: all(p),
        "star": lambda *_: True,
        "both": lambda _, *p: all(p),
        "open": lambda _: True,
        "close": lambda _: True,
    }
    nullable = fixed_point(rules, booleans, False, lambda a, b: a == b, len(rules) + 2, "emptiness")
    edges: dict[str, list[str]] = {}
    for name, body in rules.items():
        empty: dict[int, bool] = {}
        for node in body.walk():
            empty[id(node)] = (
                nullable[node.payload]
                if node.kind == "reference"
                else booleans[node.kind](node.payload, *(empty[id(p)] for p in node.parts))
            )
        found: dict[str, None] = {}
        stack, seen = [body], set()
        while stack:
            node = stack.pop()
            if id(node) in seen:
                continue
            seen.add(id(node))
            if node.kind == "reference":
                found[node.payload] = None
            elif node.kind == "product":
                for part in node.parts:
                    stack.append(part)
                    if not empty[id(part)]:
                        break
            else:
                stack.extend(node.parts)
        edges[name] = list(found)
    color: dict[str, int] = {}
    for root in rules:
        path: list[str] = []
        stack2: list[tuple[str, bool]] = [(root, False)]
        while stack2:
            name, leaving = stack2.pop()
            if leaving:
                color[name] = 2
                path.pop()
            elif color.get(name) == 1:
                return [*path[path.index(name) :], name]
            elif name not in color:
                color[name] = 1
                path.append(name)
                stack2.append((name, True))
                stack2.extend((other, False) for other in edges[name])
    return None
