"""Stereo pairs: to train on, to make from one photograph, to measure, and to check before they are enlarged.

A pair is rectified: a point lies in the same row of both views, and its disparity x_left - x_right is positive, larger for what is near.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.errors import ProbatumError
from probatum.metrics.fidelity import psnr
from probatum.superres.degradation import Kind, crop_to_multiple, degrade

__all__ = [
    "PairCheck",
    "StereoPatches",
    "check_pair",
    "enlarge_pair",
    "motorcycle",
    "pair_psnr",
    "random_disparity",
    "sample_rows",
    "synthetic_pair",
]

PERMUTATIONS = torch.tensor([[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])


def motorcycle() -> tuple[Tensor, Tensor, Tensor]:
    """The Middlebury 2014 motorcycle that scikit-image carries: left and right (3, 500, 741) uint8, and the disparity of the left view
    (500, 741) in pixels, not finite where it is unknown."""
    from probatum.data.stereo import motorcycle_pair

    left, right, disparity = motorcycle_pair()
    return torch.from_numpy(left).permute(2, 0, 1), torch.from_numpy(right).permute(2, 0, 1), torch.from_numpy(disparity)


def random_disparity(
    height: int, width: int, *, least: float = 0.0, most: float = 32.0, cells: int = 5, generator: torch.Generator | None = None
) -> Tensor:
    """A smooth field (height, width) of disparities between `least` and `most` pixels: bicubic between `cells` random values a side,
    made gentler where it would fold (it changes by less than half a pixel a column)."""
    if not 0 <= least <= most or cells < 2:
        raise ProbatumError(f"least and most must be 0 <= least <= most, and cells 2 or more, got {least!r}, {most!r} and {cells!r}")
    knots = torch.rand(1, 1, cells, cells, generator=generator)
    field = F.interpolate(knots, (height, width), mode="bicubic", align_corners=True)[0, 0].clamp_(0, 1)
    span = most - least
    steepest = float(field.diff(dim=1).abs().max()) * span if width > 1 else 0.0
    return least + field * (span * min(1.0, 0.5 / max(steepest, 1e-9)))


def synthetic_pair(photo: Tensor, disparity: Tensor) -> tuple[Tensor, Tensor]:
    """A pair from one photograph by a known horizontal warp: right(x) = photo(x + disparity(x)), the photograph itself is the left view.

    Args:
        photo: (C, H, W), uint8 or floats.
        disparity: (H, W), pixels, at the columns of the right view, 0 or more and smaller than W.
    Returns:
        Both views, the same (H, W' <= W): columns on the right that would look beyond the photograph are cut off. Bicubic along the row,
        exact copies where the disparity is whole.
    """
    if photo.ndim != 3 or disparity.shape != photo.shape[1:] or not bool(torch.isfinite(disparity).all()):
        raise ProbatumError(f"disparity must be finite numbers {tuple(photo.shape[1:])}, as photo (C, H, W), got {tuple(disparity.shape)}")
    low, high, width = float(disparity.min()), float(disparity.max()), photo.shape[2]
    if low < 0 or high >= width - 1:
        raise ProbatumError(f"disparity must be from 0 to below {width - 1}, got {low:g} to {high:g}")
    kept = width - int(np.ceil(high))
    return photo[:, :, :kept].contiguous(), sample_rows(photo, torch.arange(kept) + disparity[:, :kept])


def sample_rows(view: Tensor, columns: Tensor) -> Tensor:
    """A view (C, H, W) read at real-valued columns (H, W'): (C, H, W') of its type, bicubic along the row, its ends repeated."""
    columns = columns.double()
    whole = columns.floor()
    total = torch.zeros((view.shape[0], *columns.shape), dtype=torch.float64)
    for tap, weight in zip((-1, 0, 1, 2), _cubic(columns - whole), strict=True):
        index = (whole.long() + tap).clamp_(0, view.shape[2] - 1).expand(view.shape[0], -1, -1)
        total += view.double().gather(2, index) * weight
    return total.round_().clamp_(0, 255).to(torch.uint8) if view.dtype == torch.uint8 else total.to(view.dtype)


def _cubic(t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keys' weights (a = -0.5) of the four neighbours of a place t in 0..1."""
    return (
        ((-0.5 * t + 1) * t - 0.5) * t, (1.5 * t - 2.5) * t * t + 1, ((-1.5 * t + 2) * t + 0.5) * t, (0.5 * t - 0.5) * t * t,
    )  # fmt: skip


class StereoPatches:
    """Draws batches of paired crops of stereo pairs, with the paper's augmentation.

    Args:
        pairs: left and right views, (3, H, W) uint8 of one size each.
        scale: the factor.
        size: (rows, columns) of a low-resolution crop, the paper's 30 x 90 by default. Wide, because disparity is.
        batch: crops a draw. `generator`: source of all draws; its state is all that resuming needs.
        colours: permute the channels at random, the same way in both views. `flips`: top-down, and left-right with the views swapped:
            a mirror image of a pair has its left view on the right, and keeps its sign of the disparity only so.
        kind: how the low-resolution images are made (see `degrade`), each view by itself.
    """

    def __init__(
        self, pairs: Iterable[tuple[Tensor, Tensor]], scale: int, *, size: tuple[int, int] = (30, 90), batch: int = 4,
        generator: torch.Generator, colours: bool = True, flips: bool = True, swap: bool = True, kind: Kind = "matlab", device: str | torch.device = "cpu",
    ) -> None:  # fmt: skip
        self.size, self.batch, self.generator, self.colours, self.flips, self.swap = size, batch, generator, colours, flips, swap
        self.device = torch.device(device)
        found = []
        for left, right in pairs:
            if left.shape != right.shape or left.ndim != 3 or left.shape[0] != 3:
                raise ProbatumError(f"pairs must be two views (3, H, W) of one size, got {tuple(left.shape)} and {tuple(right.shape)}")
            high = crop_to_multiple(torch.cat([left, right]), scale)
            if high.shape[1] >= size[0] * scale and high.shape[2] >= size[1] * scale:
                found.append((degrade(high, scale, kind), high))
        if not found:
            raise ProbatumError(f"no pair of {size[0] * scale} x {size[1] * scale} pixels, as crops of {size} at scale {scale} need")
        self.pairs = {scale: found}

    def draw(self, scale: int) -> tuple[Tensor, Tensor]:
        """A batch: (B, 6, rows, columns) and (B, 6, scale rows, scale columns), floats in 0..1, channels last."""
        pairs, (rows, columns) = self.pairs[scale], self.size

        def integer(limit: int) -> int:
            return int(torch.randint(limit, (), generator=self.generator))

        batch: tuple[list[Tensor], list[Tensor]] = ([], [])
        for _ in range(self.batch):
            pair = pairs[integer(len(pairs))]
            top, left = integer(pair[0].shape[1] - rows + 1), integer(pair[0].shape[2] - columns + 1)
            colours = PERMUTATIONS[integer(6) if self.colours else 0]
            down, across = (integer(2) == 1 if self.flips else False for _ in range(2))
            for source, factor, out in zip(pair, (1, scale), batch, strict=True):
                crop = source[:, top * factor : (top + rows) * factor, left * factor : (left + columns) * factor]
                out.append(augment(crop, colours, down=down, across=across, swap=self.swap))
        low, high = (torch.stack(side).to(self.device).float().div_(255).contiguous(memory_format=torch.channels_last) for side in batch)
        return low, high


def augment(pair: Tensor, colours: Tensor, *, down: bool, across: bool, swap: bool = True) -> Tensor:
    """A pair (6, H, W) with its channels in another order, turned top-down, mirrored with its views swapped (if `swap`)."""
    pair = pair[torch.cat([colours, colours + 3])]
    if down:
        pair = pair.flip(1)
    if across:
        pair = pair.flip(2).roll(3 if swap else 0, 0)
    return pair


@torch.no_grad()
def enlarge_pair(net: Callable[[Tensor, int], Tensor] | None, low: Tensor, scale: int) -> Tensor:
    """(6, h, w) uint8 -> (6, scale h, scale w) uint8, rounded; `net` is a network or a function, None is bicubic."""
    from probatum.superres.parts import bicubic

    x = (low[None].float() / 255).contiguous(memory_format=torch.channels_last)
    y = bicubic(x, scale) if net is None else net(x, scale)
    return (y[0].float() * 255).round_().clamp_(0, 255).to(torch.uint8)


def pair_psnr(net: Callable[[Tensor, int], Tensor] | None, pair: Tensor, scale: int, kind: Kind = "matlab") -> tuple[float, float]:
    """PSNR on RGB of both views of a pair (6, H, W) uint8 that was shrunk and enlarged again, nothing cut off. The paper's is their mean."""
    high = crop_to_multiple(pair, scale)
    device = next(net.parameters()).device if isinstance(net, nn.Module) else torch.device("cpu")
    got = enlarge_pair(net, degrade(high, scale, kind).to(device), scale).cpu()
    left, right = (psnr(*(x.permute(1, 2, 0).numpy() for x in (got[part], high[part]))) for part in (slice(0, 3), slice(3, 6)))
    return left, right


@dataclass(frozen=True)
class PairCheck:
    """What two views look like together.

    Attributes:
        vertical: estimated offset in rows, positive where the right view lies lower; None if the views say nothing (flat, or too small).
        disparity: estimated median of x_left - x_right in pixels; None likewise. `backward`: share of the places that were matched
            whose disparity is negative.
    """

    vertical: float | None
    disparity: float | None
    backward: float

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know before enlarging, a sentence each."""
        found = []
        if self.vertical is not None and abs(self.vertical) > 1:
            found.append(f"the views are {abs(self.vertical):.1f} rows apart: rectify them, or the second view adds nothing")
        if self.disparity is not None and self.disparity < -1 and self.backward > 0.8:
            found.append("near things lie farther right in the right view: left and right seem to be swapped")
        return tuple(found)


def check_pair(left: np.ndarray, right: np.ndarray) -> PairCheck:
    """Estimate vertical offset and sign of the disparity of two views (H, W[, 3]) of one size.

    The offset is that of the rows' mean profiles, which horizontal disparity leaves nearly as they are; the disparity is matched block by
    block on views shrunk to 240 columns.
    """
    a, b = (_grey(view) for view in (left, right))
    disparity, backward = _disparity(a, b)
    return PairCheck(_vertical(a, b), disparity, backward)


def _grey(view: np.ndarray) -> np.ndarray:
    x = view.astype(np.float32)
    return x if x.ndim == 2 else x[..., :3].mean(2)


def _vertical(a: np.ndarray, b: np.ndarray, reach: int = 12) -> float | None:
    """Rows by which b lies lower than a: the shift at which profiles of the rows correlate best, to a fraction by a parabola."""
    height = len(a)
    reach = min(reach, height // 4)
    if reach < 2:
        return None
    # two numbers a row: mean brightness, and mean strength of the edges along it; both without what changes slowly
    profiles = []
    for x in (a, b):
        rows = np.stack([x.mean(1), np.abs(np.diff(x, axis=1)).mean(1) if x.shape[1] > 1 else x[:, 0]])
        profiles.append(np.diff(rows, axis=1))
    p, q = profiles
    inner = p[:, reach : p.shape[1] - reach]
    if inner.shape[1] < 8 or (inner.std(1) < 1e-3).any():
        return None
    score = []
    for shift in range(-reach, reach + 1):
        other = q[:, reach + shift : q.shape[1] - reach + shift]
        score.append(sum(np.corrcoef(u, v)[0, 1] if v.std() > 1e-6 else -1.0 for u, v in zip(inner, other, strict=True)))
    best = int(np.argmax(score))
    if score[best] < 0.6:  # of 2: these rows are not of one scene
        return None
    if not 0 < best < 2 * reach:
        return float(best - reach)
    left, middle, right = score[best - 1 : best + 2]
    return best - reach + 0.5 * (left - right) / (left - 2 * middle + right)


def _disparity(a: np.ndarray, b: np.ndarray, block: int = 8, columns: int = 240) -> tuple[float | None, float]:
    """Median disparity in pixels, and the share of negative ones, over blocks whose best match is clear."""
    factor = max(1, round(a.shape[1] / columns))
    small = []
    for x in (a, b):
        height, width = (n - n % factor for n in x.shape)
        x = x[:height, :width].reshape(height // factor, factor, width // factor, factor).mean((1, 3))
        small.append(np.diff(x, axis=1))
    p, q = small
    height, width = (n - n % block for n in p.shape)
    reach = min(width // 4, 60)
    if height < block or reach < 2:
        return None, 0.0
    p, q = p[:height, :width], q[:height, :width]
    shifts = np.arange(-reach, reach + 1)
    costs = np.full((len(shifts), height // block, width // block), np.inf, np.float32)
    for row, shift in zip(costs, shifts, strict=True):
        # the place x of the left view against x - shift of the right one
        first, last = max(0, shift), width + min(0, shift)
        gap = np.full((height, width), np.nan, np.float32)
        gap[:, first:last] = np.abs(p[:, first:last] - q[:, first - shift : last - shift])
        row[:] = gap.reshape(height // block, block, width // block, block).mean((1, 3))
    costs = np.where(np.isnan(costs), np.inf, costs).reshape(len(shifts), -1)
    best, least = shifts[costs.argmin(0)], costs.min(0)
    texture = np.abs(p).reshape(height // block, block, width // block, block).mean((1, 3)).ravel()
    clear = (texture > max(1.0, float(np.median(texture)))) & (least < 0.5 * texture)
    if clear.sum() < 4:
        return None, 0.0
    found: Sequence[float] = best[clear]
    return float(np.median(found)) * factor, float(np.mean(np.asarray(found) < 0))
