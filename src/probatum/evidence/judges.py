"""Intervals for the numbers that conditions are about: pure functions on arrays, one a kind of evidence.

Every judge returns an `Interval` at `level` a side (0.025: a 95 % interval) and the two-sided p of `bound`, such that
p >= 2 level exactly where the interval contains the bound. Sources: Student and Welch t; Clopper and Pearson 1934;
two-way random effects with Satterthwaite's degrees of freedom; Agresti and Min 2005 for the 0/1 term; jackknife
pseudo-values.

>>> found = paired([0.042, 0.057, 0.073])
>>> round(found.low, 7), round(found.high, 7)
(0.0188225, 0.0958441)
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probatum.errors import ProbatumError

__all__ = [
    "STATISTICS",
    "Interval",
    "frechet_distance",
    "frechet_jackknife",
    "group_jackknife",
    "items",
    "items_half_width",
    "kendall_ceiling",
    "ols_slope",
    "paired",
    "proportion",
    "pseudo_values",
    "slopes",
    "t_quantile",
    "timing",
    "unpaired",
]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate and its interval.

    `half_width` and `distance` (from the estimate to the bound) are on the scale where the interval was computed: log
    for timing. `n` counts what is random: seeds, processes, trials; `sd` its standard deviation, None for proportions.
    """

    value: float
    low: float
    high: float
    level: float
    n: int
    df: float | None
    p: float
    half_width: float
    distance: float
    sd: float | None = None
    details: dict[str, Any] = field(default_factory=dict)


def t_quantile(level: float, df: float) -> float:
    """Upper `level` quantile of Student's t; scipy.special because scipy.stats takes 0.7 s to import."""
    from scipy.special import stdtrit

    return float(stdtrit(df, 1 - level))


def paired(d: ArrayLike, *, bound: float = 0.0, level: float = 0.025, resolution: float = 0.0) -> Interval:
    """Student t on per-seed differences `d` (S,), S - 1 degrees of freedom; half-width never below `resolution`."""
    d = _array(d, 1, "differences", 2)
    sd = float(d.std(ddof=1))
    parts = [(sd / math.sqrt(len(d)), len(d) - 1)]
    return _student(float(d.mean()), parts, bound, level, len(d), sd, floor=resolution)


def unpaired(
    arms: Sequence[tuple[float, ArrayLike]], *, bound: float = 0.0, level: float = 0.025, resolution: float = 0.0
) -> Interval:
    """Welch t for sum over arms of weight x mean; arms of (weight, values, 2 or more). n is the smallest arm."""
    values = [(w, _array(x, 1, "values of an arm", 2)) for w, x in arms]
    shares = [w * w * float(x.var(ddof=1)) / len(x) for w, x in values]
    total = sum(shares)
    n = min(len(x) for _, x in values)
    df = (
        total**2 / sum(v * v / (len(x) - 1) for v, (_, x) in zip(shares, values, strict=True))
        if total > 0
        else float(n - 1)
    )
    mean = sum(w * float(x.mean()) for w, x in values)
    return _student(mean, [(math.sqrt(total), df)], bound, level, n, math.sqrt(total * n), floor=resolution)


def items(scores: ArrayLike, *, binary: bool = False, bound: float = 0.0, level: float = 0.025) -> Interval:
    """Two-way random effects for differences (S seeds, I items), never narrower than the t over seeds or over items.

    `binary` adds the Agresti-Min term and is right only where each arm scores 0 or 1. One seed gives the t over items.
    """
    d = _array(scores, 2, "scores (seeds, items)", 1)
    s, i = d.shape
    if i < 2:
        raise ProbatumError(f"items must be 2 or more, got {i}")
    if binary:
        steps = d - d.flat[0]
        if np.ptp(d) > 2 + 1e-9 or not np.allclose(steps, np.round(steps), rtol=0, atol=1e-9):
            raise ProbatumError("the 0/1 judge takes scores that are 0 or 1 in every arm, got other values")
    mean = float(d.mean())
    rows, columns = d.mean(axis=1), d.mean(axis=0)
    spread = float(((columns - mean) ** 2).sum())
    v_items = (spread + 1) / ((i + 2) * (i + 1)) if binary else spread / (i * (i - 1))
    if s == 1:
        details = {"vI": v_items, "vS": None, "vE": None, "df": float(i - 1), "items": i}
        return _student(mean, [(math.sqrt(v_items), i - 1)], bound, level, 1, None, details)
    v_seeds = float(((rows - mean) ** 2).sum()) / (s * (s - 1))
    residual = float(((d - rows[:, None] - columns + mean) ** 2).sum()) / ((s - 1) * (i - 1) * s * i)
    parts = _two_way(v_items, v_seeds, residual, s, i)
    details = {"vI": v_items, "vS": v_seeds, "vE": residual, "df": parts[0][1], "items": i}
    return _student(mean, parts, bound, level, s, math.sqrt(v_seeds * s), details)


