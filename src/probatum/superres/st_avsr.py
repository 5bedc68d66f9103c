"""ST-AVSR and B-AVSR: video super-resolution by any factor (Shang et al. 2024, arXiv 2407.09919).

Features are carried along the optical flow from frame to frame, fused with those of the two next frames by deformable convolution and
attention, and enlarged by kernels that depend on position and scale alone, so that one network serves every factor, also different ones in
height and width. ST-AVSR gives it a prior beside each frame: five stages of VGG16. For real video at odd factors; two frames late; not for
single pictures, and useless before it is trained.

>>> net = STAVSR(width=8, blocks=1, prior="fixed")
>>> tuple(net(torch.rand(1, 4, 3, 8, 9), 2.5).shape), tuple(net(torch.rand(1, 3, 3, 8, 9), (2, 3.5)).shape)
((1, 4, 3, 20, 23), (1, 3, 3, 16, 32))
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.errors import ProbatumError
from probatum.superres.arbitrary import ArbitraryUpsampler, KernelNet, Kernels, kernels_for, parse_scale, target_size
from probatum.superres.motion import DeformableConv, Flow, is_cut, lucas_kanade, warp
from probatum.superres.prior import FixedPrior, VGGPrior

__all__ = ["STAVSR", "VideoStream", "looks_like", "without_flow_net"]

FUTURE = 2  # frames after the one that is enlarged


class _ResBlock(nn.Module):
    """x + conv3x3(act(conv3x3(x))); the recurrent part has ReLU, the fusion LeakyReLU 0.1."""

    def __init__(self, width: int, slope: float = 0.0) -> None:
        super().__init__()
        self.conv1, self.conv2, self.slope = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1), slope

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.leaky_relu(self.conv1(x), self.slope))


class _Trunk(nn.Module):
    def __init__(self, inputs: int, width: int, blocks: int) -> None:
        super().__init__()
        self.first_conv = nn.Conv2d(inputs, width, 3, padding=1)
        self.resblocks = nn.Sequential(*(_ResBlock(width) for _ in range(blocks)))

    def forward(self, *maps: Tensor) -> Tensor:
        return self.resblocks(self.first_conv(torch.cat(maps, 1)))


class _Decoder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.ReLU(), nn.Conv2d(2 * width, width, 3, padding=1)
        )


def _lrelu(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.1)


class _Attention(nn.Module):
    """Each pixel weighs the references by likeness, then the mixture is modulated by place (MRAPA)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        two = 2 * width
        self.conv_emb1 = nn.Sequential(nn.Conv2d(width, width, 1), nn.PReLU())
        self.conv_emb2 = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.PReLU())
        self.conv_ass = nn.Conv2d(width, two, 3, padding=1)
        self.feat_fusion = nn.Conv2d(width + two, width, 1)
        self.spatial_attn = nn.Conv2d(width + two, two, 1)
        self.spatial_attn_mul1, self.spatial_attn_mul2 = nn.Conv2d(two, two, 3, padding=1), nn.Conv2d(two, two, 3, padding=1)
        self.spatial_attn_add1, self.spatial_attn_add2 = nn.Conv2d(two, two, 3, padding=1), nn.Conv2d(two, two, 3, padding=1)

    def forward(self, target: Tensor, refs: Sequence[Tensor]) -> Tensor:
        n, c, height, width = target.shape
        pad = (0, -width % 4, 0, -height % 4)  # as the reference, whose convolutions then see mirrored pixels
        target = F.pad(target, pad, mode="reflect")
        stacked = F.pad(torch.cat(list(refs)), pad, mode="reflect")  # (T N, C, H, W)
        query = self.conv_emb1(target) * c**-0.5
        keys = self.conv_emb2(stacked).unflatten(0, (len(refs), n))
        weights = (query * keys).sum(2, keepdim=True).softmax(0)
        mixed = (weights * self.conv_ass(stacked).unflatten(0, (len(refs), n))).sum(0)
        place = _lrelu(self.spatial_attn(torch.cat([target, mixed], 1)))
        factor = self.spatial_attn_mul2(_lrelu(self.spatial_attn_mul1(place))).sigmoid()
        mixed = mixed * factor * 2 + self.spatial_attn_add2(_lrelu(self.spatial_attn_add1(place)))
        return _lrelu(self.feat_fusion(torch.cat([target, mixed], 1)))[..., :height, :width]


