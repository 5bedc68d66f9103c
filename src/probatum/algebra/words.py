"""Series over words: weighted languages, held as terms and run as automata that are built as words are read."""

import functools
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from probatum.algebra.automata import Automaton, Machine, Table
from probatum.algebra.carriers import Carrier
from probatum.algebra.chart import Chart
from probatum.algebra.compiled import loops_or_none, worth_compiling
from probatum.algebra.semirings import MAXPLUS, MAXTIMES, MINPLUS, Semiring, Trail, nbest, weighted
from probatum.algebra.terms import (
    NOTHING,
    Term,
    alternatives,
    evaluate,
    fixed_point,
    reachable,
    rename,
    revalue,
    sequence,
    substitute,
    symbols,
    value,
)
from probatum.errors import ProbatumError

__all__ = ["Language", "Parse", "Words"]

_STATES = 512  # a machine of numbers is built up to here
_WIDE = 32  # recursive rules whose vector gets wider than this are run in a chart
_SHIFT = object()


@dataclass(frozen=True)
class Parse:
    """A node of a parse: the rule or group `name` over symbols start to end, with its parts. The whole parse has a
    `weight`."""

    name: str
    start: int
    end: int
    parts: tuple["Parse", ...] = ()
    weight: float | None = None

    def show(self, word: Sequence[Any], indent: int = 0) -> str:
        """As an indented outline with the text of each node."""
        text = word[self.start : self.end]
        line = " " * indent + f"{self.name} {text!r}" + (f"  [{self.weight:g}]" if self.weight is not None else "")
        return "\n".join([line, *(part.show(word, indent + 2) for part in self.parts)])


