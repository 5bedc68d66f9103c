"""CFSR held to published counts, to the equality of its two forms, to its receptive radius, and to the authors' weights."""

import numpy as np
import pytest
import torch

from probatum import ProbatumError
from probatum.metrics.fidelity import fidelity
from probatum.superres import weights
from probatum.superres.cfsr import CFSR, MASKS, EdgeConv
from probatum.superres.degradation import crop_to_multiple, degrade
from probatum.superres.fitting import enlarge
from probatum.superres.parts import DIV2K_MEAN, LayerNorm2d, multiply_adds
from probatum.superres.tiling import tiled

SMALL = {"scale": 2, "width": 8, "depths": (2, 1), "kernel": 5}
CONTRACT = {
    "CFSR": lambda: (CFSR(**SMALL), torch.rand(1, 3, 7, 9)),
    "EdgeConv": lambda: (EdgeConv(5), torch.randn(2, 5, 7, 9)),
}


def count(net):
    return sum(p.numel() for p in net.parameters())


def awake(net):
    """A net whose every part has something to say, the same at each call."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net.eval()


@pytest.mark.parametrize(("scale", "parameters", "adds", "low"), [
    (2, 291_324, 65.06, (360, 640)), (3, 297_819, 29.53, (240, 426)), (4, 306_912, 17.16, (180, 320)),
])  # fmt: skip
def test_published_counts(scale, parameters, adds, low):
    """The table's 307K at x4; 17.5 G counts 25 layer norms of 5 operations a value beside the convolutions."""
    net = CFSR(scale)
    assert count(net.merged()) == parameters
    assert count(net) == parameters + 12 * 96 * 2 * 3  # a scale and a bias a hidden channel, three filters
    assert multiply_adds(net.merged(), scale, *low) / 1e9 == pytest.approx(adds, abs=0.005)
    if scale == 4:
        norms = 25 * 48 * 5 * low[0] * low[1]
        assert (multiply_adds(net.merged(), 4, *low) + norms) / 1e9 == pytest.approx(17.5, abs=0.02)


@pytest.mark.parametrize("edge", ["paper", "release"])
def test_merged_is_the_trained_form(edge):
    net = awake(CFSR(**SMALL, edge=edge))
    x = torch.rand(2, 3, 9, 7)
    merged = net.merged()
    assert not any("mask" in key for key in merged.state_dict()) and merged.config()["edge"] == "none"
    with torch.no_grad():
        assert torch.allclose(net(x), merged(x), atol=1e-5)
    assert any("mask" in key for key in net.state_dict())  # the net itself is as it was


def test_edge_filters_by_their_definition():
    """Against whole two-dimensional sums, and the masks against what they are called."""
    layer = EdgeConv(2)
    x = torch.randn(1, 2, 6, 5)
    weight, bias = layer.folded()
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    want = torch.zeros_like(x)
    for i in range(3):
        for j in range(3):
            want += weight[:, 0, i, j].view(1, 2, 1, 1) * padded[:, :, i : i + 6, j : j + 5]
    assert torch.allclose(layer(x), want + bias.view(1, 2, 1, 1), atol=1e-5)
    sobel_x, sobel_y, laplacian = (np.array(MASKS["paper"][name]) for name in ("sobel_x", "sobel_y", "laplacian"))
    assert (sobel_x == sobel_y.T).all() and sobel_x.sum() == laplacian.sum() == 0 and (laplacian == laplacian.T).all()
    differ = {name: int((np.array(MASKS["release"][name]) != np.array(mask)).sum()) for name, mask in MASKS["paper"].items()}
    assert differ == {"sobel_x": 2, "sobel_y": 0, "laplacian": 2}  # one entry moved, in each of two


def test_layer_norm_of_pixels():
    norm = LayerNorm2d(5).double()
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    mean, var = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
    assert torch.allclose(norm(x), (x - mean) / (var + 1e-6).sqrt(), atol=1e-12)


def test_with_blocks_off_the_body_is_its_last_convolutions():
    net = CFSR(2, width=8, depths=(1,), layer_scale=0.0)
    torch.nn.init.zeros_(net.layers[0].conv.weight)
    torch.nn.init.zeros_(net.layers[0].conv.bias)
    x = torch.rand(1, 3, 6, 6)
    mean = torch.tensor(DIV2K_MEAN).view(1, 3, 1, 1)
    first = net.conv_first(x - mean)
    assert torch.allclose(net(x), net.upsample(net.conv_after_body(net.norm(first)) + first) + mean, atol=1e-6)


def test_with_skip_it_starts_at_bicubic():
    from probatum.superres.parts import bicubic

    x = torch.rand(1, 3, 8, 8)
    assert torch.equal(CFSR(**SMALL, skip=True)(x), bicubic(x, 2))


