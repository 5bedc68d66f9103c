"""MeZO against closed forms, its paper's counts, and its bad input."""

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from probatum import ProbatumError
from probatum.zeroth import Log, MeZO, error_rate, merge, prepare, replay, word_error
from probatum.zeroth.meter import Queries, gain

CONTRACT = {"MeZO": lambda model: MeZO(model.named_parameters(), lr=1e-2)}

A = torch.tensor([[3.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 1.0]], dtype=torch.float64)


class Point(nn.Module):
    def __init__(self, values, dtype=torch.float64):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(values, dtype=dtype))


def small(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    x, y = torch.randn(11, 5), torch.randn(11, 3)
    return model, lambda: nn.functional.mse_loss(model(x), y)


def run(model, closure, steps=20, **options):
    optimizer = MeZO(model.named_parameters(), **{"lr": 1e-2, "clip": None, **options})
    return optimizer, [float(optimizer.step(closure)) for _ in range(steps)]


def same(one, other):
    return all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


# The estimate.


@pytest.mark.parametrize("eps", [1e-3, 0.5])
def test_on_a_quadratic_the_slope_is_z_times_gradient_at_any_eps(eps):
    point = Point([0.3, -0.2, 0.9])
    theta = point.theta.detach().clone()
    optimizer, _ = run(point, lambda: 0.5 * point.theta @ A @ point.theta, 1, eps=eps, exact="off")
    z = optimizer.noise.values(0, 0, 0, 3).double()
    assert optimizer.log.slopes[0][0] == pytest.approx(float(z @ A @ theta), rel=1e-6)
    torch.testing.assert_close(point.theta.detach(), theta - 1e-2 * float(z @ A @ theta) * z, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("kind", "extra"), [("gaussian", 2), ("rademacher", 0)])
def test_moments_of_the_estimate(kind, extra):
    from probatum.zeroth.noise import Noise

    n, g = 200_000, A @ torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64)
    z = Noise(1, kind).values(0, 0, 0, 3 * n).view(n, 3).double()
    p = z @ g
    estimate = p.unsqueeze(1) * z

    def close(samples, want):
        error = samples.std(0) / math.sqrt(n)
        assert ((samples.mean(0) - want).abs() <= 4 * error).all()

    close(estimate, g)
    close(p**2, g @ g)
    if kind == "gaussian":
        close(estimate.square().sum(1), (3 + extra) * (g @ g))
    else:
        close(estimate.square().sum(1), 3 * (g @ g))


def test_four_signs_enumerated_give_the_gradient_and_its_second_moment_exactly():
    g = torch.tensor([0.5, -2.0], dtype=torch.float64)
    point = Point([0.25, 1.0])
    optimizer = MeZO(point.named_parameters(), lr=1e-2, eps=0.5, noise="rademacher", exact="off", clip=None)
    found = {}
    while len(found) < 4:  # all numbers are dyadic, so nothing is rounded
        point.theta.data = torch.tensor([0.25, 1.0], dtype=torch.float64)
        optimizer.step(lambda: point.theta @ g)
        z = optimizer.noise.values(optimizer.steps - 1, 0, 0, 2).double()
        found[tuple(z.tolist())] = optimizer.log.slopes[-1][0] * z
    estimate = torch.stack(list(found.values()))
    assert torch.equal(estimate.mean(0), g) and estimate.square().sum(1).mean() == 2 * (g @ g)


def test_descends():
    point = Point([1.0])
    run(point, lambda: point.theta.sum(), 1, exact="off")
    assert point.theta.item() < 1.0


