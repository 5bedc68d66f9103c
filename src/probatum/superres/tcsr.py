"""TCSR: super-resolution by attention to a pixel's neighbours (Wu et al. 2023, arXiv 2303.14324).

Neighbourhood attention stands where a large kernel would: its weights depend on the picture, and its parameters do not grow with its
reach. The feed-forward part mixes neighbours by a shift that has no parameters. For nets that should see far with few weights and are run on
a GPU or on small pictures; a depthwise kernel (`CFSR`) is far cheaper a pixel.

The authors published a README and no code: widths are reconstructed from its parameter counts, which several shapes meet. Hence `_like`.

>>> net = tcsr_b_like(4)
>>> sum(p.numel() for p in net.parameters())                                       # README: 682 K
681302
>>> small = TCSR(2, width=16, heads=2, kernel=5, blocks=2)
>>> tuple(small(torch.rand(1, 3, 7, 9)).shape)
(1, 3, 14, 18)
"""

import warnings
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.errors import ProbatumError
from probatum.nn.neighbourhood import neighbourhood_attention, shift2d
from probatum.superres.parts import DIV2K_MEAN, LayerNorm2d, SRModel, bicubic, check_image, direct_head, multiply_adds, pick_scale

__all__ = ["TCSR", "NeighbourhoodAttention", "looks_like", "tcsr_b_like", "tcsr_l_like"]

Shift = Literal["zero", "edge", "none"]
Backend = Literal["tiles", "flex"]


