"""NAFSSR's claim: two views that attend to each other are enlarged better than each by itself."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from probatum.evidence import Run, above, below, claim

if TYPE_CHECKING:
    from torch import Tensor, nn

    from probatum.superres.nafssr import NAFSSR

SCALE = 2
WIDTH, BLOCKS = 16, 4
APART = 20  # without attention: 11 c^2 weights a block become 7 c^2
STEPS = {"smoke": 4, "quick": 300, "full": 5_000}
# Rows of the pair: to train on, to choose rates on, to test on.
TRAIN, VALIDATION, TEST = slice(0, 240), slice(256, 300), slice(325, 499)
# The best of 3e-3, 6e-3, 1.2e-2 and 2.4e-2 for each arm on the validation rows, 300 steps with seed 100 (dB: fused 27.31 27.41 27.48 27.21,
# apart 27.30 27.32 27.36 27.16, moved 27.05 27.14 27.09 27.01, told 27.17 27.21 27.10 and less).
RATES = {"fused": 1.2e-2, "apart": 1.2e-2, "moved": 6e-3, "told": 6e-3}


@claim(
    "nafssr", "fusion", version=1, first_seed=10, source="Table 3 (stereo attention), README (Flickr1024)",
    says="fusing the second view beats the same trunk on one view, and the same net whose second view shows other rows",
    reported="Flickr1024 x2, mean of both views: T 28.94 dB, .9128; 445,068 parameters; 400,000 steps",
    budgets={"quick": 5, "full": 10},
    holds_if=[
        above("psnr", "fused", "apart", kind="paired", on="the lower rows of one pair"),
        above("psnr", "fused", "moved", kind="paired", on="the lower rows of one pair"),
        above("psnr", "fused", "bilinear", kind="paired", margin=0.5, on="the lower rows of one pair"),
        below("disparity error", "fused", "constant", kind="paired", on="the lower rows of one pair"),
    ],
)  # fmt: skip
def fusion(run: Run, seed: int) -> None:
    """The Middlebury motorcycle, a rectified pair of 741 x 500 pixels: a test of the mechanism on one scene, not a benchmark. Trained on
    its rows 0 to 239, rates chosen on rows 256 to 299, tested on rows 325 to 498; x2, MATLAB's bicubic; PSNR on RGB, nothing cut off, mean of
    both views, as the paper. Width 16, four blocks, 300 steps of two crops of 16 x 90 (full: 5,000), Adam, cosine, L1, a last convolution
    that starts at zero, branches that start at 0.1: where the paper starts them at zero, nothing would happen in so few steps.

    `fused` is the method. `apart` has no attention and is wider, so that it has as many parameters. `moved` is the method on a right view
    whose rows are moved by half the height: it looks as real as before, and no row shows what its partner shows. Each arm has its rate from
    one grid of four. Beside them: the fused net given the moved view in the test alone; and `told`, a net without attention that gets the
    right view warped onto the left by the measured disparity (scored on the left view only): what perfect attention could hand over.
    The last condition asks whether the expected offset of the last block's attention is nearer to the measured disparity than the best
    constant of the training rows.
    """
    from statistics import fmean

    import torch

    from probatum.superres.stereo import motorcycle, pair_psnr

    left, right, disparity = motorcycle()
    pair = torch.cat([left, right])[:, :, :740]
    steps = STEPS[run.budget]
    test = slice(TEST.start, TEST.start + 24) if run.smoke else TEST
    run.record("bilinear", unit="dB", psnr=fmean(pair_psnr(_bilinear, pair[:, test], SCALE)))
    for arm in run.progress(["fused", "apart", "moved"]):
        net = _net(run, arm, pair, seed, steps)
        shown = _moved(pair[:, test]) if arm == "moved" else pair[:, test]
        scores = pair_psnr(net, shown, SCALE)
        run.record(arm, unit="dB", psnr=fmean(scores), left=scores[0])
        run.record(arm, parameters=sum(p.numel() for p in net.parameters()))
        if arm == "fused":
            run.record("fused, moved in the test", unit="dB", psnr=fmean(pair_psnr(net, _moved(pair[:, test]), SCALE)))
            error, constant = _disparity_error(net, pair[:, test], disparity[test, :740], disparity[TRAIN])  # type: ignore[arg-type]
            run.record("fused", {"disparity error": error}, unit="px")
            run.record("constant", {"disparity error": constant}, unit="px")
    aligned = torch.cat([left, _onto_left(right, disparity)])[:, :, :740]
    run.record("told", unit="dB", left=_told_psnr(train("told", aligned, run.number("training"), steps), aligned[:, test]))


def _moved(pair: "Tensor") -> "Tensor":
    """The pair with the rows of its right view moved by half the height."""
    import torch

    return torch.cat([pair[:3], pair[3:].roll(pair.shape[1] // 2, 1)])


def _told_psnr(net: "nn.Module", aligned: "Tensor") -> float:
    """PSNR of the left view, which is all that such a net enlarges."""
    from probatum.metrics.fidelity import psnr
    from probatum.superres.degradation import degrade
    from probatum.superres.stereo import enlarge_pair

    got = enlarge_pair(net, degrade(aligned, SCALE), SCALE)
    return psnr(*(x.permute(1, 2, 0).numpy() for x in (got, aligned[:3])))


def _net(run: Run, arm: str, pair: "Tensor", seed: int, steps: int) -> "NAFSSR":
    """The trained net of an arm and seed, kept as an artifact for the pictures."""
    from probatum.superres import weights

    def make(path: Path, arm: str, seed: int, steps: int) -> None:
        weights.save(train(arm, pair, run.number("training"), steps), path, half=False)

    return weights.load(run.artifact(f"{arm}.safetensors", make, arm=arm, seed=seed, steps=steps))  # type: ignore[return-value]


def train(arm: str, pair: "Tensor", number: int, steps: int, lr: float | None = None) -> "nn.Module":
    """Train an arm on the upper rows of the pair (6, H, W); everything random comes from `number`."""
    import torch
    from torch.nn import functional as F

    from probatum.superres.fitting import Fit
    from probatum.superres.nafssr import NAFSSR
    from probatum.superres.stereo import StereoPatches

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(number % 2**31)
        if arm in ("fused", "moved"):
            net: Any = NAFSSR(SCALE, width=WIDTH, blocks=BLOCKS, layer_scale=0.1)
        else:
            net = _told() if arm == "told" else NAFSSR(SCALE, width=APART, blocks=BLOCKS, fusion=(), layer_scale=0.1)
    for parameter in net.up[0].parameters():
        torch.nn.init.zeros_(parameter)
    rows = pair[:, TRAIN]
    rows = _moved(rows) if arm == "moved" else rows
    patches = StereoPatches(
        [(rows[:3], rows[3:])], SCALE, size=(16, 90), batch=2, generator=torch.Generator().manual_seed(number), swap=arm != "told"
    )
    seen = slice(0, 3 if arm == "told" else 6)
    fit = Fit(net, patches, steps=steps, lr=lr or RATES[arm], warm_up=20, loss=lambda y, target: F.l1_loss(y, target[:, seen]))
    return fit.advance().result()


def _told() -> "nn.Module":
    """A trunk without attention whose first convolution sees both views of an aligned pair; it enlarges the first."""
    from torch import nn
    from torch.nn import functional as F

    from probatum.superres.nafssr import NAFSSR

    class Told(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            trunk = NAFSSR(SCALE, width=APART, blocks=BLOCKS, fusion=(), layer_scale=0.1)
            self.intro, self.body, self.up = nn.Conv2d(6, APART, 3, padding=1), trunk.body, trunk.up

        def forward(self, x: "Tensor", scale: int) -> "Tensor":
            return F.interpolate(x[:, :3], scale_factor=scale, mode="bilinear") + self.up(self.body(self.intro(x)))

    return Told()


def _bilinear(x: "Tensor", scale: int) -> "Tensor":
    from torch.nn import functional as F

    return F.interpolate(x, scale_factor=scale, mode="bilinear")


def _onto_left(right: "Tensor", disparity: "Tensor") -> "Tensor":
    """The right view warped onto the left one by the measured disparity; where that is unknown, by the nearest known one."""
    import torch
    from scipy.ndimage import distance_transform_edt

    from probatum.superres.stereo import sample_rows

    y, x = distance_transform_edt(~torch.isfinite(disparity).numpy(), return_distances=False, return_indices=True)
    return sample_rows(right, torch.arange(right.shape[2]) - disparity[y, x])


def _disparity_error(net: "NAFSSR", pair: "Tensor", disparity: "Tensor", seen: "Tensor") -> tuple[float, float]:
    """Mean error in pixels of the last block's expected offset, and of the median of the training rows, where the truth is known."""
    import torch

    from probatum.superres.degradation import degrade

    with torch.no_grad():
        found = SCALE * net.disparity(degrade(pair, SCALE)[None].float() / 255)[0]
    truth = disparity[::SCALE, ::SCALE]
    known = torch.isfinite(truth)
    constant = seen[torch.isfinite(seen)].median()
    return float((found - truth)[known].abs().mean()), float((constant - truth)[known].abs().mean())