def test_a_step_by_hand_on_two_weights():
    point = Point([0.5, -1.0])
    optimizer, losses = run(point, lambda: (point.theta**3).sum(), 1, lr=0.1, eps=0.1, exact="off")
    a, b = optimizer.noise.values(0, 0, 0, 2).double().tolist()
    plus, minus = (0.5 + 0.1 * a) ** 3 + (-1 + 0.1 * b) ** 3, (0.5 - 0.1 * a) ** 3 + (-1 - 0.1 * b) ** 3
    p = (plus - minus) / 0.2
    assert losses == [pytest.approx((plus + minus) / 2)]
    assert point.theta.tolist() == pytest.approx([0.5 - 0.1 * p * a, -1 - 0.1 * p * b], rel=1e-6)


# What a step does and does not touch.


@pytest.mark.parametrize("n", [1, 3])
def test_the_closure_is_called_twice_a_direction_without_gradients(n):
    model, closure = small()
    calls = []
    run(model, lambda: calls.append(torch.is_grad_enabled()) or closure(), 2, n=n)
    assert calls == [False] * (4 * n)


def test_two_equal_directions_are_one():
    class Twice(MeZO):
        def queries(self, step):
            return [0, 0]

    (one, closure), (two, closure_two) = small(), small()
    run(one, closure, 5, exact="off")
    optimizer = Twice(two.named_parameters(), lr=1e-2, clip=None, exact="off")
    for _ in range(5):
        optimizer.step(closure_two)
    for p, q, start in zip(one.parameters(), two.parameters(), small()[0].parameters(), strict=True):
        torch.testing.assert_close(
            p, q, rtol=0, atol=2e-5
        )  # float32 losses over 2 eps: the slopes differ in their last digits
        assert (p - start).abs().max() > 1e-3


@pytest.mark.parametrize("exact", ["lattice", "scratch"])
@pytest.mark.parametrize("kind", ["gaussian", "rademacher"])
def test_with_a_rate_of_zero_nothing_moves_in_many_steps(exact, kind):
    model, closure = small()
    optimizer = MeZO(model.named_parameters(), lr=1e-2, exact=exact, noise=kind, model=model)
    optimizer.step(closure)
    start = copy.deepcopy(model)
    optimizer.param_groups[0]["lr"] = 0.0
    for _ in range(100):
        optimizer.step(closure)
    assert same(model, start)


def test_random_state_is_seen_once_and_left_as_one_call_leaves_it():
    model, _ = small()
    draws = []
    torch.manual_seed(8)
    want = torch.rand(3)
    after = torch.get_rng_state()
    torch.manual_seed(8)
    np_state = np.random.get_state()[1].copy()
    run(model, lambda: draws.append(torch.rand(3)) or model[0].weight.sum(), 1)
    assert torch.equal(draws[0], want) and torch.equal(draws[1], want)
    assert torch.equal(torch.get_rng_state(), after) and (np_state == np.random.get_state()[1]).all()


def test_tied_weights_are_perturbed_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.table, self.head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
            self.head.weight = self.table.weight

    model, ids = Tied(), torch.tensor([1, 4, 2])

    def loss(weight):
        return (nn.functional.embedding(ids, weight) @ weight.t()).logsumexp(-1).mean()

    start = model.table.weight.detach().clone()
    optimizer = MeZO(model.named_parameters(), lr=1e-2, exact="off")
    optimizer.step(lambda: model.head(model.table(ids)).logsumexp(-1).mean())
    z = optimizer.noise.values(0, 0, 0, 24).view(6, 4)
    want = float(loss(start + 1e-3 * z) - loss(start - 1e-3 * z)) / 2e-3
    assert optimizer.log.slopes[0][0] == pytest.approx(want, abs=1e-3)


def test_embeddings_are_left_out_by_default():
    model = nn.ModuleDict({"embeddings": nn.Embedding(5, 3), "head": nn.Linear(3, 2)})
    assert MeZO(model.named_parameters(), lr=1e-2)._names == ["head.bias", "head.weight"]
    assert len(MeZO(model.named_parameters(), lr=1e-2, exclude=())._names) == 3


