"""What super-resolution networks are put together from: the mean shift, pixel-shuffle heads, the bicubic skip, weights
at the start.

Every network of the family is an `SRModel`: the tiler, the trainer, the evaluator and the command line use only what
stands there.
"""

from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.errors import ProbatumError

__all__ = [
    "DIV2K_MEAN",
    "Head",
    "LayerNorm2d",
    "MeanShift",
    "SRModel",
    "bicubic",
    "check_image",
    "kaiming",
    "multiply_adds",
    "pick_scale",
]

DIV2K_MEAN = (0.4488, 0.4371, 0.4040)  # of the RGB training images of DIV2K, in 0..1


@runtime_checkable
class SRModel(Protocol):
    """A network that enlarges.

    Attributes:
        scales: the factors it has heads for.
        radius: exact receptive radius in input pixels: an output pixel depends on nothing farther away. None: on
            everything.
        multiple: height and width of the input must be multiples of this.
    """

    scales: tuple[int, ...]
    radius: int | None
    multiple: int

    def __call__(self, x: Tensor, scale: int | None = None) -> Tensor: ...


def pick_scale(scales: Sequence[int], scale: int | None) -> int:
    """The factor to use: the one given if there is a head for it, the only one where none is given."""
    if scale is None:
        if len(scales) > 1:
            raise ProbatumError(f"scale must be given: this net has heads for {', '.join(map(str, scales))}")
        return scales[0]
    if scale not in scales:
        raise ProbatumError(f"scale {scale!r}: this net has heads for {', '.join(map(str, scales))}")
    return scale


def check_image(x: Tensor) -> None:
    """Raise unless x is a batch of RGB images (N, 3, H, W) of floats."""
    if x.ndim != 4 or x.shape[1] != 3:
        raise ProbatumError(f"x must be a batch of RGB images (N, 3, H, W), got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ProbatumError(f"x must be floats in [0, 1], got {x.dtype}: divide uint8 pixels by 255")


def bicubic(x: Tensor, scale: int) -> Tensor:
    """Bicubic enlargement (Keys, a = -0.5) of (N, C, H, W); torch's other bicubic has a = -0.75."""
    low = x.dtype in (torch.bfloat16, torch.float16)
    y = F.interpolate(x.float() if low else x, scale_factor=scale, mode="bicubic", antialias=True)
    return y.to(x.dtype)


def kaiming(net: nn.Module) -> None:
    """Kaiming-normal weights (gain of ReLU) and zero biases for every trainable convolution.

    PyTorch's default shrinks the signal by a factor at each of CARN's twelve 1x1 fusions, so that hundreds of steps do
    nothing visible.
    """
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d) and layer.weight.requires_grad:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class MeanShift(nn.Module):
    """Add `sign` times the mean of DIV2K to an RGB image: a frozen 1x1 convolution, as the reference stores it."""

    def __init__(self, sign: float) -> None:
        super().__init__()
        self.shifter = nn.Conv2d(3, 3, 1)
        with torch.no_grad():
            self.shifter.weight.copy_(torch.eye(3).view(3, 3, 1, 1))
            assert self.shifter.bias is not None
            self.shifter.bias.copy_(sign * torch.tensor(DIV2K_MEAN))
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.shifter(x)


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of each pixel of (N, C, H, W); biased variance, affine, eps 1e-6."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        # torch's kernel normalises the last axis: on channels-last memory the permutations copy nothing
        y = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, self.eps)
        return y.permute(0, 3, 1, 2)


class Head(nn.Module):
    """Pixel-shuffle head (N, width, H, W) -> (N, width, scale H, scale W), in steps of 2 (2, 4) or one of 3.

    Args:
        style: "carn": 3x3 convolution, ReLU, shuffle; "edsr": without the ReLU.
        groups: groups of the convolutions.
    """

    def __init__(self, width: int, scale: int, style: Literal["carn", "edsr"] = "carn", groups: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for factor in {2: [2], 3: [3], 4: [2, 2]}[scale]:
            layers += [nn.Conv2d(width, width * factor**2, 3, padding=1, groups=groups)]
            layers += [nn.ReLU(inplace=True)] if style == "carn" else []
            layers += [nn.PixelShuffle(factor)]
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def direct_head(width: int, scale: int, *, zero: bool = False) -> nn.Sequential:
    """(N, width, H, W) -> (N, 3, scale H, scale W) by one 3x3 convolution and one shuffle; zero: the convolution starts at 0."""
    conv = nn.Conv2d(width, 3 * scale**2, 3, padding=1)
    if zero:
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return nn.Sequential(conv, nn.PixelShuffle(scale))


def multiply_adds(net: SRModel, scale: int, height: int, width: int) -> int:
    """Multiply-adds of the trainable convolutions that enlarge an image of (height, width) input pixels by `scale`.

    Counted by running the network on the meta device: nothing is computed. Biases, activations and the mean shift are
    not counted.
    """
    import copy

    assert isinstance(net, nn.Module)
    ghost = copy.deepcopy(net).to("meta")
    total = 0

    def count(layer: nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += output.shape[-2] * output.shape[-1] * layer.weight.numel()

    for layer in ghost.modules():
        if isinstance(layer, nn.Conv2d) and layer.weight.requires_grad:
            layer.register_forward_hook(count)  # type: ignore[arg-type]
    with torch.no_grad():
        ghost(torch.empty(1, 3, height, width, device="meta"), scale)
    return total
