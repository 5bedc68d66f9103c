"""Enlarging feature maps by any factor: kernels of position and scale alone, in the manner of CUF, for images and for video.

A small network of sines gives every target pixel a kernel for each of 3 x 3 places and each channel. It sees where the pixel lies within its
source pixel and how large it is, never the picture: one table serves a whole video, and for a rational factor few of its rows differ.

>>> net = KernelNet(8)
>>> [tuple(kernels_for(net, (6, 7), size).table.shape) for size in ((18, 21), (21, 14))]
[(8, 9, 3, 3), (8, 9, 7, 2)]
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.errors import ProbatumError

__all__ = ["ArbitraryUpsampler", "KernelNet", "Kernels", "kernels_for", "parse_scale", "phases", "target_size"]

OMEGA = 30.0
TABLE = 1 << 26  # numbers that a table may hold; larger ones are made again for each strip of rows
DENSE = 64  # sides up to which pictures, as those of training, are sampled by products with matrices
STRIP = 1 << 24  # numbers of sampled features in one strip of rows


def parse_scale(scale: object) -> tuple[float, float]:
    """(factor of the height, factor of the width) of a number, a pair, or text like "2.5" and "2.5,3".

    Raises:
        ProbatumError: not numbers, below 1, above 64, NaN or infinite.
    """
    given = scale.split(",") if isinstance(scale, str) else list(scale) if isinstance(scale, (tuple, list)) else [scale]
    try:
        factors = [float(x) for x in given if not isinstance(x, bool)]  # type: ignore[arg-type]
    except (TypeError, ValueError):
        factors = []
    if len(factors) != len(given) or len(factors) not in (1, 2) or not all(1 <= x <= 64 for x in factors):
        raise ProbatumError(f"scale must be a factor from 1 to 64, or two for height and width (2.5 or 2.5,3), got {scale!r}")
    return factors[0], factors[-1]


def target_size(height: int, width: int, scale: object) -> tuple[int, int]:
    """The size in pixels that a factor leads to, rounded half up."""
    down, across = parse_scale(scale)
    return math.floor(height * down + 0.5), math.floor(width * across + 0.5)


def phases(length: int, out: int) -> tuple[Tensor, Tensor]:
    """Where target pixels lie from the centre of their nearest source pixel: (distinct values (P,), which one each of `out` has).

    In halves of a source pixel, -1 to 1, and exact: they are compared as whole numbers. A centre that is equally near to two source pixels
    goes to the even one, as grid_sample rounds.
    """
    i = torch.arange(out, dtype=torch.int64)
    place = (2 * i + 1) * length
    nearest = place // (2 * out)
    tie = place % (2 * out) == 0
    nearest = torch.where(tie & (nearest % 2 == 1), nearest - 1, nearest).clamp_(0, length - 1)
    values, index = torch.unique(place - (2 * nearest + 1) * out, return_inverse=True)
    return values.double() / out, index


class _Encoder(nn.Module):
    """Sines and cosines of a position, then a linear map to 32 numbers; done apart for rows and columns, since the map is linear."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(64, 32)

    def forward(self, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Positions y (n,) and x (m,) -> (n, 32) and (m, 32): their sums encode all pairs; the bias is with y."""
        frequency = 2 ** torch.linspace(0, 10, 16, device=y.device) - 1
        weight = self.proj.weight.float().view(32, 2, 2, 16)  # sine or cosine, y or x

        def part(values: Tensor, axis: int) -> Tensor:
            angle = values[:, None] * frequency
            return angle.sin() @ weight[:, 0, axis].T + angle.cos() @ weight[:, 1, axis].T

        return part(y, 0) + self.proj.bias.float(), part(x, 1)


class _Sine(nn.Module):
    """sin(omega * linear(x)), weights at the start as SIREN's."""

    def __init__(self, inputs: int, outputs: int, first: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        bound = 1 / inputs if first else math.sqrt(6 / inputs) / OMEGA
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(OMEGA * F.linear(x, self.linear.weight.float(), self.linear.bias.float()))


class _Sines(nn.Module):
    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        last = nn.Linear(hidden, outputs)
        bound = math.sqrt(6 / hidden) / OMEGA
        nn.init.uniform_(last.weight, -bound, bound)
        self.net = nn.Sequential(_Sine(inputs, hidden, True), _Sine(hidden, hidden), _Sine(hidden, hidden), last)

    def after(self, z: Tensor) -> Tensor:
        """The output from what the first layer's linear map gives, which the caller makes in its own way."""
        z = torch.sin(OMEGA * z)
        for layer in (self.net[1], self.net[2]):
            z = layer(z)
        last = self.net[3]
        assert isinstance(last, nn.Linear)
        return F.linear(z, last.weight.float(), last.bias.float())


class KernelNet(nn.Module):
    """The kernels of target pixels from their places, sizes and the 3 x 3 offsets.

    Args:
        width: channels of the features. The sine layers have a quarter of that (the paper: 64 and 16).
    Always computes in float32: frequencies up to 1,023 do not survive fewer digits.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        if width < 4:
            raise ProbatumError(f"width must be 4 or more, got {width!r}")
        self.width = width
        self.pb_encoder1, self.pb_encoder2, self.pb_encoder3 = _Encoder(), _Encoder(), _Encoder()
        self.imnets = _Sines(96, width // 4, width)

    def forward(self, y: Tensor, x: Tensor, cell: tuple[float, float]) -> Tensor:
        """Phases y (n,) and x (m,) and the size of a target pixel in halves of a source pixel -> (C, 9, n, m)."""
        device = self.pb_encoder1.proj.weight.device
        y, x = (v.to(device, torch.float32) for v in (y, x))
        size = [sum(pair) for pair in zip(self.pb_encoder1(*(torch.tensor([v], device=device) for v in cell)), strict=True)]
        tap = torch.arange(3.0, device=device) - 1
        rows, columns = self.pb_encoder2(tap, tap)
        offsets = (rows[:, None] + columns).view(9, 32)
        down, across = self.pb_encoder3(y, x)
        first: nn.Linear = self.imnets.net[0].linear  # type: ignore[assignment]
        # the first layer is linear in the three encodings: no pair of pixel and offset needs its 96 numbers
        a, b, c = first.weight.float().split(32, 1)
        fixed = offsets @ b.T + sum(s.sum(0) for s in size) @ a.T + first.bias.float()
        z = (down @ c.T)[:, None, None] + (across @ c.T)[:, None] + fixed
        return self.imnets.after(z).permute(3, 2, 0, 1)


@dataclass(frozen=True)
class Kernels:
    """The kernels of one size and factor: a table of the distinct ones (C, 9, P, Q) and which each row and column takes.

    Where even the distinct ones are many (factors like 2.371), `table` is None and rows are made when they are asked for.
    """

    net: KernelNet
    source: tuple[int, int]
    size: tuple[int, int]
    y: tuple[Tensor, Tensor]
    x: tuple[Tensor, Tensor]
    table: Tensor | None

    @property
    def cell(self) -> tuple[float, float]:
        return 2 * self.source[0] / self.size[0], 2 * self.source[1] / self.size[1]

    def rows(self, top: int, bottom: int) -> Tensor:
        """(C, 9, bottom - top, W')."""
        index = self.y[1][top:bottom]
        if self.table is None:
            return self.net(self.y[0][index], self.x[0], self.cell)[..., self.x[1]]
        table, across = self.table, self.x[1].to(self.table.device)
        index = index.to(table.device)
        if table.requires_grad:  # the gradient of a product is much faster than that of index_select
            down, right = (F.one_hot(i, n).to(table.dtype) for i, n in ((index, table.shape[2]), (across, table.shape[3])))
            return down @ table @ right.T
        return table.index_select(2, index).index_select(3, across)


def kernels_for(net: KernelNet, source: tuple[int, int], size: tuple[int, int], *, most: int = TABLE) -> Kernels:
    """The kernels that take pictures of `source` (height, width) to `size`; once a video."""
    y, x = (phases(a, b) for a, b in zip(source, size, strict=True))
    kernels = Kernels(net, source, size, y, x, None)
    if net.width * 9 * len(y[0]) * len(x[0]) > most:
        return kernels
    return Kernels(net, source, size, y, x, net(y[0], x[0], kernels.cell))


def _between(length: int, out: int, first: int, last: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of targets first..last: their two source places, clamped, and the bilinear weights, zero outside the source."""
    place = (torch.arange(first, last, dtype=torch.float64) + 0.5) * length / out - 0.5
    low = place.floor()
    share = place - low
    a, b = low.long(), low.long() + 1
    weight_a, weight_b = (1 - share) * (a >= 0), share * (b < length)
    return a.clamp_min(0), b.clamp_max(length - 1), weight_a.float(), weight_b.float()


def _matrix(length: int, a: Tensor, b: Tensor, weight_a: Tensor, weight_b: Tensor) -> Tensor:
    """The same as a matrix (targets, length)."""
    return F.one_hot(a, length) * weight_a[:, None] + F.one_hot(b, length) * weight_b[:, None]


class ArbitraryUpsampler(nn.Module):
    """Features (N, C, H, W) and the picture (N, 3, H, W) -> the picture at any size (N, 3, H', W').

    The 3 x 3 neighbourhood of each feature pixel is sampled at the target pixels, multiplied by their kernels and added up over the 3 x 3
    neighbours in the target; two convolutions make colours of it, added to the bilinear enlargement. At the border of the target fewer terms
    are added.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.imnets = nn.Sequential(nn.Conv2d(width, width, 1), nn.LeakyReLU(0.1), nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, u: Tensor, kernels: Kernels, x: Tensor, *, rows: int | None = None) -> Tensor:
        """Rows are made in strips of `rows`, exactly the same; default: all where gradients are wanted, else by memory."""
        if tuple(u.shape[2:]) != kernels.source:
            raise ProbatumError(f"u must be {kernels.source[0]} x {kernels.source[1]}, for which the kernels are, got {tuple(u.shape)}")
        height, width = kernels.size
        if rows is None:
            rows = height if torch.is_grad_enabled() else max(4, STRIP // (u.shape[0] * u.shape[1] * 9 * width))
        added = torch.cat(list(self._strips(u, kernels, rows)), 2)
        base = F.interpolate(x.float(), size=(height, width), mode="bilinear")
        return (base + added).to(x.dtype)

    def _strips(self, u: Tensor, kernels: Kernels, step: int) -> Iterator[Tensor]:
        (n, c, h, w), (height, width) = u.shape, kernels.size
        padded = F.pad(u.float(), (1, 1, 1, 1))
        left, right, weight_left, weight_right = (v.to(u.device) for v in _between(w, width, 0, width))
        for top in range(0, height, step):
            bottom = min(height, top + step)
            first, last = max(0, top - 2), min(height, bottom + 2)  # one row for the sum, one for the convolution
            above, below, weight_above, weight_below = (v.to(u.device) for v in _between(h, height, first, last))
            start = int(above[0])
            near = F.unfold(padded[:, :, start : int(below[-1]) + 3], 3).view(n, c * 9, -1, w)
            if max(h, w) <= DENSE:
                down = _matrix(near.shape[2], above - start, below - start, weight_above, weight_below)
                seen = down @ near @ _matrix(w, left, right, weight_left, weight_right).T
            else:
                rows = near.index_select(2, above - start) * weight_above[:, None] + near.index_select(2, below - start) * weight_below[:, None]
                seen = rows.index_select(3, left) * weight_left + rows.index_select(3, right) * weight_right
            product = seen.view(n, c, 9, last - first, width) * kernels.rows(first, last)
            summed = F.fold(product.view(n, c * 9, -1), (last - first, width), 3, padding=1)
            # the first and last rows of an inner strip lack terms; they are cut before the convolution pads with zeros in their place
            cut_top, cut_bottom = int(first > 0), int(last < height)
            summed = summed[:, :, cut_top : summed.shape[2] - cut_bottom]
            y = self.imnets(summed.to(u.dtype)).float()
            skip = top - (first + cut_top)
            yield y[:, :, skip : skip + bottom - top]
