"""What each process of `test_distributed.py` does, under torchrun: python -m torch.distributed.run ... distributed_worker.py FOLDER."""

import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from probatum import ProbatumError
from probatum.zeroth import AdaZeta, MeZO, QuerySchedule, distribute


def setting(dropout=0.0):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Dropout(dropout), nn.Linear(7, 3))
    x, y = torch.randn(12, 5), torch.randint(3, (12,))
    return model, x, y


def optimizer_of(kind, model):
    if kind == "mezo":
        return MeZO(model.named_parameters(), lr=1e-2, n=5, seed=4)
    if kind == "signs":
        return MeZO(model.named_parameters(), lr=1e-2, n=4, seed=4, noise="rademacher", exact="scratch", model=model)
    return AdaZeta(model.named_parameters(), lr=1e-2, queries=QuerySchedule.power(8, 5, most=5), steps_per_epoch=2, seed=4)


def train(kind, steps, group=None, split="queries", dropout=0.0, share=slice(None)):
    model, x, y = setting(dropout)
    optimizer = optimizer_of(kind, model)
    calls = []
    if group is not None:
        optimizer = distribute(optimizer, split, group=group)

    def closure():
        calls.append(1)
        return nn.functional.cross_entropy(model(x[share]), y[share])

    for _ in range(steps):
        optimizer.step(closure)
    return model, optimizer, len(calls)


def main(folder):
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    groups = {w: dist.new_group(list(range(w))) for w in range(1, world + 1)}
    found = {}
    for size, group in groups.items():
        if rank >= size:
            continue
        for kind in ("mezo", "signs", "adazeta"):
            model, optimizer, calls = train(kind, 10, group)
            found[kind, size] = (model.state_dict(), optimizer.log.arrays(), calls, optimizer.spread.sent)
        model, optimizer, _ = train("mezo", 3, group, dropout=0.3)
        found["dropout", size] = (model.state_dict(), optimizer.log.arrays(), 0, 0)
        share = slice(rank * 12 // size, (rank + 1) * 12 // size)
        model, optimizer, calls = train("mezo", 10, group, split="batch", share=share)
        found["batch", size] = (model.state_dict(), optimizer.log.arrays(), calls, optimizer.spread.sent)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model, x, y = setting()
        alone = distribute(MeZO(model.named_parameters(), lr=1e-2, seed=4), group=groups[world])
        alone.step(lambda: nn.functional.cross_entropy(model(x), y))
    found["idle"] = [str(w.message) for w in told if "never have a direction" in str(w.message)]
    model, x, y = setting()
    if rank == 1:
        model[0].bias.data[0] += 1
    try:
        distribute(MeZO(model.named_parameters(), lr=1e-2, n=3), group=groups[world]).step(lambda: model(x).sum())
        found["refused"] = ""
    except ProbatumError as error:
        found["refused"] = str(error)
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
