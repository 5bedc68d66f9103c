"""How often the judges are right, by simulation: the sheet's worlds, and the rivals that must do badly in them.

Seeded. A share over N repetitions has a standard error of sqrt(p (1 - p) / N): .5 point at 2,000; bounds lie 4 away.
The rivals (nested bootstrap, one process, plain distance) show that the worlds are hard enough to tell judges apart.
"""

import math

import numpy as np
import pytest
import scipy.stats as st

from probatum.evidence import judges
from probatum.evidence.ladder import LADDER, Looks, critical_value

REPETITIONS = 2000


def covers(found, truth=0.0):
    return found.low <= truth <= found.high


def test_t_over_three_seeds_covers_95():
    draws = np.random.default_rng(20).normal(size=(REPETITIONS, 3))
    share = np.mean([covers(judges.paired(d)) for d in draws])
    assert abs(share - 0.95) < 0.02


def answers(rng, seeds, items, v, w, accuracy=0.8, item_sd=3.0):
    """D (S, I) of two arms that are equally good: right where a + 3 u_i + v v_ai + w w_as + e > 0."""
    a = st.norm.ppf(accuracy) * math.sqrt(item_sd**2 + v * v + w * w + 1)
    base = a + item_sd * rng.normal(size=items)
    arms = (
        base
        + v * rng.normal(size=(2, 1, items))
        + w * rng.normal(size=(2, seeds, 1))
        + rng.normal(size=(2, seeds, items))
    )
    right = (arms > 0).astype(float)
    return right[0] - right[1]


def nested_bootstrap(rng, d, draws=200):
    """Seeds outside, items inside, 95 % percentile interval: redraws items apart for each seed."""
    seeds, items = d.shape
    share = np.stack([(d == 1).mean(1), (d == -1).mean(1), (d == 0).mean(1)], 1)
    share /= share.sum(1, keepdims=True)
    counts = rng.multinomial(items, share[rng.integers(seeds, size=(draws, seeds))])
    means = ((counts[..., 0] - counts[..., 1]) / items).mean(1)
    return np.quantile(means, [0.025, 0.975])


@pytest.mark.parametrize("seeds, v, w", [(5, 1.0, 0.12), (10, 1.5, 0.06)])
def test_items_cover_94_and_more(seeds, v, w):
    rng = np.random.default_rng(21)
    worlds = [answers(rng, seeds, 200, v, w) for _ in range(REPETITIONS)]
    found = [judges.items(d, binary=True) for d in worlds]
    assert np.mean([covers(f) for f in found]) >= 0.94
    assert np.mean([f.low > 0 for f in found]) < 0.029 + 0.014  # false holds: 2.9 % at most in the sheet, 4 s.e.


def test_nested_bootstrap_fails_where_items_matter():
    rng = np.random.default_rng(22)
    inside = []
    for _ in range(300):
        low, high = nested_bootstrap(rng, answers(rng, 10, 200, 1.5, 0.06))
        inside.append(low <= 0 <= high)
    assert np.mean(inside) < 0.75


def test_t_over_seeds_fails_for_items_like_these():
    rng = np.random.default_rng(23)
    share = np.mean([covers(judges.paired(answers(rng, 10, 200, 1.5, 0.06).mean(1))) for _ in range(300)])
    assert share < 0.75


def processes(rng, count, pairs, process_sd=0.03, pair_sd=0.05):
    """Log ratios (count, pairs) around 0: a shift a process, heavy tails (t3 scaled to the sd) inside."""
    noise = rng.standard_t(3, size=(count, pairs)) * pair_sd / math.sqrt(3)
    return process_sd * rng.normal(size=(count, 1)) + noise


def test_timing_covers_95_over_processes():
    rng = np.random.default_rng(24)
    ones = [np.ones(9)] * 5
    share = np.mean([covers(judges.timing(list(np.exp(processes(rng, 5, 9))), ones), 1.0) for _ in range(REPETITIONS)])
    assert abs(share - 0.95) < 0.02


def test_one_process_covers_under_half():
    rng = np.random.default_rng(25)
    y = processes(rng, 500, 20)
    medians = np.median(y[np.arange(500)[:, None, None], rng.integers(20, size=(500, 200, 20))], axis=2)
    low, high = np.quantile(medians, [0.025, 0.975], axis=1)
    assert np.mean((low <= 0) & (high >= 0)) < 0.5


def test_crops_as_items_are_not_photos():
    """Five photos of 100 crops, photo sd .3 dB: crops as items cover 41 % in the sheet, photos 95."""
    rng = np.random.default_rng(26)
    crops, photos = [], []
    for _ in range(400):
        d = 0.3 * np.repeat(rng.normal(size=5), 100) + rng.normal(size=500) + 0.05 * rng.normal(size=(3, 1))
        d = d + 0.1 * rng.normal(size=(3, 500))
        crops.append(covers(judges.items(d)))
        photos.append(covers(judges.items(d.reshape(3, 5, 100).mean(2))))
    assert np.mean(crops) < 0.6
    assert np.mean(photos) > 0.95 - 4 * math.sqrt(0.05 * 0.95 / 400)


