"""The weights a zeroth-order method moves, and the four ways to write to them so that a step can be undone.

A step moves theta by whole multiples of eps z and by u z (u = -lr p). In floating point `+ eps z, - 2 eps z, + eps z` does not return
to the start: float32 weights drift by a relative 2.7e-6 in 2,000 steps, bfloat16 by 0.17, more than training moves them.

- "lattice" (float32, float64): each tensor is snapped once to multiples of a power of two, and eps z and u z are rounded to it. Every sum
  is then exact: restoring is bit-equal, order does not matter, and applying the updates alone gives the weights of the whole run.
- "scratch": modules run on a perturbed copy of their weights (`scratch.py`), which only updates write to: exact in every dtype.
- "copy": a copy of theta is kept and put back: exact in every dtype, for small sets of weights.
- "off": in place, as the paper does it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from probatum.errors import ProbatumError
from probatum.zeroth.masks import Bits, Compared, MaskRule, flat
from probatum.zeroth.noise import BLOCK, Noise

if TYPE_CHECKING:
    from probatum.zeroth.rows import UsedRows

__all__ = ["EXACT", "Exact", "Weights", "flat"]

Exact = Literal["lattice", "scratch", "copy", "off"]
EXACT = ("lattice", "scratch", "copy", "off")

KEEP = (
    1_000_000  # up to so many values z is drawn once a step and kept: the same bits, without drawing them three times
)
FAR = 8.0  # no value of torch's 24-bit Box-Muller lies further out than 5.8
DIGITS = {torch.float32: 24, torch.float64: 53}


class Weights:
    """Tensors that move along z.

    Args:
        names, tensors: in the order of their noise addresses.
        noise: where z comes from.
        eps: length of the perturbation.
        exact: see the module.
        masks: says where z is not 0, at each step anew (`choose`).
        rows: moves embedding tables row by row, those rows only that a batch uses; the tables it names are left alone here.
    """

    def __init__(
        self,
        names: Sequence[str],
        tensors: Sequence[Tensor],
        noise: Noise,
        eps: float,
        exact: Exact,
        *,
        masks: MaskRule | None = None,
        rows: "UsedRows | None" = None,
    ) -> None:
        self.names, self.tensors, self.noise, self.eps, self.exact = list(names), list(tensors), noise, eps, exact
        self.rule, self.rows = masks, rows
        self.masks: Mapping[int, Bits | Compared] = {}  # of the step at hand
        self._saved: list[Tensor] = []  # theta, for "copy"
        self.steps: list[float] = []  # the lattice's step of each tensor, empty until `snap`
        self.room: list[float] = []  # how far each tensor can still move before its largest weight must be looked at
        self.offset = 0  # multiples of eps z by which the tensors stand away from theta
        by_row = rows.tables if rows else {}
        self.whole = [i for i in range(len(self.tensors)) if i not in by_row]
        some = [self.tensors[i] for i in self.whole]
        plain = all(t.device.type == "cpu" and t.dtype == torch.float32 for t in some)
        self.kept = plain and sum(t.numel() for t in some) <= KEEP
        self.address: tuple[int, int] | None = None
        self._pointers: list[int] | None = None
        self._views: list[Tensor] = []  # blocks of the tensors
        self._z: list[Tensor] = []  # z of each block, in one buffer that pads every tensor to a multiple of 16
        self._grid: tuple[list[float], Tensor, Tensor] | None = None  # steps, and value by value 1 / step and step

    def choose(self, step: int, *, alone: bool = False) -> None:
        """Find the masks of a step, at theta. `alone`: one direction and no decay, so that a mask may be found again from theta."""
        if self.rule is not None:
            self.masks = self.rule.at(step, self.tensors, live=alone and self.exact == "scratch")

    @property
    def active(self) -> int:
        """How many weights the masks of the step at hand let move."""
        return sum(self.masks[i].count if i in self.masks else t.numel() for i, t in enumerate(self.tensors))

    def begin(self, step: int, query: int) -> None:
        """Turn to the direction of this step and query."""
        self.address = step, query
        if self.rows:
            self.rows.begin(self, step, query)
        if not (self.kept and self.whole):
            return
        self._refresh()
        self.noise.fill(self._parts, step, query)
        for i, mask in self.masks.items():
            mask.mul_(self._spans[i], 0, flat(self.tensors[i], self.names[i]))
        if self.exact == "lattice":
            torch.mul(self._buffer, self.eps, out=self._nudge)
            self._round(self._nudge)

    def move(self, times: int, update: Sequence[float] | None = None) -> None:
        """tensor i += times eps z + update[i] z."""
        if self.exact == "copy":
            times = self._from_theta(times)
        self.offset += times
        if self.rows:
            self.rows.move(self, times, update)
        if not self.whole or not (times or update):
            return
        if not self.kept:
            self._move_streamed(times, update)
        elif self.exact == "lattice":
            self._move_on_lattice(times, update)
        elif update is None or len(set(update)) == 1:
            torch._foreach_add_(self._views, self._z, alpha=times * self.eps + (update[0] if update else 0.0))
        else:
            for view, z, i in zip(self._views, self._z, self._owner, strict=True):
                _add(view, z, times * self.eps + update[i])

    def finish(self, times: int, update: Sequence[float]) -> None:
        """`move`, where weights that have grown to the end of their lattice first get a coarser one (at theta itself)."""
        if self.exact == "lattice":
            tight = [i for i, u in enumerate(update) if self.room[i] < FAR * abs(u)]
            if tight:
                if times:
                    self.move(times)
                    times = 0
                for i in tight:
                    self._snap(i, FAR * abs(update[i]))
                if self.kept:
                    self.begin(*self._here())
            for i, u in enumerate(update):
                self.room[i] -= FAR * abs(u)
        self.move(times, update)

    def perturbed(self, i: int, times: int) -> Tensor:
        """A copy of tensor i moved by times eps z (the scratch of one module)."""
        copy = self.tensors[i].detach().clone(memory_format=torch.preserve_format)
        mask = self.masks.get(i)

        def apply(_: int, part: Tensor, z: Tensor) -> None:
            if mask is not None:
                mask.mul_(z, int(part.storage_offset()), part)
            _add(part, z, times * self.eps)

        self.noise.walk([flat(copy, self.names[i])], [i], *self._here(), apply)
        return copy

    def decay(self, factors: Sequence[float]) -> None:
        """tensor i -= factors[i] tensor i."""
        for i, factor in enumerate(factors):
            mask = self.masks.get(i)
            for k, part in enumerate(flat(self.tensors[i], self.names[i]).split(BLOCK) if factor else ()):
                if self.exact == "lattice":
                    shrink = torch.mul(part, factor / self.steps[i]).round_()
                    if mask is not None:
                        mask.mul_(shrink, k * BLOCK, part)
                    part.sub_(shrink, alpha=self.steps[i])
                elif mask is None:
                    part.mul_(1 - factor)
                else:
                    shrink = torch.full_like(part, factor, dtype=_working(part))
                    mask.mul_(shrink, k * BLOCK, part)
                    part.copy_(part * (1 - shrink))

    def rounded(self, i: int, z: Tensor, times: int, update: float) -> Tensor:
        """times eps z + update z as this mode rounds it for tensor i; z of any shape."""
        z = z.to(_working(self.tensors[i]))
        if self.exact != "lattice":
            return z.mul(times * self.eps + update)
        step = self.steps[i]
        moved = z.mul(update / step).round_()
        return moved.add_(z.mul(self.eps / step).round_(), alpha=times).mul_(step) if times else moved.mul_(step)

    def lost(self, updates: Sequence[float]) -> float:
        """Share of the weights whose update rounds to nothing, for updates of this size (Gaussian or sign noise)."""
        total = lost = 0.0
        for i, tensor in enumerate(self.tensors):
            if self.exact == "lattice":
                half = self.steps[i] / 2
            else:
                size = torch.linalg.vector_norm(tensor.detach(), dtype=_working(tensor)).item() / math.sqrt(max(1, tensor.numel()))
                half = torch.finfo(tensor.dtype).eps * 2.0 ** math.floor(math.log2(size)) / 2 if size > 0 else 0.0
            u = abs(updates[i])
            share = (
                1.0
                if u == 0
                else math.erf(half / (u * math.sqrt(2)))
                if self.noise.kind == "gaussian"
                else float(u < half)
            )
            total, lost = total + tensor.numel(), lost + share * tensor.numel()
        return lost / max(1.0, total)

    def snap(self) -> None:
        """Round every tensor to its own lattice: a weight moves by at most half a step, 3e-8 of the tensor's largest."""
        self.steps, self.room = [0.0] * len(self.tensors), [0.0] * len(self.tensors)
        for i in range(len(self.tensors)):
            self._snap(i, 0.0)

    def _snap(self, i: int, ahead: float) -> None:
        tensor, digits = self.tensors[i], DIGITS[self.tensors[i].dtype]
        low, high = tensor.detach().aminmax()
        largest = max(abs(low.item()), abs(high.item()))
        if not math.isfinite(largest + ahead):
            raise ProbatumError(
                f"{self.names[i]} has values that are not finite: the run has diverged, take a smaller lr"
            )
        reach = max(largest + ahead, 64 * self.eps)
        step = max(2.0 ** (math.ceil(math.log2(2 * reach)) - digits), self.steps[i])
        if step != self.steps[i]:
            self.steps[i] = step
            for part in flat(tensor, self.names[i]).split(BLOCK):
                part.div_(step).round_().mul_(step)
        self.room[i] = step * 2.0**digits - largest - step - FAR * self.eps

    def _from_theta(self, times: int) -> int:
        """Put the tensors back at theta, or keep a copy of it; the multiples of eps z by which they then must move."""
        if self.offset:
            for tensor, saved in zip(self.tensors, self._saved, strict=True):
                tensor.detach().copy_(saved)
        elif self._saved:
            for tensor, saved in zip(self.tensors, self._saved, strict=True):
                saved.copy_(tensor.detach())
        else:
            self._saved = [tensor.detach().clone() for tensor in self.tensors]
        times, self.offset = self.offset + times, 0
        return times

    def _here(self) -> tuple[int, int]:
        assert self.address is not None, "begin() chooses a direction first"
        return self.address

    def _refresh(self) -> None:
        """Views of the blocks of every tensor, made again where a tensor got another storage."""
        pointers = [self.tensors[i].data_ptr() for i in self.whole]
        if pointers == self._pointers:
            return
        self._pointers, self._grid = pointers, None
        lines = [flat(self.tensors[i], self.names[i]) for i in self.whole]
        sizes = [-(-len(line) // 16) * 16 for line in lines]
        self._buffer = torch.empty(sum(sizes))
        self._nudge, self._update = torch.empty_like(self._buffer), torch.empty_like(self._buffer)
        padded = dict(zip(self.whole, self._buffer.split(sizes), strict=True))
        self._parts = [(part, i, k) for i in self.whole for k, part in enumerate(padded[i].split(BLOCK))]
        self._spans = {i: padded[i][: len(line)] for i, line in zip(self.whole, lines, strict=True)}

        def blocks(buffer: Tensor) -> list[Tensor]:
            spans = (span[: len(line)] for span, line in zip(buffer.split(sizes), lines, strict=True))
            return [part for span in spans for part in span.split(BLOCK)]

        self._views = [part for line in lines for part in line.split(BLOCK)]
        self._owner = [i for i, line in zip(self.whole, lines, strict=True) for _ in line.split(BLOCK)]
        self._sizes = torch.tensor(sizes)
        self._z, self._nudges, self._updates = blocks(self._buffer), blocks(self._nudge), blocks(self._update)

    def _round(self, moved: Tensor) -> None:
        """Round a buffer, value by value, to the lattice of its tensor. Scaling by a power of two commutes with rounding."""
        if self._grid is None or self._grid[0] != self.steps:
            step = torch.tensor([self.steps[i] for i in self.whole]).repeat_interleave(self._sizes)
            self._grid = list(self.steps), 1 / step, step
        _, inverse, step = self._grid
        moved.mul_(inverse).round_().mul_(step)

    def _move_on_lattice(self, times: int, update: Sequence[float] | None) -> None:
        if update is None:
            torch._foreach_add_(self._views, self._nudges, alpha=times)
            return
        if len(set(update)) == 1:
            torch.mul(self._buffer, update[0], out=self._update)
        else:
            by_value = torch.tensor([update[i] for i in self.whole]).repeat_interleave(self._sizes)
            torch.mul(self._buffer, by_value, out=self._update)
        self._round(self._update)
        if times:
            self._update.add_(self._nudge, alpha=times)
        torch._foreach_add_(self._views, self._updates)

    def _move_streamed(self, times: int, update: Sequence[float] | None) -> None:
        lines = [flat(self.tensors[i], self.names[i]) for i in self.whole]
        starts = [int(line.storage_offset()) for line in lines]
        order, masks, eps, steps = self.whole, self.masks, self.eps, self.steps
        by = update if update is not None else [0.0] * len(self.tensors)
        lattice = self.exact == "lattice"
        scales = None
        if self.noise.kind == "rademacher" and all(line.dtype == torch.float32 for line in lines):
            if lattice:  # +-c for a multiple c of the step: nothing is left to round value by value
                scales = [steps[i] * (times * _round(eps / steps[i]) + _round(by[i] / steps[i])) for i in order]
            else:
                scales = [times * eps + by[i] for i in order]

        def apply(k: int, part: Tensor, z: Tensor) -> None:
            i = order[k]
            if i in masks:
                masks[i].mul_(z, int(part.storage_offset()) - starts[k], part)
            if scales is not None:
                part.add_(z)
            elif not lattice:
                _add(part, z, times * eps + by[i])
            else:
                z = z if z.dtype == part.dtype else z.to(part.dtype)
                moved = z.mul(by[i] / steps[i]).round_() if by[i] and times else None
                z.mul_((eps if times else by[i]) / steps[i]).round_()
                if times not in (0, 1):
                    z.mul_(times)
                part.add_(z if moved is None else z.add_(moved), alpha=steps[i])

        self.noise.walk(lines, self.whole, *self._here(), apply, scales)


def _working(tensor: Tensor) -> torch.dtype:
    """The dtype in which z is added: half precision is added in float32 and rounded once."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _add(part: Tensor, z: Tensor, scale: float) -> None:
    if part.dtype in DIGITS:
        part.add_(z if z.dtype == part.dtype else z.to(part.dtype), alpha=scale)
    else:
        part.copy_(torch.add(part.float(), z, alpha=scale))


def _round(x: float) -> float:
    """Rounded as a float32 kernel rounds it."""
    return torch.tensor(x, dtype=torch.float32).round_().item()
