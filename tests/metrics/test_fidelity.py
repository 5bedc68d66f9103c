"""PSNR and SSIM against closed forms and scikit-image."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from probatum import ProbatumError
from probatum.metrics.fidelity import fidelity, luma, psnr, ssim


def pair(shape=(40, 53), seed=0):
    """A smooth picture, where the window of SSIM matters, and the same with noise."""
    rng = np.random.default_rng(seed)
    a = gaussian_filter(rng.integers(0, 256, shape).astype(float), [3, 3, 0][: len(shape)])
    a = ((a - a.min()) / np.ptp(a) * 255).astype(np.uint8)
    b = np.clip(a + rng.normal(0, 12, shape), 0, 255).astype(np.uint8)
    return a, b


def test_psnr_of_a_known_error():
    a = np.zeros((9, 7), np.uint8)
    b = a.copy()
    b[4, 3] = 63
    assert psnr(a, b) == pytest.approx(10 * np.log10(255**2 / (63**2 / 63)), abs=1e-12)
    assert psnr(a, a) == float("inf") and psnr(a, b, crop=3) == pytest.approx(10 * np.log10(255**2 / (63**2 / 3)))


def test_luma_ends_at_16_and_235_and_grey_is_equal_channels():
    assert luma(np.zeros((1, 1, 3)))[0, 0] == 16 and luma(np.full((1, 1, 3), 255))[0, 0] == pytest.approx(235)
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_allclose(luma(grey), luma(np.repeat(grey[..., None], 3, 2)), atol=1e-12)


@pytest.mark.parametrize("seed", [0, 1])
def test_against_scikit_image(seed):
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    a, b = pair(seed=seed)
    expected = structural_similarity(
        a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
    )
    assert ssim(a, b) == pytest.approx(expected, abs=1e-7)
    assert psnr(a, b) == pytest.approx(peak_signal_noise_ratio(a, b, data_range=255), abs=1e-10)
    assert abs(ssim(a, b) - structural_similarity(a, b, data_range=255)) > 1e-3, (
        "the default of skimage is another measure"
    )


def test_crop_is_taken_before_and_choices_are_named():
    a, b = pair((40, 53, 3))
    b[0] = 255 - a[0]
    got = fidelity(a, b, crop=2)
    assert (
        got.psnr == pytest.approx(psnr(luma(a)[2:-2, 2:-2], luma(b)[2:-2, 2:-2]))
        and got.psnr > fidelity(a, b, crop=0).psnr
    )
    assert "luma, 2 px cut" in str(got) and fidelity(a, b, crop=0, on="rgb").on == "rgb"
    assert fidelity(a, b, crop=2, on="rgb").ssim == pytest.approx(
        np.mean([ssim(a[..., c], b[..., c], crop=2) for c in range(3)])
    )


def test_bad_input_is_told():
    a, b = pair()
    with pytest.raises(ProbatumError, match="one shape"):
        psnr(a, b[:-1])
    with pytest.raises(ProbatumError, match="crop must leave pixels of 40 x 53, got 20"):
        psnr(a, b, crop=20)
    with pytest.raises(ProbatumError, match="11 x 11 pixels or more"):
        ssim(a[:10], b[:10])
    with pytest.raises(ProbatumError, match="luma or rgb"):
        fidelity(a, b, crop=0, on="y")
    with pytest.raises(ProbatumError, match="RGB or"):
        luma(np.zeros((3, 4, 4)))
