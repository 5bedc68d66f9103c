"""How near a restored image is to the original: PSNR and SSIM, with every choice that changes the number named.

Papers of super-resolution report both on the luma Y of BT.601 (16 to 235), borders of `scale` pixels cut off, against a
peak of 255, as the mean over images of the dB. On full-range grey the same image scores 1.3 dB less, on RGB about 1.6
less.

>>> image = np.full((16, 16), 100, np.uint8)
>>> round(psnr(image, image + np.uint8(5)), 4)     # 20 log10(255 / 5)
34.1514
>>> ssim(image, image)
1.0
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from probatum.errors import ProbatumError

__all__ = ["Fidelity", "fidelity", "luma", "psnr", "ssim"]

Array = np.ndarray


def luma(image: ArrayLike) -> Array:
    """Y of BT.601, 16 to 235, not rounded: uint8 or 0..255 floats, (H, W, 3) RGB or (H, W) grey -> (H, W) float64."""
    x = np.asarray(image, np.float64)
    if x.ndim == 2:
        return 16 + x * (65.481 + 128.553 + 24.966) / 255
    if x.ndim != 3 or x.shape[2] != 3:
        raise ProbatumError(f"image must be (H, W, 3) RGB or (H, W) grey, got {x.shape}")
    return 16 + x @ np.array([65.481, 128.553, 24.966]) / 255


def _pair(a: ArrayLike, b: ArrayLike, crop: int) -> tuple[Array, Array]:
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if x.shape != y.shape:
        raise ProbatumError(f"the images must have one shape, got {x.shape} and {y.shape}")
    if crop < 0 or 2 * crop >= min(x.shape[:2]):
        raise ProbatumError(f"crop must leave pixels of {x.shape[0]} x {x.shape[1]}, got {crop!r}")
    inside = (slice(crop, x.shape[0] - crop), slice(crop, x.shape[1] - crop))
    return x[inside], y[inside]


def psnr(a: ArrayLike, b: ArrayLike, *, crop: int = 0, peak: float = 255.0) -> float:
    """Peak signal-to-noise ratio in dB of two images of one shape; infinite where they are equal.

    Args:
        crop: pixels cut off on each side before.
        peak: 255 for pixels and for luma (the papers' choice, though luma ends at 235).
    """
    x, y = _pair(a, b, crop)
    error = float(np.mean((x - y) ** 2))
    return float("inf") if error == 0 else float(10 * np.log10(peak**2 / error))


def ssim(a: ArrayLike, b: ArrayLike, *, crop: int = 0, peak: float = 255.0) -> float:
    """Structural similarity (Wang et al. 2004) of two grey images: Gaussian window 11 x 11, sigma 1.5, windows inside
    the image only.

    Colour images get the mean over their channels. K1 = 0.01, K2 = 0.03, population covariance.
    """
    x, y = _pair(a, b, crop)
    if min(x.shape[:2]) < 11:
        raise ProbatumError(f"ssim needs 11 x 11 pixels or more, got {x.shape[0]} x {x.shape[1]}")
    if x.ndim == 3:
        return float(np.mean([ssim(x[..., c], y[..., c], peak=peak) for c in range(x.shape[2])]))
    from scipy.ndimage import correlate1d

    window = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    window /= window.sum()

    def mean(z: Array) -> Array:
        z = correlate1d(correlate1d(z, window, axis=0), window, axis=1)
        return z[5:-5, 5:-5]

    mx, my = mean(x), mean(y)
    vx, vy, vxy = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    return float(np.mean((2 * mx * my + c1) * (2 * vxy + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))))


@dataclass(frozen=True)
class Fidelity:
    """PSNR in dB and SSIM with the choices behind them; `on` is the channel, `crop` the border cut off."""

    psnr: float
    ssim: float
    on: str
    crop: int

    def __str__(self) -> str:
        return f"{self.psnr:.2f} dB / {self.ssim:.4f} on {self.on}, {self.crop} px cut"


def fidelity(restored: ArrayLike, original: ArrayLike, *, crop: int, on: Literal["luma", "rgb"] = "luma") -> Fidelity:
    """Both measures of one 8-bit image. Super-resolution papers: luma and crop = scale; stereo: rgb and crop = 0."""
    if on not in ("luma", "rgb"):
        raise ProbatumError(f"on must be luma or rgb, got {on!r}")
    a, b = (luma(restored), luma(original)) if on == "luma" else (np.asarray(restored), np.asarray(original))
    return Fidelity(psnr(a, b, crop=crop), ssim(a, b, crop=crop), on, crop)
