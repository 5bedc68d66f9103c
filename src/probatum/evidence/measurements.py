"""What a claim measured: rows of system, metric and seed, and the table that judges read.

A row's value is one number. Where the number is a mean over test items, pairs of timed segments, trials or sizes, the row keeps
them as `samples`, since a judge needs them and a mean hides them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["Measurement", "Table"]

Samples = Literal["item", "pair", "trial", "size", "group"]


@dataclass(frozen=True)
class Measurement:
    """One number of one arm in one seed.

    `samples` are the parts that `value` summarises, `of` says what they are: test items (same order in every arm and seed), timed
    pairs (seconds a call; same order in all arms of a process), trials (0/1), or responses at sizes (`at` holds the sizes).
    """

    system: str
    metric: str
    seed: int
    value: float
    unit: str = ""
    samples: tuple[float, ...] | None = None
    of: Samples | None = None
    at: tuple[float, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> "Measurement":
        fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
        return cls(**fields)


class Table:
    """Measurements by system, metric and seed; the only thing a judge sees of a run."""

    def __init__(self, rows: Iterable[Measurement] = ()) -> None:
        self.rows: list[Measurement] = []
        self._index: dict[tuple[str, str, int], Measurement] = {}
        for row in rows:
            self.add(row)

    def add(self, row: Measurement) -> None:
        """Add a row; a second row of the same system, metric and seed is an error of the claim."""
        from probatum.errors import ProbatumError

        key = (row.system, row.metric, row.seed)
        if key in self._index:
            raise ProbatumError(f"{row.metric} of {row.system!r} was recorded twice for seed {row.seed}")
        self._index[key] = row
        self.rows.append(row)

    def __iter__(self) -> Iterator[Measurement]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def seeds(self) -> list[int]:
        """Seeds in the order recorded."""
        return list(dict.fromkeys(row.seed for row in self.rows))

    @property
    def systems(self) -> list[str]:
        return list(dict.fromkeys(row.system for row in self.rows))

    @property
    def metrics(self) -> list[str]:
        return list(dict.fromkeys(row.metric for row in self.rows))

    def of(self, system: str, metric: str) -> dict[int, Measurement]:
        """Seed -> row, in the order recorded; empty where nothing was recorded."""
        return {seed: row for seed in self.seeds if (row := self._index.get((system, metric, seed))) is not None}

    def first(self, seeds: Iterable[int]) -> "Table":
        """The rows of these seeds alone (a look of the ladder)."""
        keep = set(seeds)
        return Table(row for row in self.rows if row.seed in keep)
