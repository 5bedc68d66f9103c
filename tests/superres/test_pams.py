"""PAMS against published counts, gradients in closed form, and integers computed another way."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from probatum import ProbatumError
from probatum.errors import NotHere
from probatum.superres import (
    CARN,
    EDSR,
    RDN,
    ActQuantiser,
    attention_transfer,
    calibrate,
    export_onnx,
    exporting,
    finetune,
    load_packed,
    packed,
    quantise,
    save_packed,
    weights,
)  # fmt: skip
from probatum.superres.cfsr import CFSR
from probatum.superres.fitting import Fit
from probatum.superres.pams import quantised_convolutions, quantisers
from probatum.superres.patches import Patches, Photo
from probatum.superres.residual import PlainResidual

CONTRACT = {
    "ActQuantiser": lambda: (ActQuantiser(4, alpha=0.5), torch.rand(1, 3, 8, 9)),
    "EDSR": lambda: (EDSR(2, width=8, blocks=2), torch.rand(1, 3, 8, 9)),
    "RDN": lambda: (RDN(2, layout=(2, 2, 4), width=8), torch.rand(1, 3, 8, 9)),
}
NETS = {
    "edsr": lambda: EDSR(2, width=8, blocks=2),
    "edsr large": lambda: EDSR(3, width=8, blocks=2, residual_scale=0.1, rgb_range=255),
    "plain": lambda: awake(PlainResidual((2, 3), width=8, blocks=2, skip=True)),
    "rdn": lambda: RDN(4, layout=(2, 3, 4), width=8),
    "carn": lambda: CARN(2, width=8),
    "cfsr": lambda: CFSR(2, width=8, depths=(1, 1), kernel=5),
}


def awake(net):
    """With the last convolution not at zero, as after training."""
    torch.nn.init.normal_(net.exit.weight, std=0.02)
    return net


def trainable(net):
    return sum(p.numel() for name, p in net.named_parameters() if p.requires_grad and not name.endswith("alpha"))


def small(name="edsr", bits=8, **options):
    """A quantised and calibrated net, and the scale to run it at."""
    torch.manual_seed(0)
    net = NETS[name]()
    scale = net.scales[0]
    return calibrate(quantise(net, bits, **options), [torch.rand(2, 3, 12, 13)], scale=scale).eval(), scale


@pytest.mark.parametrize(
    ("build", "parameters", "inside", "alphas", "ratios"),
    [
        (lambda: EDSR(2), 1_369_859, 1_179_648, 48, (2.824, 4.057)),
        (lambda: EDSR(3), 1_554_499, 1_179_648, 48, (2.321, 2.976)),
        (lambda: EDSR(4), 1_517_571, 1_179_648, 48, (2.398, 3.127)),
        (lambda: EDSR(4, width=256, blocks=32, residual_scale=0.1), 43_089_923, 37_748_736, 96, (2.916, 4.283)),
        (lambda: RDN(4, layout="B"), 22_271_107, 21_925_888, 161, (3.822, 7.217)),
    ],
)  # fmt: skip
def test_counts_and_sizes_are_the_released_ones(build, parameters, inside, alphas, ratios):
    with torch.device("meta"):
        net = build()
    assert trainable(net) == parameters
    for bits, ratio in zip((8, 4), ratios, strict=True):
        small = quantise(net, bits)
        assert trainable(small) == parameters and len(quantisers(small)) == alphas
        assert sum(conv.weight.numel() for _, conv in quantised_convolutions(small)) == inside
        assert round(4 * parameters / packed.packed_bytes(small), 3) == ratio


def test_keys_of_edsr_and_rdn_are_the_authors():
    keys = set(EDSR(4, width=8, blocks=2).state_dict())
    assert {"sub_mean.weight", "add_mean.bias", "head.0.weight", "body.0.body.2.bias", "body.2.weight", "tail.0.2.weight"} <= keys
    assert "tail.1.bias" in keys and len(keys) == 4 + 2 + 8 + 2 + 4 + 2
    keys = set(RDN(4, layout=(2, 2, 4), width=8).state_dict())
    assert {"SFENet2.bias", "RDBs.1.convs.1.conv.0.weight", "RDBs.0.LFF.weight", "GFF.1.bias", "UPNet.4.weight"} <= keys
    assert len(keys) == 2 * (2 + 2 * 3 + 2 + 3)


def test_keys_of_a_quantised_edsr_are_the_authors():
    """The second convolution moves from body.2 to body.3, the middle quantiser is there under two names."""
    net, _ = small()
    got = {name.removeprefix("body.0.") for name in net.state_dict() if name.startswith("body.0.")}
    convs = {f"body.{i}.{kind}" for i in (0, 3) for kind in ("weight", "bias")}
    assert got == convs | {"body.2.alpha"} | {f"quant_act{i}.alpha" for i in (1, 2, 3)}
    assert net.body[0].body[2] is net.body[0].quant_act2
    outside = {n for n in EDSR(2, width=8, blocks=2).state_dict() if ".body." not in n}
    assert outside == {n for n in net.state_dict() if not n.startswith(("body.0.", "body.1."))}


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_levels_are_few_symmetric_and_stay(bits):
    alpha, q = 0.7, 2 ** (bits - 1) - 1
    quantiser = ActQuantiser(bits, alpha=alpha)
    x = torch.linspace(-2, 2, 4001)
    y = quantiser(x).detach()
    assert len(y.unique()) == 2 * q + 1
    assert torch.equal(quantiser(y).detach(), y)
    inside = x.abs() <= alpha
    assert (x - y)[inside].abs().max() <= alpha / (2 * q) + 1e-6
    assert torch.equal(y, -quantiser(-x).detach())


def test_rounding_is_half_to_even():
    y = ActQuantiser(3, alpha=3.0)(torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5]))
    assert y.tolist() == [0, 2, 2, 0, -2]


def test_gradients_of_alpha_are_the_closed_form():
    """Measured with the authors' code at alpha 1 and 4 bits; the paper has none inside."""
    expected = {-3.0: -1, -0.9: 0.0429, -0.31: 0.0243, 0.2: -0.0571, 0.55: 0.0214, 2.0: 1}
    for x, slope in expected.items():
        for gradient in ("release", "paper"):
            quantiser, value = ActQuantiser(4, alpha=1.0, gradient=gradient), torch.tensor([x], requires_grad=True)
            quantiser(value).sum().backward()
            inside = abs(x) <= 1
            wanted = 0.0 if inside and gradient == "paper" else slope
            assert quantiser.alpha.grad.item() == pytest.approx(wanted, abs=5e-5)
            assert value.grad.item() == float(inside)


