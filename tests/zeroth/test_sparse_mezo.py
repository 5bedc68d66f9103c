"""Sparse MeZO: the mask at theta, no drift, closed forms on a quadratic, its controls and its bad input."""

import copy
import math
import warnings

import pytest
import torch
from torch import nn

from probatum import ProbatumError
from probatum.zeroth import Log, MeZO, SparseMeZO, replay
from probatum.zeroth.masks import Compared, Indices

CONTRACT = {"SparseMeZO": lambda model: SparseMeZO(model.named_parameters(), lr=1e-2, sparsity=0.5)}


def small(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(13, 17), nn.Tanh(), nn.Linear(17, 3))
    x, y = torch.randn(11, 13), torch.randn(11, 3)
    return model, lambda: nn.functional.mse_loss(model(x), y)


def same(one, other):
    return all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


def trained(steps=20, seed=0, **options):
    model, closure = small(seed)
    optimizer = SparseMeZO(model.named_parameters(), **{"lr": 2e-2, "model": model, **options})
    losses = [float(optimizer.step(closure)) for _ in range(steps)]
    return model, optimizer, losses


@pytest.mark.parametrize("exact", ["lattice", "scratch", "off"])
@pytest.mark.parametrize("kind", ["gaussian", "rademacher"])
def test_without_sparsity_it_is_mezo_bit_for_bit(kind, exact):
    ours, optimizer, losses = trained(sparsity=0.0, noise=kind, exact=exact, seed=0)
    model, closure = small()
    mezo = MeZO(model.named_parameters(), lr=2e-2, include=("*weight",), noise=kind, exact=exact, model=model)
    assert losses == [float(mezo.step(closure)) for _ in range(20)]
    assert same(ours, model) and optimizer.active_shares[0] == 1


def test_exactly_the_asked_number_moves_at_first_and_at_the_limit_one():
    model, _ = small()
    for sparsity, want in ((0.8, [11, 45]), (0.999999, [1, 1]), (0.5, [26, 111])):
        net = copy.deepcopy(model)
        optimizer = SparseMeZO(net.named_parameters(), lr=2e-2, sparsity=sparsity, exact="off")
        optimizer.step(lambda: nn.functional.mse_loss(net(torch.ones(1, 13)), torch.ones(1, 3)))  # noqa: B023
        moved = [int((p != q).sum()) for p, q in zip(net.parameters(), model.parameters(), strict=True) if p.ndim > 1]
        assert sorted(moved) == want == [math.ceil(round((1 - sparsity) * n, 6)) for n in (51, 221)]
        assert optimizer.active_share == sum(want) / 272


@pytest.mark.parametrize("exact", ["scratch", "copy", "lattice"])
def test_weights_above_the_threshold_never_change_and_the_share_only_falls(exact):
    start, _, _ = trained(1, exact=exact, sparsity=0.6, lr=1e-9)  # on its lattice, if it has one
    model, optimizer, _ = trained(200, exact=exact, sparsity=0.6, lr=0.01)
    levels = dict(zip(optimizer._names, optimizer.log.head["masks"]["levels"], strict=True))
    for (name, before), after in zip(start.named_parameters(), model.parameters(), strict=True):
        left = before.abs() > levels.get(name, -1.0)
        slack = 2.0**-23 if exact == "lattice" else 0  # a coarser lattice rounds them once
        assert ((after - before).abs()[left] <= slack).all() and (name not in levels or not torch.equal(after, before))
    shares = optimizer.active_shares
    assert shares == sorted(shares, reverse=True) and shares[-1] < shares[0] and shares[-1] == optimizer.active_share


@pytest.mark.parametrize("exact", ["lattice", "scratch", "copy"])
def test_no_drift_without_a_learning_rate(exact):
    model, closure = small()
    optimizer = SparseMeZO(model.named_parameters(), lr=1e-2, eps=0.05, exact=exact, model=model)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step(closure)
    before = copy.deepcopy(model)
    for _ in range(100):
        optimizer.step(closure)
    assert same(before, model)