class _CrossAttention(nn.Module):
    """Features of this frame fused with those of the next ones, which are aligned by flow and learnt offsets."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.offset_conv1, self.offset_conv2 = nn.Conv2d(2 * width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.dyn_agg = DeformableConv(width, groups)
        self.head, self.body = _Attention(width), _ResBlock(width, 0.1)
        self.tail = nn.Sequential(nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: Tensor, refs: Sequence[Tensor], flows: Sequence[Tensor]) -> Tensor:
        aligned = []
        for ref, flow in zip(refs, flows, strict=True):
            by = _lrelu(self.offset_conv2(_lrelu(self.offset_conv1(torch.cat([x, ref], 1)))))
            aligned.append(_lrelu(self.dyn_agg(ref, by, flow)))
        return self.tail(self.body(self.head(x, aligned)) + x)


class STAVSR(nn.Module):
    """Recurrent video super-resolution by any factor.

    Args:
        scale: factor from 1 on, or (of height, of width), that `forward` takes where it is given none.
        width: channels (the paper: 64). `blocks`: residual blocks of each of the two trunks (15).
        prior: "fixed": local contrast and slopes at five sizes, no weights needed; "vgg": VGG16's stages, the paper's ST-AVSR (start with
            random weights: see `load_vgg`); None: no prior, the paper's B-AVSR.
        groups: groups of the deformable convolution, must divide `width` (8).
        flow: function of two batches of frames that says where the first's pixels are in the second. Default `lucas_kanade`; the authors'
            is a frozen PWC-Net, whose weights their files hold and this does not use.
    Input and output: frames (N, T, 3, H, W), floats in 0..1, H and W 4 or more -> (N, T, 3, H', W'), not clipped. The clip's end is mirrored.
    Keys of the state dict are the authors'.

    Raises:
        ProbatumError: scale below 1, NaN or not a number; width below 4; groups that do not divide it; blocks below 0; an unknown prior;
            frames of another shape.
    """

    video = True
    scales: tuple[int, ...] = ()
    radius: int | None = None
    multiple = 1

    def __init__(
        self,
        scale: float | tuple[float, float] | list[float] = 4.0,
        *,
        width: int = 64,
        blocks: int = 15,
        prior: Literal["fixed", "vgg"] | None = "fixed",
        groups: int = 8,
        flow: Flow = lucas_kanade,
    ) -> None:
        super().__init__()
        self.scale = parse_scale(scale)
        if blocks < 0:
            raise ProbatumError(f"blocks must be 0 or more, got {blocks!r}")
        if prior not in ("fixed", "vgg", None):
            raise ProbatumError(f"prior must be 'fixed', 'vgg' or None, got {prior!r}")
        self.kernel_predict = KernelNet(width)  # first: it checks the width
        self.width, self.blocks, self.prior, self.groups, self.flow = width, blocks, prior, groups, flow
        inputs = 3 + width * (2 if prior else 1)
        self.forward_rnn, self.forward_rnn2 = _Trunk(inputs, width, blocks), _Trunk(inputs, width, blocks)
        self.d, self.upsample = _Decoder(width), ArbitraryUpsampler(width)
        self.predict = _CrossAttention(width, groups)
        if prior:
            self.adists = VGGPrior() if prior == "vgg" else FixedPrior()
            self.multi_prior_fusion = nn.Conv2d(self.adists.channels, width, 1)
        for part in (self.forward_rnn, self.forward_rnn2, self.d):
            for layer in part.modules():
                if isinstance(layer, nn.Conv2d):
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                    layer.weight.data.clamp_(-1, 1).mul_(0.2)
                    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def load_vgg(self, path: str) -> "STAVSR":
        """Give a net with prior "vgg" torchvision's weights of VGG16 from a file; they then go with `weights.save`."""
        if not isinstance(getattr(self, "adists", None), VGGPrior):
            raise ProbatumError(f"load_vgg needs prior='vgg', this net has {self.prior!r}")
        self.adists.load(path)  # type: ignore[union-attr, operator]
        return self

    def kernels(self, height: int, width: int, scale: object = None, size: tuple[int, int] | None = None) -> Kernels:
        """The kernels for frames of (height, width); `size` is the target in pixels and goes before `scale`."""
        size = size or target_size(height, width, self.scale if scale is None else scale)
        if size[0] < height or size[1] < width:
            raise ProbatumError(f"size must be at least the frames' {height} x {width}, got {size[0]} x {size[1]}")
        return kernels_for(self.kernel_predict, (height, width), size)

    def forward(self, frames: Tensor, scale: object = None, *, size: tuple[int, int] | None = None) -> Tensor:
        """frames (N, T, 3, H, W) -> (N, T, 3, H', W'); `scale` is a factor or two, `size` the target's height and width in pixels."""
        if frames.ndim != 5 or frames.shape[1] < 1 or frames.shape[2] != 3 or not frames.is_floating_point() or min(frames.shape[3:]) < 4:
            raise ProbatumError(
                f"frames must be floats (N, T, 3, H, W) with sides of 4 pixels or more, got {frames.dtype} {tuple(frames.shape)}"
            )
        stream = VideoStream(self, scale, size=size)
        out = [y for frame in frames.unbind(1) for y in stream.push(frame)]
        return torch.stack([*out, *stream.finish()], 1)

    def config(self) -> dict[str, Any]:
        """What rebuilds it, beside its weights."""
        return {"model": "st_avsr", "scale": list(self.scale), "width": self.width, "blocks": self.blocks, "prior": self.prior, "groups": self.groups}