def test_gradients_equal_those_of_the_operations_spelled_out():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 7, dtype=torch.float64, requires_grad=True)
    quantiser = ActQuantiser(3, alpha=0.8).double()
    g = torch.randn_like(x)
    ours = torch.autograd.grad(quantiser(x), (x, quantiser.alpha), g)
    alpha, q = quantiser.alpha, 3
    z = torch.max(torch.min(x, alpha), -alpha) * q / alpha
    theirs = torch.autograd.grad((z + (z.round() - z).detach()) * alpha / q, (x, alpha), g)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", NETS)
def test_many_bits_equal_the_float_net(name):
    torch.manual_seed(0)
    net, x = NETS[name](), torch.rand(2, 3, 12, 13)
    scale = net.scales[0]
    wide = calibrate(quantise(net, 24), [x], "max", scale=scale).eval()
    with torch.no_grad():
        torch.testing.assert_close(wide(x, scale), net(x, scale), rtol=0, atol=2e-5)
        coarse = calibrate(quantise(net, 2), [x], scale=scale).eval()
        assert (coarse(x, scale) - net(x, scale)).abs().max() > 1e-4


def test_32_bits_equal_float():
    x = torch.randn(1000)
    torch.testing.assert_close(ActQuantiser(32, alpha=5.0)(x).detach(), x, rtol=1e-6, atol=1e-6)


