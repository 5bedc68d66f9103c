"""CARN and CARN-M against published counts, the authors' checkpoint, and two ways to compute one thing."""

import copy

import numpy as np
import pytest
import torch

from probatum import ProbatumError
from probatum.metrics.fidelity import fidelity
from probatum.superres import CARN, CARNM, weights
from probatum.superres.degradation import crop_to_multiple, degrade
from probatum.superres.fitting import enlarge
from probatum.superres.parts import multiply_adds
from probatum.superres.residual import PlainResidual
from probatum.superres.tiling import tiled

CONTRACT = {
    "CARN": lambda: (CARN(scale=2, width=16), torch.rand(1, 3, 8, 9)),
    "CARNM": lambda: (CARNM(scale=3, width=16), torch.rand(1, 3, 8, 9)),
}


def count(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("kind", "scale", "parameters"),
    [
        (CARN, (2, 3, 4), 1_591_963), (CARN, 2, 964_187), (CARN, 3, 1_148_827), (CARN, 4, 1_111_899),
        (CARNM, (2, 3, 4), 414_811), (CARNM, 2, 257_051), (CARNM, 3, 303_451), (CARNM, 4, 294_171),
    ],
)  # fmt: skip
def test_parameters_are_the_released_ones(kind, scale, parameters):
    assert count(kind(scale)) == parameters


@pytest.mark.parametrize(
    ("kind", "published"), [(CARN, {2: 222.8, 3: 118.8, 4: 90.9}), (CARNM, {2: 91.2, 3: 46.1, 4: 32.5})]
)  # fmt: skip
def test_multiply_adds_for_720p_are_the_papers(kind, published):
    net = kind()
    for scale, giga in published.items():
        # counted a row at a time, because 1280 / 3 is no whole number of pixels: the paper's 102,400 input pixels at x3
        a_pixel = multiply_adds(net, scale, 16, 16) / 256
        assert round(a_pixel * 1280 * 720 / scale**2 / 1e9, 1) == giga


def test_multiply_adds_equal_a_count_by_hand():
    """Width 64, x2: entry 27 w, blocks 3 (54 w^2 + 9 w^2), fusions 9 w^2, head 36 w^2, exit 4 x 27 w."""
    w = 64
    assert multiply_adds(CARN(2), 2, 5, 7) == 35 * (27 * w + 3 * 63 * w * w + 9 * w * w + 36 * w * w + 4 * 27 * w)


def test_the_plain_net_of_the_claim_costs_the_same():
    ours, plain = CARN(2, width=32, skip=True), PlainResidual(2, width=32, skip=True)
    assert abs(multiply_adds(plain, 2, 24, 24) / multiply_adds(ours, 2, 24, 24) - 1) < 0.05
    assert abs(count(plain) / count(ours) - 1) < 0.15


def test_keys_are_the_authors():
    carn_m, carn = CARNM().state_dict(), CARN().state_dict()
    assert (len(carn_m), len(carn)) == (58, 76)
    assert {"b1.b1.body.4.weight", "b3.c3.body.0.bias", "c2.body.0.weight", "upsample.up4.body.3.weight"} <= set(carn_m)
    assert {"b2.b3.body.2.weight", "sub_mean.shifter.bias", "exit.weight"} <= set(carn)
    assert "upsample.up.body.0.weight" in CARN(3).state_dict()


def test_a_head_of_several_equals_a_net_of_one():
    torch.manual_seed(0)
    several, single = CARN((2, 3), width=8), CARN(3, width=8)
    state = {
        key.replace("upsample.up3.", "upsample.up."): value
        for key, value in several.state_dict().items()
        if "up2" not in key
    }
    single.load_state_dict(state)
    x = torch.rand(1, 3, 5, 7)
    assert torch.equal(several(x, 3), single(x))