class VideoStream:
    """A video frame by frame: the same frames as from the whole of it, with memory for three.

    Args:
        net: a `STAVSR`. `scale`, `size`: as in its `forward`.
        cuts: start anew where the scene changes, so that nothing of the old one is carried over; the paper does not.
    >>> stream = VideoStream(STAVSR(width=8, blocks=0), 2)
    >>> [len(stream.push(torch.rand(1, 3, 8, 8))) for _ in range(4)], len(stream.finish())
    ([0, 0, 1, 1], 2)
    """

    def __init__(self, net: STAVSR, scale: object = None, *, size: tuple[int, int] | None = None, cuts: bool = False) -> None:
        self.net, self.scale, self.size, self.cuts = net, scale, size, cuts
        self.kernels: Kernels | None = None
        self._clear()

    def _clear(self) -> None:
        self.count = 0
        self.recent: list[Tensor] = []  # the last frames, to mirror
        self.waiting: list[tuple[Tensor, Tensor | None, Tensor]] = []  # frames that lack later ones: frame, prior, features

    def push(self, frame: Tensor) -> list[Tensor]:
        """The next frame (N, 3, H, W) -> enlarged frames that are ready, in order: none, one, or at a cut three."""
        if self.recent and frame.shape != self.recent[-1].shape:
            raise ProbatumError(f"frames must be of one size, got {tuple(frame.shape)} after {tuple(self.recent[-1].shape)}")
        if self.kernels is None:
            self.kernels = self.net.kernels(frame.shape[2], frame.shape[3], self.scale, self.size)
        out = self.finish() if self.cuts and self.recent and is_cut(self.recent[-1], frame) else []
        out += self._advance(frame)
        self.count += 1
        self.recent = [*self.recent[-FUTURE:], frame]
        return out

    def finish(self) -> list[Tensor]:
        """The frames that were waiting for later ones, which are mirrored: x_T = x_{T-2}, x_{T+1} = x_{T-3}."""
        out = []
        for i in range(FUTURE if self.count else 0):
            mirrored = min(abs(self.count - 2 - i), self.count - 1)  # clips of one or two frames bounce
            out += self._advance(self.recent[mirrored - self.count])
        self._clear()
        return out

    def state(self) -> dict[str, Any]:
        """What going on needs, as tensors and numbers; `resume` takes it."""
        return {"count": self.count, "recent": self.recent, "waiting": self.waiting}

    def resume(self, state: Mapping[str, Any]) -> "VideoStream":
        """Go on from a state of a stream of the same net, factor and frames."""
        self.count, self.recent, self.waiting = state["count"], list(state["recent"]), [tuple(w) for w in state["waiting"]]
        if self.recent:
            self.kernels = self.net.kernels(self.recent[-1].shape[2], self.recent[-1].shape[3], self.scale, self.size)
        return self

    def _advance(self, x: Tensor) -> list[Tensor]:
        net = self.net
        prior = net.multi_prior_fusion(net.adists(x)) if net.prior else None
        if self.waiting:
            before, _, features = self.waiting[-1]
            carried = warp(features, net.flow(x, before))
        else:
            carried = x.new_zeros(len(x), net.width, *x.shape[2:])
        beside = () if prior is None else (prior,)
        self.waiting.append((x, prior, net.forward_rnn(x, *beside, carried)))
        if len(self.waiting) <= FUTURE:
            return []
        (x, prior, features), *later = self.waiting
        self.waiting.pop(0)
        fused = net.predict(features, [f for _, _, f in later], [net.flow(x, y) for y, _, _ in later])
        beside = () if prior is None else (prior,)
        u = net.d.convs(torch.cat([net.forward_rnn2(x, *beside, fused), features], 1))
        assert self.kernels is not None
        return [net.upsample(u, self.kernels, x)]


def looks_like(state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """The configuration of the net whose state dict this is; None if it is not ST-AVSR's or B-AVSR's."""
    if "kernel_predict.imnets.net.0.linear.weight" not in state or "forward_rnn.first_conv.weight" not in state:
        return None
    fusion = state.get("multi_prior_fusion.weight")
    prior = None if fusion is None else "vgg" if fusion.shape[1] == VGGPrior.channels else "fixed"
    blocks = sum(key.startswith("forward_rnn.resblocks.") and key.endswith("conv1.weight") for key in state)
    return {
        "model": "st_avsr", "scale": [4.0, 4.0], "width": state["forward_rnn.first_conv.weight"].shape[0], "blocks": blocks, "prior": prior,
        "groups": state["predict.dyn_agg.conv_offset_mask.weight"].shape[0] // 27,
    }  # fmt: skip


def without_flow_net(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An authors' state dict without the PWC-Net inside it."""
    return {key: value for key, value in state.items() if not key.startswith("pwcnet.")}
