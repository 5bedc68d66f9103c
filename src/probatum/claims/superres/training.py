"""What claims of the family share that train: which photographs are for what, and one short recipe."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from probatum.evidence import Run

if TYPE_CHECKING:
    from torch import nn

    from probatum.superres.fitting import Fit
    from probatum.superres.patches import Photo

__all__ = ["ON", "TEST", "TRAIN", "VALIDATION", "draw_gains", "draw_pictures", "fitted", "photos_of", "scores"]

TRAIN = ("coffee", "flower", "rocket", "retina", "brick")
VALIDATION = ("chelsea", "china", "ihc", "coins", "grass")
TEST = ("astronaut", "hubble", "camera", "moon", "gravel", "motorcycle")
ON = "on these 6 photographs"
SCALE, SIDE = 2, 384


def photos_of(names: tuple[str, ...], *, smoke: bool = False) -> "list[Photo]":
    """Photographs that packages carry, the central 384 x 384 of each; in smoke small parts of two."""
    from probatum.data.photos import photographs
    from probatum.superres.patches import Photo

    found = photographs(limit=64 if smoke else SIDE)
    return [Photo.of(name, found[name]) for name in names[: 2 if smoke else None]]


def fitted(
    build: "Callable[[], nn.Module]", seed: int, steps: int, lr: float, *, batch: int = 8, smoke: bool = False, device: str = "cpu"
) -> "Fit":
    """A finished run at x2 on the training photographs: `batch` crops of 24 x 24 pixels a step, L1, Adam, 20 steps of warm-up and a cosine.

    The weights at the start come from `seed`, the draws too: they are the same in every arm.
    """
    import torch

    from probatum.superres.fitting import Fit
    from probatum.superres.patches import Patches

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build()
    size, batch = (8, 2) if smoke else (24, batch)
    generator = torch.Generator().manual_seed(1_000 + seed)
    patches = Patches(photos_of(TRAIN, smoke=smoke), [SCALE], size=size, batch=batch, generator=generator, device=device)
    return Fit(net.to(device), patches, steps=steps, lr=lr, warm_up=20).advance()


def scores(net: "nn.Module | None", names: tuple[str, ...], *, smoke: bool = False) -> list[float]:
    """PSNR on luma of each photograph at x2, 2 pixels cut off, small images by MATLAB's bicubic; None is bicubic."""
    from probatum.superres.fitting import validate

    return validate(net, photos_of(names, smoke=smoke), SCALE)


def draw_gains(run: Run, arms: Mapping[str, str]) -> None:
    """PSNR above bicubic of every training: arm -> colour."""
    base = run.values("bicubic", "psnr")[0]
    caption = "PSNR above bicubic, mean of the test photographs (dB); a point a training"
    with run.figure("gains", caption, size=(6.4, 1 + 0.4 * len(arms))) as figure:
        axes = figure.subplots()
        for place, (arm, colour) in enumerate(arms.items()):
            values = [value - base for value in run.values(arm, "psnr")]
            axes.plot(values, [place] * len(values), "o", color=colour)
        axes.set(yticks=range(len(arms)), yticklabels=list(arms), xlabel="dB above bicubic", ylim=(len(arms) - 0.5, -0.5))


def draw_pictures(run: Run, nets: "Mapping[str, nn.Module]") -> None:
    """Parts of two test photographs, enlarged twice and shown twice as large: caption -> net."""
    import numpy as np
    import torch

    from probatum.superres.degradation import degrade
    from probatum.superres.fitting import enlarge

    rows = []
    found = {photo.name: photo.pixels for photo in photos_of(TEST)}
    for name, (top, left) in {"astronaut": (0, 112), "motorcycle": (140, 130)}.items():
        high = found[name][:, top : top + 96, left : left + 96]
        low = degrade(high, SCALE)
        seen = low.repeat_interleave(2, 1).repeat_interleave(2, 2)
        panels = [seen, enlarge(None, low, SCALE), *(enlarge(net, low, SCALE) for net in nets.values()), high]
        rows.append(torch.cat([panel.repeat_interleave(2, 1).repeat_interleave(2, 2) for panel in panels], 2))
    pixels = torch.cat(rows, 1).permute(1, 2, 0).numpy().astype(np.uint8)
    run.image("pictures", pixels, f"x2, from left to right: the input's pixels, bicubic, {', '.join(nets)}, the original")
