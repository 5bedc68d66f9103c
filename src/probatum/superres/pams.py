"""PAMS: super-resolution networks in 8 or 4 bits, with a trained clipping range (Li et al. 2020, arXiv 2011.04212).

Weights are rounded to 2^bits - 1 levels of one step a tensor; activations are clipped to [-alpha, alpha] and rounded, where alpha is a
parameter a quantiser, begun from data and trained with the weights; the full network's map of where its features are strong is copied.
For small files and integer convolutions of networks without batch norm; fine-tuning needs photographs and minutes, not days. For 8 bits
`calibrate` alone is nearly enough; below 4 bits expect losses.

>>> net = quantise(EDSR(2, width=8, blocks=2), bits=8)
>>> _ = calibrate(net, [torch.rand(1, 3, 12, 12)])
>>> tuple(net(torch.rand(1, 3, 5, 7)).shape), sum("alpha" in name for name, _ in net.named_parameters())
((1, 3, 10, 14), 6)
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.errors import ProbatumError, did_you_mean
from probatum.superres import exporting
from probatum.superres.carn import CARN
from probatum.superres.cfsr import CFSR
from probatum.superres.edsr import EDSR
from probatum.superres.exporting import export_onnx
from probatum.superres.fitting import Fit
from probatum.superres.packed import load_packed, save_packed
from probatum.superres.parts import check_image
from probatum.superres.patches import Patches
from probatum.superres.rdn import RDN, DenseBlock
from probatum.superres.residual import Block, PlainResidual

__all__ = [
    "EDSR", "RDN", "ActQuantiser", "attention_transfer", "calibrate", "export_onnx", "finetune", "load_packed", "quantise",
    "save_packed",
]  # fmt: skip

START = 10.0  # alpha before anything was seen, as in the authors' code
Gradient = Literal["release", "paper"]
First = Literal["paper", "release"]
How = Literal["mean", "last", "max", "percentile"]


class _Clip(torch.autograd.Function):
    """round(clamp(x, -alpha, alpha) / step) step with step = alpha / q; the rounding is passed straight through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor, q: int, inner: bool) -> Tensor:
        step = alpha / q
        y = torch.clamp(x, -alpha, alpha).div_(step).round_().mul_(step)
        ctx.save_for_backward(x, y if inner else None, alpha)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, y, alpha = ctx.saved_tensors
        (g,) = grads
        inside = x.abs() <= alpha
        slope = torch.sign(x)
        # inside, (round(z) - z) / q with z = x q / alpha: the derivative of y through its scale
        slope = torch.where(inside, torch.zeros_like(x) if y is None else (y - x) / alpha, slope)
        return g * inside, (g * slope).sum().view_as(alpha), None, None


class ActQuantiser(nn.Module):
    """Clip to [-alpha, alpha] and round to 2q + 1 levels, q = 2^(bits - 1) - 1; alpha is trained.

    Args:
        bits: 2 to 32.
        gradient: of alpha inside the range. "release": (round(z) - z) / q, as the authors' code has it; "paper": 0. Outside it is sign(x).
        alpha: start; None waits for `calibrate`, and running before that is an error.
        positive: what comes in is never negative (it follows a ReLU): integer files then store it without an offset.
    Rounding is half to even. A step that takes alpha below 1e-6 is undone to 1e-6.
    """

    def __init__(self, bits: int, *, gradient: Gradient = "release", alpha: float | None = None, positive: bool = False) -> None:
        super().__init__()
        self.bits, self.q, self.gradient, self.positive = check_bits(bits), 2 ** (bits - 1) - 1, gradient, positive
        if gradient not in ("release", "paper"):
            raise ProbatumError(f"gradient must be release or paper, got {gradient!r}")
        if alpha is not None and not alpha > 0:
            raise ProbatumError(f"alpha must be positive, got {alpha!r}")
        self.alpha = nn.Parameter(torch.full((1,), START if alpha is None else float(alpha)))
        self.calibrated = alpha is not None
        self.seen: list[Tensor] | None = None  # a list while calibrating
        self.watched: How | float = "mean"

    def forward(self, x: Tensor) -> Tensor:
        if self.seen is not None:
            self.seen.append(_extent(x, self.watched))
            return x
        if not self.calibrated:
            raise ProbatumError(f"alpha is still its default {START:g}: run calibrate(net, batches) before the net")
        if exporting.integers():
            return exporting.quantise_dequantise(x, self)
        if self.training:
            with torch.no_grad():
                self.alpha.clamp_(min=1e-6)
        return _Clip.apply(x, self.alpha, self.q, self.gradient == "release")  # type: ignore[no-untyped-call]

    def step(self) -> Tensor:
        """Width of a level."""
        return self.alpha / self.q

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        name = f"{prefix}alpha"
        if name in state_dict:
            self.calibrated = self.calibrated or float(state_dict[name]) != START
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"bits={self.bits}, gradient={self.gradient!r}, calibrated={self.calibrated}"