def test_weights_take_15_levels_at_4_bits():
    net, _ = small(bits=4)
    for _, conv in quantised_convolutions(net):
        levels = conv.levels()
        assert levels.abs().max() == 7 and levels.dtype == torch.int8
        m = conv.weight.abs().max().item() + 1e-8
        torch.testing.assert_close(levels.float(), (conv.weight * 7 / m).round())


def test_the_first_quantiser_feeds_the_convolution_or_not():
    net, _ = small(bits=3)
    release, _ = small(bits=3, quantise_first="release")
    for block, first in ((net.body[0], "paper"), (release.body[0], "release")):
        x = torch.randn(1, 8, 5, 6)
        seen = []
        block.body[0].register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        with torch.no_grad():
            y = block(x)
            clean = block.quant_act1(x)
            assert torch.equal(seen[0], clean if first == "paper" else x)
            assert torch.equal(y, clean + block.quant_act3(block.body(seen[0])))


def test_the_factor_comes_before_the_third_quantiser():
    net, _ = small("edsr large")
    block, x = net.body[0], torch.randn(1, 8, 5, 6)
    with torch.no_grad():
        clean = block.quant_act1(x)
        assert torch.equal(block(x), clean + block.quant_act3(block.body(clean) * 0.1))


def test_calibration_is_what_passes():
    torch.manual_seed(0)
    net = EDSR(2, width=8, blocks=1)
    batches = [torch.rand(3, 3, 9, 8), torch.rand(2, 3, 9, 8)]
    with torch.no_grad():
        tops = [net.head(net.sub_mean(x)).abs().amax((1, 2, 3)) for x in batches]
        every = torch.cat([net.head(net.sub_mean(x)).abs().flatten() for x in batches])
    wanted = {
        "mean": torch.stack([t.mean() for t in tops]).mean(), "last": tops[1].mean(), "max": torch.cat(tops).max(),
    }  # fmt: skip
    for how, value in wanted.items():
        alpha = calibrate(quantise(net, 8), batches, how).body[0].quant_act1.alpha.item()
        assert alpha == pytest.approx(value.item(), rel=1e-6)
    alpha = calibrate(quantise(net, 8), [batches[0]], "percentile", percentile=90).body[0].quant_act1.alpha.item()
    first = every[: batches[0].shape[0] * 8 * 72]
    assert (first <= alpha).float().mean().item() == pytest.approx(0.9, abs=0.001)


def test_a_step_far_below_zero_is_undone():
    quantiser = ActQuantiser(4, alpha=1.0).train()
    quantiser.alpha.data.fill_(-3)
    assert torch.isfinite(quantiser(torch.randn(9))).all() and quantiser.alpha.item() == pytest.approx(1e-6)


def test_attention_of_equal_features_is_equal_and_sizes_do_not_matter_to_the_sum():
    torch.manual_seed(0)
    a, b = torch.randn(2, 5, 6, 7), torch.randn(2, 3, 6, 7)
    assert attention_transfer(a, 3 * a).item() == pytest.approx(0, abs=1e-12)
    maps = [f.square().mean(1).flatten(1) for f in (a, b)]
    by_hand = sum(((m / m.norm() - n / n.norm()) ** 2).sum() for m, n in zip(*maps, strict=True)) / 2
    assert attention_transfer(a, b).item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert attention_transfer(a, b, "mean").item() == pytest.approx(by_hand.item() / 42, rel=1e-5)
    # a map repeated fourfold has the same shape: the sum stays, the mean falls to a quarter
    wide = [f.repeat(1, 1, 2, 2) for f in (a, b)]
    assert attention_transfer(*wide).item() == pytest.approx(attention_transfer(a, b).item(), rel=1e-5)


