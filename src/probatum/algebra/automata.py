"""Weighted automata of terms, built state by state as words are read.

A state is a hash-consed expression; a configuration is a vector in the free semimodule over states, `{state: weight}`.
One step by a symbol c is the monad's bind: v' = sum over e of v(e) . d_c(e), where the partial derivative d_c(e) is
again such a vector (Antimirov's linear form), so at most one state a letter occurrence is ever made, in any semiring.
Symbols are first mapped to classes that the term cannot tell apart. References to rules unfold on demand: recursion
works as long as no rule begins with itself.

Three ways to run: `Automaton` (dictionaries: any semiring, exact, recursive), `Table` (sets of states made on demand,
for idempotent finite semirings), `Machine` (sparse transitions a class, for numbers: compiled, or batched in torch with
gradients).
"""

import functools
import math
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np

from probatum.algebra.compiled import loops_or_none, worth_compiling
from probatum.algebra.semirings import Semiring, namespace
from probatum.algebra.terms import Symbols, Term, fixed_point, left_recursion, reachable
from probatum.errors import ProbatumError

__all__ = ["Automaton", "Machine", "Table", "codes"]

SUM, PRODUCT, STAR, BOTH, REFERENCE, VALUE, SYMBOLS = range(7)
ZERO, ONE = 0, 1
Form = tuple[tuple[int, Any], ...]


def codes(text: str | bytes) -> np.ndarray:
    """Text as an array of code points: uint8 where it is ASCII (or bytes, read as Latin-1), else uint32."""
    if isinstance(text, (bytes, bytearray, memoryview)):
        return np.frombuffer(text, np.uint8)
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), np.uint8)
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def classify(table: np.ndarray, data: np.ndarray) -> np.ndarray:
    """Class of each code point; tables have at least 257 entries, so bytes are always inside."""
    return table[data if data.dtype == np.uint8 else np.minimum(data, np.uint32(len(table) - 1))]


