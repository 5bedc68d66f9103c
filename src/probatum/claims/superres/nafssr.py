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
APART_BY = 175  # rows that lie between what the two views of `moved` show, in the test
# The best of 3e-3, 6e-3, 1.2e-2 and 2.4e-2 for each arm on the validation rows, 300 steps with seed 100 (dB: fused 27.31 27.41 27.48 27.21,
# apart 27.30 27.32 27.36 27.16, moved 27.37 27.57 27.60 27.20, told 27.17 27.21 27.10 26.78).
RATES = {"fused": 1.2e-2, "apart": 1.2e-2, "moved": 1.2e-2, "told": 6e-3}


ROWS = "on the lower rows of one pair"


@claim(
    "nafssr", "fusion", version=1, first_seed=10, source="stereo cross attention (SCAM); the authors' README (Flickr1024)",
    says="fusing the second view beats the same trunk on one view, and the same net whose second view shows other rows",
    reported="Flickr1024 x2, mean of both views: T 28.94 dB, .9128; 445,068 parameters; 400,000 steps",
    budgets={"quick": 5, "full": 10},
    holds_if=[
        above("psnr", "fused", "apart", kind="paired", on=ROWS), above("psnr", "fused", "moved", kind="paired", on=ROWS),
        above("psnr", "fused", "bilinear", kind="paired", margin=0.5, on=ROWS),
    ],
)  # fmt: skip
def fusion(run: Run, seed: int) -> None:
    """The Middlebury motorcycle, a rectified pair of 741 x 500 pixels: a test of the mechanism on one scene, not a benchmark. Trained on
    its rows 0 to 239, rates chosen on rows 256 to 299, tested on rows 325 to 498; x2, MATLAB's bicubic; PSNR on RGB, nothing cut off, mean of
    both views, as the paper. Width 16, four blocks, 300 steps of two crops of 16 x 90 (full: 5,000), Adam, cosine, L1, a last convolution
    that starts at zero, branches that start at 0.1: where the paper starts them at zero, nothing would happen in so few steps.

    `fused` is the method. `apart` has no attention and is wider, so that it has as many parameters. `moved` is the method on views that show
    different rows, in training and test: each view is as real as before, and no row shows what its partner shows. Each arm has its rate from
    one grid of four. Beside them, without a condition: the fused net given such views in the test alone; and `told`, a net without
    attention that gets the right view warped onto the left by the measured disparity (its score is of the left view, as `left` is of the
    others): what perfect attention could hand over.
    """
    from statistics import fmean

    from probatum.superres.stereo import pair_psnr

    pair, _ = _motorcycle()
    test, steps = _test(run), STEPS[run.budget]
    run.record("bilinear", unit="dB", psnr=fmean(pair_psnr(_bilinear, pair[:, test], SCALE)))
    for arm in run.progress(["fused", "apart", "moved"]):
        net = _net(run, arm, seed, steps)
        scores = moved_psnr(net, pair, test, APART_BY) if arm == "moved" else pair_psnr(net, pair[:, test], SCALE)
        run.record(arm, unit="dB", psnr=fmean(scores), left=scores[0])
        run.record(arm, parameters=sum(p.numel() for p in net.parameters()))
        if arm == "fused":
            run.record("fused, moved in the test", unit="dB", psnr=fmean(moved_psnr(net, pair, test, APART_BY)))
    run.record("told", unit="dB", left=told_psnr(train("told", seed, steps), aligned_pair()[:, test]))


@claim(
    "nafssr", "disparity", version=1, first_seed=10, source="stereo cross attention (SCAM) along the epipolar line",
    says="where the attention of the left view looks is nearer to the true disparity than the best constant",
    reported="no figure of its own: the attention is there for the corresponding point",
    budgets={"quick": 5, "full": 10},
    holds_if=[below("error", "attention", "constant", kind="paired", on=ROWS)],
)  # fmt: skip
def disparity(run: Run, seed: int) -> None:
    """The nets `fused` of the claim `fusion` (kept as artifacts, so that they are trained once): the expected offset x_left - E[x_right]
    of the last block's attention on the test rows against the disparity that Middlebury measured (7 to 60 pixels), mean absolute error in
    pixels where it is known. The constant is the median disparity of the training rows, which are farther away. 300 steps (full: 5,000) are
    few for an attention over 370 columns that nothing but the pictures trains; the error of the best block is recorded too.
    """
    import torch

    from probatum.superres.degradation import degrade

    pair, truth = _motorcycle()
    test, steps = _test(run), STEPS[run.budget]
    net = _net(run, "fused", seed, steps)
    low = degrade(pair[:, test], SCALE)[None].float() / 255
    seen, truth = truth[TRAIN], truth[test][::SCALE, ::SCALE]
    known = torch.isfinite(truth)
    with torch.no_grad():
        errors = [float((SCALE * net.disparity(low, block)[0] - truth)[known].abs().mean()) for block in range(BLOCKS)]
    constant = seen[torch.isfinite(seen)].median()
    run.record("attention", unit="px", error=errors[-1], best_block=min(errors))
    run.record("constant", unit="px", error=float((constant - truth)[known].abs().mean()))


def _test(run: Run) -> slice:
    return slice(TEST.start, TEST.start + 24) if run.smoke else TEST


