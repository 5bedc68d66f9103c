"""How far an input may be moved without changing the answer of a smoothed classifier (Cohen, Rosenfeld and Kolter 2019, Algorithm 1).

The smoothed classifier answers what the base classifier answers most often on x + N(0, sigma^2 I). If that class has probability at
least p > 1/2, no change of Euclidean length below sigma Phi^-1(p) alters the answer; p is bounded from below by Clopper and Pearson.

>>> round(lower_bound(1000, 1000, 0.001), 5)
0.99312
>>> constant = certify(lambda x: torch.zeros(len(x), dtype=torch.long), torch.rand(2, 3), sigma=0.5, n=300)
>>> [round(c.radius, 3) for c in constant], round(largest_radius(300, 0.5), 3)
([1.0, 1.0], 1.0)
"""

import json
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probatum.errors import ProbatumError
from probatum.files import whole

__all__ = ["ABSTAIN", "Certificate", "certified_accuracy", "certify", "largest_radius", "lower_bound", "smoothed_labels"]

ABSTAIN = -1
BLOCK = 250  # rows of noise drawn from one seed, so that they do not depend on how images are batched
Classifier = Callable[[Tensor], Any]


@dataclass(frozen=True)
class Certificate:
    """Of one image: the label (ABSTAIN where none is certain), the radius in units of the input (0 there), and what was counted."""

    label: int
    radius: float
    hits: int
    n: int

    @property
    def abstained(self) -> bool:
        return self.label == ABSTAIN


def lower_bound(k: int, n: int, alpha: float = 0.001) -> float:
    """Clopper-Pearson: the p for which k or more hits of n have probability alpha; 0 at k = 0, alpha^(1/n) at k = n."""
    from scipy.special import betaincinv

    if not 0 <= k <= n or n < 1:
        raise ProbatumError(f"k of n must be counts with 0 <= k <= n and n >= 1, got k={k!r}, n={n!r}")
    if not 0 < alpha < 1:
        raise ProbatumError(f"alpha must be between 0 and 1, got {alpha!r}")
    return float(betaincinv(k, n - k + 1, alpha)) if k else 0.0


def largest_radius(n: int, sigma: float, alpha: float = 0.001) -> float:
    """What n samples can certify at most, all of them agreeing: sigma Phi^-1(alpha^(1/n))."""
    return max(0.0, sigma * _quantile(lower_bound(n, n, alpha)))


