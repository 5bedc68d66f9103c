"""Classifiers of series by layer, and their training: what the claims and the comparison of this family share."""

import time
from collections.abc import Iterable
from typing import Any

WIDTH, STATE = 32, 32


def classifier(layer: str, inputs: int, classes: int, generator: Any) -> Any:
    """A classifier of (B, L, inputs): two blocks of width 32 and state 32, or a GRU of about as many parameters, read at the mean of its states."""
    from torch import Tensor, nn

    from probatum.sequence import S4D, S4PTD, SequenceModel, SSMBlock
    from probatum.sequence.dplr import S4

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru, self.head = nn.GRU(inputs, 40, num_layers=2, batch_first=True), nn.Linear(40, classes)

        def forward(self, u: Tensor) -> Tensor:
            return self.head(self.gru(u)[0].mean(1))

    if layer == "GRU":
        return Recurrent()
    make = {
        "S4 (DPLR)": lambda: S4(WIDTH, STATE, generator=generator),
        "S4D-LegS": lambda: S4D(WIDTH, STATE, init="legs", generator=generator),
        "S4D-Lin": lambda: S4D(WIDTH, STATE, init="lin", generator=generator),
        "S4D-Inv": lambda: S4D(WIDTH, STATE, init="inv", generator=generator),
        "S4D-Real": lambda: S4D(WIDTH, STATE, init="real", generator=generator),
        "S4-PTD": lambda: S4PTD(WIDTH, STATE, generator=generator),
    }[layer]
    return SequenceModel(inputs, classes, [SSMBlock(make(), dropout=0.1) for _ in range(2)])


def train(layer: str, x: Any, y: Any, classes: int, steps: Iterable[int], count: int, seed: int, rate: float) -> tuple[Any, list[float]]:
    """Train on x (n, L, inputs) and y (n,), batches of 64, AdamW as the paper (SSM parameters at 1e-3 without decay), one cycle to `rate`.

    Args:
        steps: `count` steps, which a caller may wrap in a progress bar.
    Returns:
        The model in evaluation mode, and the seconds of each step.
    """
    import torch
    from torch import nn

    from probatum.sequence import param_groups

    torch.manual_seed(seed)  # the GRU, linear layers and dropout; our worker processes have no other use of it
    generator = torch.Generator().manual_seed(seed)
    model = classifier(layer, x.shape[2], classes, generator)
    optimizer = torch.optim.AdamW(param_groups(model, rate, 0.01))
    rates = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=count, pct_start=0.1)
    taken = []
    for _ in steps:
        begun = time.perf_counter()
        batch = torch.randint(len(x), (min(64, len(x)),), generator=generator)
        loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        taken.append(time.perf_counter() - begun)
    return model.eval(), taken