def test_weight_decay_shrinks_matrices_and_not_biases():
    model, closure = small()
    start = copy.deepcopy(model)
    run(model, lambda: closure() * 0, 1, weight_decay=0.5, exact="off")
    for p, q in zip(model.parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(p, q * (1 - 1e-2 * 0.5) if p.ndim > 1 else q, rtol=1e-5, atol=1e-7)


def test_a_slope_is_cut_at_twice_the_running_rms():
    point = Point([0.0], torch.float32)
    scale = [1.0]
    optimizer = MeZO(point.named_parameters(), lr=1e-6, noise="rademacher", exact="off")
    for step in range(30):
        scale[0] = 100.0 if step == 20 else 1.0
        optimizer.step(lambda: scale[0] * point.theta.sum())
    slopes = [abs(row[0]) for row in optimizer.log.slopes]
    assert slopes[:20] == pytest.approx([1.0] * 20, rel=1e-3) and slopes[20] == pytest.approx(2.0, rel=1e-3)


def test_groups_have_their_own_rates_and_schedules_are_followed():
    model, closure = small()
    groups = [
        {"params": list(model[0].named_parameters("0"))},
        {"params": list(model[2].named_parameters("2")), "lr": 1e-30},
    ]
    start = copy.deepcopy(model)
    optimizer = MeZO(groups, lr=1e-2, exact="off", seed=3)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    for _ in range(3):
        optimizer.step(closure)
        schedule.step()
    assert [row[0] for row in optimizer.log.rates] == pytest.approx([1e-2, 5e-3, 2.5e-3])
    torch.testing.assert_close(model[2].weight, start[2].weight, rtol=0, atol=1e-6)
    assert not torch.allclose(model[0].weight, start[0].weight, rtol=0, atol=1e-5)
    replay(start, optimizer.log)
    assert same(start, model)


# The hint.


def test_the_hint_is_one_over_the_trace_and_leaves_theta_alone():
    point = Point([0.3, -0.2, 0.9])
    optimizer = MeZO(point.named_parameters(), lr=1e-2, eps=1e-2, exact="off")
    hint = optimizer.lr_hint(lambda: 0.5 * point.theta @ A @ point.theta, pairs=400)
    assert abs(hint.trace - 6.0) < 4 * hint.standard_error and hint.lr == 1 / hint.trace
    assert hint.gradient**2 == pytest.approx((A @ point.theta).square().sum().item(), rel=0.4)
    torch.testing.assert_close(
        point.theta.detach(), torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64), rtol=0, atol=1e-12
    )
    assert optimizer.steps == 0


def test_a_hint_before_the_first_step_does_not_change_where_the_log_starts():
    model, closure = small()
    start = copy.deepcopy(model)
    optimizer = MeZO(model.named_parameters(), lr=1e-2)
    optimizer.lr_hint(closure)
    resumed_from = optimizer.state_dict()
    optimizer.step(closure)
    again = copy.deepcopy(start)
    replay(again, optimizer.log)
    assert same(again, model) and resumed_from["zeroth"]["head"] == optimizer.log.head


def test_no_hint_where_there_is_no_curvature():
    point = Point([0.3, 0.1])
    with pytest.raises(ProbatumError, match=r"no hint: trace\(H\) is .* take more pairs"):
        MeZO(point.named_parameters(), lr=1e-2).lr_hint(lambda: -point.theta.square().sum(), pairs=8)


def test_gain_prefers_the_coordinates_that_carry_the_gradient():
    point = Point([0.5, 0.5, 0.5, 0.5])
    scale = torch.tensor([1.0, 1.0, 9.0, 9.0], dtype=torch.float64)

    def masked(keep):
        class Masked(MeZO):
            def mask(self, name, tensor):
                return torch.tensor(keep)

        return Masked(point.named_parameters(), lr=1e-2, eps=1e-2, exact="off")

    closure = lambda: point.theta[:2].sum() * 3 + 0.5 * point.theta.square() @ scale  # noqa: E731
    found = gain(
        {"first": masked([True, True, False, False]), "last": masked([False, False, True, True])}, closure, pairs=200
    )
    for name, g, trace in (("first", 2 * 3.5**2, 2), ("last", 2 * 4.5**2, 18)):
        assert abs(found[name].value - g / (2 * trace)) < 4 * found[name].standard_error
    assert found["first"].value > found["last"].value


