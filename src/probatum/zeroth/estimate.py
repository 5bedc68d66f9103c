"""The two-point estimate: how the loss changes along a random direction, from two forward passes (SPSA, Spall 1992)."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from probatum.errors import ProbatumError
from probatum.zeroth.scratch import Scratch
from probatum.zeroth.weights import Weights

__all__ = ["Pair", "loss_value", "spsa_pair"]


@dataclass(frozen=True)
class Pair:
    """The losses at theta + eps z and theta - eps z; `slope` is their difference over 2 eps, an estimate of z'g."""

    plus: float
    minus: float
    eps: float

    @property
    def slope(self) -> float:
        return (self.plus - self.minus) / (2 * self.eps)

    @property
    def mean(self) -> float:
        return (self.plus + self.minus) / 2


def loss_value(loss: Any) -> float:
    """What a closure returned, as a number.

    Raises:
        ProbatumError: None, more than one number, or a loss that was computed before the closure was called.
    """
    if isinstance(loss, Tensor):
        if loss.numel() != 1:
            raise ProbatumError(
                f"the closure must return one number, got a tensor of shape {list(loss.shape)}: take its mean"
            )
        if loss.requires_grad:
            raise ProbatumError(
                "the closure returned a loss with a graph, so it was computed outside of step(): the forward pass must run inside "
                "the closure, which is called again for every perturbation"
            )
        return float(loss)
    if loss is None:
        raise ProbatumError("the closure returned None: it must return the loss")
    try:
        return float(loss)
    except (TypeError, ValueError):
        raise ProbatumError(f"the closure must return one number, got {type(loss).__name__}") from None


def spsa_pair(
    closure: Callable[[], Any], weights: Weights, scratch: Scratch | None = None, devices: Iterable[torch.device] = ()
) -> Pair:
    """Call the closure at theta + eps z and theta - eps z, for the direction that `weights.begin` chose.

    Both calls see the same state of torch's generators (dropout then cancels); afterwards they stand where one call leaves them. In
    place, theta is left at - eps z (`weights.offset`), since restoring and updating are one pass; if the closure raises, theta is
    restored first. Gradients are off.
    """
    with torch.no_grad():
        state = _state(devices)
        try:
            with _at(weights, scratch, 1):
                plus = loss_value(closure())
            _restore(state)
            with _at(weights, scratch, -1):
                minus = loss_value(closure())
        except BaseException:
            if weights.offset:
                weights.move(-weights.offset)
            raise
        if scratch is not None:
            scratch.check()
        return Pair(plus, minus, weights.eps)


def _at(weights: Weights, scratch: Scratch | None, times: int) -> Any:
    if scratch is not None:
        return scratch.at(times)
    weights.move(times - weights.offset)
    return nullcontext()


def _state(devices: Iterable[torch.device]) -> list[tuple[torch.device | None, Tensor]]:
    found: list[tuple[torch.device | None, Tensor]] = [(None, torch.get_rng_state())]
    return found + [(device, torch.cuda.get_rng_state(device)) for device in devices if device.type == "cuda"]


def _restore(state: list[tuple[torch.device | None, Tensor]]) -> None:
    for device, content in state:
        if device is None:
            torch.set_rng_state(content)
        else:
            torch.cuda.set_rng_state(content, device)