def _extent(x: Tensor, how: How | float) -> Tensor:
    """Mean over images of max |x|; the largest; or a percentile of |x|."""
    size = x.detach().abs()
    if isinstance(how, float):
        values = size.flatten()
        return values.kthvalue(max(1, min(len(values), round(how / 100 * len(values))))).values
    return size.amax() if how == "max" else size.amax((1, 2, 3)).mean()


class QuantConv2d(nn.Conv2d):
    """A convolution with weights of 2q + 1 levels, one step a tensor: (max|W| + 1e-8) / q; straight-through in training.

    Args:
        conv: the convolution to take over. `bits`: 2 to 32.
        act: quantiser of its input, kept as `act`; `source`: one that stands elsewhere and has quantised its input already.
    """

    def __init__(self, conv: nn.Conv2d, bits: int, *, act: ActQuantiser | None = None, source: ActQuantiser | None = None) -> None:
        if isinstance(conv, QuantConv2d) or conv.padding_mode != "zeros":
            raise ProbatumError("a plain convolution with zero padding can be quantised, and only once")
        shape: Any = (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups)
        super().__init__(*shape)
        self.weight = conv.weight
        self.bias = conv.bias
        self.bits, self.q = check_bits(bits), 2 ** (bits - 1) - 1
        self.act = act
        self.sources = [source or act]  # in a list, so that it is no child
        self.fixed: Tensor | None = None  # the step of a packed file, so that rounding again changes no bit

    def step(self) -> Tensor:
        """Width of a level, (1,)."""
        if self.fixed is not None:
            return self.fixed.to(self.weight.device)
        return ((self.weight.detach().abs().max() + 1e-8) / self.q).view(1)

    def levels(self) -> Tensor:
        """The weights as integers -q .. q, int8 up to 8 bits."""
        kind = torch.int8 if self.bits <= 8 else torch.int32
        return (self.weight.detach() / self.step()).round().clamp(-self.q, self.q).to(kind)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.act is None else self.act(x)
        if exporting.integers():
            return exporting.convolution(self, x)
        if self.training:
            self.fixed = None
        step = self.step()
        rounded = (self.weight.detach() / step).round_().mul_(step)
        if torch.is_grad_enabled() and self.weight.requires_grad:
            rounded = self.weight + (rounded - self.weight.detach())
        return self._conv_forward(x, rounded, self.bias)


