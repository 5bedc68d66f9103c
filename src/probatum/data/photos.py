"""Photographs that scikit-image and scikit-learn carry: sixteen, of many kinds, none of which our networks are trained
on.

>>> photograph("astronaut").shape
(512, 512, 3)
"""

import numpy as np

from probatum.data import Dataset, find_dataset
from probatum.errors import MissingExtra, ProbatumError, did_you_mean

__all__ = ["NAMES", "photograph", "photographs"]

NAMES = (
    "astronaut", "chelsea", "coffee", "rocket", "retina", "hubble", "ihc", "camera", "moon", "brick", "grass", "gravel",
    "coins", "china", "flower", "motorcycle",
)  # fmt: skip


def photograph(name: str) -> np.ndarray:
    """One photograph: (H, W, 3) RGB, or (H, W) grey, uint8.

    Raises:
        ProbatumError: an unknown name, a package that is missing, or a file with another content.
    """
    if name not in NAMES:
        raise ProbatumError(f"unknown photograph {name!r}: {did_you_mean(name, NAMES)}")
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtra("reading photographs needs pillow: pip install 'probatum[superres]'") from None
    with Image.open(find_dataset(name).path()) as image:
        return np.array(image.convert("L" if image.mode == "L" else "RGB"))


def photographs(limit: int | None = None) -> dict[str, np.ndarray]:
    """All sixteen by name, in one order; `limit` cuts each to its central `limit` x `limit` pixels at most."""
    found = {}
    for name in NAMES:
        pixels = photograph(name)
        if limit is not None:
            top, left = (max(0, (n - limit) // 2) for n in pixels.shape[:2])
            pixels = pixels[top : top + limit, left : left + limit]
        found[name] = pixels
    return found


def _photo(name: str, file: str, about: str, licence: str, shape: str, sha256: str) -> Dataset:
    sklearn = file in ("china.jpg", "flower.jpg")
    package, folder = ("scikit-learn", "sklearn/datasets/images") if sklearn else ("scikit-image", "skimage/data")
    path = f"{folder}/{file}"
    return Dataset(
        name, f"Photograph: {about}", f"package {package}, {path}", licence, shape, package, path, sha256, photograph
    )


ASTRONAUT = _photo(
    "astronaut", "astronaut.png", "Eileen Collins in her suit before a shuttle model", "NASA, public domain",
    "512 x 512 RGB", "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
)  # fmt: skip
CHELSEA = _photo(
    "chelsea", "chelsea.png", "a cat's face", "CC0, Stéfan van der Walt",
    "300 x 451 RGB", "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
)  # fmt: skip
COFFEE = _photo(
    "coffee", "coffee.png", "a cup of coffee on a table", "CC0, Rachel Michetti",
    "400 x 600 RGB", "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
)  # fmt: skip
ROCKET = _photo(
    "rocket", "rocket.jpg", "a Falcon 9 at its launch", "CC0, SpaceX",
    "427 x 640 RGB", "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
)  # fmt: skip
RETINA = _photo(
    "retina", "retina.jpg", "the back of an eye", "CC0, via Wikimedia (Mikael Häggström)",
    "1411 x 1411 RGB", "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6",
)  # fmt: skip
HUBBLE = _photo(
    "hubble", "hubble_deep_field.jpg", "the Hubble deep field: galaxies on black", "NASA, public domain",
    "872 x 1000 RGB", "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
)  # fmt: skip
IHC = _photo(
    "ihc", "ihc.png", "stained tissue under a microscope", "CC0 (University Hospital of North Norway)",
    "512 x 512 RGB", "f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef",
)  # fmt: skip
CAMERA = _photo(
    "camera", "camera.png", "a man with a camera", "CC0, Lav Varshney",
    "512 x 512 grey", "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a",
)  # fmt: skip
MOON = _photo(
    "moon", "moon.png", "a part of the moon", "public domain",
    "512 x 512 grey", "78739619d11f7eb9c165bb5d2efd4772cee557812ec847532dbb1d92ef71f577",
)  # fmt: skip
BRICK = _photo(
    "brick", "brick.png", "a brick wall", "CC0",
    "512 x 512 grey", "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf",
)  # fmt: skip
GRASS = _photo(
    "grass", "grass.png", "grass", "CC0",
    "512 x 512 grey", "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89",
)  # fmt: skip
GRAVEL = _photo(
    "gravel", "gravel.png", "gravel", "CC0",
    "512 x 512 grey", "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12",
)  # fmt: skip
COINS = _photo(
    "coins", "coins.png", "coins of Pompeii on a dark ground", "Brooklyn Museum, no known copyright",
    "303 x 384 grey", "f8d773fc9cfa6f4d8e5942dc34d0a0788fcaed2a4fefbbed0aef5398d7ef4cba",
)  # fmt: skip
MOTORCYCLE = _photo(
    "motorcycle", "motorcycle_left.png", "a motorcycle in a workshop, left view of a stereo pair",
    "Middlebury stereo 2014, CC0", "500 x 741 RGB", "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179",
)  # fmt: skip
CHINA = _photo(
    "china", "china.jpg", "a Chinese temple", "CC BY 2.0, danielbuechele",
    "427 x 640 RGB", "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29",
)  # fmt: skip
FLOWER = _photo(
    "flower", "flower.jpg", "a dahlia", "CC BY 2.0, vultilion",
    "427 x 640 RGB", "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638",
)  # fmt: skip
