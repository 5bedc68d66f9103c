"""Lazy power series: coefficients are made in order, once, and products are online (relaxed).

Coefficient n of a product asks only for coefficients 0..n of its factors, so a series may be defined through itself.
Blocks of the relaxed product (van der Hoeven 2002) go through flint over integers and rationals: n log^2 n operations
in all instead of n^2. Floats use direct sums in each block: an FFT would lose small coefficients beside large ones.
"""

from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from probatum.algebra.carriers import Carrier
from probatum.algebra.compiled import have_flint
from probatum.algebra.semirings import Semiring
from probatum.errors import ProbatumError

__all__ = ["Coefficients", "Stream"]


class Coefficients:
    """A memoised sequence: `make(n)` gives coefficient n and may ask for coefficients below n of anything, n of its
    operands.

    `order`: coefficients below it are known to be zero without being asked for. `known`: a finite series, all of it.
    """

    def __init__(self, semiring: Semiring, make: Callable[[int], Any], order: int = 0, known: list | None = None) -> None:
        self.semiring, self.make, self.order, self.known = semiring, make, order, known
        self.memo: list[Any] = []
        self._busy = False

    def __getitem__(self, n: int) -> Any:
        memo = self.memo
        while len(memo) <= n:  # from below, so that recursion between series stays one step deep
            if len(memo) < self.order:
                memo.append(self.semiring.zero)
                continue
            if self._busy:
                raise ProbatumError(f"coefficient {len(memo)} of a recursive series depends on itself; multiply by x or integrate first")
            self._busy = True
            try:
                value = self.make(len(memo))
            finally:
                self._busy = False
            memo.append(value)
        return memo[n]

    def upto(self, n: int) -> list[Any]:
        if n > 0:
            self[n - 1]
        return self.memo[:n]


class Stream(Carrier):
    """Power series in one variable x, or functions of a length; index n >= 0."""

    name = "Stream"

    def unit(self) -> int:
        return 0

    def merge(self, u: int, v: int) -> int:
        return u + v

    def split(self, index: int) -> Iterator[tuple[int, int]]:
        return ((i, index - i) for i in range(index + 1))

    def from_list(self, semiring: Semiring, values: list) -> Coefficients:
        values = [semiring.element(value) for value in values]
        order = next((i for i, value in enumerate(values) if value != semiring.zero), len(values))
        return Coefficients(semiring, lambda n: values[n] if n < len(values) else semiring.zero, order, values)

    def from_items(self, semiring: Semiring, items: Iterable[tuple[int, Any]]) -> Coefficients:
        listed = {int(index): weight for index, weight in items}
        return self.from_list(semiring, [listed.get(i, semiring.zero) for i in range(max(listed, default=-1) + 1)])

    def add(self, semiring: Semiring, a: Coefficients, b: Coefficients) -> Coefficients:
        return Coefficients(semiring, lambda n: semiring.add(a[n], b[n]), min(a.order, b.order))

    def multiply(self, semiring: Semiring, a: Coefficients, b: Coefficients) -> Coefficients:
        shift = a.order + b.order
        if a.known is not None and sum(value != semiring.zero for value in a.known) <= 4:
            return self._sparse(semiring, a.known, b, shift, left=True)
        if b.known is not None and sum(value != semiring.zero for value in b.known) <= 4:
            return self._sparse(semiring, b.known, a, shift, left=False)
        return Coefficients(semiring, _Relaxed(semiring, _behind(a), _behind(b), shift), shift)

    def _sparse(self, semiring: Semiring, few: list, many: Coefficients, order: int, left: bool) -> Coefficients:
        entries = [(i, value) for i, value in enumerate(few) if value != semiring.zero]

        def make(n: int) -> Any:
            return semiring.sum(
                semiring.mul(value, many[n - i]) if left else semiring.mul(many[n - i], value) for i, value in entries if i <= n
            )

        return Coefficients(semiring, make, order)

    def scale(self, semiring: Semiring, weight: Any, a: Coefficients) -> Coefficients:
        return Coefficients(semiring, lambda n: semiring.mul(weight, a[n]), a.order)

    def pointwise(self, semiring: Semiring, a: Coefficients, b: Coefficients) -> Coefficients:
        return Coefficients(semiring, lambda n: semiring.mul(a[n], b[n]), max(a.order, b.order))

    def star(self, semiring: Semiring, a: Coefficients) -> Coefficients:
        """s = star(a0) . (1 + x . (a / x) . s), which is 1 / (1 - a) in a ring."""
        constant = semiring.star(semiring.zero if a.order else a[0])
        out = Coefficients(semiring, lambda n: semiring.mul(constant, semiring.one if n == 0 else tail(n - 1)))
        tail = _Relaxed(semiring, Coefficients(semiring, lambda n: a[n + 1], max(0, a.order - 1)), out, 0)
        return out

    def divide(self, semiring: Semiring, a: Coefficients, b: Coefficients) -> Coefficients:
        """q = (a - x . q . (b / x)) / b0; over a field, or over integers with b0 = 1 or -1."""
        if semiring.negate is None:
            raise ProbatumError(f"division needs a ring, and {semiring} has no negatives")
        first = b[0]
        if semiring.divide is None and first not in (1, -1):
            raise ProbatumError(f"the divisor's constant term must be 1 or -1 over {semiring}, got {first!r}; use RAT")
        if first == semiring.zero:
            raise ProbatumError("the divisor's constant term must not be 0")
        inverse = semiring.divide(semiring.one, first) if semiring.divide else first

        def make(n: int) -> Any:
            rest = a[n] if n == 0 else semiring.add(a[n], semiring.negate(tail(n - 1)))  # type: ignore[misc]
            return semiring.mul(rest, inverse)

        out = Coefficients(semiring, make)
        tail = _Relaxed(semiring, out, Coefficients(semiring, lambda n: b[n + 1]), 0)
        return out

    def derivative(self, semiring: Semiring, a: Coefficients) -> Coefficients:
        return Coefficients(semiring, lambda n: _times(semiring, n + 1, a[n + 1]), max(0, a.order - 1))

    def integral(self, semiring: Semiring, a: Coefficients, constant: Any) -> Coefficients:
        if semiring.divide is None:
            raise ProbatumError(f"integrals divide by integers, and {semiring} cannot; use RAT, REAL or COMPLEX")

        def make(n: int) -> Any:
            return constant if n == 0 else semiring.divide(a[n - 1], semiring.element(n))  # type: ignore[misc]

        return Coefficients(semiring, make, 0 if constant != semiring.zero else a.order + 1)

    def at(self, semiring: Semiring, a: Coefficients, index: int) -> Any:
        if not isinstance(index, (int, np.integer)) or index < 0:
            raise ProbatumError(f"an index of Stream is an integer of at least 0, got {index!r}")
        return a[int(index)]

    def items(self, semiring: Semiring, a: Coefficients, bound: int | None) -> Iterator[tuple[int, Any]]:
        if bound is None and a.known is None:
            raise ProbatumError("a Stream may have infinitely many non-zeros: give items(bound), the greatest index wanted")
        last = len(a.known) - 1 if bound is None else bound  # type: ignore[arg-type]
        return ((n, a[n]) for n in range(last + 1) if a[n] != semiring.zero)

    def over(self, semiring: Semiring, a: Coefficients, target: Semiring, convert: Callable[[Any], Any]) -> Coefficients:
        return Coefficients(target, lambda n: convert(a[n]), a.order)

    def plan(self, semiring: Semiring, a: Coefficients) -> str:
        how = "flint blocks" if _exact(semiring) else "direct blocks" if semiring.dtype else "loops over elements"
        return f"Stream over {semiring}: relaxed products by {how} ({len(a.memo)} coefficients made so far)"


