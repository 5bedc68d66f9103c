"""PAMS's claim: 8 bits cost next to nothing, and at 4 bits ranges that are trained are worth more than ranges that are measured."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from probatum.claims.superres.training import ON, TEST, TRAIN, VALIDATION, photos_of
from probatum.evidence import Run, above, as_good, claim

if TYPE_CHECKING:
    from torch import Tensor, nn

    from probatum.superres.patches import Patches, Photo

STEPS = {"smoke": 2, "quick": 120, "full": 2_000}
TEACHERS = 5  # that are shipped; number 0 found the settings
MEAN: dict[str, Any] = {"how": "mean"}


def rule(percentile: float) -> dict[str, Any]:
    """Ranges from a percentile."""
    return {"how": "percentile", "percentile": percentile}


def rates(*net: float) -> list[dict[str, Any]]:
    """Rates of the weights, each with three of the ranges."""
    return [{"lr": lr, "alpha_lr": alpha_lr} for lr in net for alpha_lr in (1e-2, 3e-2, 1e-1)]


COARSE = (2e-4, 7e-4, 2e-3, 6e-3)
# Twelve settings an arm; CHOSEN is what `choose` found by PSNR on the validation photographs. At 8 bits the slowest weights were best, by
# 0.01 dB: there the ranges have all there is to learn.
GRIDS: dict[str, list[dict[str, Any]]] = {
    "calibrated 4": [{"how": "max"}, MEAN, *(rule(p) for p in (99.99, 99.98, 99.97, 99.95, 99.9, 99.8, 99.5, 99.0, 98.0, 96.0))],
    "fixed 4": [{"lr": lr, **r} for lr in COARSE for r in (MEAN, rule(99.9), rule(99.0))],
    "pams 4": rates(*COARSE),
    "pams 8": rates(1e-5, 5e-5, 2e-4, 7e-4),
}
CHOSEN = {"calibrated 4": 1, "fixed 4": 6, "pams 4": 7, "pams 8": 1}
SHIPPED = "for the shipped float nets"


@claim(
    "pams", "bits", version=1, first_seed=1, source="abstract",
    says="8 bits lose at most 0.15 dB; at 4 bits trained ranges beat measured ones and match fixed ones trained around",
    reported="EDSR x4, Set5: 8 bits 32.124 dB, full precision 32.095 dB, 2.42 times smaller",
    budgets={"quick": 4, "full": 10},
    holds_if=[
        as_good("psnr", "pams 8", "float", kind="paired", within=0.15, on=ON, scope=SHIPPED),
        above("psnr", "pams 4", "calibrated 4", kind="paired", margin=0.05, on=ON, scope=SHIPPED),
        as_good("psnr", "pams 4", "fixed 4", kind="paired", within=0.05, on=ON, scope=SHIPPED),
    ],
)  # fmt: skip
def bits(run: Run, seed: int) -> None:
    """PSNR at x2 on the central 384 x 384 of six photographs that packages carry (luma, 2 pixels cut off, MATLAB's bicubic), fine-tuned on
    five others, settings chosen on five more. The float net is the plain residual net of `carn:quality`, EDSR's body of 10 blocks and
    width 32, one training a seed; its blocks are quantised as the paper's figure shows. 120 steps of 4 crops of 24 x 24 pixels (full: 2,000),
    Adam, cosine, L1: the same steps and draws in every arm.

    `calibrated`: ranges from data, nothing trained; the rule is the best of twelve (largest, mean of images' largest, percentiles).
    `max`: the same by the largest value, the usual default. `fixed`: weights are trained, ranges stay as calibrated; best of three rules
    and four rates. `pams`: ranges begin at the mean of the largest and are trained; best of four rates of the weights by three of the ranges. `pams + skt` adds the teacher's
    attention at the same rates, reported without a condition: it is not visible at this size. Every other arm's setting is the best of a
    grid of twelve on the validation photographs, with a net and draws that the claim does not use. The bicubic skip of these
    nets carries most of the signal, so bicubic is printed too.
    """
    import tempfile
    from pathlib import Path

    from probatum.superres import packed, weights

    photos, teacher = photos_of(TEST, smoke=run.smoke), float_net(run, seed)
    run.record("bicubic", unit="dB", psnr=score(None, photos))
    run.record("float", unit="dB", psnr=score(teacher, photos))
    run.record("max 4", unit="dB", psnr=score(trained(run, teacher, "calibrated 4", {"how": "max"}, seed), photos))
    with tempfile.TemporaryDirectory() as folder:
        weights.save(teacher, Path(folder) / "float.safetensors", half=False)
        run.record("float", unit="B", bytes=(Path(folder) / "float.safetensors").stat().st_size)
        for arm in run.progress([*GRIDS, "pams + skt 4"]):
            own = arm.replace(" + skt", "")
            net = trained(run, teacher, arm, GRIDS[own][CHOSEN[own]], seed)
            run.record(arm, unit="dB", psnr=score(net, photos))
            if arm.startswith("pams"):
                run.record(arm, range=range_left(net, trained(run, teacher, f"calibrated {arm[-1]}", MEAN, seed)))
                run.record(arm, unit="B", bytes=packed.save_packed(net, Path(folder) / "packed.safetensors").stat().st_size)


def float_net(run: Run, seed: int) -> "nn.Module":
    """The net to quantise: shipped, or in full trained by the recipe of `carn:quality`."""
    from probatum.superres import weights

    if run.budget == "full":
        from probatum.claims.superres.carn import trained

        return trained(run, "plain", seed)
    return weights.shipped(f"quality_plain_{seed % TEACHERS}")


def score(net: "nn.Module | None", photos: "list[Photo]") -> float:
    """Mean PSNR on luma."""
    from statistics import fmean

    from probatum.superres.fitting import validate

    return fmean(validate(net, photos, 2))


def draws(run: Run, seed: int, purpose: str) -> "Patches":
    """Crops of the training photographs; the same for every arm."""
    from probatum.superres.patches import Patches

    generator = run.generator(f"{purpose} {seed}")
    return Patches(photos_of(TRAIN, smoke=run.smoke), [2], size=24, batch=4, generator=generator)


def trained(run: Run, teacher: "nn.Module", arm: str, setting: dict[str, Any], seed: int) -> "nn.Module":
    """The net of an arm at a setting."""
    import torch

    from probatum.superres.pams import calibrate, finetune, quantise, quantisers

    torch.set_num_threads(1)
    crops = draws(run, seed, "calibration")
    batches: Iterator[Tensor] = (crops.draw(2)[0] for _ in range(2 if run.smoke else 32))
    measured = {key: value for key, value in setting.items() if key in ("how", "percentile")}
    net = calibrate(quantise(teacher, int(arm[-1])), batches, **measured).eval()
    if arm.startswith("calibrated"):
        return net
    speed = {key: value for key, value in setting.items() if key in ("lr", "alpha_lr")}
    if arm.startswith("fixed"):
        for quantiser in quantisers(net):
            quantiser.alpha.requires_grad_(False)
    whom = teacher if "skt" in arm else None
    return finetune(net, draws(run, seed, "training"), steps=STEPS[run.budget], warm_up=5, teacher=whom, **speed)


def range_left(net: "nn.Module", start: "nn.Module") -> float:
    """Mean over quantisers of alpha after training over alpha before."""
    from statistics import fmean

    from probatum.superres.pams import quantisers

    pairs = zip(quantisers(net), quantisers(start), strict=True)
    return fmean(float(a.alpha.detach()) / float(b.alpha.detach()) for a, b in pairs)


def choose(run: Run, seed: int = 0) -> dict[str, tuple[int, list[float]]]:
    """How CHOSEN was found: each arm at each of its settings, scored on the validation photographs."""
    photos, teacher, found = photos_of(VALIDATION, smoke=run.smoke), float_net(run, seed), {}
    for arm, grid in GRIDS.items():
        scores = [score(trained(run, teacher, arm, setting, seed), photos) for setting in grid]
        found[arm] = (scores.index(max(scores)), scores)
    return found


@bits.figures
def losses(run: Run) -> None:
    """What is lost against the float net, seed by seed."""
    import numpy as np

    base = {row.seed: row.value for row in run.table.of("float", "psnr").values()}
    arms = ["max 4", "calibrated 4", "fixed 4", "pams 4", "pams + skt 4", "pams 8"]
    with run.figure("losses", "PSNR below the float net (dB); a dot is a seed, the bar their mean", size=(6.8, 3.2)) as figure:
        axes = figure.subplots()
        for place, arm in enumerate(arms):
            lost = np.array([row.value - base[row.seed] for row in run.table.of(arm, "psnr").values()])
            axes.barh(place, lost.mean(), color="#0b6e4f" if arm.startswith("pams") else "#b9b9b9", height=0.6)
            axes.plot(lost, np.full(len(lost), place), "o", color="#222222", markersize=3)
        axes.set_yticks(range(len(arms)), [f"{arm} bits" for arm in arms])
        axes.invert_yaxis()
        axes.set_xlabel("PSNR minus the float net's (dB)")
