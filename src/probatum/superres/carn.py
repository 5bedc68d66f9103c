"""CARN and CARN-M: super-resolution by cascading residuals (Ahn, Kang and Sohn 2018, arXiv 1803.08664).

Every residual unit of a block, and every block of the network, feeds all later ones: their outputs are concatenated and
fused by a 1x1 convolution. One trunk serves the factors 2, 3 and 4 through three pixel-shuffle heads. CARN-M replaces
the unit by a grouped one that is used three times. For enlarging photographs on modest hardware; not for art that was
drawn in flat colours, and it invents no texture.

>>> net = CARN(scale=(2, 3, 4))
>>> sum(p.numel() for p in net.parameters())
1591963
>>> tuple(net(torch.rand(1, 3, 7, 5), 3).shape)
(1, 3, 21, 15)
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.errors import ProbatumError
from probatum.superres.parts import Head, MeanShift, bicubic, check_image, kaiming, pick_scale

__all__ = ["CARN", "CARNM", "looks_like"]

UNITS = 3  # residual units a block, blocks a network


class ResidualUnit(nn.Module):
    """CARN's unit: ReLU(x + conv3x3(ReLU(conv3x3(x))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(width, width, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + x)


class EfficientUnit(nn.Module):
    """CARN-M's unit: two grouped 3x3 convolutions and a 1x1 that mixes the groups."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, groups=groups), nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, groups=groups), nn.ReLU(inplace=True), nn.Conv2d(width, width, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + x)


class Fusion(nn.Module):
    """ReLU(1x1 convolution of the concatenation of `count` maps of `width` channels)."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(width * count, width, 1), nn.ReLU(inplace=True))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return self.body(torch.cat(list(maps), 1))


class Cascade(nn.Module):
    """Three steps, each fed by the fusion of everything before it (equations 3 and 4)."""

    def _fusions(self, width: int) -> None:
        self.c1, self.c2, self.c3 = (Fusion(width, count) for count in (2, 3, 4))

    def _steps(self) -> Iterator[nn.Module]:
        raise NotImplementedError

    def cascade(self, x: Tensor) -> Tensor:
        maps = [x]
        for step, fuse in zip(self._steps(), (self.c1, self.c2, self.c3), strict=True):
            maps.append(step(x))
            x = fuse(maps)
        return x


class Block(Cascade):
    """The cascade over three residual units, or over one grouped unit three times."""

    def __init__(self, width: int, groups: int | None) -> None:
        super().__init__()
        self.shared = groups is not None
        if groups is None:
            self.b1, self.b2, self.b3 = (ResidualUnit(width) for _ in range(UNITS))
        else:
            self.b1 = EfficientUnit(width, groups)  # type: ignore[assignment]
        self._fusions(width)

    def _steps(self) -> Iterator[nn.Module]:
        yield from [self.b1] * UNITS if self.shared else (self.b1, self.b2, self.b3)

    def forward(self, x: Tensor) -> Tensor:
        return self.cascade(x)


class Upsample(nn.Module):
    """The heads: `up` for a single scale, `up2`, `up3`, `up4` for several, as the reference names them."""

    def __init__(self, width: int, scales: tuple[int, ...], groups: int) -> None:
        super().__init__()
        for scale in scales:
            self.add_module("up" if len(scales) == 1 else f"up{scale}", Head(width, scale, "carn", groups))

    def forward(self, x: Tensor, scale: int) -> Tensor:
        return getattr(self, "up" if hasattr(self, "up") else f"up{scale}")(x)