def test_stored_and_recomputed_masks_are_one_method():
    ends, losses = {}, {}
    for exact in ("lattice", "scratch"):
        ends[exact], closure = small()
        ends[exact] = ends[exact].double()
        x = torch.randn(11, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
        closure = lambda net=ends[exact], x=x: net(x).square().mean()  # noqa: E731
        optimizer = SparseMeZO(ends[exact].named_parameters(), lr=2e-2, exact=exact, model=ends[exact], sparsity=0.7)
        losses[exact] = [float(optimizer.step(closure)) for _ in range(30)]
    assert losses["lattice"] == pytest.approx(losses["scratch"], rel=1e-10)
    for p, q in zip(ends["lattice"].parameters(), ends["scratch"].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-10)


def test_where_nothing_is_rounded_they_give_the_same_bits():
    ends = []
    for exact in ("lattice", "scratch"):
        layer = nn.Linear(13, 3, bias=False)
        layer.weight.data = (torch.randn(3, 13, generator=torch.Generator().manual_seed(2)) * 2**10).round() / 2**10
        optimizer = SparseMeZO(
            layer.named_parameters(), lr=2.0**-10, eps=2.0**-6, noise="rademacher", exact=exact, model=layer, sparsity=0.7, clip=None
        )
        for _ in range(10):
            optimizer.step(lambda: layer(torch.eye(13)).sum())  # noqa: B023 (the sum of all weights: p is a whole number)
        ends.append(layer)
    assert same(*ends) and optimizer.log.slopes[0][0] == round(optimizer.log.slopes[0][0]) != 0


def test_the_mask_takes_a_bit_a_weight_or_nothing():
    model, optimizer, _ = trained(1, exact="lattice")
    assert [mask.nbytes for mask in optimizer._weights.masks.values()] == [math.ceil(221 / 8), math.ceil(51 / 8)]
    assert sum(p.numel() for p in model.parameters() if p.ndim > 1) == 272
    _, optimizer, _ = trained(1, exact="scratch")
    assert all(isinstance(mask, Compared) and mask.nbytes == 0 for mask in optimizer._weights.masks.values())


def test_without_a_stored_mask_one_layer_is_copied_at_a_time(monkeypatch):
    import weakref

    from probatum.zeroth.weights import Weights

    made, most = [], []
    plain = Weights.perturbed

    def watched(self, i, times):
        copied = plain(self, i, times)
        made.append((weakref.ref(copied), copied.numel()))
        most.append(sum(n for alive, n in made if alive() is not None))
        return copied

    monkeypatch.setattr(Weights, "perturbed", watched)
    trained(3, exact="scratch")
    assert len(made) == 2 * 2 * 3 and max(most) == 221  # 17 x 13, the largest of both


def test_the_mask_is_that_of_theta_and_not_of_the_perturbed_weights():
    theta = nn.Parameter(torch.linspace(-1, 1, 41).view(1, 41))
    seen = []
    optimizer = SparseMeZO([("w", theta)], lr=1e-2, sparsity=0.5, eps=0.3, exact="off", clip=None)
    start = theta.detach().clone()

    def closure():
        seen.append(theta.detach().clone())
        return theta.sum()

    optimizer.step(closure)
    z = optimizer.noise.values(0, 0, 0, 41)
    mask = (start.abs() <= start.abs().flatten().kthvalue(21).values).float()
    for point, sign in zip(seen, (1, -1), strict=True):
        torch.testing.assert_close(point, start + sign * 0.3 * mask * z, rtol=0, atol=1e-6)


def test_moments_on_a_quadratic():
    a = torch.tensor([[3.0, 1.0, 0.5, 2.0, 0.25, 1.5]], dtype=torch.float64)
    theta = nn.Parameter(torch.tensor([[0.9, -0.1, 0.7, 0.2, -0.8, 0.3]], dtype=torch.float64))
    mask, g = torch.tensor([[0, 1, 0, 1, 0, 1]], dtype=torch.float64), a * theta.detach()
    optimizer = SparseMeZO([("w", theta)], lr=1e-2, sparsity=0.5, eps=1e-2, exact="off")
    squares, curves = map(torch.tensor, optimizer.probe(lambda: 0.5 * (a * theta.square()).sum(), 4000))
    for samples, want in ((squares, (mask * g).square().sum()), (curves, (mask * a).sum())):
        assert abs(samples.mean() - want) < 4 * samples.std() / math.sqrt(len(samples))
    z = optimizer.noise.values(0, 0, 0, 600_000).view(100_000, 6).double() * mask
    estimate = (z @ g.flatten()).unsqueeze(1) * z
    error = estimate.std(0) / math.sqrt(len(z))
    assert ((estimate.mean(0) - (mask * g).flatten()).abs() <= 4 * error + 1e-12).all()


def test_a_random_mask_keeps_its_share_of_the_squared_gradient():
    g = torch.randn(8, 40, generator=torch.Generator().manual_seed(3))
    kept = [
        float((Indices.random([("w", g)], 0.25, seed=5, draw=draw).masks()["w"] * g.square()).sum() / g.square().sum()) for draw in range(400)
    ]  # fmt: skip
    kept = torch.tensor(kept)
    assert abs(kept.mean() - 0.25) < 4 * kept.std() / 20
    _, optimizer, _ = trained(6, mask="random", every=2, sparsity=0.75)
    assert optimizer.active_shares == [(55 + 12) / 272] * 6  # floor of a quarter of 221 and of 51


def test_largest_own_and_constant_masks():
    start, _ = small()
    model, optimizer, _ = trained(3, mask="largest", sparsity=0.9, exact="off")
    for before, after in zip(start.parameters(), model.parameters(), strict=True):
        if before.ndim > 1:
            changed = before != after
            assert before.abs()[changed].min() > before.abs()[~changed].max()
    own = {"0.weight": torch.arange(221).view(17, 13) % 5 == 0}
    model, optimizer, _ = trained(3, mask=own, exact="off")
    assert torch.equal(model[0].weight != start[0].weight, own["0.weight"]) and torch.equal(model[2].weight, start[2].weight)
    assert optimizer._names == ["0.weight"]
    by_indices, _, _ = trained(3, mask=Indices(("0.weight",), ((17, 13),), (torch.arange(0, 221, 5),)), exact="off")
    assert same(model, by_indices)
    _, optimizer, _ = trained(100, every=0, lr=0.1, sparsity=0.6, clip=None)
    assert len(set(optimizer.active_shares)) == 1


@pytest.mark.parametrize("options", [{}, {"every": 0}, {"mask": "random", "every": 3}, {"exact": "scratch", "n": 2}, {"weight_decay": 0.1}])
def test_a_run_is_replayed_from_its_file(options, tmp_path):
    start, _ = small()
    model, optimizer, _ = trained(25, sparsity=0.6, lr=0.05, **options)
    optimizer.log.save(tmp_path / "run.safetensors")
    replay(start, tmp_path / "run.safetensors")
    assert same(start, model)
    assert Log.load(tmp_path / "run.safetensors").head["format"] == 2


def test_half_precision_takes_the_scratch_and_leaves_the_rest():
    model, _ = small()
    model = model.bfloat16()
    start, x = copy.deepcopy(model), torch.randn(5, 13, dtype=torch.bfloat16)
    optimizer = SparseMeZO(model.named_parameters(), lr=0.3, eps=0.05, sparsity=0.5, model=model)
    for _ in range(10):
        optimizer.step(lambda: model(x).float().square().mean())
    assert optimizer.exact == "scratch"
    again = copy.deepcopy(start)
    replay(again, optimizer.log)
    assert same(again, model)
    for i, level in enumerate(optimizer.log.head["masks"]["levels"]):
        name = optimizer._names[i]
        before, after = start.get_parameter(name), model.get_parameter(name)
        assert torch.equal(before[before.abs() > level], after[before.abs() > level])


def test_thresholds_are_taken_from_a_log_or_a_mapping(tmp_path):
    model, optimizer, _ = trained(30, lr=0.1, sparsity=0.5)
    optimizer.log.save(tmp_path / "run.safetensors")
    levels = optimizer.log.head["masks"]["levels"]
    closure = lambda: model[2](torch.tanh(model[0](torch.ones(2, 13)))).square().mean()  # noqa: E731
    by_name = dict(zip(optimizer._names, levels, strict=True))
    for given in (tmp_path / "run.safetensors", optimizer.log, by_name):
        second = SparseMeZO(copy.deepcopy(model).named_parameters(), lr=1e-3, thresholds=given)
        second.step(closure)
        assert second.log.head["masks"]["levels"] == levels


def test_decay_shrinks_active_weights_alone():
    start, _ = small()
    model, optimizer, _ = trained(1, sparsity=0.5, exact="off", weight_decay=0.5, lr=0.1)
    levels = dict(zip(optimizer._names, optimizer.log.head["masks"]["levels"], strict=True))
    for name, before in start.named_parameters():
        after = model.get_parameter(name)
        assert torch.equal(before != after, before.abs() <= levels.get(name, -1.0))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sparsity": 1.0}, "sparsity must be from 0 .* got 1.0"),
        ({"sparsity": -0.1}, "sparsity must be"),
        ({"mask": "middle"}, "mask must be one of smallest, largest, random"),
        ({"every": 3}, "every=3 goes with mask='random'"),
        ({"every": -1}, "every must be 0"),
        ({"mask": {"nothing": torch.ones(1)}}, "names nothing, which is no parameter"),
        ({"mask": "random", "thresholds": {}}, "thresholds go with"),
    ],
)
def test_bad_arguments(options, said):
    model, _ = small()
    with pytest.raises(ProbatumError, match=said):
        SparseMeZO(model.named_parameters(), lr=1e-2, **options)


