"""NAFSSR: super-resolution of stereo pairs (Chu, Chen and Yu 2022, arXiv 2204.08714; blocks of NAFNet, arXiv 2204.04676).

Both views go through one trunk of blocks without activation functions; after every block each row of a view attends to the same row of
the other, because in a rectified pair a point lies in the same row of both. For enlarging the two pictures of a stereo camera together;
the second view must be rectified, or it adds nothing.

>>> net = NAFSSR.preset("T", scale=4)
>>> sum(p.numel() for p in net.parameters())
460656
>>> tuple(net(torch.rand(1, 6, 6, 10)).shape)          # left RGB, then right RGB
(1, 6, 24, 40)
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.errors import ProbatumError, did_you_mean
from probatum.superres.parts import LayerNorm2d, direct_head, pick_scale

__all__ = ["NAFSSR", "PRESETS", "SCAM", "LocalMean", "NAFBlock", "looks_like", "row_attention"]

PRESETS: dict[str, dict[str, Any]] = {
    "T": {"width": 48, "blocks": 16, "drop_path": 0.0},
    "S": {"width": 64, "blocks": 32, "drop_path": 0.1},
    "B": {"width": 96, "blocks": 64, "drop_path": 0.2},
    "L": {"width": 128, "blocks": 128, "drop_path": 0.3},
}
WINDOW = (45, 135)  # 1.5 times the training patch of 30 x 90 low-resolution pixels


def row_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Every pixel of `query` attends to the pixels of its row in `key`: softmax(q k / sqrt(C)) v; (N, C, H, W) each.

    Rows are heads of torch's fused attention, which never holds the (H, W, W) scores.
    """
    q, k, v = (x.permute(0, 2, 3, 1) for x in (query, key, value))  # (N, H, W, C): no copy where memory is channels-last
    return F.scaled_dot_product_attention(q, k, v).permute(0, 3, 1, 2)