class NeighbourhoodAttention(nn.Module):
    """Multi-head attention of each pixel of (N, C, H, W) to the k x k pixels nearest to it, with 1x1 projections in and out.

    Args:
        width: C. `heads`: must divide it. `kernel`: side of the window, odd; H and W must be as large.
        backend: of `probatum.nn.neighbourhood.neighbourhood_attention`.
    Parameters: 4 C^2 + 4 C, and heads (2 kernel - 1)^2 of the relative positions, which start at zero.
    """

    def __init__(self, width: int, heads: int, kernel: int, *, backend: Backend = "tiles") -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ProbatumError(f"heads must divide width {width}, got {heads!r}")
        if isinstance(kernel, bool) or not isinstance(kernel, int) or kernel < 1 or kernel % 2 == 0:
            raise ProbatumError(f"kernel must be odd, got {kernel!r}")
        self.heads, self.kernel, self.backend = heads, kernel, backend
        self.qkv, self.proj = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(width, width, 1)
        self.bias = nn.Parameter(torch.zeros(heads, 2 * kernel - 1, 2 * kernel - 1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).permute(0, 2, 3, 1).unflatten(3, (3, self.heads, -1)).permute(3, 0, 4, 1, 2, 5)
        y = neighbourhood_attention(q, k, v, self.bias, self.kernel, backend=self.backend)
        return self.proj(y.permute(0, 1, 4, 2, 3).flatten(1, 2))


class FeedForward(nn.Module):
    """1x1 up, GELU, h + GELU(shift of h), 1x1 down: the enhanced feed-forward network; `shift` "none" leaves the pixels where they are."""

    def __init__(self, width: int, hidden: int, shift: Shift) -> None:
        super().__init__()
        self.shift = shift
        self.fc1, self.fc2 = nn.Conv2d(width, hidden, 1), nn.Conv2d(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.fc1(x))
        return self.fc2(h + F.gelu(h if self.shift == "none" else shift2d(h, self.shift)))


class Block(nn.Module):
    """x + mixer(LN(x)), then x + FeedForward(LN(x)); with `layer_scale` each branch has a trained factor a channel that starts there."""

    layer_scale_1: nn.Parameter | None
    layer_scale_2: nn.Parameter | None

    def __init__(self, mixer: nn.Module, width: int, hidden: int, shift: Shift, layer_scale: float | None) -> None:
        super().__init__()
        self.norm1, self.mixer = LayerNorm2d(width), mixer
        self.norm2, self.mlp = LayerNorm2d(width), FeedForward(width, hidden, shift)
        for name in ("layer_scale_1", "layer_scale_2"):
            self.register_parameter(name, None if layer_scale is None else nn.Parameter(layer_scale * torch.ones(width, 1, 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = self._add(x, self.mixer(self.norm1(x)), self.layer_scale_1)
        return self._add(x, self.mlp(self.norm2(x)), self.layer_scale_2)

    @staticmethod
    def _add(x: Tensor, y: Tensor, factor: Tensor | None) -> Tensor:
        return x + y if factor is None else torch.addcmul(x, y, factor)


class Stage(nn.Module):
    """Blocks, then y = conv1x1(x) + x, as in CFSR."""

    def __init__(self, blocks: list[Block], width: int) -> None:
        super().__init__()
        self.blocks, self.conv = nn.Sequential(*blocks), nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(x)
        return self.conv(x) + x


class TCSR(nn.Module):
    """Super-resolution by neighbourhood attention.

    Args:
        scale: factor, an integer of 2 or more.
        width, heads, kernel, blocks, ratio: channels, heads (must divide them), side of the window (odd), blocks, hidden over width.
        stage: blocks a stage; 0 leaves the stages' 1x1 convolutions out. Must divide `blocks`.
        shift: what the feed-forward part's shift brings in at the border; "none" does not shift.
        layer_scale: start of a trained factor a channel of each branch, as in CFSR; None (the counts of the README) has none. In short
            trainings 0.1 gained 0.2 to 0.3 dB: without it the first steps fall below bicubic.
        skip: add the bicubic enlargement and start the last convolution at zero, so that training begins at bicubic. Not in the paper.
        backend: "tiles" (any device), "flex" (torch's FlexAttention, CUDA).
    Input and output: (N, 3, H, W) floats in 0..1 -> (N, 3, scale H, scale W), not clipped. A side below `kernel` is mirrored up to it, with a
    warning, and the result cut.

    Raises:
        ProbatumError: an argument outside what is said above, an input that is not (N, 3, H, W) floats.
    """

    multiple = 1
    scales: tuple[int, ...]
    radius: int | None
    mean: Tensor

    def __init__(
        self, scale: int = 4, *, width: int = 56, heads: int = 7, kernel: int = 13, blocks: int = 18, ratio: float = 2.5, stage: int = 2,
        shift: Shift = "zero", layer_scale: float | None = None, skip: bool = False, backend: Backend = "tiles",
    ) -> None:  # fmt: skip
        super().__init__()
        if isinstance(scale, bool) or not isinstance(scale, int) or scale < 2:
            raise ProbatumError(f"scale must be an integer of 2 or more, got {scale!r}")
        if width < 1 or ratio <= 0 or width * ratio != int(width * ratio):
            raise ProbatumError(f"ratio must give a whole number of channels: {ratio!r} times {width!r} does not")
        if blocks < 1 or stage < 0 or (stage and blocks % stage):
            raise ProbatumError(f"stage must divide the number of blocks, which is 1 or more, or be 0: got {stage!r} and {blocks!r}")
        if shift not in ("zero", "edge", "none"):
            raise ProbatumError(f"shift must be zero, edge or none, got {shift!r}")
        self._config = {
            "model": "tcsr", "scale": [scale], "width": width, "heads": heads, "kernel": kernel, "blocks": blocks, "ratio": ratio,
            "stage": stage, "shift": shift, "layer_scale": layer_scale, "skip": skip,
        }  # fmt: skip
        self.scales, self.skip, self.kernel, self.width, self.blocks = (scale,), skip, kernel, width, blocks
        hidden = int(width * ratio)
        made = [
            Block(NeighbourhoodAttention(width, heads, kernel, backend=backend), width, hidden, shift, layer_scale) for _ in range(blocks)
        ]
        # At the border a window reaches kernel - 1 pixels inwards in place of kernel // 2: once, because there it has left the border, and
        # less what the two convolutions behind it and the last shift have reached already.
        reach, moved = kernel // 2, int(shift != "none")
        self.radius = blocks * (reach + moved) + 3 + max(0, reach - 2 - moved)
        self.register_buffer("mean", torch.tensor(DIV2K_MEAN).view(1, 3, 1, 1), persistent=False)
        self.conv_first = nn.Conv2d(3, width, 3, padding=1)
        self.stages = nn.Sequential(*(Stage(made[i : i + stage], width) for i in range(0, blocks, stage)) if stage else made)
        self.norm = LayerNorm2d(width)
        self.conv_after_body = nn.Conv2d(width, width, 3, padding=1)
        self.upsample = direct_head(width, scale, zero=skip)

    def forward(self, x: Tensor, scale: int | None = None) -> Tensor:
        """x (N, 3, H, W) -> (N, 3, scale H, scale W)."""
        check_image(x)
        scale = pick_scale(self.scales, scale)
        height, width = x.shape[2:]
        if min(height, width) < self.kernel:
            warnings.warn(f"an image of {height} x {width} is mirrored up to the window of {self.kernel}", stacklevel=2)
            x = _mirrored(x, self.kernel)
        mean = self.mean.to(x.dtype)
        first = self.conv_first(x - mean)
        y = self.upsample(self.conv_after_body(self.norm(self.stages(first))) + first)
        y = y + bicubic(x, scale) if self.skip else y + mean
        return y[..., : height * scale, : width * scale]

    def multiply_adds(self, height: int, width: int) -> int:
        """Of an image of so many input pixels: the convolutions', and 2 kernel^2 width a pixel and block for scores and their sums."""
        return _convolutions(self, height, width) + 2 * self.kernel**2 * self.width * self.blocks * height * width

    def config(self) -> dict[str, Any]:
        """What rebuilds it, beside its weights."""
        return dict(self._config)


def _convolutions(net: SRModel, height: int, width: int) -> int:
    return multiply_adds(net, net.scales[0], height, width)


def _mirrored(x: Tensor, least: int) -> Tensor:
    """Sides below `least` go on as a mirror would show them, again and again for tiny images."""
    for axis in (2, 3):
        length = x.shape[axis]
        if length < least:
            index = torch.arange(least, device=x.device) % max(1, 2 * length - 2)
            x = x.index_select(axis, torch.where(index < length, index, 2 * length - 2 - index))
    return x


def tcsr_b_like(scale: int = 4, **options: Any) -> TCSR:
    """A net of the README's TCSR-B in parameters: 681,302 at x4, where it says 682 K."""
    return TCSR(scale, blocks=18, **options)


def tcsr_l_like(scale: int = 4, **options: Any) -> TCSR:
    """A net of the README's TCSR-L in parameters: 1,029,692 at x4, where it says 1,030 K."""
    return TCSR(scale, blocks=28, **options)


def looks_like(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """The configuration of the TCSR whose state dict this is, read off keys and shapes (zero-filled shift, no skip); None if it is none."""
    bias = next((value for key, value in state.items() if key.startswith("stages.0.") and key.endswith("mixer.bias")), None)
    if bias is None or bias.ndim != 3 or "upsample.0.weight" not in state:
        return None
    width = state["conv_first.weight"].shape[0]
    hidden = next(value.shape[0] for key, value in state.items() if key.endswith("mlp.fc1.weight"))
    blocks, stages = (sum(key.endswith(name) for key in state) for name in ("mixer.bias", "conv.weight"))
    return {
        "model": "tcsr", "scale": [round((state["upsample.0.weight"].shape[0] / 3) ** 0.5)], "width": width, "heads": bias.shape[0],
        "kernel": (bias.shape[1] + 1) // 2, "blocks": blocks, "ratio": hidden / width, "stage": blocks // stages if stages else 0,
        "layer_scale": 0.1 if any(key.endswith("layer_scale_1") for key in state) else None,
    }  # fmt: skip
