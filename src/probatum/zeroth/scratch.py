"""Running modules on perturbed copies of their weights, so that theta itself is only ever written by updates."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from probatum.errors import ProbatumError
from probatum.zeroth.weights import Weights

__all__ = ["Scratch"]


class Scratch:
    """Hooks on every module that owns a tuned tensor: before its forward the tensor is exchanged for a copy, after it put back.

    Costs memory for the largest module, and drawing z once a forward. A weight that is used without its module being called (the output
    projection of `nn.MultiheadAttention`) would stay as it is: that is noticed and refused.
    """

    def __init__(self, model: nn.Module, weights: Weights) -> None:
        self.weights, self.times, self.used = weights, 0, set[int]()
        index = {id(tensor): i for i, tensor in enumerate(weights.tensors)}
        owned: set[int] = set()
        self._handles = []
        for module in model.modules():
            mine = [(tensor, index[id(tensor)]) for tensor in module.parameters(recurse=False) if id(tensor) in index]
            if mine:
                owned.update(i for _, i in mine)
                kept: list[list[Tensor]] = []
                self._handles.append(module.register_forward_pre_hook(self._enter(mine, kept)))  # type: ignore[arg-type]
                self._handles.append(module.register_forward_hook(self._leave(mine, kept), always_call=True))  # type: ignore[arg-type]
        missing = [weights.names[i] for i in range(len(weights.tensors)) if i not in owned]
        if missing:
            raise ProbatumError(
                f"{missing[0]} is no parameter of the model that was given: exact='scratch' works through its modules"
            )

    def _enter(self, mine: list[tuple[Tensor, int]], kept: list[list[Tensor]]) -> Any:
        def hook(module: nn.Module, inputs: Any) -> None:
            if self.times:
                kept.append([tensor.data for tensor, _ in mine])
                for tensor, i in mine:
                    self.used.add(i)
                    tensor.data = self.weights.perturbed(i, self.times)

        return hook

    def _leave(self, mine: list[tuple[Tensor, int]], kept: list[list[Tensor]]) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if self.times and kept:
                for (tensor, _), data in zip(mine, kept.pop(), strict=True):
                    tensor.data = data

        return hook

    @contextmanager
    def at(self, times: int) -> Iterator[None]:
        """Within it the model's forward is that of theta + times eps z."""
        self.times = times
        try:
            yield
        finally:
            self.times = 0

    def check(self) -> None:
        """After a pair: every tuned tensor was reached."""
        idle = [name for i, name in enumerate(self.weights.names) if i not in self.used]
        if idle:
            raise ProbatumError(
                f"{idle[0]} is used without its module being called (or not at all), so exact='scratch' cannot perturb it: "
                "use exact='lattice', or exclude it"
            )

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