class QuantBlock(nn.Module):
    """EDSR's block with three quantisers; names of its parts are those of the authors' files."""

    def __init__(self, block: Block, bits: int, first: First, gradient: Gradient) -> None:
        super().__init__()
        one, two, three = (ActQuantiser(bits, gradient=gradient, positive=i == 1) for i in range(3))
        self.quant_act1, self.quant_act2, self.quant_act3, self.first, self.factor = one, two, three, first, block.factor
        conv1, conv2 = block.body[0], block.body[2]
        assert isinstance(conv1, nn.Conv2d) and isinstance(conv2, nn.Conv2d)
        # the second quantiser is there twice, under both names
        self.body = nn.Sequential(
            QuantConv2d(conv1, bits, source=one if first == "paper" else None), nn.ReLU(), two, QuantConv2d(conv2, bits, source=two)
        )

    def forward(self, x: Tensor) -> Tensor:
        clean = self.quant_act1(x)
        y = self.body(clean if self.first == "paper" else x)
        return clean + self.quant_act3(y if self.factor == 1 else y * self.factor)


def check_bits(bits: int) -> int:
    """`bits`, if it is a number of bits that levels on both sides of zero can have."""
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 32:
        raise ProbatumError(f"bits must be a whole number from 2 to 32, got {bits!r}: 1 bit leaves no level beside zero")
    return bits


def _usual(net: nn.Module) -> Sequence[str]:
    """What is quantised where nothing is named: the trunk; head, last convolution of the body and tail stay floats."""
    if isinstance(net, (EDSR, PlainResidual)):
        chain = net.body if isinstance(net, EDSR) else net.trunk
        return [f"{'body' if isinstance(net, EDSR) else 'trunk'}.{i}" for i in range(len(chain) - 1)]
    if isinstance(net, RDN):
        return ["RDBs", "act", "GFF"]
    if isinstance(net, CARN):
        return ["b1", "b2", "b3", "c1", "c2", "c3"]
    if isinstance(net, CFSR):
        return ["layers"]
    raise ProbatumError(f"{type(net).__name__}: its blocks are not recognised; give the module names to quantise (select)")


def quantise(
    net: nn.Module, bits: int, select: Sequence[str] | None = None, *, quantise_first: First = "paper", gradient: Gradient = "release"
) -> nn.Module:
    """A copy of a net whose trunk computes with weights and activations of `bits` bits, begun from the net's own weights.

    Args:
        net: any network of the family: EDSR, PlainResidual, RDN, CARN, CARNM, CFSR (folded first), or another with `select`.
        bits: 2 to 32; packed files and integers take 8 or fewer.
        select: names of modules; each takes what is below it: residual blocks, dense blocks, and any other convolution, which gets a
            quantiser at its input. None is the usual trunk of a known net.
        quantise_first: in residual blocks, whether the first convolution sees the quantised input (the paper's figure) or not (the
            authors' code).
        gradient: see `ActQuantiser`.
    The quantisers have seen nothing yet: `calibrate` comes next.

    Raises:
        ProbatumError: bits that are no levels; a net quantised before; names that are not there or hold nothing to quantise.
    """
    check_bits(bits)
    if quantise_first not in ("paper", "release"):
        raise ProbatumError(f"quantise_first must be paper or release, got {quantise_first!r}")
    if quantisers(net):
        raise ProbatumError(f"this net is quantised already ({quantisers(net)[0].bits} bits): quantise the float net")
    net = net.merged() if isinstance(net, CFSR) and net.config()["edge"] != "none" else copy.deepcopy(net)
    names, modules = list(_usual(net) if select is None else select), dict(net.named_modules())
    for name in names:
        if name not in modules or not name:
            raise ProbatumError(f"select: the net has no module {name!r}: {did_you_mean(name, [n for n in modules if n])}")
    done = 0
    for path, module in modules.items():
        # a module covered by a block that was replaced is not in the net any more
        if (
            not any(path == name or path.startswith(f"{name}.") for name in names)
            or net.get_submodule(path.rpartition(".")[0]) is not (modules[path.rpartition(".")[0]])
        ):
            continue
        new: nn.Module | None = None
        if isinstance(module, Block):
            new = QuantBlock(module, bits, quantise_first, gradient)
        elif isinstance(net, RDN) and isinstance(module, nn.Identity):
            new = ActQuantiser(bits, gradient=gradient)
        elif isinstance(module, nn.Conv2d):
            # RDN's quantisers stand before its concatenations
            new = QuantConv2d(module, bits, act=None if isinstance(net, RDN) else ActQuantiser(bits, gradient=gradient))
        if new is not None:
            parent, _, last = path.rpartition(".")
            setattr(net.get_submodule(parent), last, new)
            done += 1
    if not done:
        raise ProbatumError(f"select: nothing to quantise in {', '.join(names) or 'an empty list'}")
    if isinstance(net, RDN):
        _sources(net)
    net.quantisation = {"bits": bits, "select": names, "quantise_first": quantise_first, "gradient": gradient}  # type: ignore[assignment]
    return net


