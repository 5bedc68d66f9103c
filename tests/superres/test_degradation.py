"""MATLAB's bicubic against its own files and an independent version."""

import numpy as np
import pytest
import torch

from probatum import ProbatumError
from probatum.superres.degradation import crop_to_multiple, degrade, resize


def dense(length: int, out: int, scale: float) -> np.ndarray:
    """The matrix of MATLAB's imresize along one direction, written from its description, pixel by pixel."""

    def kernel(x: float) -> float:
        x = abs(x)
        if x <= 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x <= 2 else 0.0

    matrix = np.zeros((out, length))
    for i in range(out):
        u = (i + 1) / scale + 0.5 * (1 - 1 / scale)  # MATLAB's pixels are numbered from 1
        for j in range(int(np.floor(u - 4 / scale)) - 2, int(np.ceil(u + 4 / scale)) + 3):
            mirrored = (j - 1) % (2 * length)
            mirrored = mirrored if mirrored < length else 2 * length - 1 - mirrored
            matrix[i, mirrored] += scale * kernel(scale * (u - j)) if scale < 1 else kernel(u - j)
    return matrix / matrix.sum(1, keepdims=True)


@pytest.mark.parametrize("scale", [1 / 2, 1 / 3, 1 / 4, 2, 3])
def test_equals_an_independent_version(scale):
    x = np.random.default_rng(0).random((12, 24))
    height, width = (int(np.ceil(scale * n - 1e-9)) for n in x.shape)
    expected = dense(12, height, scale) @ x @ dense(24, width, scale).T
    got = resize(torch.from_numpy(x), scale).numpy()
    np.testing.assert_allclose(got, expected, atol=1e-12)


def test_a_constant_stays_and_a_ramp_stays_inside():
    assert torch.equal(
        degrade(torch.full((3, 8, 12), 77, dtype=torch.uint8), 4), torch.full((3, 2, 3), 77, dtype=torch.uint8)
    )
    ramp = torch.arange(0, 64, dtype=torch.float64).repeat(8, 1)
    small = resize(ramp, 0.5)
    torch.testing.assert_close(
        small[4 // 2, 4:-4], torch.arange(0.5, 64, 2, dtype=torch.float64)[4:-4], rtol=0, atol=1e-10
    )


def test_flips_and_turns_commute():
    """Crops may be turned after shrinking: the pairs stay pairs."""
    x = torch.randint(0, 256, (3, 24, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    y = degrade(x, 3)
    assert torch.equal(degrade(x.flip(2), 3), y.flip(2))
    turned = degrade(x.rot90(1, (1, 2)), 3).int() - y.rot90(1, (1, 2)).int()
    assert turned.abs().max() <= 1  # rows are rounded before columns


def test_kinds_differ_as_much_as_they_do():
    from probatum.data.photos import photograph

    x = crop_to_multiple(torch.from_numpy(photograph("astronaut")[:256, :256]).permute(2, 0, 1), 2)
    ours, pillow, aliased = (degrade(x, 2, kind).int() for kind in ("matlab", "pillow", "aliased"))
    inside = (slice(None), slice(4, -4), slice(4, -4))
    assert (ours - pillow)[inside].abs().max() <= 5 and (ours - aliased)[inside].abs().max() > 30


@pytest.mark.fixtures
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_set5s_own_files_come_out_bit_for_bit(fixtures, scale):
    from PIL import Image

    for path in sorted((fixtures / "sr_set5" / "HR").glob("*.png")):
        high = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)
        low = np.array(
            Image.open(fixtures / "sr_set5" / "LR_bicubic" / f"X{scale}" / f"{path.stem}x{scale}.png").convert("RGB")
        )
        assert np.array_equal(degrade(crop_to_multiple(high, scale), scale).permute(1, 2, 0).numpy(), low)


def test_bad_input_is_told():
    x = torch.zeros(3, 9, 8, dtype=torch.uint8)
    with pytest.raises(ProbatumError, match="multiples of 2"):
        degrade(x, 2)
    with pytest.raises(ProbatumError, match="must be uint8"):
        degrade(torch.zeros(3, 8, 8), 2)
    with pytest.raises(ProbatumError, match="kind must be one of matlab, pillow, aliased, got 'bicubic'"):
        degrade(x[:, :8], 2, "bicubic")
    with pytest.raises(ProbatumError, match="smaller than the factor 4"):
        crop_to_multiple(torch.zeros(3, 3, 9), 4)
    with pytest.raises(ProbatumError, match="positive scale"):
        resize(x, 0)