# Modes.


def tiny_bert():
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=20,
        max_position_embeddings=16,
    )
    model = BertForSequenceClassification(config).eval()
    ids = torch.randint(50, (5, 7))
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    return model, {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 1, 0, 1, 1])}


@pytest.mark.parametrize(
    ("mode", "options", "count"),
    [
        ("lora", {}, 2 * 2 * 8 * (24 + 24)),
        ("prefix", {}, 2 * 2 * 5 * 24),
        ("layers", {"layers": ["*encoder.layer.1.*"]}, 4 * (24 * 24 + 24) + 2 * 24 * 20 + 20 + 24 + 4 * 24),
        ("lora", {"also": ["*classifier.*"], "rank": 4}, 2 * 2 * 4 * (24 + 24) + 24 * 2 + 2),
    ],
)
def test_modes_tune_what_they_name_and_leave_the_rest(mode, options, count):
    model, batch = tiny_bert()
    model, optimizer = prepare(model, mode, lr=1e-2, **options)
    before = {name: p.clone() for name, p in model.named_parameters()}
    assert sum(t.numel() for t in optimizer._tensors) == count
    for _ in range(2):
        optimizer.step(lambda: model(**batch).loss)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == set(optimizer._names)


def test_a_prefix_equals_tokens_put_before_the_keys_by_hand():
    from probatum.zeroth.prefix import add_prefix

    model, batch = tiny_bert()
    reference = copy.deepcopy(model)
    prefixes = add_prefix(model, 3)
    attention = model.bert.encoder.layer[0].attention.self
    other = reference.bert.encoder.layer[0].attention.self
    hidden = torch.randn(2, 7, 24)
    with torch.no_grad():
        got = attention(hidden)[0]
        shape = (2, 7, 3, 8)
        q, k, v = (f(hidden).view(shape).transpose(1, 2) for f in (other.query, other.key, other.value))
        k = torch.cat([prefixes[0][:1].expand(2, -1, -1, -1), k], 2)
        v = torch.cat([prefixes[0][1:].expand(2, -1, -1, -1), v], 2)
        want = ((q @ k.transpose(-1, -2) / 8**0.5).softmax(-1) @ v).transpose(1, 2).reshape(2, 7, 24)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    with torch.no_grad():  # padding stays invisible, with a prefix too
        changed = {**batch, "input_ids": batch["input_ids"].clone()}
        changed["input_ids"][0, 4:] = 9
        assert torch.equal(model(**batch).logits[0], model(**changed).logits[0])


def test_a_causal_model_does_not_look_ahead_past_a_prefix():
    from transformers import GPT2Config, GPT2LMHeadModel

    from probatum.zeroth.prefix import add_prefix

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=16, n_embd=12, n_layer=2, n_head=2)).eval()
    ids = torch.randint(40, (2, 6))
    with torch.no_grad():
        plain = model(ids).logits
        add_prefix(model, 4)
        first = model(ids).logits
        other = ids.clone()
        other[:, 4:] = 7
        second = model(other).logits
    torch.testing.assert_close(first[:, :4], second[:, :4])
    assert not torch.allclose(first[:, 4:], second[:, 4:]) and not torch.allclose(first, plain)


