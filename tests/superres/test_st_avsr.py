"""ST-AVSR held to its published counts, to plain versions of its parts, and to what a video stream promises."""

import math

import pytest
import torch
from torch.nn import functional as F

from probatum import ProbatumError
from probatum.superres import weights
from probatum.superres.arbitrary import ArbitraryUpsampler, KernelNet, kernels_for, parse_scale, phases, target_size
from probatum.superres.motion import DeformableConv, is_cut, lucas_kanade, warp
from probatum.superres.prior import FixedPrior, VGGPrior
from probatum.superres.st_avsr import STAVSR, VideoStream

CONTRACT = {"STAVSR": lambda: (STAVSR(2.5, width=8, blocks=1, groups=2), torch.rand(1, 3, 3, 7, 9))}


def count(net):
    return sum(p.numel() for p in net.parameters() if p.requires_grad)


def small(**options):
    """A net whose every part does something: offsets too, which start at zero."""
    torch.manual_seed(0)
    net = STAVSR(**{"width": 8, "blocks": 2, "groups": 2, **options}).eval()
    torch.nn.init.normal_(net.predict.dyn_agg.conv_offset_mask.weight, std=0.3)
    return net


def clip(frames=5, height=9, width=11, seed=0):
    return torch.rand(1, frames, 3, height, width, generator=torch.Generator().manual_seed(seed))


def test_published_parameter_counts():
    with torch.device("meta"):
        net, plain = STAVSR(prior="vgg"), STAVSR(prior=None)
    parts = (net.forward_rnn, net.forward_rnn2, net.d, net.kernel_predict, net.upsample, net.predict, net.multi_prior_fusion)
    assert [count(part) for part in parts] == [1_183_360, 1_183_360, 221_376, 9_424, 5_891, 1_125_402, 94_272]
    assert count(net) == 3_823_085 and sum(p.numel() for p in net.adists.parameters()) == 14_714_688
    assert count(net) - count(plain) == 94_272 + 2 * 36_864


def plain_kernels(net, source, size):
    """Every target pixel by itself: coordinates in (-1, 1), the nearest source centre by grid_sample, encodings put together."""
    coords = [-1 + (2 * torch.arange(n).float() + 1) / n for n in (*source, *size)]
    low = torch.stack(torch.meshgrid(*coords[:2], indexing="ij"))[None]
    place = torch.stack(torch.meshgrid(*coords[2:], indexing="ij"), -1)[None]
    near = F.grid_sample(low, place.flip(-1), mode="nearest", align_corners=False)[0].permute(1, 2, 0)
    shape = torch.tensor(source).float()
    position, cell = (place[0] - near) * shape, (2 / torch.tensor(size) * shape).expand(*size, 2)
    tap = torch.stack(torch.meshgrid(torch.arange(3.0) - 1, torch.arange(3.0) - 1, indexing="ij"), -1).view(9, 2)

    def encode(encoder, v):
        angle = v[..., None] * (2 ** torch.linspace(0, 10, 16) - 1)
        return F.linear(torch.cat([angle.sin().flatten(-2), angle.cos().flatten(-2)], -1), encoder.proj.weight, encoder.proj.bias)

    parts = [encode(net.pb_encoder1, cell)[:, :, None].expand(*size, 9, 32), encode(net.pb_encoder2, tap).expand(*size, 9, 32),
             encode(net.pb_encoder3, position)[:, :, None].expand(*size, 9, 32)]  # fmt: skip
    return net.imnets.net(torch.cat(parts, -1)).permute(3, 2, 0, 1)


def plain_upsampler(net, u, kernels, x, size):
    coords = [-1 + (2 * torch.arange(n).float() + 1) / n for n in size]
    place = torch.stack(torch.meshgrid(*coords, indexing="ij"), -1)[None].flip(-1)
    columns = F.unfold(u, 3, padding=1).view(len(u), -1, *u.shape[2:])
    seen = F.grid_sample(columns, place, align_corners=False) * kernels.reshape(1, -1, *size)
    y = net.imnets(F.fold(seen.flatten(2), size, 3, padding=1))
    return y + F.grid_sample(x, place, padding_mode="border", align_corners=False)


