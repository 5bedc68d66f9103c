"""Series over N^d as dense arrays: polynomials in one variable, signals, images, distances by number of steps.

Products by the semiring: real and complex through scipy's FFT or directly for few taps; integers and rationals exactly
through flint (Kronecker substitution for several axes); Boolean through an FFT of indicators; min-plus and its kin
through compiled loops, with merged slopes or monotone minima where an operand is convex.

>>> import numpy as np
>>> from probatum.algebra.semirings import INT, MINPLUS
>>> convolve(INT, np.array([3, 1], object), np.array([3, 1], object)).tolist()
[9, 6, 1]
>>> convolve(MINPLUS, np.array([0.0, 1.0, 4.0]), np.array([0.0, 5.0])).tolist()
[0.0, 1.0, 4.0, 9.0]
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from probatum.algebra.carriers import Carrier
from probatum.algebra.compiled import have_flint, loops_or_none, worth_compiling
from probatum.algebra.semirings import Semiring
from probatum.errors import ProbatumError

__all__ = ["Dense", "choose", "convolve"]

_FEW = 64  # taps below which the direct sum beats an FFT


class Dense(Carrier):
    """Arrays with `dims` axes; the index (0, ..., 0) is the unit and indices add. Data outside the array is zero."""

    def __init__(self, dims: int = 1) -> None:
        if dims < 1:
            raise ProbatumError(f"dims must be at least 1, got {dims}")
        self.dims = dims
        self.name = f"Dense({dims})"

    def unit(self) -> tuple[int, ...]:
        return (0,) * self.dims

    def _index(self, index: Any) -> tuple[int, ...]:
        index = index if isinstance(index, tuple) else (index,)
        if len(index) != self.dims or any(i != int(i) or i < 0 for i in index):
            raise ProbatumError(f"an index of {self} is {self.dims} integers of at least 0, got {index!r}")
        return tuple(int(i) for i in index)

    def merge(self, u: Any, v: Any) -> tuple[int, ...]:
        return tuple(a + b for a, b in zip(self._index(u), self._index(v), strict=True))

    def split(self, index: Any) -> Iterator[tuple[Any, Any]]:
        index = self._index(index)
        for u in itertools.product(*(range(i + 1) for i in index)):
            yield u, tuple(a - b for a, b in zip(index, u, strict=True))

    def array(self, semiring: Semiring, values: Any) -> np.ndarray:
        """Any nested sequence as an array of elements."""
        if semiring.dtype is None:
            raw = np.asarray(values, dtype=object)
            if raw.ndim > self.dims:  # weights that are themselves sequences
                raw = _objects(values, self.dims)
            out = np.empty(raw.shape, object)
            for where in np.ndindex(raw.shape):
                out[where] = semiring.element(raw[where])
        else:
            out = np.asarray(values)
            if out.dtype == object or out.dtype.kind in "US":
                raise ProbatumError(f"values must be numbers for {semiring}, got {out.dtype}")
            if np.isnan(out).any():
                raise ProbatumError(f"values must not be nan: it is not a weight of {semiring}")
            out = out.astype(semiring.dtype)
        if out.ndim != self.dims:
            raise ProbatumError(f"values must have {self.dims} axes for {self}, got shape {out.shape}")
        return out

    def from_items(self, semiring: Semiring, items: Iterable[tuple[Any, Any]]) -> np.ndarray:
        listed = [(self._index(index), semiring.element(weight)) for index, weight in items]
        shape = [max((index[d] for index, _ in listed), default=-1) + 1 for d in range(self.dims)]
        out = _full(semiring, shape)
        for index, weight in listed:
            out[index] = semiring.add(out[index], weight)
        return out

    def add(self, semiring: Semiring, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        out = _full(semiring, np.maximum(a.shape, b.shape))
        out[_box(a.shape)] = a
        out[_box(b.shape)] = _operation(semiring, "add")(out[_box(b.shape)], b)
        return out

    def multiply(self, semiring: Semiring, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return convolve(semiring, a, b)

    def pointwise(self, semiring: Semiring, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        box = _box(np.minimum(a.shape, b.shape))
        return _operation(semiring, "mul")(a[box], b[box])

    def star(self, semiring: Semiring, a: np.ndarray) -> np.ndarray:
        constant = a[self.unit()] if a.size else semiring.zero
        rest = [index for index, _ in self.items(semiring, a, None) if index != (0 if self.dims == 1 else self.unit())]
        if rest:
            raise ProbatumError(f"star of this array is not finite in {semiring}: entry {rest[0]} is not zero; use to(Stream())")
        return self.from_items(semiring, [(self.unit(), semiring.star(constant))])

    def scale(self, semiring: Semiring, weight: Any, a: np.ndarray) -> np.ndarray:
        return _operation(semiring, "mul")(weight, a)

    def at(self, semiring: Semiring, a: np.ndarray, index: Any) -> Any:
        index = self._index(index)
        if any(i >= n for i, n in zip(index, a.shape, strict=True)):
            return semiring.zero
        return a[index] if semiring.dtype is None else a[index].item()

    def items(self, semiring: Semiring, a: np.ndarray, bound: int | None) -> Iterator[tuple[Any, Any]]:
        for index in np.ndindex(a.shape):
            weight = a[index] if semiring.dtype is None else a[index].item()
            if weight != semiring.zero and (bound is None or sum(index) <= bound):
                yield (index[0] if self.dims == 1 else index), weight

    def convert(self, semiring: Semiring, a: np.ndarray, target: Carrier) -> Any:
        from probatum.algebra.monomials import Monomials
        from probatum.algebra.streams import Stream

        if isinstance(target, Monomials) and len(target.names) == self.dims:
            return target.from_items(semiring, [(i if isinstance(i, tuple) else (i,), w) for i, w in self.items(semiring, a, None)])
        if isinstance(target, Stream) and self.dims == 1:
            return target.from_list(semiring, [self.at(semiring, a, i) for i in range(len(a))])
        return super().convert(semiring, a, target)

    def plan(self, semiring: Semiring, a: np.ndarray) -> str:
        how, why, _ = choose(semiring, a.shape, a.shape, a)
        return f"{self} over {semiring}, shape {a.shape}: product by {how} ({why})"


def convolve(semiring: Semiring, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The full product of two arrays of d axes; shape n + m - 1 on each axis.

    Floats are not exact beyond 2^53 through an FFT, so integers never take that way: the semiring decides, not the
    size.
    """
    if not a.size or not b.size:
        return _full(semiring, (0,) * a.ndim)
    return choose(semiring, a.shape, b.shape, a, b)[2](a, b)