def patches(seed=0):
    rng = np.random.default_rng(0)
    photo = Photo.of("p", rng.integers(0, 256, (40, 44, 3), dtype=np.uint8))
    return Patches([photo], [2], size=8, batch=2, generator=torch.Generator().manual_seed(seed))


def test_finetuning_trains_weights_and_alphas_by_their_own_rates():
    net, _ = small(bits=4)
    before = copy.deepcopy(net.state_dict())
    after = finetune(net, patches(), steps=3, lr=1e-5, alpha_lr=1e-2, warm_up=1)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values(), strict=True)), "the net given is kept"
    moved = {n: (before[n] - after.state_dict()[n]).abs().max().item() for n in before if "mean" not in n}
    alphas = [v for n, v in moved.items() if n.endswith("alpha")]
    others = [v for n, v in moved.items() if not n.endswith("alpha")]
    assert 1e-3 < max(alphas) <= 3.1e-2 and 0 < max(others) <= 3.1e-5
    fixed = copy.deepcopy(net)
    for quantiser in quantisers(fixed):
        quantiser.alpha.requires_grad_(False)
    after = finetune(fixed, patches(), steps=2, lr=1e-3, warm_up=1)
    assert all(torch.equal(a.alpha, b.alpha) for a, b in zip(quantisers(after), quantisers(net), strict=True))
    assert not torch.equal(after.body[0].body[0].weight, net.body[0].body[0].weight)


def test_a_teacher_changes_the_training_and_is_not_changed():
    net, _ = small(bits=3)
    torch.manual_seed(0)
    teacher = NETS["edsr"]()
    before = copy.deepcopy(teacher.state_dict())
    alone, taught = (finetune(net, patches(), steps=3, lr=1e-3, teacher=t, warm_up=1) for t in (None, teacher))
    assert type(taught) is EDSR and not torch.equal(alone.head[0].weight, taught.head[0].weight)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), teacher.state_dict().values(), strict=True))


def test_factors_leave_fit_as_it_was():
    torch.manual_seed(0)
    net = NETS["edsr"]()
    one = Fit(copy.deepcopy(net), patches(), steps=3, lr=1e-3).advance().result()
    by_name = Fit(copy.deepcopy(net), patches(), steps=3, lr=1e-3, factor=lambda name: 1.0 if "bias" in name else 1 + 1e-12)
    two = by_name.advance().result()
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_two_numbers_go_in_a_byte_and_come_out():
    levels = torch.arange(-7, 8, dtype=torch.int8).view(3, 5)
    bytes_ = packed.pack(levels)
    assert len(bytes_) == 8 and bytes_.dtype == torch.uint8 and torch.equal(packed.unpack(bytes_, (3, 5)), levels)
    assert bytes_[0] == (-7 + 8) | (-6 + 8) << 4


@pytest.mark.parametrize("bits", [8, 5, 4, 2])
@pytest.mark.parametrize("name", NETS)
def test_a_packed_file_gives_the_same_bits(name, bits, tmp_path):
    net, scale = small(name, bits)
    net = net.to(memory_format=torch.channels_last)
    again = load_packed(save_packed(net, tmp_path / "net.safetensors"))
    x = torch.rand(1, 3, 9, 11)
    with torch.no_grad():
        assert torch.equal(again(x, scale), net(x, scale))
    # and once more, from what was loaded
    third = weights.load(save_packed(again, tmp_path / "net2.safetensors"))
    assert (tmp_path / "net.safetensors").read_bytes() == (tmp_path / "net2.safetensors").read_bytes()
    assert third.quantisation["bits"] == bits


