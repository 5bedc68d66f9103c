"""Monoids, and one scan in three modes that give the same result: a loop, a tree, chunks with a carry.

An element is an array or tensor with one axis of positions, or a tuple of such leaves (the state of an affine map, of a
softmax), or a plain list of Python objects. `combine(earlier, later)` works on whole slices of positions at once.
Autograd goes through all modes.

>>> import numpy as np
>>> a, b = np.array([0.5, 0.5, 0.5]), np.array([1.0, 2.0, 3.0])        # h <- a h + b, three steps
>>> scan(AFFINE, (a, b))[1].tolist()
[1.0, 2.5, 4.25]
>>> scan(CONCATENATION, list("abc"), mode="sequential", reverse=True)
['abc', 'bc', 'c']

Sources: Blelloch 1990 (tree); Milakov and Gimelshein 2018, arXiv 1805.02867 (softmax state).
"""

import functools
import math
import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from probatum.algebra.contraction import matmul
from probatum.algebra.semirings import Semiring, namespace
from probatum.errors import ProbatumError

__all__ = [
    "ADDITION",
    "AFFINE",
    "CONCATENATION",
    "SOFTMAX",
    "Monoid",
    "fold",
    "matrices",
    "scan",
    "scan_stream",
    "under_add",
    "under_mul",
]


@dataclass(frozen=True, eq=False)
class Monoid:
    """An associative `combine(earlier, later)` with a unit.

    Args:
        name: shown in messages.
        identity: slice of positions (leaf or tuple of leaves) -> the unit in the same shapes, or a constant for lists.
        combine: on slices of positions; for lists, on single elements.
    """

    name: str
    identity: Callable[[Any], Any]
    combine: Callable[[Any, Any], Any]

    def __repr__(self) -> str:
        return self.name


def _fill(value: float) -> Callable[[Any], Any]:
    return lambda x: namespace(x).full_like(x, value)


def _affine(first: tuple, then: tuple) -> tuple:
    """x -> a x + b, elementwise a."""
    return then[0] * first[0], then[0] * first[1] + then[1]


def _softmax_identity(state: tuple) -> tuple:
    return _fill(-math.inf)(state[0]), _fill(0)(state[1]), _fill(0)(state[2])


def _softmax(first: tuple, then: tuple) -> tuple:
    """(m, d, n): running maximum, sum of exp(s - m), sum of exp(s - m) v; n may have one axis more than m and d."""
    xp = namespace(first[0])
    m = xp.maximum(first[0], then[0])
    base = xp.where(m == -math.inf, xp.zeros_like(m), m)  # a fully masked part: -inf - -inf would be nan
    p, q = xp.exp(first[0] - base), xp.exp(then[0] - base)
    extra = (...,) + (None,) * (first[2].ndim - m.ndim)
    return m, first[1] * p + then[1] * q, first[2] * p[extra] + then[2] * q[extra]


ADDITION = Monoid("addition", lambda x: 0 if not hasattr(x, "shape") else _fill(0)(x), operator.add)
CONCATENATION = Monoid("concatenation", lambda x: x[:0], operator.add)
AFFINE = Monoid("affine maps", lambda x: (_fill(1)(x[0]), _fill(0)(x[1])), _affine)
SOFTMAX = Monoid("softmax state", _softmax_identity, _softmax)


def under_add(semiring: Semiring) -> Monoid:
    """Running sums in a semiring."""
    return Monoid(f"sums in {semiring}", lambda x: _fill(semiring.zero)(x) if hasattr(x, "shape") else semiring.zero, semiring.add)


def under_mul(semiring: Semiring) -> Monoid:
    """Running products in a semiring; order kept."""
    return Monoid(
        f"products in {semiring}",
        lambda x: _fill(semiring.one)(x) if hasattr(x, "shape") else semiring.one,
        semiring.mul,
    )


