"""Masks and index sets: counts, packing, draws that are pure functions, and masked runs that replay bit for bit."""

import copy
import math

import pytest
import torch
from torch import nn

from probatum import ProbatumError
from probatum.zeroth import Log, MeZO, replay
from probatum.zeroth.masks import Bits, Fixed, Indices, Random, Threshold, rule_of, thresholds
from probatum.zeroth.noise import BLOCK


def model_and_closure():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    x, y = torch.randn(11, 5), torch.randn(11, 3)
    return model, lambda: nn.functional.mse_loss(model(x), y)


def same(one, other):
    return all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("n", [1, 7, 8, 1000, BLOCK + 13])
def test_bits_are_the_mask_at_an_eighth_of_a_byte(n):
    mask = torch.rand(n, generator=torch.Generator().manual_seed(n)) < 0.3
    bits = Bits.of(mask)
    assert bits.nbytes == math.ceil(n / 8) and bits.count == int(mask.sum()) and torch.equal(bits.dense(), mask)
    for at in range(0, n, BLOCK):
        z = torch.full((min(BLOCK, n - at),), 3.0)
        bits.mul_(z, at, z)
        assert torch.equal(z, 3.0 * mask[at : at + BLOCK])


def test_a_level_lets_exactly_the_asked_number_through():
    tensors = [torch.randn(13, 11), torch.randn(5, 7, 3).double()]
    for share in (1.0, 0.7, 0.25, 1e-9):
        for side in ("smallest", "largest"):
            rule = Threshold(thresholds(tensors, share, side), side)
            for live in (False, True):
                masks = rule.at(0, tensors, live=live)
                for i, t in enumerate(tensors):
                    want = max(1, math.ceil(round(share * t.numel(), 6)))
                    assert masks[i].count == want
                    z = torch.ones(t.numel())
                    masks[i].mul_(z, 0, t.view(-1))
                    edge = t.abs().flatten().sort(descending=side == "largest").values[want - 1]
                    assert torch.equal(z > 0, (t.abs() <= edge if side == "smallest" else t.abs() >= edge).flatten())
                    assert masks[i].nbytes == (0 if live else math.ceil(t.numel() / 8))


def test_random_subsets_have_exact_counts_and_depend_on_their_number_alone():
    named = [("a", torch.empty(7, 11)), ("b", torch.empty(1000)), ("c", torch.empty(3))]
    shares = {"a": 0.29, "b": 0.1, "c": 1.0}
    one = Indices.random(named, shares, seed=4, draw=2)
    assert list(map(len, one.parts)) == [22, 100, 3] and one.count == 125
    again, other = Indices.random(named, shares, seed=4, draw=2), Indices.random(named, shares, seed=4, draw=3)
    assert all(map(torch.equal, one.parts, again.parts)) and not torch.equal(one.parts[1], other.parts[1])
    hits = torch.zeros(40)
    for draw in range(4000):
        hits[Indices.random([("w", torch.empty(40))], 0.25, seed=1, draw=draw).parts[0]] += 1
    assert (hits - 1000).abs().max() < 4.5 * math.sqrt(4000 * 0.25 * 0.75)  # 4.5: the largest of 40


def test_the_highest_scores_a_tensor_and_of_all():
    scores = {"a": torch.tensor([[1.0, 9.0, 3.0], [7.0, 7.0, 0.0]]), "b": torch.tensor([8.0, 2.0, 5.0, 6.0])}
    by_tensor = Indices.top(scores, 0.5)
    assert [part.tolist() for part in by_tensor.parts] == [[1, 3, 4], [0, 3]]
    of_all = Indices.top(scores, 0.3, "global")
    assert [part.tolist() for part in of_all.parts] == [[1, 3], [0]]  # of the equal 7s the first
    assert of_all.masks()["a"].tolist() == [[False, True, False], [True, False, False]]


def test_rules_survive_the_head_of_a_log():
    tensors = [torch.randn(9, 5), torch.randn(17)]
    rules = [
        Threshold([0.3, math.inf]), Random([0.5, 1.0], 3, 4), Fixed({0: Bits.of(torch.arange(45) % 2 == 0)}),
    ]  # fmt: skip
    for rule in rules:
        other = rule_of(rule.to_json(), rule.arrays())
        for step in (0, 5, 9):
            a, b = rule.at(step, tensors), other.at(step, tensors)
            assert list(a) == list(b) == [0] and torch.equal(a[0].dense(), b[0].dense())
    with pytest.raises(ProbatumError, match="this version knows threshold"):
        rule_of({"kind": "spiral"}, {})


