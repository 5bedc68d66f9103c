"""What a step of a fine-tuning method costs: hift beside AdamW on all weights and beside the forward alone.

    python benchmarks/finetune.py [rounds]

One process, two threads, the 22.7 M sentence encoder at 16 x 64 tokens of real text. Arms alternate in every round, each is divided by
that round's AdamW step; printed are medians and quartiles, and the bytes of gradient and optimizer state that a step holds. A HiFT arm's time is
the mean over a cycle. The limit is (L + L/2 + 1) / 3L = 0.56 for 6 blocks, if every layer costs alike and the optimizer nothing.
"""

import copy
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from statistics import median, quantiles

THREADS = min(2, os.cpu_count() or 1)
os.environ["OMP_NUM_THREADS"] = str(THREADS)  # before torch reads it

import torch  # noqa: E402

from probatum.claims.zeroth.mezo import _encoder  # noqa: E402
from probatum.finetune import HiFT, measure  # noqa: E402


def hift(rounds: int) -> None:
    model, batches = _encoder(0)
    inputs, labels = batches[0]

    def loss_of(net: torch.nn.Module) -> Callable[[], torch.Tensor]:
        return lambda: torch.nn.functional.cross_entropy(net(**inputs).logits, labels)

    def adamw(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=1e-6)

    nets = {name: copy.deepcopy(model) for name in ("adamw", "hift", "hift, rows", "hift, rows, disk")}
    optimizers: dict[str, torch.optim.Optimizer] = {
        "adamw": adamw(list(nets["adamw"].parameters())),
        "hift": HiFT(nets["hift"], adamw),
        "hift, rows": HiFT(nets["hift, rows"], adamw, sparse_embeddings=True),
        "hift, rows, disk": HiFT(nets["hift, rows, disk"], adamw, sparse_embeddings=True, state="disk"),
    }
    cycle = optimizers["hift"].cycle

    def forward() -> None:
        with torch.no_grad():
            loss_of(model)()

    def step(name: str) -> None:
        optimizers[name].zero_grad()
        loss_of(nets[name])().backward()
        optimizers[name].step()

    held = {name: measure(nets[name], optimizers[name], loss_of(nets[name]), steps=cycle).tuning for name in optimizers}
    times: dict[str, list[float]] = {name: [] for name in ["forward", *optimizers]}
    for r in range(rounds):
        for name in list(times) if r % 2 else list(times)[::-1]:
            begun = time.perf_counter()
            for _ in range(cycle):
                step(name) if name != "forward" else forward()
            times[name].append((time.perf_counter() - begun) / cycle)
    print(f"{'step':24}{'ms':>8}{'x adamw':>10}{'quartiles':>16}{'MiB held':>10}")
    for name, taken in times.items():
        ratios = [a / b for a, b in zip(taken, times["adamw"], strict=True)]
        low, _, high = quantiles(ratios, n=4)
        spread = f"{low:.2f} to {high:.2f}"
        print(f"{name:24}{1e3 * median(taken):8.0f}{median(ratios):10.2f}{spread:>16}{held.get(name, 0) / 2**20:10.1f}")


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    print(f"torch {torch.__version__}, transformers {version('transformers')}, {THREADS} threads")
    hift(int(sys.argv[1]) if len(sys.argv) > 1 else 9)
