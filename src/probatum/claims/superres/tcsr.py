"""TCSR's claims: attention to neighbours against kernels, large and small, in its place; the shift without parameters does no harm."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from probatum.claims.superres.training import ON, TEST, VALIDATION, draw_gains, draw_pictures, fitted, scores
from probatum.evidence import Run, above, as_good, claim, ratio

if TYPE_CHECKING:
    from torch import nn

    from probatum.superres.tcsr import TCSR

STEPS = {"smoke": 2, "quick": 250, "full": 5_000}
BATCH = 4
SHAPE: dict[str, Any] = {"width": 24, "heads": 3, "kernel": 7, "blocks": 4, "ratio": 2, "layer_scale": 0.1, "skip": True}
LARGE = ("attention", "dense 7 x 7", "gated depthwise 7 x 7")
SMALL = ("attention", "dense 3 x 3")
COLOURS = {"dense 3 x 3": "#8a8a8a", "gated depthwise 7 x 7": "#b07d2b", "dense 7 x 7": "#5b6ea8", "attention": "#0b6e4f"}
# The best of the grid for each arm on the validation photographs, 250 steps with seed 100 (dB, bicubic 29.25: attention 29.580 29.732 29.816
# 29.745, no shift 29.594 29.730 29.829 29.751, dense 7 x 7 29.868 29.976 29.616 29.662, gated depthwise 29.577 29.757 29.868 29.813,
# dense 3 x 3 29.692 29.839 29.964 29.873); `choose` measures it again.
GRID = (1.25e-4, 2.5e-4, 5e-4, 1e-3)
RATES = {"attention": 5e-4, "no shift": 5e-4, "dense 7 x 7": 2.5e-4, "gated depthwise 7 x 7": 5e-4, "dense 3 x 3": 5e-4}


@claim(
    "tcsr", "mixers", version=1, first_seed=10, source="abstract; comparison with large kernels",
    says="neighbourhood attention is as good as a dense large kernel with a quarter of its weights, and as a gated depthwise one",
    reported="x4: TCSR-B, 682 K parameters, Urban100 26.51 dB; SwinIR-light, 844 K, 26.47 dB",
    budgets={"quick": 5, "full": 10},
    holds_if=[
        as_good("psnr", "attention", list(LARGE[1:]), kind="paired", within=0.15, on=ON, trained=LARGE),
        above("psnr", "attention", "bicubic", kind="paired", margin=0.4, on=ON),
        ratio("mixer_parameters", "attention", "dense 7 x 7", kind="exact", at_most=0.25),
    ],
)  # fmt: skip
def mixers(run: Run, seed: int) -> None:
    """PSNR at x2 on six photographs that packages carry (central 384 x 384, luma, 2 pixels cut off, MATLAB's bicubic), trained on five
    others, rates from one grid of four by five more: width 24, four blocks, 250 steps of 4 crops of 24 x 24 pixels (full: 5,000), Adam,
    cosine, L1, a bicubic skip whose last convolution starts at zero, layer scale .1. Equal steps, not equal time: what a step takes is printed.

    The arms differ in the mixer of each block alone; the feed-forward part with its shift is TCSR's in all. `dense 7 x 7`: one
    convolution over the window that attention sees, ten times its weights. `gated depthwise 7 x 7`: the same authors' next mixer, a depthwise
    kernel that gates a linear branch (CFSR), the strongest that is as small as attention. The margin is what five seeds can decide. Trainings
    as short say little of what reach is worth: read it beside `reach`, where no large kernel takes part.
    """
    measure(run, seed, {arm: arm for arm in LARGE})


@claim(
    "tcsr", "reach", version=1, first_seed=10, source="abstract; comparison with light convolutional nets",
    says="neighbourhood attention beats a 3 x 3 bottleneck of as many weights in its place",
    reported="x4, Urban100: TCSR-L 26.67 dB with 1,030 K parameters; CARN 26.07 with 1,592 K (that paper's table)",
    budgets={"quick": 5, "full": 10},
    holds_if=[above("psnr", "attention", "dense 3 x 3", kind="paired", on=ON, trained=SMALL)],
)  # fmt: skip
def reach(run: Run, seed: int) -> None:
    """As `mixers`, with its nets of attention, against 3 x 3 to 12 channels, GELU and 1 x 1 back: within 1 % as many weights, and a fifth of
    the time a step. Where the small one is as good, neither reach nor attention is worth anything at this size and length, and being as good
    as a large kernel is no merit.
    """
    measure(run, seed, {arm: arm for arm in SMALL})


@claim(
    "tcsr", "shift", version=1, first_seed=10, source="enhanced feed-forward network: parameter-free spatial shift",
    says="shifting channels by a pixel in the feed-forward part loses at most a tenth of a dB against not shifting",
    reported="no figure here: the ablation's numbers are not in the authors' repository",
    budgets={"quick": 5, "full": 10},
    holds_if=[
        as_good("psnr", "shift", "no shift", kind="paired", within=0.1, on=ON, trained=("shift", "no shift")),
        above("psnr", "shift", "bicubic", kind="paired", margin=0.4, on=ON),
    ],
)  # fmt: skip
def shift(run: Run, seed: int) -> None:
    """As `mixers`, with its nets of attention: the feed-forward part with the shift and without one (h + GELU(h)), for a seed with the same
    weights at the start and the same crops. The paper says that the shift helps; attention has seen the neighbours already, so a gain at
    this size would be below the noise, and the condition is that it does no harm, by a margin fixed beforehand.
    """
    measure(run, seed, {"shift": "attention", "no shift": "no shift"})


def measure(run: Run, seed: int, arms: dict[str, str]) -> None:
    """Train (or take what the other claim trained), score, count, and time a step."""
    import torch

    from probatum.superres.parts import multiply_adds

    run.record("bicubic", unit="dB", psnr=scores(None, TEST, smoke=run.smoke))
    x = torch.rand(BATCH, 3, 24, 24, device=run.device).contiguous(memory_format=torch.channels_last)
    for system, arm in run.progress(arms.items(), total=len(arms)):
        net = trained(run, arm, seed)
        run.record(system, unit="dB", psnr=scores(net, TEST, smoke=run.smoke))
        seen = [module for block in blocks_of(net) for module in (block.norm1, block.mixer)]
        run.record(system, mixer_parameters=sum(p.numel() for module in seen for p in module.parameters()))
        attention = net.kernel**2 * 2 * net.width * net.blocks if arm in ("attention", "no shift") else 0
        run.record(system, adds_a_pixel=multiply_adds(net, 2, 24, 24) / 24**2 + attention)
        times = []
        for _ in range(1 if run.smoke else 5):
            with run.timer() as timer:
                net(x).sum().backward()
            times.append(timer.seconds)
        run.record(system, unit="s", seconds_a_step=sorted(times)[len(times) // 2])


def blocks_of(net: "nn.Module") -> list[Any]:
    """The transformer blocks of a net, in order."""
    from probatum.superres.tcsr import Block

    return [module for module in net.modules() if isinstance(module, Block)]


def start(arm: str) -> "TCSR":
    """An arm's net: TCSR, with other mixers in its blocks."""
    from torch import nn

    from probatum.superres.cfsr import Mixer
    from probatum.superres.tcsr import TCSR

    net = TCSR(2, **SHAPE, shift="none" if arm == "no shift" else "zero")
    width, side = SHAPE["width"], SHAPE["kernel"]
    for block in blocks_of(net):
        if arm == "dense 7 x 7":
            block.mixer = nn.Conv2d(width, width, side, padding=side // 2)
        elif arm == "gated depthwise 7 x 7":
            block.norm1, block.mixer = nn.Identity(), Mixer(width, side)  # it has a norm of its own
        elif arm == "dense 3 x 3":
            block.mixer = nn.Sequential(nn.Conv2d(width, 12, 3, padding=1), nn.GELU(), nn.Conv2d(12, width, 1))
    return net


def trained(run: Run, arm: str, seed: int) -> "TCSR":
    """The net of an arm and seed, kept as an artifact that both claims share."""
    import torch
    from safetensors.torch import load_file

    inputs = {"arm": arm, "seed": seed, "steps": STEPS[run.budget], "smoke": run.smoke, "device": run.device}
    net = start(arm)
    net.load_state_dict(load_file(run.artifact("net.safetensors", _make, **inputs)))
    return net.to(run.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _make(path: Path, arm: str, seed: int, steps: int, smoke: bool, device: str) -> None:
    from safetensors.torch import save_file

    net = fitted(lambda: start(arm), seed, steps, RATES[arm], batch=BATCH, smoke=smoke, device=device).result()
    save_file({name: value.cpu().contiguous() for name, value in net.state_dict().items()}, path)


def choose(arm: str, steps: int = STEPS["quick"], seed: int = 100) -> dict[float, float]:
    """PSNR on the validation photographs at each rate of the grid: how RATES was found."""
    from statistics import fmean

    return {lr: fmean(scores(fitted(lambda: start(arm), seed, steps, lr, batch=BATCH).result(), VALIDATION)) for lr in GRID}


@mixers.figures
def mixer_gains(run: Run) -> None:
    draw_gains(run, {arm: COLOURS[arm] for arm in reversed(LARGE)})


@mixers.figures
def pictures(run: Run) -> None:
    """Before and after."""
    if not run.smoke:
        draw_pictures(run, {arm: trained(run, arm, run.seed).eval() for arm in reversed(LARGE)})


@reach.figures
def reach_gains(run: Run) -> None:
    draw_gains(run, {arm: COLOURS[arm] for arm in reversed(SMALL)})


@shift.figures
def shift_gains(run: Run) -> None:
    draw_gains(run, {"no shift": "#8a8a8a", "shift": "#0b6e4f"})
