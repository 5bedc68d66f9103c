"""Conditions of a claim: what must be true of its measurements, declared before anything runs.

A condition is one number and a bound. Its kind names the evidence and so decides the judge; its text states the scope.
It `holds` or `fails` where the interval (95 %) lies on one side of the bound and is `inconclusive` where it straddles
or touches it.

>>> above("accuracy", "mezo", "linear probe", kind="items").text
'accuracy: mezo above linear probe, on items like these'
>>> faster("ours", "theirs", by=1.2).text
'seconds: ours at least 1.2 times as fast as theirs, in a fresh process of this machine'
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypedDict, Unpack, get_args

import numpy as np

from probatum.errors import ProbatumError, did_you_mean
from probatum.evidence import judges
from probatum.evidence.judges import Array, Interval
from probatum.evidence.ladder import LEVELS, ONE_LOOK, seeds_needed
from probatum.evidence.measurements import Measurement, Table

__all__ = [
    "MINIMA",
    "Condition",
    "Outcome",
    "above",
    "any_of",
    "as_good",
    "below",
    "equal",
    "exact",
    "faster",
    "product",
    "proportion",
    "ratio",
    "share_of_gain",
    "slope",
    "worst_of",
]

Kind = Literal["exact", "paired", "unpaired", "items", "timing", "proportion", "distance", "slope"]
Verdict = Literal["holds", "fails", "inconclusive"]

MINIMA: Mapping[str, Mapping[str, int]] = {
    "exact": {"seeds": 1},
    "paired": {"seeds": 3},
    "unpaired": {"seeds": 3},
    "items": {"seeds": 3, "items": 5, "items 0/1": 100},
    "statistic": {"seeds": 3, "items": 60},
    "timing": {"seeds": 3, "pairs": 9},
    "proportion": {"seeds": 1, "trials": 20},
    "distance": {"seeds": 3, "groups": 2},
    "slope": {"seeds": 3, "sizes": 4},
}
SCOPES = {
    "exact": "in these runs",
    "paired": "on these test items",
    "unpaired": "on these test items",
    "items": "on items like these",
    "timing": "in a fresh process of this machine",
    "proportion": "over independent trials",
    "distance": "against this reference set",
    "slope": "over these sizes",
}
ONE_MODEL = ("this model", "these models")
SPREAD = math.log(1.5)  # of the processes' log ratios; above it the text says that the ratio depends on the process


@dataclass(frozen=True)
class Outcome:
    """What a condition came to.

    `value`, `bound` and `interval` share one scale; `half_width`, `distance` (estimate to bound) and `sd` are on the
    judge's: log for timing, the contrast for a ratio. `n` counts seeds, processes or trials; `p` is two-sided, at the
    bound.
    """

    text: str
    kind: str
    value: float
    bound: float
    verdict: Verdict
    interval: tuple[float, float] | None = None
    p: float | None = None
    n: int = 0
    half_width: float | None = None
    distance: float | None = None
    sd: float | None = None
    details: dict[str, Any] = field(default_factory=dict)
    advice: str = ""
    direction: Literal["above", "below"] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON; numbers that are not finite become null."""
        return {name: _plain(value) for name, value in vars(self).items()}


def worst_of(verdicts: Iterable[str]) -> str:
    """error > fails > inconclusive > holds."""
    order = ("holds", "inconclusive", "fails", "error")
    found = list(verdicts)
    if not found or not set(found) <= set(order):
        raise ProbatumError(f"verdicts must be one or more of {', '.join(order)}, got {found!r}")
    return max(found, key=order.index)


class Options(TypedDict, total=False):
    """What every constructor takes beside its own arguments.

    worst: stands in for a value that is not finite or was not recorded; without it such a value is an error.
    scope: appended to the text, as "for the shipped weights"; "this model" (items) and "these models" (slope) allow one
        seed, and make it a statement about no more than that.
    on: replaces the scope of the kind in the text, as "on these 12 photos".
    trained: arms that train, so that a metric identical over all their seeds is an error (the seed is not used).
    resolution: smallest step of the metric; a paired half-width is never below it. Taken from 0/1 samples if any.
    groups: items in groups (crops of a photo): items a group if consecutive, or a label an item; averaged first.
    statistic: "kendall", "auc", "f1", "harmonic", "ap" or a function of (scores, truth) or (scores), judged on its
        pseudo-values.
    truth: the metric whose samples are the truth, recorded by the arm itself or by one other system.
    """

    worst: float
    scope: str
    on: str
    trained: str | Sequence[str]
    resolution: float
    groups: int | Sequence[Any]
    statistic: str | Callable[..., float]
    truth: str


@dataclass(frozen=True)
class _Settings:
    worst: float | None = None
    scope: str = ""
    on: str = ""
    trained: str | Sequence[str] = ()
    resolution: float = 0.0
    groups: int | Sequence[Any] | None = None
    statistic: str | Callable[..., float] | None = None
    truth: str | None = None

    def check(self, kind: str) -> None:
        if self.worst is not None:
            _number("worst", self.worst)
        if _number("resolution", self.resolution) < 0:
            raise ProbatumError(f"resolution must be 0 or more, got {self.resolution!r}")
        for name in ("statistic", "groups"):
            if getattr(self, name) is not None and kind != "items":
                raise ProbatumError(f"{name} needs kind='items', got kind={kind!r}")
        if self.statistic is not None and self.groups is not None:
            raise ProbatumError("statistic and groups cannot both be given: a set statistic has no group means")
        named = isinstance(self.statistic, str)
        if named and (self.statistic not in judges.STATISTICS or self.truth is None):
            allowed = ", ".join(judges.STATISTICS)
            got = f"{self.statistic!r} with truth={self.truth!r}"
            raise ProbatumError(f"statistic must be one of {allowed} with truth=, or a function, got {got}")


