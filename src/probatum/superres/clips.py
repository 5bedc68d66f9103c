"""Frames to train video networks on: clips of any video file, and batches of paired crops at any factor.

>>> clip = torch.randint(256, (6, 3, 40, 44), dtype=torch.uint8)
>>> patches = ClipPatches([clip], size=8, most=4, frames=3, batch=2, generator=torch.Generator().manual_seed(0))
>>> [tuple(x.shape) for x in patches.draw(2.5)]
[(2, 3, 3, 8, 8), (2, 3, 3, 20, 20)]
"""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from probatum.errors import ProbatumError

__all__ = ["ClipPatches", "frames_of", "shrink", "shrink_to"]


def frames_of(path: str | Path, start: int = 0, stop: int | None = None) -> Tensor:
    """Frames start to stop of a video file, (T, 3, H, W) uint8."""
    from probatum.superres.video import Lost, decoded, probe

    clip = probe(Path(path))
    frames = [torch.from_numpy(pixels) for pixels, _ in islice(decoded(Path(path), clip, Lost()), start, stop)]
    if not frames or clip.depth != 8:
        raise ProbatumError(f"{path}: no 8-bit frames from {start} to {stop}")
    return torch.stack(frames).permute(0, 3, 1, 2)


def shrink_to(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Frames (T, 3, H, W) uint8 at a smaller size, bicubic with antialiasing, rounded to uint8: what real small video is like.

    The paper leaves antialiasing out; nets trained so sharpen real video wrongly.
    """
    y = F.interpolate(x.float(), size=size, mode="bicubic", antialias=True)
    return y.round_().clamp_(0, 255).to(torch.uint8)


def shrink(x: Tensor, scale: float) -> Tensor:
    """Frames smaller by `scale`, sides rounded half up."""
    height, width = (int(n / scale + 0.5) for n in x.shape[2:])
    return shrink_to(x, (height, width))


class ClipPatches:
    """Draws batches of paired crops of consecutive frames, with flips, quarter turns and reversed time.

    Args:
        clips: (T, 3, H, W) uint8, each one scene.
        size: side of a low-resolution crop. `least`, `most`: factors; all with which `size` becomes a whole number of pixels are drawn.
        frames: frames of a crop. `batch`: crops a draw. `generator`: source of all draws.
    """

    def __init__(
        self, clips: Sequence[Tensor], *, size: int = 24, least: float = 2, most: float = 4, frames: int = 5, batch: int = 2, generator: torch.Generator
    ) -> None:
        large = int(size * most + 0.5)
        self.clips = [clip for clip in clips if len(clip) >= frames and min(clip.shape[2:]) >= large]
        if not self.clips:
            raise ProbatumError(f"no clip has {frames} frames with sides of {large} pixels, as crops of {size} at factor {most} need")
        self.size, self.frames, self.batch, self.generator = size, frames, batch, generator
        self.pairs: dict = {n / size: [] for n in range(int(size * least + 0.5), large + 1)}

    def draw(self, scale: float) -> tuple[Tensor, Tensor]:
        """(B, T, 3, size, size) and (B, T, 3, scale size, scale size), floats in 0..1."""
        side = int(self.size * scale + 0.5)

        def integer(limit: int) -> int:
            return int(torch.randint(limit, (), generator=self.generator))

        low, high = [], []
        for _ in range(self.batch):
            clip = self.clips[integer(len(self.clips))]
            start, top, left = (integer(n - k + 1) for n, k in zip((len(clip), *clip.shape[2:]), (self.frames, side, side), strict=True))
            crop = clip[start : start + self.frames, :, top : top + side, left : left + side]
            turn, reverse = integer(8), integer(2)
            crop = crop.rot90(turn % 4, (2, 3))
            crop = crop.flip(3) if turn > 3 else crop
            crop = crop.flip(0) if reverse else crop
            high.append(crop.float() / 255)
            low.append(shrink_to(crop, (self.size, self.size)).float() / 255)
        return torch.stack(low), torch.stack(high)