class Automaton:
    """States and partial derivatives of a term over one semiring.

    Args:
        term: what is described. rules: what references mean.
        semiring: its weights.
        alphabet: closed alphabet, or None: any hashable symbol may occur in a word.
        labels: (open label, close label, symbol label) -> weights that carry labels, for parses; None: marks mean
            nothing.
    Raises:
        ProbatumError: undefined rule, left recursion (with the cycle), a weight that is not of the semiring, a star
            that does not exist, a pointwise product over a semiring that does not commute, symbols outside the closed
            alphabet.
    """

    def __init__(
        self,
        term: Term,
        rules: dict[str, Term],
        semiring: Semiring,
        alphabet: frozenset[Hashable] | None = None,
        labels: Any = None,
    ) -> None:
        self.semiring, self.alphabet, self.labels = semiring, alphabet, labels
        self.rules = reachable(term, rules)
        if cycle := left_recursion(self.rules):
            raise ProbatumError(f"left recursion: {' -> '.join(cycle)}; a rule may not begin with itself, put a symbol first")
        self._kind: list[int] = [SUM, PRODUCT]  # ZERO is the empty sum, ONE the empty product
        self._left: list[Any] = [(), None]
        self._right: list[Any] = [None, None]
        self._intern: dict[tuple, int] = {(SUM, (), None): ZERO}
        self._build_classes([term, *self.rules.values()])
        self._empty: list[Any] = [semiring.zero, semiring.one]  # weight of the empty word, by state
        self._forms: dict[int, Form] = {}
        self._shortest: dict[int, float] = {}
        self._rule_empty = fixed_point(
            self.rules,
            self._empty_algebra(),
            semiring.zero,
            lambda a, b: bool(a == b),
            1000,
            "weight of the empty word",
        )
        self._bodies: dict[str, int] = {name: self._compile(body) for name, body in self.rules.items()}
        weight, start = self._linear(self._compile(term))
        self.start: Form = ((start, weight),) if start != ZERO else ()
        for e in range(len(self._kind)):  # a star that does not exist is an error now, not at some word
            self.empty(e)

    def _empty_algebra(self) -> dict[str, Any]:
        s = self.semiring
        return {
            "symbols": lambda _: s.zero,
            "value": lambda weight: s.element(weight),
            "sum": lambda _, *p: s.sum(p),
            "product": lambda _, *p: s.prod(p),
            "star": lambda _, p: s.star(p),
            "both": lambda _, a, b: s.mul(a, b),
            "open": lambda name: self._label(0, name),
            "close": lambda name: self._label(1, name),
        }

    def _label(self, which: int, name: Any) -> Any:
        return self.semiring.one if self.labels is None else self.labels[which](name)

    # Classes: symbols that lie in the same sets.

    def _build_classes(self, terms: list[Term]) -> None:
        sets: dict[Symbols, int] = {}
        for term in terms:
            for node in term.walk():
                if node.kind == "symbols":
                    sets.setdefault(node.payload, len(sets))
        outside = sum(1 << i for s, i in sets.items() if s.negated)
        masks: dict[Hashable, int] = dict.fromkeys(self.alphabet or (), outside)
        for s, i in sets.items():
            for symbol in s.members:
                if self.alphabet is not None and symbol not in self.alphabet:
                    raise ProbatumError(f"symbol {symbol!r} is not in the closed alphabet of {len(self.alphabet)} symbols")
                masks[symbol] = masks.get(symbol, outside) ^ (1 << i)
        numbers: dict[int, int] = {}
        self.class_of: dict[Hashable, int] = {symbol: numbers.setdefault(mask, len(numbers)) for symbol, mask in masks.items()}
        self.other = numbers.setdefault(outside, len(numbers)) if self.alphabet is None else -1  # class of symbols never named
        self.classes = len(numbers)
        self.class_masks = [mask for mask, _ in sorted(numbers.items(), key=lambda item: item[1])]
        self._set_number = sets

    def class_numbers(self, word: str | bytes | Iterable[Hashable]) -> list[int]:
        """The class of each symbol.

        Raises:
            ProbatumError: a symbol outside a closed alphabet, or one that is not hashable.
        """
        if isinstance(word, bytes):
            word = word.decode("latin-1")
        other, get = self.other, self.class_of.get
        try:
            found = [get(symbol, other) for symbol in word]
        except TypeError:
            raise ProbatumError(f"symbols must be hashable, got {word!r}") from None
        if other < 0 and -1 in found:
            symbol = next(symbol for symbol in word if symbol not in self.class_of)
            raise ProbatumError(f"symbol {symbol!r} is not in the closed alphabet of {len(self.alphabet or ())} symbols")
        return found

    def class_table(self) -> np.ndarray:
        """uint32 class by code point; the last entry is for all code points beyond."""
        if self.other < 0:
            raise ProbatumError("a closed alphabet is checked symbol by symbol, so it has no table of code points")
        named = {ord(c): k for c, k in self.class_of.items() if isinstance(c, str) and len(c) == 1}
        table = np.full(max([255, *named]) + 2, self.other, np.uint32)
        table[list(named)] = list(named.values())
        return table

    def class_members(self) -> list[list[Hashable]]:
        """Named symbols of each class; the class `other` has also all that were never named."""
        members: list[list[Hashable]] = [[] for _ in range(self.classes)]
        for symbol, number in self.class_of.items():
            members[number].append(symbol)
        return members

    # Expressions: hash-consed, products associated to the right, weights drawn to the front.

    def _node(self, kind: int, left: Any, right: Any = None) -> int:
        key = (kind, left, right)
        number = self._intern.get(key)
        if number is None:
            number = self._intern[key] = len(self._kind)
            self._kind.append(kind)
            self._left.append(left)
            self._right.append(right)
            self._empty.append(None)
        return number

    def _value(self, weight: Any) -> int:
        if weight == self.semiring.zero:
            return ZERO
        return ONE if weight == self.semiring.one else self._node(VALUE, weight)

    def _linear(self, e: int) -> tuple[Any, int]:
        """e = weight . rest."""
        if self._kind[e] == VALUE:
            return self._left[e], ONE
        if self._kind[e] == PRODUCT and e != ONE and self._kind[self._left[e]] == VALUE:
            return self._left[self._left[e]], self._right[e]
        return self.semiring.one, e

    def _scaled(self, weight: Any, e: int) -> int:
        return self._product(self._value(weight), e)

    def _sum(self, parts: Iterable[int]) -> int:
        add = self.semiring.add
        collected: dict[int, Any] = {}
        for part in parts:
            for e in self._left[part] if self._kind[part] == SUM else (part,):
                weight, rest = self._linear(e)
                collected[rest] = add(collected[rest], weight) if rest in collected else weight
        kept = tuple(e for rest, weight in collected.items() if (e := self._scaled(weight, rest)) != ZERO)
        return kept[0] if len(kept) == 1 else self._node(SUM, kept)

    def _product(self, p: int, q: int) -> int:
        spine = []
        while self._kind[p] == PRODUCT and p != ONE:
            spine.append(self._left[p])
            p = self._right[p]
        spine.append(p)
        for left in reversed(spine):
            if left == ZERO or q == ZERO:
                return ZERO
            if left == ONE:
                continue
            if q == ONE:
                q = left
            elif self._kind[left] == VALUE and self._kind[q] != SYMBOLS:
                weight, rest = self._linear(q)
                product = self.semiring.mul(self._left[left], weight) if weight is not self.semiring.one else self._left[left]
                front = self._value(product)
                q = rest if front == ONE else front if rest == ONE else ZERO if front == ZERO else self._node(PRODUCT, front, rest)
            else:
                q = self._node(PRODUCT, left, q)
        return q

    def _star(self, p: int) -> int:
        if p in (ZERO, ONE) or self._kind[p] == VALUE:
            return self._value(self.semiring.star(self.semiring.zero if p == ZERO else self.semiring.one if p == ONE else self._left[p]))
        return self._node(STAR, p)

    def _both(self, p: int, q: int) -> int:
        if not self.semiring.commutative:
            raise ProbatumError(f"pointwise products need a semiring whose product commutes; {self.semiring} does not")
        if p == ZERO or q == ZERO:
            return ZERO
        (u, p), (v, q) = self._linear(p), self._linear(q)
        return self._scaled(self.semiring.mul(u, v), self._node(BOTH, p, q) if (p, q) != (ONE, ONE) else ONE)

    def _compile(self, term: Term) -> int:
        done: dict[int, int] = {}
        for node in term.walk():
            parts = [done[id(part)] for part in node.parts]
            kind = node.kind
            if kind == "symbols":
                e = self._node(SYMBOLS, self._set_number[node.payload]) if node.payload.members or node.payload.negated else ZERO
            elif kind == "value":
                e = self._value(self.semiring.element(node.payload))
            elif kind == "sum":
                e = self._sum(parts)
            elif kind == "product":
                e = ONE
                for part in reversed(parts):
                    e = self._product(part, e)
            elif kind == "star":
                e = self._star(parts[0])
            elif kind == "both":
                e = self._both(*parts)
            elif kind == "reference":
                e = self._node(REFERENCE, node.payload)
            else:
                e = self._value(self._label(0 if kind == "open" else 1, node.payload))
            done[id(node)] = e
        return done[id(term)]

    def empty(self, e: int) -> Any:
        """The weight of the empty word in a state."""
        found = self._empty[e]
        if found is not None:
            return found
        s, kinds, left, right, empty = self.semiring, self._kind, self._left, self._right, self._empty
        stack = [e]
        while stack:
            x = stack[-1]
            kind = kinds[x]
            if kind == SYMBOLS:
                empty[x] = s.zero
            elif kind == VALUE:
                empty[x] = left[x]
            elif kind == REFERENCE:
                empty[x] = self._rule_empty[left[x]]
            else:
                parts = left[x] if kind == SUM else (left[x],) if kind == STAR else (left[x], right[x])
                missing = [part for part in parts if empty[part] is None]
                if missing:
                    stack += missing
                    continue
                weights = [empty[part] for part in parts]
                empty[x] = s.sum(weights) if kind == SUM else s.star(weights[0]) if kind == STAR else s.mul(*weights)
            stack.pop()
        return empty[e]

    def derivative(self, e: int, c: int) -> Form:
        """The linear form of a state by a class of symbols; remembered."""
        classes, forms = self.classes, self._forms
        found = forms.get(e * classes + c)
        if found is not None:
            return found
        s, kinds, lefts, rights = self.semiring, self._kind, self._left, self._right
        zero, one, mul = s.zero, s.one, s.mul
        stack = [e]
        while stack:
            x = stack[-1]
            kind, left, right = kinds[x], lefts[x], rights[x]
            form: dict[int, Any] = {}
            missing: list[int] = []

            def need(y: int) -> Form:
                got = forms.get(y * classes + c)
                if got is None:
                    missing.append(y)  # noqa: B023
                    return ()
                return got

            if kind == SYMBOLS:
                if self.class_masks[c] >> left & 1:
                    form[ONE] = one if self.labels is None else self.labels[2]
            elif kind == SUM:
                for part in left:
                    self._collect(form, need(part), one)
            elif kind == REFERENCE:
                weight, body = self._linear(self._bodies[left])
                self._collect(form, need(body), weight)
            elif kind == STAR:
                weight = s.star(self.empty(left))
                for y, w in need(left):
                    self._collect_one(form, self._product(y, x), mul(weight, w))
            elif kind == BOTH:
                first, second = need(left), need(right)
                for y, w in first:
                    for z, u in second:
                        self._collect_one(form, self._both(y, z), mul(w, u))
            elif kind == PRODUCT and x != ONE:
                if kinds[left] == VALUE:
                    self._collect(form, need(right), lefts[left])
                else:
                    for y, w in need(left):
                        self._collect_one(form, self._product(y, right), w)
                    weight = self.empty(left)
                    if weight != zero:
                        self._collect(form, need(right), weight)
            if missing:
                stack += missing
                continue
            forms[x * classes + c] = tuple((y, w) for y, w in form.items() if w != zero)
            stack.pop()
        return forms[e * classes + c]

    def _collect(self, form: dict[int, Any], other: Form, weight: Any) -> None:
        s = self.semiring
        for y, w in other:
            product = w if weight is s.one else s.mul(weight, w)
            form[y] = s.add(form[y], product) if y in form else product

    def _collect_one(self, form: dict[int, Any], e: int, weight: Any) -> None:
        w, rest = self._linear(e)
        if rest != ZERO:
            self._collect(form, ((rest, weight if w is self.semiring.one else self.semiring.mul(weight, w)),), self.semiring.one)

    # Vectors.

    def step(self, vector: dict[int, Any], c: int) -> dict[int, Any]:
        """v' = sum over e of v(e) . d_c(e)."""
        s, forms, classes = self.semiring, self._forms, self.classes
        add, mul, zero = s.add, s.mul, s.zero
        new: dict[int, Any] = {}
        for e, v in vector.items():
            form = forms.get(e * classes + c)
            if form is None:
                form = self.derivative(e, c)
            for y, w in form:
                product = mul(v, w)
                new[y] = add(new[y], product) if y in new else product
        if s.negate is not None or s.name.startswith("NBEST"):
            return {y: w for y, w in new.items() if w != zero}
        return new

    def run(self, numbers: Sequence[int], vector: dict[int, Any] | None = None) -> Any:
        """The weight of a word of class numbers, from a vector (default: the start)."""
        vector = dict(self.start) if vector is None else vector
        for c in numbers:
            vector = self.step(vector, c)
            if not vector:
                return self.semiring.zero
        return self.value(vector)

    def value(self, vector: dict[int, Any]) -> Any:
        """The weight of the empty word from a vector."""
        s, zero = self.semiring, self.semiring.zero
        total = zero
        for e, v in vector.items():
            weight = self.empty(e)
            if weight != zero:
                total = s.add(total, s.mul(v, weight))
        return total

    def explore(self, limit: int = 512) -> list[int] | None:
        """All states that can be reached, in order of discovery; None if there are more than `limit` (recursion may
        have no end)."""
        order = list(dict.fromkeys(e for e, _ in self.start))
        seen = set(order)
        for e in order:
            for c in range(self.classes):
                for y, _ in self.derivative(e, c):
                    if y not in seen:
                        if len(order) >= limit:
                            return None
                        seen.add(y)
                        order.append(y)
        return order

    @functools.cached_property
    def _rule_shortest(self) -> dict[str, float]:
        least: dict[str, Any] = {
            "symbols": lambda s: 1 if s.members or s.negated else math.inf,
            "value": lambda _: 0,
            "sum": lambda _, *p: min(p, default=math.inf),
            "product": lambda _, *p: sum(p),
            "star": lambda *_: 0,
            "both": lambda _, a, b: max(a, b),
            "open": lambda _: 0,
            "close": lambda _: 0,
        }
        # Each round settles at least one more rule, as in Dijkstra's algorithm.
        return fixed_point(self.rules, least, math.inf, lambda a, b: a == b, len(self.rules) + 2, "shortest word")

    def shortest(self, e: int) -> float:
        """A lower bound of the length of the words of a state; inf if it has none."""
        memo, kinds = self._shortest, self._kind
        stack = [e]
        while stack:
            x = stack[-1]
            kind, left, right = kinds[x], self._left[x], self._right[x]
            parts: tuple = left if kind == SUM else (left, right) if kind in (PRODUCT, BOTH) and x != ONE else ()
            missing = [part for part in parts if part not in memo]
            if missing:
                stack += missing
                continue
            lengths = [memo[part] for part in parts]
            if kind == SUM:
                memo[x] = min(lengths, default=math.inf)
            elif kind == BOTH:
                memo[x] = max(lengths)
            else:
                memo[x] = 1 if kind == SYMBOLS else self._rule_shortest[left] if kind == REFERENCE else sum(lengths)
            stack.pop()
        return memo[e]

    def show(self, e: int) -> str:
        """A state as text, for messages and teaching."""
        kind, left, right = self._kind[e], self._left[e], self._right[e]
        if e == ONE:
            return "1"
        if kind == SUM:
            return "(" + " + ".join(map(self.show, left)) + ")" if left else "0"
        if kind == SYMBOLS:
            names = [str(c) for c, k in self.class_of.items() if self.class_masks[k] >> left & 1]
            return names[0] if len(names) == 1 else "[" + "".join(names) + "]"
        if kind == VALUE:
            return f"<{left}>"
        if kind == REFERENCE:
            return str(left)
        return f"{self.show(left)}*" if kind == STAR else f"{self.show(left)}{'&' if kind == BOTH else '.'}{self.show(right)}"


