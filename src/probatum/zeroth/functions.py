"""Gradient estimates of functions of vectors from their values alone: a batch of samples, each with its own function and directions.

A function here takes points (R, B, d), R trials of all B samples at once, and returns their values (R, B). What it does with the B
samples (labels, masks, a remote model behind it) is its own; no value of one sample may depend on the point of another.

>>> c = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]], dtype=torch.float64)
>>> found = cge(lambda points: (points * c).sum(-1), torch.zeros(2, 3, dtype=torch.float64), mu=0.1)
>>> torch.allclose(found.gradient, c), found.rows
(True, 12)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from probatum.errors import ProbatumError
from probatum.zeroth.noise import Noise

__all__ = ["DIRECTIONS", "Direction", "Estimate", "cge", "rge", "zo_backward"]

Direction = Literal["sphere", "gaussian", "rademacher"]
DIRECTIONS = ("sphere", "gaussian", "rademacher")
Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Estimate:
    """What the queries said.

    gradient: (B, d), one row a sample. value: (B,), the function at x where one-sided, the mean over the pairs where two-sided.
    rows: evaluations, samples counted one by one. flat: share of differences that are exactly zero; near 1 the function's output is
    rounded, a label, or mu is lost in the precision.
    """

    gradient: Tensor
    value: Tensor
    rows: int
    flat: float


def rge(
    f: Function,
    x: Tensor,
    q: int,
    mu: float = 5e-3,
    *,
    noise: Noise,
    step: int = 0,
    direction: Direction = "sphere",
    two_sided: bool = False,
    trials: int | None = None,
) -> Estimate:
    """Randomised estimate: (c / q) sum over q directions u of (f(x + mu u) - f(x)) / mu times u.

    c is d for directions on the unit sphere and 1 for Gaussian ones and signs, so that the mean over u is the gradient of a linear f.
    On the sphere E|g|^2 = |grad|^2 (d + q - 1) / q.

    Args:
        f: (R, B, d) -> (R, B).
        x: (B, d), floating point.
        q: directions a sample; q + 1 evaluations a sample, or 2 q where two-sided.
        mu: length of the perturbation, above 0.
        noise, step: where directions come from; another step, other directions. Every sample has its own.
        direction: "rademacher" needs a `Noise` of that kind, the others a Gaussian one.
        trials: at most so many trials a call of f, to bound memory; None makes one call (and one for the base).
    Raises:
        ProbatumError: an argument out of range; values that are not finite, not (R, B), or have a graph.
    """
    _check(x, mu, trials)
    if isinstance(q, bool) or not isinstance(q, int) or q < 1:
        raise ProbatumError(f"q must be an integer of 1 or more (directions a sample), got {q!r}")
    if direction not in DIRECTIONS:
        raise ProbatumError(f"direction must be one of {', '.join(DIRECTIONS)}, got {direction!r}")
    if (direction == "rademacher") != (noise.kind == "rademacher"):
        raise ProbatumError(f"direction={direction!r} does not go with noise of kind {noise.kind!r}")
    samples, d = x.shape
    u = noise.values(step, 0, 0, q * samples * d, x.device).view(q, samples, d).to(x.dtype)
    if direction == "sphere":
        u = u / u.norm(dim=-1, keepdim=True)
    slopes, value, rows, flat = _slopes(f, x, u, mu, two_sided, trials)
    gradient = torch.einsum("qb,qbd->bd", slopes, u) * ((d if direction == "sphere" else 1) / q)
    return Estimate(gradient, value, rows, flat)


def cge(
    f: Function,
    x: Tensor,
    indices: Tensor | None = None,
    mu: float = 5e-3,
    *,
    two_sided: bool = True,
    trials: int | None = None,
) -> Estimate:
    """Coordinate-wise estimate: a finite difference along each of `indices`, 0 elsewhere.

    Args:
        f, x, mu, trials: as `rge`.
        indices: (K,) coordinates, the same for all samples; None takes all d.
        two_sided: central differences, 2 K evaluations a sample and an error of mu^2; else K + 1 and an error of mu.
    Raises:
        ProbatumError: as `rge`; indices out of range or repeated.
    """
    _check(x, mu, trials)
    d = x.shape[1]
    if indices is None:
        indices = torch.arange(d, device=x.device)
    if indices.ndim != 1 or not len(indices) or int(indices.min()) < 0 or int(indices.max()) >= d:
        raise ProbatumError(f"indices must be (K,) coordinates from 0 to {d - 1}, got {indices.tolist()[:8]}")
    if len(indices.unique()) != len(indices):
        raise ProbatumError("indices must not repeat a coordinate")
    # Unit vectors are the same for all samples: (K, 1, d) broadcasts, and only the sum with x is ever written out.
    u = torch.zeros(len(indices), 1, d, dtype=x.dtype, device=x.device)
    u[torch.arange(len(indices)), 0, indices] = 1
    slopes, value, rows, flat = _slopes(f, x, u, mu, two_sided, trials)
    gradient = torch.zeros_like(x)
    gradient[:, indices] = slopes.T
    return Estimate(gradient, value, rows, flat)


def zo_backward(r: Tensor, a: Tensor) -> None:
    """Join queried gradients to autograd: the backward of mean over samples of <a_i, r_i> with a held constant.

    Args:
        r: (B, ...) with a graph: what was handed to the function that can only be queried.
        a: (B, ...) of the same number of entries: the gradient of each sample's own loss with respect to its r.

    With exact a this is backpropagation through the mean of the samples' losses.

    >>> w = torch.tensor(2.0, requires_grad=True)
    >>> r = w * torch.ones(4, 3)
    >>> zo_backward(r, torch.full((4, 3), 0.5))
    >>> w.grad
    tensor(1.5000)
    """
    if not r.requires_grad:
        raise ProbatumError("r must have a graph: it is the output of the part that is trained")
    if a.numel() != r.numel() or len(a) != len(r):
        raise ProbatumError(f"a must have one row a sample like r {list(r.shape)}, got {list(a.shape)}")
    r.backward(a.detach().reshape(r.shape).to(r.dtype) / len(r))


def _slopes(
    f: Function, x: Tensor, u: Tensor, mu: float, two_sided: bool, trials: int | None
) -> tuple[Tensor, Tensor, int, float]:
    """Directional derivatives (R, B) along u (R, B or 1, d), the value (B,), evaluations, and the share of zero differences."""
    with torch.no_grad():
        x = x.detach()
        base = None if two_sided else _values(f, x.unsqueeze(0))
        parts = []
        # A chunk sends x + mu u and x - mu u in one call: an endpoint is asked for whole batches.
        for some in u.split(trials or len(u)):
            points = torch.cat([x + mu * some, x - mu * some]) if two_sided else x + mu * some
            values = _values(f, points)
            if base is None:
                plus, minus = values.chunk(2)
            else:
                plus, minus = values, base.expand_as(values)
            parts.append(torch.stack([plus, minus]))
        plus, minus = torch.cat(parts, dim=1)
        difference = plus - minus
        value = (plus + minus).mean(0) / 2 if base is None else base[0]
        rows = x.shape[0] * (2 * len(u) if two_sided else len(u) + 1)
        return difference / (2 * mu if two_sided else mu), value, rows, float((difference == 0).double().mean())


def _values(f: Function, points: Tensor) -> Tensor:
    values = f(points)
    if not isinstance(values, Tensor) or values.shape != points.shape[:2]:
        got = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ProbatumError(f"f must return one value a point, {list(points.shape[:2])} for {list(points.shape)}, got {got}")
    if not torch.isfinite(values).all():
        raise ProbatumError(f"f returned {int((~torch.isfinite(values)).sum())} values that are not finite")
    return values


def _check(x: Tensor, mu: float, trials: int | None) -> None:
    if x.ndim != 2 or not x.is_floating_point() or not x.numel():
        raise ProbatumError(f"x must be floating (samples, d), got {x.dtype} {list(x.shape)}")
    if not 0 < mu < math.inf:
        raise ProbatumError(f"mu must be positive and finite, got {mu!r}")
    if trials is not None and trials < 1:
        raise ProbatumError(f"trials must be 1 or more, got {trials!r}")
