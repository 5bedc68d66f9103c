"""Enlarging stereo pairs strip by strip: what `probatum upscale --right`, `--layout` and `--duplicate` do beyond single pictures.

A net with attention along rows takes strips as wide as the picture. With the rows around them that the net depends on, they give the pixels
of the whole picture; where memory does not allow that many, fewer are taken, and how far neighbouring strips then differ is measured and told.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from probatum.errors import ProbatumError
from probatum.superres.media import Picture
from probatum.superres.parts import SRModel
from probatum.superres.stereo import check_pair
from probatum.superres.tiling import SMALLEST, bytes_per_pixel, strips

__all__ = ["LAYOUTS", "Layout", "StereoModel", "cut", "enlarged", "rows_for", "same_size"]

Layout = Literal["pair", "sbs", "tb", "duplicate"]
LAYOUTS: tuple[Layout, ...] = ("pair", "sbs", "tb", "duplicate")


class StereoModel(SRModel, Protocol):
    """A network of pairs: `views` is 2, `rows` the rows around an output row that it depends on (None: all)."""

    views: int
    rows: int | None


def same_size(left: Picture, right: Picture) -> None:
    """Raise unless the views can be a pair."""
    sizes = [picture.colour.shape[1::-1] for picture in (left, right)]
    if sizes[0] != sizes[1]:
        raise ProbatumError("the views must be of one size, got {} x {} on the left and {} x {} on the right".format(*sizes[0], *sizes[1]))
    if sizes[0][0] < 2:
        raise ProbatumError(f"the views must be 2 pixels wide or more, got {sizes[0][0]} x {sizes[0][1]}")


def cut(picture: Picture, layout: Layout) -> tuple[Picture, Picture]:
    """The two views of a file that holds both side by side ("sbs") or one above the other ("tb"); left and upper is the left view."""
    axis, name = (1, "wide") if layout == "sbs" else (0, "high")
    size = picture.colour.shape[axis]
    if size % 2:
        raise ProbatumError(f"--layout {layout} needs an even number of pixels, it is {size} {name}")
    halves = [slice(None, size // 2), slice(size // 2, None)]

    def part(half: slice) -> Picture:
        alpha = None if picture.alpha is None else picture.alpha[:, half] if axis else picture.alpha[half]
        return replace(picture, colour=picture.colour[:, half] if axis else picture.colour[half], alpha=alpha)

    return part(halves[0]), part(halves[1])


def rows_for(
    net: StereoModel,
    scale: int,
    height: int,
    width: int,
    *,
    budget: float,
    tile: int | Literal["auto"] = "auto",
    overlap: int | None = None,
) -> tuple[int, int]:
    """(rows of a strip's core, rows run with it on either side).

    Args:
        budget: bytes for a strip. `tile`: rows of the core, or by the budget. `overlap`: rows around it; None takes what the net depends
            on, which is exact, and with `tile` "auto" fewer where those do not fit in the budget.
    """
    # local means and attention hold copies that the largest layer does not show: 2.9 times as much was measured with T at x4
    fits = int(budget / (3 * bytes_per_pixel(net, scale) * width))
    exact = height if net.rows is None else min(net.rows, height)
    if tile != "auto":
        return tile, exact if overlap is None else overlap
    if overlap is None:
        if fits >= height:
            return height, 0
        # in strips that are mostly surroundings, exactness costs more than twice the time: a third each is the least that is worth it
        overlap = exact if fits >= 3 * exact else max(SMALLEST, fits // 4)
    return min(height, max(SMALLEST, fits - 2 * overlap)), overlap


def enlarged(
    net: StereoModel,
    scale: int,
    left: Picture,
    right: Picture,
    *,
    tile: int,
    overlap: int,
    device: str,
    notes: list[str],
    alpha: Callable[[Picture, int, int], np.ndarray],
    colour: Callable[[Picture], np.ndarray],
    warn: bool = True,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of both enlarged views from top to bottom, (h, W[, C]) of each picture's own type, alpha last.

    Args:
        tile, overlap: see `rows_for`.
        notes: gets warnings about the pair, and what the strips' seams measured.
        alpha: rows [top, bottom) of a picture's enlarged alpha. `colour`: its pixels with hidden ones filled.
    """
    same_size(left, right)
    if warn:
        notes += [f"warning: {text}" for text in check_pair(left.colour, right.colour).warnings]
    planes = [_planes(colour(picture)) for picture in (left, right)]
    kinds = {x.dtype for x in planes}
    if len(kinds) > 1:  # 8 bits beside 16
        planes = [x.float() / (65535.0 if x.dtype == torch.uint16 else 255.0) for x in planes]
    seams: list[float] = []
    top, height = 0, planes[0].shape[1]
    both = torch.cat([x.expand(3, -1, -1) for x in planes])
    for strip in strips(net, both, scale, tile=tile, overlap=overlap, device=device, whole_rows=True, seams=seams):
        bottom = top + strip.shape[1] // scale
        views = []
        for picture, y in ((left, strip[:3]), (right, strip[3:])):
            rows = _finish(picture, y)
            if picture.alpha is not None:
                rows = np.concatenate([rows.reshape(*rows.shape[:2], -1), alpha(picture, top, bottom)[..., None]], 2)
            views.append(rows)
        yield views[0], views[1]
        top = bottom
    needed = height if net.rows is None else min(net.rows, height)
    if seams and overlap < needed:
        level = 255 * max(seams)
        says = f"{len(seams) + 1} strips with {overlap} rows around them instead of {needed} differ by at most {level:.2f} of 255 where they meet"
        notes.append(f"warning: {says}; --overlap {needed} is exact" if level > 0.5 else says)


def _planes(pixels: np.ndarray) -> Tensor:
    x = torch.from_numpy(np.ascontiguousarray(pixels))
    return x[None] if x.ndim == 2 else x.permute(2, 0, 1)


def _finish(picture: Picture, y: Tensor) -> np.ndarray:
    """(3, h, W) floats -> (h, W) or (h, W, 3) in the picture's type."""
    peak = 65535.0 if picture.depth == 16 else 255.0
    y = y.mean(0, keepdim=True) if picture.grey else y
    rows = y.mul(peak).round_().clamp_(0, peak).to(torch.uint16 if picture.depth == 16 else torch.uint8).permute(1, 2, 0).numpy()
    return rows[..., 0] if picture.grey else rows