def _sources(net: RDN) -> None:
    """Tell the convolutions of an RDN which quantiser has made their input, where all of it was made by one."""
    for block in (module for module in net.RDBs if isinstance(module, DenseBlock)):
        pairs = [(layer.conv[0], layer.act) for layer in block.convs] + [(block.LFF, block.act2)]  # type: ignore[union-attr, index]
        pairs[0] = (pairs[0][0], block.act1)
        for conv, act in pairs:
            if isinstance(conv, QuantConv2d) and isinstance(act, ActQuantiser):
                conv.sources = [act]
    if isinstance(net.GFF[0], QuantConv2d) and isinstance(net.act, ActQuantiser):
        net.GFF[0].sources = [net.act]


def quantisers(net: nn.Module) -> list[ActQuantiser]:
    """The activation quantisers of a net, each once."""
    return [module for module in net.modules() if isinstance(module, ActQuantiser)]


@torch.no_grad()
def calibrate(
    net: nn.Module, batches: Iterable[Tensor], how: How = "mean", *, percentile: float = 99.9, scale: int | None = None
) -> nn.Module:
    """Set every alpha from what passes it; weights are quantised meanwhile, activations are not. Returns the net.

    Args:
        batches: one or more of (N, 3, H, W) floats in 0..1.
        how: "mean": of max|x| over images (the paper's moving average, in effect); "last": the same of the last batch alone, as the
            authors' code ends its first epoch; "max": the largest of all; "percentile": of |x|, averaged over batches.
    """
    if how not in ("mean", "last", "max", "percentile"):
        raise ProbatumError(f"how must be mean, last, max or percentile, got {how!r}")
    if not 50 <= percentile <= 100:
        raise ProbatumError(f"percentile must be from 50 to 100, got {percentile!r}")
    found = quantisers(net)
    if not found:
        raise ProbatumError("this net has no quantisers: quantise(net, bits) first")
    for quantiser in found:
        quantiser.seen, quantiser.watched = [], float(percentile) if how == "percentile" else how
    try:
        count = 0
        for x in batches:
            _check_range(x)
            net(x, scale)
            count += 1
        if not count:
            raise ProbatumError("batches is empty: calibration needs one batch or more")
        for quantiser in found:
            if quantiser.seen:
                seen = torch.stack(quantiser.seen)
                value = {"last": seen[-1], "max": seen.max()}.get(how, seen.mean())
                quantiser.alpha.fill_(max(float(value), 1e-6))
                quantiser.calibrated = True
    finally:
        for quantiser in found:
            quantiser.seen = None
    return net


def _check_range(x: Tensor) -> None:
    check_image(x)
    if float(x.max()) > 2:
        raise ProbatumError(f"x must be in 0..1, got values up to {float(x.max()):.4g}: divide pixels of 0..255 by 255")


def attention_transfer(student: Tensor, teacher: Tensor, reduction: Literal["sum", "mean"] = "sum") -> Tensor:
    """Squared distance of two spatial attention maps, each the mean over channels of squared features, of unit length an image.

    Args:
        student, teacher: features (N, C, H, W) and (N, C', H, W).
        reduction: over pixels. The authors take the mean, so that their weight of 1000 suits maps of 48 x 48 alone; the sum with
            1000 / 48^2 = 0.434 is the same there and does not change with the size of crops.
    """
    maps = [F.normalize(f.square().mean(1).flatten(1), dim=1) for f in (student, teacher)]
    apart = (maps[0] - maps[1]).square()
    return apart.sum(1).mean() if reduction == "sum" else apart.mean()