class Language:
    """A term with the rules it refers to, and what has been built to run it."""

    def __init__(self, term: Term, rules: dict[str, Term], semiring: Semiring, alphabet: frozenset[Hashable] | None) -> None:
        self.term, self.semiring, self.alphabet = term, semiring, alphabet
        self.rules = reachable(term, rules)

    @functools.cached_property
    def automaton(self) -> Automaton:
        return Automaton(self.term, self.rules, self.semiring, self.alphabet)

    @functools.cached_property
    def table(self) -> Table | None:
        """For idempotent finite semirings."""
        s = self.semiring
        return Table(self.automaton) if s.idempotent and s.finite and not self.rules else None

    @functools.cached_property
    def order(self) -> list[int] | None:
        """All states of the automaton, if there are few."""
        return self.automaton.explore(_STATES)

    @functools.cached_property
    def machine(self) -> Machine | None:
        """For numeric semirings with a compiled loop and a finite automaton."""
        if self.semiring.loop in (None, "bool") or self.order is None or loops_or_none() is None:
            return None
        machine = Machine(self.automaton, self.order)
        return machine if machine.fits else None

    @property
    def recursive(self) -> bool:
        return bool(self.rules)

    def weight(self, word: Any) -> Any:
        if self.table is not None:
            return self.table.run(word)
        if self.semiring.loop and worth_compiling(len(word) if hasattr(word, "__len__") else 0) and self.machine is not None:
            return self.machine.weight(word)
        return _run(self.automaton, self.automaton.class_numbers(word))

    def prefix_weights(self, numbers: Sequence[int]) -> Iterator[Any]:
        """The weight of each prefix of a word of class numbers; ends early when nothing is left alive."""
        if self.rules and Chart.can_run(self.automaton):
            yield from Chart(self.automaton).prefixes(numbers)
            return
        vector = dict(self.automaton.start)
        yield self.automaton.value(vector)
        for c in numbers:
            vector = self.automaton.step(vector, c)
            if not vector:
                return
            yield self.automaton.value(vector)

    def parses(self, word: Sequence[Any], n: int) -> list[Parse]:
        """The n best derivations, best first."""
        base = {"MINPLUS": MINPLUS, "MAXPLUS": MAXPLUS, "LOG": MAXPLUS}.get(self.semiring.name, MAXTIMES)
        key = (n, base)
        if key not in self._parsers:
            best = nbest(n, base)
            labels = (
                lambda name: weighted(base.one, ("open", name)),
                lambda name: weighted(base.one, ("close", name)),
                weighted(base.one, _SHIFT),
            )
            rules = {name: sequence([Term("open", name), body, Term("close", name)]) for name, body in self.rules.items()}
            self._parsers[key] = Automaton(self.term, rules, best, self.alphabet, labels)
        automaton = self._parsers[key]
        return [_tree(trail, weight) for weight, trail in _run(automaton, automaton.class_numbers(word))]

    @functools.cached_property
    def _parsers(self) -> dict[Any, Automaton]:
        return {}

    def total(self, rounds: int = 10_000) -> Any:
        """The sum of the weights of all words."""
        s = self.semiring

        def of_set(payload: Any) -> Any:
            size = len(payload.members)
            if payload.negated:
                if self.alphabet is None:
                    raise ProbatumError("the total needs a closed alphabet: the term has a complemented set such as '.' or '[^a]'")
                size = len(self.alphabet - payload.members)
            return s.sum([s.one] * size)

        def both(_: Any, *__: Any) -> Any:
            raise ProbatumError("the total of a pointwise product is not the product of totals; list items(bound) instead")

        algebra: dict[str, Callable[..., Any]] = {
            "symbols": of_set,
            "value": lambda w: s.element(w),
            "sum": lambda _, *p: s.sum(p),
            "product": lambda _, *p: s.prod(p),
            "star": lambda _, p: s.star(p),
            "both": both,
            "open": lambda _: s.one,
            "close": lambda _: s.one,
        }

        def close(a: Any, b: Any) -> bool:
            if isinstance(a, (int, Fraction)) and max(a.numerator.bit_length(), a.denominator.bit_length()) > 1 << 14:
                raise ProbatumError(f"total weight does not settle in {s}: it is infinite, or needs a float semiring")
            return a == b or (isinstance(a, float) and math.isclose(a, b, rel_tol=1e-13, abs_tol=1e-300))

        return evaluate(self.term, fixed_point(self.rules, algebra, s.zero, close, rounds, "total weight"), algebra)

    def longest(self) -> float:
        """Length of the longest word; -inf if there is none, inf if there is no longest."""
        ninf = -math.inf
        algebra: dict[str, Callable[..., Any]] = {
            "symbols": lambda s: 1 if s.members or s.negated else ninf,
            "value": lambda _: 0,
            "sum": lambda _, *p: max(p, default=ninf),
            "product": lambda _, *p: ninf if ninf in p else sum(p),
            "star": lambda _, p: math.inf if p > 0 else 0,
            "both": lambda _, a, b: min(a, b),
            "open": lambda _: 0,
            "close": lambda _: 0,
        }
        try:
            lengths = fixed_point(self.rules, algebra, ninf, lambda a, b: a == b, len(self.rules) + 2, "longest word")
        except ProbatumError:
            return math.inf
        return evaluate(self.term, lengths, algebra)


def _run(automaton: Automaton, numbers: Sequence[int]) -> Any:
    """The weight of a word: by vectors, or by a chart once a recursive term's vector has grown wide."""
    vector = dict(automaton.start)
    for c in numbers:
        vector = automaton.step(vector, c)
        if not vector:
            return automaton.semiring.zero
        if len(vector) > _WIDE and automaton.rules and Chart.can_run(automaton):
            return Chart(automaton).run(numbers)
    return automaton.value(vector)


