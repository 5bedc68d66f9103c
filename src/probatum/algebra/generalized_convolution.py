"""Generalized convolution and efficient language recognition (Elliott 2019, arXiv 1903.10677).

Functions from a monoid to a semiring multiply by convolution, (f * g)(w) = sum over uv = w of f(u) g(v). Choose the
monoid, the semiring and a representation, and this one product is sequencing in regular expressions, parsing,
polynomial and power-series multiplication, or image filtering; indexing is a homomorphism, which fixes every
representation's rules.

For: matching, counting, scoring and n-best parsing with one pattern; exact polynomials and series; min-plus products;
image kernels. Not for: look-around or back-references (not regular), left-recursive grammars, float convolution where
scipy alone will do.

>>> ways = regex("a*a*", NAT)
>>> ways["a" * 100], ways["b"]
(101, 0)
>>> nested = grammar('''
... s = "[" s "]" s <0.4> | <0.6>
... ''', PROB)
>>> round(nested["[[]][]"], 6), round(nested.total(), 9)
(0.008294, 1.0)
>>> print(nested.parses("[[]]", 1)[0].show("[[]]"))     # doctest: +ELLIPSIS
s '[[]]'  [0.03456]
  s '[]'
    s ''
    s ''
  s ''
>>> (polynomial("x + 3", INT) ** 5)
243 + 405 x + 270 x^2 + 90 x^3 + 15 x^4 + x^5
>>> sin, cos = fix(lambda sin, cos: (cos.integral(), 1 - sin.integral()), RAT)
>>> sin * cos
x + -2/3 x^3 + 2/15 x^5 + -4/315 x^7 + ...
>>> steps = Series.of(Dense(1), MINPLUS, [0, 2, 7])             # cost of going 0, 1, 2 further
>>> (steps * steps)[2]
4.0
"""

import inspect
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from probatum.algebra.automata import Machine
from probatum.algebra.carriers import Carrier
from probatum.algebra.contraction import contract
from probatum.algebra.dense import Dense, choose
from probatum.algebra.monoids import Monoid, fold, scan
from probatum.algebra.monomials import Monomials, build_polynomial, parse_polynomial
from probatum.algebra.patterns import parse_grammar, parse_pattern
from probatum.algebra.semirings import (
    BOOL,
    COMPLEX,
    INT,
    LOG,
    MAXPLUS,
    MAXTIMES,
    MINPLUS,
    NAT,
    PARSES,
    PROB,
    RAT,
    REAL,
    STRINGS,
    VITERBI,
    Semiring,
    nbest,
    polynomials,
    product,
    weighted,
)
from probatum.algebra.streams import Coefficients, Stream
from probatum.algebra.terms import Term, mark, reference
from probatum.algebra.words import Language, Parse, Words
from probatum.errors import ProbatumError, did_you_mean

__all__ = [
    "BOOL",
    "COMPLEX",
    "INT",
    "LOG",
    "MAXPLUS",
    "MAXTIMES",
    "MINPLUS",
    "NAT",
    "PARSES",
    "PROB",
    "RAT",
    "REAL",
    "STRINGS",
    "VITERBI",
    "Dense",
    "Monoid",
    "Monomials",
    "Parse",
    "Semiring",
    "Series",
    "Stream",
    "Words",
    "contract",
    "fix",
    "fold",
    "grammar",
    "image_filter",
    "nbest",
    "polynomial",
    "polynomials",
    "power_series",
    "product",
    "regex",
    "scan",
    "weighted",
]


