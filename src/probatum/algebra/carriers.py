"""What a carrier is: the monoid that a series is indexed by, and how its functions to a semiring are stored and
multiplied."""

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any

from probatum.algebra.semirings import Semiring
from probatum.errors import ProbatumError

__all__ = ["Carrier", "convolved_at"]


class Carrier:
    """A monoid (`unit`, `merge`, `split`) with a representation of series over it; `data` is that representation.

    Subclasses store data as suits the monoid and pick an evaluation by the semiring's flags. `split` is the
    specification: products are sums over the ways to split an index.
    """

    name = "carrier"

    def unit(self) -> Hashable:
        """The index of the empty word, the constant term, the origin."""
        raise NotImplementedError

    def merge(self, u: Any, v: Any) -> Any:
        """u followed by v."""
        raise NotImplementedError

    def split(self, index: Any) -> Iterator[tuple[Any, Any]]:
        """All (u, v) with merge(u, v) == index."""
        raise NotImplementedError

    def from_items(self, semiring: Semiring, items: Iterable[tuple[Any, Any]]) -> Any:
        raise NotImplementedError

    def add(self, semiring: Semiring, a: Any, b: Any) -> Any:
        raise NotImplementedError

    def multiply(self, semiring: Semiring, a: Any, b: Any) -> Any:
        raise NotImplementedError

    def pointwise(self, semiring: Semiring, a: Any, b: Any) -> Any:
        raise NotImplementedError

    def star(self, semiring: Semiring, a: Any) -> Any:
        raise NotImplementedError

    def scale(self, semiring: Semiring, weight: Any, a: Any) -> Any:
        """weight . a, from the left."""
        return self.multiply(semiring, self.from_items(semiring, [(self.unit(), weight)]), a)

    def at(self, semiring: Semiring, a: Any, index: Any) -> Any:
        raise NotImplementedError

    def items(self, semiring: Semiring, a: Any, bound: int | None) -> Iterator[tuple[Any, Any]]:
        """The non-zeros.

        Raises:
            ProbatumError: infinitely many and no bound.
        """
        raise NotImplementedError

    def over(self, semiring: Semiring, a: Any, target: Semiring, convert: Callable[[Any], Any]) -> Any:
        """The same series with each weight converted."""
        return self.from_items(target, [(index, convert(weight)) for index, weight in self.items(semiring, a, None)])

    def convert(self, semiring: Semiring, a: Any, target: "Carrier") -> Any:
        """Data of another carrier, along a homomorphism of the monoids."""
        raise ProbatumError(f"there is no homomorphism from {self} to {target} here")

    def plan(self, semiring: Semiring, a: Any) -> str:
        """Which evaluation runs and why."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return self.name

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(repr(self))


def convolved_at(carrier: Carrier, semiring: Semiring, f: Callable[[Any], Any], g: Callable[[Any], Any], index: Any) -> Any:
    """(f * g)(w) = sum over u, v with uv = w of f(u) . g(v): the definition, which all fast products must equal."""
    return semiring.sum(semiring.mul(f(u), g(v)) for u, v in carrier.split(index))
