"""Neighbourhood attention held to masked full attention, to closed forms, and to memory that does not grow with the window."""

import math

import pytest
import torch

from probatum import ProbatumError
from probatum.evidence.process import isolated, peak_memory, reset_peak_memory
from probatum.nn import neighbourhood
from probatum.nn.neighbourhood import neighbourhood_attention, shift2d, window_start


def window(length, kernel, at):
    """The kernel positions nearest to `at`, by sorting: no clamping; of two equally near ones the one that keeps the window whole."""
    ranges = [range(start, start + kernel) for start in range(length - kernel + 1)]
    return min(ranges, key=lambda r: sum(abs(p - at) for p in r))


def masked_full(q, k, v, bias, kernel):
    """Full attention over all pixels with everything outside the window masked; windows and offsets by definition."""
    height, width = q.shape[2:4]
    rows, columns = ([window(n, kernel, i) for i in range(n)] for n in (height, width))
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    y, x = y.flatten().tolist(), x.flatten().tolist()
    mask = torch.full((height * width, height * width), -math.inf, dtype=q.dtype)
    dy, dx = (torch.zeros_like(mask, dtype=torch.long) for _ in range(2))
    for i in range(height * width):
        for j in range(height * width):
            if y[j] in rows[y[i]] and x[j] in columns[x[i]]:
                mask[i, j], dy[i, j], dx[i, j] = 0, y[j] - y[i] + kernel - 1, x[j] - x[i] + kernel - 1
    scores = q.flatten(2, 3) @ k.flatten(2, 3).transpose(2, 3) / math.sqrt(q.shape[-1]) + mask
    if bias is not None:
        scores = scores + bias[:, dy, dx]
    return (scores.softmax(-1) @ v.flatten(2, 3)).unflatten(2, (height, width))


