"""EDSR: a plain residual network without batch norm (Lim et al. 2017, arXiv 1707.02921), with the keys of the authors' files.

`PlainResidual` is the same body with other names and heads for several scales; this one is for files that others trained, and for `pams`.

>>> net = EDSR(scale=4)
>>> sum(p.numel() for p in net.parameters() if p.requires_grad)
1517571
>>> tuple(net(torch.rand(1, 3, 7, 5)).shape)
(1, 3, 28, 20)
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from probatum.errors import ProbatumError
from probatum.superres.parts import DIV2K_MEAN, Head, bicubic, check_image, pick_scale
from probatum.superres.residual import Block

__all__ = ["EDSR", "Shift", "looks_like"]


class Shift(nn.Conv2d):
    """Add `value` times the mean of DIV2K: a frozen 1x1 convolution, as the authors' files store it (`MeanShift` of the family has
    another key)."""

    def __init__(self, value: float) -> None:
        super().__init__(3, 3, 1)
        assert self.bias is not None
        with torch.no_grad():
            self.weight.copy_(torch.eye(3).view(3, 3, 1, 1))
            self.bias.copy_(value * torch.tensor(DIV2K_MEAN))
        self.requires_grad_(False)


class EDSR(nn.Module):
    """A 3x3 convolution, residual blocks and one more under a long skip, a pixel-shuffle head.

    Args:
        scale: 2, 3 or 4.
        width, blocks: channels and residual blocks: 64 and 16 are the published baseline, 256 and 32 with `residual_scale` 0.1 the large net.
        residual_scale: factor of each block's branch.
        rgb_range: what the weights take white for. The authors' are 255; input and output are 0..1 either way.
        skip: add the bicubic enlargement and start the last convolution at zero, so that training begins at bicubic. Not in the paper.
    Input and output: (N, 3, H, W) floats in 0..1 -> (N, 3, scale H, scale W), not clipped.

    Raises:
        ProbatumError: a scale not of 2, 3, 4; sizes that are not positive; an input that is not (N, 3, H, W) floats.
    """

    multiple = 1

    def __init__(
        self, scale: int = 2, *, width: int = 64, blocks: int = 16, residual_scale: float = 1.0, rgb_range: float = 1.0, skip: bool = False
    ) -> None:
        super().__init__()
        if scale not in (2, 3, 4):
            raise ProbatumError(f"scale must be of 2, 3, 4, got {scale!r}")
        if width < 1 or blocks < 1 or not rgb_range > 0:
            raise ProbatumError(f"width, blocks and rgb_range must be positive, got {width!r}, {blocks!r} and {rgb_range!r}")
        self.scales, self.skip, self.rgb_range = (scale,), skip, float(rgb_range)
        self.radius = 1 + 2 * blocks + 1 + 1 + 1  # head, blocks, last of the body, first of the tail, the rest of it less than 1
        self._config = {
            "model": "edsr", "scale": [scale], "width": width, "blocks": blocks, "residual_scale": residual_scale,
            "rgb_range": self.rgb_range, "skip": skip,
        }  # fmt: skip
        self.sub_mean, self.add_mean = Shift(-self.rgb_range), Shift(self.rgb_range)
        self.head = nn.Sequential(nn.Conv2d(3, width, 3, padding=1))
        self.body = nn.Sequential(*(Block(width, residual_scale) for _ in range(blocks)), nn.Conv2d(width, width, 3, padding=1))
        last = nn.Conv2d(width, 3, 3, padding=1)
        self.tail = nn.Sequential(Head(width, scale, "edsr").body, last)
        if skip:
            nn.init.zeros_(last.weight)

    def forward(self, x: Tensor, scale: int | None = None) -> Tensor:
        """x (N, 3, H, W) -> (N, 3, scale H, scale W)."""
        check_image(x)
        scale = pick_scale(self.scales, scale)
        first = self.head(self.sub_mean(x if self.rgb_range == 1 else x * self.rgb_range))
        y = self.tail(first + self.body(first))
        y = y if self.skip else self.add_mean(y)
        y = y if self.rgb_range == 1 else y / self.rgb_range
        return y + bicubic(x, scale) if self.skip else y

    def config(self) -> dict[str, Any]:
        """What rebuilds it, beside its weights."""
        return dict(self._config)


def looks_like(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """The configuration of the EDSR whose state dict this is, the authors' or one that PAMS quantised; None if it is none.

    The factor of the branches is not in a file: the published nets have 0.1 at width 256 and 1 at 64.
    """
    if not {"head.0.weight", "tail.0.0.weight", "tail.1.weight", "body.0.body.0.weight"} <= set(state):
        return None
    width = state["head.0.weight"].shape[0]
    blocks = max(int(name.split(".")[1]) for name in state if name.startswith("body."))
    rows = state["tail.0.0.weight"].shape[0] // width
    scale = 3 if rows == 9 else 4 if "tail.0.2.weight" in state else 2
    return {
        "model": "edsr", "scale": [scale], "width": width, "blocks": blocks, "residual_scale": 0.1 if width == 256 else 1.0,
        "rgb_range": 255.0,
    }  # fmt: skip