@pytest.mark.parametrize("size", [(15, 21), (20, 14), (13, 9), (5, 7)])  # x3; x4 and x2; two odd factors; x1
def test_kernels_and_upsampler_equal_the_plain_ones(size):
    torch.manual_seed(0)
    net, up, u, x = KernelNet(8), ArbitraryUpsampler(8), torch.randn(1, 8, 5, 7), torch.rand(1, 3, 5, 7)
    found = kernels_for(net, (5, 7), size)
    want = plain_kernels(net, (5, 7), size)
    # frequencies up to 1023 times omega 30 magnify the rounding of coordinates
    torch.testing.assert_close(found.rows(0, size[0]), want, rtol=0, atol=2e-2)
    got = up(u, found, x)
    torch.testing.assert_close(got, plain_upsampler(up, u, found.rows(0, size[0]), x, size), rtol=1e-5, atol=1e-5)
    assert tuple(got.shape[2:]) == size


def test_kernels_repeat_with_the_period_of_the_factor():
    for length, out, distinct in ((6, 18, 3), (8, 12, 3), (7, 7, 1), (10, 25, 5), (5, 13, 13)):
        values, index = phases(length, out)
        assert len(values) == distinct and len(index) == out and values.abs().max() <= 1
    net = KernelNet(4)
    table = kernels_for(net, (6, 5), (18, 20))
    assert tuple(table.table.shape) == (4, 9, 3, 4)
    rows = table.rows(0, 18)
    assert torch.equal(rows[:, :, :3], rows[:, :, 3:6]) and torch.equal(rows[..., :4], rows[..., 12:16])
    lazy = kernels_for(net, (6, 5), (18, 20), most=0)
    assert lazy.table is None
    torch.testing.assert_close(lazy.rows(5, 11), rows[:, :, 5:11], rtol=0, atol=1e-5)


def test_a_tie_between_two_source_pixels_goes_to_the_even_one():
    values, index = phases(2, 7)  # x3.5: the middle target pixel is equally far from both
    assert values[index[3]] == 1.0 and values[index[0]] == pytest.approx(-5 / 7)


@pytest.mark.parametrize("rows", [1, 2, 5, 7])
def test_strips_of_rows_give_the_whole_picture(rows):
    torch.manual_seed(0)
    up, u, x = ArbitraryUpsampler(8), torch.randn(2, 8, 6, 5), torch.rand(2, 3, 6, 5)
    for size in ((16, 12), (24, 20)):
        kernels = kernels_for(KernelNet(8), (6, 5), size)
        torch.testing.assert_close(up(u, kernels, x, rows=rows), up(u, kernels, x, rows=99), rtol=1e-5, atol=1e-6)


def test_zero_features_give_bilinear_and_a_constant():
    torch.manual_seed(0)
    up, x = ArbitraryUpsampler(8), torch.rand(1, 3, 6, 5)
    off = up(torch.zeros(1, 8, 6, 5), kernels_for(KernelNet(8), (6, 5), (15, 20)), x)
    off = (off - F.interpolate(x, size=(15, 20), mode="bilinear"))[0, :, 1:-1, 1:-1].flatten(1)
    assert (off.amax(1) - off.amin(1)).max() < 1e-6 and off.abs().max() > 1e-3


def plain_video(net, frames, size):
    """The whole sequence at once: all features first, then all outputs."""
    t = frames.shape[1]
    x = [*frames.unbind(1), frames[:, t - 2], frames[:, t - 3]]
    prior = [net.multi_prior_fusion(net.adists(v)) for v in x] if net.prior else [v[:, :0] for v in x]
    h, carried = [], torch.zeros(len(frames), net.width, *frames.shape[3:])
    for i, frame in enumerate(x):
        if i:
            carried = warp(h[-1], net.flow(frame, x[i - 1]))
        h.append(net.forward_rnn(frame, prior[i], carried))
    out = []
    for i in range(t):
        g = net.predict(h[i], [h[i + 1], h[i + 2]], [net.flow(x[i], x[i + j]) for j in (1, 2)])
        u = net.d.convs(torch.cat([net.forward_rnn2(x[i], prior[i], g), h[i]], 1))
        out.append(net.upsample(u, net.kernels(*frames.shape[3:], size=size), x[i]))
    return torch.stack(out, 1)


