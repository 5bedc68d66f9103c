"""Certificates of smoothed classifiers, against scipy and classifiers whose radius is known."""

import json

import pytest
import torch
from scipy.stats import beta, norm

from probatum import ProbatumError
from probatum.metrics.certify import (
    ABSTAIN,
    certified_accuracy,
    certify,
    largest_radius,
    lower_bound,
    smoothed_labels,
)

W = torch.tensor([0.6, 0.8, 0.0])


def half_space(x):
    """Class 1 where w.x > 0, |w| = 1: the margin is |w.x|."""
    return (x @ W > 0).long()


def test_clopper_pearson():
    assert lower_bound(1000, 1000, 0.001) == pytest.approx(0.99312, abs=5e-6)
    assert lower_bound(37, 37, 0.01) == pytest.approx(0.01 ** (1 / 37), rel=1e-12)
    assert lower_bound(0, 50) == 0.0
    for k in (1, 70, 99):
        assert lower_bound(k, 100, 0.05) == pytest.approx(beta.ppf(0.05, k, 100 - k + 1), rel=1e-9)
    bounds = [lower_bound(k, 60) for k in range(61)]
    assert bounds == sorted(set(bounds))


def test_a_constant_classifier_reaches_the_limit_of_n():
    for n, sigma, want in ((300, 0.5, 1.0), (10_000, 0.25, 0.80)):
        assert largest_radius(n, sigma) == pytest.approx(want, abs=0.005)
        assert largest_radius(n, sigma) == pytest.approx(sigma * norm.ppf(0.001 ** (1 / n)), rel=1e-9)
    (found,) = certify(lambda x: torch.zeros(len(x), 4), torch.zeros(1, 2), sigma=0.25, n=500)
    assert found.radius == pytest.approx(largest_radius(500, 0.25)) and found.label == 0 and not found.abstained


def test_a_half_space_certifies_less_than_its_margin_and_nearly_all_of_it():
    margins = torch.tensor([0.05, 0.3, 0.6]).repeat(40)
    found = certify(half_space, margins.unsqueeze(1) * W, sigma=0.5, n0=20, n=2000, alpha=0.01, rows=20_000)
    assert all(c.label in (1, ABSTAIN) for c in found)
    too_large = sum(c.radius > m for c, m in zip(found, margins.tolist(), strict=True))
    assert too_large <= 5  # 1.2 expected of 120 at alpha .01
    far = [c.radius for c, m in zip(found, margins.tolist(), strict=True) if m > 0.5]
    assert 0.5 < sum(far) / len(far) < 0.6


def test_batches_of_images_change_nothing():
    x = 0.3 * torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    sizes = []

    def logits(batch):
        sizes.append(len(batch))
        return torch.stack([-(batch @ W), batch @ W], 1)

    options = {"sigma": 0.5, "n0": 30, "n": 700}
    alone = certify(logits, x, rows=64, **options)
    assert max(sizes) <= 64
    assert alone == certify(logits, x, rows=10_000, **options) == certify(half_space, x, rows=1000, **options)
    assert alone != certify(logits, x, rows=64, seed=1, **options)
    assert alone[:2] == certify(logits, x[:2], **options)


def test_a_killed_run_goes_on_and_gives_the_same_table(tmp_path):
    x, path = torch.linspace(-1, 1, 6).unsqueeze(1) * W, tmp_path / "table.json"
    options = {"sigma": 0.5, "n0": 10, "n": 100, "rows": 110}
    whole = certify(half_space, x, **options)
    calls = []

    def dies(batch):
        calls.append(len(batch))
        if len(calls) > 5:
            raise KeyboardInterrupt
        return half_space(batch)

    with pytest.raises(KeyboardInterrupt):
        certify(dies, x, store=path, **options)
    assert len(json.loads(path.read_text())["certificates"]) == 2
    calls.clear()
    seen = []
    assert certify(half_space, x, store=path, progress=lambda done, total: seen.append((done, total)), **options) == whole
    assert seen == [(3, 6), (4, 6), (5, 6), (6, 6)] and [p.name for p in tmp_path.iterdir()] == ["table.json"]
    assert certify(dies, x, store=path, **options) == whole and not calls
    for change, message in (({"sigma": 0.3}, "its sigma is 0.5, here 0.3"), ({"name": "v2"}, "its name"), ({"seed": 1}, "its seed")):
        with pytest.raises(ProbatumError, match=message):
            certify(half_space, x, store=path, **{**options, **change})
    path.write_text("{}")
    with pytest.raises(ProbatumError, match="no file of certificates"):
        certify(half_space, x, store=path, **options)


def test_selection_and_estimation_see_different_noise():
    seen = []
    certify(lambda x: seen.append(x.clone()) or half_space(x), torch.zeros(1, 3), sigma=1.0, n0=50, n=50)
    a, b = seen[0], seen[1]
    assert len(a) == len(b) == 50 and not torch.isclose(a, b).any()


def test_predicting_abstains_in_the_middle_and_answers_away_from_it():
    x = torch.tensor([[0.0], [0.4], [-0.4]]) * W
    assert smoothed_labels(half_space, x, sigma=0.5, n=400) == [ABSTAIN, 1, 0]


def test_certified_accuracy_counts_abstaining_as_wrong():
    x = torch.tensor([[0.0], [0.4], [-0.4], [1.5]]) * W
    found = certify(half_space, x, sigma=0.5, n0=20, n=1000)
    assert found[0].abstained and found[0].radius == 0
    assert certified_accuracy(found, [1, 1, 0, 0]) == 0.5
    assert certified_accuracy(found, [1, 1, 0, 1], 0.9) == 0.25
    with pytest.raises(ProbatumError, match=r"n = 1000 certifies at most r = 1.23"):
        certified_accuracy(found, [1, 1, 0, 1], 1.3, sigma=0.5)
    with pytest.raises(ProbatumError, match="one a certificate"):
        certified_accuracy(found, [1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigma": 0.0}, "sigma must be positive"),
        ({"alpha": 1.0}, "alpha must be between"),
        ({"n": 0}, "n must be an integer"),
        ({"n": 5}, "n = 5 cannot certify any radius"),
        ({"n0": 0}, "n0 must be"),
        ({"rows": 0}, "rows must be"),
        ({"x": torch.zeros(2, 3, dtype=torch.uint8)}, "x must be floating"),
        ({"classifier": lambda x: x.unsqueeze(0)}, "must return"),
        ({"classifier": lambda x: x[:, 0] + 0.5}, "no labels"),
        ({"classifier": lambda x: x / 0}, "not finite"),
        ({"classifier": lambda x: -torch.ones(len(x), dtype=torch.long)}, "0 or more, got -1"),
    ],
)
def test_bad_input(change, message):
    arguments = {"classifier": half_space, "x": torch.ones(2, 3), "sigma": 0.5, "n0": 5, "n": 50, **change}
    classifier, x = arguments.pop("classifier"), arguments.pop("x")
    with pytest.raises(ProbatumError, match=message):
        certify(classifier, x, **arguments)