def matrices(semiring: Semiring) -> Monoid:
    """Square matrices (..., N, N) over a semiring: prefix products of a word, Viterbi, CTC, chains."""

    def identity(x: Any) -> Any:
        xp = namespace(x)
        eye = xp.eye(x.shape[-1], dtype=bool) if xp is np else xp.eye(x.shape[-1], dtype=xp.bool, device=x.device)
        return xp.where(eye, _fill(semiring.one)(x), _fill(semiring.zero)(x))

    return Monoid(f"matrices over {semiring}", identity, lambda a, b: matmul(semiring, a, b))


Mode = Literal["sequential", "tree", "chunked"]


def scan(
    monoid: Monoid,
    xs: Any,
    axis: int = 0,
    mode: Mode = "tree",
    *,
    reverse: bool = False,
    exclusive: bool = False,
    chunk: int = 1024,
) -> Any:
    """Running products along one axis: y[t] = x[0] . x[1] ... x[t].

    Args:
        monoid: what combines.
        xs: leaf, tuple of leaves, or list; all leaves have the same length on `axis` (counted from the front).
        axis: of the positions; 0 for lists.
        mode: "sequential" n steps, least work; "tree" about 2 log2(n) vectorised steps, twice the work; "chunked" tree
            inside chunks and a carry between them: the memory of one chunk beyond in- and output.
        reverse: y[t] = x[t] . x[t+1] ... x[n-1]; the order of factors stays. With the forward scan: marginals of all
            positions.
        exclusive: leave x[t] itself out; the first (reversed: last) result is the unit.
        chunk: positions a chunk, for "chunked".
    Returns:
        The same form as xs.
    Raises:
        ProbatumError: unknown mode, no positions, lengths that differ, a negative axis, chunk below 1.
    """
    n = _length(xs, axis)
    if mode not in ("sequential", "tree", "chunked"):
        raise ProbatumError(f"mode must be sequential, tree or chunked, got {mode!r}")
    if chunk < 1:
        raise ProbatumError(f"chunk must be at least 1, got {chunk}")
    if reverse:  # the mirrored monoid on the mirrored sequence
        mirrored = Monoid(monoid.name, monoid.identity, lambda a, b: monoid.combine(b, a))
        return _flip(scan(mirrored, _flip(xs, axis), axis, mode, exclusive=exclusive, chunk=chunk), axis)
    combine = _over_lists(monoid.combine, xs)
    if mode == "sequential":
        out = _sequential(combine, xs, axis, n)
    elif mode == "tree":
        out = _tree(combine, xs, axis, n)
    else:
        out, carry = [], None
        for start in range(0, n, chunk):
            part = _tree(combine, _cut(xs, axis, slice(start, start + chunk)), axis, min(chunk, n - start))
            if carry is not None:
                part = combine(_repeat(carry, axis, min(chunk, n - start)), part)
            out.append(part)
            carry = _cut(part, axis, slice(-1, None))
        out = _join(out, axis)
    if exclusive:
        first = _cut(xs, axis, slice(0, 1))
        unit = [monoid.identity(first[0])] if isinstance(xs, list) else monoid.identity(first)
        out = _join([unit, _cut(out, axis, slice(0, n - 1))], axis) if n > 1 else unit
    return out


def fold(monoid: Monoid, xs: Any, axis: int = 0) -> Any:
    """The product of all positions, by a tree of log2(n) vectorised steps; the axis is dropped."""
    n = _length(xs, axis)
    combine = _over_lists(monoid.combine, xs)
    while n > 1:
        even = n // 2 * 2
        paired = combine(_cut(xs, axis, slice(0, even, 2)), _cut(xs, axis, slice(1, even, 2)))
        xs = paired if even == n else _join([paired, _cut(xs, axis, slice(even, None))], axis)
        n = n - even // 2
    return xs[0] if isinstance(xs, list) else _leaves(lambda x: x[_index(axis, 0)], xs)


def scan_stream(monoid: Monoid, chunks: Iterable[Any], axis: int = 0) -> Iterator[Any]:
    """`scan` of a sequence that arrives in chunks: yields the scanned chunks and keeps only the carry."""
    carry = None
    for xs in chunks:
        combine = _over_lists(monoid.combine, xs)
        out = scan(monoid, xs, axis)
        if carry is not None:
            out = combine(_repeat(carry, axis, _length(xs, axis)), out)
        carry = _cut(out, axis, slice(-1, None))
        yield out


