"""RDN: residual dense blocks whose outputs are all fused at the end (Zhang et al. 2018, arXiv 1802.08797), with the keys of the public files.

>>> net = RDN(scale=4, layout="B")
>>> sum(p.numel() for p in net.parameters())
22271107
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from probatum.errors import ProbatumError
from probatum.superres.parts import check_image, pick_scale

__all__ = ["LAYOUTS", "RDN", "looks_like"]

LAYOUTS = {"A": (20, 6, 32), "B": (16, 8, 64)}  # blocks, convolutions a block, growth; 64 channels between the blocks


class DenseConv(nn.Module):
    """x -> [x, ReLU(conv3x3(x))]; `act` is where a quantiser of its input goes."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(channels, growth, 3, padding=1), nn.ReLU())
        self.act: nn.Module = nn.Identity()

    def forward(self, x: Tensor, rounded: bool = True) -> Tensor:
        x = self.act(x) if rounded else x
        return torch.cat((x, self.conv(x)), 1)


class DenseBlock(nn.Module):
    """Convolutions that each see all before them, a 1x1 that fuses them, and a skip; `act1` and `act2` are places of quantisers."""

    def __init__(self, width: int, growth: int, depth: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(DenseConv(width + i * growth, growth) for i in range(depth))
        self.LFF = nn.Conv2d(width + depth * growth, width, 1)
        self.act1: nn.Module = nn.Identity()
        self.act2: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(x)
        y = x
        for i, layer in enumerate(self.convs):
            y = layer(y, i > 0)  # x has just been through act1
        return self.LFF(self.act2(y)) + x


class RDN(nn.Module):
    """The network.

    Args:
        scale: 2, 3 or 4.
        layout: "A" (20 blocks of 6 convolutions, growth 32), "B" (16, 8, 64), or three numbers.
        width: channels between blocks; published: 64.
        rgb_range: what the weights take white for. Public files: 255; input and output are 0..1 either way.
    Input and output: (N, 3, H, W) floats in 0..1 -> (N, 3, scale H, scale W), not clipped.
    """

    multiple = 1

    def __init__(
        self, scale: int = 2, *, layout: Literal["A", "B"] | tuple[int, int, int] = "B", width: int = 64, rgb_range: float = 1.0
    ) -> None:
        super().__init__()
        if scale not in (2, 3, 4):
            raise ProbatumError(f"scale must be of 2, 3, 4, got {scale!r}")
        sizes = LAYOUTS.get(layout) if isinstance(layout, str) else tuple(layout)
        if sizes is None or len(sizes) != 3 or min(*sizes, width) < 1:
            raise ProbatumError(f"layout must be A, B or (blocks, convolutions, growth), and width positive, got {layout!r} and {width!r}")
        blocks, depth, growth = sizes
        self.scales, self.rgb_range = (scale,), float(rgb_range)
        self.radius = 2 + blocks * depth + 1 + 1 + 1
        self._config = {"model": "rdn", "scale": [scale], "layout": list(sizes), "width": width, "rgb_range": self.rgb_range}
        self.SFENet1, self.SFENet2 = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.RDBs = nn.ModuleList(DenseBlock(width, growth, depth) for _ in range(blocks))
        self.act: nn.Module = nn.Identity()  # a quantiser's place
        self.GFF = nn.Sequential(nn.Conv2d(blocks * width, width, 1), nn.Conv2d(width, width, 3, padding=1))
        tail: list[nn.Module] = []
        channels = width
        for factor in {2: [2], 3: [3], 4: [2, 2]}[scale]:
            tail += [nn.Conv2d(channels, growth * factor**2, 3, padding=1), nn.PixelShuffle(factor)]
            channels = growth
        self.UPNet = nn.Sequential(*tail, nn.Conv2d(growth, 3, 3, padding=1))

    def forward(self, x: Tensor, scale: int | None = None) -> Tensor:
        """x (N, 3, H, W) -> (N, 3, scale H, scale W)."""
        check_image(x)
        pick_scale(self.scales, scale)
        first = self.SFENet1(x if self.rgb_range == 1 else x * self.rgb_range)
        y, maps = self.SFENet2(first), []
        for block in self.RDBs:
            y = block(y)
            maps.append(y)
        y = self.UPNet(self.GFF(self.act(torch.cat(maps, 1))) + first)
        return y if self.rgb_range == 1 else y / self.rgb_range

    def config(self) -> dict[str, Any]:
        """What rebuilds it, beside its weights."""
        return dict(self._config)


def looks_like(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """The configuration of the RDN whose state dict this is; None if it is none."""
    if not {"SFENet1.weight", "RDBs.0.LFF.weight", "GFF.1.weight"} <= set(state):
        return None
    width, growth = state["SFENet1.weight"].shape[0], state["RDBs.0.convs.0.conv.0.weight"].shape[0]
    blocks = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("RDBs."))
    depth = 1 + max(int(name.split(".")[3]) for name in state if name.startswith("RDBs.0.convs."))
    rows = state["UPNet.0.weight"].shape[0] // growth
    scale = 3 if rows == 9 else 4 if "UPNet.4.weight" in state else 2
    return {"model": "rdn", "scale": [scale], "layout": [blocks, depth, growth], "width": width, "rgb_range": 255.0}