def test_radius_is_exact_and_tiles_equal_the_whole():
    net = awake(CFSR(**SMALL))
    assert CFSR(2).radius == 63 and net.radius == 1 + 3 * 3 + 2
    size = 2 * net.radius + 3
    x = torch.rand(1, 3, size, size, requires_grad=True)
    middle = size // 2
    net.double()(x.double())[0, :, 2 * middle : 2 * middle + 2, 2 * middle : 2 * middle + 2].sum().backward()
    assert x.grad is not None
    seen = (x.grad[0].abs().sum(0) > 0).nonzero()
    assert (seen.min(0).values == middle - net.radius).all() and (seen.max(0).values == middle + net.radius).all()
    image = torch.rand(1, 3, 40, 33)
    net.float()
    with torch.no_grad():
        assert torch.allclose(tiled(net, image, 2, tile=16), net(image), atol=1e-6)
        assert not torch.allclose(tiled(net, image, 2, tile=16, overlap=2), net(image), atol=1e-6)


def test_files_come_back_and_others_are_named(tmp_path):
    net = awake(CFSR(**SMALL))
    weights.save(net, tmp_path / "own.safetensors", half=False)
    again = weights.load(tmp_path / "own.safetensors")
    x = torch.rand(1, 3, 6, 5)
    with torch.no_grad():
        assert torch.equal(again(x), net.to(memory_format=torch.channels_last)(x))
    for form in (net, net.merged()):  # without our header: recognised by keys
        torch.save({"params": form.state_dict()}, tmp_path / "bare.pth")
        found = weights.load(tmp_path / "bare.pth")
        assert found.config() == {**form.config(), "skip": False}
    with pytest.raises(ProbatumError, match=r"does not fit carn: .*it looks like CFSR"):
        weights.load(tmp_path / "bare.pth", "carn")


def test_bad_input():
    for options, message in (
        ({"scale": 1}, "scale must be an integer of 2 or more, got 1"), ({"kernel": 4}, "kernel must be odd, got 4"),
        ({"width": 9, "ratio": 1.5}, "ratio must give a whole number of channels"), ({"depths": ()}, "depths must be one or more"),
        ({"edge": "sobel"}, "edge must be one of paper, release, none, got 'sobel'"),
    ):  # fmt: skip
        with pytest.raises(ProbatumError, match=message):
            CFSR(**{"scale": 2, "width": 8, "depths": (1,), **options})
    with pytest.raises(ProbatumError, match="this net has heads for 2"):
        CFSR(**SMALL)(torch.rand(1, 3, 4, 4), 3)


@pytest.fixture(scope="module")
def official(fixtures):
    return weights.load(fixtures / "official_weights" / "cfsr_x4.safetensors")


@pytest.mark.fixtures
def test_the_authors_file_reaches_its_figures_on_photographs(official):
    """Luma, 4 pixels cut off, Pillow's bicubic; figures measured with the authors' code."""
    from probatum.data.photos import photograph

    for name, (height, width), theirs in (("astronaut", (480, 480), 30.43), ("chelsea", (300, 448), 32.54)):
        high = crop_to_multiple(torch.from_numpy(photograph(name)[:height, :width]).permute(2, 0, 1), 4)
        low = degrade(high, 4, "pillow")
        got = fidelity(*(x.permute(1, 2, 0).numpy() for x in (enlarge(official, low, 4), high)), crop=4).psnr
        assert abs(got - theirs) <= 0.02, name


@pytest.mark.fixtures
def test_the_authors_file_on_set5(official, fixtures):
    """The published 32.33 dB and .8964, MATLAB's own small images."""
    from PIL import Image

    scores = []
    for path in sorted((fixtures / "sr_set5" / "HR").glob("*.png")):
        low, high = (
            torch.from_numpy(np.array(Image.open(p).convert("RGB"))).permute(2, 0, 1)
            for p in (fixtures / "sr_set5" / "LR_bicubic" / "X4" / f"{path.stem}x4.png", path)
        )
        high = crop_to_multiple(high, 4)
        scores.append(fidelity(*(x.permute(1, 2, 0).numpy() for x in (enlarge(official, low, 4), high)), crop=4))
    assert abs(np.mean([s.psnr for s in scores]) - 32.33) <= 0.02
    assert abs(np.mean([s.ssim for s in scores]) - 0.8964) <= 0.001


def test_arms_of_the_claims_are_what_they_say():
    """Equal multiply-adds within 4 %, and two arms that begin as one function and draw the same crops."""
    from probatum.claims.superres import cfsr as claims
    from probatum.claims.superres.training import TEST, TRAIN, VALIDATION

    assert len({*TRAIN, *VALIDATION, *TEST}) == 16
    adds = {name: multiply_adds(CFSR(2, **options).merged(), 2, 24, 24) for name, options in claims.NETS.items()}
    assert adds["edges"] == adds["no edges"] and 1 < adds["3 x 3"] / adds["edges"] < 1.04
    starts = []
    for name in ("edges", "no edges"):
        torch.manual_seed(3)
        starts.append(claims.start(name).state_dict())
    assert all(torch.equal(value, starts[0][key]) for key, value in starts[1].items()) and len(starts[1]) < len(starts[0])
    assert set(claims.RATES) == set(claims.NETS) and all(claims.GRID[0] < rate < claims.GRID[-1] for rate in claims.RATES.values())