@fusion.figures
def gains(run: Run) -> None:
    """Every training of every arm."""
    arms = {"apart": "#8a8a8a", "moved": "#b07d2b", "fused": "#0b6e4f", "fused, moved in the test": "#7fb8a4"}
    base = run.values("bilinear", "psnr")[0]
    with run.figure(
        "gains", "PSNR above bilinear on the test rows, mean of both views (dB); a point a training", size=(6.4, 3.0)
    ) as figure:
        axes = figure.subplots()
        for place, (arm, colour) in enumerate(arms.items()):
            values = [value - base for value in run.values(arm, "psnr")]
            axes.plot(values, [place] * len(values), "o", color=colour)
        axes.set(yticks=range(len(arms)), yticklabels=list(arms), xlabel="dB above bilinear")
        axes.invert_yaxis()


@fusion.figures
def pictures(run: Run) -> None:
    """Parts of the left view's test rows."""
    import torch

    from probatum.superres.degradation import degrade
    from probatum.superres.stereo import enlarge_pair, motorcycle

    if run.smoke:
        return
    left, right, _ = motorcycle()
    pair = torch.cat([left, right])[:, :, :740]
    high = pair[:, TEST]
    low, steps = degrade(high, SCALE), STEPS[run.budget]
    shown = [_bilinear_pixels(low), *(enlarge_pair(_net(run, arm, pair, run.seed, steps), low, SCALE) for arm in ("apart", "fused")), high]
    rows = [torch.cat([view[:3, :96, start : start + 128] for view in shown], 2) for start in (220, 430)]
    pixels = torch.cat(rows, 1).repeat_interleave(2, 1).repeat_interleave(2, 2).permute(1, 2, 0).numpy()
    run.image("pictures", pixels, "left view, x2, from left to right: bilinear, without and with the second view, the original")


def _bilinear_pixels(low: "Tensor") -> "Tensor":
    from probatum.superres.stereo import enlarge_pair

    return enlarge_pair(_bilinear, low, SCALE)