def _behind(a: Coefficients) -> Coefficients:
    """The series without its known leading zeros, so that a factor x makes a recursion productive."""
    return a if not a.order else Coefficients(a.semiring, lambda n: a[n + a.order])


def _times(semiring: Semiring, n: int, value: Any) -> Any:
    """n . value: value added n times."""
    if semiring.name in ("NAT", "INT", "RAT", "REAL", "COMPLEX", "PROB"):
        return n * value
    total = semiring.zero
    for bit in bin(n)[2:]:
        total = semiring.add(total, total)
        if bit == "1":
            total = semiring.add(total, value)
    return total


def _exact(semiring: Semiring) -> bool:
    return semiring.name in ("NAT", "INT", "RAT") and have_flint()


class _Relaxed:
    """Called with n = 0, 1, 2, ...: coefficient n (counted behind `shift`) of a . b, asking only for what is known by
    then.

    At step i, for each k with m . 2^k = i + 2, the blocks a[2^k - 1 : 2^(k+1) - 1] and b[(m-1) 2^k - 1 : m 2^k - 1] are
    multiplied (and, unless m = 2, the same with a and b exchanged); the product starts at coefficient i.
    """

    def __init__(self, semiring: Semiring, a: Coefficients, b: Coefficients, shift: int) -> None:
        self.semiring, self.a, self.b, self.shift = semiring, a, b, shift
        self.sums: list[Any] = []
        self.step = 0
        self.left, self.right = a.memo, b.memo
        self.rational = semiring.name == "RAT" and have_flint()
        if self.rational:  # each coefficient is brought to flint once; Fractions would take a gcd in Python at every addition
            self.left, self.right = [], []

    def __call__(self, n: int) -> Any:
        n -= self.shift
        while self.step <= n:
            i = self.step
            x, y = self.a[i], self.b[i]
            if self.rational:
                self.left.append(_to_flint(x))
                self.right.append(_to_flint(y))
            k = 0
            while (i + 2) % (1 << k) == 0 and (i + 2) >> k >= 2:
                size, m = 1 << k, (i + 2) >> k
                near, far = slice(size - 1, 2 * size - 1), slice((m - 1) * size - 1, m * size - 1)
                self._block(self.left[near], self.right[far], i)
                if m != 2:
                    self._block(self.left[far], self.right[near], i)
                k += 1
            self.step += 1
        value = self.sums[n]
        return Fraction(int(value.p), int(value.q)) if self.rational else value

    def _block(self, p: list, q: list, at: int) -> None:
        s, sums = self.semiring, self.sums
        while len(sums) < at + 2 * len(p) - 1:
            sums.append(_to_flint(s.zero) if self.rational else s.zero)
        if self.rational or (s.name in ("NAT", "INT") and len(p) >= 8 and have_flint()):
            if len(p) == 1:
                sums[at] += p[0] * q[0]
                return
            import flint

            kind: Any = flint.fmpq_poly if self.rational else flint.fmpz_poly
            for j, c in enumerate((kind(p) * kind(q)).coeffs(), at):
                sums[j] += c if self.rational else int(c)
        elif len(p) == 1:
            sums[at] = s.add(sums[at], s.mul(p[0], q[0]))
        elif s.name in ("REAL", "COMPLEX", "PROB") and len(p) >= 8:
            for j, value in enumerate(np.convolve(p, q).tolist(), at):
                sums[j] += value
        else:
            for i, x in enumerate(p, at):
                for j, y in enumerate(q, i):
                    sums[j] = s.add(sums[j], s.mul(x, y))


def _to_flint(x: Fraction) -> Any:
    import flint

    return flint.fmpq(x.numerator, x.denominator)