def items_half_width(
    v_items: float, v_seeds: float, residual: float, seeds: int, items: int, n: int, level: float = 0.025
) -> float:
    """Half-width that `items` would have with `n` seeds in place of `seeds`, at the variances found."""
    scale = seeds / n
    own = max(v_items - residual, 0.0)
    parts = _two_way(own + residual * scale, v_seeds * scale, residual * scale, n, items)
    return max(t_quantile(level, df) * se for se, df in parts)


def timing(a: Sequence[ArrayLike], b: Sequence[ArrayLike], *, bound: float = 1.0, level: float = 0.025) -> Interval:
    """The ratio of times a / b: t over processes of the median log ratio of pairs, exponentiated.

    A process is the times (pairs,) of an arm, in seconds; pair j of both arms was measured back to back.

    One process gives the ratio with the interval (0, inf): a launch cannot speak for the next one.
    """
    if len(a) != len(b) or not len(a):
        raise ProbatumError(f"both arms need the same processes, got {len(a)} and {len(b)}")
    y = []
    for process, (x, z) in enumerate(zip(a, b, strict=True)):
        x, z = _array(x, 1, "times", 1), _array(z, 1, "times", 1)
        if x.shape != z.shape:
            raise ProbatumError(f"times come in pairs, got {len(x)} and {len(z)} in process {process}")
        if min(x.min(), z.min()) <= 0:
            raise ProbatumError(f"times must be above 0 seconds, got {min(x.min(), z.min())!r} in process {process}")
        y.append(float(np.median(np.log(x / z))))
    details: dict[str, Any] = {"y_p": y, "pairs": min(len(np.atleast_1d(np.asarray(x))) for x in a)}
    target = math.log(bound)
    if len(y) == 1:
        return Interval(math.exp(y[0]), 0.0, math.inf, level, 1, None, 1.0, math.inf, abs(y[0] - target), None, details)
    log = paired(y, bound=target, level=level)
    ends = (math.exp(log.value), math.exp(log.low), math.exp(log.high))
    return Interval(*ends, level, log.n, log.df, log.p, log.half_width, log.distance, log.sd, details)


def proportion(k: int, n: int, *, bound: float = 0.5, level: float = 0.025) -> Interval:
    """Clopper-Pearson interval for `k` successes in `n` independent trials; p is twice the smaller tail."""
    from scipy.special import bdtr, bdtrc, betaincinv

    if not (0 <= k <= n and n >= 1 and k == int(k) and n == int(n)):
        raise ProbatumError(f"k of n must be counts with 0 <= k <= n and n >= 1, got k={k!r}, n={n!r}")
    k, n = int(k), int(n)
    low = 0.0 if k == 0 else float(betaincinv(k, n - k + 1, level))
    high = 1.0 if k == n else float(betaincinv(k + 1, n - k, 1 - level))
    below = 1.0 if k == n else float(bdtr(k, n, bound))
    above = 1.0 if k == 0 else float(bdtrc(k - 1, n, bound))
    p = min(1.0, 2 * min(below, above))
    return Interval(k / n, low, high, level, n, None, p, (high - low) / 2, abs(k / n - bound), None, {"k": k})


def slopes(responses: ArrayLike, sizes: ArrayLike) -> Array:
    """Least-squares slope on log size for each seed: responses (S, k) at sizes (k,) -> (S,)."""
    x = _sizes(sizes)
    y = np.atleast_2d(np.asarray(responses, float))
    if y.shape[1] != len(x):
        raise ProbatumError(f"responses must be (seeds, {len(x)}) for {len(x)} sizes, got {y.shape}")
    x = x - x.mean()
    return (y @ x) / float(x @ x)


def ols_slope(response: ArrayLike, sizes: ArrayLike, *, bound: float = 0.0, level: float = 0.025) -> Interval:
    """Slope on log size of one response (k,), k - 2 degrees of freedom: a statement about these models only."""
    y, x = _array(response, 1, "responses", 3), _sizes(sizes)
    slope = float(slopes(y, sizes)[0])
    x = x - x.mean()
    residual = y - y.mean() - slope * x
    se = math.sqrt(float(residual @ residual) / (len(y) - 2) / float(x @ x))
    return _student(slope, [(se, len(y) - 2)], bound, level, 1, None)


# Set statistics of (scores, truth), both (I,).


def kendall(x: Array, y: Array) -> float:
    """Kendall's tau-b."""
    a, b = _signs(x), _signs(y)
    return float((a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum()))


def auc(scores: Array, truth: Array) -> float:
    """Area under the ROC curve of scores for truth 0/1; a tie counts half."""
    positive, negative = scores[truth == 1], np.sort(scores[truth == 0])
    below = np.searchsorted(negative, positive, "left") + np.searchsorted(negative, positive, "right")
    return float(below.sum() / (2 * len(positive) * len(negative)))


