"""Semirings: what a weight is, how weights add along alternatives and multiply along a sequence.

A `Semiring` is a frozen record of functions that work on Python scalars and, where `dtype` is set, on numpy arrays and
torch tensors alike (recognised by type; torch is never imported here). Its flags drive dispatch: a ring goes to FFT and
BLAS, an idempotent finite one to a table automaton, everything else to loops.

>>> MINPLUS.add(3.0, 5.0), MINPLUS.mul(3.0, 5.0), BOOL.star(True)
(3.0, 8.0, True)
>>> NAT.star(1)
Traceback (most recent call last):
    ...
probatum.errors.ProbatumError: star(1) does not exist in NAT: 1 + w + w^2 + ... converges only for w = 0
>>> both = product(NAT, MINPLUS)
>>> both.add((1, 2.0), (1, 7.0)), both.mul((2, 1.0), (3, 1.0))
((2, 2.0), (6, 2.0))
>>> VITERBI.add(weighted(0.5, "left"), weighted(0.4, "right"))
((0.5, Trail('left')),)

Sources: Elliott 2019 (arXiv 1903.10677) sections 2 and 4; Goodman 1999 for the parsing semirings.
"""

import functools
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

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
    "Semiring",
    "Trail",
    "find_semiring",
    "namespace",
    "nbest",
    "polynomials",
    "product",
    "semirings",
    "weighted",
]


@dataclass(frozen=True, eq=False)
class Semiring:
    """(zero, one, add, mul): add is associative and commutative, mul associative, distributes over add, zero
    annihilates.

    Args:
        name: shown in messages and in `plan()`.
        zero, one: the units, as Python scalars.
        add, mul: binary; on scalars and, if `dtype` is set, elementwise on arrays and tensors. mul keeps the order of
            its operands.
        star: w -> 1 + w + w^2 + ...; None: exists for zero alone. It raises where the sum does not exist.
        idempotent: w + w = w.
        commutative: of mul. Pointwise products of automata and evaluation of polynomials need it.
        negate: w -> -w; given, the semiring is a ring. divide: (a, b) -> a / b; given, it is a field.
        dtype: numpy dtype of dense arrays; None means Python objects, exact.
        total: (array, axis) -> sum over one axis; derived from add where absent.
        coerce: what a user wrote -> an element; raises ValueError or TypeError.
        finite: finitely many elements, so that vectors of weights can be states of a table.
        loop: name of the compiled loop in `loops`, where there is one; `scalars` are (add, mul) on plain scalars that
            numba may compile, for a user's own numeric semiring.
    """

    name: str
    zero: Any
    one: Any
    add: Callable[[Any, Any], Any]
    mul: Callable[[Any, Any], Any]
    star: Callable[[Any], Any] = None  # type: ignore[assignment]
    idempotent: bool = False
    commutative: bool = True
    negate: Callable[[Any], Any] | None = None
    divide: Callable[[Any, Any], Any] | None = None
    dtype: str | None = None
    total: Callable[[Any, int], Any] = None  # type: ignore[assignment]
    coerce: Callable[[Any], Any] = lambda value: value
    finite: bool = False
    loop: str | None = None
    scalars: tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]] | None = None
    made_by: tuple[Any, ...] | None = None

    def __post_init__(self) -> None:
        if self.star is None:
            object.__setattr__(self, "star", _star_of_zero(self))
        if self.total is None:
            object.__setattr__(self, "total", functools.partial(_halving_total, self))

    @property
    def ring(self) -> bool:
        """Additive inverses exist."""
        return self.negate is not None

    def element(self, value: Any) -> Any:
        """`value` as an element of this semiring.

        Raises:
            ProbatumError: it is not one.
        """
        try:
            return self.coerce(value)
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise ProbatumError(f"{value!r} is not a weight of {self.name}: {error}") from None

    def sum(self, values: Iterable[Any]) -> Any:
        """Of any number of elements, left to right; zero for none."""
        return functools.reduce(self.add, values, self.zero)

    def prod(self, values: Iterable[Any]) -> Any:
        """Of any number of elements, in their order; one for none."""
        return functools.reduce(self.mul, values, self.one)

    def power(self, value: Any, exponent: int) -> Any:
        """value to a natural exponent, by squaring."""
        result = self.one
        while exponent:
            if exponent & 1:
                result = self.mul(result, value)
            value = self.mul(value, value)
            exponent >>= 1
        return result

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self) -> Any:
        if self.made_by is not None:
            return self.made_by[0], self.made_by[1:]
        if semirings().get(self.name) is self:
            return find_semiring, (self.name,)
        return super().__reduce__()