def test_a_packed_file_is_as_small_as_it_says(tmp_path):
    torch.manual_seed(0)
    for bits in (8, 4):
        net = calibrate(quantise(EDSR(2, width=32, blocks=8), bits), [torch.rand(1, 3, 8, 8)])
        size = save_packed(net, tmp_path / f"{bits}.safetensors").stat().st_size
        counted = packed.packed_bytes(net)
        assert counted <= size < counted + 16_384, "a header of names, alphas, steps and the mean shift come on top"
    weights.save(EDSR(2, width=32, blocks=8), tmp_path / "float.safetensors", half=False)
    whole = (tmp_path / "float.safetensors").stat().st_size
    assert whole / (tmp_path / "8.safetensors").stat().st_size > 2 and whole / (tmp_path / "4.safetensors").stat().st_size > 2.7


def test_training_goes_on_from_a_packed_file(tmp_path):
    net, _ = small(bits=4)
    loaded = load_packed(save_packed(net, tmp_path / "a.safetensors"))
    after = finetune(loaded, patches(), steps=3, lr=1e-2, warm_up=1)
    conv = after.body[0].body[0]
    assert conv.fixed is None and conv.levels().abs().max() == 7


def test_integers_give_what_rounded_floats_give():
    """The convolution of levels is exact in float64 and in int32; scaled, it is the fake-quantised one to 1e-5."""
    net, _ = small(bits=8)
    block = net.body[0]
    conv, act = block.body[3], block.quant_act2
    x = torch.rand(1, 8, 9, 10)
    with torch.no_grad():
        fake = conv(act(x))
        levels = (x.clamp(-act.alpha, act.alpha) / act.step()).round()
        total = F.conv2d(levels.double(), conv.levels().double(), padding=1)
        assert torch.equal(total, total.round()) and total.abs().max() < 2**31
        scaled = total.float() * (act.step() * conv.step()) + conv.bias.view(1, -1, 1, 1)
    torch.testing.assert_close(scaled, fake, rtol=1e-5, atol=1e-5)


def test_integer_convolution_of_onnxruntime_is_the_fake_one(tmp_path):
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    net, _ = small(bits=8)
    conv, act = net.body[0].body[3], net.body[0].quant_act2
    x = torch.randn(1, 8, 9, 10)
    make = onnx.helper
    graph = make.make_graph(
        [make.make_node("ConvInteger", ["x", "w", "zero"], ["y"], pads=[1, 1, 1, 1])], "one",
        [make.make_tensor_value_info("x", onnx.TensorProto.UINT8, [1, 8, 9, 10])],
        [make.make_tensor_value_info("y", onnx.TensorProto.INT32, None)],
        [onnx.numpy_helper.from_array(conv.levels().numpy(), "w"), onnx.numpy_helper.from_array(np.uint8(128), "zero")],
    )  # fmt: skip
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 21)], ir_version=10)
    levels = (x.clamp(-act.alpha.detach(), act.alpha.detach()) / act.step().detach()).round()
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (total,) = session.run(None, {"x": (levels + 128).to(torch.uint8).numpy()})
    with torch.no_grad():
        scaled = torch.from_numpy(total).float() * (act.step() * conv.step()) + conv.bias.view(1, -1, 1, 1)
        torch.testing.assert_close(scaled, conv(act(x)), rtol=1e-5, atol=1e-5)


def needs_onnx():
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name)


@pytest.mark.parametrize("name", NETS)
def test_onnx_equals_torch_at_any_size(name, tmp_path):
    needs_onnx()
    torch.manual_seed(0)
    net = NETS[name]()
    scale = net.scales[-1]
    if name == "cfsr":
        net = net.merged()
    run = weights.load(export_onnx(net, tmp_path / "net.onnx", scale=scale))
    assert run.scales == (scale,) and run.radius == net.radius and [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
    for shape in ((1, 3, 7, 11), (3, 3, 20, 5)):
        x = torch.rand(shape)
        with torch.no_grad():
            torch.testing.assert_close(run(x), net(x, scale), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "bits"), [("edsr", 8), ("edsr", 4), ("plain", 8), ("rdn", 8)])