def test_fusions_equal_sums_of_their_parts():
    """A 1x1 convolution of a concatenation is a sum of 1x1 convolutions."""
    torch.manual_seed(0)
    fuse = CARN(2, width=8).c2
    maps = [torch.rand(2, 8, 3, 5) for _ in range(3)]
    weight, bias = fuse.body[0].weight, fuse.body[0].bias
    parts = sum(torch.nn.functional.conv2d(m, weight[:, 8 * i : 8 * i + 8]) for i, m in enumerate(maps)) + bias.view(
        1, -1, 1, 1
    )
    torch.testing.assert_close(fuse(maps), parts.relu(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [CARN, CARNM])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_nothing_farther_than_the_radius_is_seen_and_the_radius_is(kind, scale):
    torch.manual_seed(0)
    net = kind(scale, width=8).double()
    # positive weights and inputs keep every ReLU open, so that what can be seen is seen
    for p in net.parameters():
        p.data.abs_()
    x = torch.rand(1, 3, 49, 5, dtype=torch.float64) + 1
    base, changed = net(x), x.clone()
    changed[..., 24, :] += 1
    rows = (net(changed) != base).any(3).any(1)[0].nonzero().flatten()
    assert 24 - rows.min() // scale == net.radius and rows.max() // scale - 24 == net.radius


@pytest.mark.parametrize("kind", [CARN, CARNM])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_tiles_equal_the_whole(kind, scale):
    torch.manual_seed(0)
    net = kind(scale, width=8).eval()
    x = torch.rand(1, 3, 37, 61)
    with torch.no_grad():
        whole = net(x)
    assert whole.shape == (1, 3, 37 * scale, 61 * scale)
    torch.testing.assert_close(tiled(net, x, scale, tile=16), whole, rtol=0, atol=1e-5)
    assert (tiled(net, x, scale, tile=16, overlap=0) - whole).abs().max() > 1e-3, (
        "seams must show where the overlap is too small"
    )


def test_skip_starts_at_bicubic_and_without_it_keeps_the_mean():
    from probatum.superres.parts import bicubic

    torch.manual_seed(0)
    x = torch.rand(1, 3, 6, 7)
    assert torch.equal(CARN(4, width=8, skip=True)(x), bicubic(x, 4))


def test_weights_at_the_start_are_kaimings():
    torch.manual_seed(0)
    layer = CARN(2).b1.b1.body[0]
    # 36,864 draws of sd sqrt(2 / fan_in): the sample sd is known to 0.4 %
    assert abs(layer.weight.std().item() / (2 / (64 * 9)) ** 0.5 - 1) < 4 * (0.5 / layer.weight.numel()) ** 0.5
    assert not layer.bias.any()
    with torch.no_grad():
        trunk = CARN(2).cascade(CARN(2).entry(torch.rand(1, 3, 24, 24) - 0.42))
    assert trunk.std() > 0.1  # PyTorch's own start: 0.018


def test_channels_last_and_batches_change_nothing():
    torch.manual_seed(0)
    net = CARNM(2, width=8).eval()
    x = torch.rand(3, 3, 9, 11)
    with torch.no_grad():
        a = net(x)
        b = copy.deepcopy(net).to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
        c = torch.cat([net(image[None]) for image in x])
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-5)


def test_bad_input_is_told():
    with pytest.raises(ProbatumError, match="heads for 2, 3, 4"):
        CARN(width=8)(torch.rand(1, 3, 4, 4), 5)
    with pytest.raises(ProbatumError, match="scale must be given"):
        CARN(width=8)(torch.rand(1, 3, 4, 4))
    with pytest.raises(ProbatumError, match="scale must be of 2, 3, 4, got 8"):
        CARN(8)
    with pytest.raises(ProbatumError, match="groups must divide width 64, got 5"):
        CARNM(2, groups=5)
    with pytest.raises(ProbatumError, match=r"floats in \[0, 1\], got torch.uint8"):
        CARN(2, width=8)(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
    with pytest.raises(ProbatumError, match=r"\(N, 3, H, W\), got \(1, 1, 4, 4\)"):
        CARN(2, width=8)(torch.rand(1, 1, 4, 4))


@pytest.fixture(scope="module")
def official(fixtures):
    return weights.load(fixtures / "official_weights" / "carn_m.safetensors")


@pytest.mark.fixtures
def test_the_authors_file_loads_as_it_is(official):
    assert isinstance(official, CARNM) and official.scales == (2, 3, 4) and official.groups == 4 and not official.skip
    assert count(official) == 414_811


@pytest.mark.fixtures
def test_the_authors_file_reaches_its_figures_on_photographs(official):
    """Figures measured with the authors' code: luma, `scale` cut off, Pillow's bicubic."""
    from probatum.data.photos import photograph

    parts = {"astronaut": (480, 480), "coffee": (400, 480), "chelsea": (300, 450)}
    figures = {"astronaut": (36.06, 29.96), "coffee": (33.95, 29.03), "chelsea": (37.10, 32.41)}
    bicubic = {"astronaut": (31.74, 26.94), "coffee": (30.10, 26.75), "chelsea": (35.25, 31.47)}
    for name, (height, width) in parts.items():
        image = torch.from_numpy(photograph(name)[:height, :width]).permute(2, 0, 1)
        for scale, theirs, plain in zip((2, 4), figures[name], bicubic[name], strict=True):
            if scale == 2 and name != "chelsea":
                continue  # x2 on the smallest is enough: this is the slowest test
            high = crop_to_multiple(image, scale)
            low = degrade(high, scale, "pillow")
            got = [
                fidelity(*(x.permute(1, 2, 0).numpy() for x in (enlarge(n, low, scale), high)), crop=scale).psnr
                for n in (official, None)
            ]
            assert abs(got[0] - theirs) <= 0.02 and abs(got[1] - plain) <= 0.02


@pytest.mark.fixtures
def test_the_authors_file_on_set5(official, fixtures):
    """The published averages are of another training than the released file (412 K parameters, not 415 K): within 0.16
    dB of them. What
    the released file gives on these five images is pinned."""
    from PIL import Image

    published, measured = {2: 37.53, 3: 33.99, 4: 31.92}, {2: 37.68, 3: 34.06, 4: 31.88}
    for scale in (2, 3, 4):
        scores = []
        for path in sorted((fixtures / "sr_set5" / "HR").glob("*.png")):
            low, high = (
                torch.from_numpy(np.array(Image.open(p).convert("RGB"))).permute(2, 0, 1)
                for p in (fixtures / "sr_set5" / "LR_bicubic" / f"X{scale}" / f"{path.stem}x{scale}.png", path)
            )
            high = crop_to_multiple(high, scale)
            scores.append(
                fidelity(*(x.permute(1, 2, 0).numpy() for x in (enlarge(official, low, scale), high)), crop=scale).psnr
            )
        assert abs(np.mean(scores) - measured[scale]) <= 0.02
        assert abs(np.mean(scores) - published[scale]) <= 0.16