def drawn(n, heads, height, width, d, kernel, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    qkv = [torch.randn(n, heads, height, width, d, generator=g, dtype=dtype).requires_grad_() for _ in range(3)]
    return *qkv, torch.randn(heads, 2 * kernel - 1, 2 * kernel - 1, generator=g, dtype=dtype).requires_grad_()


def test_windows_are_the_nearest_pixels():
    for length, kernel in ((7, 3), (9, 5), (5, 5), (6, 1)):
        want = [window(length, kernel, i).start for i in range(length)]
        assert window_start(length, kernel).tolist() == want


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("with_bias", [True, False])
def test_equals_masked_full_attention_with_gradients(kernel, with_bias):
    """12 x 15: the last tile of a row overlaps the one before, and gradients must not count twice."""
    *qkv, bias = drawn(2, 3, 12, 15, 4, kernel)
    inputs = [*qkv, bias] if with_bias else qkv
    outs = [f(*qkv, bias if with_bias else None, kernel) for f in (neighbourhood_attention, masked_full)]
    assert torch.allclose(*outs, atol=1e-5)
    weights = torch.randn(outs[0].shape, generator=torch.Generator().manual_seed(1))
    for ours, full in zip(*(torch.autograd.grad(out, inputs, weights) for out in outs), strict=True):
        assert torch.allclose(ours, full, atol=1e-5, rtol=1e-5)


def test_in_float64_to_rounding_and_by_finite_differences():
    q, k, v, bias = drawn(1, 2, 5, 6, 3, 3, torch.float64)
    assert torch.allclose(neighbourhood_attention(q, k, v, bias, 3), masked_full(q, k, v, bias, 3), atol=1e-12)
    assert torch.autograd.gradcheck(lambda *x: neighbourhood_attention(*x, 3), (q, k, v, bias))


def test_pieces_do_not_matter(monkeypatch):
    q, k, v, bias = drawn(1, 2, 13, 11, 4, 5)
    one = neighbourhood_attention(q, k, v, bias, 5)
    grads = torch.autograd.grad(one.square().sum(), (q, k, v, bias))
    monkeypatch.setattr(neighbourhood, "BUDGET", 1)
    other = neighbourhood_attention(q, k, v, bias, 5)
    assert torch.allclose(one, other, atol=1e-6)
    for a, b in zip(grads, torch.autograd.grad(other.square().sum(), (q, k, v, bias)), strict=True):
        assert torch.allclose(a, b, atol=1e-5, rtol=1e-5)


def test_a_window_as_large_as_the_image_is_global_attention():
    q, k, v, _ = drawn(2, 2, 7, 7, 3, 7)
    whole = torch.nn.functional.scaled_dot_product_attention(*(x.flatten(2, 3) for x in (q, k, v))).unflatten(2, (7, 7))
    assert torch.allclose(neighbourhood_attention(q, k, v, None, 7), whole, atol=1e-5)


def test_without_scores_it_is_a_box_filter():
    v = torch.randn(1, 1, 9, 8, 2, dtype=torch.float64)
    out = neighbourhood_attention(torch.zeros_like(v), torch.zeros_like(v), v, torch.zeros(1, 9, 9, dtype=torch.float64), 5)
    for y, x in ((4, 4), (0, 0), (8, 3), (1, 7)):
        rows, columns = window(9, 5, y), window(8, 5, x)
        mean = v[0, 0, rows.start : rows.stop, columns.start : columns.stop].mean((0, 1))
        assert torch.allclose(out[0, 0, y, x], mean, atol=1e-12)


def test_a_constant_stays_and_shifts_commute_inside():
    q, k, v, bias = drawn(1, 2, 12, 14, 4, 5)
    still = neighbourhood_attention(q, k, torch.full_like(v, 0.7), bias, 5)
    assert torch.allclose(still, torch.full_like(v, 0.7), atol=1e-6)
    out = neighbourhood_attention(q, k, v, bias, 5)
    moved = neighbourhood_attention(*(x.roll((1, 2), (2, 3)) for x in (q, k, v)), bias, 5)
    assert torch.allclose(moved[:, :, 3:-2, 4:-2], out.roll((1, 2), (2, 3))[:, :, 3:-2, 4:-2], atol=1e-5)


def test_half_precision_is_computed_in_float32():
    q, k, v, bias = drawn(1, 2, 9, 9, 4, 5)
    low = [x.detach().bfloat16() for x in (q, k, v)]
    exact = neighbourhood_attention(*(x.float() for x in low), bias, 5)
    got = neighbourhood_attention(*low, bias, 5)
    assert got.dtype == torch.bfloat16 and torch.equal(got, exact.bfloat16())


def test_after_inference_mode_gradients_work():
    """Plans are kept between calls; one that is made in inference mode must serve training too."""
    q, k, v, bias = drawn(1, 1, 6, 10, 2, 3)
    with torch.inference_mode():
        quiet = neighbourhood_attention(q, k, v, bias, 3)
    out = neighbourhood_attention(q, k, v, bias, 3)
    out.sum().backward()
    assert torch.equal(quiet, out) and q.grad is not None and bias.grad is not None


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_flex_attention_agrees():
    """Its uncompiled form runs on a CPU, forward only."""
    for kernel in (3, 5):
        q, k, v, bias = (x.detach() for x in drawn(2, 2, 6, 9, 4, kernel))
        got = neighbourhood._flex(q, k, v, bias, kernel, 0.5, compiled=False)
        assert torch.allclose(got, neighbourhood_attention(q, k, v, bias, kernel), atol=1e-5)
        got = neighbourhood._flex(q, k, v, None, kernel, 0.5, compiled=False)
        assert torch.allclose(got, neighbourhood_attention(q, k, v, None, kernel), atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_both_ways_agree_with_the_cpu():
    q, k, v, bias = drawn(1, 2, 16, 24, 16, 5)
    want = neighbourhood_attention(q, k, v, bias, 5)
    for backend in ("tiles", "flex"):
        inputs = [x.detach().cuda().requires_grad_() for x in (q, k, v, bias)]
        out = neighbourhood_attention(*inputs, 5, backend=backend)
        assert torch.allclose(out.cpu(), want, atol=1e-3)
        grads = [torch.autograd.grad(o.square().sum(), i, retain_graph=True) for o, i in ((out, inputs), (want, (q, k, v, bias)))]
        assert all(torch.allclose(a.cpu(), b, atol=1e-2, rtol=1e-2) for a, b in zip(*grads, strict=True))


def held(kernel):
    """Extra bytes of forward and backward beyond what one call at kernel 3 left behind."""
    torch.set_num_threads(1)

    def call(kernel):
        q, k, v = (torch.randn(1, 96, 96, 3 * 16).view(1, 96, 96, 3, 16).permute(0, 3, 1, 2, 4).requires_grad_() for _ in range(3))
        bias = torch.zeros(3, 2 * kernel - 1, 2 * kernel - 1, requires_grad=True)
        neighbourhood_attention(q, k, v, bias, kernel).sum().backward()

    call(3)
    reset_peak_memory()
    before = peak_memory()
    call(kernel)
    return peak_memory() - before


def test_memory_is_a_fraction_of_the_copies():
    """At k = 13, one of q, k, v is 1.7 MiB and its copies would be 285 MiB."""
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).parent))
    try:
        import test_neighbourhood as module

        extra = isolated(module.held, 13).value
    finally:
        sys.path.pop(0)
    assert extra < 13**2 * 96 * 96 * 48 * 4 / 5


