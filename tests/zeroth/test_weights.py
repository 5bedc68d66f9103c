"""Moving weights: streamed and kept z give the same bits, restoring is exact where it is promised."""

import pytest
import torch

from probatum import ProbatumError
from probatum.zeroth import weights as module
from probatum.zeroth.masks import Bits
from probatum.zeroth.noise import BLOCK, Noise
from probatum.zeroth.weights import Weights, flat

SHAPES = [(3, 5), (BLOCK + 7,), (2, BLOCK), (1,)]
KINDS = ("gaussian", "rademacher")
UPDATES = ([-3e-3] * 4, [-3e-3, 2e-4, 0.0, -1.0])


def tensors(dtype=torch.float32, scale=0.05):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(shape, generator=generator) * scale).to(dtype) for shape in SHAPES]


def made(kind="gaussian", exact="lattice", keep=True, some=None, eps=1e-3, threads=1):
    some = tensors() if some is None else some
    weights = Weights("abcd", some, Noise(5, kind, threads=threads), eps, exact)
    weights.kept = weights.kept and keep
    if exact == "lattice":
        weights.snap()
    return weights


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("exact", ["lattice", "off"])
@pytest.mark.parametrize("kind", KINDS)
def test_kept_and_streamed_z_and_threads_give_the_same_bits(kind, exact, update):
    ends = []
    for keep, threads in ((True, 1), (False, 1), (False, 2)):
        weights = made(kind, exact, keep, threads=threads)
        for step in range(2):
            weights.begin(step, 0)
            weights.move(1)
            weights.move(-2)
            weights.finish(1, update)
        ends.append(weights.tensors)
    for other in ends[1:]:
        assert all(map(torch.equal, ends[0], other))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_lattice_restores_bit_for_bit_and_updates_alone_are_the_whole_run(kind, dtype):
    whole, alone = made(kind, some=tensors(dtype)), made(kind, some=tensors(dtype))
    start = [t.clone() for t in whole.tensors]
    for step in range(30):
        whole.begin(step, 0)
        whole.move(1)
        whole.move(-2)
        whole.move(1)
    assert all(map(torch.equal, whole.tensors, start))
    for step in range(20):
        update = [-1e-4 * (step % 7 - 2)] * 4
        for weights, passes in ((whole, (1, -2)), (alone, ())):
            weights.begin(step, 0)
            for times in passes:
                weights.move(times)
            weights.finish(-weights.offset, update)
    assert all(map(torch.equal, whole.tensors, alone.tensors))
    assert not any(torch.equal(a, b) for a, b in zip(whole.tensors, start, strict=True))


def test_snapping_moves_a_weight_by_half_a_step_at_most():
    before, weights = tensors(), made()
    for old, new, step in zip(before, weights.tensors, weights.steps, strict=True):
        assert (old - new).abs().max() <= step / 2
        assert step <= 4 * 2.0**-24 * max(old.abs().max().item(), 64 * weights.eps) and torch.equal(
            new, (new / step).round() * step
        )


def test_a_zero_tensor_has_a_lattice_that_holds_eps():
    weights = made(some=[torch.zeros(4) for _ in SHAPES])
    weights.begin(0, 0)
    weights.move(1)
    z = weights.noise.values(0, 0, 0, 4)
    assert (weights.tensors[0] - weights.eps * z).abs().max() <= weights.steps[0] / 2


@pytest.mark.parametrize("keep", [True, False])
def test_growing_weights_get_a_coarser_lattice_and_replay_finds_the_same_bits(keep):
    some = tensors(scale=1e-3)
    whole, alone = made(keep=keep, some=[t.clone() for t in some]), made(keep=keep, some=some)
    first = list(whole.steps)
    for step in range(60):
        for weights, passes in ((whole, (1, -2)), (alone, ())):
            weights.begin(step, 0)
            for times in passes:
                weights.move(times)
            weights.finish(-weights.offset, [0.02] * 4)
    assert all(a > b for a, b in zip(whole.steps, first, strict=True)) and whole.steps == alone.steps
    assert all(map(torch.equal, whole.tensors, alone.tensors))
    assert all(t.abs().max() < step * 2**24 for t, step in zip(whole.tensors, whole.steps, strict=True))


