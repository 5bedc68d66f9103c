"""NAFSSR held to published counts, to the authors' code, to brute force, and to what its parts promise."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from probatum import ProbatumError
from probatum.superres import upscaling, weights
from probatum.superres.nafssr import NAFSSR, PRESETS, SCAM, LocalMean, NAFBlock, row_attention
from probatum.superres.parts import bicubic
from probatum.superres.tiling import strips
from probatum.superres.upscaling import Upscaler, plan, plan_pairs, run, upscale_pair

SMALL = {"scale": 2, "width": 5, "blocks": 3, "window": (13, 19)}

CONTRACT = {
    "NAFSSR": lambda: (NAFSSR(2, width=4, blocks=2, layer_scale=0.1), torch.rand(1, 6, 6, 9)),
    "NAFBlock": lambda: (NAFBlock(6, layer_scale=0.1), torch.rand(2, 6, 5, 7)),
    "SCAM": lambda: (SCAM(6, layer_scale=0.1), torch.rand(2, 6, 5, 7), torch.rand(2, 6, 5, 7)),
}


def count(net):
    return sum(p.numel() for p in net.parameters())


def filled(net):
    """Every parameter from a formula, so that other code can be given the same ones."""
    with torch.no_grad():
        for index, (name, p) in enumerate(sorted(net.named_parameters())):
            wave = 0.3 * torch.sin(0.7 * torch.arange(p.numel(), dtype=torch.float64) + index)
            p.copy_(wave.view(p.shape).to(p) + (1.0 if name.endswith("norm1.weight") else 0.0))
    return net.eval()


def pair_of(height, width):
    k = torch.arange(6 * height * width, dtype=torch.float64)
    return (0.5 + 0.5 * torch.sin(0.37 * k + 0.0005 * k * k)).view(1, 6, height, width)


def convolution_adds(net, height, width):
    """Multiply-adds of the convolutions for a pair: the views run as a batch of two."""
    import copy

    ghost, total = copy.deepcopy(net).to("meta"), 0

    def add(layer, inputs, output):
        nonlocal total
        total += output.numel() * layer.weight[0].numel()

    for layer in ghost.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(add)
    with torch.no_grad():
        ghost(torch.empty(1, 6, height, width, device="meta"))
    return total


@pytest.mark.parametrize(("size", "two", "four"), [
    ("T", 445_068, 460_656), ("S", 1_538_572, 1_559_344), ("B", 6_765_324, 6_796_464), ("L", 23_790_604, 23_832_112),
])  # fmt: skip
def test_published_parameter_counts(size, two, four):
    with torch.device("meta"):
        assert [count(NAFSSR.preset(size, scale)) for scale in (2, 4)] == [two, four]


def test_multiply_adds_of_a_training_pair():
    """1.786 G and 6.020 G of convolutions at x4, and 3 H W^2 c a block of attention: 0.560 to 11.944 G."""
    for size, want in (("T", 1.786), ("S", 6.020)):
        with torch.device("meta"):
            net = NAFSSR.preset(size, 4).eval()
        assert convolution_adds(net, 30, 90) / 1e9 == pytest.approx(want, abs=0.0005)
    for options, want in zip(PRESETS.values(), (0.560, 1.493, 4.479, 11.944), strict=True):
        assert 3 * 30 * 90**2 * options["width"] * options["blocks"] / 1e9 == pytest.approx(want, abs=0.0005)


@pytest.mark.parametrize(("options", "size", "places", "mean"), [
    ({"scale": 2, "width": 5, "blocks": 3, "window": (13, 19)}, (11, 23),
     [4.116135278190565, 7.065983694306353, -6.446006826934179, -2.2364279057985437], 0.402872076549308),
    ({"scale": 4, "width": 6, "blocks": 2, "window": (45, 135)}, (60, 150),
     [0.3237931297912733, -0.5936372688823665, -2.302294163115314, 1.732937812117858], 0.5005578386717315),
    ({"scale": 2, "width": 5, "blocks": 3, "window": (13, 19)}, (8, 31),
     [2.137340194784663, -0.18538862973732873, 0.7930066928896513, -3.3261066222496436], 0.4033730383801425),
])  # fmt: skip
def test_the_authors_code_gives_the_same_numbers(options, size, places, mean):
    """Run with their commit 2b4af71, the same parameters and local means in windows of 1.5 times the training patch."""
    net = filled(NAFSSR(**options)).double()
    with torch.no_grad():
        y = net(pair_of(*size))
    assert torch.allclose(y.flatten()[[0, 100, 1000, -1]], torch.tensor(places, dtype=torch.float64), atol=1e-10)
    assert float(y.mean()) == pytest.approx(mean, abs=1e-10)


def test_keys_of_the_authors_files(tmp_path):
    net = NAFSSR(**SMALL)
    block = {
        "beta",
        "gamma",
        *(f"{n}.{k}" for n in ("conv1", "conv2", "conv3", "conv4", "conv5", "sca.1", "norm1", "norm2") for k in ("weight", "bias")),
    }
    fusion = {
        "beta",
        "gamma",
        *(f"{n}.{k}" for n in ("norm_l", "norm_r", "l_proj1", "r_proj1", "l_proj2", "r_proj2") for k in ("weight", "bias")),
    }
    want = {f"{n}.{k}" for n in ("intro", "up.0") for k in ("weight", "bias")}
    for i in range(3):
        want |= {f"body.{i}.module.blk.{k}" for k in block} | {f"body.{i}.module.fusion.{k}" for k in fusion}
    assert set(net.state_dict()) == want
    torch.save({"params": filled(net).state_dict()}, tmp_path / "bare.pth")  # as BasicSR wraps it
    found = weights.load(tmp_path / "bare.pth")
    assert found.config() == {**net.config(), "window": [45, 135]}
    x = pair_of(9, 7).float()
    with torch.no_grad():
        assert torch.allclose(found(x), NAFSSR.forward(net, x), atol=1e-5)  # smaller than both windows
    single = NAFSSR(4, width=6, blocks=2, fusion=(), window=None)
    torch.save(single.state_dict(), tmp_path / "single.pth")
    assert weights.load(tmp_path / "single.pth").config() == single.config()
    weights.save(net, tmp_path / "own.safetensors", half=False)
    assert weights.load(tmp_path / "own.safetensors").config() == net.config()
    with pytest.raises(ProbatumError, match=r"does not fit carn: .*it looks like NAFSSR"):
        weights.load(tmp_path / "bare.pth", "carn")


def test_swapping_views_and_sides_swaps_the_outputs():
    net = filled(NAFSSR(**SMALL))
    state = dict(net.state_dict())
    for name, value in net.state_dict().items():
        if ".fusion." in name:
            stem, part = name.split(".fusion.")
            other = {"beta": "gamma", "gamma": "beta"}.get(part) or (
                part.replace("l_proj", "r_proj") if part.startswith("l_") else part.replace("r_proj", "l_proj")
            )
            other = other.replace("norm_l", "norm_?").replace("norm_r", "norm_l").replace("norm_?", "norm_r")
            state[f"{stem}.fusion.{other}"] = value
    mirror = NAFSSR(**SMALL).eval()
    mirror.load_state_dict(state)
    x = pair_of(9, 11).float()
    with torch.no_grad():
        assert torch.allclose(mirror(x.roll(3, 1)), net(x).roll(3, 1), atol=1e-5)


def test_row_attention_is_its_formula_and_rows_are_apart():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 5, 3, 7, dtype=torch.float64) for _ in range(3))
    want = torch.empty_like(v)
    for n in range(2):
        for row in range(3):
            scores = q[n, :, row].T @ k[n, :, row] / 5**0.5  # (W, W)
            want[n, :, row] = v[n, :, row] @ scores.softmax(1).T
    assert torch.allclose(row_attention(q, k, v), want, atol=1e-12)
    scam = filled(SCAM(5))
    left, right = torch.randn(2, 1, 5, 8, 7)
    with torch.no_grad():
        for whole, part in zip(scam(left, right), scam(left[:, :, 2:5], right[:, :, 2:5]), strict=True):
            assert torch.allclose(whole[:, :, 2:5], part, atol=1e-6)
        whole, part = scam(left, right)[0], scam(left[..., :4], right[..., :4])[0]
    assert not torch.allclose(whole[..., :4], part, atol=1e-3), "columns are not"


def test_one_score_matrix_serves_both_directions():
    """The explicit form: (B, H, W, W) scores, softmax along either axis, values of the views as they are."""
    torch.manual_seed(0)
    scam = filled(SCAM(6))
    left, right = torch.randn(2, 2, 6, 4, 9)
    with torch.no_grad():
        q_l, q_r = scam.scores_from(left, right)
        scores = torch.einsum("bchi,bchj->bhij", q_l, q_r) * 6**-0.5
        to_left = torch.einsum("bhij,bchj->bchi", scores.softmax(3), scam.r_proj2(right))
        to_right = torch.einsum("bhij,bchi->bchj", scores.softmax(2), scam.l_proj2(left))
        got = scam(left, right)
    assert torch.allclose(got[0], left + scam.beta * to_left, atol=1e-5)
    assert torch.allclose(got[1], right + scam.gamma * to_right, atol=1e-5)


def test_gradients_reach_both_sides_of_the_attention():
    scam = SCAM(5, layer_scale=0.1)
    sum(view.square().sum() for view in scam(torch.randn(1, 5, 3, 6), torch.randn(1, 5, 3, 6))).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in scam.parameters())


def test_attention_finds_the_shift_of_a_shifted_view():
    """Identity projections, one-hot columns: right(x) = left(x + 3), so disparity is 3, and the values that come back are the view's own."""
    width, shift = 16, 3
    left = 20 * torch.eye(width).view(1, width, 1, width).expand(1, width, 2, width).contiguous()  # channel c marks column c
    right = left.roll(-shift, 3)
    scam = SCAM(width)
    with torch.no_grad():
        for layer in (scam.l_proj1, scam.r_proj1, scam.l_proj2, scam.r_proj2):
            layer.weight.copy_(20 * torch.eye(width).view(width, width, 1, 1))
            layer.bias.zero_()
        offset = scam.disparity(left, right)
        scam.beta.fill_(1)
        fused = scam(left, right)[0]
    assert torch.allclose(offset[..., shift:], torch.full((1, 2, width - shift), float(shift)), atol=1e-3)
    assert torch.allclose((fused - left)[..., shift:], 20 * left[..., shift:], rtol=1e-3, atol=1e-2)


