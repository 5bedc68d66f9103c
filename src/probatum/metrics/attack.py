"""The largest loss within a Euclidean ball around each input, sought by projected gradient steps (Madry et al. 2018).

>>> x = torch.zeros(2, 3)
>>> moved = pgd_l2(lambda x: x.sum(1), x, radius=0.5, steps=3)
>>> torch.allclose(moved, 0.5 * torch.ones(2, 3) / 3**0.5)
True
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from probatum.errors import ProbatumError

__all__ = ["pgd_l2"]


def pgd_l2(
    loss: Callable[[Tensor], Tensor], x: Tensor, radius: float, *, steps: int = 20, size: float | None = None
) -> Tensor:
    """Inputs of the same shape, each at most `radius` away, whose losses are as high as `steps` steps found.

    Args:
        loss: (B, ...) -> (B,), differentiable; a sample's loss depends on that sample alone.
        size: length of a step; default 2.5 radius / steps.
    """
    if not 0 < radius < math.inf or steps < 1:
        raise ProbatumError(f"radius must be positive and steps 1 or more, got {radius!r} and {steps!r}")
    size = 2.5 * radius / steps if size is None else size
    moved = torch.zeros_like(x)
    best, worst = moved, torch.full((len(x),), -math.inf, device=x.device)
    for step in range(steps + 1):
        point = (x + moved).requires_grad_()
        value = loss(point)
        better = value.detach() > worst
        best = torch.where(better.view(-1, *[1] * (x.ndim - 1)), moved, best)
        worst = torch.where(better, value.detach().to(worst.dtype), worst)
        if step == steps:
            break
        (gradient,) = torch.autograd.grad(value.sum(), point)
        moved = moved + size * gradient / _norm(gradient)
        moved = moved * (radius / _norm(moved)).clamp(max=1)
    return x + best


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, *[1] * (x.ndim - 1))