def average_precision(scores: Array, truth: Array) -> float:
    """Mean over positives of the precision at their score (scikit-learn's definition, ties taken together)."""
    order = np.argsort(-scores, kind="stable")
    ranked, last = truth[order] == 1, np.append(np.diff(scores[order]) != 0, True)
    hits = np.cumsum(ranked)[last]
    precision = hits / (np.flatnonzero(last) + 1)
    return float((np.diff(hits, prepend=0) * precision).sum() / ranked.sum())


def f1(predicted: Array, truth: Array) -> float:
    """2 tp / (predicted positives + true positives), 0 where there are none."""
    total = float(predicted.sum() + truth.sum())
    return 2 * float((predicted * truth).sum()) / total if total else 0.0


def harmonic_mean(correct: Array, part: Array) -> float:
    """Harmonic mean of the accuracies on the items of part 1 and of part 0 (seen and unseen classes)."""
    a, b = float(correct[part == 1].mean()), float(correct[part == 0].mean())
    return 2 * a * b / (a + b) if a + b else 0.0


STATISTICS: dict[str, Callable[[Array, Array], float]] = {
    "kendall": kendall,
    "auc": auc,
    "f1": f1,
    "harmonic": harmonic_mean,
    "ap": average_precision,
}


def pseudo_values(statistic: str | Callable[..., float], scores: ArrayLike, truth: ArrayLike | None = None) -> Array:
    """I T - (I - 1) T(without item i) for each item: scores (I,), truth (I,) or None -> (I,); their mean estimates T.

    `statistic` is a name of STATISTICS or a function of (scores) or (scores, truth). Kendall's costs O(I^2), the others
    I evaluations.
    """
    x = _array(scores, 1, "scores", 3)
    y = None if truth is None else _array(truth, 1, "truth", 3)
    if y is not None and x.shape != y.shape:
        raise ProbatumError(f"scores and truth must have as many items, got {len(x)} and {len(y)}")
    if isinstance(statistic, str):
        if statistic not in STATISTICS or y is None:
            names = ", ".join(STATISTICS)
            raise ProbatumError(f"statistic must be one of {names} with a truth, or a function, got {statistic!r}")
        if statistic != "kendall" and not np.isin(y, (0, 1)).all():
            raise ProbatumError(f"truth of {statistic!r} must be 0 or 1, got other values")
        if statistic in ("f1", "harmonic") and not np.isin(x, (0, 1)).all():
            raise ProbatumError(f"scores of {statistic!r} must be 0 or 1, got other values")
        if statistic in ("auc", "ap", "harmonic") and min((y == 1).sum(), (y == 0).sum()) < 2:
            raise ProbatumError(f"truth of {statistic!r} must hold two items of each kind, so that one can be left out")
    n = len(x)
    if statistic == "kendall":
        assert y is not None
        a, b = _signs(x), _signs(y)
        parts = [m.sum(axis=1) for m in (a * b, a * a, b * b)]
        # Each pair stands twice in the matrix: leaving item i out takes its row and its column, so twice its row sum.
        s, tx, ty = (part.sum() - 2 * part for part in parts)
        if not (tx.all() and ty.all()):
            raise ProbatumError("scores and truth of 'kendall' must not be constant, also without any one item")
        without = s / np.sqrt(tx * ty)
        whole = kendall(x, y)
    else:
        call = STATISTICS[statistic] if isinstance(statistic, str) else statistic
        args = (x,) if y is None else (x, y)
        whole = float(call(*args))
        without = np.array([float(call(*(np.delete(arg, i) for arg in args))) for i in range(n)])
    return n * whole - (n - 1) * without


def kendall_ceiling(between_seeds: float) -> float:
    """The tau a perfect ranking reaches against one noisy measurement, from tau between two of them (normal noise)."""
    if not 0 <= between_seeds <= 1:
        raise ProbatumError(f"between_seeds must be in [0, 1], got {between_seeds!r}")
    return 2 / math.pi * math.asin(math.sqrt(math.sin(math.pi * between_seeds / 2)))


# Distances of sets.


def frechet_distance(generated: ArrayLike, reference: ArrayLike) -> float:
    """Frechet distance of the normal fits of two sets of features (n, d), (m, d); biased upwards by about c / n."""
    x, root = _features(generated, "generated"), _Reference(reference)
    return root.distance(x.mean(axis=0), np.atleast_2d(np.cov(x, rowvar=False)))


