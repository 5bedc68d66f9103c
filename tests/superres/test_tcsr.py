"""TCSR held to the parameter counts of the README, to counted multiply-adds, to its receptive radius and to what its parts are."""

import warnings

import pytest
import torch

from probatum import ProbatumError
from probatum.nn.neighbourhood import shift2d
from probatum.superres import weights
from probatum.superres.parts import DIV2K_MEAN, bicubic, multiply_adds
from probatum.superres.tcsr import TCSR, FeedForward, NeighbourhoodAttention, tcsr_b_like, tcsr_l_like
from probatum.superres.tiling import tiled

SMALL = {"scale": 2, "width": 10, "heads": 2, "kernel": 5, "blocks": 2, "ratio": 1.5}
CONTRACT = {
    "TCSR": lambda: (TCSR(**SMALL), torch.rand(1, 3, 7, 9)),
    "NeighbourhoodAttention": lambda: (NeighbourhoodAttention(6, 3, 3), torch.randn(2, 6, 5, 7)),
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


@pytest.mark.parametrize(("net", "parameters", "readme"), [(tcsr_b_like, 681_302, 682e3), (tcsr_l_like, 1_029_692, 1_030e3)])
def test_presets_have_the_readmes_parameters(net, parameters, readme):
    assert count(net(4)) == parameters and parameters == pytest.approx(readme, rel=0.0011)


@pytest.mark.parametrize(("scale", "width", "heads", "kernel", "blocks", "ratio"), [(2, 20, 4, 3, 4, 2.0), (3, 12, 3, 7, 2, 2.5)])
def test_parameters_by_the_formula(scale, width, heads, kernel, blocks, ratio):
    c, hidden = width, int(width * ratio)
    block = 4 * c + 4 * c**2 + 4 * c + heads * (2 * kernel - 1) ** 2 + 2 * c * hidden + hidden + c
    want = 28 * c + blocks * block + blocks // 2 * (c**2 + c) + 2 * c + 9 * c**2 + c + 27 * c * scale**2 + 3 * scale**2
    assert count(TCSR(scale, width=width, heads=heads, kernel=kernel, blocks=blocks, ratio=ratio)) == want


def test_other_shapes_meet_the_readme_as_well():
    """Why the presets are called like: this one has other widths, no stages, and as nearly the published counts."""
    other = {"width": 60, "heads": 5, "kernel": 9, "stage": 0}
    assert count(TCSR(4, **other, blocks=18)) == 681_858 and count(TCSR(4, **other, blocks=28)) == 1_027_208


def test_multiply_adds_of_a_block():
    """4 C^2 + 2 k^2 C for the attention and 2 r C^2 for the feed-forward part, a pixel: 12,544 + 18,928 + 15,680 at the published size."""
    nets = [TCSR(4, blocks=blocks, stage=0) for blocks in (1, 2)]
    assert nets[1].multiply_adds(16, 16) - nets[0].multiply_adds(16, 16) == (12_544 + 18_928 + 15_680) * 256
    assert multiply_adds(nets[1], 4, 16, 16) - multiply_adds(nets[0], 4, 16, 16) == (12_544 + 15_680) * 256
    assert nets[0].stages[0].mixer.bias.numel() == 4_375


def test_attention_by_its_definition():
    """One query written out: heads are consecutive channels, scores are divided by the root of a head's channels."""
    net = awake(NeighbourhoodAttention(6, 3, 3)).double()
    x = torch.randn(1, 6, 5, 7, dtype=torch.float64)
    q, k, v = net.qkv(x)[0].split(6)
    y, c = 0, 3  # at the upper border, where the window is rows 0 to 2
    out = []
    for head in range(3):
        part = slice(2 * head, 2 * head + 2)
        scores = torch.stack([
            q[part, y, c] @ k[part, i, j] / 2**0.5 + net.bias[head, i - y + 2, j - c + 2] for i in range(3) for j in range(2, 5)
        ])  # fmt: skip
        out.append(v[part, 0:3, 2:5].flatten(1) @ scores.softmax(0))
    want = net.proj.weight[:, :, 0, 0] @ torch.cat(out) + net.proj.bias
    assert torch.allclose(net(x)[0, :, y, c], want, atol=1e-12)


def test_feed_forward_by_its_definition():
    x = torch.randn(2, 6, 5, 4)
    gelu = torch.nn.functional.gelu
    for shift in ("zero", "edge", "none"):
        part = FeedForward(6, 15, shift)
        h = gelu(part.fc1(x))
        moved = h if shift == "none" else shift2d(h, shift)
        assert torch.equal(part(x), part.fc2(h + gelu(moved)))


def test_with_branches_off_the_body_is_its_last_convolutions():
    net = TCSR(**SMALL)
    for name, parameter in net.named_parameters():
        if any(part in name for part in ("proj.", "fc2.")) or name.startswith("stages.0.conv"):
            torch.nn.init.zeros_(parameter)
    x = torch.rand(1, 3, 6, 8)
    mean = torch.tensor(DIV2K_MEAN).view(1, 3, 1, 1)
    first = net.conv_first(x - mean)
    assert torch.allclose(net(x), net.upsample(net.conv_after_body(net.norm(first)) + first) + mean, atol=1e-6)
    assert torch.equal(TCSR(**SMALL, skip=True)(x), bicubic(x, 2))


def test_layer_scale_weighs_the_branches():
    torch.manual_seed(1)
    plain = TCSR(**SMALL)
    for factor in (1.0, 0.0):
        scaled = TCSR(**SMALL, layer_scale=factor)
        assert count(scaled) == count(plain) + 2 * 2 * 10
        scaled.load_state_dict(plain.state_dict(), strict=False)
        x = torch.rand(1, 3, 6, 8)
        if factor:
            assert torch.allclose(scaled(x), plain(x), atol=1e-6)
        else:
            first = scaled.conv_first(x - scaled.mean)
            assert torch.equal(scaled.stages[0].blocks(first), first)


def seen_from(net, size, at):
    """Rows of the input that the output pixels of the input pixel (at, middle) depend on."""
    x = torch.rand(1, 3, size, size, dtype=torch.float64, requires_grad=True)
    middle = size // 2
    net(x)[0, :, 2 * at : 2 * at + 2, 2 * middle : 2 * middle + 2].sum().backward()
    rows = (x.grad[0].abs().sum((0, 2)) > 0).nonzero()[:, 0]
    return int(rows.min()), int(rows.max())


@pytest.mark.parametrize(("kernel", "shift", "more"), [(5, "zero", 0), (9, "zero", 1), (9, "none", 2)])
def test_radius_is_exact(kernel, shift, more):
    """Inside, blocks x (k // 2 + 1) + 3; at the border a window looks inwards farther, once."""
    net = awake(TCSR(**{**SMALL, "kernel": kernel, "shift": shift})).double()
    inside = 2 * (kernel // 2 + (shift == "zero")) + 3
    assert net.radius == inside + more and tcsr_b_like(2).radius == 18 * 7 + 3 + 3
    size = 4 * net.radius
    assert seen_from(net, size, size // 2) == (size // 2 - inside, size // 2 + inside)
    assert seen_from(net, size, 0) == (0, net.radius)


def test_tiles_equal_the_whole():
    net = awake(TCSR(**{**SMALL, "kernel": 9}))
    image = torch.rand(1, 3, 40, 33)
    with torch.no_grad():
        whole = net(image)
        assert torch.allclose(tiled(net, image, 2, tile=16), whole, atol=1e-5)
        assert torch.allclose(tiled(net, image[..., :20, :9], 2, tile=1), net(image[..., :20, :9]), atol=1e-5)  # narrower than a window
        assert not torch.allclose(tiled(net, image, 2, tile=16, overlap=8), whole, atol=1e-5)


def test_small_images_are_mirrored():
    net = awake(TCSR(**{**SMALL, "kernel": 7}))
    x = torch.rand(1, 3, 3, 9)
    with pytest.warns(UserWarning, match="an image of 3 x 9 is mirrored up to the window of 7"):
        got = net(x)
    mirrored = torch.cat([x, x[:, :, [1, 0, 1, 2]]], 2)
    assert got.shape == (1, 3, 6, 18) and torch.allclose(got, net(mirrored)[:, :, :6], atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert net(torch.rand(1, 3, 1, 1)).shape == (1, 3, 2, 2)


def test_files_come_back(tmp_path):
    for options in (SMALL, {**SMALL, "stage": 0, "shift": "edge", "layer_scale": 0.1, "skip": True}):
        net = awake(TCSR(**options))
        weights.save(net, tmp_path / "own.safetensors", half=False)
        again = weights.load(tmp_path / "own.safetensors")
        x = torch.rand(1, 3, 6, 5)
        with torch.no_grad():
            assert again.config() == net.config()
            assert torch.allclose(again(x), net(x), atol=1e-6)
        torch.save({"params": net.state_dict()}, tmp_path / "bare.pth")  # without our header: what shapes can tell
        found = weights.load(tmp_path / "bare.pth").config()
        assert found == {**net.config(), "shift": "zero", "skip": False}
    with pytest.raises(ProbatumError, match=r"does not fit carn: .*it looks like TCSR"):
        weights.load(tmp_path / "bare.pth", "carn")
    weights.save(weights.build({"model": "carn", "scale": 2, "width": 8}), tmp_path / "carn.safetensors")
    with pytest.raises(ProbatumError, match=r"does not fit tcsr: .*it looks like CARN"):
        weights.load(tmp_path / "carn.safetensors", "tcsr")


def test_upscale_takes_a_file_of_ours(tmp_path):
    from probatum.superres.upscaling import Upscaler, upscale_array

    net = awake(TCSR(**SMALL))
    weights.save(net, tmp_path / "own.safetensors", half=False)
    pixels = torch.randint(256, (37, 29, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    got = torch.from_numpy(upscale_array(Upscaler(str(tmp_path / "own.safetensors"), 2, tile=16), pixels.numpy()))
    with torch.no_grad():
        want = net(pixels.permute(2, 0, 1)[None] / 255)[0].mul(255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)
    assert (got.int() - want.int()).abs().max() <= 1


def test_bad_input():
    for options, message in (
        ({"scale": 1}, "scale must be an integer of 2 or more, got 1"), ({"kernel": 4}, "kernel must be odd, got 4"),
        ({"heads": 3}, "heads must divide width 10, got 3"), ({"ratio": 1.25}, "ratio must give a whole number of channels: 1.25 times 10"),
        ({"blocks": 3}, "stage must divide the number of blocks"), ({"shift": "wrap"}, "shift must be zero, edge or none, got 'wrap'"),
    ):  # fmt: skip
        with pytest.raises(ProbatumError, match=message):
            TCSR(**{**SMALL, **options})
    with pytest.raises(ProbatumError, match="this net has heads for 2"):
        TCSR(**SMALL)(torch.rand(1, 3, 6, 6), 3)
    with pytest.raises(ProbatumError, match="the authors of TCSR published none"):
        weights.shipped("tcsr_b")


def test_arms_of_the_claims_are_what_they_say():
    """Mixers of other kinds in the same net: weights, windows, and the same start where only the shift differs."""
    from probatum.claims.superres import tcsr as claims

    assert set(claims.RATES) == {*claims.LARGE, *claims.SMALL, "no shift"}
    assert all(claims.GRID[0] < rate < claims.GRID[-1] for rate in claims.RATES.values())

    def weights_of(arm):
        return sum(count(block.mixer) + count(block.norm1) for block in claims.blocks_of(claims.start(arm)))

    own = weights_of("attention")
    assert own == 4 * (4 * 24**2 + 4 * 24 + 3 * 13**2 + 2 * 24)
    assert weights_of("dense 7 x 7") == 4 * (49 * 24**2 + 24 + 2 * 24) > 9 * own
    for arm in ("dense 3 x 3", "gated depthwise 7 x 7"):
        assert weights_of(arm) == pytest.approx(own, rel=0.04)
    starts = []
    for arm in ("attention", "no shift"):
        torch.manual_seed(3)
        starts.append(claims.start(arm).state_dict())
    assert all(torch.equal(value, starts[1][key]) for key, value in starts[0].items())
