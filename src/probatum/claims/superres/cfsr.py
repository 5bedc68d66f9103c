"""CFSR's claims: folding makes the trained net faster and changes nothing; what edge filters and a large kernel are worth."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probatum.claims.superres.training import ON, TEST, VALIDATION, draw_gains, draw_pictures, fitted, photos_of, scores
from probatum.evidence import Run, above, as_good, claim, exact, faster

if TYPE_CHECKING:
    from torch import Tensor, nn

    from probatum.superres.cfsr import CFSR

STEPS = {"smoke": 3, "quick": 400, "full": 5_000}
NETS: dict[str, dict[str, Any]] = {
    "edges": {"width": 24, "depths": (2,), "kernel": 9, "edge": "paper"},
    "no edges": {"width": 24, "depths": (2,), "kernel": 9, "edge": "none"},
    "3 x 3": {"width": 27, "depths": (2,), "kernel": 3, "edge": "paper"},
}
# The best of the grid for each arm on the validation photographs, 400 steps with seed 100 (dB: edges 30.185 30.192 30.219 30.039, no edges
# 30.182 30.191 30.217 30.100, 3 x 3 30.218 30.231 30.225 30.072); `choose` measures it again.
GRID = (1e-3, 2e-3, 4e-3, 8e-3)
RATES = {"edges": 4e-3, "no edges": 4e-3, "3 x 3": 2e-3}


def awake(scale: int) -> "CFSR":
    """A net of the published size in which no filter is near zero, so that what folding changes can be seen."""
    import torch

    from probatum.superres.cfsr import CFSR

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = CFSR(scale, edge="paper").eval()
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                if "scale_" in name or name.endswith("_bias"):
                    parameter.normal_(std=0.1)
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def forms(side: int) -> dict[str, Callable[[], Any]]:
    """The feed-forward part (48 channels, 96 hidden) and the whole net for x4, as trained and folded, on `side` x `side` pixels."""
    import torch

    from probatum.superres.cfsr import FeedForward

    net = awake(4)
    merged = net.merged()
    part, folded = (next(m for m in n.modules() if isinstance(m, FeedForward)) for n in (net, merged))
    x, maps = (torch.rand(1, c, side, side).contiguous(memory_format=torch.channels_last) for c in (3, 48))

    def quiet(module: "nn.Module", x: "Tensor") -> Callable[[], Any]:
        def call() -> None:
            with torch.inference_mode():
                module(x)

        return call

    return {
        "part as trained": quiet(part, maps), "part merged": quiet(folded, maps),
        "net as trained": quiet(net, x), "net merged": quiet(merged, x),
    }  # fmt: skip


@claim(
    "cfsr", "merge", version=1, source="edge-preserving feed-forward network: re-parameterisation",
    says="folding the edge filters changes no pixel by more than float32's rounding and makes the net faster",
    reported="x4: 307K parameters and 17.5 G, counted on the merged form",
    budgets={"quick": 5, "full": 10},
    holds_if=[
        exact("difference", "net merged", at_most=1e-5), exact("parameters", "net merged", equals=306_912),
        faster("part merged", "part as trained", by=1.3), faster("net merged", "net as trained", by=1.1),
    ],
)  # fmt: skip
def merge(run: Run, seed: int) -> None:
    """The net of the published size for x4 (width 48, two layers of six blocks), its edge filters drawn with standard deviation .1 (random
    weights: neither time nor equality needs trained ones). Difference: the largest over a part of a test photograph between the outputs of
    both forms, in units of the pixel range 0..1. Time: a feed-forward part alone on 128 x 128 pixels, and the whole net on the same, one
    thread, channels-last memory, a fresh process each. As trained, its four 3 x 3 filters (one trained, three fixed) are run as the authors'
    training code would, one after the other; merged they are one convolution.
    """
    import torch

    side = 16 if run.smoke else 128
    net = awake(4)
    merged = net.merged()
    low = photos_of(TEST[:1], smoke=run.smoke)[0].pixels[None, :, :side, :side].float() / 255
    with torch.inference_mode():
        run.record("net merged", difference=float((net(low) - merged(low)).abs().max()))
    for name, one in (("net as trained", net), ("net merged", merged)):
        run.record(name, parameters=sum(p.numel() for p in one.parameters()))
    run.time_arms(forms, side)


@claim(
    "cfsr", "edges", version=1, first_seed=10, source="ablation of the edge-preserving feed-forward network",
    says="training with the edge filters is at most a twentieth of a dB below training without, and both beat bicubic by .4 dB",
    reported="no figure here: the ablation's numbers are not in the authors' repository; x4, Urban100: 26.21 dB, .7897",
    budgets={"quick": 5, "full": 10},
    holds_if=[
        as_good("psnr", "edges", "no edges", kind="paired", within=0.05, on=ON, trained=("edges", "no edges")),
        above("psnr", "edges", "bicubic", kind="paired", margin=0.4, on=ON),
        above("psnr", "no edges", "bicubic", kind="paired", margin=0.4, on=ON),
    ],
)  # fmt: skip
def edges(run: Run, seed: int) -> None:
    """PSNR at x2 on six photographs that packages carry (central 384 x 384, luma, 2 pixels cut off, MATLAB's bicubic), trained on five
    others, rates from one grid of four by five more: width 24, two blocks, kernel 9, 400 steps of 8 crops of 24 x 24 pixels (full: 5,000),
    Adam, cosine, L1, a bicubic skip whose last convolution starts at zero, layer scale .1.

    Both arms are the same function once merged and begin, for a seed, with the same weights and see the same crops: what the filters can
    change is the path of the training alone. The paper says that they help. A gain as small as can be expected here is below the noise
    between seeds, so the condition is that they do no harm, by a margin fixed beforehand.
    """
    measure(run, seed, {"edges": "edges", "no edges": "no edges"})


@claim(
    "cfsr", "kernel", version=1, first_seed=10, source="ConvFormer's large kernel: ablation of its size",
    says="a depthwise kernel of 9 beats one of 3 in a wider net of as many multiply-adds",
    reported="no figure here: the ablation's numbers are not in the authors' repository; x4, Urban100: 26.21 dB, .7897",
    budgets={"quick": 5, "full": 10},
    holds_if=[
        above("psnr", "9 x 9", "3 x 3", kind="paired", on=ON, trained=("9 x 9", "3 x 3")),
        above("psnr", "9 x 9", "bicubic", kind="paired", margin=0.4, on=ON),
    ],
)  # fmt: skip
def kernel(run: Run, seed: int) -> None:
    """As `edges`, and with its nets: width 24 and kernel 9 against width 27 and kernel 3, which has 4 % more multiply-adds and more
    parameters, each with edge filters and its own rate from one grid of four. Depthwise taps wait for memory, so equal multiply-adds are not
    equal time: the seconds of enlarging 192 x 192 pixels are printed too.
    """
    measure(run, seed, {"9 x 9": "edges", "3 x 3": "3 x 3"})


def measure(run: Run, seed: int, arms: dict[str, str]) -> None:
    """Train (or take what the other claim trained), score, count, and time one picture of 192 x 192 pixels."""
    import torch

    from probatum.superres.parts import multiply_adds

    run.record("bicubic", unit="dB", psnr=scores(None, TEST, smoke=run.smoke))
    side = 16 if run.smoke else 192
    x = torch.rand(1, 3, side, side, device=run.device).contiguous(memory_format=torch.channels_last)
    for system, name in run.progress(arms.items(), total=len(arms)):
        net = trained(run, name, seed).merged()
        run.record(system, unit="dB", psnr=scores(net, TEST, smoke=run.smoke))
        run.record(system, parameters=sum(p.numel() for p in net.parameters()), adds_a_pixel=multiply_adds(net, 2, 64, 64) / 64**2)
        with torch.inference_mode():
            net(x)
            with run.timer() as timer:
                net(x)
        run.record(system, unit="s", seconds_to_enlarge=timer.seconds)


def trained(run: Run, name: str, seed: int) -> "CFSR":
    """The net of an arm and seed, kept as an artifact that both claims share."""
    from probatum.superres import weights

    steps = STEPS[run.budget]
    path = run.artifact(f"{name}.safetensors", _make, arm=name, seed=seed, steps=steps, smoke=run.smoke, device=run.device)
    return weights.load(path, device=run.device)  # type: ignore[return-value]


def _make(path: Path, arm: str, seed: int, steps: int, smoke: bool, device: str) -> None:
    from probatum.superres import weights

    weights.save(fitted(lambda: start(arm), seed, steps, RATES[arm], smoke=smoke, device=device).result(), path, half=False)


def start(name: str) -> "nn.Module":
    """An arm's net; the one without edge filters begins with the weights that the one with them has."""
    from probatum.superres.cfsr import CFSR

    net = CFSR(2, skip=True, **{**NETS[name], "edge": "paper"})
    if name != "no edges":
        return net
    plain = CFSR(2, skip=True, **NETS[name])
    plain.load_state_dict({key: value for key, value in net.state_dict().items() if key in plain.state_dict()})
    return plain


def choose(name: str, steps: int = STEPS["quick"], seed: int = 100) -> dict[float, float]:
    """PSNR on the validation photographs at each rate of the grid: how RATES was found."""
    from statistics import fmean

    return {lr: fmean(scores(fitted(lambda: start(name), seed, steps, lr).result(), VALIDATION)) for lr in GRID}


@merge.figures
def times(run: Run) -> None:
    """Milliseconds of both forms, every process a point."""
    with run.figure("times", "time of both forms on 128 x 128 pixels, one thread; a point a process (ms)", size=(6.4, 2.6)) as figure:
        for axes, what in zip(figure.subplots(1, 2), ("part", "net"), strict=True):
            most = 0.0
            for place, (form, colour) in enumerate({"as trained": "#8a8a8a", "merged": "#0b6e4f"}.items()):
                values = [1e3 * value for value in run.values(f"{what} {form}", "seconds")]
                axes.plot(values, [place] * len(values), "o", color=colour)
                most = max(most, *values)
            axes.set(title={"part": "feed-forward part", "net": "whole net"}[what], yticks=(0, 1), yticklabels=("as trained", "merged"))
            axes.set(xlabel="ms", xlim=(0, 1.08 * most), ylim=(1.5, -0.5))


@edges.figures
def edge_gains(run: Run) -> None:
    draw_gains(run, {"no edges": "#8a8a8a", "edges": "#0b6e4f"})


@kernel.figures
def kernel_gains(run: Run) -> None:
    draw_gains(run, {"3 x 3": "#8a8a8a", "9 x 9": "#0b6e4f"})


@kernel.figures
def pictures(run: Run) -> None:
    """Before and after."""
    if not run.smoke:
        draw_pictures(run, {"kernel 3": trained(run, "3 x 3", run.seed), "kernel 9": trained(run, "edges", run.seed)})