def test_bad_input():
    q, k, v, bias = drawn(1, 2, 6, 8, 3, 5)
    for call, message in (
        (lambda: neighbourhood_attention(q, k, v, bias, 4), "kernel must be odd, got 4"),
        (lambda: neighbourhood_attention(q, k, v, None, 7), "kernel 7 is larger than the image of 6 x 8: pad it to 7"),
        (lambda: neighbourhood_attention(q, k, v[:, :1], bias, 5), r"q, k and v must be floats of one shape .*\(1, 1, 6, 8, 3\)"),
        (lambda: neighbourhood_attention(q, k, v.double(), bias, 5), "of one shape .* and dtype, got .*float64"),
        (lambda: neighbourhood_attention(q, k, v, bias[:, :5, :5], 5), r"bias must be .* = \(2, 9, 9\), got \(2, 5, 5\)"),
        (lambda: neighbourhood_attention(q, k, v, bias, 5, backend="natten"), "backend must be tiles or flex, got 'natten'"),
        (lambda: neighbourhood_attention(q, k, v, bias, 5, backend="flex"), "backend 'flex' is for CUDA devices, got tensors on cpu"),
        (lambda: shift2d(torch.rand(1, 4, 3, 3)), r"five channels or more, got \(1, 4, 3, 3\)"),
        (lambda: shift2d(torch.rand(1, 5, 3, 3), "wrap"), "fill must be zero or edge, got 'wrap'"),
    ):  # fmt: skip
        with pytest.raises(ProbatumError, match=message):
            call()


def test_shift_moves_five_groups():
    x = torch.arange(2 * 7 * 4 * 6, dtype=torch.float64).view(2, 7, 4, 6)
    out = shift2d(x)
    groups = [range(2), range(2, 4), range(4, 5), range(5, 6), range(6, 7)]  # sizes differ by at most one
    for group, (dy, dx) in zip(groups, ((0, -1), (0, 1), (-1, 0), (1, 0), (0, 0)), strict=True):
        want = torch.zeros_like(x[:, list(group)])
        for y in range(4):
            for c in range(6):
                if 0 <= y - dy < 4 and 0 <= c - dx < 6:
                    want[:, :, y, c] = x[:, list(group), y - dy, c - dx]
        assert torch.equal(out[:, list(group)], want)
    edge = shift2d(x, "edge")
    assert torch.equal(edge[:, 0, :, -1], x[:, 0, :, -1]) and torch.equal(edge[:, 5, 0], x[:, 5, 0])
    assert torch.equal(edge[:, :, 1:-1, 1:-1], out[:, :, 1:-1, 1:-1])
    # left, then right, is the identity away from the border
    back = shift2d(torch.cat([out[:, 2:4] * 0, out[:, :2], out[:, 4:]], 1))[:, 2:4]
    assert torch.equal(back[..., 1:], x[:, :2, :, 1:])