def test_prefix_needs_a_transformers_model_and_is_put_once():
    from probatum.zeroth.prefix import add_prefix

    with pytest.raises(ProbatumError, match="mode 'prefix' needs a transformers model, got Sequential"):
        prepare(small()[0], "prefix")
    model, _ = tiny_bert()
    add_prefix(model, 2)
    with pytest.raises(ProbatumError, match="has a prefix already"):
        add_prefix(model, 2)
    with pytest.raises(ProbatumError, match="tokens must be an integer of 1 or more, got 0"):
        add_prefix(tiny_bert()[0], 0)


def test_lora_needs_a_model_that_peft_knows():
    with pytest.raises(ProbatumError, match="peft cannot put LoRA into Sequential"):
        prepare(small()[0], "lora")


def test_modes_are_told():
    with pytest.raises(ProbatumError, match="mode must be one of full, layers, lora, prefix, got 'bitfit'"):
        prepare(small()[0], "bitfit")
    with pytest.raises(ProbatumError, match="layers goes with mode 'layers'"):
        prepare(small()[0], "layers")
    with pytest.raises(ProbatumError, match="also goes with modes"):
        prepare(small()[0], "full", also=["*"])


# Objectives without a gradient.


def test_error_rate_counts_and_can_be_the_objective():
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0], [0.0, 2.0]])
    assert error_rate(logits, torch.tensor([0, 1, 1, 1])) == 0.25
    torch.manual_seed(0)
    net, x = nn.Linear(4, 2), torch.randn(200, 4)
    y = (x[:, 0] > 0.3).long()
    optimizer = MeZO(net.named_parameters(), lr=0.02, eps=0.1)
    before = error_rate(net(x), y)
    for _ in range(300):
        optimizer.step(lambda: error_rate(net(x), y))
    assert error_rate(net(x), y) < before - 0.2 and 0 <= optimizer.flat_share < 1


def test_word_error_is_one_minus_f1():
    assert word_error(["a b c", "x"], ["a b d", "x"]) == pytest.approx(1 - (2 * 2 / 6 + 1) / 2)
    assert word_error(["", "a a b"], ["", "a"]) == pytest.approx(1 - (1 + 0.5) / 2)
    with pytest.raises(ProbatumError, match="equally many"):
        word_error(["a"], [])


def test_queries_are_counted_and_end_with_the_budget():
    ask = Queries(lambda batch: sum(batch), budget=5)
    assert ask([1, 2]) == 3 and ask([1, 2, 3]) == 6 and (ask.calls, ask.rows) == (2, 5)
    with pytest.raises(ProbatumError, match="budget of 5 queries is spent: 5 asked, 1 more wanted"):
        ask([1])


# Scratch.


def test_scratch_in_bfloat16_writes_updates_only_and_equals_float32_copies():
    model, _ = small()
    model = model.to(torch.bfloat16)
    x = torch.randn(11, 5).to(torch.bfloat16)
    optimizer = MeZO(model.named_parameters(), lr=1.0, eps=0.05, model=model)
    assert optimizer.exact == "scratch"
    start, seen = copy.deepcopy(model), []
    optimizer.step(lambda: seen.append(model(x).float().square().mean()) or seen[-1])
    z = [optimizer.noise.values(0, 0, i, t.numel()).view(t.shape) for i, t in enumerate(optimizer._tensors)]
    by_name = dict(start.named_parameters())
    for sign, loss in zip((1, -1), seen, strict=True):
        moved = {
            name: torch.add(by_name[name].detach().float(), zi, alpha=sign * 0.05).to(torch.bfloat16)
            for name, zi in zip(optimizer._names, z, strict=True)
        }
        assert torch.equal(torch.func.functional_call(start, moved, (x,)).float().square().mean(), loss)
    slope = optimizer.log.slopes[0][0]
    for name, zi in zip(optimizer._names, z, strict=True):
        want = torch.add(by_name[name].detach().float(), zi, alpha=-slope).to(torch.bfloat16)
        assert torch.equal(dict(model.named_parameters())[name], want)


