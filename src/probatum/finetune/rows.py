"""Embedding tables trained by the rows that a batch looks up: a gradient and an optimizer state of those rows, not of the table."""

from typing import Any

import torch
from torch import Tensor, nn

from probatum.errors import ProbatumError
from probatum.finetune.offload import Offload

__all__ = ["Table"]


class Table:
    """One table. While `on`, its modules look up in a copy of the batch's rows, which gets the gradient; the table itself gets none.

    Args:
        name, weight: the parameter.
        modules: every `nn.Embedding` that reads it.
        offload: keeps its optimizer state.
    """

    def __init__(self, name: str, weight: nn.Parameter, modules: list[nn.Embedding], offload: Offload) -> None:
        self.name, self.weight, self.offload, self.on = name, weight, offload, False
        self.state: dict[str, Any] = {}  # as the optimizer's, with whole tensors
        self._looked: list[tuple[Tensor, Tensor]] = []  # (ids, rows) of each forward
        self._handles = [module.register_forward_hook(self._look_up) for module in modules]  # type: ignore[arg-type]

    @staticmethod
    def of(model: nn.Module, trainable: dict[str, Tensor], offload: Offload) -> list["Table"]:
        """The trainable tables of a model.

        Raises:
            ProbatumError: there is none, or a table is also read by another module (a tied head uses all rows).
        """
        names = {id(tensor): name for name, tensor in trainable.items()}
        users: dict[int, list[tuple[str, nn.Module]]] = {}
        for label, module in model.named_modules():
            for parameter in module.parameters(recurse=False):
                if id(parameter) in names:
                    users.setdefault(id(parameter), []).append((label, module))
        made = []
        for key, using in users.items():
            if not any(isinstance(module, nn.Embedding) for _, module in using):
                continue
            for label, module in using:
                if not isinstance(module, nn.Embedding):
                    raise ProbatumError(
                        f"sparse_embeddings: {names[key]} is tied to {label} ({type(module).__name__}), which uses all its rows, so its "
                        "gradient is dense; leave sparse_embeddings off"
                    )
                if module.max_norm is not None or module.scale_grad_by_freq:
                    raise ProbatumError(f"sparse_embeddings: {label} has max_norm or scale_grad_by_freq, which need the whole table")
            weight = trainable[names[key]]
            assert isinstance(weight, nn.Parameter)
            made.append(Table(names[key], weight, [module for _, module in using], offload))  # type: ignore[misc]
        if not made:
            raise ProbatumError(f"sparse_embeddings: {type(model).__name__} has no trainable nn.Embedding")
        return made

    def _look_up(self, module: nn.Embedding, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not (self.on and torch.is_grad_enabled()):
            return output
        ids, place = inputs[0].unique(return_inverse=True)
        rows = self.weight.detach()[ids].requires_grad_(True)
        self._looked.append((ids, rows))
        found = rows[place]
        if module.padding_idx is not None:  # nn.Embedding gives that row no gradient
            found = torch.where(inputs[0].eq(module.padding_idx).unsqueeze(-1), found.detach(), found)
        return found

    def gradient_bytes(self) -> int:
        """Of the rows looked up since the last step."""
        return sum(rows.numel() * rows.element_size() for _, rows in self._looked if rows.grad is not None)

    def forget(self) -> None:
        """Drop the gradients."""
        self._looked.clear()

    def rows(self) -> tuple[Tensor, nn.Parameter, dict[str, Any]] | None:
        """The distinct rows of all forwards since the last step: their ids, a parameter with their gradient, and its optimizer state."""
        looked = [(ids, rows) for ids, rows in self._looked if rows.grad is not None]
        self._looked.clear()
        if not looked:
            return None
        if len(looked) == 1:
            ids, gradient = looked[0][0], looked[0][1].grad
        else:
            ids, place = torch.cat([ids for ids, _ in looked]).unique(return_inverse=True)
            gradient = self.weight.new_zeros(len(ids), self.weight.shape[1])
            gradient.index_add_(0, place, torch.cat([rows.grad for _, rows in looked]))  # type: ignore[misc]
        proxy = nn.Parameter(self.weight.detach()[ids])
        proxy.grad = gradient
        state = {
            key: value[ids.to(value.device)].to(proxy.device) if self._whole(value) else value
            for key, value in self.state.items()
        }
        return ids, proxy, state

    @torch.no_grad()
    def write(self, ids: Tensor, proxy: nn.Parameter, state: dict[str, Any]) -> None:
        """Put stepped rows and their state back."""
        self.weight[ids] = proxy.detach()
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == proxy.shape:
                if key not in self.state:
                    self.state[key] = self.offload.table(self.name, key, value, len(self.weight))
                whole = self.state[key]
                whole[ids.to(whole.device)] = value.to(whole.device)
            else:
                self.state[key] = value

    def adopt(self, state: dict[str, Any]) -> None:
        """Take over a whole state, such as one that was loaded."""
        self.state = {
            key: self.offload.table(self.name, key, value, len(self.weight), source=value) if self._whole(value) else value
            for key, value in state.items()
        }

    def _whole(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.shape == self.weight.shape

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
