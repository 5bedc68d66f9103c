"""The paper's four representations of a weighted language, side by side for comparison (Fig. "stats"); to use one, take
`regex` instead.

`derivatives`: expressions with Brzozowski's derivatives and the reference's smart constructors, nothing remembered.
`memoised`: the same with hash-consed expressions that remember their derivatives. `trie`: b <| h, a weight and a
function from symbols to tries. `trie_memoised`: the same with a dictionary. Recursive rules are references by name, and
their weight of the empty word is found beforehand, so that all four terminate on them.

>>> from probatum.algebra.semirings import NAT
>>> [Representation(kind, "a*a*", NAT)["a" * 9] for kind in REPRESENTATIONS]
[10, 10, 10, 10]
"""

import sys
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from probatum.algebra.patterns import parse_pattern
from probatum.algebra.semirings import Semiring
from probatum.algebra.terms import Symbols, Term, evaluate, fixed_point, left_recursion, reachable
from probatum.errors import ProbatumError

__all__ = ["LANGUAGES", "REPRESENTATIONS", "Representation", "word_of"]

REPRESENTATIONS = ("derivatives", "memoised", "trie", "trie_memoised")
_LETTERS = "[a-z]"
_DYCK = {"dyck": r"(\[(?&dyck)\])*"}

# Name -> (pattern, rules, the word of n symbols, its count). The paper's eight, and its dyck on one deep nest.
LANGUAGES: dict[str, tuple[str, dict[str, str], Callable[[int], str], Callable[[int], int]]] = {
    "a*": ("a*", {}, lambda n: "a" * n, lambda n: 1),
    "a*a*": ("a*a*", {}, lambda n: "a" * n, lambda n: n + 1),
    "a*b*": ("a*b*", {}, lambda n: "a" * (n // 2) + "b" * (n - n // 2), lambda n: 1),
    "a*ba*": ("a*ba*", {}, lambda n: "a" * (n // 2) + "b" + "a" * (n - n // 2 - 1), lambda n: 1),
    "letters": (f"{_LETTERS}*", {}, lambda n: ("abcdefghijklmnopqrstuvwxyz" * (n // 26 + 1))[:n], lambda n: 1),
    "fishy": (
        f"{_LETTERS}*fish{_LETTERS}*",
        {},
        lambda n: ("asdf" * n)[: n // 2 - 2] + "fish" + ("asdf" * n)[: n - n // 2 - 2],
        lambda n: 1,
    ),
    "anbn": ("(?&anbn)", {"anbn": "(a(?&anbn)b)?"}, lambda n: "a" * (n // 2) + "b" * (n // 2), lambda n: 1),
    "dyck": ("(?&dyck)", _DYCK, lambda n: "[]" * (n // 2), lambda n: 1),
    "nested dyck": ("(?&dyck)", _DYCK, lambda n: "[" * (n // 2) + "]" * (n // 2), lambda n: 1),
}


def word_of(language: str, length: int) -> tuple[str, int]:
    """The word of this length in a language of the comparison, and its count of derivations."""
    _, _, word, count = LANGUAGES[language]
    return word(length), count(length)


class Representation:
    """A pattern in one of the four representations; `[word]` gives the weight.

    Args:
        kind: one of REPRESENTATIONS.
        pattern: text or a term. semiring: its weights. rules: named patterns.
    Raises:
        ProbatumError: unknown kind, left recursion, an undefined rule.
    """

    def __init__(
        self,
        kind: Literal["derivatives", "memoised", "trie", "trie_memoised"],
        pattern: str | Term,
        semiring: Semiring,
        rules: Mapping[str, str | Term] | None = None,
    ) -> None:
        if kind not in REPRESENTATIONS:
            raise ProbatumError(f"kind must be one of {', '.join(REPRESENTATIONS)}, got {kind!r}")
        term, *bodies = (parse_pattern(x) if isinstance(x, str) else x for x in (pattern, *(rules or {}).values()))
        named = reachable(term, dict(zip(rules or {}, bodies, strict=True)))
        if cycle := left_recursion(named):
            raise ProbatumError(f"left recursion: {' -> '.join(cycle)}")
        s = semiring
        empty: dict[str, Callable[..., Any]] = {
            "symbols": lambda _: s.zero,
            "value": lambda w: s.element(w),
            "sum": lambda _, *p: s.sum(p),
            "product": lambda _, *p: s.prod(p),
            "star": lambda _, p: s.star(p),
            "open": lambda _: s.one,
            "close": lambda _: s.one,
        }
        known = fixed_point(named, empty, s.zero, lambda a, b: bool(a == b), 1000, "weight of the empty word")
        make = (_Expressions if kind in ("derivatives", "memoised") else _Tries)(s, known, kind.endswith("memoised"))
        algebra: dict[str, Callable[..., Any]] = {
            "symbols": make.symbols,
            "value": lambda w: make.value(s.element(w)),
            "sum": lambda _, *p: make.fold(make.plus, p, make.zero),
            "product": lambda _, *p: make.fold(make.times, p, make.one),
            "star": lambda _, p: make.star(p),
            "open": lambda _: make.one,
            "close": lambda _: make.one,
        }
        references = {name: make.reference(name) for name in named}
        for name, body in named.items():
            make.bodies[name] = evaluate(body, references, algebra)
        self.kind, self.semiring = kind, semiring
        self._start = evaluate(term, references, algebra)
        self._make = make

    def __getitem__(self, word: str) -> Any:
        with _deep(20 * len(word)):
            return self._make.weight(self._start, word)


@contextmanager
def _deep(frames: int) -> Iterator[None]:
    """These representations recurse over trees that grow with the word, as in the paper."""
    before = sys.getrecursionlimit()
    if frames + 1000 <= before:
        yield
        return
    sys.setrecursionlimit(frames + 1000)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


class _Expressions:
    """Char | Value | p + q | p q | Star p | reference, as tuples or (memoised) hash-consed nodes."""

    def __init__(self, semiring: Semiring, known: dict[str, Any], memo: bool) -> None:
        self.semiring, self.known, self.memo = semiring, known, memo
        self.bodies: dict[str, Any] = {}
        self._intern: dict[tuple, _Node] = {}
        self.zero, self.one = self.value(semiring.zero), self.value(semiring.one)

    def node(self, kind: str, left: Any, right: Any = None) -> "_Node":
        if not self.memo:
            return _Node(kind, left, right)
        key = (kind, left, right)
        found = self._intern.get(key)
        if found is None:
            found = self._intern[key] = _Node(kind, left, right)
            found.memo = {}
        return found

    @staticmethod
    def fold(operation: Callable, parts: tuple, unit: Any) -> Any:
        if not parts:
            return unit
        result = parts[-1]
        for part in reversed(parts[:-1]):
            result = operation(part, result)
        return result

    def symbols(self, payload: Symbols) -> "_Node":
        return self.node("symbols", payload)

    def value(self, weight: Any) -> "_Node":
        return self.node("value", weight)

    def reference(self, name: str) -> "_Node":
        return self.node("reference", name)

    def star(self, p: "_Node") -> "_Node":
        return self.node("star", p)

    def plus(self, p: "_Node", q: "_Node") -> "_Node":
        if p.kind == "value" and p.left == self.semiring.zero:
            return q
        if q.kind == "value" and q.left == self.semiring.zero:
            return p
        return self.node("sum", p, q)

    def times(self, p: "_Node", q: "_Node") -> "_Node":
        if p.kind == "value":  # on the left only: looking right would unfold right-recursive rules
            if p.left == self.semiring.zero:
                return p
            if p.left == self.semiring.one:
                return q
        return self.node("product", p, q)

    def empty(self, p: "_Node") -> Any:
        if self.memo and p.weight is not None:
            return p.weight
        s, kind = self.semiring, p.kind
        if kind == "symbols":
            weight = s.zero
        elif kind == "value":
            weight = p.left
        elif kind == "sum":
            weight = s.add(self.empty(p.left), self.empty(p.right))
        elif kind == "product":
            weight = self.empty(p.left)
            if weight != s.zero:
                weight = s.mul(weight, self.empty(p.right))
        elif kind == "star":
            weight = s.star(self.empty(p.left))
        else:
            weight = self.known[p.left]
        p.weight = weight
        return weight

    def derive(self, p: "_Node", c: Hashable) -> "_Node":
        if self.memo:
            found = p.memo.get(c)
            if found is not None:
                return found
        s, kind = self.semiring, p.kind
        if kind == "symbols":
            result = self.one if c in p.left else self.zero
        elif kind == "value":
            result = self.zero
        elif kind == "sum":
            result = self.plus(self.derive(p.left, c), self.derive(p.right, c))
        elif kind == "product":
            result = self.times(self.derive(p.left, c), p.right)
            weight = self.empty(p.left)
            if weight != s.zero:  # Haskell's laziness: 0 . dq must not unfold q
                result = self.plus(result, self.times(self.value(weight), self.derive(p.right, c)))
        elif kind == "star":
            result = self.times(self.value(s.star(self.empty(p.left))), self.times(self.derive(p.left, c), p))
        else:
            result = self.derive(self.bodies[p.left], c)
        if self.memo:
            p.memo[c] = result
        return result

    def weight(self, p: "_Node", word: str) -> Any:
        for c in word:
            p = self.derive(p, c)
        return self.empty(p)


class _Node:
    __slots__ = ("kind", "left", "memo", "right", "weight")

    def __init__(self, kind: str, left: Any, right: Any) -> None:
        self.kind, self.left, self.right = kind, left, right
        self.weight: Any = None
        self.memo: Any = None


class _Trie:
    """b <| h: the weight of the empty word, and the trie behind each symbol."""

    __slots__ = ("after", "memo", "value")

    def __init__(self, value: Any, after: Callable[[Hashable], "_Trie"], memo: bool) -> None:
        self.value, self.after = value, after
        self.memo: dict[Hashable, _Trie] | None = {} if memo else None

    def __call__(self, c: Hashable) -> "_Trie":
        if self.memo is None:
            return self.after(c)
        found = self.memo.get(c)
        if found is None:
            found = self.memo[c] = self.after(c)
        return found


class _Tries:
    """The paper's equations: 0 = 0 <| 0; (a <| p) + (b <| q) = (a+b) <| (p+q); (a <| p) q = a q + (0 <| c. p c . q);
    star likewise."""

    fold = staticmethod(_Expressions.fold)

    def __init__(self, semiring: Semiring, known: dict[str, Any], memo: bool) -> None:
        self.semiring, self.known, self.memo = semiring, known, memo
        self.bodies: dict[str, _Trie] = {}
        self.zero = self.trie(semiring.zero, lambda c: self.zero)
        self.one = self.trie(semiring.one, lambda c: self.zero)

    def trie(self, value: Any, after: Callable[[Hashable], _Trie]) -> _Trie:
        return _Trie(value, after, self.memo)

    def symbols(self, payload: Symbols) -> _Trie:
        return self.trie(self.semiring.zero, lambda c: self.one if c in payload else self.zero)

    def value(self, weight: Any) -> _Trie:
        return self.scale(weight, self.one)

    def reference(self, name: str) -> _Trie:
        return self.trie(self.known[name], lambda c: self.bodies[name](c))

    def scale(self, a: Any, p: _Trie) -> _Trie:
        s = self.semiring
        if a == s.one or p is self.zero:
            return p
        if a == s.zero:
            return self.zero
        return self.trie(s.mul(a, p.value), lambda c: self.scale(a, p(c)))

    def plus(self, p: _Trie, q: _Trie) -> _Trie:
        if p is self.zero:
            return q
        if q is self.zero:
            return p
        return self.trie(self.semiring.add(p.value, q.value), lambda c: self.plus(p(c), q(c)))

    def times(self, p: _Trie, q: _Trie) -> _Trie:
        s, a = self.semiring, p.value
        if p is self.zero:
            return p
        if p is self.one:
            return q
        if a == s.zero:
            return self.trie(a, lambda c: self.times(p(c), q))
        return self.trie(s.mul(a, q.value), lambda c: self.plus(self.times(p(c), q), self.scale(a, q(c))))

    def star(self, p: _Trie) -> _Trie:
        weight = self.semiring.star(p.value)
        result = self.trie(weight, lambda c: self.scale(weight, self.times(p(c), result)))
        return result

    def weight(self, p: _Trie, word: str) -> Any:
        for c in word:
            p = p(c)
        return p.value