def certify(
    classifier: Classifier,
    x: Tensor,
    *,
    sigma: float,
    n0: int = 100,
    n: int = 10_000,
    alpha: float = 0.001,
    rows: int = 1000,
    seed: int = 0,
    store: str | Path | None = None,
    name: str = "",
    progress: Callable[[int, int], object] | None = None,
) -> list[Certificate]:
    """Certificates of all images, each right with probability 1 - alpha.

    Args:
        classifier: (N, ...) -> logits (N, C), or labels (N,) of an integer type. It must be the whole deployed pipeline, and the answer
            for a row must not depend on its neighbours (eval mode).
        x: (I, ...), images without noise.
        sigma: standard deviation of the noise, in units of the input.
        n0, n: samples that choose the class and, drawn anew, that estimate its probability. n + n0 calls an image.
        alpha: chance that a certificate is wrong.
        rows: most rows a call of the classifier; blocks of several images share a call, which changes no result.
        seed: of the noise; image i and sample j of it always see the same.
        store: JSON file that is rewritten after each batch of images; with it a killed run goes on where it stopped.
        name: what the classifier is, kept in the store: another one may not go on with it.
        progress: called with (images done, images in all).
    Raises:
        ProbatumError: an argument out of range, labels that are negative, a store of another run.
    """
    _check(sigma, alpha, rows, n0=n0, n=n)
    if x.ndim < 2 or not x.is_floating_point() or not len(x):
        raise ProbatumError(f"x must be floating (images, ...), got {x.dtype} {list(x.shape)}")
    head = {
        "format": 1, "sigma": sigma, "n0": n0, "n": n, "alpha": alpha, "seed": seed, "images": len(x), "name": name,
        "shape": list(x.shape[1:]), "crc": zlib.crc32(x.detach().cpu().contiguous().numpy().tobytes()),
    }  # fmt: skip
    found = _load(Path(store), head) if store is not None else []
    per_batch = max(1, rows // (n0 + n))
    while len(found) < len(x):
        batch = range(len(found), min(len(found) + per_batch, len(x)))
        chosen = [max(range(len(c)), key=c.__getitem__) for c in _counts(classifier, x, batch, 0, n0, sigma, rows, seed)]
        counted = _counts(classifier, x, batch, 1, n, sigma, rows, seed)
        for label, counts in zip(chosen, counted, strict=True):
            hits = int(counts[label]) if label < len(counts) else 0
            p = lower_bound(hits, n, alpha)
            found.append(Certificate(label, sigma * _quantile(p), hits, n) if p > 0.5 else Certificate(ABSTAIN, 0.0, hits, n))
        if store is not None:
            _save(Path(store), head, found)
        if progress:
            progress(len(found), len(x))
    return found


def smoothed_labels(
    classifier: Classifier, x: Tensor, *, sigma: float, n: int = 1000, alpha: float = 0.001, rows: int = 1000, seed: int = 0
) -> list[int]:
    """Algorithm 1's PREDICT: the smoothed class, or ABSTAIN where the two most frequent do not differ at level alpha (two-sided)."""
    from scipy.special import bdtr

    _check(sigma, alpha, rows, n=n)
    found = []
    for start in range(0, len(x), max(1, rows // n)):
        batch = range(start, min(start + max(1, rows // n), len(x)))
        for counts in _counts(classifier, x, batch, 2, n, sigma, rows, seed):
            first, second = (*sorted(counts.tolist(), reverse=True), 0)[:2]
            p = min(1.0, 2 * float(bdtr(second, first + second, 0.5)))
            found.append(int(counts.argmax()) if p <= alpha else ABSTAIN)
    return found


def certified_accuracy(
    certificates: Sequence[Certificate], labels: Sequence[int] | Tensor, radius: float = 0.0, *, sigma: float | None = None,
    alpha: float = 0.001,
) -> float:  # fmt: skip
    """Share of images that are labelled rightly and certified to at least `radius` (0: standard accuracy; abstaining counts as wrong).

    Args:
        sigma, alpha: of the certificates; with sigma, a radius that no image could have reached is an error instead of 0.
    """
    truth = [int(label) for label in labels]
    if len(truth) != len(certificates) or not truth:
        raise ProbatumError(f"labels must be one a certificate, got {len(truth)} for {len(certificates)}")
    if not 0 <= radius < math.inf:
        raise ProbatumError(f"radius must be 0 or more, got {radius!r}")
    if sigma is not None:
        reach = largest_radius(certificates[0].n, sigma, alpha)
        if radius > reach:
            raise ProbatumError(
                f"radius={radius:g} is out of reach: n = {certificates[0].n} certifies at most r = {reach:.4g} at sigma {sigma:g}, "
                f"alpha {alpha:g}"
            )
    right = [c.label == y and c.radius >= radius for c, y in zip(certificates, truth, strict=True)]
    return sum(right) / len(right)


def _counts(
    classifier: Classifier, x: Tensor, images: range, phase: int, n: int, sigma: float, rows: int, seed: int
) -> list[np.ndarray]:
    """How often each label came, an array an image."""
    pieces = [(i, block, min(BLOCK, n - block * BLOCK)) for i in images for block in range(-(-n // BLOCK))]
    labels: dict[int, list[Tensor]] = {i: [] for i in images}
    waiting: list[tuple[int, Tensor]] = []

    def ask() -> None:
        answer = _labels(classifier, torch.cat([noisy for _, noisy in waiting]))
        for (i, _), part in zip(waiting, answer.split([len(noisy) for _, noisy in waiting]), strict=True):
            labels[i].append(part)
        waiting.clear()

    filled = 0
    for i, block, size in pieces:
        noise = torch.randn(size, *x.shape[1:], generator=_generator(seed, i, phase, block)).to(x.device, x.dtype)
        for part in (x[i] + sigma * noise).split(rows):
            if waiting and filled + len(part) > rows:
                ask()
                filled = 0
            waiting.append((i, part))
            filled += len(part)
    ask()
    return [np.bincount(torch.cat(labels[i]).cpu().numpy()) for i in images]


def _labels(classifier: Classifier, x: Tensor) -> Tensor:
    with torch.no_grad():
        answer = torch.as_tensor(classifier(x))
    if answer.ndim not in (1, 2) or len(answer) != len(x):
        raise ProbatumError(f"the classifier must return (N, C) or (N,) for {len(x)} rows, got {list(answer.shape)}")
    if answer.ndim == 2:
        if not torch.isfinite(answer).all():
            raise ProbatumError("the classifier returned logits that are not finite")
        return answer.argmax(1)
    if answer.is_floating_point() and not torch.equal(answer, answer.round()):
        raise ProbatumError("the classifier returned (N,) numbers that are no labels")
    if int(answer.min()) < 0:
        raise ProbatumError(f"labels must be 0 or more, got {int(answer.min())}")
    return answer.long()


def _generator(seed: int, *address: int) -> torch.Generator:
    # torch's CPU generator keeps 32 bits of a seed: hash the address into them.
    state = np.random.SeedSequence([seed, *address]).generate_state(1, np.uint32)[0]
    return torch.Generator().manual_seed(int(state))


def _quantile(p: float) -> float:
    from scipy.special import ndtri

    return float(ndtri(p))


def _check(sigma: float, alpha: float, rows: int, **counts: int) -> None:
    if not 0 < sigma < math.inf:
        raise ProbatumError(f"sigma must be positive and finite, got {sigma!r}")
    if not 0 < alpha < 1:
        raise ProbatumError(f"alpha must be between 0 and 1, got {alpha!r}")
    for name, value in (("rows", rows), *counts.items()):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ProbatumError(f"{name} must be an integer of 1 or more, got {value!r}")
    n = counts["n"]
    if "n0" in counts and alpha ** (1 / n) <= 0.5:
        raise ProbatumError(f"n = {n} cannot certify any radius at alpha = {alpha:g}: alpha^(1/n) is {alpha ** (1 / n):.3g}, not above 1/2")


def _load(path: Path, head: dict[str, Any]) -> list[Certificate]:
    try:
        document = json.loads(path.read_text("utf-8"))
        saved, rows = document["head"], document["certificates"]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise ProbatumError(f"store={str(path)!r} is no file of certificates") from error
    other = [key for key in head if saved.get(key) != head[key]]
    if other:
        raise ProbatumError(
            f"store={str(path)!r} belongs to another run: its {other[0]} is {saved.get(other[0])!r}, here {head[other[0]]!r}"
        )
    return [Certificate(**row) for row in rows]


def _save(path: Path, head: dict[str, Any], found: list[Certificate]) -> None:
    with whole(path) as partial:
        partial.write_text(json.dumps({"head": head, "certificates": [asdict(c) for c in found]}), "utf-8")
