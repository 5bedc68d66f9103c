"""The sixteen photographs."""

import numpy as np
import pytest

from probatum import ProbatumError
from probatum.data import datasets, find_dataset
from probatum.data.photos import NAMES, photograph, photographs


def test_all_sixteen_are_found_with_their_sizes():
    found = photographs()
    assert tuple(found) == NAMES and len(found) == 16
    for name, pixels in found.items():
        assert pixels.dtype == np.uint8
        height, width = map(int, find_dataset(name).shape.removesuffix(" RGB").removesuffix(" grey").split(" x "))
        assert pixels.shape == ((height, width) if find_dataset(name).shape.endswith("grey") else (height, width, 3))


def test_they_are_what_skimage_and_sklearn_load():
    import skimage.data
    from sklearn.datasets import load_sample_image

    assert np.array_equal(photograph("coins"), skimage.data.coins())
    assert np.array_equal(photograph("chelsea"), skimage.data.chelsea())
    assert np.array_equal(photograph("china"), load_sample_image("china.jpg"))


def test_limit_cuts_the_middle():
    whole, part = photograph("retina"), photographs(limit=512)["retina"]
    assert np.array_equal(part, whole[449 : 449 + 512, 449 : 449 + 512])
    assert photographs(limit=512)["coins"].shape == (303, 384)


def test_each_has_a_source_and_a_licence():
    for name in NAMES:
        row = datasets()[name]
        assert row.licence and row.source.startswith("package scikit") and len(row.sha256) == 64


def test_unknown_names_are_told_the_nearest():
    with pytest.raises(ProbatumError, match="did you mean astronaut"):
        photograph("astronout")