def choose(semiring: Semiring, m: tuple[int, ...], n: tuple[int, ...], a: Any = None, b: Any = None) -> tuple[str, str, Callable]:
    """(method, reason, function) for a product of these shapes; the operands are looked at for convexity."""
    small, work = min(math.prod(m), math.prod(n)), math.prod(m) * math.prod(n)
    shift = functools.partial(_shifts, semiring)
    if semiring.name in ("REAL", "COMPLEX", "PROB"):
        if small < _FEW:
            return "direct sums", f"float ring, {small} taps is below {_FEW}", functools.partial(_direct, semiring)
        return "FFT", f"float ring, {small} taps", functools.partial(_fft, semiring)
    if semiring.name in ("INT", "NAT", "RAT"):
        if have_flint():
            return (
                "flint",
                "exact integers or rationals" + (", Kronecker substitution" if len(m) > 1 else ""),
                functools.partial(_flint, semiring),
            )
        return "Python numbers", "exact; python-flint is not installed", shift
    if semiring.name == "BOOL" and small >= _FEW:
        return "FFT of indicators", "Boolean: counts above one half", _boolean
    if len(m) == 1 and semiring.dtype is not None:
        if semiring.name in ("MINPLUS", "MAXPLUS") and a is not None:
            sign = 1.0 if semiring.name == "MINPLUS" else -1.0
            convex = [x is not None and len(x) > 2 and _convex(sign * x) for x in (a, a if b is None else b)]
            if any(convex) and loops_or_none() is not None and worth_compiling(small * 16):
                how = "merged slopes" if all(convex) else "monotone minima"
                return (
                    how,
                    f"{'both operands' if all(convex) else 'one operand'} convex",
                    functools.partial(_convex_product, sign, (convex[0], convex[1])),
                )
        if worth_compiling(work) and (loops := loops_or_none()) is not None:
            if semiring.loop in loops.CONVOLVE:
                return (
                    "compiled loop",
                    f"{semiring}: no faster general way is known",
                    lambda x, y: loops.CONVOLVE[semiring.loop](*map(np.ascontiguousarray, (x, y))),
                )
            if semiring.scalars is not None:
                return "compiled loop", "your scalar operations through numba", _users_loop(semiring)
    return "shifted sums", "one vectorised pass for each entry of the smaller operand", shift


def _convex(x: np.ndarray) -> bool:
    return bool(np.isfinite(x).all() and (np.diff(x, 2) >= 0).all())