@pytest.mark.parametrize("prior", ["fixed", None])
def test_streaming_equals_the_whole_sequence(prior):
    net, frames = small(prior=prior), clip()
    with torch.no_grad():
        stream = VideoStream(net, (2, 2.5))
        ready = [stream.push(frame) for frame in frames.unbind(1)]
        assert [len(r) for r in ready] == [0, 0, 1, 1, 1]
        got = torch.stack([*(y for r in ready for y in r), *stream.finish()], 1)
        torch.testing.assert_close(got, plain_video(net, frames, (18, 28)), rtol=1e-5, atol=1e-6)
        assert torch.equal(net(frames, (2, 2.5)), got)
        assert not stream.finish()


def test_short_clips_bounce_and_clips_in_a_batch_are_apart():
    net = small()
    with torch.no_grad():
        assert [net(clip(t), 2).shape[1] for t in (1, 2, 3)] == [1, 2, 3]
        a, b = clip(3, seed=1), clip(3, seed=2)
        torch.testing.assert_close(net(torch.cat([a, b]), 1.5), torch.cat([net(a, 1.5), net(b, 1.5)]), rtol=1e-5, atol=1e-6)


def test_a_static_clip_settles():
    net = small()
    with torch.no_grad():
        out = net(clip(1, 8, 8).expand(1, 40, 3, 8, 8), 2)[0]
    assert (out[20:] - out[20]).abs().max() < 1e-4 < (out[0] - out[20]).abs().max()


def test_a_cut_starts_anew():
    net, a, b = small(), clip(4, seed=1) * 0.2, 1 - 0.5 * clip(4, seed=2)
    with torch.no_grad():
        stream = VideoStream(net, 2, cuts=True)
        got = [y for frame in torch.cat([a, b], 1).unbind(1) for y in stream.push(frame)] + stream.finish()
        assert torch.equal(torch.stack(got, 1), torch.cat([net(a, 2), net(b, 2)], 1))
    ramp = torch.linspace(0, 0.5, 16).expand(1, 3, 16, 16)
    assert not is_cut(ramp, ramp + 0.3) and is_cut(ramp, 1 - ramp)  # a flash; another picture


def test_scale_one_and_sizes():
    net, frames = small(), clip(3)
    with torch.no_grad():
        assert net(frames, 1).shape == frames.shape
        assert net(frames, size=(20, 23)).shape[3:] == (20, 23) and net(frames).shape[3:] == (36, 44)
    assert target_size(9, 11, (2, 2.5)) == (18, 28) and parse_scale("2.5,3") == (2.5, 3.0) and parse_scale("4") == (4.0, 4.0)


def test_warp_by_whole_pixels_moves_and_blanks():
    x = torch.rand(2, 3, 7, 9)
    flow = torch.tensor([2.0, -1.0]).view(1, 2, 1, 1).expand(2, 2, 7, 9)
    got = warp(x, flow)
    torch.testing.assert_close(got[:, :, 1:, :-2], x[:, :, :-1, 2:], rtol=1e-5, atol=1e-5)
    assert not got[:, :, 0].any() and not got[..., -2:].any()


