"""Motion between frames without weights: warping, optical flow by least squares on a pyramid, deformable convolution, cuts.

Flow is (N, 2, H, W) in pixels, x first: `flow(a, b)` says where in b each pixel of a is found.

>>> a = torch.rand(1, 3, 12, 16, generator=torch.Generator().manual_seed(0))
>>> shifted = warp(a, torch.tensor([2.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 12, 16))
>>> torch.allclose(shifted[..., :14], a[..., 2:], atol=1e-6)
True
"""

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.errors import ProbatumError

__all__ = ["DeformableConv", "Flow", "is_cut", "lucas_kanade", "warp"]

LUMA = (0.299, 0.587, 0.114)


class Flow(Protocol):
    """Where the pixels of `a` lie in `b`: (N, 3, H, W) twice -> (N, 2, H, W)."""

    def __call__(self, a: Tensor, b: Tensor) -> Tensor: ...


def _grid(flow: Tensor) -> Tensor:
    """Places (N, H, W, 2) that `flow` points at, as grid_sample wants them with aligned corners."""
    height, width = flow.shape[2:]
    x = torch.arange(width, device=flow.device, dtype=flow.dtype) + flow[:, 0]
    y = torch.arange(height, device=flow.device, dtype=flow.dtype)[:, None] + flow[:, 1]
    return torch.stack([2 * x / max(width - 1, 1) - 1, 2 * y / max(height - 1, 1) - 1], -1)


def warp(x: Tensor, flow: Tensor, *, border: bool = False) -> Tensor:
    """x (N, C, H, W) sampled where flow (N, 2, H, W) points, bilinear.

    Args:
        border: repeat the border; False gives zeros for pixels that any of their four neighbours lies outside of.
    """
    grid = _grid(flow.float())
    if border:
        return F.grid_sample(x.float(), grid, padding_mode="border", align_corners=True).to(x.dtype)
    padded = torch.cat([x.float(), torch.ones_like(x[:, :1], dtype=torch.float32)], 1)
    y = F.grid_sample(padded, grid, align_corners=True)
    return (y[:, :-1] * (y[:, -1:] >= 0.9999)).to(x.dtype)


def _luma(x: Tensor) -> Tensor:
    return (x.float() * torch.tensor(LUMA, device=x.device).view(1, 3, 1, 1)).sum(1, keepdim=True)


@torch.no_grad()
def lucas_kanade(a: Tensor, b: Tensor, *, window: int = 5, steps: int = 3, coarsest: int = 12, damping: float = 1e-5) -> Tensor:
    """Dense optical flow by Lucas and Kanade's least squares, coarse to fine: the frozen flow network's place, without its weights.

    Args:
        a, b: (N, 3, H, W) in 0..1. `window`: side of the window of a fit. `steps`: fits on each level of the pyramid.
        coarsest: the pyramid ends where a side would fall below. `damping`: pulls flow to zero where there is no texture.
    Flow is for short motions (a few pixels on the coarsest level) and follows no occlusion.
    """
    levels = [(_luma(a), _luma(b))]
    while min(levels[-1][0].shape[2:]) >= 2 * coarsest:
        levels.append(tuple(F.avg_pool2d(x, 2, ceil_mode=True) for x in levels[-1]))  # type: ignore[arg-type]
    flow = torch.zeros(len(a), 2, *levels[-1][0].shape[2:], device=a.device)

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, window, 1, window // 2, count_include_pad=False)

    def smooth(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

    for first, second in reversed(levels):
        if flow.shape[2:] != first.shape[2:]:
            flow = 2 * F.interpolate(flow, size=first.shape[2:], mode="bilinear")
        for _ in range(steps):
            moved = warp(second, flow, border=True)
            padded = F.pad((first + moved) / 2, (1, 1, 1, 1), mode="replicate")
            dx = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
            dy = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
            dt = first - moved
            xx, yy, xy, xt, yt = mean(torch.cat([dx * dx, dy * dy, dx * dy, dx * dt, dy * dt], 1)).unbind(1)
            xx, yy = xx + damping, yy + damping
            step = torch.stack([yy * xt - xy * yt, xx * yt - xy * xt], 1) / (xx * yy - xy * xy)[:, None]
            flow = smooth(flow + step.clamp(-1, 1))
    return flow


def is_cut(a: Tensor, b: Tensor, threshold: float = 0.12) -> bool:
    """Whether b (N, 3, H, W) shows another scene than a: their small versions differ a lot in place and in brightness order.

    Args:
        threshold: mean difference in 0..1 of the luma at 16 x 16 pixels; a fade or a flash of the same scene does not count, because its
            small versions stay correlated.
    """
    x, y = (F.adaptive_avg_pool2d(_luma(frame), 16).flatten(1) for frame in (a, b))
    if float((x - y).abs().mean()) < threshold:
        return False
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    return float((x * y).sum(1).mean() / (x.norm(dim=1) * y.norm(dim=1)).mean().clamp_min(1e-6)) < 0.5


class DeformableConv(nn.Module):
    """Modulated deformable 3x3 convolution whose offsets start from an optical flow.

    Offsets (two a tap and group, y first) and sigmoid masks come from `conv_offset_mask` of the features `by`; the flow is added to every
    offset. One grid_sample takes all taps of all groups, so it runs wherever torch does. Samples outside the image are zero.

    Args:
        width: channels in and out. `groups`: groups of channels that have offsets of their own; must divide `width`.
    """

    def __init__(self, width: int, groups: int = 8) -> None:
        super().__init__()
        if groups < 1 or width % groups:
            raise ProbatumError(f"groups must divide width {width}, got {groups!r}")
        self.groups = groups
        like = nn.Conv2d(width, width, 3)
        self.weight, self.bias = like.weight, like.bias
        self.conv_offset_mask = nn.Conv2d(width, 27 * groups, 3, padding=1)
        nn.init.zeros_(self.conv_offset_mask.weight)
        nn.init.zeros_(self.conv_offset_mask.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, by: Tensor, flow: Tensor) -> Tensor:
        """x, by (N, C, H, W) and flow (N, 2, H, W) from here to x -> (N, C, H, W)."""
        (n, c, h, w), g = x.shape, self.groups
        out = self.conv_offset_mask(by).float()
        offsets = out[:, : 18 * g].reshape(n * g, 9, 2, h, w).flip(2)  # to (x, y), as flow is
        masks = out[:, 18 * g :].sigmoid().reshape(n, g, 1, 9, h, w)
        tap = torch.arange(9, device=x.device)
        taps = torch.stack([tap % 3 - 1, tap // 3 - 1], 1).view(1, 9, 2, 1, 1)
        places = offsets + taps + flow.float().repeat_interleave(g, 0)[:, None]
        grid = _grid(places.reshape(n * g * 9, 2, h, w)).view(n * g, 9 * h, w, 2)
        seen = F.grid_sample(x.float().reshape(n * g, c // g, h, w), grid, align_corners=True).view(n, g, c // g, 9, h, w) * masks
        columns = seen.view(n, c * 9, h * w).to(x.dtype)
        assert self.bias is not None
        return (self.weight.reshape(c, c * 9) @ columns).view(n, c, h, w) + self.bias.view(1, c, 1, 1)
