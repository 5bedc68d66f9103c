"""HiFT in Hugging Face's Trainer."""

from typing import Any

from transformers import TrainerCallback

from probatum.errors import ProbatumError
from probatum.finetune.hift import HiFT, by_cycle

__all__ = ["HiFTCallback"]


class HiFTCallback(TrainerCallback):
    """`Trainer(..., callbacks=[HiFTCallback()])` trains a group of layers a step, with the optimizer and schedule that Trainer makes.

    The group changes once an optimizer step, after accumulated micro-batches; the schedule is held still within a cycle; checkpoints hold
    the state of all groups, and resuming takes up the cycle where it was.

    Args:
        reference_schedule: move the schedule one step a cycle, as the authors' code does.
        options: as HiFT's (groups, order, m, state, folder, max_group_bytes, sparse_embeddings, seed); none where Trainer is given a
            HiFT as its optimizer.
    Raises:
        ProbatumError: at the start of training: several processes, a schedule that is no function of the step, options for a HiFT that
            is made already.
    """

    def __init__(self, *, reference_schedule: bool = False, **options: Any) -> None:
        self.reference_schedule, self.options = reference_schedule, options
        self.hift: HiFT | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **found: Any) -> None:
        if args.world_size > 1:
            raise ProbatumError(
                f"{args.world_size} processes: Trainer has wrapped the model, whose reducer expects a gradient of every parameter; HiFT "
                "with Trainer runs on one"
            )
        outer, schedule = found["optimizer"], found["lr_scheduler"]
        inner = getattr(outer, "optimizer", outer)
        if isinstance(inner, HiFT):
            if self.options:
                raise ProbatumError(f"the optimizer is a HiFT already, so {sorted(self.options)} would have no effect here")
            self.hift = inner
        elif inner is outer:
            raise ProbatumError(f"{type(outer).__name__} cannot be exchanged in this Trainer: pass optimizers=(HiFT(...), None)")
        else:
            self.hift = outer.optimizer = HiFT(found["model"], inner, **self.options)
        self.hift.seek(state.global_step)
        factors = getattr(schedule, "lr_lambdas", None)
        if factors is None:
            raise ProbatumError(
                f"{type(schedule).__name__} is no function of the step, so it cannot be held still within a cycle: take a schedule that "
                "is (linear, cosine, constant, ...)"
            )
        cycle, total = self.hift.cycle, max(1, state.max_steps)
        schedule.lr_lambdas = [by_cycle(f, cycle, total, reference=self.reference_schedule) for f in factors]
        for group, base, factor in zip(self.hift.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
            group["lr"] = base * factor(schedule.last_epoch)
        schedule._last_lr = [group["lr"] for group in self.hift.param_groups]

    def on_train_end(self, args: Any, state: Any, control: Any, **found: Any) -> None:
        if self.hift is not None:
            self.hift.release()