class Table:
    """A deterministic automaton over vectors, one row a vector met so far; for finite idempotent semirings the rows are
    finitely many, though they may be many: a full table is emptied and filled anew.

    Args:
        automaton: over an idempotent, finite semiring.
        limit: rows at most.
    """

    def __init__(self, automaton: Automaton, limit: int = 10_000) -> None:
        self.automaton, self.limit, self.width = automaton, max(4, limit), automaton.classes
        self.boolean = automaton.semiring.name == "BOOL"
        self.fillings = 0  # how often the table was emptied
        self._rows: dict[frozenset, int] = {}
        self._vectors: list[dict[int, Any]] = []
        self.values: list[Any] = []
        self._next: list[dict[Hashable, int]] = []  # by symbol, for short words
        self._class_table: np.ndarray | None = None
        self._empty()

    def _empty(self) -> None:
        self.fillings += 1
        for kept in (self._rows, self._vectors, self.values, self._next):
            kept.clear()
        self.table = np.full(16 * self.width, 0xFFFFFFFF, np.uint32)
        self.accepts = np.zeros(16, np.bool_)
        self.dead = self._row({})
        self.start = self._row(dict(self.automaton.start))  # the same two numbers each time

    def _row(self, vector: dict[int, Any]) -> int:
        zero = self.automaton.semiring.zero
        key = frozenset(vector) if self.boolean else frozenset(item for item in vector.items() if item[1] != zero)
        row = self._rows.get(key)
        if row is None:
            if len(self._vectors) >= self.limit:
                self._empty()
            row = self._rows[key] = len(self._vectors)
            if row >= len(self.accepts):
                self.table = np.concatenate([self.table, np.full(len(self.table), 0xFFFFFFFF, np.uint32)])
                self.accepts = np.concatenate([self.accepts, np.zeros(len(self.accepts), np.bool_)])
            self._vectors.append(vector)
            self._next.append({})
            self.values.append(self.automaton.value(vector))
            self.accepts[row] = self.values[-1] != zero
        return row

    def __len__(self) -> int:
        return len(self._vectors)

    def follow(self, row: int, c: int) -> int:
        """The row after a class; built if it was not. Rows other than `dead` and `start` may have new numbers afterwards."""
        entry = int(self.table[row * self.width + c])
        if entry != 0xFFFFFFFF:
            return entry // self.width
        before = self.fillings
        following = self._row(self.automaton.step(self._vectors[row], c))
        if self.fillings == before:
            self.table[row * self.width + c] = following * self.width
        return following

    def advance(self, state: int, symbol: int) -> np.uint32:
        """The state (row x width) behind the code point that a compiled loop stopped before."""
        table = self.class_table
        return np.uint32(self.follow(int(state) // self.width, int(table[min(int(symbol), len(table) - 1)])) * self.width)

    @property
    def class_table(self) -> np.ndarray:
        if self._class_table is None:
            self._class_table = self.automaton.class_table()
        return self._class_table

    def run(self, word: str | bytes | Iterable[Hashable]) -> Any:
        """The weight of a word."""
        text = isinstance(word, (str, bytes))
        if text and self.automaton.alphabet is None and worth_compiling(len(word)) and len(word) > 200:  # type: ignore[arg-type]
            return self.values[self.run_codes(codes(word), self.start)]  # type: ignore[arg-type]
        row, rows = self.start, self._next
        if isinstance(word, bytes):
            word = word.decode("latin-1")
        try:
            for symbol in word:
                following = rows[row].get(symbol)
                if following is None:
                    before = self.fillings
                    following = self.follow(row, self.automaton.class_numbers((symbol,))[0])
                    if self.fillings == before:
                        rows[row][symbol] = following
                row = following
        except TypeError:
            raise ProbatumError(f"symbols must be hashable, got {word!r}") from None
        return self.values[row]

    def run_codes(self, data: np.ndarray, row: int) -> int:
        """The row after an array of code points."""
        loops = loops_or_none()
        if loops is None:
            return self._run_numpy(data, row)
        pos, state = 0, np.uint32(row * self.width)
        while True:
            pos, state = loops.run_classes(self.table, self.class_table, data, pos, state)
            if pos == len(data):
                return int(state) // self.width
            state = self.advance(state, data[pos])
            pos += 1

    def _complete(self, most: int) -> bool:
        """Build every row and transition, if there are at most so many rows."""
        row, before = 0, self.fillings
        while row < len(self._vectors):
            for c in range(self.width):
                self.follow(row, c)
                if self.fillings != before or len(self._vectors) > most:
                    return False
            row += 1
        return True

    def _run_numpy(self, data: np.ndarray, row: int, chunks: int = 2048) -> int:
        """Without numba: all rows run through all chunks side by side, then the chunks' maps are chained."""
        numbers = classify(self.class_table, data)
        size = len(numbers) // chunks
        if size > 1 and row == self.start and self._complete(64):
            table = self.table[: len(self) * self.width].reshape(len(self), self.width) // self.width
            block = numbers[: size * chunks].reshape(chunks, size)
            maps = np.broadcast_to(np.arange(len(self)), (chunks, len(self)))
            for t in range(size):
                maps = table[maps, block[:, t, None]]
            for chunk in maps:
                row = int(chunk[row])
            numbers = numbers[size * chunks :]
        for c in numbers.tolist():
            row = self.follow(row, c)
        return row


class Machine:
    """All transitions of a finite automaton as sparse matrices, one a class: for semirings of numbers.

    Attributes:
        states, classes: sizes S and C.
        source, symbol, target: (A,) int arrays, the arcs; `weights` (A,) their weights.
        initial, final: (S,) weights.
    """

    def __init__(self, automaton: Automaton, order: list[int]) -> None:
        self.automaton, self.semiring = automaton, automaton.semiring
        number = {e: i for i, e in enumerate(order)}
        self.states, self.classes = len(order), automaton.classes
        arcs = [(c, i, number[y], w) for c in range(self.classes) for i, e in enumerate(order) for y, w in automaton.derivative(e, c)]
        self.order = order
        self.integer = self.semiring.dtype is None
        self.symbol = np.array([arc[0] for arc in arcs], np.int64)
        self.source = np.array([arc[1] for arc in arcs], np.int64)
        self.target = np.array([arc[2] for arc in arcs], np.int64)
        initial = [self.semiring.zero] * self.states
        for e, weight in automaton.start:
            initial[number[e]] = weight
        final = [automaton.empty(e) for e in order]
        self.fits = True
        try:
            dtype = np.int64 if self.integer else np.dtype(self.semiring.dtype)
            self.weights = np.array([arc[3] for arc in arcs], dtype)
            self.initial, self.final = np.array(initial, dtype), np.array(final, dtype)
        except OverflowError:
            self.fits = False
            return
        self.pointer = np.zeros(self.classes * self.states + 1, np.int64)
        np.add.at(self.pointer, self.symbol * self.states + self.source + 1, 1)
        self.pointer = np.cumsum(self.pointer)
        if self.integer:
            into = np.zeros((self.classes, self.states))
            np.add.at(into, (self.symbol, self.target), np.abs(self.weights.astype(float)))
            self.limit = int(2.0**62 / max(1.0, into.max(initial=0.0)))
        self._class_table: np.ndarray | None = None

    def numbers(self, word: Any) -> np.ndarray:
        """Class numbers of a word, as an array."""
        if isinstance(word, (str, bytes)) and self.automaton.alphabet is None:
            if self._class_table is None:
                self._class_table = self.automaton.class_table()
            return classify(self._class_table, codes(word))
        return np.array(self.automaton.class_numbers(word), np.uint32)

    def weight(self, word: Any) -> Any:
        """The weight of one word, by the compiled loop; integers stay exact (Python integers take over before 64 bits
        are full)."""
        loops = loops_or_none()
        assert loops is not None
        data = self.numbers(word)
        if self.integer:
            pos, vector = loops.forward_int(self.limit, self.pointer, self.target, self.weights, self.states, data, 0, self.initial.copy())
            live = {self.order[i]: int(vector[i]) for i in np.flatnonzero(vector)}
            return self.automaton.run(data[pos:].tolist(), live)
        s = self.semiring
        vector = loops.forward_float(
            loops.OPERATION[s.loop],
            s.zero,
            self.pointer,
            self.target,
            self.weights,
            self.states,
            data,
            self.initial.copy(),
        )
        return s.total(s.mul(vector, self.final), 0).item() if self.states else s.zero

    def weigh(self, words: Sequence[Any]) -> list[Any]:
        """The weights of many words."""
        loops = loops_or_none()
        if self.integer or loops is None:
            return [self.weight(word) for word in words]
        numbers = [self.numbers(word) for word in words]
        offsets = np.cumsum([0, *map(len, numbers)])
        out = np.empty(len(words))
        data = np.concatenate([*numbers, np.empty(0, np.uint32)]).astype(np.uint32)
        loops.forward_words(
            loops.OPERATION[self.semiring.loop],
            self.semiring.zero,
            self.pointer,
            self.target,
            self.weights,
            self.states,
            data,
            offsets,
            self.initial,
            self.final,
            out,
        )
        return out.tolist()

    def batch(self, words: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        """Words as padded class numbers (B, T) and lengths (B,)."""
        numbers = [self.numbers(word) for word in words]
        out = np.zeros((len(words), max(map(len, numbers), default=0)), np.int64)
        for i, row in enumerate(numbers):
            out[i, : len(row)] = row
        return out, np.array([len(row) for row in numbers])

    def dense(self, weights: Any = None) -> Any:
        """Transition matrices (C, S, S), numpy or torch as `weights` (default: the machine's own)."""
        weights = self.weights if weights is None else weights
        xp = namespace(weights)
        if xp is np:
            out = np.full((self.classes, self.states, self.states), self.semiring.zero, np.asarray(weights).dtype)
            out[self.symbol, self.source, self.target] = weights
            return out
        out = xp.full((self.classes, self.states, self.states), self.semiring.zero, dtype=weights.dtype, device=weights.device)
        where = tuple(xp.as_tensor(x, device=weights.device) for x in (self.symbol, self.source, self.target))
        return out.index_put(where, weights)

    def score(self, data: Any, lengths: Any, weights: Any = None, initial: Any = None, final: Any = None) -> Any:
        """The weights of a batch of words, batched and (in torch) differentiable.

        Args:
            data: (B, T) class numbers, as from `batch`; numpy or torch.
            lengths: (B,).
            weights: (A,) arc weights in place of the machine's own, for example a parameter; numpy or torch.
            initial, final: (S,) in place of the machine's own.
        Returns:
            (B,) weights in the semiring.
        """
        from probatum.algebra.contraction import matmul

        s, xp = self.semiring, namespace(data, weights)
        if xp is np:
            table, start, end = (
                self.dense(weights),
                self.initial if initial is None else initial,
                self.final if final is None else final,
            )
        else:
            like = weights if weights is not None else xp.as_tensor(self.weights)
            table = self.dense(like)
            start, end = (
                xp.as_tensor(own if given is None else given, dtype=like.dtype, device=like.device)
                for own, given in ((self.initial, initial), (self.final, final))
            )
            data = xp.as_tensor(data, device=like.device)
            lengths = xp.as_tensor(lengths, device=like.device)
        vector = xp.broadcast_to(start, (data.shape[0], self.states))
        for t in range(data.shape[1]):
            moved = matmul(s, vector[:, None, :], table[data[:, t]])[:, 0, :]
            vector = xp.where((lengths > t)[:, None], moved, vector)
        return s.total(s.mul(vector, end[None]), 1)

    @property
    def sparsity(self) -> float:
        return len(self.source) / max(1, self.classes * self.states**2)
