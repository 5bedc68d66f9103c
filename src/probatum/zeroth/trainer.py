"""Hugging Face's Trainer with steps from forward passes alone."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from probatum.errors import ProbatumError
from probatum.zeroth.optimizer import ZerothOrder

__all__ = ["MeZOTrainer"]


class MeZOTrainer(Trainer):
    """A `transformers.Trainer` whose training step is a zeroth-order step; everything else (schedules, evaluation, checkpoints) stays.

    Checkpoints hold the optimizer with its log, so a resumed run goes on bit for bit and its log is whole.

    Args:
        args: as Trainer's; `learning_rate` and `weight_decay` are MeZO's unless an optimizer is given.
        eps, n, seed: as MeZO's.
        objective: `objective(outputs, inputs) -> number` replaces the model's loss: any quantity to make small, such as an error rate.
        options: what else MeZO takes ("noise", "exact", "include", "exclude", "clip").
    Raises:
        ProbatumError: gradient accumulation above 1 (use a larger batch: no activation is kept), or an optimizer that is not
            zeroth-order.
    """

    def __init__(
        self,
        *args: Any,
        eps: float = 1e-3,
        n: int = 1,
        seed: int = 0,
        objective: Callable[[Any, dict[str, Any]], Any] | None = None,
        options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self._mezo = {"eps": eps, "n": n, "seed": seed, **(options or {})}
        self._objective = objective
        super().__init__(*args, **kwargs)
        if self.args.gradient_accumulation_steps > 1:
            raise ProbatumError(
                f"gradient_accumulation_steps must be 1, got {self.args.gradient_accumulation_steps}: there is no gradient; forward "
                "passes keep no activations, so take a larger per_device_train_batch_size"
            )
        if self.optimizer is not None and not isinstance(self.optimizer, ZerothOrder):
            raise ProbatumError(f"the optimizer must be a zeroth-order one (MeZO), got {type(self.optimizer).__name__}")

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """MeZO over what is trainable."""
        if self.optimizer is None:
            from probatum.zeroth.mezo import MeZO

            tuned = self.model if model is None else model
            setting = {
                "lr": self.args.learning_rate,
                "weight_decay": self.args.weight_decay,
                "model": tuned,
                **self._mezo,
            }
            self.optimizer = MeZO(tuned.named_parameters(), **setting)  # type: ignore[union-attr]
        return self.optimizer

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Two forwards a direction; the model is in evaluation mode, as in the paper's code."""
        model.eval()
        inputs = self._prepare_inputs(inputs)

        def loss() -> Any:
            with self.compute_loss_context_manager():
                if self._objective is not None:
                    return self._objective(model(**inputs), inputs)
                return self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)

        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)  # accelerate wraps it
        value = optimizer.step(loss)  # type: ignore[union-attr]
        optimizer._made = True  # type: ignore[union-attr]
        return value.to(self.args.device, torch.float32)  # type: ignore[union-attr]