def test_scratch_puts_weights_back_when_a_forward_fails():
    model, _ = small()
    optimizer = MeZO(model.named_parameters(), lr=1e-2, exact="scratch", model=model)
    start = copy.deepcopy(model)
    with pytest.raises(RuntimeError):
        optimizer.step(lambda: model(torch.zeros(2, 4)).mean())
    assert same(model, start)


def test_scratch_notices_a_weight_that_no_module_call_uses():
    torch.manual_seed(0)
    model = nn.MultiheadAttention(4, 2, batch_first=True)
    optimizer = MeZO(model.named_parameters(), lr=1e-2, exact="scratch", model=model)
    x = torch.randn(1, 3, 4)
    with pytest.raises(ProbatumError, match=r"out_proj\.bias is used without its module being called"):
        optimizer.step(lambda: model(x, x, x)[0].mean())


# Rows.


def bag():
    torch.manual_seed(0)
    return nn.ModuleDict({"embed": nn.Embedding(30, 6), "head": nn.Linear(6, 2)})


@pytest.mark.parametrize("exact", ["lattice", "off"])
@pytest.mark.parametrize("n", [1, 2])
def test_only_rows_of_the_batch_move_and_the_log_replays_them(exact, n):
    model = bag()
    start, batches = copy.deepcopy(model), [torch.tensor([[3, 5], [3, 9]]), torch.tensor([[1, 5], [2, 2]])]
    optimizer = MeZO(model.named_parameters(), lr=1e-2, rows="used", model=model, exact=exact, n=n)
    for ids in batches * 3:
        optimizer.step(lambda ids=ids: model["head"](model["embed"](ids).mean(1)).square().mean())
    table = model["embed"].weight
    moved = {i for i in range(30) if (table[i] - start["embed"].weight[i]).abs().max() > 1e-6}
    assert moved == {1, 2, 3, 5, 9}
    again = copy.deepcopy(start)
    replay(again, optimizer.log)
    assert same(again, model)


def test_rows_are_perturbed_by_their_own_z():
    model, ids = bag(), torch.tensor([[4, 7]])
    start, seen = model["embed"].weight.detach().clone(), []
    optimizer = MeZO(model.named_parameters(), lr=1e-2, rows="used", model=model, exact="off")
    optimizer.step(lambda: seen.append(model["embed"].weight[[4, 7, 8]].detach().clone()) or model["embed"](ids).sum())
    optimizer.step(
        lambda: model["embed"](ids).sum() + (seen.append(model["embed"].weight[[4, 7, 8]].detach().clone()) or 0)
    )
    z = optimizer.noise.rows(1, 0, 0, torch.tensor([4, 7]), 6)
    torch.testing.assert_close(seen[2][:2] - seen[3][:2], 2e-3 * z, rtol=1e-3, atol=1e-6)
    assert torch.equal(seen[2][2], start[8])


def test_a_tied_table_is_refused_for_rows():
    model = bag()
    model.add_module("out", nn.Linear(6, 30, bias=False))
    model["out"].weight = model["embed"].weight
    with pytest.raises(ProbatumError, match="Linear uses the same weights"):
        MeZO(model.named_parameters(), lr=1e-2, rows="used", model=model)
    with pytest.raises(ProbatumError, match="rows must be 'all', or 'used' with model="):
        MeZO(bag().named_parameters(), lr=1e-2, rows="used")


# Bad input: each leaves the weights as they were.


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lr": 0.0}, "lr must be above 0"),
        ({"lr": float("nan")}, "lr must be above 0"),
        ({"eps": -1.0}, "eps must be above 0 and finite, got -1"),
        ({"n": 0}, "n must be an integer of 1 or more, got 0"),
        ({"clip": 0}, "clip must be above 0"),
        ({"weight_decay": -0.1}, "weight_decay must be 0 or more"),
        ({"exact": "float"}, "exact must be one of lattice, scratch, copy, off, got 'float'"),
        ({"exact": "scratch"}, "give model="),
        ({"noise": "cauchy"}, "noise must be one of"),
        ({"include": ["nothing.*"]}, "matches none of the 4 parameters"),
        ({"seed": -3}, "seed must be an integer"),
    ],
)
def test_bad_arguments(options, said):
    with pytest.raises(ProbatumError, match=said):
        MeZO(small()[0].named_parameters(), **{"lr": 1e-2, **options})