def test_what_cannot_be_masked_is_told():
    model, closure = small()
    with pytest.raises(ProbatumError, match=r"no parameter has two or more dimensions"):
        SparseMeZO([("bias", model[0].bias)], lr=1e-2)
    with pytest.raises(ProbatumError, match="integer and quantised weights cannot be perturbed; see senszoq"):
        SparseMeZO([("w", _IntegerWeight())], lr=1e-2)
    with pytest.raises(ProbatumError, match=r"another model: there is none for 0\.weight"):
        SparseMeZO(model.named_parameters(), lr=1e-2, thresholds={"w": 1.0}).step(closure)
    other = SparseMeZO([("w", nn.Parameter(torch.randn(3, 4)))], lr=1e-2)
    other.step(lambda: other._tensors[0].sum())
    with pytest.raises(ProbatumError, match="thresholds are of another model: 1 tensors from w on"):
        SparseMeZO(model.named_parameters(), lr=1e-2, thresholds=other.log).step(closure)
    with pytest.raises(ProbatumError, match="closure returned None"):
        SparseMeZO(model.named_parameters(), lr=1e-2).step(lambda: None)
    with pytest.raises(ProbatumError, match="boolean of shape"):
        SparseMeZO(model.named_parameters(), lr=1e-2, mask={"0.weight": torch.ones(2, dtype=torch.bool)}).step(closure)
    with pytest.warns(UserWarning, match="loss is not finite"):
        SparseMeZO(model.named_parameters(), lr=1e-2).step(lambda: math.nan)


class _IntegerWeight(nn.Parameter):
    def __new__(cls):
        return torch.Tensor._make_subclass(cls, torch.zeros(3, 4), True)

    def is_floating_point(self):
        return False


def test_equal_magnitudes_and_many_zeros_are_told():
    flat, zeros = nn.Parameter(torch.full((3, 4), 0.5)), nn.Parameter(torch.randn(4, 10))
    with pytest.warns(UserWarning, match="all weights of flat have one magnitude"):
        SparseMeZO([("flat", flat)], lr=1e-2).step(lambda: flat.sum())
    zeros.data[:, :7] = 0
    with pytest.warns(UserWarning, match=r"70.0% of the weights are active where 25.0% were asked for"):
        SparseMeZO([("zeros", zeros)], lr=1e-2).step(lambda: zeros.sum())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SparseMeZO([("w", nn.Parameter(torch.randn(4, 10)))], lr=1e-2).step(lambda: zeros.sum())