class Series:
    """A function from a carrier's monoid to a semiring, of finite or infinite support.

    `f + g` adds; `f * g` convolves; `f & g` multiplies pointwise (intersection, over Booleans); `f.star()` is 1 + f +
    f*f + ...; `f[index]`
    reads one value, and is a homomorphism: (f + g)[w] = f[w] + g[w], and so on. A weight may stand for its constant
        series. `-f`, `f - g`
    need a ring, `f / g` a Stream over one.

    Make one with `regex`, `grammar`, `polynomial`, `power_series`, `image_filter`, or `Series.of(carrier, semiring,
    values)`.
    """

    __slots__ = ("carrier", "data", "semiring")
    __array_ufunc__ = None  # numpy scalars on the left defer to us

    def __init__(self, carrier: Carrier, semiring: Semiring, data: Any) -> None:
        self.carrier, self.semiring, self.data = carrier, semiring, data

    @classmethod
    def of(cls, carrier: Carrier, semiring: Semiring, values: Any) -> "Series":
        """From a mapping {index: weight} or, for Dense and Stream, a (nested) sequence of weights; for Words also a
        list of words.

        Raises:
            ProbatumError: an index that is not the carrier's, a weight that is not the semiring's.
        """
        if isinstance(values, Mapping):
            return cls(carrier, semiring, carrier.from_items(semiring, values.items()))
        if isinstance(carrier, Dense):
            return cls(carrier, semiring, carrier.array(semiring, values))
        if isinstance(carrier, Stream):
            return cls(carrier, semiring, carrier.from_list(semiring, list(values)))
        return cls(carrier, semiring, carrier.from_items(semiring, [(index, semiring.one) for index in values]))

    @classmethod
    def zero(cls, carrier: Carrier, semiring: Semiring) -> "Series":
        return cls(carrier, semiring, carrier.from_items(semiring, []))

    @classmethod
    def one(cls, carrier: Carrier, semiring: Semiring) -> "Series":
        return cls(carrier, semiring, carrier.from_items(semiring, [(carrier.unit(), semiring.one)]))

    def _new(self, data: Any) -> "Series":
        return Series(self.carrier, self.semiring, data)

    def _other(self, other: Any) -> "Series":
        """The operand as a series of the same kind; a weight becomes a constant."""
        if not isinstance(other, Series):
            return self._new(self.carrier.from_items(self.semiring, [(self.carrier.unit(), self.semiring.element(other))]))
        if other.semiring is not self.semiring:
            raise ProbatumError(f"operands are over {self.semiring} and {other.semiring}; bring one over with .over(semiring)")
        if other.carrier != self.carrier:
            raise ProbatumError(f"operands have carriers {self.carrier} and {other.carrier}; bring one over with .to(carrier)")
        return other

    def __add__(self, other: Any) -> "Series":
        return self._new(self.carrier.add(self.semiring, self.data, self._other(other).data))

    def __radd__(self, other: Any) -> "Series":
        return self._other(other) + self

    def __mul__(self, other: Any) -> "Series":
        return self._new(self.carrier.multiply(self.semiring, self.data, self._other(other).data))

    def __rmul__(self, other: Any) -> "Series":
        return self._new(self.carrier.scale(self.semiring, self.semiring.element(other), self.data))

    def __and__(self, other: "Series") -> "Series":
        return self._new(self.carrier.pointwise(self.semiring, self.data, self._other(other).data))

    def __neg__(self) -> "Series":
        if self.semiring.negate is None:
            raise ProbatumError(f"{self.semiring} has no negatives")
        return self._new(self.carrier.scale(self.semiring, self.semiring.negate(self.semiring.one), self.data))

    def __sub__(self, other: Any) -> "Series":
        return self + -self._other(other)

    def __rsub__(self, other: Any) -> "Series":
        return self._other(other) + -self

    def __truediv__(self, other: Any) -> "Series":
        if not isinstance(self.carrier, Stream):
            raise ProbatumError(f"only power series divide; this one has carrier {self.carrier}")
        return self._new(self.carrier.divide(self.semiring, self.data, self._other(other).data))

    def __pow__(self, exponent: int) -> "Series":
        if not isinstance(exponent, int) or exponent < 0:
            raise ProbatumError(f"exponent must be an integer of at least 0, got {exponent!r}")
        if isinstance(self.carrier, Monomials) and not isinstance(self.data, dict):
            return self._new(self.carrier.power(self.semiring, self.data, exponent))
        result, base = None, self
        while exponent:
            if exponent & 1:
                result = base if result is None else result * base
            exponent >>= 1
            if exponent:
                base = base * base
        return Series.one(self.carrier, self.semiring) if result is None else result

    def star(self) -> "Series":
        """1 + f + f * f + ...: repetition; 1 / (1 - f) in a ring.

        Raises:
            ProbatumError: the star of the constant term does not exist in the semiring.
        """
        return self._new(self.carrier.star(self.semiring, self.data))

    def __getitem__(self, index: Any) -> Any:
        return self.carrier.at(self.semiring, self.data, index)

    def items(self, bound: int | None = None) -> Iterator[tuple[Any, Any]]:
        """(index, weight) of the non-zeros, short indices first.

        Args:
            bound: greatest length, degree or position; needed where the support is infinite.
        """
        return self.carrier.items(self.semiring, self.data, bound)

    def weights(self, indices: Iterable[Any]) -> list[Any]:
        """The values at many indices; words over a numeric semiring go through one compiled pass."""
        if isinstance(self.carrier, Words) and self.semiring.dtype is not None and self.semiring is not BOOL:
            words = list(indices)
            if self.data.machine is not None:
                return self.data.machine.weigh(words)
            indices = words
        return [self[index] for index in indices]

    def map(self, function: Callable[[Any], Any], *, letters: bool = False) -> "Series":
        """sum over a of f(a) . single(function(a)): the functor of free semimodules.

        Args:
            function: index -> index; weights of indices that fall together add.
            letters: (Words) function maps each symbol to a word, extended to whole words; works for infinite support.
        """
        if letters:
            return self.bind(
                lambda symbol: Series.of(self.carrier, self.semiring, {function(symbol): self.semiring.one}),
                letters=True,
            )
        return self._new(self.carrier.from_items(self.semiring, [(function(index), weight) for index, weight in self.items()]))

    def bind(self, function: Callable[[Any], "Series"], *, letters: bool = False) -> "Series":
        """sum over a of f(a) . function(a): the monad of free semimodules.

        Args:
            function: index -> series. letters: as for `map`: substitution of a series for each symbol.
        """
        if letters:
            if not isinstance(self.carrier, Words):
                raise ProbatumError(f"letters=True is for Words, this series has carrier {self.carrier}")
            return self._new(self.carrier.substitute(self.semiring, self.data, lambda symbol: self._other(function(symbol)).data))
        total: Series | None = None
        for index, weight in self.items():
            image = function(index)
            if image.semiring is not self.semiring:
                raise ProbatumError(f"the function must give series over {self.semiring}, got {image.semiring}")
            part = weight * image
            total = part if total is None else total + part
        return Series.zero(self.carrier, self.semiring) if total is None else total

    def to(self, carrier: Carrier) -> "Series":
        """The same series over another monoid, along a homomorphism.

        Words -> Stream by length (the generating function), Words -> Monomials by letter counts, Words -> Words with
        another alphabet, Dense <-> Monomials <-> Stream by exponents.
        """
        if carrier == self.carrier:
            return self
        return Series(carrier, self.semiring, self.carrier.convert(self.semiring, self.data, carrier))

    def over(self, semiring: Semiring, convert: Callable[[Any], Any] | None = None) -> "Series":
        """The same series over another semiring, its automaton not written anew.

        Args:
            convert: weight -> weight of the new semiring; should be a homomorphism for values to convert as well.
                Default: the new semiring's own reading of the old weights.
        """
        return Series(
            semiring=semiring,
            carrier=self.carrier,
            data=self.carrier.over(self.semiring, self.data, semiring, convert or semiring.element),
        )

    def plan(self) -> str:
        """Which evaluation runs, and why."""
        return self.carrier.plan(self.semiring, self.data)

    def _words(self, what: str) -> Language:
        if not isinstance(self.carrier, Words):
            raise ProbatumError(f"{what} is for Words, this series has carrier {self.carrier}")
        return self.data

    def parses(self, word: Sequence[Any], n: int = 1) -> list[Parse]:
        """The n best derivations of a word, as trees of rules and named groups.

        Best by weight: smallest over MINPLUS, greatest over MAXPLUS and LOG, else greatest product of the weights read
            as numbers; ties by
        the shorter derivation.
        """
        return self._words("parses").parses(word, n)

    def total(self) -> Any:
        """The sum over all words, also of recursive grammars (least fixed point; a probabilistic grammar is proper if
        it is 1)."""
        return self._words("total").total()

    def named(self, name: str) -> "Series":
        """This series as a named part that `parses` shows."""
        language = self._words("named")
        return self._new(Language(mark(name, language.term), language.rules, self.semiring, language.alphabet))

    def machine(self) -> Machine:
        """The finite automaton as sparse transitions, for batches and gradients.

        Raises:
            ProbatumError: not a numeric semiring, or infinitely many states.
        """
        language = self._words("machine")
        if self.semiring.dtype is None and self.semiring.loop is None:
            raise ProbatumError(f"machine() needs a semiring of numbers, got {self.semiring}")
        if language.order is None:
            raise ProbatumError("machine() needs a finite automaton; these rules have no end of states")
        return Machine(language.automaton, language.order)

    def __call__(self, *values: Any, **named: Any) -> Any:
        """Value of a polynomial at a point; a homomorphism where the semiring's product commutes.

        Args:
            values: for the variables in order. named: by name.
        """
        series = self.to(Monomials(("x",))) if isinstance(self.carrier, Dense) and self.carrier.dims == 1 else self
        if not isinstance(series.carrier, Monomials):
            raise ProbatumError(f"only polynomials are evaluated at a point, this series has carrier {self.carrier}")
        if not self.semiring.commutative:
            raise ProbatumError(f"evaluation is a homomorphism only where products commute; {self.semiring} does not")
        names = series.carrier.names
        point = dict(zip(names, values, strict=False)) | named
        if len(values) > len(names) or set(point) != set(names):
            raise ProbatumError(f"want a value for each of {', '.join(names)}, got {len(values)} and {', '.join(named) or 'no names'}")
        return series.carrier.evaluate(self.semiring, series.data, {name: self.semiring.element(value) for name, value in point.items()})

    def derivative(self) -> "Series":
        """d/dx of a Stream."""
        if not isinstance(self.carrier, Stream):
            raise ProbatumError(f"derivative is for Stream, this series has carrier {self.carrier}")
        return self._new(self.carrier.derivative(self.semiring, self.data))

    def integral(self, constant: Any = 0) -> "Series":
        """Integral of a Stream with this constant term, over a field."""
        if not isinstance(self.carrier, Stream):
            raise ProbatumError(f"integral is for Stream, this series has carrier {self.carrier}")
        return self._new(self.carrier.integral(self.semiring, self.data, self.semiring.element(constant)))

    def coefficients(self, n: int) -> list[Any]:
        """The first n values of a Stream or of a one-dimensional Dense series."""
        return list(self.data.upto(n)) if isinstance(self.data, Coefficients) else [self[i] for i in range(n)]

    def apply(self, image: np.ndarray, mode: str = "same") -> np.ndarray:
        """Filter an array with this Dense series as kernel, zeros outside.

        Args:
            image: (H, W) or, with channels filtered apart, (H, W, C) for two dimensions; in general `dims` axes or one
                more.
            mode: "same" the shape of the image, centred; "full"; "valid" where the kernel fits.
        """
        if not isinstance(self.carrier, Dense):
            raise ProbatumError(f"apply is for Dense, this series has carrier {self.carrier}")
        if mode not in ("same", "full", "valid"):
            raise ProbatumError(f"mode must be same, full or valid, got {mode!r}")
        dims, kernel = self.carrier.dims, self.data
        image = np.asarray(image)
        if image.ndim == dims + 1:
            return np.stack([self.apply(image[..., c], mode) for c in range(image.shape[-1])], -1)
        image = self.carrier.array(self.semiring, image)
        full = choose(self.semiring, image.shape, kernel.shape, image, kernel)[2](image, kernel)
        if mode == "full":
            return full
        cut = []
        for n, k in zip(image.shape, kernel.shape, strict=True):
            if mode == "valid" and k > n:
                raise ProbatumError(f"the kernel {kernel.shape} does not fit into the image {image.shape}")
            cut.append(slice((k - 1) // 2, (k - 1) // 2 + n) if mode == "same" else slice(k - 1, n))
        return full[tuple(cut)]

    def __repr__(self) -> str:
        if isinstance(self.carrier, Stream):
            shown = [(i, w) for i, w in enumerate(self.coefficients(8)) if w != self.semiring.zero]
            return _show([(_power("x", i), w) for i, w in shown], self.semiring, more=self.data.known is None)
        if isinstance(self.carrier, Monomials):
            listed = list(self.items())
            names = self.carrier.names
            return _show(
                [(" ".join(filter(None, map(_power, names, index))), w) for index, w in listed[:24]],
                self.semiring,
                len(listed) > 24,
            )
        return f"<Series {self.plan()}>"


def _power(name: str, exponent: int) -> str:
    return "" if exponent == 0 else name if exponent == 1 else f"{name}^{exponent}"


def _show(terms: list[tuple[str, Any]], semiring: Semiring, more: bool) -> str:
    parts = [f"{weight}" if not text else text if weight == semiring.one else f"{weight} {text}" for text, weight in terms]
    return " + ".join([*(parts or [str(semiring.zero)]), *(["..."] if more else [])])


def regex(
    pattern: str,
    semiring: Semiring = BOOL,
    *,
    rules: Mapping[str, "str | Series"] | None = None,
    alphabet: Iterable[Hashable] | None = None,
) -> Series:
    """The weighted language of a pattern (notation: `probatum.algebra.patterns`); it describes whole words.

    Args:
        pattern: as for `re`, with `(?&name)` for a rule and `(?=0.5)` for a weight.
        semiring: BOOL matches, NAT counts, MINPLUS finds the cheapest, PROB sums, STRINGS or PARSES translate, and so
            on.
        rules: named patterns, which may refer to each other and to themselves behind at least one symbol.
        alphabet: closed set of symbols; words with others are then an error.
    """
    terms: dict[str, Term] = {}
    for name, body in (rules or {}).items():
        if isinstance(body, Series):
            inner = body._words("a rule")
            terms.update(inner.rules)
            terms[name] = inner.term
        else:
            terms[name] = parse_pattern(body)
    carrier = Words(alphabet)
    language = carrier.language(semiring, parse_pattern(pattern), terms)
    language.automaton  # noqa: B018  undefined rules, left recursion and diverging stars are told now
    return Series(carrier, semiring, language)


def grammar(text: str, semiring: Semiring = BOOL, *, start: str | None = None, alphabet: Iterable[Hashable] | None = None) -> Series:
    """The weighted language of a grammar of named rules (notation: `probatum.algebra.patterns`).

    Args:
        text: one rule a line, `name = body`.
        start: where words begin; default: the first rule.
    """
    rules = parse_grammar(text)
    start = next(iter(rules)) if start is None else start
    if start not in rules:
        raise ProbatumError(f"start {start!r} is not a rule: {did_you_mean(start, rules)}")
    carrier = Words(alphabet)
    language = carrier.language(semiring, reference(start), rules)
    language.automaton  # noqa: B018
    return Series(carrier, semiring, language)


def polynomial(source: str | Sequence[Any] | Mapping[Any, Any], semiring: Semiring = INT, names: Sequence[str] | None = None) -> Series:
    """A polynomial over Monomials.

    Args:
        source: text ("x^2 + 3*x*y"), coefficients of one variable (constant first), or {exponents: coefficient}.
        names: variables; default: those of the text in order, or x.
    """
    if isinstance(source, str):
        found, tree = parse_polynomial(source)
        names = tuple(names) if names is not None else found or ("x",)
        carrier = Monomials(names)

        def leaf(what: str | Fraction) -> Series:
            if isinstance(what, str):
                return Series(carrier, semiring, carrier.from_items(semiring, [(what, semiring.one)]))
            number: Any = what if semiring.name == "RAT" else int(what) if what.denominator == 1 else float(what)
            return Series(carrier, semiring, carrier.from_items(semiring, [(carrier.unit(), number)]))

        return build_polynomial(tree, leaf)
    names = tuple(names) if names is not None else ("x",)
    items = source.items() if isinstance(source, Mapping) else [((i,), weight) for i, weight in enumerate(source)]
    return Series(Monomials(names), semiring, Monomials(names).from_items(semiring, items))


def power_series(source: Sequence[Any] | Callable[[int], Any], semiring: Semiring = RAT) -> Series:
    """A lazy power series: its first coefficients (the rest zero), or n -> coefficient."""
    if callable(source):
        return Series(Stream(), semiring, Coefficients(semiring, lambda n: semiring.element(source(n))))
    return Series.of(Stream(), semiring, source)


def fix(equations: Callable[..., Any], semiring: Semiring = RAT) -> Any:
    """Power series defined through each other: equations(s1, s2, ...) gives the right-hand sides; returns s1, s2, ...

    Raises:
        ProbatumError: a coefficient that depends on itself (when it is asked for), or a wrong number of right-hand
            sides.
    """
    count = len(inspect.signature(equations).parameters)
    unknown = [Series(Stream(), semiring, Coefficients(semiring, lambda n: None)) for _ in range(count)]
    right = equations(*unknown)
    right = (right,) if isinstance(right, Series) or not isinstance(right, (tuple, list)) else right
    if len(right) != count:
        raise ProbatumError(f"equations take {count} series and must give as many, got {len(right)}")
    for series, side in zip(unknown, right, strict=True):
        data = series._other(side).data
        series.data.make = data.__getitem__
    return unknown[0] if count == 1 else tuple(unknown)


def image_filter(
    kernel: str | Sequence[Sequence[Any]] | np.ndarray,
    semiring: Semiring = REAL,
    *,
    size: int = 3,
    sigma: float | None = None,
) -> Series:
    """A kernel as a Dense series of two dimensions; `.apply(image)` filters, `*` composes kernels.

    Args:
        kernel: array, or one of identity, box, gaussian, sharpen, edge, sobel_x, sobel_y.
        semiring: REAL; MAXPLUS and MINPLUS give dilation and erosion-like envelopes.
        size: odd width of box and gaussian. sigma: of gaussian, in pixels; default size / 6.
    """
    if isinstance(kernel, str):
        if size < 1 or size % 2 == 0:
            raise ProbatumError(f"size must be odd and at least 1, got {size}")
        if sigma is not None and not 0 < sigma < math.inf:
            raise ProbatumError(f"sigma must be positive, got {sigma}")
        ramp = np.arange(size) - size // 2
        bell = np.exp(-0.5 * (ramp / (sigma or size / 6)) ** 2)
        shipped = {
            "identity": np.ones((1, 1)),
            "box": np.full((size, size), 1 / size**2),
            "gaussian": np.outer(bell, bell) / bell.sum() ** 2,
            "sharpen": np.array([[0, -1, 0], [-1, 5, -1], [0, -1, 0]], float),
            "edge": np.array([[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]], float),
            "sobel_x": np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]], float),
            "sobel_y": np.array([[1, 2, 1], [0, 0, 0], [-1, -2, -1]], float),
        }
        if kernel not in shipped:
            raise ProbatumError(f"unknown kernel {kernel!r}: {did_you_mean(kernel, shipped)}")
        kernel = shipped[kernel]
    return Series.of(Dense(2), semiring, kernel)