def test_bad_parameters():
    model = small()[0]
    with pytest.raises(ProbatumError, match=r"params must be model\.named_parameters\(\)"):
        MeZO(model.parameters(), lr=1e-2)
    with pytest.raises(ProbatumError, match="params is empty"):
        MeZO([], lr=1e-2)
    named = list(model.named_parameters())
    with pytest.raises(ProbatumError, match=r"0\.weight stands in two places"):
        MeZO([{"params": named}, {"params": named[:1]}], lr=1e-2)
    with pytest.raises(ProbatumError, match=r"requires_grad off"):
        MeZO(copy.deepcopy(model).requires_grad_(False).named_parameters(), lr=1e-2)
    packed = nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
    packed.requires_grad = False
    from probatum.zeroth.optimizer import _check_tensors

    with pytest.raises(
        ProbatumError, match=r"q is torch\.int8: integer and quantised weights cannot be perturbed; see senszoq"
    ):
        _check_tensors(["q"], [packed])
    with pytest.raises(ProbatumError, match="meta device"):
        MeZO(copy.deepcopy(model).to("meta").named_parameters(), lr=1e-2)


def outside():
    model, closure = small()
    loss = closure()
    return model, lambda: loss


@pytest.mark.parametrize(
    ("closure", "said"),
    [
        (None, "step\\(\\) needs a closure .* MeZOTrainer"),
        (lambda: None, "the closure returned None"),
        (lambda: torch.zeros(3), r"must return one number, got a tensor of shape \[3\]: take its mean"),
        (lambda: "low", "must return one number, got str"),
        (outside()[1], "a loss with a graph, so it was computed outside of step"),
    ],
)
@pytest.mark.parametrize("exact", ["lattice", "off"])
def test_bad_closures_leave_the_weights(closure, said, exact):
    model, good = small()
    optimizer = MeZO(model.named_parameters(), lr=1e-2, exact=exact)
    optimizer.step(good)
    start = copy.deepcopy(model)
    with pytest.raises(ProbatumError, match=said):
        optimizer.step(closure)
    for p, q in zip(model.parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0 if exact == "lattice" else 1e-7)
    assert optimizer.steps == 1


def test_a_loss_that_is_not_finite_skips_the_step():
    model, closure = small()
    optimizer = MeZO(model.named_parameters(), lr=1e-2)
    optimizer.step(closure)
    start = copy.deepcopy(model)
    with pytest.warns(UserWarning, match="step 1: the loss is not finite, the step is skipped"):
        optimizer.step(lambda: float("nan"))
    assert same(model, start) and math.isnan(optimizer.log.slopes[1][0])
    optimizer.step(closure)
    again = small()[0]
    replay(again, optimizer.log)
    assert same(model, again)
    with warnings.catch_warnings(), pytest.raises(ProbatumError, match="not finite in 20 steps in a row"):
        warnings.simplefilter("ignore")
        for _ in range(20):
            optimizer.step(lambda: float("inf"))


def test_an_eps_too_small_to_change_the_loss_is_told():
    model, _ = small()
    optimizer = MeZO(model.named_parameters(), lr=1e-2, eps=1e-12)
    with pytest.warns(UserWarning, match="eps=1e-12 is too small to change the loss"):
        for _ in range(20):
            optimizer.step(lambda: 1.5)
    assert optimizer.flat_share == 1.0