def _convex_product(sign: float, convex: tuple[bool, bool], a: np.ndarray, b: np.ndarray) -> np.ndarray:
    loops = loops_or_none()
    assert loops is not None
    a, b = np.ascontiguousarray(sign * a), np.ascontiguousarray(sign * b)
    if all(convex):
        return sign * loops.convex_merge(a, b)
    return sign * (loops.smallest_with_convex(a, b) if convex[0] else loops.smallest_with_convex(b, a))


@functools.cache
def _users_loop(semiring: Semiring) -> Callable:
    loops = loops_or_none()
    assert loops is not None and semiring.scalars is not None
    return loops.convolution_of(*semiring.scalars, semiring.zero)


def _full(semiring: Semiring, shape: Any) -> np.ndarray:
    shape = tuple(int(n) for n in shape)
    if semiring.dtype is not None:
        return np.full(shape, semiring.zero, semiring.dtype)
    out = np.empty(shape, object)
    for where in np.ndindex(shape):
        out[where] = semiring.zero
    return out


def _objects(values: Any, dims: int) -> np.ndarray:
    shape, level = [], values
    for _ in range(dims):
        shape.append(len(level))
        level = level[0] if len(level) else ()
    out = np.empty(tuple(shape), object)
    for where in np.ndindex(out.shape):
        out[where] = functools.reduce(lambda x, i: x[i], where, values)
    return out


def _box(shape: Any) -> tuple[slice, ...]:
    return tuple(slice(0, int(n)) for n in shape)


def _operation(semiring: Semiring, name: str) -> Callable:
    function = getattr(semiring, name)
    if semiring.dtype is not None or semiring.name in ("NAT", "INT", "RAT"):
        return function

    def elementwise(a: Any, b: Any) -> np.ndarray:
        left, right = (x if isinstance(x, np.ndarray) else _scalar(x) for x in (a, b))
        out = np.empty(np.broadcast_shapes(left.shape, right.shape), object)
        left, right = np.broadcast_to(left, out.shape), np.broadcast_to(right, out.shape)
        for where in np.ndindex(out.shape):
            out[where] = function(left[where], right[where])
        return out

    return elementwise


def _scalar(x: Any) -> np.ndarray:
    out = np.empty((), object)
    out[()] = x
    return out


def _shifts(semiring: Semiring, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """out[i + j] += a[i] . b[j], one pass over the larger operand for each entry of the smaller: any semiring, any
    axes."""
    out = _full(semiring, np.array(a.shape) + b.shape - 1)
    add, mul = _operation(semiring, "add"), _operation(semiring, "mul")
    small, big, left = (a, b, True) if a.size <= b.size else (b, a, False)
    for index in np.ndindex(small.shape):
        x = small[index]
        if semiring.dtype is not None and x == semiring.zero:
            continue
        where = tuple(slice(i, i + n) for i, n in zip(index, big.shape, strict=True))
        out[where] = add(out[where], mul(x, big) if left else mul(big, x))
    return out


def _direct(semiring: Semiring, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.convolve(a, b) if a.ndim == 1 else _shifts(semiring, a, b)


def _fft(semiring: Semiring, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    from scipy.signal import fftconvolve, oaconvolve

    out = (oaconvolve if max(a.size, b.size) > 8 * min(a.size, b.size) else fftconvolve)(a, b)
    return np.maximum(out, 0.0) if semiring.name == "PROB" else out  # rounding may leave -1e-17


def _boolean(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    from scipy.signal import fftconvolve

    return fftconvolve(a.astype(np.float64), b.astype(np.float64)) > 0.5


def _flint(semiring: Semiring, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    import flint

    shape = tuple(m + n - 1 for m, n in zip(a.shape, b.shape, strict=True))
    flat = [_spread(x, shape) for x in (a, b)]
    size = math.prod(shape)
    values: list[Any]
    if semiring.name == "RAT":
        left, right = (flint.fmpq_poly([flint.fmpq(x.numerator, x.denominator) for x in side]) for side in flat)
        values = [Fraction(int(c.p), int(c.q)) for c in (left * right).coeffs()]
    else:
        values = list(map(int, (flint.fmpz_poly(flat[0]) * flint.fmpz_poly(flat[1])).coeffs()))
    out = np.full(size, semiring.zero, object)
    out[: len(values)] = values
    return out.reshape(shape)


def _spread(x: np.ndarray, shape: tuple[int, ...]) -> list:
    """Coefficients after Kronecker's substitution: axes padded so that no product overlaps, then flattened."""
    if x.ndim == 1:
        return x.tolist()
    padded = np.zeros(shape, object)
    padded[_box(x.shape)] = x
    return padded.ravel().tolist()