class Words(Carrier):
    """Words over an alphabet, joined end to end. Strings, or sequences of any hashable symbols.

    Args:
        alphabet: closed set of symbols; None leaves it open.
    """

    def __init__(self, alphabet: Iterable[Hashable] | None = None) -> None:
        self.alphabet = None if alphabet is None else frozenset(alphabet)
        self.name = "Words" if self.alphabet is None else f"Words({len(self.alphabet)} symbols)"

    def unit(self) -> str:
        return ""

    def merge(self, u: Any, v: Any) -> Any:
        return u + v if len(u) and len(v) else u if len(u) else v

    def split(self, index: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
        return ((index[:i], index[i:]) for i in range(len(index) + 1))

    def language(self, semiring: Semiring, term: Term, rules: dict[str, Term] | None = None) -> Language:
        return Language(term, rules or {}, semiring, self.alphabet)

    def from_items(self, semiring: Semiring, items: Iterable[tuple[Any, Any]]) -> Language:
        parts = []
        for word, weight in items:
            try:
                letters = [symbols((symbol,)) for symbol in word]
            except TypeError:
                raise ProbatumError(f"a word is a sequence of symbols, got {word!r}") from None
            weight = semiring.element(weight)
            parts.append(sequence([*([] if weight == semiring.one else [value(weight)]), *letters]))
        return self.language(semiring, alternatives(parts) if parts else NOTHING)

    def _join(self, semiring: Semiring, a: Language, b: Language, make: Callable[[Term, Term], Term]) -> Language:
        rules, term = dict(a.rules), b.term
        clash = {name for name, body in b.rules.items() if name in rules and rules[name] is not body}
        names = {}
        for name in clash:
            names[name] = next(new for i in range(2, 10**6) if (new := f"{name}_{i}") not in rules and new not in b.rules)
        for name, body in b.rules.items():
            rules[names.get(name, name)] = rename(body, names) if names else body
        return self.language(semiring, make(a.term, rename(term, names) if names else term), rules)

    def add(self, semiring: Semiring, a: Language, b: Language) -> Language:
        return self._join(semiring, a, b, lambda p, q: alternatives([p, q]))

    def multiply(self, semiring: Semiring, a: Language, b: Language) -> Language:
        return self._join(semiring, a, b, lambda p, q: sequence([p, q]))

    def pointwise(self, semiring: Semiring, a: Language, b: Language) -> Language:
        if not semiring.commutative:
            raise ProbatumError(f"pointwise products need a semiring whose product commutes; {semiring} does not")
        return self._join(semiring, a, b, lambda p, q: Term("both", None, (p, q)))

    def star(self, semiring: Semiring, a: Language) -> Language:
        language = self.language(semiring, Term("star", None, (a.term,)), a.rules)
        semiring.star(a.automaton.value(dict(a.automaton.start)))  # raises here, not at the first word
        return language

    def scale(self, semiring: Semiring, weight: Any, a: Language) -> Language:
        return self.language(semiring, sequence([value(semiring.element(weight)), a.term]), a.rules)

    def at(self, semiring: Semiring, a: Language, index: Any) -> Any:
        if not isinstance(index, (str, bytes, bytearray, Sequence)):
            raise ProbatumError(f"a word is a string or a sequence of symbols, got {index!r}")
        return a.weight(index)

    def items(self, semiring: Semiring, a: Language, bound: int | None) -> Iterator[tuple[Any, Any]]:
        longest = a.longest()
        if bound is None and longest == math.inf:
            raise ProbatumError("this series has words of any length: give items(bound), the greatest length wanted")
        return self._items(semiring, a, longest if bound is None else min(bound, longest))

    def _items(self, semiring: Semiring, a: Language, bound: float) -> Iterator[tuple[Any, Any]]:
        """Breadth first; prefixes that cannot be completed within the bound are dropped at once."""
        automaton = a.automaton
        members = automaton.class_members()
        order = sorted((repr(symbol), c, symbol) for c, inside in enumerate(members) for symbol in inside)
        text = all(isinstance(symbol, str) and len(symbol) == 1 for _, _, symbol in order)
        level: list[tuple[tuple, dict[int, Any]]] = [((), dict(automaton.start))]
        length = 0
        while level:
            following = []
            for word, vector in level:
                weight = automaton.value(vector)
                if weight != semiring.zero:
                    yield "".join(word) if text else word, weight
                if length == bound:
                    continue
                steps: dict[int, dict[int, Any]] = {}
                for c in range(automaton.classes):
                    moved = {
                        e: w
                        for e, w in automaton.step(vector, c).items()
                        if automaton.shortest(e) <= bound - length - 1 and w != semiring.zero
                    }
                    if moved:
                        if c == automaton.other:
                            raise ProbatumError("this series has symbols never named ('.' or '[^a]'): use Words(alphabet) to close it")
                        steps[c] = moved
                following += [((*word, symbol), steps[c]) for _, c, symbol in order if c in steps]
            level = following
            length += 1

    def over(self, semiring: Semiring, a: Language, target: Semiring, convert: Callable[[Any], Any]) -> Language:
        change = functools.cache(convert)

        def weigh(term: Term) -> Term:
            return revalue(term, lambda w: change(semiring.element(w)))

        return self.language(target, weigh(a.term), {name: weigh(body) for name, body in a.rules.items()})

    def substitute(self, semiring: Semiring, a: Language, image: Callable[[Hashable], Language]) -> Language:
        """The homomorphism of series that sends each symbol to a series."""
        rules: dict[str, Term] = {}

        def term_of(symbol: Hashable) -> Term:
            language = image(symbol)
            for name, body in language.rules.items():
                if rules.setdefault(name, body) is not body or name in a.rules:
                    raise ProbatumError(f"rule {name!r} means two things in this substitution; rename one of them")
            return language.term

        known = functools.cache(term_of)
        term = substitute(a.term, known)
        own = {name: substitute(body, known) for name, body in a.rules.items()}
        return self.language(semiring, term, {**own, **rules})

    def convert(self, semiring: Semiring, a: Language, target: Carrier) -> Any:
        from probatum.algebra.monomials import Monomials
        from probatum.algebra.streams import Coefficients, Stream

        if isinstance(target, Words):
            return target.language(semiring, a.term, a.rules)
        if isinstance(target, Stream):  # the length of a word: its generating function
            return Coefficients(semiring, _Lengths(semiring, a))
        if isinstance(target, Monomials) and semiring.commutative:  # letter counts
            counted = []
            for word, weight in self.items(semiring, a, None):
                unknown = next((symbol for symbol in word if symbol not in target.names), None)
                if unknown is not None:
                    raise ProbatumError(f"symbol {unknown!r} is not a variable of {target}")
                counted.append((tuple(list(word).count(name) for name in target.names), weight))
            return target.from_items(semiring, counted)
        return super().convert(semiring, a, target)

    def plan(self, semiring: Semiring, a: Language) -> str:
        head = f"{self} over {semiring}"
        kind = "recursive rules" if a.recursive else "regular"
        if a.table is not None:
            loop = "compiled loop" if loops_or_none() is not None else "numpy, numba is not installed"
            return (
                f"{head}: table of sets of states made on demand, {len(a.table)} rows so far "
                f"({kind}; idempotent and finite; {loop} for long words)"
            )
        if semiring.loop:
            if a.machine is not None:
                exact = ", exact: Python integers beyond 64 bits" if semiring.dtype is None else ""
                return (
                    f"{head}: sparse matrices a class, {a.machine.states} states, {a.machine.classes} classes, "
                    f"{len(a.machine.source)} arcs "
                    f"({kind}; numeric; compiled loop for long or many words{exact})"
                )
            why = (
                "numba is not installed"
                if loops_or_none() is None
                else f"more than {_STATES} states"
                if a.order is None
                else "weights beyond 64 bits"
            )
            return f"{head}: dictionaries of states ({kind}; {why})"
        return f"{head}: dictionaries of states ({kind}; weights are Python objects)"


class _Lengths:
    """Coefficient n: the total weight of the words of length n."""

    def __init__(self, semiring: Semiring, a: Language) -> None:
        self.semiring, self.automaton = semiring, a.automaton
        self.sizes = [len(inside) for inside in self.automaton.class_members()]
        self.vector = dict(self.automaton.start)

    def __call__(self, n: int) -> Any:
        s, automaton = self.semiring, self.automaton
        value = automaton.value(self.vector)
        following: dict[int, Any] = {}
        for c, size in enumerate(self.sizes):
            moved = automaton.step(self.vector, c)
            if c == automaton.other and any(automaton.shortest(e) < math.inf for e in moved):
                raise ProbatumError("lengths count named symbols, and this term has '.' or '[^a]': use Words(alphabet) to close it")
            count = s.sum([s.one] * size)
            for e, weight in moved.items():
                weight = s.mul(weight, count)
                following[e] = s.add(following[e], weight) if e in following else weight
        self.vector = following
        return value


def _tree(trail: Trail, weight: float) -> Parse:
    position = 0
    stack: list[tuple[str, int, list[Parse]]] = [("", 0, [])]
    for label in trail:
        if label is _SHIFT:
            position += 1
        elif label[0] == "open":
            stack.append((label[1], position, []))
        else:
            name, start, parts = stack.pop()
            stack[-1][2].append(Parse(name, start, position, tuple(parts)))
    parts = stack[0][2]
    if len(parts) == 1 and (parts[0].start, parts[0].end) == (0, position):
        return Parse(parts[0].name, 0, position, parts[0].parts, weight)
    return Parse("", 0, position, tuple(parts), weight)