class Taught(nn.Module):
    """A student beside its frozen teacher: runs both, returns the student's output and keeps the distance of their features."""

    def __init__(self, student: nn.Module, teacher: nn.Module, reduction: Literal["sum", "mean"]) -> None:
        super().__init__()
        self.student, self.teacher, self.reduction = student, copy.deepcopy(teacher).requires_grad_(False), reduction
        self.extra = torch.zeros(())

    def forward(self, x: Tensor, scale: int | None = None) -> Tensor:
        with torch.no_grad(), Features(self.teacher.eval()) as theirs:
            self.teacher(x, scale)
        with Features(self.student) as ours:
            y = self.student(x, scale)
        self.extra = attention_transfer(ours[-1], theirs[-1], self.reduction)
        return y

    def take(self) -> Tensor:
        """The distance of the last run; it is not kept, since a graph cannot be copied with the net."""
        extra, self.extra = self.extra, torch.zeros(())
        return extra


class Features:
    """Inside, what goes into the upsampler is appended to the list."""

    def __init__(self, net: nn.Module) -> None:
        self.seen: list[Tensor] = []
        place = next((getattr(net, name) for name in ("tail", "UPNet", "upsample", "heads") if hasattr(net, name)), None)
        if place is None:
            raise ProbatumError(f"{type(net).__name__} has no upsampler that is known (tail, UPNet, upsample, heads)")
        self.modules = list(place.values()) if isinstance(place, nn.ModuleDict) else [place]

    def __enter__(self) -> list[Tensor]:
        self.handles = [m.register_forward_pre_hook(lambda _, inputs: self.seen.append(inputs[0])) for m in self.modules]
        return self.seen

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()


def finetune(
    net: nn.Module, patches: Patches, *, steps: int, lr: float = 1e-4, alpha_lr: float = 1e-2, teacher: nn.Module | None = None,
    weight: float = 1000 / 48**2, reduction: Literal["sum", "mean"] = "sum", **options: Any,
) -> nn.Module:  # fmt: skip
    """Train a quantised and calibrated net, weights and alphas with a rate each, on L1 plus `weight` times the distance to the teacher.

    Args:
        net: is not changed. An alpha with `requires_grad` off stays.
        patches, steps, options: as for `Fit`.
        lr, alpha_lr: peak rates of Adam for the weights and for the alphas; the paper's defaults.
        teacher: the float net; None trains on L1 alone.
        weight, reduction: of `attention_transfer`.
    Returns:
        The trained net in evaluation mode.
    """
    found = quantisers(net)
    if not any(quantiser.calibrated for quantiser in found):
        raise ProbatumError("net must be quantised and calibrated before it is fine-tuned")
    if not alpha_lr > 0 or weight < 0:
        raise ProbatumError(f"alpha_lr must be positive and weight not negative, got {alpha_lr!r} and {weight!r}")

    def factor(name: str) -> float:
        return alpha_lr / lr if name.rpartition(".")[2] == "alpha" else 1.0

    student = copy.deepcopy(net)
    if teacher is None:
        return Fit(student, patches, steps=steps, lr=lr, factor=factor, **options).advance().result()
    taught = Taught(student, teacher, reduction)
    run = Fit(
        taught, patches, steps=steps, lr=lr, factor=factor, loss=lambda y, target: F.l1_loss(y, target) + weight * taught.take(), **options
    )
    result = run.advance().result()
    assert isinstance(result, Taught)
    return result.student


def quantised_convolutions(net: nn.Module) -> Iterator[tuple[str, QuantConv2d]]:
    """Name and module of each convolution with quantised weights."""
    return ((name, module) for name, module in net.named_modules() if isinstance(module, QuantConv2d))