def frechet_jackknife(
    generated: ArrayLike, reference: ArrayLike, *, groups: int = 10
) -> tuple[float, tuple[float, ...]]:
    """Frechet distance of all images, and without each group: the value and the samples of a row of kind `distance`.

    Raises: fewer than 500 images or 8 a dimension, where the bias is no longer c / n; n not a multiple of `groups`.
    """
    x = _features(generated, "generated")
    n, d = x.shape
    if n < max(500, 8 * d):
        raise ProbatumError(f"generated must hold at least 500 and 8 d = {8 * d} images, got {n}")
    if n % groups or groups < 2:
        raise ProbatumError(f"groups must divide the {n} generated images and be 2 or more, got {groups}")
    return _Reference(reference).jackknife(x, groups)


def group_jackknife(value: float, without: Sequence[float]) -> float:
    """G value - (G - 1) mean of the values without each group: takes away a bias of c / n."""
    groups = len(without)
    if groups < 2:
        raise ProbatumError(f"a group jackknife needs 2 groups or more, got {groups}")
    return groups * float(value) - (groups - 1) * float(np.mean(without))


class _Reference:
    """Mean, covariance and its root of the reference, computed once for all the groups."""

    def __init__(self, features: ArrayLike) -> None:
        y = _features(features, "reference")
        self.mean, cov = y.mean(axis=0), np.atleast_2d(np.cov(y, rowvar=False))
        values, vectors = np.linalg.eigh(cov)
        self.root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
        self.trace = float(np.trace(cov))

    def distance(self, mean: Array, covariance: Array) -> float:
        # tr (C R)^1/2 through the symmetric root R^1/2 C R^1/2: real eigenvalues, no complex part to drop.
        values = np.linalg.eigvalsh(self.root @ covariance @ self.root)
        shift = mean - self.mean
        return float(shift @ shift + np.trace(covariance) + self.trace - 2 * np.sqrt(values.clip(0)).sum())

    def jackknife(self, x: Array, groups: int) -> tuple[float, tuple[float, ...]]:
        """Distances of all (n, d) and without each group, from the sums of the groups: the images are read once."""
        n, d = x.shape
        center = x.mean(axis=0)
        parts = (x - center).reshape(groups, n // groups, d)
        sums, products = parts.sum(axis=1), parts.transpose(0, 2, 1) @ parts
        total, m = products.sum(axis=0), n - n // groups
        without = []
        for s, product in zip(-sums, products, strict=True):
            covariance = (total - product - np.outer(s, s) / m) / (m - 1)
            without.append(self.distance(center + s / m, covariance))
        return self.distance(center, total / (n - 1)), tuple(without)


def _features(x: ArrayLike, name: str) -> Array:
    return _array(x, 2, name, 2)


def _array(x: ArrayLike, ndim: int, name: str, least: int) -> Array:
    found = np.asarray(x, dtype=float)
    if found.ndim != ndim or len(found) < least:
        raise ProbatumError(f"{name} must have {ndim} dimension(s) and length {least} or more, got shape {found.shape}")
    if not np.isfinite(found).all():
        raise ProbatumError(f"{name} must be finite")
    return found


def _sizes(sizes: ArrayLike) -> Array:
    x = _array(sizes, 1, "sizes", 3)
    if x.min() <= 0 or len(np.unique(x)) != len(x):
        raise ProbatumError(f"sizes must be positive and distinct, got {x.tolist()}")
    return np.log(x)


def _signs(x: Array) -> Array:
    return np.sign(x[:, None] - x[None, :])


def _two_way(v_items: float, v_seeds: float, residual: float, s: int, i: int) -> list[tuple[float, float]]:
    """(standard error, df): Satterthwaite's, of t over seeds, of t over items; the interval takes the widest."""
    total = v_items + v_seeds - residual
    one_way = [(math.sqrt(v_seeds), float(s - 1)), (math.sqrt(v_items), float(i - 1))]
    if total <= 0:
        return one_way
    parts = v_items**2 / (i - 1) + v_seeds**2 / (s - 1) + residual**2 / ((s - 1) * (i - 1))
    return [(math.sqrt(total), max(1.0, total**2 / parts)), *one_way]


def _student(
    mean: float,
    parts: Sequence[tuple[float, float]],
    bound: float,
    level: float,
    n: int,
    sd: float | None,
    details: dict[str, Any] | None = None,
    floor: float = 0.0,
) -> Interval:
    """The widest of the t intervals `parts` (standard error, df), and the largest of their p."""
    from scipy.special import stdtr

    if not 0 < level < 0.5:
        raise ProbatumError(f"level must be between 0 and 0.5 (a side), got {level!r}")
    half, distance = max(floor, *(t_quantile(level, df) * se for se, df in parts)), abs(mean - bound)
    if distance <= floor or distance == 0:
        p = 1.0
    else:
        p = max(0.0 if se == 0 else 2 * float(stdtr(df, -distance / se)) for se, df in parts)
    return Interval(mean, mean - half, mean + half, level, n, float(parts[0][1]), p, half, distance, sd, details or {})
