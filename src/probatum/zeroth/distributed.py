"""Zeroth-order steps over several processes (torchrun), between which nothing but losses travels: 16 bytes a direction.

Every process holds the model, knows every direction by its number, and makes the same update; no gradient and no weight is sent. With
split="queries" process r of W asks directions r, r + W, ... of a step, and parameters and log are those of one process, bit for bit, for
any W. With split="batch" every process asks all directions on its own share of the batch and losses are averaged, which helps where a step
has a single direction.

    torch.distributed.init_process_group("gloo")
    optimizer = distribute(MeZO(model.named_parameters(), lr=1e-3, n=8))
    optimizer.step(closure)                                                     # on every process, with the same batch
"""

import json
import math
import warnings
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import torch
import torch.distributed as dist

from probatum.errors import ProbatumError
from probatum.zeroth.estimate import Pair

if TYPE_CHECKING:
    from probatum.zeroth.optimizer import ZerothOrder

__all__ = ["Spread", "distribute"]

Split = Literal["queries", "batch"]
Optimizer = TypeVar("Optimizer", bound="ZerothOrder")


def distribute(optimizer: Optimizer, split: Split = "queries", *, group: "dist.ProcessGroup | None" = None) -> Optimizer:
    """Share the work of `optimizer.step` among the processes of a group; call it on each of them, before the first step.

    A loss that draws random numbers (dropout) sees a state that depends on seed, step and direction alone, and leaves torch's own
    untouched.

    Args:
        optimizer: of this process, over the same weights and with the same arguments in all.
        split: "queries" (closures see the same batch everywhere) or "batch" (each its own, of equal size).
        group: default the world; gloo, or nccl where the weights are on CUDA.
    Returns:
        The optimizer itself.
    Raises:
        ProbatumError: no process group; exact="off", whose rounding depends on the directions a process has tried; rows="used".
            At a step, on every process: other weights, settings or learning rates than process 0 has.
    """
    if split not in get_args(Split):
        raise ProbatumError(f"split must be one of {', '.join(get_args(Split))}, got {split!r}")
    if not (dist.is_available() and dist.is_initialized()):
        raise ProbatumError("there is no process group: start with torchrun and call torch.distributed.init_process_group('gloo')")
    if optimizer.exact == "off":
        raise ProbatumError(
            "exact='off' leaves rounding behind that differs between processes: take 'lattice', or 'scratch' with model="
        )
    if optimizer._weights.rows:
        raise ProbatumError("rows='used' would send row numbers; only losses travel here: exclude the tables or take rows='all'")
    optimizer.spread = Spread(split, group)
    idle = optimizer.spread.world - len(optimizer._directions())
    if split == "queries" and idle > 0:
        warnings.warn(
            f"{idle} of {optimizer.spread.world} processes never have a direction to try: raise n, or take split='batch'", stacklevel=2
        )
    return optimizer


class Spread:
    """What one process of W asks, and the exchange of what all found."""

    def __init__(self, split: Split, group: "dist.ProcessGroup | None") -> None:
        self.split, self.group = split, group
        self.rank, self.world = dist.get_rank(group), dist.get_world_size(group)
        self.sent = 0  # bytes this process has given to the others

    def share(self, step: int, queries: list[int], seed: int = 0) -> Iterator[int]:
        """This process's directions, each with the random state that belongs to it."""
        mine = queries if self.split == "batch" else queries[self.rank :: self.world]
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        with torch.random.fork_rng(devices=devices):
            for query in mine:
                torch.manual_seed(zlib.crc32(json.dumps([seed, step, query]).encode()))
                yield query

    def exchange(self, optimizer: "ZerothOrder", found: list[Pair], queries: list[int]) -> list[Pair]:
        """The pairs of all directions, in order and the same on every process."""
        weights = optimizer._weights
        if weights.offset:
            weights.move(-weights.offset)
        width = len(queries) if self.split == "batch" else -(-len(queries) // self.world)
        losses = [value for pair in found for value in (pair.plus, pair.minus)]
        row = [self._check(optimizer), *losses] + [math.nan] * (2 * (width - len(found)))
        nccl = dist.get_backend(self.group) == "nccl"
        mine = torch.tensor(row, dtype=torch.float64, device=optimizer._tensors[0].device if nccl else "cpu")
        rows = [torch.empty_like(mine) for _ in range(self.world)]
        dist.all_gather(rows, mine, group=self.group)
        self.sent += 8 * len(row)
        table = [other.tolist() for other in rows]
        different = [rank for rank, other in enumerate(table) if other[0] != table[0][0]]
        if different:
            raise ProbatumError(
                f"process {different[0]} has other weights, settings or learning rates than process 0 at step {optimizer.steps}: "
                "all must start alike"
            )
        pairs = [[Pair(other[at], other[at + 1], weights.eps) for at in range(1, len(row), 2)] for other in table]
        if self.split == "queries":
            return [pairs[j % self.world][j // self.world] for j in range(len(queries))]
        return [
            Pair(_mean([p[j].plus for p in pairs]), _mean([p[j].minus for p in pairs]), weights.eps) for j in range(width)
        ]

    def _check(self, optimizer: "ZerothOrder") -> int:
        """A checksum of what must be the same everywhere: the head of the log at first, and the learning rates."""
        step = optimizer.steps
        same: list[Any] = [step, [group["lr"] for group in optimizer.param_groups], [] if step else optimizer.log.head]
        return zlib.crc32(json.dumps(same).encode())


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.nan
