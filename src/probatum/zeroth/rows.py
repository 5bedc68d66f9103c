"""Embedding tables of which only the rows that a batch uses are perturbed and updated.

A row whose token is not in the batch cannot change the loss: moving it is a random walk that costs time (half of the weights of a small
encoder are its embedding). z of a table is addressed row by row, so that only used rows are drawn.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from probatum.errors import ProbatumError

if TYPE_CHECKING:
    from probatum.zeroth.weights import Weights

__all__ = ["UsedRows"]


class UsedRows:
    """Hooks on embedding modules that move rows when they are first looked up in a forward.

    Args:
        model: None for replay, which is told the rows.
        tables: index of the tensor -> its parameter.
    """

    def __init__(self, model: nn.Module | None, tables: dict[int, Tensor]) -> None:
        self.tables = tables
        self.weights: Weights | None = None
        self._rows: dict[int, Tensor] = {}
        self._z: dict[int, Tensor] = {}
        self._address = (0, 0)
        self._handles = []
        for module in model.modules() if model is not None else ():
            for parameter in module.parameters(recurse=False):
                i = next((i for i, tensor in tables.items() if tensor is parameter), None)
                if i is None:
                    continue
                if not isinstance(module, nn.Embedding):
                    raise ProbatumError(
                        f"rows='used' needs tables that only nn.Embedding reads, but {type(module).__name__} uses the same weights "
                        "(a tied head uses all rows): take rows='all' or exclude the table"
                    )
                self._handles.append(module.register_forward_pre_hook(self._look_up(i)))

    def _look_up(self, i: int) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if self.weights is not None and self.weights.offset:
                self._add_rows(self.weights, i, inputs[0].unique())

        return hook

    def begin(self, weights: "Weights", step: int, query: int) -> None:
        self.weights, self._address = weights, (step, query)
        self._rows, self._z = {}, {}

    def _add_rows(self, weights: "Weights", i: int, rows: Tensor) -> None:
        known = self._rows.get(i)
        new = rows if known is None else rows[~torch.isin(rows, known)]
        if not len(new):
            return
        z = weights.noise.rows(*self._address, i, new, weights.tensors[i].shape[1])
        self._shift(weights, i, new, z, weights.offset, 0.0)
        self._rows[i] = new if known is None else torch.cat([known, new])
        self._z[i] = z if known is None else torch.cat([self._z[i], z])

    def set_rows(self, weights: "Weights", rows: dict[int, Tensor]) -> None:
        """For replay and for updates after the last query: the rows of the direction at hand, unmoved."""
        for i, some in rows.items():
            self._rows[i] = some
            self._z[i] = weights.noise.rows(*self._address, i, some, weights.tensors[i].shape[1])

    def used(self) -> dict[int, Tensor]:
        """Rows that the direction at hand has moved, by table."""
        return dict(self._rows)

    def move(self, weights: "Weights", times: int, update: Sequence[float] | None) -> None:
        for i, rows in self._rows.items():
            self._shift(weights, i, rows, self._z[i], times, update[i] if update is not None else 0.0)

    def _shift(self, weights: "Weights", i: int, rows: Tensor, z: Tensor, times: int, update: float) -> None:
        table = weights.tensors[i].detach()
        moved = weights.rounded(i, z, times, update)
        table[rows] = (table[rows].to(moved.dtype) + moved).to(table.dtype)

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