def test_updates_that_round_to_nothing_are_told():
    model, closure = small()
    optimizer = MeZO(model.named_parameters(), lr=1e-9, exact="lattice")
    with pytest.warns(UserWarning, match="% of the weights do not move: the update rounds to nothing at lr=1e-09"):
        for _ in range(21):
            optimizer.step(closure)
    assert MeZO(small()[0].named_parameters(), lr=1e-6).exact == "off"


def test_half_precision_asks_for_a_model_or_warns():
    model = small()[0].to(torch.bfloat16)
    with pytest.raises(ProbatumError, match="half precision cannot be perturbed in place and restored"):
        MeZO(model.named_parameters(), lr=1e-2)
    with pytest.raises(ProbatumError, match=r"exact='lattice' needs float32 or float64, 0\.bias is torch\.bfloat16"):
        MeZO(model.named_parameters(), lr=1e-2, exact="lattice")
    with pytest.warns(UserWarning, match="moves the weights by 17 % in 2,000 steps"):
        MeZO(model.named_parameters(), lr=1e-2, exact="off")


def test_modes_of_the_model_are_looked_at():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    optimizer = MeZO(model.named_parameters(), lr=1e-2, model=model)
    with pytest.raises(ProbatumError, match="1 is a batch norm in training mode"):
        optimizer.step(lambda: model(torch.randn(4, 3)).sum())
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
    optimizer = MeZO(model.named_parameters(), lr=1e-2, model=model)
    with pytest.warns(UserWarning, match="1 drops out"):
        optimizer.step(lambda: model(torch.ones(4, 3)).sum())


def test_the_state_of_another_run_is_refused():
    model, closure = small()
    optimizer, _ = run(model, closure, 2)
    state = optimizer.state_dict()
    with pytest.raises(ProbatumError, match="made with seeds 0, this optimizer has 4"):
        MeZO(model.named_parameters(), lr=1e-2, seed=4).load_state_dict(state)
    with pytest.raises(ProbatumError, match="the state is of other tensors"):
        MeZO(nn.Linear(2, 2).named_parameters(), lr=1e-2).load_state_dict(state)
    with pytest.raises(ProbatumError, match="not that of a zeroth-order optimizer"):
        optimizer.load_state_dict(torch.optim.SGD(model.parameters(), lr=0.1).state_dict())


def test_merging_takes_the_mean_of_two_workers():
    model = small()[0]
    logs = []
    for seed in (1, 2):
        worker, loss = small()
        logs.append(run(worker, loss, 1, seed=seed, exact="off")[0].log)
    start = [p.detach().clone() for p in model.parameters()]
    merged = merge(*logs)
    merged.head["exact"] = "scratch"  # the updates alone
    replay(model, merged)
    names = [row[0] for row in merged.head["tensors"]]
    for i, name in enumerate(names):
        p = dict(model.named_parameters())[name].detach()
        before = dict(zip([n for n, _ in model.named_parameters()], start, strict=True))[name]
        from probatum.zeroth.noise import Noise

        want = before.clone()
        for log in logs:
            want += -1e-2 * log.slopes[0][0] / 2 * Noise(log.head["seeds"][0]).values(0, 0, i, p.numel()).view(p.shape)
        torch.testing.assert_close(p, want, rtol=1e-5, atol=1e-7)
    assert isinstance(merged, Log)
    with pytest.raises(ProbatumError, match="same seed"):
        merge(logs[0], logs[0])


def test_a_group_cannot_come_later_and_the_compiler_is_not_loaded():
    import subprocess
    import sys

    model, _ = small()
    with pytest.raises(ProbatumError, match="a group cannot be added to a zeroth-order optimizer"):
        MeZO(model.named_parameters(), lr=1e-2).add_param_group({"params": []})
    code = (
        "import sys, torch; from probatum.zeroth import MeZO; net = torch.nn.Linear(2, 2)\n"
        "MeZO(net.named_parameters(), lr=1e-2).step(lambda: net(torch.ones(1, 2)).sum())\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}).returncode == 0
