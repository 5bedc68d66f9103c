"""Group quantisation against a plain loop, its fixed point, what is stored, and layers that run from it."""

import pytest
import torch
from torch import nn

from probatum import ProbatumError
from probatum.nn.quantised import PackedEmbedding, PackedLinear, dequantise, quantise


def matrix(rows=7, columns=150, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.05


@pytest.mark.parametrize(("bits", "top"), [(4, 7), (8, 127)])
def test_absmax_is_the_loop_over_groups(bits, top):
    weight, group = matrix(), 64
    codes, scales = quantise(weight, bits, group)
    found = dequantise(codes, scales, 150)
    want = torch.zeros_like(weight)
    for row in range(7):
        for at in range(0, 150, group):
            part = weight[row, at : at + group]
            scale = (part.abs().max() / top).half().float()
            want[row, at : at + group] = (part / scale).round().clamp(-top, top) * scale
    torch.testing.assert_close(found, want, rtol=1e-6, atol=0)
    assert codes.dtype == (torch.uint8 if bits == 4 else torch.int8) and codes.shape == (7, 192 * bits // 8)


@pytest.mark.parametrize("clip", ["absmax", "mse"])
@pytest.mark.parametrize("bits", [4, 8])
def test_what_is_dequantised_has_the_same_codes_again(bits, clip):
    codes, scales = quantise(matrix(), bits, 32, clip)
    again, same = quantise(dequantise(codes, scales, 150), bits, 32, clip)
    assert torch.equal(codes, again) and torch.equal(scales, same)


def test_clipping_by_error_is_never_worse_and_better_on_heavy_tails():
    weight = torch.distributions.StudentT(3.0).sample((16, 128)) * 0.05
    errors = [(dequantise(*quantise(weight, 4, 64, clip), 128) - weight).square().sum() for clip in ("absmax", "mse")]
    assert errors[1] < 0.95 * errors[0]


def test_skipped_entries_hold_nothing_and_free_the_range():
    weight = matrix()
    weight[2, 5], weight[6, 149] = 3.0, -4.0
    skip = torch.tensor([2 * 150 + 5, 6 * 150 + 149])
    free = dequantise(*quantise(weight, skip=skip), 150)
    assert free[2, 5] == 0 and free[6, 149] == 0
    rest = weight.clone()
    rest[2, 5] = rest[6, 149] = 0
    assert (free - rest).abs().max() < 0.02 < (dequantise(*quantise(weight), 150) - weight).abs().max()


def test_stored_bits_are_those_of_the_tensors():
    packed = PackedLinear.of(nn.Linear(384, 1536))
    assert packed.nbytes == 1536 * 384 // 2 + 2 * 1536 * 6 == round(384 * 1536 * 4.25 / 8)
    assert packed.bits_per_weight == 4.25 and PackedLinear.of(nn.Linear(384, 16), bits=8).bits_per_weight == 8.25
    assert sum(t.numel() * t.element_size() for t in packed.buffers()) == packed.nbytes
    assert [name for name, _ in packed.named_parameters()] == ["bias"]


def test_the_layer_is_a_linear_of_the_dequantised_weight_and_passes_gradients(monkeypatch):
    from probatum.nn import quantised

    layer = nn.Linear(10, 23)
    packed = PackedLinear.of(layer, group=4)
    x = torch.randn(2, 3, 10, requires_grad=True)
    want = nn.functional.linear(x, packed.dense(), layer.bias)
    assert torch.equal(packed(x), want)
    monkeypatch.setattr(quantised, "TILE", 50)  # five rows at a time
    torch.testing.assert_close(packed(x), want, rtol=1e-5, atol=1e-6)
    (ours,) = torch.autograd.grad(packed(x).square().sum(), x)
    (theirs,) = torch.autograd.grad(want.square().sum(), x)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_the_table_gives_the_rows_and_half_precision_keeps_the_scales():
    table = nn.Embedding(11, 20)
    packed = PackedEmbedding.of(table, bits=8, group=10)
    ids = torch.tensor([[3, 0], [10, 3]])
    assert torch.equal(packed(ids), packed.dense()[ids])
    assert (packed(ids) - table(ids)).abs().max() < 0.02
    layer = PackedLinear.of(nn.Linear(20, 4))
    before = layer.dense()
    assert torch.equal(layer.bfloat16().dense(), before) and layer(torch.randn(2, 20).bfloat16()).dtype == torch.bfloat16
    other = PackedLinear.of(nn.Linear(20, 4)).bfloat16()
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.dense(), before)


def test_zeros_stay_zeros():
    assert torch.equal(dequantise(*quantise(torch.zeros(3, 8), clip="mse"), 8), torch.zeros(3, 8))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bits": 3}, "bits must be 4 or 8, got 3"),
        ({"group": 7}, "group must be an even number"),
        ({"clip": "max"}, "clip must be absmax or mse"),
        ({"weight": torch.zeros(3)}, "weight must be a floating-point matrix"),
        ({"weight": torch.zeros(3, 4, dtype=torch.int8)}, "weight must be a floating-point matrix, got torch.int8"),
        ({"weight": torch.tensor([[1.0, torch.nan]])}, "not finite"),
        ({"weight": torch.tensor([[1.0, 1e9]])}, "beyond half precision"),
    ],
)
def test_bad_input_is_told(change, said):
    with pytest.raises(ProbatumError, match=said):
        quantise(**{"weight": matrix(), **change})


def test_a_table_that_rewrites_itself_is_refused():
    with pytest.raises(ProbatumError, match="max_norm"):
        PackedEmbedding.of(nn.Embedding(4, 8, max_norm=1.0))