def namespace(*values: Any) -> Any:
    """torch if one of the values is a tensor, else numpy. Never imports torch."""
    torch = sys.modules.get("torch")
    if torch is not None and any(isinstance(value, torch.Tensor) for value in values):
        return torch
    return np


def _no_star(semiring: str, value: Any, where: str) -> ProbatumError:
    return ProbatumError(f"star({value!r}) does not exist in {semiring}: 1 + w + w^2 + ... converges only for {where}")


def _star_of_zero(semiring: Semiring) -> Callable[[Any], Any]:
    def star(value: Any) -> Any:
        if value == semiring.zero:
            return semiring.one
        raise _no_star(semiring.name, value, f"w = {semiring.zero!r}")

    return star


def _star_if(name: str, where: str, exists: Callable[[Any], Any], limit: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A star that also works on arrays: all entries must satisfy `exists`."""

    def star(value: Any) -> Any:
        holds = exists(value)
        if not (bool(holds) if isinstance(holds, (bool, np.bool_)) else bool(holds.all())):
            raise _no_star(name, value, where)
        return limit(value)

    return star


def _halving_total(semiring: Semiring, array: Any, axis: int) -> Any:
    """Sum over one axis by halving: log2(n) vectorised additions; order kept, so any monoid would do."""
    xp = namespace(array)
    array = xp.moveaxis(array, axis, 0)
    if not len(array):
        return xp.zeros_like(array.sum(0)) + semiring.zero if semiring.dtype else np.full(array.shape[1:], semiring.zero, dtype=object)
    add = semiring.add if semiring.dtype else np.frompyfunc(semiring.add, 2, 1)
    while len(array) > 1:
        even = len(array) // 2 * 2
        rest = array[even:]
        array = add(array[0:even:2], array[1:even:2])
        if len(rest):
            array = xp.concatenate([array, rest])
    return array[0]


def _both(xp: Any, a: Any, b: Any) -> tuple[Any, Any]:
    """Two operands as tensors of one dtype and device, if the namespace is torch."""
    if xp is np:
        return a, b
    tensor = a if isinstance(a, xp.Tensor) else b
    return tuple(x if isinstance(x, xp.Tensor) else xp.as_tensor(x, dtype=tensor.dtype, device=tensor.device) for x in (a, b))  # type: ignore[return-value]


def _lesser(a: Any, b: Any) -> Any:
    if isinstance(a, (float, int)) and isinstance(b, (float, int)):
        return a if a <= b else b
    xp = namespace(a, b)
    return xp.minimum(*_both(xp, a, b))


def _greater(a: Any, b: Any) -> Any:
    if isinstance(a, (float, int)) and isinstance(b, (float, int)):
        return a if a >= b else b
    xp = namespace(a, b)
    return xp.maximum(*_both(xp, a, b))


def _log_add(a: Any, b: Any) -> Any:
    if isinstance(a, (float, int)) and isinstance(b, (float, int)):
        if a < b:
            a, b = b, a
        return a if b == -math.inf else a + math.log1p(math.exp(b - a))
    xp = namespace(a, b)
    if xp is np:
        return np.logaddexp(a, b)
    a, b = xp.broadcast_tensors(*_both(xp, a, b))
    return _log_total(xp.stack([a, b]), 0)


def _log_total(array: Any, axis: int) -> Any:
    """logsumexp; an all -inf slice gives -inf and, in torch, a zero gradient instead of nan."""
    xp = namespace(array)
    top = array.max(axis=axis, keepdims=True) if xp is np else array.detach().amax(axis, keepdim=True)
    top = xp.where(xp.isfinite(top), top, xp.zeros_like(top))
    total = xp.exp(array - top).sum(axis)
    empty = total == 0
    safe = xp.log(xp.where(empty, xp.ones_like(total), total)) + top.squeeze(axis)
    return xp.where(empty, xp.full_like(safe, -math.inf), safe)


def _add(a: Any, b: Any) -> Any:
    return a + b


def _mul(a: Any, b: Any) -> Any:
    return a * b


def _sum(array: Any, axis: int) -> Any:
    return array.sum(axis)


def _as_bool(value: Any) -> bool:
    if isinstance(value, (bool, int, float, np.bool_, np.number)):
        return bool(value)
    raise TypeError("want a truth value")


def _as_int(value: Any) -> int:
    if isinstance(value, str) or value != int(value):
        raise ValueError("want an integer")
    return int(value)


def _as_nat(value: Any) -> int:
    if _as_int(value) < 0:
        raise ValueError("want an integer of at least 0")
    return int(value)


def _as_real(value: Any) -> float:
    if isinstance(value, str):
        raise TypeError("want a number")
    if math.isnan(value):
        raise ValueError("nan is not a weight")
    return float(value)


def _as_share(value: Any) -> float:
    if _as_real(value) < 0:
        raise ValueError("want a number of at least 0")
    return float(value)


def _as_rational(value: Any) -> Fraction:
    if isinstance(value, str):
        raise TypeError("want a number")
    if hasattr(value, "p") and hasattr(value, "q"):  # flint's fmpq
        return Fraction(int(value.p), int(value.q))
    return Fraction(value)


def _geometric(w: Any) -> Any:
    return 1 / (1 - w)


def _one_like(value: float) -> Callable[[Any], Any]:
    def constant(w: Any) -> Any:
        return value if isinstance(w, (float, int)) else namespace(w).full_like(w, value)

    return constant


def _log_star(w: Any) -> Any:
    if isinstance(w, (float, int)):
        return -math.log1p(-math.exp(w))
    xp = namespace(w)
    return -xp.log1p(-xp.exp(w))


def _all_true(w: Any) -> Any:
    return True if isinstance(w, (bool, np.bool_)) else w | True


BOOL = Semiring(
    "BOOL",
    False,
    True,
    lambda a, b: a | b,
    lambda a, b: a & b,
    _all_true,
    idempotent=True,
    dtype="bool",
    total=lambda array, axis: array.any(axis),
    coerce=_as_bool,
    finite=True,
    loop="bool",
)
NAT = Semiring("NAT", 0, 1, _add, _mul, total=_sum, coerce=_as_nat, loop="nat")
INT = Semiring("INT", 0, 1, _add, _mul, negate=lambda a: -a, total=_sum, coerce=_as_int, loop="int")
RAT = Semiring(
    "RAT",
    Fraction(0),
    Fraction(1),
    _add,
    _mul,
    _star_if("RAT", "|w| < 1", lambda w: abs(w) < 1, _geometric),
    negate=lambda a: -a,
    divide=lambda a, b: a / b,
    total=_sum,
    coerce=_as_rational,
)
REAL = Semiring(
    "REAL",
    0.0,
    1.0,
    _add,
    _mul,
    _star_if("REAL", "|w| < 1", lambda w: abs(w) < 1, _geometric),
    negate=lambda a: -a,
    divide=lambda a, b: a / b,
    dtype="float64",
    total=_sum,
    coerce=_as_real,
    loop="real",
)
COMPLEX = Semiring(
    "COMPLEX",
    0j,
    1 + 0j,
    _add,
    _mul,
    _star_if("COMPLEX", "|w| < 1", lambda w: abs(w) < 1, _geometric),
    negate=lambda a: -a,
    divide=lambda a, b: a / b,
    dtype="complex128",
    total=_sum,
    coerce=complex,
)
PROB = Semiring(
    "PROB",
    0.0,
    1.0,
    _add,
    _mul,
    _star_if("PROB", "0 <= w < 1", lambda w: (w >= 0) & (w < 1), _geometric),
    dtype="float64",
    total=_sum,
    coerce=_as_share,
    loop="real",
)
LOG = Semiring(
    "LOG",
    -math.inf,
    0.0,
    _log_add,
    _add,
    _star_if("LOG", "w < 0", lambda w: w < 0, _log_star),
    dtype="float64",
    total=_log_total,
    coerce=_as_real,
    loop="log",
)
MINPLUS = Semiring(
    "MINPLUS",
    math.inf,
    0.0,
    _lesser,
    _add,
    _star_if("MINPLUS", "w >= 0", lambda w: w >= 0, _one_like(0.0)),
    idempotent=True,
    dtype="float64",
    coerce=_as_real,
    loop="minplus",
    total=lambda array, axis: array.min(axis) if namespace(array) is np else array.amin(axis),
)
MAXPLUS = Semiring(
    "MAXPLUS",
    -math.inf,
    0.0,
    _greater,
    _add,
    _star_if("MAXPLUS", "w <= 0", lambda w: w <= 0, _one_like(0.0)),
    idempotent=True,
    dtype="float64",
    coerce=_as_real,
    loop="maxplus",
    total=lambda array, axis: array.max(axis) if namespace(array) is np else array.amax(axis),
)
MAXTIMES = Semiring(
    "MAXTIMES",
    0.0,
    1.0,
    _greater,
    _mul,
    _star_if("MAXTIMES", "0 <= w <= 1", lambda w: (w >= 0) & (w <= 1), _one_like(1.0)),
    idempotent=True,
    dtype="float64",
    coerce=_as_share,
    loop="maxtimes",
    total=lambda array, axis: array.max(axis) if namespace(array) is np else array.amax(axis),
)


def _as_strings(value: Any) -> frozenset[str]:
    if isinstance(value, str):
        return frozenset({value})
    if isinstance(value, (bool, int, float)):  # a number in a pattern: present or absent
        return frozenset({""}) if value else frozenset()
    if not all(isinstance(word, str) for word in value):
        raise TypeError("want strings")
    return frozenset(value)


def _strings_star(value: frozenset[str]) -> frozenset[str]:
    if value <= {""}:
        return frozenset({""})
    raise _no_star("STRINGS", set(value), "sets of the empty string")


STRINGS = Semiring(
    "STRINGS",
    frozenset(),
    frozenset({""}),
    lambda a, b: a | b,
    lambda a, b: frozenset(u + v for u in a for v in b),
    _strings_star,
    idempotent=True,
    commutative=False,
    coerce=_as_strings,
)


class Trail:
    """A sequence of labels with concatenation in O(1): the back-pointers of a best path. Iterate it to read the labels.

    Trails are ordered by length, then by labels: an order that concatenation on either side keeps, so that ties between
    equal weights break the same way in whatever order sums are taken.
    """

    __slots__ = ("_labels", "_left", "_right", "length")

    def __init__(self, *labels: Any) -> None:
        self._labels: tuple[Any, ...] | None = labels
        self._left: Trail | None = None
        self._right: Trail | None = None
        self.length = len(labels)

    def __add__(self, other: "Trail") -> "Trail":
        if not other.length:
            return self
        if not self.length:
            return other
        joined = Trail()
        joined._labels, joined._left, joined._right, joined.length = None, self, other, self.length + other.length
        return joined

    @property
    def labels(self) -> tuple[Any, ...]:
        if self._labels is None:
            found: list[Any] = []
            stack: list[Trail] = [self]
            while stack:
                trail = stack.pop()
                if trail._labels is not None:
                    found.extend(trail._labels)
                else:
                    stack += [trail._right, trail._left]  # type: ignore[list-item]
            self._labels, self._left, self._right = tuple(found), None, None
        return self._labels

    def _key(self) -> tuple[Any, ...]:
        return (self.length, *map(_order, self.labels))

    def __iter__(self) -> Iterator[Any]:
        return iter(self.labels)

    def __len__(self) -> int:
        return self.length

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Trail):
            return NotImplemented
        return self is other or (self.length == other.length and self.labels == other.labels)

    def __lt__(self, other: "Trail") -> bool:
        return self.length < other.length if self.length != other.length else self._key() < other._key()

    def __hash__(self) -> int:
        return hash(self.labels)

    def __repr__(self) -> str:
        return f"Trail({', '.join(map(repr, self.labels))})"


def _order(label: Any) -> tuple[str, Any]:
    """Labels of mixed types compare by type name first."""
    return type(label).__name__, label if isinstance(label, (str, int, float)) else repr(label)


def weighted(weight: float, *labels: Any) -> tuple[tuple[float, Trail], ...]:
    """An element of VITERBI or of `nbest`: one way of this weight that carries these labels."""
    return ((weight, Trail(*labels)),)


@functools.cache
def nbest(n: int, base: Semiring = MAXTIMES) -> Semiring:
    """The n best ways with their back-pointers: elements are tuples of (weight, Trail), best first, one entry a trail.

    Args:
        n: how many ways are kept, at least 1.
        base: MAXTIMES (probabilities), MAXPLUS (log probabilities, gains) or MINPLUS (costs).
    Raises:
        ProbatumError: n below 1, or a base that has no best.
    """
    if n < 1:
        raise ProbatumError(f"n must be at least 1, got {n}")
    sign = {"MAXTIMES": -1, "MAXPLUS": -1, "MINPLUS": 1}.get(base.name)
    if sign is None:
        raise ProbatumError(f"base must be MAXTIMES, MAXPLUS or MINPLUS, got {base.name}")

    def key(way: tuple[float, Trail]) -> tuple[float, Trail]:
        return sign * way[0], way[1]

    def keep(ways: list[tuple[float, Trail]]) -> tuple[tuple[float, Trail], ...]:
        if n == 1:
            return (min(ways, key=key),) if ways else ()
        kept: dict[Trail, tuple[float, Trail]] = {}
        for way in sorted(ways, key=key):
            if kept.setdefault(way[1], way) is way and len(kept) == n:
                break
        return tuple(kept.values())

    def add(a: tuple, b: tuple) -> tuple:
        return keep([*a, *b]) if a and b else a or b

    def mul(a: tuple, b: tuple) -> tuple:
        if len(a) == 1 == len(b):
            weight = base.mul(a[0][0], b[0][0])
            return () if weight == base.zero else ((weight, a[0][1] + b[0][1]),)
        ways = [(base.mul(u, v), s + t) for u, s in a for v, t in b]
        return keep([way for way in ways if way[0] != base.zero])

    def coerce(value: Any) -> tuple:
        if isinstance(value, tuple):
            if not all(len(way) == 2 and isinstance(way[1], Trail) for way in value):
                raise TypeError("want weighted(weight, *labels)")
            return value
        weight = base.coerce(value)
        return () if weight == base.zero else weighted(weight)

    def star(value: tuple) -> tuple:
        for weight, trail in value:
            base.star(weight)  # raises where a loop improves for ever
            if n > 1 and (len(trail) or weight != base.one):
                raise _no_star(f"NBEST({n}, {base.name})", value, "ways of weight one without labels")
        return weighted(base.one)

    name = "VITERBI" if n == 1 and base is MAXTIMES else f"NBEST({n}, {base.name})"
    return Semiring(
        name,
        (),
        weighted(base.one),
        add,
        mul,
        star,
        idempotent=True,
        commutative=False,
        coerce=coerce,
        made_by=(nbest, n, base),
    )


VITERBI = nbest(1, MAXTIMES)


@functools.cache
def product(*parts: Semiring) -> Semiring:
    """Several semirings side by side: elements are tuples, everything is componentwise (one pass, several answers)."""
    if len(parts) < 2:
        raise ProbatumError(f"product takes at least two semirings, got {len(parts)}")

    def each(operation: str) -> Callable[..., tuple]:
        functions = [getattr(part, operation) for part in parts]
        return lambda *operands: tuple(f(*column) for f, *column in zip(functions, *operands, strict=True))

    def coerce(value: Any) -> tuple:
        if isinstance(value, (bool, int, float)):  # a number in a pattern means the same in all parts
            value = (value,) * len(parts)
        if isinstance(value, str) or len(value) != len(parts):
            raise ValueError(f"want {len(parts)} components")
        return tuple(part.coerce(x) for part, x in zip(parts, value, strict=True))

    return Semiring(
        f"product({', '.join(part.name for part in parts)})",
        tuple(part.zero for part in parts),
        tuple(part.one for part in parts),
        each("add"),
        each("mul"),
        each("star"),
        idempotent=all(part.idempotent for part in parts),
        commutative=all(part.commutative for part in parts),
        negate=each("negate") if all(part.ring for part in parts) else None,
        coerce=coerce,
        finite=all(part.finite for part in parts),
        made_by=(product, *parts),
    )


PARSES = product(NAT, STRINGS)


@functools.cache
def polynomials(base: Semiring) -> Semiring:
    """Polynomials in one variable over another semiring: tuples of coefficients, constant first, no zero at the end.

    A weight (0, 1) counts an event by the exponent while the base does its own work (nesting gives several variables).
    """

    def trim(values: list) -> tuple:
        while values and values[-1] == base.zero:
            values.pop()
        return tuple(values)

    def add(a: tuple, b: tuple) -> tuple:
        if len(a) < len(b):
            return trim([*map(base.add, a, b), *b[len(a) :]])
        return trim([*map(base.add, a, b), *a[len(b) :]])

    def mul(a: tuple, b: tuple) -> tuple:
        if not a or not b:
            return ()
        out = [base.zero] * (len(a) + len(b) - 1)
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                out[i + j] = base.add(out[i + j], base.mul(x, y))
        return trim(out)

    def star(a: tuple) -> tuple:
        if len(a) > 1:
            raise _no_star(f"polynomials({base.name})", a, "constants whose star exists; use Stream for power series")
        return trim([base.star(a[0] if a else base.zero)])

    def coerce(value: Any) -> tuple:
        if isinstance(value, (bool, int, float, Fraction)):
            value = (value,)
        return trim([base.coerce(x) for x in value])

    return Semiring(
        f"polynomials({base.name})",
        (),
        trim([base.one]),
        add,
        mul,
        star,
        idempotent=base.idempotent,
        commutative=base.commutative,
        negate=None if base.negate is None else lambda a: tuple(map(base.negate, a)),  # type: ignore[arg-type]
        coerce=coerce,
        made_by=(polynomials, base),
    )


@functools.cache
def semirings() -> dict[str, Semiring]:
    """The shipped instances by name."""
    shipped = (BOOL, NAT, INT, RAT, REAL, COMPLEX, PROB, LOG, MINPLUS, MAXPLUS, MAXTIMES, STRINGS, VITERBI)
    return {semiring.name: semiring for semiring in shipped} | {"PARSES": PARSES}


def find_semiring(name: str) -> Semiring:
    """The shipped semiring of this name, in any case; `min-plus` and `minplus` are the same."""
    key = name.replace("-", "").replace("_", "").upper()
    if key not in semirings():
        raise ProbatumError(f"unknown semiring {name!r}: {did_you_mean(key.lower(), map(str.lower, semirings()))}")
    return semirings()[key]
