"""Pairs of low- and high-resolution crops of photographs to train on, and the folders they come from."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from probatum.errors import ProbatumError
from probatum.superres.degradation import Kind, crop_to_multiple, degrade

__all__ = ["Patches", "Photo", "photos_in", "split"]

ENDINGS = {".png", ".webp", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}


@dataclass(frozen=True)
class Photo:
    """A photograph or a tile of one: `pixels` (3, H, W) uint8, and the photograph that it belongs to."""

    name: str
    photograph: str
    pixels: Tensor

    @classmethod
    def of(cls, name: str, pixels: np.ndarray) -> "Photo":
        """From an array (H, W, 3) or (H, W) grey, uint8; grey becomes three equal channels."""
        colour = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, 2)
        return cls(name, name, torch.from_numpy(np.ascontiguousarray(colour.transpose(2, 0, 1))))


def photos_in(folder: str | Path) -> list[Photo]:
    """All images of a folder as RGB, in order of their names.

    A file `index.json` of rows [tile, photograph, ...] tells which tiles belong together; without it each file is a
    photograph.
    """
    from PIL import Image

    folder = Path(folder)
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in ENDINGS) if folder.is_dir() else []
    if not files:
        raise ProbatumError(f"{folder}: no folder with images ({', '.join(sorted(ENDINGS))})")
    index = folder / "index.json"
    owner = {row[0]: row[1] for row in json.loads(index.read_text("utf-8"))} if index.is_file() else {}
    photos = []
    for path in files:
        with Image.open(path) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()
        name = path.relative_to(folder).as_posix()
        photos.append(Photo(name, owner.get(path.stem, name), pixels))
    return photos


def split(photos: Sequence[Photo], every: int = 6) -> tuple[list[Photo], list[Photo]]:
    """(training, validation): every `every`-th photograph, with all its tiles, is held out; names in order, so nothing
    is drawn."""
    names = sorted({photo.photograph for photo in photos})
    held = set(names[every - 1 :: every]) or set(names[-1:])
    if len(names) < 2:
        raise ProbatumError(f"training needs two photographs or more, one of them to validate on; got {len(names)}")
    return [p for p in photos if p.photograph not in held], [p for p in photos if p.photograph in held]


class Patches:
    """Draws batches of paired crops, with the 8 flips and rotations.

    Args:
        photos: photographs with sides of at least `size * scale` pixels; all are kept in memory, shrunk once for every
            scale.
        scales: the factors.
        size: side of a low-resolution crop in pixels. `batch`: crops a draw.
        generator: source of all draws; its state is all that resuming needs.
        kind: how the low-resolution images are made (see `degrade`).
    """

    def __init__(
        self,
        photos: Iterable[Photo],
        scales: Sequence[int],
        *,
        size: int = 24,
        batch: int = 8,
        generator: torch.Generator,
        kind: Kind = "matlab",
        device: str | torch.device = "cpu",
    ) -> None:
        self.size, self.batch, self.generator = size, batch, generator
        self.pairs: dict[int, list[tuple[Tensor, Tensor]]] = {}
        photos = list(photos)
        for scale in scales:
            fitting = [p.pixels for p in photos if min(p.pixels.shape[1:]) >= size * scale]
            if not fitting:
                raise ProbatumError(
                    f"no photograph has sides of {size * scale} pixels, as crops of {size} at scale {scale} need"
                )
            high = [crop_to_multiple(x, scale) for x in fitting]
            self.pairs[scale] = [(degrade(x, scale, kind).to(device), x.to(device)) for x in high]

    def draw(self, scale: int) -> tuple[Tensor, Tensor]:
        """A batch: (B, 3, size, size) and (B, 3, scale size, scale size), floats in 0..1, channels last."""
        pairs, size = self.pairs[scale], self.size

        def integer(limit: int) -> int:
            return int(torch.randint(limit, (), generator=self.generator))

        low: list[Tensor] = []
        high: list[Tensor] = []
        for _ in range(self.batch):
            x, y = pairs[integer(len(pairs))]
            top, left, turn = integer(x.shape[1] - size + 1), integer(x.shape[2] - size + 1), integer(8)
            for source, factor, out in ((x, 1, low), (y, scale, high)):
                crop = source[:, top * factor : (top + size) * factor, left * factor : (left + size) * factor]
                crop = crop.rot90(turn % 4, (1, 2))
                out.append(crop.flip(2) if turn > 3 else crop)
        a, b = (
            torch.stack(side).float().div_(255).contiguous(memory_format=torch.channels_last) for side in (low, high)
        )
        return a, b