@dataclass(frozen=True)
class Condition:
    """A declared condition; `text` says it in words with its scope, `minimum` what it needs before it can be judged."""

    says: str
    kind: str

    @property
    def text(self) -> str:
        return f"{self.says}, {SCOPES[self.kind]}"

    @property
    def minimum(self) -> Mapping[str, int]:
        return MINIMA[self.kind]

    def judge(self, table: Table, level: float = ONE_LOOK) -> list[Outcome]:
        """The outcomes (one, or one a baseline) at one-sided `level`: 0.025, or the ladder's.

        Raises: ProbatumError for what is an error and not a verdict (too few seeds, an incomplete table, a score
        that is not finite without `worst`, a seed that is not used).
        """
        if level not in LEVELS:
            allowed = ", ".join(map(str, LEVELS))
            raise ProbatumError(f"level must be one declared before the run ({allowed}), got {level!r}")
        return self._outcomes(table, level, level)

    def _outcomes(self, table: Table, hold: float, fail: float) -> list[Outcome]:
        """At level `hold` for saying holds and `fail` for saying fails."""
        raise NotImplementedError


@dataclass(frozen=True)
class _Simple(Condition):
    """One number theta and a bound: theta > bound (`sign` 1) or < bound (-1)."""

    metric: str
    sign: int
    bound: float
    settings: _Settings

    @property
    def text(self) -> str:
        return self._text(SCOPES[self.kind])

    def _text(self, scope: str) -> str:
        alone = self.settings.scope in ONE_MODEL
        parts = [self.says, "" if alone else self.settings.on or scope, ("for " if alone else "") + self.settings.scope]
        return ", ".join(part for part in parts if part)

    def _decide(
        self,
        judged: Callable[[float], Interval],
        hold: float,
        fail: float,
        text: str,
        advice: Callable[[Interval], str],
        shown: Callable[[float], float] = float,
    ) -> Outcome:
        """Outcome of the intervals at both levels; `shown` maps the judge's scale to the printed one, increasing."""
        first = judged(hold)
        other = first if fail == hold else judged(fail)
        low, high = (first.low, other.high) if self.sign > 0 else (other.low, first.high)
        # Decided before `shown`: the printed scale may differ in the last bit where the interval touches the bound.
        verdict: Verdict = "inconclusive"
        if low > self.bound:
            verdict = "holds" if self.sign > 0 else "fails"
        elif high < self.bound:
            verdict = "fails" if self.sign > 0 else "holds"
        made = Outcome(
            text,
            self.kind,
            value=shown(first.value),
            bound=shown(self.bound),
            verdict=verdict,
            interval=(shown(low), shown(high)),
            p=first.p,
            n=first.n,
            half_width=first.half_width,
            distance=first.distance,
            sd=first.sd,
            direction="above" if self.sign > 0 else "below",
            details={"df": first.df, **first.details},
        )
        if verdict != "inconclusive":
            return made
        width = f"half-width {first.half_width:.3g}, bound {made.bound:.6g}"
        return replace(made, advice=f"{width}: {advice(first)}")


