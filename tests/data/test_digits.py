"""Digits, turning them, and the shifted task."""

import gzip

import numpy as np
import pytest
from scipy import ndimage

from probatum import ProbatumError
from probatum.data import find_dataset
from probatum.data.digits import MNIST, mnist, pooled, shifted_digits, turned


def test_mnist_equals_a_plain_reader():
    images, labels = mnist()
    assert images.dtype == np.float32 and images.min() == 0 and images.max() == 1
    assert np.bincount(labels).tolist() == [500] * 10
    lines = gzip.decompress(MNIST.path().read_bytes()).decode().split("\n")
    for row in (0, 17, 4999):
        numbers = [int(entry) for entry in lines[row].split(",")]
        assert labels[row] == numbers[-1] and (images[row].ravel() * 255).round().astype(int).tolist() == numbers[:-1]
    with pytest.raises(ValueError, match="read-only"):
        images[0, 0, 0] = 1
    assert find_dataset("mnist_5k").load is mnist


def test_turning_agrees_with_scipy_inside_and_quarter_turns_are_exact():
    images = mnist()[0][::1000, 4:24, 4:24]
    padded = np.pad(images, ((0, 0), (8, 8), (8, 8)))
    ours = turned(padded, 33.0)
    scipy = ndimage.rotate(padded, 33.0, axes=(1, 2), reshape=False, order=1)
    assert np.abs(ours - scipy).max() < 1e-5
    assert np.abs(turned(images, 90.0) - np.rot90(images, axes=(1, 2))).max() < 1e-6
    assert np.abs(turned(images, 360.0) - images).max() < 1e-6


def test_pooling_keeps_the_mean():
    images = mnist()[0][:7]
    assert pooled(images).shape == (7, 14, 14)
    np.testing.assert_allclose(pooled(images).mean((1, 2)), images.mean((1, 2)), rtol=1e-5)


def test_splits_share_no_image_and_change_with_the_seed():
    a = shifted_digits(0.0, k=3, seed=1)
    assert [len(x) for x in (a.source_x, a.x, a.validation_x, a.test_x)] == [2500, 30, 500, 1000]
    assert np.bincount(a.y).tolist() == [3] * 10
    parts = [{row.tobytes() for row in x} for x in (a.source_x, a.x, a.validation_x, a.test_x)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 4030
    b = shifted_digits(0.0, k=3, seed=2)
    for one, other in ((a.source_x, b.source_x), (a.x, b.x), (a.test_x, b.test_x)):
        assert not np.array_equal(one, other)
    again = shifted_digits(0.0, k=3, seed=1)
    assert np.array_equal(a.test_x, again.test_x) and np.array_equal(a.x, again.x)


def test_only_the_task_is_turned():
    upright, task = shifted_digits(0.0, 2, 4), shifted_digits(75.0, 2, 4)
    assert np.array_equal(upright.source_x, task.source_x) and np.array_equal(upright.test_y, task.test_y)
    np.testing.assert_allclose(
        turned(upright.test_x.reshape(-1, 14, 14), 75.0).reshape(-1, 196), task.test_x, atol=1e-6
    )


@pytest.mark.parametrize("k", [0, 101, 2.0, True])
def test_bad_k(k):
    with pytest.raises(ProbatumError, match="k must be an integer from 1 to 100"):
        shifted_digits(75.0, k)


def test_bad_angle():
    with pytest.raises(ProbatumError, match="angle must be finite"):
        shifted_digits(float("nan"))
