"""A torch.optim optimizer that is fed p z as its gradient: for small sets of weights, where z and momentum cost nothing.

A log keeps the optimizer's name and settings beside the slopes, and a replay runs it again.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from probatum.errors import ProbatumError
from probatum.zeroth.weights import Weights, flat

__all__ = ["Rule"]


class Rule:
    """An optimizer of torch.optim by name.

    Args:
        tensors, groups: what it updates, and the group of each, whose learning rate is given at every step.
        spec: {"name": "SGD", "options": {"momentum": 0.9}}.
    Raises:
        ProbatumError: no such optimizer, or options that it does not take.
    """

    def __init__(self, tensors: Sequence[Tensor], groups: Sequence[int], spec: dict[str, Any]) -> None:
        kind: Any = getattr(torch.optim, str(spec["name"]), None)
        if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)) or kind in (torch.optim.Optimizer, torch.optim.LBFGS):
            raise ProbatumError(f"rule must be an optimizer of torch.optim that steps without a closure, got {spec['name']!r}")
        make: Any = kind
        self.tensors = list(tensors)
        self.groups = sorted(set(groups))
        try:
            self.optimizer: torch.optim.Optimizer = make(
                [{"params": [t for t, g in zip(tensors, groups, strict=True) if g == group]} for group in self.groups],
                lr=1.0, **spec["options"],
            )  # fmt: skip
        except (TypeError, ValueError) as error:
            raise ProbatumError(f"rule {spec['name']} does not take {spec['options']}: {error}") from None

    def step(self, weights: Sequence[Weights], step: int, queries: Sequence[int], slopes: Sequence[float], rates: Sequence[float]) -> None:
        """One step along the mean of slope z over the directions; theta must stand unperturbed."""
        for i, tensor in enumerate(self.tensors):
            found = torch.zeros(tensor.numel(), device=tensor.device)
            for at, query, slope in zip(weights, queries, slopes, strict=True):
                z = at.noise.values(step, query, i, tensor.numel(), tensor.device)
                if i in at.masks:
                    at.masks[i].mul_(z, 0, flat(tensor, at.names[i]))
                found.add_(z, alpha=slope / len(slopes))
            gradient = torch.empty_like(tensor)
            flat(gradient, "a gradient").copy_(found)
            tensor.grad = gradient
        for group, of in zip(self.optimizer.param_groups, self.groups, strict=True):
            group["lr"] = rates[of]
        self.optimizer.step()
        for tensor in self.tensors:
            tensor.grad = None