@dataclass(frozen=True)
class _Contrast(_Simple):
    """sum of weight x arm against a bound.

    Margin, ratio and share of a gain are all such contrasts, so that t is exact. `unit` weighs the arms whose mean the
    value is divided by when shown, `offset` is added: A / B is shown as c + (A - c B) / mean B, the ratio of the means.
    """

    arms: tuple[tuple[str, float], ...]
    strict: bool = True
    unit: tuple[float, ...] = ()
    offset: float = 0.0
    per: str | None = None

    @property
    def minimum(self) -> Mapping[str, int]:
        if self.settings.statistic is not None:
            return MINIMA["statistic"]
        found = dict(MINIMA[self.kind])
        if self.settings.scope in ONE_MODEL and self.kind in ("items", "slope"):
            found["seeds"] = 1
        return found

    def _columns(self, table: Table) -> list[Array]:
        """The arms' numbers: (S,) each, (S, I) for items."""
        names = [name for name, _ in self.arms]
        seeds = _seeds(table, self.metric, names)
        if self.kind != "unpaired":
            _enough(self, "seeds", len(seeds))
        own = self.kind == "unpaired"
        rows = {name: _rows(table, name, self.metric, seeds, self.settings.worst, own_seeds=own) for name in names}
        if self.kind == "items":
            _same_length(self, rows, seeds)
        if self.kind != "exact":
            _check_seed_used(self, rows)
        columns = [self._reduce(table, name, rows[name]) for name in names]
        if self.per is None:
            return columns
        _seeds(table, self.per, names)
        units = [_values(table, name, self.per, seeds, None) for name in names]
        if min(float(u.min()) for u in units) <= 0:
            raise ProbatumError(f"{self.per} must be above 0 in both arms of a product form")
        return [columns[0] * units[1], columns[1] * units[0]]

    def _reduce(self, table: Table, name: str, rows: list[Measurement | None]) -> Array:
        """(S,) or (S, I): what the judge takes of one arm's rows; a row that is None is scored as the worst."""
        what, worst, settings = f"{self.metric} of {name!r}", self.settings.worst, self.settings
        if self.kind != "items":
            read = {"distance": self._distance, "slope": self._slope}.get(self.kind, lambda _, row: row.value)
            values = np.array([math.nan if row is None else read(what, row) for row in rows], float)
            return _finite(values, worst, what, rows)
        size = next(len(row.samples) for row in rows if row is not None and row.samples is not None)
        matrix = np.array([[math.nan] * size if row is None else row.samples for row in rows], float)
        matrix = _finite(matrix, worst, what, rows)
        if settings.groups is not None:
            matrix = _group_means(matrix, settings.groups)
        if settings.statistic is not None:
            truths = [None if settings.truth is None else _truth(table, name, settings.truth, r, size) for r in rows]
            pairs = zip(matrix, truths, strict=True)
            matrix = np.array([judges.pseudo_values(settings.statistic, scores, truth) for scores, truth in pairs])
        return matrix

    def _distance(self, what: str, row: Measurement) -> float:
        if not row.samples:
            raise ProbatumError(
                f"{what}, seed {row.seed}: kind 'distance' needs the distances without each group as samples "
                "(judges.frechet_jackknife), since the plain distance favours the narrower arm"
            )
        return judges.group_jackknife(row.value, row.samples)

    def _slope(self, what: str, row: Measurement) -> float:
        if row.samples is None or row.at is None or len(row.samples) != len(row.at):
            raise ProbatumError(f"{what}, seed {row.seed}: a slope needs samples of 'size' and as many sizes in `at`")
        _enough(self, "sizes", len(row.at))
        response = _finite(np.array(row.samples, float), self.settings.worst, what, [row])
        return float(judges.slopes(response, row.at)[0])

    def _outcomes(self, table: Table, hold: float, fail: float) -> list[Outcome]:
        columns = self._columns(table)
        base = 1.0
        if self.unit:
            base = sum(u * float(column.mean()) for u, column in zip(self.unit, columns, strict=False))
            if base <= 0 and len(self.arms) == 2 and self.per is None:
                raise ProbatumError(
                    f"{self.says}: a ratio is of positive quantities, got {base:.6g} for {self.arms[1][0]!r}"
                )

        def shown(x: float) -> float:
            return self.offset + x / base if self.unit and base > 0 else x

        if self.kind == "exact":
            return [self._exact(self._sum(columns), shown)]
        judged, advice = self._judge(table, columns)
        return [self._decide(judged, hold, fail, self._text(self._scope(table)), advice, shown)]

    def _sum(self, columns: list[Array]) -> Array:
        return np.sum([weight * column for (_, weight), column in zip(self.arms, columns, strict=True)], axis=0)

    def _judge(
        self, table: Table, columns: list[Array]
    ) -> tuple[Callable[[float], Interval], Callable[[Interval], str]]:
        """The interval as a function of the level, and the advice where it decides nothing."""
        weights, bound = [weight for _, weight in self.arms], self.bound
        if self.kind == "items":
            d, statistic = self._sum(columns), self.settings.statistic
            zero_one = statistic is None and all(bool(np.isin(column, (0.0, 1.0)).all()) for column in columns)
            _enough(self, "items 0/1" if zero_one else "items", d.shape[1])
            binary = zero_one and all(abs(weight) == 1 for weight in weights)
            return lambda level: judges.items(d, binary=binary, bound=bound, level=level), _items_advice
        if self.kind == "unpaired":
            for (name, _), column in zip(self.arms, columns, strict=True):
                _enough(self, "seeds", len(column), repr(name))
            arms, floor = list(zip(weights, columns, strict=True)), self._floor(table, columns, None)
            return lambda level: judges.unpaired(arms, bound=bound, level=level, resolution=floor), _seeds_advice
        if self.kind == "slope" and self.settings.scope in ONE_MODEL and len(columns[0]) == 1:
            (row,) = table.of(self.arms[0][0], self.metric).values()
            if len(self.arms) != 1 or row.samples is None or row.at is None:
                raise ProbatumError(
                    f"{self.says}: {self.settings.scope!r} is judged for one system alone, without a baseline"
                )
            response, sizes = row.samples, row.at
            return lambda level: judges.ols_slope(response, sizes, bound=bound, level=level), _sizes_advice
        d = self._sum(columns)
        floor = self._floor(table, columns, d)

        def advice(found: Interval) -> str:
            close = "not with seeds: closer than the metric's resolution, use kind 'items'"
            return close if floor >= found.distance else _seeds_advice(found)

        return lambda level: judges.paired(d, bound=bound, level=level, resolution=floor), advice

    def _exact(self, d: Array, shown: Callable[[float], float]) -> Outcome:
        furthest = float(d.min() if self.sign > 0 else d.max())
        gap = self.sign * (furthest - self.bound)
        good = gap > 0 if self.strict else gap >= 0
        verdict: Verdict = "holds" if good else "fails"
        return Outcome(self._text(_runs(len(d))), "exact", shown(furthest), shown(self.bound), verdict, n=len(d))

    def _scope(self, table: Table) -> str:
        if self.kind == "items" and self.settings.groups is not None:
            return "on groups of items like these"
        n = self._item_count(table)
        return f"on these {n} items" if n and self.kind in ("paired", "unpaired") else SCOPES[self.kind]

    def _item_count(self, table: Table) -> int | None:
        for row in table.of(self.arms[0][0], self.metric).values():
            return len(row.samples) if row.samples is not None and row.of == "item" else None
        return None

    def _floor(self, table: Table, columns: list[Array], d: Array | None) -> float:
        """The metric's resolution: declared, one answer of 0/1 items, or if all differences agree the least step."""
        if self.settings.resolution:
            return self.settings.resolution
        n = self._item_count(table)
        if n and self.per is None:
            rows = [r for name, _ in self.arms for r in table.of(name, self.metric).values() if r.samples is not None]
            if all(set(r.samples or ()) <= {0.0, 1.0} for r in rows):
                return 1 / n
        if d is None or np.ptp(d) > 1e-12 * np.abs(np.concatenate(columns)).max():
            return 0.0
        steps = np.diff(np.unique(np.concatenate(columns)))
        steps = steps[steps > 1e-12 * max(float(np.abs(column).max()) for column in columns)]
        return float(steps.min()) if len(steps) else 0.0