def _sequential(combine: Callable, xs: Any, axis: int, n: int) -> Any:
    out = [_cut(xs, axis, slice(0, 1))]
    for t in range(1, n):
        out.append(combine(out[-1], _cut(xs, axis, slice(t, t + 1))))
    return _join(out, axis)


def _tree(combine: Callable, xs: Any, axis: int, n: int) -> Any:
    """Scan the products of pairs, then fill in the even positions: work 2n, depth 2 log2 n."""
    if n == 1:
        return xs
    even = n // 2 * 2
    pairs = combine(_cut(xs, axis, slice(0, even, 2)), _cut(xs, axis, slice(1, even, 2)))
    odd = _tree(combine, pairs, axis, n // 2)  # results at positions 1, 3, 5, ...
    first = _cut(xs, axis, slice(0, 1))
    if n == 2:
        return _join([first, odd], axis)
    later = combine(_cut(odd, axis, slice(0, (n - 1) // 2)), _cut(xs, axis, slice(2, None, 2)))  # positions 2, 4, ...
    return _weave(_join([first, later], axis), odd, axis, n)


def _length(xs: Any, axis: int) -> int:
    if isinstance(xs, list):
        lengths = {len(xs)}
    else:
        if axis < 0:
            raise ProbatumError(f"axis counts from the front (leaves may differ behind it), got {axis}")
        lengths = {x.shape[axis] for x in (xs if isinstance(xs, tuple) else (xs,))}
    if len(lengths) != 1 or lengths == {0}:
        raise ProbatumError(f"xs must have one length of at least 1 on axis {axis}, got {sorted(lengths)}")
    return lengths.pop()


def _leaves(f: Callable, *trees: Any) -> Any:
    return tuple(map(f, *trees)) if isinstance(trees[0], tuple) else f(*trees)


def _index(axis: int, what: Any) -> tuple:
    return (slice(None),) * axis + (what,)


def _cut(xs: Any, axis: int, what: slice) -> Any:
    return xs[what] if isinstance(xs, list) else _leaves(lambda x: x[_index(axis, what)], xs)


def _join(parts: list, axis: int) -> Any:
    if isinstance(parts[0], list):
        return [x for part in parts for x in part]
    if isinstance(parts[0], tuple):
        return tuple(namespace(*column).concatenate(column, axis) for column in zip(*parts, strict=True))
    return namespace(*parts).concatenate(parts, axis)


def _repeat(xs: Any, axis: int, n: int) -> Any:
    """One position, n times, without copying where the leaf can broadcast."""
    if isinstance(xs, list):
        return xs * n

    def widen(x: Any) -> Any:
        return namespace(x).broadcast_to(x, (*x.shape[:axis], n, *x.shape[axis + 1 :]))

    return _leaves(widen, xs)


def _flip(xs: Any, axis: int) -> Any:
    return xs[::-1] if isinstance(xs, list) else _leaves(lambda x: namespace(x).flip(x, (axis,)), xs)


def _weave(even: Any, odd: Any, axis: int, n: int) -> Any:
    if isinstance(even, list):
        out: list[Any] = [None] * n
        out[0::2], out[1::2] = even, odd
        return out

    def leaf(x: Any, y: Any) -> Any:
        xp, m = namespace(x, y), n // 2
        both = xp.stack([x[_index(axis, slice(0, m))], y], axis + 1).reshape(*x.shape[:axis], 2 * m, *x.shape[axis + 1 :])
        return both if n == 2 * m else xp.concatenate([both, x[_index(axis, slice(m, None))]], axis)

    return _leaves(leaf, even, odd)


def _over_lists(combine: Callable, xs: Any) -> Callable:
    return functools.partial(lambda f, a, b: list(map(f, a, b)), combine) if isinstance(xs, list) else combine