class CARN(Cascade):
    """Cascading residual network.

    Args:
        scale: factor, or several that share the trunk; each of 2, 3, 4.
        width: channels (the paper: 64).
        skip: add the bicubic enlargement to the output and start the last convolution at zero, so that training begins
            at bicubic and cannot fall below it at once. Not in the paper; the weights that we ship have it, the
            authors' do not.
    Input and output: (N, 3, H, W) floats in 0..1 -> (N, 3, scale H, scale W), not clipped. Any size; channels-last is 4
    to 7 times as fast to train on a CPU. Keys of the state dict are the authors' (their checkpoints load as they are,
    see `weights.load`).

    Raises:
        ProbatumError: a scale not of 2, 3, 4; a width that is not positive; an input that is not (N, 3, H, W) floats.
    """

    multiple = 1
    radius = 21  # of all three heads: 1 (entry) + 18 (body) + 1 (head) + less than 1 (second shuffle, exit)
    groups: int | None = None

    def __init__(self, scale: int | Sequence[int] = (2, 3, 4), *, width: int = 64, skip: bool = False) -> None:
        super().__init__()
        self.scales = (scale,) if isinstance(scale, int) else tuple(sorted(scale))
        if not self.scales or not set(self.scales) <= {2, 3, 4}:
            raise ProbatumError(f"scale must be of 2, 3, 4, got {scale!r}")
        if width < 1:
            raise ProbatumError(f"width must be positive, got {width!r}")
        self.width, self.skip = width, skip
        self.sub_mean, self.add_mean = MeanShift(-1), MeanShift(1)
        self.entry = nn.Conv2d(3, width, 3, padding=1)
        self.b1, self.b2, self.b3 = (Block(width, self.groups) for _ in range(UNITS))
        self._fusions(width)
        self.upsample = Upsample(width, self.scales, self.groups or 1)
        self.exit = nn.Conv2d(width, 3, 3, padding=1)
        kaiming(self)
        if skip:
            nn.init.zeros_(self.exit.weight)

    def _steps(self) -> Iterator[nn.Module]:
        yield from (self.b1, self.b2, self.b3)

    def forward(self, x: Tensor, scale: int | None = None) -> Tensor:
        """x (N, 3, H, W) -> (N, 3, scale H, scale W); `scale` may be left out where the net has one head."""
        check_image(x)
        scale = pick_scale(self.scales, scale)
        trunk = self.cascade(self.entry(self.sub_mean(x)))
        out = self.exit(self.upsample(trunk, scale))
        return out + bicubic(x, scale) if self.skip else self.add_mean(out)

    def config(self) -> dict[str, Any]:
        """What rebuilds it, beside its weights."""
        return {"model": "carn", "scale": list(self.scales), "width": self.width, "skip": self.skip}


class CARNM(CARN):
    """CARN-M: grouped units, one a block, used three times; a quarter of the parameters and about 40 % of the
    multiply-adds.

    Args:
        groups: groups of the 3x3 convolutions, heads included; must divide `width`. The released weights have 4.
        scale, width, skip: as in `CARN`.
    """

    def __init__(
        self, scale: int | Sequence[int] = (2, 3, 4), *, width: int = 64, groups: int = 4, skip: bool = False
    ) -> None:
        if groups < 1 or width % groups:
            raise ProbatumError(f"groups must divide width {width}, got {groups!r}")
        self.groups = groups
        super().__init__(scale, width=width, skip=skip)

    def config(self) -> dict[str, Any]:
        return {**super().config(), "model": "carn_m", "groups": self.groups}


def looks_like(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """The configuration of the CARN or CARN-M whose state dict this is, read off keys and shapes; None if it is
    neither's."""
    if "b1.c1.body.0.weight" not in state or "entry.weight" not in state:
        return None
    width = state["entry.weight"].shape[0]
    scales = [s for s in (2, 3, 4) if any(k.startswith(f"upsample.up{s}.") for k in state)]
    if not scales:
        rows = state["upsample.up.body.0.weight"].shape[0] // width
        scales = [3] if rows == 9 else [4] if "upsample.up.body.3.weight" in state else [2]
    found: dict[str, Any] = {"model": "carn", "scale": scales, "width": width}
    if "b1.b2.body.0.weight" not in state:
        found |= {"model": "carn_m", "groups": width // state["b1.b1.body.0.weight"].shape[1]}
    return found