@dataclass(frozen=True)
class _Exact(_Simple):
    """One value a seed within [low, high], or the difference of two arms."""

    arms: tuple[str, ...]
    low: float
    high: float

    def _outcomes(self, table: Table, hold: float, fail: float) -> list[Outcome]:
        seeds, worst = _seeds(table, self.metric, self.arms), self.settings.worst
        values = [_values(table, name, self.metric, seeds, worst) for name in self.arms]
        found = values[0]
        if len(self.arms) == 2:
            rows = [_rows(table, name, self.metric, seeds, worst) for name in self.arms]
            # The parts too: equal means of unequal parts are not equal.
            parts = [self._parts(a, b) for a, b in zip(*rows, strict=True)]
            found = np.concatenate([values[0] - values[1], *parts])
        out = np.maximum(self.low - found, found - self.high)
        verdict: Verdict = "holds" if out.max() <= 0 else "fails"
        furthest = float(found[out.argmax()])
        return [Outcome(self._text(_runs(len(seeds))), "exact", furthest, self.bound, verdict, n=len(seeds))]

    def _parts(self, a: Measurement | None, b: Measurement | None) -> Array:
        if a is None or b is None or a.samples is None or b.samples is None:
            return np.empty(0)
        if len(a.samples) != len(b.samples):
            got = f"{len(a.samples)} samples of {a.system!r} and {len(b.samples)} of {b.system!r}"
            raise ProbatumError(f"{self.metric}, seed {a.seed}: arms must have the same samples, got {got}")
        x, y = (
            _finite(np.array(row.samples, float), self.settings.worst, f"{self.metric} of {row.system!r}", [row])
            for row in (a, b)
        )
        return x - y


@dataclass(frozen=True)
class _Timing(_Simple):
    """time of arms[0] / time of arms[1] against a bound; a seed is a fresh process."""

    arms: tuple[str, str]

    def _outcomes(self, table: Table, hold: float, fail: float) -> list[Outcome]:
        seeds = _seeds(table, self.metric, self.arms)
        times: list[list[tuple[float, ...]]] = []
        for name in self.arms:
            samples = [
                (row.seed, row.samples or ()) for row in _rows(table, name, self.metric, seeds) if row is not None
            ]
            for seed, pairs in samples:
                _enough(self, "pairs", len(pairs), f"{name!r}, seed {seed}")
            times.append([pairs for _, pairs in samples])
        alone = len(seeds) == 1
        if not alone:
            _enough(self, "seeds", len(seeds))

        def judged(level: float) -> Interval:
            return judges.timing(*times, bound=self.bound, level=level)

        y = judged(hold).details["y_p"]
        ratios = ", ".join(f"{math.exp(v):.3g}" for v in y)
        note = f"; depends on the process: ratios {ratios}" if max(y) - min(y) > SPREAD else ""

        def advice(found: Interval) -> str:
            return "one launch decides nothing, 3 are needed" if alone else _seeds_advice(found, "processes")

        made = self._decide(judged, hold, fail, self._text(SCOPES["timing"]) + note, advice)
        if not alone:
            return [made]
        return [replace(made, interval=None, p=None, half_width=None, advice=advice(judged(hold)))]


