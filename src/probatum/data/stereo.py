"""A rectified stereo pair with its disparity, which scikit-image carries; `probatum.superres.stereo.motorcycle` reads it."""

from typing import Any

from probatum.data import Dataset

__all__ = ["motorcycle_pair"]


def motorcycle_pair() -> Any:
    """Left and right view (3, 500, 741) uint8 and the disparity of the left one (500, 741) in pixels, not finite where it is unknown."""
    from probatum.superres.stereo import motorcycle

    return motorcycle()


def _part(name: str, file: str, about: str, shape: str, sha256: str) -> Dataset:
    return Dataset(
        name, about, f"package scikit-image, skimage/data/{file}", "Middlebury stereo 2014, CC0", shape, "scikit-image", f"skimage/data/{file}",
        sha256, motorcycle_pair,
    )  # fmt: skip


MOTORCYCLE_LEFT = _part(
    "motorcycle_pair_left", "motorcycle_left.png", "Stereo pair of a motorcycle in a workshop: left view", "500 x 741 RGB",
    "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179",
)  # fmt: skip
MOTORCYCLE_RIGHT = _part(
    "motorcycle_pair_right", "motorcycle_right.png", "Stereo pair of a motorcycle in a workshop: right view", "500 x 741 RGB",
    "5fc913ae870e42a4b662314bc904d1786bcad8e2f0b9b67dba5a229406357797",
)  # fmt: skip
MOTORCYCLE_DISPARITY = _part(
    "motorcycle_pair_disparity", "motorcycle_disp.npz", "Stereo pair of a motorcycle in a workshop: disparity of the left view",
    "500 x 741 float32, pixels", "2e49c8cebff3fa20359a0cc6880c82e1c03bbb106da81a177218281bc2f113d7",
)  # fmt: skip