def plain_deformable(net, x, by, flow):
    """Tap by tap, pixel by pixel."""
    out, (_, c, h, w), per = net.conv_offset_mask(by), x.shape, x.shape[1] // net.groups
    columns = torch.zeros(c, 9, h, w)
    for g in range(net.groups):
        for k in range(9):
            for i in range(h):
                for j in range(w):
                    dy, dx = out[0, 2 * (9 * g + k), i, j] + flow[0, 1, i, j], out[0, 2 * (9 * g + k) + 1, i, j] + flow[0, 0, i, j]
                    y, z = float(i + k // 3 - 1 + dy), float(j + k % 3 - 1 + dx)
                    mask = out[0, 18 * net.groups + 9 * g + k, i, j].sigmoid()
                    for a in (math.floor(y), math.floor(y) + 1):
                        for b in (math.floor(z), math.floor(z) + 1):
                            if 0 <= a < h and 0 <= b < w:
                                share = (1 - abs(y - a)) * (1 - abs(z - b)) * mask
                                columns[g * per : (g + 1) * per, k, i, j] += share * x[0, g * per : (g + 1) * per, a, b]
    return torch.einsum("ock,ckhw->ohw", net.weight.flatten(2), columns)[None] + net.bias.view(1, -1, 1, 1)


def test_the_deformable_convolution_equals_brute_force():
    torch.manual_seed(0)
    net = DeformableConv(4, groups=2)
    torch.nn.init.normal_(net.conv_offset_mask.weight, std=0.3)
    x, by, flow = torch.randn(1, 4, 5, 6), torch.randn(1, 4, 5, 6), torch.randn(1, 2, 5, 6)
    with torch.no_grad():
        torch.testing.assert_close(net(x, by, flow), plain_deformable(net, x, by, flow), rtol=1e-4, atol=1e-5)


def test_without_offsets_it_is_half_a_convolution():
    net, x = DeformableConv(8), torch.randn(2, 8, 5, 6)
    got = net(x, torch.randn(2, 8, 5, 6), torch.zeros(2, 2, 5, 6))
    want = F.conv2d(x, net.weight, padding=1) / 2 + net.bias.view(1, -1, 1, 1)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_flow_finds_a_shift_and_nothing_in_nothing():
    from probatum.data.photos import photograph

    photo = torch.from_numpy(photograph("coffee")[100:180, 100:200].copy()).permute(2, 0, 1)[None].float() / 255
    flow = lucas_kanade(photo[..., 4:76, 4:92], photo[..., 2:74, 7:95])  # what is at (i, j) of the first is at (i + 2, j - 3) of the second
    inner = flow[0, :, 10:-10, 10:-10]
    assert (inner - torch.tensor([-3.0, 2.0]).view(2, 1, 1)).abs().median() < 0.1
    assert not lucas_kanade(torch.full((1, 3, 8, 8), 0.5), torch.full((1, 3, 8, 8), 0.5)).any()


def test_priors_have_the_size_of_the_frame_and_their_channels():
    x = torch.rand(1, 3, 9, 11)
    assert tuple(FixedPrior()(x).shape) == (1, 15, 9, 11)
    grey = FixedPrior()(torch.full((1, 3, 9, 11), 0.3))
    assert grey[:, ::3].max() < 2e-3 and not grey[:, 1::3].abs().gt(1e-6).any()
    torch.manual_seed(0)
    net = VGGPrior()
    assert not any(p.requires_grad for p in net.parameters())
    assert tuple(net(x).shape) == (1, 1472, 9, 11)
    pool = net.stage2[0]
    torch.testing.assert_close(pool(torch.full((1, 64, 6, 6), -2.0))[..., 1:, 1:], torch.full((1, 64, 2, 2), 2.0))


def test_vgg_weights_of_a_file(tmp_path):
    other = VGGPrior()
    state = {f"features.{key.partition('.')[2]}": value for key, value in other.state_dict().items() if key.endswith(("weight", "bias"))}
    torch.save({**state, "classifier.0.bias": torch.zeros(3)}, tmp_path / "vgg.pth")
    net = STAVSR(width=8, blocks=0, prior="vgg").load_vgg(tmp_path / "vgg.pth")
    assert torch.equal(net.adists.stage5[3].weight, other.stage5[3].weight)
    torch.save({"features.0.weight": torch.zeros(3)}, tmp_path / "bad.pth")
    for path, text in (("bad.pth", "does not hold"), ("none.pth", "no such file")):
        with pytest.raises(ProbatumError, match=text):
            net.load_vgg(tmp_path / path)
    with pytest.raises(ProbatumError, match="prior='vgg'"):
        small().load_vgg(tmp_path / "vgg.pth")


@pytest.mark.parametrize("prior", ["fixed", None, "vgg"])
def test_files_are_recognised_by_their_keys(tmp_path, prior):
    net = small(prior=prior)
    state = {**net.state_dict(), "pwcnet.netExtractor.netOne.0.weight": torch.zeros(2)}  # the authors' files have it
    torch.save({"params": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "authors.pth")
    weights.save(net, tmp_path / "ours.safetensors", half=False)
    frames = clip(3)
    with torch.no_grad():
        for name in ("authors.pth", "ours.safetensors"):
            found = weights.load(tmp_path / name, "st_avsr")
            assert found.config()["prior"] == prior and found.config()["groups"] == 2
            torch.testing.assert_close(found(frames, 2), net(frames, 2), rtol=1e-5, atol=1e-6)
    other = weights.load(tmp_path / "ours.safetensors")
    assert isinstance(other, STAVSR)


@pytest.mark.parametrize("scale", ["4x", 0.5, math.nan, math.inf, 0, -2, True, (2, 3, 4), "2,", None, [], 100])
def test_bad_factors(scale):
    with pytest.raises(ProbatumError, match="scale must be"):
        parse_scale(scale)


def test_bad_input():
    net = small()
    for make, text in (
        (lambda: STAVSR(width=2), "width must be 4"), (lambda: STAVSR(width=12, groups=8), "groups must divide"),
        (lambda: STAVSR(prior="dists"), "prior must be"), (lambda: STAVSR(blocks=-1), "blocks must be"),
        (lambda: net(torch.rand(1, 3, 8, 8), 2), "frames must be"), (lambda: net(torch.rand(1, 3, 3, 3, 8), 2), "frames must be"),
        (lambda: net(torch.zeros(1, 3, 3, 8, 8, dtype=torch.uint8), 2), "frames must be"),
        (lambda: net(clip(), size=(8, 30)), "size must be at least"),
        (lambda: net.upsample(torch.zeros(1, 8, 5, 5), net.kernels(6, 6, 2), torch.zeros(1, 3, 5, 5)), "u must be 6 x 6"),
    ):  # fmt: skip
        with pytest.raises(ProbatumError, match=text):
            make()
    stream = VideoStream(net, 2)
    stream.push(torch.rand(1, 3, 8, 8))
    with pytest.raises(ProbatumError, match="frames must be of one size"):
        stream.push(torch.rand(1, 3, 8, 9))


def test_large_and_small_pictures_are_sampled_alike(monkeypatch):
    from probatum.superres import arbitrary

    torch.manual_seed(0)
    net, up, u, x = KernelNet(8), ArbitraryUpsampler(8), torch.randn(1, 8, 6, 5), torch.rand(1, 3, 6, 5)
    kernels = kernels_for(net, (6, 5), (15, 13))
    assert kernels.table.requires_grad
    dense = up(u, kernels, x)
    monkeypatch.setattr(arbitrary, "DENSE", 0)
    with torch.no_grad():
        torch.testing.assert_close(up(u, kernels_for(net, (6, 5), (15, 13)), x), dense.detach(), rtol=1e-5, atol=1e-6)


def test_patches_are_pairs_of_the_same_place():
    from probatum.superres.clips import ClipPatches, shrink_to

    ramp = (torch.arange(96)[:, None] + torch.arange(96)).clamp(0, 255).to(torch.uint8).expand(6, 3, 96, 96)
    patches = ClipPatches([ramp], size=24, frames=3, batch=2, generator=torch.Generator().manual_seed(0))
    assert min(patches.pairs) == 2 and max(patches.pairs) == 4 and len(patches.pairs) == 49
    low, high = patches.draw(65 / 24)
    assert low.shape == (2, 3, 3, 24, 24) and high.shape == (2, 3, 3, 65, 65)
    for a, b in zip(low, high, strict=True):
        assert torch.equal(shrink_to((b * 255).round().byte(), (24, 24)).float() / 255, a)
    with pytest.raises(ProbatumError, match="no clip has 9 frames"):
        ClipPatches([ramp], frames=9, generator=torch.Generator())