def _motorcycle() -> "tuple[Tensor, Tensor]":
    """The pair (6, 500, 740) and the disparity of its left view (500, 740)."""
    import torch

    from probatum.superres.stereo import motorcycle

    left, right, truth = motorcycle()
    return torch.cat([left, right])[:, :, :740], truth[:, :740]


def moved_psnr(net: "nn.Module", pair: "Tensor", rows: slice, by: int) -> tuple[float, float]:
    """PSNR of both views at `rows`, each while the other view shows the rows `by` above."""
    import torch

    from probatum.superres.stereo import pair_psnr

    other = slice(rows.start - by, rows.stop - by)
    left = pair_psnr(net, torch.cat([pair[:3, rows], pair[3:, other]]), SCALE)[0]
    return left, pair_psnr(net, torch.cat([pair[:3, other], pair[3:, rows]]), SCALE)[1]


def aligned_pair() -> "Tensor":
    """The left view, and the right one warped onto it by the disparity (6, 500, 740); where that is unknown, by the nearest known one."""
    import torch
    from scipy.ndimage import distance_transform_edt

    from probatum.superres.stereo import sample_rows

    pair, truth = _motorcycle()
    y, x = distance_transform_edt(~torch.isfinite(truth).numpy(), return_distances=False, return_indices=True)
    return torch.cat([pair[:3], sample_rows(pair[3:], torch.arange(740) - truth[y, x])])


def told_psnr(net: "nn.Module", aligned: "Tensor") -> float:
    """PSNR of the left view, which is all that such a net enlarges."""
    from probatum.metrics.fidelity import psnr
    from probatum.superres.degradation import degrade
    from probatum.superres.stereo import enlarge_pair

    got = enlarge_pair(net, degrade(aligned, SCALE), SCALE)
    return psnr(*(x.permute(1, 2, 0).numpy() for x in (got, aligned[:3])))


def _net(run: Run, arm: str, seed: int, steps: int) -> "NAFSSR":
    """The trained net of an arm and seed, an artifact that both claims and the pictures share."""
    from probatum.superres import weights

    return weights.load(run.artifact(f"{arm}.safetensors", _make, arm=arm, seed=seed, steps=steps))  # type: ignore[return-value]


def _make(path: Path, arm: str, seed: int, steps: int) -> None:
    from probatum.superres import weights

    weights.save(train(arm, seed, steps), path, half=False)


def train(arm: str, seed: int, steps: int, lr: float | None = None) -> "nn.Module":
    """Train an arm on the upper rows of the pair; everything random comes from `seed`, the same in all arms."""
    import torch
    from torch.nn import functional as F

    from probatum.superres.fitting import Fit
    from probatum.superres.nafssr import NAFSSR
    from probatum.superres.stereo import StereoPatches

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if arm in ("fused", "moved"):
            net: Any = NAFSSR(SCALE, width=WIDTH, blocks=BLOCKS, layer_scale=0.1)
        else:
            net = _told() if arm == "told" else NAFSSR(SCALE, width=APART, blocks=BLOCKS, fusion=(), layer_scale=0.1)
    for parameter in net.up[0].parameters():
        torch.nn.init.zeros_(parameter)
    rows = (aligned_pair() if arm == "told" else _motorcycle()[0])[:, TRAIN]
    if arm == "moved":  # the upper half of a view beside the lower half of the other
        half = rows.shape[1] // 2
        pairs = [(rows[:3, :half], rows[3:, half:]), (rows[:3, half:], rows[3:, :half])]
    else:
        pairs = [(rows[:3], rows[3:])]
    generator = torch.Generator().manual_seed(1_000 + seed)
    patches = StereoPatches(pairs, SCALE, size=(16, 90), batch=2, generator=generator, swap=arm != "told")
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
    from probatum.superres.stereo import enlarge_pair

    if run.smoke:
        return
    high = _motorcycle()[0][:, TEST]
    low, steps = degrade(high, SCALE), STEPS[run.budget]
    shown = [_bilinear_pixels(low), *(enlarge_pair(_net(run, arm, run.seed, steps), low, SCALE) for arm in ("apart", "fused")), high]
    rows = [torch.cat([view[:3, :96, start : start + 128] for view in shown], 2) for start in (220, 430)]
    pixels = torch.cat(rows, 1).repeat_interleave(2, 1).repeat_interleave(2, 2).permute(1, 2, 0).numpy()
    run.image("pictures", pixels, "left view, x2, from left to right: bilinear, without and with the second view, the original")


def _bilinear_pixels(low: "Tensor") -> "Tensor":
    from probatum.superres.stereo import enlarge_pair

    return enlarge_pair(_bilinear, low, SCALE)


@disparity.figures
def maps(run: Run) -> None:
    """Where the attention looks, beside the truth."""
    import torch

    from probatum.superres.degradation import degrade

    if run.smoke:
        return
    pair, truth = _motorcycle()
    with torch.no_grad():
        found = SCALE * _net(run, "fused", run.seed, STEPS[run.budget]).disparity(degrade(pair[:, TEST], SCALE)[None].float() / 255)[0]
    with run.figure(
        "maps", "left view's test rows: offset of the attention (first seed) and measured disparity, in pixels", size=(7.2, 2.4)
    ) as figure:
        for axes, values, title in zip(figure.subplots(1, 2), (found, truth[TEST]), ("attention", "measured"), strict=True):
            shown = axes.imshow(values.numpy(), aspect="auto")
            axes.set(title=title, xticks=[], yticks=[])
            figure.colorbar(shown, ax=axes)
