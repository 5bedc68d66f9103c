"""Counting what a query method asks, and what a pair of queries can gain."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from probatum.errors import ProbatumError

__all__ = ["Gain", "Queries", "gain"]


class Queries:
    """Wraps a callable on a batch: counts calls and rows, and stops at a budget.

    Args:
        function: called with what this is called with; its first argument has a length (the rows).
        budget: rows allowed; None counts only. A call that would exceed it raises before asking.
    """

    def __init__(self, function: Callable[..., Any], budget: int | None = None) -> None:
        self.function, self.budget, self.calls, self.rows = function, budget, 0, 0

    def __call__(self, batch: Any, *args: Any, **options: Any) -> Any:
        rows = len(batch)
        if self.budget is not None and self.rows + rows > self.budget:
            raise ProbatumError(f"the budget of {self.budget} queries is spent: {self.rows} asked, {rows} more wanted")
        self.calls, self.rows = self.calls + 1, self.rows + rows
        return self.function(batch, *args, **options)


@dataclass(frozen=True)
class Gain:
    """|g|^2 / (2 trace(H)) of some coordinates: the best expected fall of the loss a pair, with its standard error."""

    value: float
    standard_error: float
    squared_gradient: float
    trace: float


def gain(optimizers: Mapping[str, Any], closure: Callable[[], Any], pairs: int = 64) -> dict[str, Gain]:
    """The figure of merit of several choices of coordinates, without training.

    Args:
        optimizers: name -> a `ZerothOrder` over the same weights, each with its own mask or selection; none is stepped.
        closure: the loss of one batch.
    Returns:
        By name; the error is that of a ratio of means (delta method).
    """
    found = {}
    for name, optimizer in optimizers.items():
        squares, curves = optimizer.probe(closure, pairs)
        a, b = _mean(squares), _mean(curves)
        if b <= 0:
            raise ProbatumError(f"trace(H) of {name!r} is {b:.3g} from {pairs} pairs: take more pairs or a larger eps")
        residual = [(x - a / b * y) for x, y in zip(squares, curves, strict=True)]
        error = math.sqrt(sum(r * r for r in residual) / (pairs * (pairs - 1))) / (2 * b)
        found[name] = Gain(a / (2 * b), error, a, b)
    return found


def _mean(values: list[float] | Tensor) -> float:
    return math.fsum(values) / len(values)
