"""How many directions a step averages, as training goes on.

>>> schedule = QuerySchedule.power(end=20, epochs=160, beta=0.85, most=15)
>>> [schedule(epoch) for epoch in range(12)], round(schedule.alpha, 5)
([1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3], 0.62229)
"""

import math
from dataclasses import dataclass

from probatum.errors import ProbatumError

__all__ = ["QuerySchedule"]


@dataclass(frozen=True)
class QuerySchedule:
    """Q of an epoch e = 0, 1, ...: min(max(int(start + slope e + beta e^alpha), 1), most). Made by `constant`, `linear` or `power`."""

    most: int
    start: float = 0.0
    slope: float = 0.0
    beta: float = 0.0
    alpha: float = 1.0

    @classmethod
    def constant(cls, n: int) -> "QuerySchedule":
        """The same number always."""
        _count("n", n)
        return cls(most=n, start=n)

    @classmethod
    def linear(cls, start: int, end: int, epochs: int) -> "QuerySchedule":
        """From `start` in the first epoch to `end` in the last."""
        _count("start", start)
        _count("end", end)
        _epochs(epochs)
        # A tenth of a thousandth, so that the last epoch is not rounded below its end.
        return cls(most=max(start, end), start=start + 1e-4, slope=(end - start) / (epochs - 1))

    @classmethod
    def power(cls, end: float, epochs: int, *, beta: float = 0.85, most: int = 15) -> "QuerySchedule":
        """beta e^alpha with alpha = ln(end / beta) / ln(epochs), so that without the cap `most` it would reach `end`.

        Defaults are the paper's scripts', with end = 20 there.

        Raises:
            ProbatumError: beta not above 0, end not above beta, fewer than 2 epochs (alpha is undefined: ln 1 = 0), most below 1.
        """
        if not 0 < beta < math.inf:
            raise ProbatumError(f"beta must be above 0 and finite, got {beta!r}")
        if not beta < end < math.inf:
            raise ProbatumError(f"end must be above beta = {beta:g} and finite, got {end!r}")
        _count("most", most)
        _epochs(epochs)
        return cls(most=most, beta=beta, alpha=math.log(end / beta) / math.log(epochs))

    def __call__(self, epoch: int) -> int:
        """Directions of a step in this epoch, 1 or more."""
        if epoch < 0:
            raise ProbatumError(f"epoch must be 0 or more, got {epoch}")
        return min(max(int(self.start + self.slope * epoch + self.beta * epoch**self.alpha), 1), self.most)

    def total(self, epochs: int, steps: int = 1) -> int:
        """Directions of all steps of so many epochs of `steps` each; a direction costs two forwards."""
        return steps * sum(self(epoch) for epoch in range(epochs))


def _count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ProbatumError(f"{name} must be an integer of 1 or more, got {value!r}")


def _epochs(epochs: int) -> None:
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 2:
        raise ProbatumError(f"epochs must be an integer of 2 or more, got {epochs!r}: over one epoch nothing can grow")