def test_difference_of_two_tau_covers_where_t_over_draws_does_not():
    """100 networks, 5 draws of noisy labels; two scores as close to the truth, so equal in tau."""
    rng = np.random.default_rng(27)
    items, seeds = [], []
    for _ in range(300):
        quality = rng.normal(size=100)
        scores = quality + rng.normal(size=(2, 100))
        labels = quality + 0.3 * rng.normal(size=(5, 100))
        values = np.array([[judges.pseudo_values("kendall", s, y) for y in labels] for s in scores])
        d = values[0] - values[1]
        items.append(covers(judges.items(d)))
        seeds.append(covers(judges.paired(d.mean(1))))
    assert np.mean(items) > 0.90
    assert np.mean(seeds) < 0.80


def test_proportion_says_holds_at_most_as_often_as_its_level():
    """By enumeration, at every bound: the truth lies on it, so `holds` is false."""
    for n in (20, 100):
        for bound in (0.5, 0.8, 0.95, 0.99):
            chance = st.binom.pmf(np.arange(n + 1), n, bound)
            found = [judges.proportion(k, n, bound=bound) for k in range(n + 1)]
            assert chance[[f.low > bound for f in found]].sum() <= 0.025
            assert chance[[f.high < bound for f in found]].sum() <= 0.025


def test_narrow_arm_is_not_better_by_its_bias():
    """d 64, n 500, a wide and a narrow N(0, s): the plain distance prefers the narrow one.

    Their distance to the normal fit of the reference is const + d (s - r)^2, r the mean of its standard deviations, so
    that s = r +- .0625 are as far from it, .25 and more. n is just under the 8 d that `frechet_jackknife` asks for.
    """
    rng = np.random.default_rng(28)
    reference = judges._Reference(rng.normal(size=(5000, 64)))
    spreads = np.trace(reference.root) / 64 + np.array([0.0625, -0.0625])
    equal = [reference.distance(np.zeros(64), s * s * np.eye(64)) for s in spreads]
    assert equal[0] == pytest.approx(equal[1], rel=1e-9)
    plain, jackknifed = [], []
    for _ in range(100):
        x = spreads[:, None, None, None] * rng.normal(size=(2, 3, 500, 64))
        wide, narrow = ([reference.jackknife(images, 10) for images in arm] for arm in x)
        plain.append(judges.paired([a - b for (a, _), (b, _) in zip(wide, narrow, strict=True)]).low > 0)
        d = [judges.group_jackknife(*a) - judges.group_jackknife(*b) for a, b in zip(wide, narrow, strict=True)]
        jackknifed.append(judges.paired(d).low > 0)
    assert np.mean(jackknifed) < 0.05
    assert np.mean(plain) > 0.15


@pytest.mark.parametrize("first", [3, 5, 7])
def test_ladder_spends_two_and_a_half_percent(first):
    """20,000 claims whose truth is on the bound, looked at n, 2n and 4n."""
    x = np.random.default_rng(29).normal(size=(20_000, 4 * first))
    looks, holds = Looks(first), np.zeros(len(x), bool)
    fails = np.zeros(len(x), bool)
    for count in looks.counts:
        part = x[:, :count]
        t = part.mean(1) / part.std(1, ddof=1) * math.sqrt(count)
        open_ = ~(holds | fails)
        critical = critical_value(count, looks.level(count))
        holds |= open_ & (t > critical)
        fails |= open_ & (t < -critical)
    assert abs(holds.mean() - 0.025) < 0.0045
    assert abs(fails.mean() - 0.025) < 0.0045


def test_peeking_after_every_seed_is_why_there_is_a_ladder():
    x = np.random.default_rng(30).normal(size=(4000, 10))
    false = np.zeros(4000, bool)
    for n in range(3, 11):
        false |= np.abs(x[:, :n].mean(1) / x[:, :n].std(1, ddof=1) * math.sqrt(n)) > critical_value(n)
    assert 0.15 < false.mean() < 0.19


def test_extending_after_looking_spends_at_most_3_6():
    x = np.random.default_rng(31).normal(size=(20_000, 20))
    looks, holds, open_ = Looks(5, extended=True), np.zeros(20_000, bool), np.ones(20_000, bool)
    for count in looks.counts:
        t = x[:, :count].mean(1) / x[:, :count].std(1, ddof=1) * math.sqrt(count)
        critical = critical_value(count, looks.level(count))
        holds |= open_ & (t > critical)
        open_ &= np.abs(t) <= critical
    assert holds.mean() <= 0.036 + 0.0015
    assert looks.level(5) == 0.025 and looks.level(20) == LADDER[2]
