"""When a run may look at its verdicts: once, or on a ladder of n, 2n and 4n seeds fixed before the first.

A 95 % t looked at after each seed from 3 to 10 gives 17 % false verdicts. The ladder spends 2.5 % a side over its
three looks.

>>> Looks(5).counts, Looks(5).level(10)
((5, 10, 20), 0.008)
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from probatum.errors import ProbatumError
from probatum.evidence.judges import t_quantile

if TYPE_CHECKING:
    from probatum.evidence.conditions import Condition, Outcome
    from probatum.evidence.measurements import Table

__all__ = ["LADDER", "LEVELS", "ONE_LOOK", "Looks", "critical_value", "expected_half_width", "seeds_needed", "settle"]

ONE_LOOK = 0.025
LADDER = (0.0125, 0.008, 0.008)
LEVELS = (ONE_LOOK, *dict.fromkeys(LADDER))


@dataclass(frozen=True)
class Looks:
    """Looks at `first`, 2 `first` and 4 `first` seeds (processes, trials).

    `extended`: the first look was an ordinary one at the full 95 %, and two more were added after it was inconclusive.
    """

    first: int
    extended: bool = False

    def __post_init__(self) -> None:
        if not (isinstance(self.first, int) and self.first >= 1):
            raise ProbatumError(f"first must be a whole number of seeds, 1 or more, got {self.first!r}")

    @property
    def counts(self) -> tuple[int, int, int]:
        return (self.first, 2 * self.first, 4 * self.first)

    @property
    def note(self) -> str:
        """What the record says about its looks."""
        if self.extended:
            return "extended after looking: 3.6 % a side, not 2.5"
        return "looks at " + ", ".join(map(str, self.counts)) + " seeds, declared before the first: 2.5 % a side in all"

    def level(self, count: int) -> float:
        """One-sided level of the look at `count` seeds; other counts give measurements, no verdict."""
        if count not in self.counts:
            allowed = ", ".join(map(str, self.counts))
            raise ProbatumError(f"a look at {count} seeds is off the ladder; allowed are {allowed}")
        look = self.counts.index(count)
        return ONE_LOOK if self.extended and look == 0 else LADDER[look]

    def judge(self, conditions: Iterable["Condition"], table: "Table", seeds: Sequence[int]) -> list["Outcome"]:
        """Replay the looks at the first n, 2n, 4n of `seeds`: the claim's list as far as it was run, itself a look."""
        self.level(len(seeds))
        conditions = list(conditions)
        outcomes: list[Outcome] = []
        for count in self.counts:
            if count <= len(seeds):
                part = table.first(seeds[:count])
                outcomes = settle(outcomes, [o for c in conditions for o in c.judge(part, self.level(count))])
        return outcomes


def settle(before: Sequence["Outcome"], now: Sequence["Outcome"]) -> list["Outcome"]:
    """The outcomes of this look, but those decided at an earlier one stay as they were."""
    if before and len(before) != len(now):
        raise ProbatumError(f"looks must judge the same conditions, got {len(before)} outcomes and then {len(now)}")
    old = before or now
    return [a if a.verdict in ("holds", "fails") else b for a, b in zip(old, now, strict=True)]


def critical_value(n: int, level: float = ONE_LOOK) -> float:
    """The t that n seeds must exceed."""
    if n < 2:
        raise ProbatumError(f"n must be 2 seeds or more, got {n!r}")
    return t_quantile(level, n - 1)


def expected_half_width(sd: float, n: int, level: float = ONE_LOOK) -> float:
    """Half-width of a t interval over n seeds of standard deviation `sd` (a committed record's): for planning."""
    return critical_value(n, level) * sd / math.sqrt(n)


def seeds_needed(sd: float, distance: float, level: float = ONE_LOOK, *, most: int = 50) -> int | None:
    """Smallest N whose half-width is at most `distance` (estimate to bound); None where more than `most` are needed."""
    return next((n for n in range(2, most + 1) if expected_half_width(sd, n, level) <= distance), None)