def test_in_place_drifts_and_bfloat16_drifts_more():
    drift = {}
    for dtype in (torch.float32, torch.bfloat16):
        weights = made(exact="off", some=tensors(dtype))
        start = weights.tensors[1].clone().double()
        for step in range(100):
            weights.begin(step, 0)
            for times in (1, -2, 1):
                weights.move(times)
        drift[dtype] = float((weights.tensors[1].double() - start).norm() / start.norm())
    assert 1e-8 < drift[torch.float32] < 1e-5 and 1e-2 < drift[torch.bfloat16] < 0.2


def test_half_precision_is_added_in_float32_and_rounded_once():
    weights = made(exact="off", some=tensors(torch.bfloat16))
    start = weights.tensors[0].clone()
    weights.begin(0, 0)
    weights.move(1)
    z = weights.noise.values(0, 0, 0, 15).view(3, 5)
    assert torch.equal(weights.tensors[0], torch.add(start.float(), z, alpha=1e-3).to(torch.bfloat16))


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_moves_only_where_it_is_true(kind, keep):
    mask = torch.arange(BLOCK + 7) % 3 == 0
    for exact in ("lattice", "off"):
        masked, plain = made(kind, exact, keep), made(kind, exact, keep)
        start = masked.tensors[1].clone()
        masked.masks = {1: Bits.of(mask)}
        for weights in (masked, plain):
            weights.begin(0, 0)
            weights.move(1)
        assert torch.equal(masked.tensors[1][~mask], start[~mask])
        assert torch.equal(masked.tensors[1][mask], plain.tensors[1][mask])


def test_decay_is_a_multiple_of_theta():
    for exact in ("lattice", "off"):
        weights = made(exact=exact)
        want = [t * 0.99 for t in weights.tensors[:2]] + weights.tensors[2:]
        want = [t.clone() for t in want]
        weights.decay([0.01, 0.01, 0.0, 0.0])
        for got, expected, step in zip(weights.tensors, want, weights.steps or [0] * 4, strict=True):
            assert (got - expected).abs().max() <= step + 1e-8


def test_share_of_updates_that_round_to_nothing():
    weights = made(some=[torch.ones(BLOCK) * 0.9 for _ in SHAPES])
    update, step = 2e-8, weights.steps[0]
    z = weights.noise.values(0, 0, 0, BLOCK)
    counted = ((z * (update / step)).round() == 0).float().mean()
    assert abs(weights.lost([update] * 4) - counted) < 4 * 0.5 / BLOCK**0.5
    assert weights.lost([1.0] * 4) < 1e-6 and weights.lost([0.0] * 4) == 1.0


def test_dense_strides_are_followed_and_gaps_refused():
    turned = torch.arange(6.0).view(2, 3).t()
    assert flat(turned, "w").tolist() == [0, 1, 2, 3, 4, 5]
    image = torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert flat(image, "w").data_ptr() == image.data_ptr()
    with pytest.raises(ProbatumError, match="w is a strided view with gaps"):
        flat(torch.zeros(4, 4)[:, ::2], "w")


def test_diverged_weights_are_told():
    with pytest.raises(ProbatumError, match="b has values that are not finite"):
        made(some=[torch.zeros(1), torch.tensor([float("nan")]), torch.zeros(1), torch.zeros(1)])


def test_limit_of_kept_values(monkeypatch):
    monkeypatch.setattr(module, "KEEP", 10)
    assert not Weights("a", [torch.zeros(11)], Noise(0), 1e-3, "off").kept


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_share_of_lost_updates_in_any_precision(dtype):
    """Far below the last bit of a weight nothing moves, far above it everything does."""
    weights = Weights(["w"], [torch.ones(64, dtype=dtype)], Noise(0, "gaussian"), 1e-3, "off")
    assert weights.lost([torch.finfo(dtype).eps / 1e4]) > 0.99 and weights.lost([torch.finfo(dtype).eps * 1e4]) < 0.01
