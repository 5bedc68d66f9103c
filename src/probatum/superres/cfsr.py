"""CFSR: super-resolution by a large depthwise kernel in the place of attention (Wu et al. 2024, arXiv 2401.05633).

A transformer's shape without attention: the token mixer is a 9x9 depthwise convolution that gates a linear branch, and the feed-forward
part has a 3x3 depthwise convolution that is trained with fixed edge filters beside it, which fold into one kernel afterwards. For
enlarging photographs on modest hardware, with fewer weights than CARN and more of its time in memory traffic.

>>> net = CFSR(scale=4)
>>> sum(p.numel() for p in net.merged().parameters())
306912
>>> tuple(net(torch.rand(1, 3, 7, 5)).shape)
(1, 3, 28, 20)
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.errors import ProbatumError
from probatum.superres.parts import DIV2K_MEAN, LayerNorm2d, bicubic, check_image, direct_head, pick_scale

__all__ = ["CFSR", "EdgeConv"]

Edge = Literal["paper", "release", "none"]
Y = ((1, 2, 1), (0, 0, 0), (-1, -2, -1))
# The released code has one entry of two masks a column off.
MASKS: dict[str, dict[str, Sequence[Sequence[int]]]] = {
    "paper": {"sobel_x": ((1, 0, -1), (2, 0, -2), (1, 0, -1)), "sobel_y": Y, "laplacian": ((0, 1, 0), (1, -4, 1), (0, 1, 0))},
    "release": {"sobel_x": ((0, 1, -1), (2, 0, -2), (1, 0, -1)), "sobel_y": Y, "laplacian": ((1, 0, 0), (1, -4, 1), (0, 1, 0))},
    "none": {},
}


class EdgeConv(nn.Module):
    """A depthwise 3x3 convolution plus scaled edge filters: `pos(x) + sum_i (scale_i mask_i) * x + bias_i`, foldable into `pos`.

    Args:
        channels: C of (N, C, H, W).
        edge: "paper" (Sobel x and y, Laplacian), "release" (those of the authors' code, two of which are off by a column), or "none".
    Scales and biases are trained, a number a channel and filter, and start at N(0, 1) / 1000.
    """

    def __init__(self, channels: int, edge: Edge = "paper") -> None:
        super().__init__()
        if edge not in MASKS:
            raise ProbatumError(f"edge must be one of {', '.join(MASKS)}, got {edge!r}")
        self.channels = channels
        self.edge: Edge = edge
        self.pos = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        for name, mask in MASKS[edge].items():
            self.register_parameter(f"scale_{name}", nn.Parameter(torch.randn(channels, 1, 1, 1) * 1e-3))
            self.register_parameter(f"{name}_bias", nn.Parameter(torch.randn(channels) * 1e-3))
            self.register_buffer(f"mask_{name}", torch.tensor(mask, dtype=torch.float32).expand(channels, 1, 3, 3).contiguous())

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight (C, 1, 3, 3) and bias (C,) of the one convolution that this is."""
        weight, bias = self.pos.weight, self.pos.bias
        assert bias is not None
        for name in MASKS[self.edge]:
            weight = weight + getattr(self, f"scale_{name}") * getattr(self, f"mask_{name}")
            bias = bias + getattr(self, f"{name}_bias")
        return weight, bias

    def forward(self, x: Tensor) -> Tensor:
        """As trained: every filter is run, as the reference does. `folded` gives the same numbers in one."""
        y = self.pos(x)
        for name in MASKS[self.edge]:
            kernel = getattr(self, f"scale_{name}") * getattr(self, f"mask_{name}")
            y = y + F.conv2d(x, kernel, getattr(self, f"{name}_bias"), padding=1, groups=self.channels)
        return y

    @torch.no_grad()
    def merge_(self) -> None:
        """Fold the filters into `pos`, for good."""
        weight, bias = self.folded()
        assert self.pos.bias is not None
        self.pos.weight.copy_(weight)
        self.pos.bias.copy_(bias)
        for name in MASKS[self.edge]:
            for part in (f"scale_{name}", f"{name}_bias", f"mask_{name}"):
                delattr(self, part)
        self.edge = "none"


class Mixer(nn.Module):
    """LN, then proj(DWk(GELU(1x1)) x 1x1): a large depthwise kernel that gates a linear branch (the paper's ConvFormer)."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.norm = LayerNorm2d(width)
        large = nn.Module()
        large.lkb_reparam = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)  # as the authors' files name it
        self.a = nn.ModuleList([nn.Conv2d(width, width, 1), nn.GELU(), large])
        self.v, self.proj = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        n = self.norm(x)
        a = self.a[2].lkb_reparam(F.gelu(self.a[0](n)))  # type: ignore[union-attr, operator]
        return self.proj(a * self.v(n))


class FeedForward(EdgeConv):
    """LN, 1x1 up, GELU, h + GELU(depthwise 3x3 of h with edge filters), 1x1 down: the edge-preserving feed-forward network.

    It is the edge convolution, and not its owner, because the authors' files name the parts so.
    """

    def __init__(self, width: int, hidden: int, edge: Edge) -> None:
        super().__init__(hidden, edge)
        self.norm = LayerNorm2d(width)
        self.fc1, self.fc2 = nn.Conv2d(width, hidden, 1), nn.Conv2d(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.fc1(self.norm(x)))
        return self.fc2(h + F.gelu(super().forward(h)))


class Block(nn.Module):
    """x + ls1 Mixer(x), then x + ls2 FeedForward(x); a trained factor a channel."""

    def __init__(self, width: int, hidden: int, kernel: int, edge: Edge, layer_scale: float) -> None:
        super().__init__()
        self.attn, self.mlp = Mixer(width, kernel), FeedForward(width, hidden, edge)
        self.layer_scale_1, self.layer_scale_2 = (nn.Parameter(layer_scale * torch.ones(width)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.layer_scale_1[:, None, None] * self.attn(x)
        return x + self.layer_scale_2[:, None, None] * self.mlp(x)


class Layer(nn.Module):
    """Blocks, then y = conv1x1(x) + x: the residual is around the 1x1 alone."""

    def __init__(self, blocks: list[Block], width: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.conv = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x)
        return self.conv(x) + x


class CFSR(nn.Module):
    """The network; one factor each.

    Args:
        scale: factor, an integer of 2 or more (published: 2, 3, 4).
        width, depths, kernel, ratio: channels, blocks a layer, side of the mixer's kernel (odd), hidden over width. Published: 48, (6, 6), 9, 2.
        edge: filters of `EdgeConv`; "none" is the merged form, for inference.
        layer_scale: start of the blocks' factors. The reference's 1e-6 keeps blocks off in short trainings; 0.1 suits those.
        skip: add the bicubic enlargement and start the last convolution at zero, so that training begins at bicubic. Not in the paper.
    Input and output: (N, 3, H, W) floats in 0..1 -> (N, 3, scale H, scale W), not clipped. Keys of the state dict, merged or not, are those
    of the authors' code; their files hold the merged form.

    Raises:
        ProbatumError: a scale below 2, an even kernel, a ratio that gives no whole width, an input that is not (N, 3, H, W) floats.
    """

    multiple = 1
    scales: tuple[int, ...]
    radius: int | None
    mean: Tensor

    def __init__(
        self, scale: int = 4, *, width: int = 48, depths: Sequence[int] = (6, 6), kernel: int = 9, ratio: float = 2.0,
        edge: Edge = "paper", layer_scale: float = 0.1, skip: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        if isinstance(scale, bool) or not isinstance(scale, int) or scale < 2:
            raise ProbatumError(f"scale must be an integer of 2 or more, got {scale!r}")
        if kernel < 1 or kernel % 2 == 0:
            raise ProbatumError(f"kernel must be odd, got {kernel!r}")
        if width < 1 or width * ratio != int(width * ratio) or ratio <= 0:
            raise ProbatumError(f"ratio must give a whole number of channels: {ratio!r} times {width!r} does not")
        if not depths or min(depths) < 1:
            raise ProbatumError(f"depths must be one or more positive numbers, got {tuple(depths)}")
        self.scales, self.skip = (scale,), skip
        self.radius = 1 + sum(depths) * (kernel // 2 + 1) + 1 + 1
        self._config = {
            "model": "cfsr", "scale": [scale], "width": width, "depths": list(depths), "kernel": kernel, "ratio": ratio, "edge": edge,
            "skip": skip,
        }  # fmt: skip
        hidden = int(width * ratio)
        self.register_buffer("mean", torch.tensor(DIV2K_MEAN).view(1, 3, 1, 1), persistent=False)
        self.conv_first = nn.Conv2d(3, width, 3, padding=1)
        self.layers = nn.ModuleList(
            Layer([Block(width, hidden, kernel, edge, layer_scale) for _ in range(depth)], width) for depth in depths
        )
        self.norm = LayerNorm2d(width)
        self.conv_after_body = nn.Conv2d(width, width, 3, padding=1)
        self.upsample = direct_head(width, scale, zero=skip)

    def forward(self, x: Tensor, scale: int | None = None) -> Tensor:
        """x (N, 3, H, W) -> (N, 3, scale H, scale W)."""
        check_image(x)
        scale = pick_scale(self.scales, scale)
        mean = self.mean.to(x.dtype)
        first = self.conv_first(x - mean)
        y = first
        for layer in self.layers:
            y = layer(y)
        y = self.upsample(self.conv_after_body(self.norm(y)) + first)
        return y + bicubic(x, scale) if self.skip else y + mean

    def merged(self) -> "CFSR":
        """A copy in which the edge filters are folded in: the same function, the authors' keys."""
        import copy

        net = copy.deepcopy(self)
        for module in net.modules():
            if isinstance(module, EdgeConv):
                module.merge_()
        net._config = {**self._config, "edge": "none"}
        return net

    def config(self) -> dict[str, Any]:
        """What rebuilds it, beside its weights."""
        return dict(self._config)


def looks_like(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """The configuration of the CFSR whose state dict this is, read off keys and shapes; None if it is none."""
    large = state.get("layers.0.blocks.0.attn.a.2.lkb_reparam.weight")
    if large is None or "upsample.0.weight" not in state:
        return None
    depths: list[int] = []
    while any(name.startswith(f"layers.{len(depths)}.blocks.") for name in state):
        start = f"layers.{len(depths)}.blocks."
        depths.append(1 + max(int(name.removeprefix(start).partition(".")[0]) for name in state if name.startswith(start)))
    width = large.shape[0]
    rows = state["upsample.0.weight"].shape[0]
    mask = state.get("layers.0.blocks.0.mlp.mask_sobel_x")
    edge = "none" if mask is None else "paper" if mask[0, 0, 0, 0] else "release"
    return {
        "model": "cfsr", "scale": [round((rows / 3) ** 0.5)], "width": width, "depths": depths, "kernel": large.shape[-1],
        "ratio": state["layers.0.blocks.0.mlp.fc1.weight"].shape[0] / width, "edge": edge,
    }  # fmt: skip

