"""A rectified stereo pair with its measured disparity, which scikit-image carries."""

import numpy as np

from probatum.data import Dataset
from probatum.errors import MissingExtra

__all__ = ["motorcycle_pair"]


def motorcycle_pair() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Left and right view (500, 741, 3) uint8 and the disparity of the left one (500, 741) in pixels, not finite where it is unknown.

    >>> left, right, disparity = motorcycle_pair()
    >>> left.shape, round(float(np.nanmedian(np.where(np.isfinite(disparity), disparity, np.nan))))
    ((500, 741, 3), 35)
    """
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtra("reading photographs needs pillow: pip install 'probatum[superres]'") from None
    views = []
    for view in (MOTORCYCLE_LEFT, MOTORCYCLE_RIGHT):
        with Image.open(view.path()) as image:
            views.append(np.array(image.convert("RGB")))
    with np.load(MOTORCYCLE_DISPARITY.path()) as file:
        return views[0], views[1], file["arr_0"]


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