class Masked(MeZO):
    made = staticmethod(lambda tensors: None)

    def masks(self):
        return self.made(self._tensors)


RULES = {
    "threshold": lambda tensors: Threshold(thresholds(tensors, 0.4)),
    "random": lambda tensors: Random([0.5] * len(tensors), 3, 2),
    "fixed": lambda tensors: Fixed({1: Bits.of(torch.arange(tensors[1].numel()) % 2 == 0)}),
}


@pytest.mark.parametrize("exact", ["lattice", "scratch", "copy", "off"])
@pytest.mark.parametrize("kind", ["gaussian", "rademacher"])
@pytest.mark.parametrize("rule", list(RULES))
def test_a_masked_run_is_replayed_and_resumed_bit_for_bit(rule, kind, exact, tmp_path):
    Masked.made = staticmethod(RULES[rule])
    model, closure = model_and_closure()
    start = copy.deepcopy(model)
    options = {"lr": 0.03, "n": 2, "noise": kind, "exact": exact, "model": model, "weight_decay": 0.1, "seed": 8}
    optimizer = Masked(model.named_parameters(), **options)
    for step in range(9):
        optimizer.step(closure)
        if step == 4:
            state, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(model.state_dict())
    optimizer.log.save(tmp_path / "run.safetensors")
    replay(start, tmp_path / "run.safetensors")
    assert same(model, start) and optimizer.active_share < 0.8
    end = copy.deepcopy(model)
    model.load_state_dict(weights)
    again = Masked(model.named_parameters(), **options)
    again.load_state_dict(state)
    for _ in range(4):
        again.step(closure)
    assert same(model, end) and len(Log.load(tmp_path / "run.safetensors")) == 9


@pytest.mark.parametrize("exact", ["copy", "scratch"])
def test_a_copy_restores_half_precision_and_equals_the_scratch(exact):
    model = model_and_closure()[0].bfloat16()
    x = torch.randn(11, 5, dtype=torch.bfloat16)
    start = copy.deepcopy(model)
    optimizer = MeZO(model.named_parameters(), lr=0.1, exact=exact, model=model, eps=1e-2)
    optimizer.lr_hint(lambda: -1000 + 1e3 * model(x).float().square().sum(), pairs=2) if exact == "copy" else None
    assert same(model, start)
    for _ in range(5):
        optimizer.step(lambda: model(x).float().square().mean())
    again = copy.deepcopy(start)
    replay(again, optimizer.log)
    assert same(model, again) and not same(model, start)


def test_a_mask_of_a_transposed_weight_follows_its_shape_not_its_memory():
    class Wide(MeZO):
        def mask(self, name, tensor):
            return torch.arange(15).view(3, 5) % 2 == 0

    theta = nn.Parameter(torch.randn(5, 3).t())
    before = theta.detach().clone()
    optimizer = Wide([("w", theta)], lr=0.1, exact="off")
    optimizer.step(lambda: theta.square().sum())
    moved = theta.detach() != before
    assert torch.equal(moved, torch.arange(15).view(3, 5) % 2 == 0)


def test_bad_input_is_told():
    a = torch.arange(12.0).view(3, 4)
    for call, text in (
        (lambda: Indices.top({"w": a}, 0.01), "no weight is chosen"),
        (lambda: Indices.top({"w": a}, 1.5), "fraction must be above 0"),
        (lambda: Indices.top({"w": a * math.nan}, 0.5), "not finite"),
        (lambda: Indices.top({"w": a}, 0.5, "layer"), "scope must be"),
        (lambda: Indices.random([("w", a)], {"v": 0.5}, seed=0), "shares lacks w"),
        (lambda: Indices.random([("w", a)], 1.5, seed=0), "shares must be from 0 to 1"),
        (lambda: Random([0.5], 0, -1), "every must be"),
        (lambda: Indices(("w",), ((3, 4),), (torch.tensor([3, 3]),)), "increasing"),
        (lambda: Indices(("w",), ((3, 4),), (torch.tensor([3, 12]),)), "must lie in 0 to 11"),
    ):
        with pytest.raises(ProbatumError, match=text):
            call()
    Masked.made = staticmethod(lambda tensors: None)

    class Wrong(MeZO):
        def mask(self, name, tensor):
            return torch.ones(2, dtype=torch.bool)

    model, closure = model_and_closure()
    with pytest.raises(ProbatumError, match="must be boolean of shape"):
        Wrong(model.named_parameters(), lr=0.1).step(closure)