def test_integers_run_and_stay_near(name, bits, tmp_path):
    """Beside the net of rounded floats: rounding may fall the other way between two levels, never more."""
    needs_onnx()
    if reason := exporting.no_int8():
        pytest.skip(reason)
    import onnx
    import onnxruntime

    net, scale = small(name, bits)
    x = torch.rand(1, 3, 17, 14)
    path = export_onnx(net, tmp_path / "net.onnx", scale=scale)
    run = weights.load(path)
    with torch.no_grad():
        assert (run(x) - net(x, scale)).square().mean() ** 0.5 < 0.5 / (2 ** (bits - 1) - 1)
    floats = {t.name for t in onnx.load(path).graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) == 4}
    assert not any(f"{conv}.weight" in kept for conv, _ in quantised_convolutions(net) for kept in floats), "integers instead, not beside"
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "seen.onnx"), 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "seen.onnx").graph.node]
    # onnxruntime joins a convolution with the quantiser after it: twice two in the blocks, none where outputs are concatenated first
    assert kinds.count("QLinearConv") == (0 if name == "rdn" else 4), kinds


def test_an_onnx_file_enlarges_pictures_by_tiles(tmp_path):
    needs_onnx()
    from probatum.superres.upscaling import Upscaler, upscale_array

    torch.manual_seed(0)
    path = export_onnx(NETS["edsr"](), tmp_path / "net.onnx")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    whole, tiles = (upscale_array(Upscaler(str(path), 2, tile=tile), pixels) for tile in ("auto", 16))
    assert whole.shape == (80, 60, 3) and np.abs(whole.astype(int) - tiles).max() <= 1
    rounded, _ = small()
    packed_path = save_packed(rounded, tmp_path / "net.safetensors")
    whole, tiles = (upscale_array(Upscaler(str(packed_path), 2, tile=tile), pixels) for tile in ("auto", 16))
    assert np.abs(whole.astype(int) - tiles).max() <= 2
    with pytest.raises(ProbatumError, match="run on the CPU, got device 'cuda'"):
        weights.load(path, device="cuda")