class LocalMean(nn.Module):
    """Mean over a window around each pixel of (N, C, H, W), as wide at the borders (TLSC, arXiv 2112.04491).

    Args:
        window: (rows, columns); None, or a window that covers the image, is the mean of all pixels, (N, C, 1, 1).
    A net that saw small patches in training meets means of patches then, not those of a whole photograph.
    """

    def __init__(self, window: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        if self.window is None or (self.window[0] >= x.shape[2] and self.window[1] >= x.shape[3]):
            return x.mean((2, 3), keepdim=True)
        # sums along one axis at a time keep float32's digits, which a summed-area table of a big image loses
        low = x.dtype in (torch.bfloat16, torch.float16)
        y = _slide(_slide(x.float() if low else x, 3, self.window[1]), 2, self.window[0])
        return y.to(x.dtype)


def _slide(x: Tensor, dim: int, size: int) -> Tensor:
    """Means of `size` neighbours along an axis; the outermost windows stand for the pixels beyond them."""
    length = x.shape[dim]
    size = min(size, length)
    if size == length:
        return x.mean(dim, keepdim=True).expand_as(x)
    sums = torch.cat([torch.zeros_like(x.narrow(dim, 0, 1)), x.cumsum(dim)], dim)
    start = (torch.arange(length, device=x.device) - (size - 1) // 2).clamp_(0, length - size)
    return (sums.index_select(dim, start + size) - sums.index_select(dim, start)) / size


def _gate(x: Tensor) -> Tensor:
    """The product of the two halves of the channels: what stands for an activation function."""
    a, b = x.chunk(2, 1)
    return a * b


class NAFBlock(nn.Module):
    """NAFNet's block: y = x + beta conv3(u sca(u)), u = gate(dw3x3(conv1(LN x))), then y + gamma conv5(gate(conv4(LN y))).

    Args:
        width: C of (N, C, H, W).
        window: of the mean in the channel attention `sca`, see `LocalMean`.
        dropout: rate behind each branch (0 in all published nets).
        layer_scale: start of beta and gamma, a factor a channel; published 0, so that a new block is the identity.
    """

    def __init__(self, width: int, *, window: tuple[int, int] | None = None, dropout: float = 0.0, layer_scale: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, 2 * width, 1)
        self.conv2 = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width)
        self.conv3 = nn.Conv2d(width, width, 1)
        self.sca = nn.Sequential(LocalMean(window), nn.Conv2d(width, width, 1))
        self.conv4, self.conv5 = nn.Conv2d(width, 2 * width, 1), nn.Conv2d(width, width, 1)
        self.norm1, self.norm2 = LayerNorm2d(width), LayerNorm2d(width)
        self.dropout = nn.Dropout(dropout)
        self.beta, self.gamma = (nn.Parameter(torch.full((1, width, 1, 1), layer_scale)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        u = _gate(self.conv2(self.conv1(self.norm1(x))))
        y = x + self.beta * self.dropout(self.conv3(u * self.sca(u)))
        return y + self.gamma * self.dropout(self.conv5(_gate(self.conv4(self.norm2(y)))))


class SCAM(nn.Module):
    """Stereo cross attention: x_l + beta A(x_l, x_r) W2 x_r and x_r + gamma A(x_r, x_l) W2 x_l, along rows.

    The scores are products of 1x1 convolutions of the normalised views, one matrix read in both directions; the values are of the views as
    they are.

    Args:
        width: C of the views, (N, C, H, W) each. `layer_scale`: start of beta and gamma.
    """

    def __init__(self, width: int, *, layer_scale: float = 0.0) -> None:
        super().__init__()
        self.norm_l, self.norm_r = LayerNorm2d(width), LayerNorm2d(width)
        self.l_proj1, self.r_proj1, self.l_proj2, self.r_proj2 = (nn.Conv2d(width, width, 1) for _ in range(4))
        self.beta, self.gamma = (nn.Parameter(torch.full((1, width, 1, 1), layer_scale)) for _ in range(2))

    def scores_from(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """The two sides of the score product, (N, C, H, W) each."""
        return self.l_proj1(self.norm_l(left)), self.r_proj1(self.norm_r(right))

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        q_l, q_r = self.scores_from(left, right)
        to_left = row_attention(q_l, q_r, self.r_proj2(right))
        to_right = row_attention(q_r, q_l, self.l_proj2(left))
        return left + self.beta * to_left, right + self.gamma * to_right

    def disparity(self, left: Tensor, right: Tensor) -> Tensor:
        """Expected offset of the attention of the left view, x_l - E[x_r] in pixels of the maps, (N, H, W)."""
        q_l, q_r = self.scores_from(left, right)
        columns = torch.arange(left.shape[3], device=left.device, dtype=q_l.dtype)
        return columns - row_attention(q_l, q_r, columns.expand_as(q_r))[:, 0]


class _Stage(nn.Module):
    """A block on each view, then the attention between them."""

    def __init__(self, blk: NAFBlock, fusion: SCAM | None) -> None:
        super().__init__()
        self.blk, self.fusion = blk, fusion

    def forward(self, x: Tensor) -> Tensor:
        x = self.blk(x)  # the views are one batch: the weights are the same
        return x if self.fusion is None else torch.cat(self.fusion(*x.chunk(2)))


class _Depth(nn.Module):
    """Stochastic depth around a stage: skipped with probability `rate` in training, one draw for the whole batch."""

    def __init__(self, module: _Stage, rate: float, generator: torch.Generator | None) -> None:
        super().__init__()
        self.module, self.rate, self.generator = module, rate, generator

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.rate:
            return self.module(x)
        if float(torch.rand((), generator=self.generator)) < self.rate:
            return x
        return x + (self.module(x) - x) / (1 - self.rate)


class NAFSSR(nn.Module):
    """The network; one factor each. `preset` has the four published sizes.

    Args:
        scale: factor, an integer of 2 or more (published: 2, 4).
        width, blocks: channels and blocks.
        fusion: the blocks (from 0) that the stereo attention follows; None is all of them, as published. With none, (), the views go apart
            and single pictures (N, 3, H, W) are taken too: NAFNet for super-resolution.
        window: of the local mean in the channel attention, in low-resolution pixels; None takes the mean of the whole picture. Published:
            1.5 times the training patch, so that it changes nothing in training and keeps large pictures near what was trained on.
        drop_path: probability that a batch skips a block in training. `generator`: source of that draw, on the CPU; None is torch's global
            one.
        dropout: rate inside the blocks (published: 0).
        layer_scale: start of all beta and gamma; published 0, with which the trunk is the identity at first. 0.1 suits short trainings.
    Input and output: (N, 6, H, W) floats in 0..1, left RGB then right RGB -> (N, 6, scale H, scale W), not clipped. W of 2 or more. Keys of
    the state dict are those of the authors' files.

    Raises:
        ProbatumError: an option out of its range; one view where two are needed; an input of other channels.
    """

    multiple = 1

    def __init__(
        self, scale: int = 4, *, width: int = 48, blocks: int = 16, fusion: Sequence[int] | None = None,
        window: Sequence[int] | None = WINDOW, drop_path: float = 0.0, dropout: float = 0.0, layer_scale: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if isinstance(scale, bool) or not isinstance(scale, int) or scale < 2:
            raise ProbatumError(f"scale must be an integer of 2 or more, got {scale!r}")
        if width < 1 or blocks < 1:
            raise ProbatumError(f"width and blocks must be positive, got {width!r} and {blocks!r}")
        fused = tuple(range(blocks)) if fusion is None else tuple(sorted(set(fusion)))
        if fused and not 0 <= fused[0] <= fused[-1] < blocks:
            raise ProbatumError(f"fusion must name blocks from 0 to {blocks - 1}, got {tuple(fusion or ())}")
        if window is not None and (len(window) != 2 or min(window) < 1):
            raise ProbatumError(f"window must be two positive numbers (rows, columns) or None, got {window!r}")
        for name, rate in (("drop_path", drop_path), ("dropout", dropout)):
            if not 0 <= rate < 1:
                raise ProbatumError(f"{name} must be from 0 to below 1, got {rate!r}")
        self.scales, self.views = (scale,), 2 if fused else 1
        self.window = None if window is None else (int(window[0]), int(window[1]))
        self._config = {
            "model": "nafssr", "scale": [scale], "width": width, "blocks": blocks, "fusion": list(fused),
            "window": None if self.window is None else list(self.window), "drop_path": drop_path, "dropout": dropout,
        }  # fmt: skip
        self.intro = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.Sequential(*(
            _Depth(_Stage(
                NAFBlock(width, window=self.window, dropout=dropout, layer_scale=layer_scale),
                SCAM(width, layer_scale=layer_scale) if index in fused else None,
            ), drop_path, generator)
            for index in range(blocks)
        ))  # fmt: skip
        self.up = direct_head(width, scale)

    @classmethod
    def preset(cls, name: str, scale: int = 4, **changes: Any) -> "NAFSSR":
        """A published size: "T", "S", "B" or "L"; `changes` are other arguments."""
        if name not in PRESETS:
            raise ProbatumError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}: {did_you_mean(name, PRESETS)}")
        return cls(scale, **{**PRESETS[name], **changes})

    @property
    def rows(self) -> int | None:
        """Rows of the input above and below that an output row depends on at most; None: on all of them."""
        return None if self.window is None else self._reach(self.window[0])

    @property
    def radius(self) -> int | None:
        """As `rows`, in both directions: None with stereo attention, which looks along whole rows."""
        return None if self.window is None or self.views == 2 else self._reach(max(self.window))

    def _reach(self, window: int) -> int:
        # a block: its 3x3 and half a window, a whole one once at the picture's border; intro and up (the bilinear base needs no more)
        return len(self.body) * (1 + window // 2) + window // 2 + 2

    def trunk(self, x: Tensor) -> Tensor:
        """Features of the views, one after the other along the batch: (N, 3 views, H, W) -> (views N, width, H, W)."""
        return self.body(self.intro(torch.cat(x.split(3, 1))))

    def forward(self, x: Tensor, scale: int | None = None) -> Tensor:
        """x (N, 6, H, W) -> (N, 6, scale H, scale W)."""
        self._check(x)
        scale = pick_scale(self.scales, scale)
        base = F.interpolate(x, scale_factor=scale, mode="bilinear")
        return base + torch.cat(self.up(self.trunk(x)).chunk(x.shape[1] // 3), 1)

    def disparity(self, x: Tensor, block: int = -1) -> Tensor:
        """Expected offset of the left view's attention after a block (from 0; -1 is the last), in pixels of x: (N, H, W).

        What the attention makes of x_l - x_r: positive where the pair is in order. It was not trained to be a disparity.
        """
        self._check(x)
        index = range(len(self.body))[block]
        stage = self.body[index].module
        if stage.fusion is None:  # type: ignore[union-attr]
            raise ProbatumError(f"block must be one with stereo attention ({self._config['fusion']}), got {block!r}")
        y = self.body[:index](self.intro(torch.cat(x.split(3, 1))))
        return stage.fusion.disparity(*stage.blk(y).chunk(2))  # type: ignore[union-attr, operator]

    def _check(self, x: Tensor) -> None:
        """Raise unless x is a batch of pairs, or of single pictures where there is no stereo attention."""
        if x.ndim == 4 and x.shape[1] == 3 and self.views == 2:
            raise ProbatumError(
                f"x must be pairs of views (N, 6, H, W), left RGB then right RGB, got one view {tuple(x.shape)}: stereo needs two; "
                "give one view twice, or use a net for single pictures"
            )
        allowed = (6,) if self.views == 2 else (3, 6)
        if x.ndim != 4 or x.shape[1] not in allowed:
            more = ": take alpha off first" if x.ndim == 4 and x.shape[1] in (7, 8) else ""
            raise ProbatumError(f"x must be (N, {' or '.join(map(str, allowed))}, H, W), got {tuple(x.shape)}{more}")
        if not x.is_floating_point():
            raise ProbatumError(f"x must be floats in [0, 1], got {x.dtype}: divide uint8 pixels by 255")
        if self.views == 2 and x.shape[3] < 2:
            raise ProbatumError(f"the views must be 2 pixels wide or more, got {tuple(x.shape)}")

    def config(self) -> dict[str, Any]:
        """What rebuilds it, beside its weights."""
        return dict(self._config)


def looks_like(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """The configuration of the NAFSSR (or NAFNet for single pictures) whose state dict this is; None if it is none.

    Files do not say the window: stereo nets get the published one.
    """
    start = "body.0.module."
    if not {f"{start}blk.sca.1.weight", "intro.weight", "up.0.weight"} <= set(state):
        return None
    numbers = {int(name.split(".")[1]) for name in state if name.startswith("body.") and name.endswith(".module.blk.beta")}
    fusion = sorted(i for i in numbers if f"body.{i}.module.fusion.beta" in state)
    return {
        "model": "nafssr", "scale": [round((state["up.0.weight"].shape[0] / 3) ** 0.5)], "width": state["intro.weight"].shape[0],
        "blocks": len(numbers), "fusion": fusion, "window": list(WINDOW) if fusion else None,
    }  # fmt: skip