def test_local_mean_by_brute_force():
    x = torch.randn(2, 3, 11, 9, dtype=torch.float64)
    for window in ((3, 5), (4, 4), (11, 2), (20, 3), (1, 1)):
        rows, columns = min(window[0], 11), min(window[1], 9)
        want = torch.empty_like(x)
        for i in range(11):
            for j in range(9):
                top, left = min(max(i - (rows - 1) // 2, 0), 11 - rows), min(max(j - (columns - 1) // 2, 0), 9 - columns)
                want[..., i, j] = x[..., top : top + rows, left : left + columns].mean((2, 3))
        assert torch.allclose(LocalMean(window)(x), want, atol=1e-12), window
    assert torch.equal(LocalMean((11, 9))(x), LocalMean()(x)) and LocalMean()(x).shape == (2, 3, 1, 1)
    big = torch.rand(1, 1, 700, 900) + 100  # float32's digits survive, as they would not in a summed-area table
    assert torch.allclose(LocalMean((45, 135))(big), LocalMean((45, 135))(big.double()).float(), rtol=3e-6)


def test_at_the_start_the_trunk_is_the_identity():
    net = NAFSSR(**SMALL)
    x = pair_of(6, 8).float()
    with torch.no_grad():
        views = [F.interpolate(v, scale_factor=2, mode="bilinear") + net.up(net.intro(v)) for v in x.split(3, 1)]
        assert torch.allclose(net(x), torch.cat(views, 1), atol=1e-6)
        torch.nn.init.zeros_(net.up[0].weight)
        torch.nn.init.zeros_(net.up[0].bias)
        assert torch.equal(net(x), F.interpolate(x, scale_factor=2, mode="bilinear"))


def test_without_fusion_views_go_apart_and_single_pictures_are_taken():
    net = filled(NAFSSR(**{**SMALL, "fusion": ()}))
    x = pair_of(9, 25).float()
    with torch.no_grad():
        assert torch.allclose(net(x), torch.cat([net(v) for v in x.split(3, 1)], 1), atol=1e-5)
    assert (net.views, net.radius, NAFSSR(**SMALL).radius) == (1, 3 * 10 + 9 + 2, None)
    assert count(net) == count(NAFSSR(**SMALL)) - 3 * (4 * 5 * 6 + 6 * 5)


def test_stochastic_depth_skips_whole_blocks_and_keeps_the_mean():
    generator = torch.Generator().manual_seed(0)
    net = NAFSSR(**{**SMALL, "blocks": 1}, drop_path=0.25, layer_scale=0.2, generator=generator)
    x = pair_of(5, 6).float()
    plain = net.eval()(x)
    net.train()
    with torch.no_grad():
        trunk = [net.trunk(x) for _ in range(400)]
        start = net.intro(torch.cat(x.split(3, 1)))
        skipped = sum(torch.equal(t, start) for t in trunk)
        assert abs(skipped - 100) <= 4 * (400 * 0.25 * 0.75) ** 0.5
        taken = next(t for t in trunk if not torch.equal(t, start))
        whole = net.eval().trunk(x)
        assert torch.allclose(taken, start + (whole - start) / 0.75, atol=1e-6)
        assert torch.equal(net(x), plain)


def test_rows_is_the_exact_reach():
    net = filled(NAFSSR(2, width=3, blocks=2, window=(5, 7)).double())
    assert net.rows == 2 * 3 + 2 + 2 and NAFSSR.preset("T").rows == 16 * 23 + 24
    height, middle = 41, 20
    x = pair_of(height, 9).requires_grad_()
    net(x)[0, :, 2 * middle : 2 * middle + 2].sum().backward()
    seen = (x.grad[0].abs().sum((0, 2)) > 1e-12).nonzero()  # sliding sums leave rounding behind
    # in the middle of the picture; the rest of `rows` is for the windows at its borders
    assert middle - seen.min() == seen.max() - middle == 2 * 3 + 2
    edge = pair_of(height, 9).requires_grad_()
    net(edge)[0, :, :2].sum().backward()
    assert (edge.grad[0].abs().sum((0, 2)) > 1e-12).nonzero().max() <= net.rows


@pytest.mark.parametrize("tile", [3, 8, 16])
def test_strips_equal_the_whole_and_seams_measure_what_is_missing(tile):
    torch.manual_seed(0)
    net = NAFSSR(2, width=4, blocks=2, window=(5, 7), layer_scale=1.0).eval()
    x = torch.rand(1, 6, 61, 12)
    with torch.no_grad():
        whole = net(x)[0]
    for overlap, exact in ((net.rows, True), (3, False)):
        seams: list[float] = []
        got = torch.cat(list(strips(net, x[0], 2, tile=tile, overlap=overlap, whole_rows=True, seams=seams)), 1)
        assert torch.allclose(got, whole, atol=1e-5) is exact
        assert len(seams) == -(-61 // tile) - 1 and (max(seams) < 1e-5) is exact


# training data


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def photo(name="coffee", height=60, width=120):
    from probatum.data.photos import photograph

    return torch.from_numpy(photograph(name)[100 : 100 + height, 100 : 100 + width]).permute(2, 0, 1)


def test_a_known_warp_gives_back_its_photograph():
    from probatum.superres.stereo import random_disparity, synthetic_pair

    picture = photo()
    left, right = synthetic_pair(picture, torch.full((60, 120), 7.0))
    assert torch.equal(left, picture[..., :113]) and torch.equal(right, picture[..., 7:])  # whole pixels: copies
    ramp = torch.arange(120.0).expand(2, 60, 120)
    field = random_disparity(60, 120, least=2, most=30, generator=seeded())
    assert field.min() >= 2 and field.max() <= 30 and field.diff(dim=1).abs().max() <= 0.5 + 1e-5
    left, right = synthetic_pair(ramp, field)
    inner = right[:, :, 1:-2]
    assert torch.allclose(inner, (ramp[:, :, : left.shape[2]] + field[:, : left.shape[2]])[:, :, 1:-2], atol=1e-3)  # cubic keeps lines
    for wrong, message in (
        (torch.zeros(3, 3), "disparity must be finite numbers"),
        (torch.full((60, 120), -1.0), "disparity must be from 0"),
    ):
        with pytest.raises(ProbatumError, match=message):
            synthetic_pair(picture, wrong)
    with pytest.raises(ProbatumError, match="least and most"):
        random_disparity(5, 5, least=4, most=2)


def test_augmentation_keeps_disparity_and_pairs_of_channels():
    """A mirrored pair has its views swapped: disparity keeps its sign. Channels are permuted the same way in both views."""
    from probatum.superres.stereo import PERMUTATIONS, augment, check_pair, synthetic_pair

    pair = torch.cat(synthetic_pair(photo(height=100, width=300), torch.full((100, 300), 9.0)))
    for colours in PERMUTATIONS:
        for down in (False, True):
            for across in (False, True):
                got = augment(pair, colours, down=down, across=across)
                views = [v.permute(1, 2, 0).numpy() for v in (got[:3], got[3:])]
                assert check_pair(*views).disparity == pytest.approx(9, abs=1)
                plain = got.flip(2).roll(3, 0) if across else got
                plain = plain.flip(1) if down else plain
                assert torch.equal(plain, pair[torch.cat([colours, colours + 3])])


def test_patches_are_pairs_in_step():
    from probatum.superres.degradation import degrade
    from probatum.superres.stereo import StereoPatches, synthetic_pair

    pair = synthetic_pair(photo(), torch.full((60, 120), 4.0))
    patches = StereoPatches([pair], 2, size=(6, 20), batch=3, generator=seeded(), colours=False, flips=False)
    low, high = patches.draw(2)
    assert low.shape == (3, 6, 6, 20) and high.shape == (3, 6, 12, 40)
    whole = degrade(torch.cat(pair), 2).float() / 255
    windows = whole.unfold(1, 6, 1).unfold(2, 20, 1)  # (6, ., ., 6, 20)
    for crop in low:
        assert (windows - crop[:, None, None]).abs().sum((0, 3, 4)).min() == 0
    assert torch.equal(high[:, 3:, :, :-4], high[:, :3, :, 4:])  # right(x) = left(x + 4)
    again = StereoPatches([pair], 2, size=(6, 20), batch=3, generator=seeded(), colours=False, flips=False).draw(2)
    assert torch.equal(again[0], low)
    with pytest.raises(ProbatumError, match="no pair of 400 x 40 pixels"):
        StereoPatches([pair], 2, size=(200, 20), generator=seeded())
    with pytest.raises(ProbatumError, match="two views"):
        StereoPatches([(pair[0], pair[1][..., 1:])], 2, generator=seeded())


def test_it_trains_with_the_familys_trainer():
    from probatum.superres.fitting import Fit
    from probatum.superres.stereo import StereoPatches, pair_psnr, synthetic_pair

    pair = synthetic_pair(photo(), torch.full((60, 120), 4.0))
    patches = StereoPatches([pair], 2, size=(8, 30), batch=2, generator=seeded())
    torch.manual_seed(0)
    net = NAFSSR(2, width=8, blocks=2, layer_scale=0.1)
    fit = Fit(net, patches, steps=40, lr=3e-3, warm_up=1, betas=(0.9, 0.9), loss=F.mse_loss).advance()
    assert sum(fit.losses[-10:]) < sum(fit.losses[:10])
    assert fit.optimizer.defaults["betas"] == (0.9, 0.9)
    assert min(pair_psnr(None, torch.cat(pair), 2)) > 20


def test_the_recipe_makes_pairs_trains_and_keeps_what_is_done(tmp_path, capsys):
    from probatum.superres import stereo_recipe
    from probatum.superres.patches import photos_in

    (tmp_path / "in").mkdir()
    for name, shift in (("a_left", 0), ("a_right", 5), ("b", 0)):
        Image.fromarray(photo()[:, :, shift : 110 + shift].permute(1, 2, 0).numpy()).save(tmp_path / "in" / f"{name}.png")
    pairs = stereo_recipe.pairs_of(photos_in(tmp_path / "in"), each=3, generator=seeded())
    assert len(pairs) == 4 and torch.equal(pairs[0][0][..., 5:], pairs[0][1][..., :-5])
    base = ["--data", str(tmp_path / "in"), "--scale", "2", "--batch", "1", "--rows", "4", "--columns", "9"]
    for out, stops in (("once", (3,)), ("twice", (3, 3))):
        for steps in stops:
            stereo_recipe.main([*base, "--out", str(tmp_path / out), "--steps", str(steps)])
    assert (tmp_path / "once/nafssr.safetensors").read_bytes() == (tmp_path / "twice/nafssr.safetensors").read_bytes()
    assert weights.load(tmp_path / "once/nafssr.safetensors").config()["width"] == 48


def test_the_motorcycle_pair_is_in_order_and_offsets_are_found():
    from probatum.superres.stereo import check_pair, motorcycle

    left, right, disparity = motorcycle()
    a, b = (view.permute(1, 2, 0).numpy() for view in (left, right))
    truth = float(disparity[torch.isfinite(disparity)].median())
    found = check_pair(a, b)
    assert found.warnings == () and abs(found.vertical) < 0.2 and abs(found.disparity - truth) < 10
    assert "swapped" in check_pair(b, a).warnings[0]
    for rows in (-3, 2):
        moved = np.clip(b[8 - rows : -8 - rows].astype(float) * 0.8 + 10, 0, 255)  # another exposure too
        off = check_pair(a[8:-8], moved)
        assert off.vertical == pytest.approx(rows, abs=0.2) and "rows apart" in off.warnings[0]
    flat = np.zeros((50, 60), np.uint8)
    assert check_pair(flat, flat).warnings == () and check_pair(flat, flat).vertical is None


# the command


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    torch.manual_seed(0)
    weights.save(NAFSSR(2, width=6, blocks=2, window=(5, 9), layer_scale=0.3), path, half=False)
    return str(path)


@pytest.fixture(scope="module")
def views():
    from probatum.superres.stereo import motorcycle

    left, right, _ = motorcycle()
    return [view[:, 200:251, 300:420].permute(1, 2, 0).contiguous().numpy() for view in (left, right)]


def whole(model, left, right):
    x = torch.cat([torch.from_numpy(v).permute(2, 0, 1) for v in (left, right)])[None].float() / 255
    with torch.no_grad():
        y = weights.load(model)(x)[0].mul(255).round().clamp(0, 255).byte()
    return y[:3].permute(1, 2, 0).numpy(), y[3:].permute(1, 2, 0).numpy()


def upscaled(model, jobs, out, single=False, **options):
    (result,) = run(Upscaler(model, 2, **options), jobs, out=None if single else out)
    return result


def test_two_files_become_two_files_and_any_strip_gives_the_same_bytes(model, views, tmp_path):
    for name, view in zip("lr", views, strict=True):
        Image.fromarray(view).save(tmp_path / f"{name}.png")
    want = whole(model, *views)
    for tile in ("auto", 16, 17):
        out = tmp_path / f"out{tile}"
        result = upscaled(model, plan_pairs(tmp_path / "l.png", tmp_path / "r.png", out), out, layout="pair", tile=tile)
        assert result.state == "done" and result.size == (240, 102), result.error
        got = [np.asarray(Image.open(out / name)) for name in ("left/l.png", "right/r.png")]
        assert all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))
        assert sorted(p.name for p in out.iterdir()) == [upscaling.LEDGER, "left", "right"]
    arrays = upscale_pair(Upscaler(model, 2, layout="pair", tile=16), *views)
    assert all(np.array_equal(a, b) for a, b in zip(arrays, want, strict=True))


@pytest.mark.parametrize(("layout", "axis"), [("sbs", 1), ("tb", 0)])
def test_both_views_in_one_file_stay_in_one(model, views, tmp_path, layout, axis):
    Image.fromarray(np.concatenate(views, axis)).save(tmp_path / "a.png")
    jobs, single, _ = plan([tmp_path / "a.png"], tmp_path / "b.png")
    result = upscaled(model, jobs, None, single, layout=layout, tile=16)
    assert result.state == "done", result.error
    assert np.array_equal(np.asarray(Image.open(tmp_path / "b.png")), np.concatenate(whole(model, *views), axis))


def test_duplicate_gives_one_picture_as_both_views(model, views, tmp_path):
    Image.fromarray(views[0]).save(tmp_path / "a.png")
    jobs, single, _ = plan([tmp_path / "a.png"], tmp_path / "b.png")
    result = upscaled(model, jobs, None, single, layout="duplicate")
    assert result.state == "done" and not result.notes
    assert np.array_equal(np.asarray(Image.open(tmp_path / "b.png")), whole(model, views[0], views[0])[0])


def test_kinds_of_pixels_are_each_views_own(model, views, tmp_path):
    """Grey and transparent on the left, 16 bits on the right."""
    alpha = np.full(views[0].shape[:2], 255, np.uint8)
    alpha[:, :40] = 0
    Image.fromarray(np.dstack([views[0][..., 0], alpha]), "LA").save(tmp_path / "l.png")
    Image.fromarray(views[1][..., 0].astype(np.uint16) * 257).save(tmp_path / "r.png")
    result = upscaled(model, plan_pairs(tmp_path / "l.png", tmp_path / "r.png", tmp_path / "o"), tmp_path / "o", layout="pair", tile=16)
    assert result.state == "done", result.error
    with Image.open(tmp_path / "o/left/l.png") as left, Image.open(tmp_path / "o/right/r.png") as right:
        assert left.mode == "LA" and right.mode == "I;16"
        want = bicubic(torch.from_numpy(alpha)[None, None].float(), 2)[0, 0].round().clamp(0, 255).byte().numpy()
        assert np.array_equal(np.asarray(left)[..., 1], want)


def test_folders_go_on_where_they_were_and_half_a_pair_is_made_again(model, views, tmp_path):
    for side, view in zip(("L", "R"), views, strict=True):
        (tmp_path / side / "deep").mkdir(parents=True)
        for name in ("a.png", "deep/b.png"):
            Image.fromarray(view[: 30 if "b" in name else 20]).save(tmp_path / side / name)
    jobs = plan_pairs(tmp_path / "L", tmp_path / "R", tmp_path / "out")
    assert [(j.source.name, j.right.name, j.pixels) for j in jobs] == [("a.png", "a.png", 4800), ("b.png", "b.png", 7200)]

    def again(**options):
        return [r.state for r in run(Upscaler(model, 2, layout="pair", **options), jobs, out=tmp_path / "out")]

    assert again() == ["done", "done"]
    first = (tmp_path / "out/right/a.png").read_bytes()
    assert again() == ["kept", "kept"]
    (tmp_path / "out/right/a.png").unlink()  # as a kill between the two renames leaves it
    assert again() == ["done", "kept"] and (tmp_path / "out/right/a.png").read_bytes() == first
    Image.fromarray(views[1][1:21]).save(tmp_path / "R/a.png")  # another right view
    assert again() == ["done", "kept"]
    assert not list((tmp_path / "out").rglob(f"*{upscaling.PARTIAL}"))
    lines = [json.loads(line)["file"] for line in (tmp_path / "out" / upscaling.LEDGER).read_text().splitlines()]
    assert {"left/a.png", "right/a.png", "left/deep/b.png", "right/deep/b.png"} == set(lines)


def test_a_failure_between_the_views_leaves_neither(model, views, tmp_path, monkeypatch):
    for name, view in zip("lr", views, strict=True):
        Image.fromarray(view).save(tmp_path / f"{name}.png")
    closed = []
    real = upscaling.media.Sink.close

    def close(sink):
        if closed:
            raise OSError("disk full")
        closed.append(sink)
        real(sink)

    monkeypatch.setattr(upscaling.media.Sink, "close", close)
    result = upscaled(model, plan_pairs(tmp_path / "l.png", tmp_path / "r.png", tmp_path / "o"), tmp_path / "o", layout="pair")
    assert result.state == "failed" and "disk full" in result.error
    assert [p.name for p in (tmp_path / "o").rglob("*") if p.is_file()] == []


def test_little_memory_takes_fewer_rows_and_tells_the_error(model, views, tmp_path):
    for name, view in zip("lr", views, strict=True):
        Image.fromarray(view).save(tmp_path / f"{name}.png")
    result = upscaled(model, plan_pairs(tmp_path / "l.png", tmp_path / "r.png", tmp_path / "o"), tmp_path / "o", layout="pair", budget=1.0)
    assert result.state == "done" and not any("strips" in note for note in result.notes), "16 rows around are more than it needs"
    deep = tmp_path / "deep.safetensors"
    torch.manual_seed(0)
    weights.save(NAFSSR(2, width=6, blocks=4, window=(15, 21), layer_scale=0.5), deep, half=False)
    want = whole(str(deep), *views)
    told = {}
    for overlap in (2, 48):
        out = tmp_path / f"o{overlap}"
        result = upscaled(str(deep), plan_pairs(tmp_path / "l.png", tmp_path / "r.png", out), out, layout="pair", tile=16, overlap=overlap)
        told[overlap] = [note for note in result.notes if "strips" in note]
        same = np.array_equal(np.asarray(Image.open(out / "left/l.png")), want[0])
        assert same is (overlap == 48)
    assert told[48] == [] and "4 strips with 2 rows around them instead of 41 differ by at most" in told[2][0]


def test_a_net_of_single_pictures_goes_through_the_command_too(views, tmp_path, monkeypatch):
    """Its reach is larger than a tile: the picture goes whole where that fits."""
    single = NAFSSR(2, width=4, blocks=2, fusion=(), window=(45, 135), layer_scale=0.3)
    weights.save(single, tmp_path / "single.safetensors", half=False)
    Image.fromarray(views[0]).save(tmp_path / "a.png")
    upscaler = Upscaler(str(tmp_path / "single.safetensors"), 2, budget=1e7)
    tiles, real = [], upscaling.strips
    monkeypatch.setattr(upscaling, "strips", lambda *given, **named: tiles.append(named["tile"]) or real(*given, **named))
    jobs, _, _ = plan([tmp_path / "a.png"], tmp_path / "b.png")
    assert run(upscaler, jobs, out=None)[0].state == "done" and tiles == [120]
    x = torch.from_numpy(views[0]).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        want = weights.load(tmp_path / "single.safetensors")(x)[0].mul(255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    assert np.array_equal(np.asarray(Image.open(tmp_path / "b.png")), want)


def test_warnings_reach_the_result(model, tmp_path):
    from probatum.superres.stereo import motorcycle

    left, right, _ = (view.permute(1, 2, 0).numpy() if view.ndim == 3 else view for view in motorcycle())
    for name, view in (("l", left[100:200]), ("low", right[97:197]), ("r", right[100:200])):
        Image.fromarray(view).save(tmp_path / f"{name}.png")
    for first, second, words in (("l", "low", "3.0 rows apart"), ("r", "l", "seem to be swapped"), ("l", "r", None)):
        out = tmp_path / (first + second)
        result = upscaled(model, plan_pairs(tmp_path / f"{first}.png", tmp_path / f"{second}.png", out), out, layout="pair")
        assert len(result.notes) == (words is not None) and all(words in note for note in result.notes), result.notes


def test_the_command(model, views, tmp_path):
    from typer.testing import CliRunner

    from probatum.cli import app

    for name, view in zip("lr", views, strict=True):
        Image.fromarray(view).save(tmp_path / f"{name}.png")
    base = ["upscale", str(tmp_path / "l.png"), "-o", str(tmp_path / "o"), "--model", model, "--scale", "2"]
    done = CliRunner().invoke(app(), [*base, "--right", str(tmp_path / "r.png"), "--json"])
    assert done.exit_code == 0 and os.path.isfile(tmp_path / "o/right/r.png"), done.output
    for more, words in (
        ([], "stereo needs two views"), (["--layout", "lr"], "--layout must be sbs or tb"),
        (["--right", "r.png", "--duplicate"], "--right and --duplicate exclude each other"),
    ):  # fmt: skip
        refused = CliRunner().invoke(app(), [*base, *more])
        assert refused.exit_code != 0
        assert words in refused.output + str(refused.exception), refused.output


def test_bad_input_of_pairs(model, views, tmp_path):
    paths = {name: tmp_path / f"{name}.png" for name in ("l", "r", "thin", "odd")}
    for name, view in zip(("l", "r"), views, strict=True):
        Image.fromarray(view).save(paths[name])
    Image.fromarray(views[0][:, :1]).save(paths["thin"])
    Image.fromarray(views[0][:, :77]).save(paths["odd"])
    for left, right, words in (
        ("l", "odd", "views must be of one size, got 120 x 51 on the left and 77 x 51"),
        ("thin", "thin2", "2 pixels wide or more"),
    ):
        if right == "thin2":
            Image.fromarray(views[1][:, :1]).save(tmp_path / "thin2.png")
        result = upscaled(model, plan_pairs(paths[left], tmp_path / f"{right}.png", tmp_path / "o"), tmp_path / "o", layout="pair")
        assert result.state == "failed" and words in result.error, result.error
    result = upscaled(model, plan([paths["odd"]], tmp_path / "b.png")[0], None, True, layout="sbs")
    assert "even number of pixels, it is 77 wide" in result.error
    for arguments, words in (
        ((paths["l"], tmp_path, tmp_path / "o"), "--right must be a file"), ((paths["l"], paths["l"], tmp_path / "o"), "left view itself"),
        ((paths["l"], paths["r"], tmp_path / "o.png"), "with --right it is a folder"),
    ):  # fmt: skip
        with pytest.raises(ProbatumError, match=words):
            plan_pairs(*arguments)
    (tmp_path / "L").mkdir(), (tmp_path / "R").mkdir()
    for place in ("L/a.png", "L/b.png", "R/a.png"):
        Image.fromarray(views[0]).save(tmp_path / place)
    with pytest.raises(ProbatumError, match=r"b\.png has no other view"):
        plan_pairs(tmp_path / "L", tmp_path / "R", tmp_path / "o")
    for options, words in (
        ({}, "stereo needs two views: --right FILE.*--duplicate"), ({"layout": "rl"}, "layout must be one of"), ({"layout": "pair", "tile": 3}, "--tile must be"),
        ({"layout": "pair", "overlap": -1}, "--overlap is the rows"),
    ):  # fmt: skip
        with pytest.raises(ProbatumError, match=words):
            Upscaler(model, 2, **options)
    with pytest.raises(ProbatumError, match="need a net of pairs"):
        Upscaler("carn", 2, layout="pair")
    pair = Upscaler(model, 2, layout="pair")
    rgba = np.dstack([views[0], views[0][..., 0]])
    for left, words in (
        (rgba, "take alpha off first"),
        (np.dstack(views), "give the two views apart"),
        (views[0].astype(float), "uint8 or uint16"),
    ):
        with pytest.raises(ProbatumError, match=words):
            upscale_pair(pair, left, views[1])


def test_bad_input_of_the_network():
    for options, message in (
        ({"scale": 1}, "scale must be an integer of 2 or more, got 1"), ({"width": 0}, "width and blocks must be positive"),
        ({"fusion": (0, 3)}, "fusion must name blocks from 0 to 2"), ({"window": (5,)}, "window must be two positive numbers"),
        ({"drop_path": 1.0}, "drop_path must be from 0 to below 1, got 1.0"), ({"dropout": -0.1}, "dropout must be"),
    ):  # fmt: skip
        with pytest.raises(ProbatumError, match=message):
            NAFSSR(**{**SMALL, **options})
    with pytest.raises(ProbatumError, match="preset must be one of T, S, B, L, got 'M'"):
        NAFSSR.preset("M")
    net = NAFSSR(**SMALL)
    for x, message in (
        (torch.rand(1, 3, 4, 4), "got one view .*stereo needs two"), (torch.rand(1, 8, 4, 4), "take alpha off first"),
        (torch.rand(6, 4, 4), r"x must be \(N, 6, H, W\)"), (torch.rand(1, 6, 4, 1), "2 pixels wide or more"),
        (torch.zeros(1, 6, 4, 4, dtype=torch.uint8), "floats in"),
    ):  # fmt: skip
        with pytest.raises(ProbatumError, match=message):
            net(x)
    with pytest.raises(ProbatumError, match="this net has heads for 2"):
        net(torch.rand(1, 6, 4, 4), 3)
    with pytest.raises(ProbatumError, match="block must be one with stereo attention"):
        NAFSSR(2, width=4, blocks=3, fusion=(1,)).disparity(torch.rand(1, 6, 4, 4), 0)