def test_files_of_the_authors_code_load(tmp_path):
    torch.manual_seed(0)
    net = EDSR(4, width=8, blocks=3, rgb_range=255)
    torch.save({"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, tmp_path / "edsr.pt")
    x = torch.rand(1, 3, 6, 7)
    with torch.no_grad():
        torch.testing.assert_close(weights.load(tmp_path / "edsr.pt")(x), net(x), rtol=1e-4, atol=1e-5)
    dense = RDN(3, layout=(2, 2, 4), width=8, rgb_range=255)
    torch.save(dense.state_dict(), tmp_path / "rdn.pt")
    assert weights.load(tmp_path / "rdn.pt").config() == dense.config()
    quantised = calibrate(quantise(net, 8, quantise_first="release"), [torch.rand(1, 3, 9, 9)]).eval()
    # as their training leaves it: a maximum beside each alpha, and alphas of both shapes
    state = dict(quantised.state_dict())
    for name in [n for n in state if n.endswith("alpha")]:
        state[name.replace("alpha", "max_val")] = state[name].squeeze()
    state["body.0.quant_act1.alpha"] = state["body.0.quant_act1.alpha"].squeeze()
    torch.save({"epoch": torch.tensor(3), "state_dict": state}, tmp_path / "pams.pt")
    with pytest.raises(ProbatumError, match="does not say its bits"):
        weights.load(tmp_path / "pams.pt")
    again = weights.load(tmp_path / "pams.pt", bits=8)
    with torch.no_grad():
        torch.testing.assert_close(again(x), quantised(x), rtol=1e-4, atol=1e-5)


def test_rgb_range_is_only_a_unit():
    """Weights that take white for 255, biases and mean 255 times as large: the same net."""
    torch.manual_seed(0)
    one, large = EDSR(2, width=8, blocks=2), EDSR(2, width=8, blocks=2, rgb_range=255)
    large.load_state_dict({k: v * 255 if k.endswith("bias") else v for k, v in one.state_dict().items()})
    x = torch.rand(1, 3, 6, 7)
    torch.testing.assert_close(large(x), one(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("build", [
    lambda s: EDSR(s, width=4, blocks=2), lambda s: RDN(s, layout=(2, 2, 3), width=4), lambda s: PlainResidual(s, width=4, blocks=2),
])  # fmt: skip
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_nothing_farther_than_the_radius_is_seen_and_the_radius_is(build, scale):
    net = build(scale).double()
    for p in net.parameters():
        p.data.abs_()
    x = torch.rand(1, 3, 49, 5, dtype=torch.float64) + 1
    base, changed = net(x), x.clone()
    changed[..., 24, :] += 1
    rows = (net(changed) != base).any(3).any(1)[0].nonzero().flatten()
    assert 24 - rows.min() // scale == net.radius and rows.max() // scale - 24 == net.radius


def test_edsr_equals_the_plain_net_of_the_family():
    torch.manual_seed(0)
    plain, net = PlainResidual(4, width=8, blocks=2, skip=True), EDSR(4, width=8, blocks=2, skip=True)
    awake(plain)
    names = {"entry.": "head.0.", "trunk.": "body.", "heads.up4.body.": "tail.0.", "exit.": "tail.1."}
    state = dict(net.state_dict())
    for name, value in plain.state_dict().items():
        for old, new in names.items():
            if name.startswith(old):
                state[new + name.removeprefix(old)] = value
    net.load_state_dict(state)
    x = torch.rand(1, 3, 6, 7)
    torch.testing.assert_close(net(x), plain(x), rtol=1e-5, atol=1e-6)


def test_chosen_names_alone_are_quantised():
    torch.manual_seed(0)
    net = quantise(EDSR(2, width=8, blocks=2), 4, ["body.1", "tail.0.0"])
    assert [name for name, _ in quantised_convolutions(net)] == ["body.1.body.0", "body.1.body.3", "tail.0.0"]
    other = quantise(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()), 4, ["0"])
    assert len(quantisers(other)) == 1


def test_bad_input_is_told(tmp_path, monkeypatch):
    net = NETS["edsr"]()
    for bits in (1, 0, 33, 4.0, True):
        with pytest.raises(ProbatumError, match="bits must be a whole number from 2 to 32"):
            quantise(net, bits)
    x = torch.rand(1, 3, 8, 8)
    with pytest.raises(ProbatumError, match="alpha is still its default 10"):
        quantise(net, 8)(x)
    with pytest.raises(ProbatumError, match="blocks are not recognised; give the module names"):
        quantise(torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3)), 8)
    with pytest.raises(ProbatumError, match=r"no module 'bodi'.*did you mean body"):
        quantise(net, 8, ["bodi"])
    with pytest.raises(ProbatumError, match=r"nothing to quantise in body.0.body.1"):
        quantise(net, 8, ["body.0.body.1"])
    done, _ = small()
    with pytest.raises(ProbatumError, match="quantised already"):
        quantise(done, 4)
    with pytest.raises(ProbatumError, match=r"values up to 255: divide pixels of 0..255 by 255"):
        calibrate(quantise(net, 8), [x / x.max() * 255])
    with pytest.raises(ProbatumError, match=r"floats in .0, 1., got torch.uint8"):
        calibrate(quantise(net, 8), [(x * 255).to(torch.uint8)])
    with pytest.raises(ProbatumError, match="batches is empty"):
        calibrate(quantise(net, 8), [])
    with pytest.raises(ProbatumError, match="no quantisers"):
        calibrate(net, [x])
    with pytest.raises(ProbatumError, match="how must be mean, last, max or percentile"):
        calibrate(quantise(net, 8), [x], "median")
    with pytest.raises(ProbatumError, match="quantised and calibrated before"):
        finetune(quantise(net, 8), patches(), steps=1)
    with pytest.raises(ProbatumError, match="not quantised: quantise"):
        save_packed(net, tmp_path / "a.safetensors")
    with pytest.raises(ProbatumError, match="holds 2 to 8 bits, this net has 9"):
        save_packed(small(bits=9)[0], tmp_path / "a.safetensors")
    with pytest.raises(ProbatumError, match="not calibrated"):
        save_packed(quantise(net, 8), tmp_path / "a.safetensors")
    with pytest.raises(ProbatumError, match="is quantised: save_packed"):
        weights.save(done, tmp_path / "a.safetensors")
    weights.save(net, tmp_path / "float.safetensors")
    with pytest.raises(ProbatumError, match="no packed file"):
        load_packed(tmp_path / "float.safetensors")
    with pytest.raises(ProbatumError, match=r"must end with \.onnx"):
        export_onnx(net, tmp_path / "a.bin")
    with pytest.raises(ProbatumError, match="8 bits or fewer, this net has 9"):
        export_onnx(small(bits=9)[0], tmp_path / "a.onnx")
    with pytest.raises(ProbatumError, match="scale must be of 2, 3, 4"):
        EDSR(5)
    with pytest.raises(ProbatumError, match="layout must be A, B"):
        RDN(2, layout="C")
    (tmp_path / "bad.onnx").write_text("no")
    needs_onnx()
    with pytest.raises(ProbatumError, match="alpha is still its default"):
        export_onnx(quantise(net, 8), tmp_path / "a.onnx")
    assert not (tmp_path / "a.onnx").exists()
    with pytest.raises(ProbatumError, match="cannot be read as ONNX"):
        weights.load(tmp_path / "bad.onnx")


def test_int8_on_a_machine_without_its_instructions_is_refused(tmp_path, monkeypatch):
    needs_onnx()
    path = export_onnx(small()[0], tmp_path / "net.onnx")
    monkeypatch.setattr(exporting, "no_int8", lambda: "this CPU has no VNNI instructions (avx512_vnni or avx_vnni)")
    with pytest.raises(NotHere, match=r"int8: this CPU has no VNNI.*packed file or the float net"):
        weights.load(path)(torch.rand(1, 3, 8, 8))
    # a float file has no such need
    with torch.no_grad():
        weights.load(export_onnx(NETS["edsr"](), tmp_path / "float.onnx"))(torch.rand(1, 3, 8, 8))


def test_what_the_cpu_says(monkeypatch):
    monkeypatch.setattr(exporting.platform, "machine", lambda: "aarch64")
    assert exporting.no_int8() is None
    monkeypatch.setattr(exporting.platform, "machine", lambda: "x86_64")
    for flags, fine in (("avx2 avx512_vnni", True), ("avx2 avx_vnni", True), ("avx2 fma", False)):
        monkeypatch.setattr(exporting.Path, "read_text", lambda *args, flags=flags, **options: flags)
        assert (exporting.no_int8() is None) == fine


def test_the_claim_measures_what_it_did_not_see():
    from probatum.claims.superres import pams as claims
    from probatum.data.photos import NAMES

    sets = [set(claims.TRAIN), set(claims.VALIDATION), set(claims.TEST)]
    assert set.union(*sets) == set(NAMES) and sum(map(len, sets)) == len(NAMES)
    assert {len(grid) for grid in claims.GRIDS.values()} == {12} and set(claims.CHOSEN) == set(claims.GRIDS)
    seeds = range(claims.bits.first_seed, claims.bits.first_seed + claims.bits.budgets["quick"])
    assert 0 not in {seed % claims.TEACHERS for seed in seeds}, "net 0 found the settings"
