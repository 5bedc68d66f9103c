"""Making low-resolution images from high-resolution ones: what "bicubic" means, and how much it matters.

The papers' low-resolution images are MATLAB's `imresize(image, 1/s, "bicubic")`: Keys' kernel with a = -0.5, widened by
s, weights normalised for each output pixel, borders mirrored, rounded to 8 bits after each direction. Training and test
must name the same kind: a net trained on one loses up to 9 dB on images shrunk without the widening (`aliased`, which
is what OpenCV's and torch's plain bicubic do).
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from probatum.errors import ProbatumError

__all__ = ["KINDS", "crop_to_multiple", "degrade", "resize"]

Kind = Literal["matlab", "pillow", "aliased"]
KINDS: tuple[Kind, ...] = ("matlab", "pillow", "aliased")


def _keys(x: np.ndarray) -> np.ndarray:
    """Keys' cubic kernel, a = -0.5, support [-2, 2]."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))


def _taps(length: int, out: int, scale: float) -> tuple[Tensor, Tensor]:
    """For each of `out` output pixels: indices (out, K) into the input, mirrored at its borders, and weights (out,
    K)."""
    widen = min(scale, 1.0)
    centre = (np.arange(out) + 0.5) / scale - 0.5
    count = int(np.ceil(4 / widen)) + 2
    left = np.floor(centre - 2 / widen).astype(int)
    index = left[:, None] + np.arange(count)
    weight = widen * _keys(widen * (centre[:, None] - index))
    weight /= weight.sum(1, keepdims=True)
    used = np.any(weight != 0, 0)
    index, weight = index[:, used] % (2 * length), weight[:, used]
    index = np.where(index < length, index, 2 * length - 1 - index)
    return torch.from_numpy(index), torch.from_numpy(weight)


def _along(x: Tensor, dim: int, out: int, scale: float) -> Tensor:
    index, weight = (t.to(x.device) for t in _taps(x.shape[dim], out, scale))
    shape = [1] * x.ndim
    shape[dim] = out
    total = torch.zeros((), dtype=x.dtype, device=x.device)
    for k in range(index.shape[1]):
        total = total + x.index_select(dim, index[:, k]) * weight[:, k].to(x.dtype).view(shape)
    return total


def resize(x: Tensor, scale: float, size: tuple[int, int] | None = None) -> Tensor:
    """MATLAB's `imresize(x, scale, "bicubic")`.

    Args:
        x: (..., H, W); uint8 is computed in float64 and rounded, half away from zero, after rows and again after
            columns, as MATLAB does; floats stay floats.
        scale: above 1 enlarges, below 1 shrinks with the widened kernel.
        size: (height, width) of the result; default: ceil(scale * H), ceil(scale * W).
    """
    if not scale > 0 or x.ndim < 2 or 0 in x.shape[-2:]:
        raise ProbatumError(
            f"resize needs a positive scale and an image with pixels, got {scale!r} and shape {tuple(x.shape)}"
        )
    height, width = size or (int(np.ceil(scale * n - 1e-9)) for n in x.shape[-2:])

    def rounded(y: Tensor) -> Tensor:
        return torch.floor(y + 0.5).clamp(0, 255) if x.dtype == torch.uint8 else y

    y = x.double() if x.dtype == torch.uint8 else x
    y = rounded(_along(y, x.ndim - 2, height, scale))
    y = rounded(_along(y, x.ndim - 1, width, scale))
    return y.to(x.dtype)


def crop_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """The top left part of (..., H, W) whose sides are multiples of `multiple`."""
    height, width = (n - n % multiple for n in x.shape[-2:])
    if not height or not width:
        raise ProbatumError(f"an image of {x.shape[-2]} x {x.shape[-1]} pixels is smaller than the factor {multiple}")
    return x[..., :height, :width]


def degrade(hr: Tensor, scale: int, kind: Kind = "matlab") -> Tensor:
    """The low-resolution image of (..., H, W) uint8, H and W multiples of `scale`: (..., H / scale, W / scale) uint8.

    Args:
        kind: "matlab": the papers' (see above). "pillow": Pillow's BICUBIC, within 5 levels inside and 13 at borders.
            "aliased": no widening (a = -0.75), as OpenCV and plain torch do; only where a paper used it.
    """
    if kind not in KINDS:
        raise ProbatumError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if hr.dtype != torch.uint8 or hr.shape[-2] % scale or hr.shape[-1] % scale:
        raise ProbatumError(
            f"hr must be uint8 with sides that are multiples of {scale} (crop_to_multiple), "
            f"got {hr.dtype} {tuple(hr.shape)}"
        )
    if kind == "matlab":
        return resize(hr, 1 / scale)
    height, width = hr.shape[-2] // scale, hr.shape[-1] // scale
    flat = hr.reshape(-1, 1, *hr.shape[-2:])
    if kind == "aliased":
        y = F.interpolate(flat.float(), size=(height, width), mode="bicubic")
        return y.round().clamp(0, 255).to(torch.uint8).view(*hr.shape[:-2], height, width)
    from PIL import Image

    planes = [
        np.asarray(Image.fromarray(p.numpy()).resize((width, height), Image.Resampling.BICUBIC))
        for p in flat[:, 0].cpu()
    ]
    return torch.from_numpy(np.stack(planes)).view(*hr.shape[:-2], height, width).to(hr.device)
