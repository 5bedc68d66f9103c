"""Small networks that zeroth-order training is shown on: image classifiers with the papers' numbers of weights, denoiser, auto-encoder."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.errors import ProbatumError

__all__ = ["AutoEncoder", "Denoiser", "digit_cnn", "plain_cnn", "resnet20"]


def digit_cnn(pixels: int = 8, classes: int = 10) -> nn.Sequential:
    """conv 8, pool, conv 16, pool, linear for square grey images: 1,898 weights at 8 x 8 pixels, 2,698 at 14 x 14."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(16 * (pixels // 4) ** 2, classes),
    )  # fmt: skip


def plain_cnn(depth: int, *, width: int = 18, channels: int = 3, classes: int = 10) -> nn.Sequential:
    """`depth` blocks of conv 3 x 3, batch norm, ReLU and pooling, then the mean over places and a linear head.

    The family of DeepZero's comparison with RGE: 730, 3,700, 6,670, 9,640 and 12,610 weights at depth 1 to 5 and width 18.
    """
    if not 1 <= depth <= 5:
        raise ProbatumError(f"depth must be from 1 to 5 (32 pixels are halved each time), got {depth!r}")
    layers: list[nn.Module] = []
    for block in range(depth):
        layers += [nn.Conv2d(width if block else channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


class Block(nn.Module):
    """Two convolutions and a skip; where it narrows, the skip takes every other pixel and pads channels with zeros (no weights)."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(into, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.stride, self.more = stride, out - into

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if self.more:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more // 2, self.more - self.more // 2))
        return torch.relu(x + y)


def resnet20(*, channels: int = 3, classes: int = 10) -> nn.Sequential:
    """ResNet-20 for 32 x 32 images (He et al. 2016): 269,722 weights, of which 267,696 in convolutions and 1,376 in norms."""
    sizes = [(16, 16, 1)] * 3 + [(16, 32, 2)] + [(32, 32, 1)] * 2 + [(32, 64, 2)] + [(64, 64, 1)] * 2
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        *(Block(*size) for size in sizes), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes),
    )  # fmt: skip


class Denoiser(nn.Module):
    """DnCNN (Zhang et al. 2017): `depth` 3 x 3 convolutions of `width` channels that estimate the noise, which is taken off.

    (B, C, H, W) -> the same. Batch norm in all layers but the first and the last; its last layer starts at zero, so that it starts as the
    identity.
    """

    def __init__(self, channels: int = 1, width: int = 64, depth: int = 17, norm: bool = True) -> None:
        super().__init__()
        if channels < 1 or width < 1 or depth < 2:
            raise ProbatumError(f"channels and width must be 1 or more and depth 2 or more, got {channels}, {width}, {depth}")
        self.config = {"channels": channels, "width": width, "depth": depth, "norm": norm}
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
        for _ in range(depth - 2):
            layers.append(nn.Conv2d(width, width, 3, padding=1, bias=not norm))
            layers += [nn.BatchNorm2d(width), nn.ReLU()] if norm else [nn.ReLU()]
        layers.append(nn.Conv2d(width, channels, 3, padding=1))
        self.layers = nn.Sequential(*layers)
        nn.init.zeros_(layers[-1].weight)  # type: ignore[arg-type]
        nn.init.zeros_(layers[-1].bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return x - self.layers(x)


class AutoEncoder(nn.Module):
    """`encoder` (B, *shape) -> (B, latent) and `decoder` back, into 0..1 by a sigmoid; the latent has no ReLU.

    Args:
        kind: "mlp" has one hidden layer of `width`; "conv" halves height and width twice (they must be multiples of 4).
    """

    def __init__(self, shape: Sequence[int], latent: int, width: int = 128, kind: str = "mlp") -> None:
        super().__init__()
        shape, size = tuple(shape), math.prod(shape)
        if not 1 <= latent < size:
            raise ProbatumError(f"latent must be from 1 to {size - 1}, fewer than the {size} inputs, got {latent!r}")
        self.config = {"shape": list(shape), "latent": latent, "width": width, "kind": kind}
        if kind == "mlp":
            self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(size, width), nn.ReLU(), nn.Linear(width, latent))
            self.decoder = nn.Sequential(
                nn.Linear(latent, width), nn.ReLU(), nn.Linear(width, size), nn.Sigmoid(), nn.Unflatten(1, shape)
            )
        elif kind == "conv":
            if len(shape) != 3 or shape[1] % 4 or shape[2] % 4:
                raise ProbatumError(f"kind='conv' needs a shape (C, H, W) with H and W multiples of 4, got {list(shape)}")
            inner = (2 * width, shape[1] // 4, shape[2] // 4)
            self.encoder = nn.Sequential(
                nn.Conv2d(shape[0], width, 4, 2, 1), nn.ReLU(), nn.Conv2d(width, 2 * width, 4, 2, 1), nn.ReLU(),
                nn.Flatten(), nn.Linear(math.prod(inner), latent),
            )  # fmt: skip
            self.decoder = nn.Sequential(
                nn.Linear(latent, math.prod(inner)), nn.ReLU(), nn.Unflatten(1, inner),
                nn.ConvTranspose2d(2 * width, width, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(width, shape[0], 4, 2, 1), nn.Sigmoid(),
            )  # fmt: skip
        else:
            raise ProbatumError(f"kind must be 'mlp' or 'conv', got {kind!r}")

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))