@dataclass(frozen=True)
class _Proportion(_Simple):
    """Share of successes in the independent trials of one system, all its seeds together."""

    system: str

    def _outcomes(self, table: Table, hold: float, fail: float) -> list[Outcome]:
        seeds, what = _seeds(table, self.metric, [self.system]), f"{self.metric} of {self.system!r}"
        trials: list[float] = []
        for row in _rows(table, self.system, self.metric, seeds, self.settings.worst):
            trials += [math.nan] if row is None else (row.value,) if row.samples is None else row.samples
        found = _finite(np.array(trials, float), self.settings.worst, what, seeds)
        other = found[~np.isin(found, (0.0, 1.0))]
        if len(other):
            raise ProbatumError(f"{what}: trials must be 0 or 1, got {float(other[0])!r}")
        _enough(self, "trials", len(found))
        k, n = int(found.sum()), len(found)

        def judged(level: float) -> Interval:
            return judges.proportion(k, n, bound=self.bound, level=level)

        def advice(_: Interval) -> str:
            m = n
            while (m := m + max(1, m // 20)) <= 100_000:
                then = judges.proportion(round(k / n * m), m)
                if not then.low <= self.bound <= then.high:
                    return f"about {m} trials"
            return "not with trials"

        return [self._decide(judged, hold, fail, self._text(f"over {n} independent trials"), advice)]


@dataclass(frozen=True)
class _Each(Condition):
    """Against each of several baselines: all must hold at the level, and fail only at level / k."""

    parts: tuple[_Simple, ...]

    @property
    def text(self) -> str:
        return "; ".join(part.text for part in self.parts)

    @property
    def minimum(self) -> Mapping[str, int]:
        return self.parts[0].minimum

    def _outcomes(self, table: Table, hold: float, fail: float) -> list[Outcome]:
        return [o for part in self.parts for o in part._outcomes(table, hold, fail / len(self.parts))]


@dataclass(frozen=True)
class _Share(Condition):
    """A share of a gain, behind the condition that there is a gain."""

    gain: _Contrast
    share: _Contrast

    @property
    def text(self) -> str:
        return self.share.text

    @property
    def minimum(self) -> Mapping[str, int]:
        return self.share.minimum

    def _outcomes(self, table: Table, hold: float, fail: float) -> list[Outcome]:
        (gain,) = self.gain._outcomes(table, hold, fail)
        (share,) = self.share._outcomes(table, hold, fail)
        if gain.verdict == "holds":
            return [gain, share]
        why = f"no gain of {self.gain.arms[0][0]} is shown, so there is nothing to share"
        advice = why if gain.verdict == "fails" else f"{gain.advice}; {why}"
        return [
            replace(gain, verdict="inconclusive", advice=advice),
            replace(share, verdict="inconclusive", advice=why),
        ]


@dataclass(frozen=True)
class _AnyOf(Condition):
    """One of several holds, at level / k (Bonferroni); fails where all fail."""

    parts: tuple[Condition, ...]

    @property
    def text(self) -> str:
        return "at least one of: " + "; ".join(part.text for part in self.parts)

    @property
    def minimum(self) -> Mapping[str, int]:
        needs: dict[str, int] = {}
        for part in self.parts:
            for name, least in part.minimum.items():
                needs[name] = max(least, needs.get(name, 0))
        return needs

    def _outcomes(self, table: Table, hold: float, fail: float) -> list[Outcome]:
        k = len(self.parts)
        found = []
        for part in self.parts:
            outcomes = part._outcomes(table, hold / k, fail)
            verdict = worst_of(o.verdict for o in outcomes)
            found.append(next(o for o in outcomes if o.verdict == verdict))
        best = min(
            found, key=lambda o: (("holds", "inconclusive", "fails").index(o.verdict), 1.0 if o.p is None else o.p)
        )
        text = "at least one of: " + "; ".join(o.text for o in found)
        p = None if best.p is None else min(1.0, k * best.p)
        return [replace(best, text=text, p=p, details={**best.details, "decided_by": best.text})]


# Constructors.


def above(
    metric: str,
    system: str,
    baseline: str | float | Sequence[str],
    *,
    kind: Kind,
    margin: float = 0.0,
    **options: Unpack[Options],
) -> Condition:
    """system - baseline > margin; the baseline is a system, a number, or a list of systems (each must be beaten)."""
    return _compare(metric, system, baseline, kind, margin, 1, options)


def below(
    metric: str,
    system: str,
    baseline: str | float | Sequence[str],
    *,
    kind: Kind,
    margin: float = 0.0,
    **options: Unpack[Options],
) -> Condition:
    """system - baseline < -margin; as `above`."""
    return _compare(metric, system, baseline, kind, margin, -1, options)


def as_good(
    metric: str,
    system: str,
    baseline: str | Sequence[str],
    *,
    kind: Kind,
    within: float,
    higher_is_better: bool = True,
    **options: Unpack[Options],
) -> Condition:
    """system - baseline > -within, or < within where lower is better; `within` above 0, never taken from the data."""
    delta, sign = _number("within", within), 1 if higher_is_better else -1
    if delta <= 0:
        raise ProbatumError(f"within must be above 0 ('as good as' needs a margin fixed beforehand), got {within!r}")

    def build(name: str) -> _Simple:
        says = f"{metric}: {system} at most {within:g} {'below' if sign > 0 else 'above'} {name}"
        return _contrast(says, metric, kind, ((system, 1.0), (name, -1.0)), sign, -sign * delta, options, strict=False)

    return _each(build, baseline)


def ratio(
    metric: str,
    system: str,
    baseline: str | Sequence[str],
    *,
    kind: Kind,
    at_most: float | None = None,
    at_least: float | None = None,
    **options: Unpack[Options],
) -> Condition:
    """system / baseline <= at_most or >= at_least, judged as system - c baseline; of positive quantities."""
    c, sign = _one_bound(at_most, at_least)
    if c <= 0:
        raise ProbatumError(f"the bound of a ratio must be above 0, got {c!r}")
    word = "at most" if sign < 0 else "at least"

    def build(name: str) -> _Simple:
        says = f"{metric}: {system} {word} {c:g} times {name}"
        if kind == "timing":
            return _Timing(says, "timing", metric, sign, c, _settings(kind, options), (system, name))
        arms = ((system, 1.0), (name, -c))
        return _contrast(says, metric, kind, arms, sign, 0.0, options, strict=False, unit=(0.0, 1.0), offset=c)

    return _each(build, baseline)


def faster(
    system: str, baseline: str | Sequence[str], *, by: float, metric: str = "seconds", **options: Unpack[Options]
) -> Condition:
    """time of baseline / time of system >= by, over fresh processes.

    A bound lies at least 1.2 times below the ratio expected.
    """
    if _number("by", by) <= 0:
        raise ProbatumError(f"by must be above 0, got {by!r}")

    def build(name: str) -> _Simple:
        says = f"{metric}: {system} at least {by:g} times as fast as {name}"
        return _Timing(says, "timing", metric, 1, float(by), _settings("timing", options), (name, system))

    return _each(build, baseline)


def share_of_gain(
    metric: str, system: str, baseline: str, *, over: str, kind: Kind, at_least: float, **options: Unpack[Options]
) -> Condition:
    """(system - over) / (baseline - over) >= at_least, with baseline - over > 0 as its own condition.

    For a metric where lower is better both differences are negative: record its negative.
    """
    c = _number("at_least", at_least)
    if c <= 0:
        raise ProbatumError(f"at_least must be above 0, got {at_least!r}")
    gain = _contrast(
        f"{metric}: {baseline} above {over}", metric, kind, ((baseline, 1.0), (over, -1.0)), 1, 0.0, options
    )
    says = f"{metric}: {system} keeps at least {c:g} of the gain of {baseline} over {over}"
    # c = 1 leaves no weight on `over`, but its mean is still what the gain is measured from.
    arms = ((system, 1.0), (baseline, -c), (over, c - 1))
    share = _contrast(says, metric, kind, arms, 1, 0.0, options, strict=False, unit=(0.0, 1.0, -1.0), offset=c)
    return _Share(says, kind, gain, share)


def product(
    metric: str,
    system: str,
    baseline: str,
    *,
    per: str,
    kind: Literal["paired"] = "paired",
    at_least: float = 1.0,
    **options: Unpack[Options],
) -> Condition:
    """metric / per (gain a second) above at_least x baseline's, as g_system T_baseline - c g_baseline T_system > 0."""
    c = _number("at_least", at_least)
    if c <= 0 or kind != "paired":
        raise ProbatumError(f"a product form takes at_least above 0 and kind 'paired', got {at_least!r}, {kind!r}")
    word = "above" if c == 1 else f"above {c:g} times"
    says = f"{metric} per {per}: {system} {word} {baseline}"
    return _contrast(
        says, metric, kind, ((system, 1.0), (baseline, -c)), 1, 0.0, options, unit=(0.0, 1.0), offset=c, per=per
    )


def exact(
    metric: str,
    system: str,
    *,
    equals: float | None = None,
    at_most: float | None = None,
    at_least: float | None = None,
    within: float = 0.0,
    **options: Unpack[Options],
) -> Condition:
    """The value of every seed is, is at most or is at least a number, up to `within`: a count, "no run diverged"."""
    if sum(v is not None for v in (equals, at_most, at_least)) != 1:
        raise ProbatumError("exact takes one of equals, at_most, at_least")
    slack = _margin("within", within)
    up_to = f" (within {slack:g})" if slack else ""
    if equals is not None:
        b = _number("equals", equals)
        says, low, high, sign = f"{metric}: {system} is {b:g}{up_to}", b - slack, b + slack, 1
    else:
        b, sign = _one_bound(at_most, at_least)
        says = f"{metric}: {system} is {'at most' if sign < 0 else 'at least'} {b:g}{up_to}"
        low, high = (b - slack, math.inf) if sign > 0 else (-math.inf, b + slack)
    return _Exact(says, "exact", metric, sign, b, _settings("exact", options), (system,), low, high)


def equal(metric: str, system: str, baseline: str, *, within: float = 0.0, **options: Unpack[Options]) -> Condition:
    """The two systems agree in every seed, and in every sample where both have samples, up to `within`."""
    slack = _margin("within", within)
    says = f"{metric}: {system} equal to {baseline}" + (f" (within {slack:g})" if slack else "")
    return _Exact(says, "exact", metric, 1, 0.0, _settings("exact", options), (system, baseline), -slack, slack)


def proportion(
    metric: str, system: str, *, at_least: float | None = None, at_most: float | None = None, **options: Unpack[Options]
) -> Condition:
    """Rate of successes over independent trials of one system (0/1 samples of 'trial', or one 0/1 value a seed).

    Test items answered by trained seeds are not independent trials: use above(..., kind='items') against a number.
    """
    b, sign = _one_bound(at_most, at_least)
    if not 0 < b < 1:
        raise ProbatumError(
            f"the bound of a proportion must be between 0 and 1, got {b!r}; a list that must pass whole is `exact`"
        )
    says = f"{metric}: {system} {'at most' if sign < 0 else 'at least'} {b:g}"
    return _Proportion(says, "proportion", metric, sign, b, _settings("proportion", options), system)


def slope(
    metric: str,
    system: str,
    *,
    at_most: float | None = None,
    at_least: float | None = None,
    baseline: str | None = None,
    **options: Unpack[Options],
) -> Condition:
    """Slope of the response on log size, one a seed; with `baseline`, the difference of the two slopes."""
    b, sign = _one_bound(at_most, at_least)
    what = f"slope of {metric}: {system}" + (f" minus {baseline}" if baseline else "")
    says = f"{what} {'at most' if sign < 0 else 'at least'} {b:g}"
    arms = ((system, 1.0),) if baseline is None else ((system, 1.0), (baseline, -1.0))
    return _contrast(says, metric, "slope", arms, sign, b, options, strict=False)


def any_of(conditions: Sequence[Condition]) -> Condition:
    """At least one holds, each judged at level / k. Better: choose on validation data, then judge that one alone."""
    parts = tuple(conditions)
    if len(parts) < 2 or not all(isinstance(part, Condition) for part in parts):
        raise ProbatumError(f"any_of takes 2 or more conditions, got {conditions!r}")
    kinds = {part.kind for part in parts}
    return _AnyOf("", kinds.pop() if len(kinds) == 1 else "mixed", parts)


def _compare(
    metric: str, system: str, baseline: Any, kind: str, margin: float, sign: int, options: Options
) -> Condition:
    by = _margin("margin", margin)
    word = "above" if sign > 0 else "below"
    more = f" by more than {by:g}" if by else ""

    def build(name: str) -> _Simple:
        says = f"{metric}: {system} {word} {name}{more}"
        return _contrast(says, metric, kind, ((system, 1.0), (name, -1.0)), sign, sign * by, options)

    if isinstance(baseline, (int, float)):
        number = _number("baseline", baseline)
        says = f"{metric}: {system} {word} {number:g}{more}"
        return _contrast(says, metric, kind, ((system, 1.0),), sign, number + sign * by, options)
    return _each(build, baseline)


def _contrast(
    says: str,
    metric: str,
    kind: str,
    arms: tuple[tuple[str, float], ...],
    sign: int,
    bound: float,
    options: Options,
    **more: Any,
) -> _Contrast:
    names = [name for name, _ in arms]
    if len(set(names)) != len(names):
        raise ProbatumError(f"a condition compares different systems, got {', '.join(map(repr, names))}")
    if kind == "timing":
        raise ProbatumError("kind 'timing' judges ratios of two arms: use faster(...) or ratio(...)")
    if kind == "proportion" or (kind == "slope" and not says.startswith("slope")):
        raise ProbatumError(f"kind {kind!r} has its own constructor: {kind}(...)")
    return _Contrast(says, kind, metric, sign, bound, _settings(kind, options), arms, **more)


def _settings(kind: str, options: Options) -> _Settings:
    if kind not in get_args(Kind):
        raise ProbatumError(f"kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
    settings = _Settings(**options)
    settings.check(kind)
    return settings


def _each(build: Callable[[str], _Simple], baseline: str | Sequence[str]) -> Condition:
    if isinstance(baseline, str):
        return build(baseline)
    names = list(baseline)
    if not names or not all(isinstance(name, str) for name in names):
        raise ProbatumError(f"baseline must be a system, or a list of systems, got {baseline!r}")
    parts = tuple(build(name) for name in names)
    return parts[0] if len(parts) == 1 else _Each(parts[0].says, parts[0].kind, parts)


def _number(name: str, value: Any) -> float:
    """A plain finite number: a numpy scalar or an array hints at a bound computed from data."""
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ProbatumError(f"{name} must be a plain finite number fixed before the run, got {value!r}")
    return float(value)


def _margin(name: str, value: Any) -> float:
    if _number(name, value) < 0:
        raise ProbatumError(f"{name} must be 0 or more, got {value!r}")
    return float(value)


def _one_bound(at_most: float | None, at_least: float | None) -> tuple[float, int]:
    if (at_most is None) == (at_least is None):
        raise ProbatumError(f"give one of at_most and at_least, got at_most={at_most!r}, at_least={at_least!r}")
    return (_number("at_most", at_most), -1) if at_least is None else (_number("at_least", at_least), 1)


# Reading the table.


def _enough(condition: Condition, what: str, got: int, where: str = "") -> None:
    least = condition.minimum[what]
    if got < least:
        at = f" ({where})" if where else ""
        raise ProbatumError(f"{condition.text}: kind {condition.kind!r} needs at least {least} {what}, got {got}{at}")


def _seeds(table: Table, metric: str, systems: Iterable[str]) -> list[int]:
    """The seeds of the table, after checking that each system recorded the metric at all."""
    for system in systems:
        if not table.of(system, metric):
            known = table.systems if system not in table.systems else table.metrics
            wrong = system if system not in table.systems else metric
            raise ProbatumError(f"{metric!r} of {system!r} was never recorded; {did_you_mean(wrong, known)}")
    return table.seeds


def _rows(
    table: Table,
    system: str,
    metric: str,
    seeds: Sequence[int],
    worst: float | None = None,
    *,
    own_seeds: bool = False,
) -> list[Measurement | None]:
    """A row a seed; None where nothing was recorded and `worst` stands in. `own_seeds`: those that the system has."""
    found = table.of(system, metric)
    if own_seeds:
        return list(found.values())
    missing = [seed for seed in seeds if seed not in found]
    if missing and worst is None:
        raise ProbatumError(
            f"{metric} of {system!r} has no row for seed {missing[0]}: every arm needs every seed, or declare worst="
        )
    return [found.get(seed) for seed in seeds]


def _values(table: Table, system: str, metric: str, seeds: Sequence[int], worst: float | None) -> Array:
    rows = _rows(table, system, metric, seeds, worst)
    values = np.array([math.nan if row is None else row.value for row in rows], float)
    return _finite(values, worst, f"{metric} of {system!r}", seeds)


def _same_length(condition: _Contrast, rows: Mapping[str, list[Measurement | None]], seeds: Sequence[int]) -> None:
    size = None
    for name, column in rows.items():
        for seed, row in zip(seeds, column, strict=True):
            if row is None:
                continue
            if row.samples is None or row.of not in ("item", None):
                got = "none" if row.samples is None else f"samples of {row.of!r}"
                raise ProbatumError(
                    f"{condition.metric} of {name!r}, seed {seed}: kind 'items' needs samples of 'item', got {got}"
                )
            size = len(row.samples) if size is None else size
            if len(row.samples) != size:
                what = f"{condition.metric} of {name!r}, seed {seed}"
                raise ProbatumError(f"{what}: {len(row.samples)} items where others have {size}")


def _finite(values: Array, worst: float | None, what: str, of: Sequence[Measurement | int | None]) -> Array:
    """`values`, the first axis over rows or seeds `of`, with what is not finite scored as `worst`."""
    bad = ~np.isfinite(values)
    if not bad.any():
        return values
    if worst is None:
        place = np.argwhere(bad)[0]
        row = of[place[0]] if len(of) == len(values) else of[0]
        seed = row.seed if isinstance(row, Measurement) else row
        item = f", item {place[1]}" if values.ndim == 2 else ""
        raise ProbatumError(
            f"{what} is not finite at seed {seed}{item}: declare worst= to score it, it is never dropped"
        )
    return np.where(bad, worst, values)


def _group_means(matrix: Array, groups: int | Sequence[Any]) -> Array:
    n = matrix.shape[1]
    if isinstance(groups, int):
        if groups < 1 or n % groups:
            raise ProbatumError(f"groups of {groups} items do not cover the {n} items")
        return matrix.reshape(len(matrix), n // groups, groups).mean(axis=2)
    if len(groups) != n:
        raise ProbatumError(f"groups must label each of the {n} items, got {len(groups)} labels")
    labels = {label: k for k, label in enumerate(dict.fromkeys(groups))}
    index = np.array([labels[label] for label in groups])
    return np.stack([matrix[:, index == k].mean(axis=1) for k in range(len(labels))], axis=1)


def _truth(table: Table, system: str, metric: str, row: Measurement | None, size: int) -> Array:
    """Truth of a row's items: the arm's own, or of the one other system that recorded it, in the same seed."""
    holders = [system] if table.of(system, metric) else [name for name in table.systems if table.of(name, metric)]
    if len(holders) != 1 or row is None:
        got = ", ".join(map(repr, holders)) or "none"
        raise ProbatumError(
            f"truth {metric!r} must be recorded in every seed by {system!r} or by one other system, got {got}"
        )
    found = table.of(holders[0], metric).get(row.seed)
    if found is None or found.samples is None or len(found.samples) != size:
        raise ProbatumError(f"truth {metric!r} of {holders[0]!r} needs {size} samples in seed {row.seed}")
    return np.array(found.samples, float)


def _check_seed_used(condition: _Contrast, rows: Mapping[str, Sequence[Measurement | None]]) -> None:
    """A metric identical over all seeds of an arm that trains is a seed that is not used: an error, not certainty."""
    metric, trained = condition.metric, condition.settings.trained
    seen = {name: {(row.value, row.samples) if row else None for row in column} for name, column in rows.items()}
    still = [
        name for name, column in rows.items() if len(column) > 1 and len(seen[name]) == 1 and None not in seen[name]
    ]
    flagged = [name for name in still if name in ([trained] if isinstance(trained, str) else trained)]
    if flagged:
        raise ProbatumError(
            f"{metric} of {flagged[0]!r}, which trains, is identical over all seeds: the seed is not used"
        )
    if len(still) == len(rows):
        arms = " and ".join(map(repr, still))
        remedy = "use the seed, or kind 'exact' if nothing is random"
        raise ProbatumError(f"{metric} of {arms} is identical over all seeds: {remedy}")


# Advice of an inconclusive verdict.


def _seeds_advice(found: Interval, unit: str = "seeds") -> str:
    needed = seeds_needed(found.sd, found.distance) if found.sd is not None else None
    return f"not with {unit}" if needed is None else f"about {max(needed, found.n + 1)} {unit}"


def _items_advice(found: Interval) -> str:
    d, n = found.details, found.n
    if d["vS"] is None:
        return "more items, not seeds"
    width = {
        m: judges.items_half_width(d["vI"], d["vS"], d["vE"], n, d["items"], m) for m in (*range(n + 1, 51), 10**6)
    }
    if width[10**6] >= found.distance:
        return "more items, not seeds"
    needed = next((m for m in range(n + 1, 51) if width[m] <= found.distance), None)
    return "not with seeds" if needed is None else f"about {needed} seeds"


def _sizes_advice(_: Interval) -> str:
    return "more sizes, or 3 seeds with one training a size each"


def _runs(n: int) -> str:
    return "in this run" if n == 1 else f"in each of these {n} runs"


def _plain(value: Any) -> Any:
    if isinstance(value, (bool, str)) or value is None:
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(v) for v in value]
    if isinstance(value, (int, np.integer)):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else None
