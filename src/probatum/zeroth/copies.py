"""Few weights, kept aside while they are perturbed: restoring is copying, exact in every dtype and with no lattice."""

from collections.abc import Sequence

import torch
from torch import Tensor

from probatum.zeroth.weights import Weights

__all__ = ["Copied"]


class Copied(Weights):
    """`Weights` that return to theta by a copy of it; one more copy of the tuned tensors in memory.

    Only updates leave a trace in theta, as with exact="scratch", under which name logs keep it: they replay the same way.
    """

    @classmethod
    def of(cls, weights: Weights) -> "Copied":
        """The same tensors, noise and eps."""
        return cls(weights.names, weights.tensors, weights.noise, weights.eps, "scratch", masks=weights.masks)

    def begin(self, step: int, query: int) -> None:
        super().begin(step, query)
        if not hasattr(self, "_saved"):
            self._saved = [torch.empty_like(t) for t in self.tensors]
        torch._foreach_copy_(self._saved, [t.detach() for t in self.tensors])

    def move(self, times: int, update: Sequence[float] | None = None) -> None:
        target = self.offset + times
        if self.offset:
            torch._foreach_copy_([t.detach() for t in self.tensors], self._saved)
            self.offset = 0
        if target or update is not None:
            super().move(target, update)

    def perturbed(self, i: int, times: int) -> Tensor:
        raise AssertionError("copies are moved in place")
