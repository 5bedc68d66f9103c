"""AdaZeta against the paper's counts, closed forms on a quadratic, and MeZO."""

import copy

import pytest
import torch
from torch import nn

from probatum import ProbatumError
from probatum.zeroth import AdaZeta, Log, MeZO, QuerySchedule, TTAdapter, add_adapters, replay

CONTRACT = {
    "AdaZeta": lambda model: AdaZeta(model.named_parameters(), lr=1e-2, queries=QuerySchedule.power(4, 3, most=3)),
    "TTAdapter": lambda: (TTAdapter(30, 12, 2), torch.randn(2, 5, 30)),
}


def llama(**sizes):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    setting = {
        "vocab_size": 11, "hidden_size": 24, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, **sizes,
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**setting)).eval()


def bert():
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(vocab_size=11, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    return BertForSequenceClassification(config).eval()


def adapted(seed=0, **options):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))
    x, y = torch.randn(20, 6), torch.randint(3, (20,))
    add_adapters(model, after=["0"], bottleneck=8, rank=2, **options)
    return model, lambda: nn.functional.cross_entropy(model(x), y)


def trainable(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def same(one, other):
    return all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


# Adapters.


def test_counts_of_llama_7b():
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=2))  # of 32
        made = add_adapters(model, bias=True)
    assert 16 * len(made) == 96
    assert 16 * sum(p.numel() for adapter in made for p in adapter.parameters()) == 610_560
    assert 16 * sum(p.numel() for adapter in made for p in (*adapter.down.cores, *adapter.up.cores)) == 211_200
    assert 16 * sum(p.numel() for p in model.parameters() if p.requires_grad) == 610_560
    assert sum(p.numel() for p in TTAdapter(4096, device="meta").parameters()) == 2_200
    assert sum(p.numel() for p in TTAdapter(4096, device="meta", bias=True).parameters()) == 6_360


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("make", "places"), [(llama, 6), (bert, 4)])
def test_a_fresh_adapter_changes_no_bit_and_is_in_use(make, places, bias):
    model = make()
    ids = torch.tensor([[1, 4, 2], [3, 3, 9]])
    before = model(input_ids=ids).logits
    made = add_adapters(model, bottleneck=8, rank=2, bias=bias)
    assert len(made) == places and torch.equal(model(input_ids=ids).logits, before)
    assert set(trainable(model)) == {name for name, _ in model.named_parameters() if "tt_adapter" in name}
    for adapter in made:
        nn.init.normal_(adapter.up.cores[-1], generator=torch.Generator().manual_seed(1))
        after = model(input_ids=ids).logits
        assert not torch.equal(after, before)
        before = after
    again = make()
    add_adapters(again, bottleneck=8, rank=2, bias=bias)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(input_ids=ids).logits, before)
    assert torch.equal(copy.deepcopy(again)(input_ids=ids).logits, before)


def test_llamas_three_places_are_the_papers():
    model = llama()
    add_adapters(model, bottleneck=8, rank=2)
    places = sorted({name.partition(".tt_adapter")[0] for name in trainable(model)})
    assert places == [f"model.layers.{i}.mlp.{which}" for i in (0, 1) for which in ("down_proj", "gate_proj", "up_proj")]
    mlp, seen = model.model.layers[0].mlp, []
    for where in (mlp.gate_proj, mlp.up_proj, mlp.down_proj):
        nn.init.normal_(where.tt_adapter.up.cores[-1])
    h = torch.randn(2, 3, 24)
    gate, up, down = ((w, w.tt_adapter) for w in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))

    def plain(pair, x):
        return nn.functional.linear(x, pair[0].weight)

    want = plain(down, nn.functional.silu(plain(gate, gate[1](h))) * plain(up, up[1](h)))
    torch.testing.assert_close(mlp(h), down[1](want))
    assert not seen


@pytest.mark.parametrize("shape", [(12,), (1, 12), (5, 1, 12), (1, 1, 12)])
def test_shapes_with_a_one_are_kept(shape):
    adapter = TTAdapter(12, 8, 2)
    nn.init.normal_(adapter.up.cores[-1])
    assert adapter(torch.randn(shape)).shape == shape


def test_merged_linear_adapter_is_unmerged_and_one_with_activation_is_refused():
    torch.manual_seed(0)
    linear = nn.Linear(7, 12).double()
    adapter = TTAdapter(12, 8, 2, activation=None, bias=True).double()
    for parameter in adapter.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(5, 7, dtype=torch.float64)
    torch.testing.assert_close(adapter.merge(linear)(x), adapter(linear(x)), rtol=1e-12, atol=1e-12)
    with pytest.raises(ProbatumError, match="activation='relu' stands between the maps, so the adapter is no matrix"):
        TTAdapter(12, 8, 2).merge(linear)


def test_a_half_precision_base_gets_float32_adapters():
    model = llama().to(torch.bfloat16)
    made = add_adapters(model, bottleneck=8, rank=2)
    assert {p.dtype for p in trainable(model).values()} == {torch.float32}
    nn.init.normal_(made[0].up.cores[-1])
    out = model(input_ids=torch.tensor([[1, 2]]))
    assert out.logits.dtype == torch.bfloat16
    optimizer = AdaZeta(model.named_parameters(), lr=1e-3)
    optimizer.step(lambda: model(input_ids=torch.tensor([[1, 2]])).logits.float().logsumexp(-1).mean())
    assert optimizer.steps == 1


def test_a_head_is_tuned_besides():
    model = bert()
    add_adapters(model, bottleneck=8, rank=2, also=["classifier.*"])
    assert {"classifier.weight", "classifier.bias"} < set(trainable(model))


# The optimizer.


def test_one_direction_is_mezo_bit_for_bit():
    torch.manual_seed(0)
    one = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))
    two, x = copy.deepcopy(one), torch.randn(20, 6)
    mezo = MeZO(one.named_parameters(), lr=1e-2, exact="scratch", model=one, seed=5)
    ours = AdaZeta(two.named_parameters(), lr=1e-2, queries=QuerySchedule.power(20, 5, most=1), seed=5)
    for _ in range(30):
        assert torch.equal(mezo.step(lambda: one(x).logsumexp(1).mean()), ours.step(lambda: two(x).logsumexp(1).mean()))
    assert same(one, two) and mezo.log.slopes == ours.log.slopes and ours.asked == 30


@pytest.mark.parametrize("n", [1, 3])
def test_on_the_lattice_it_is_mezo_itself(n):
    (one, closure), (two, closure_two) = adapted(), adapted()
    mezo = MeZO(one.named_parameters(), lr=1e-2, n=n, exact="lattice")
    ours = AdaZeta(two.named_parameters(), lr=1e-2, queries=n, exact="lattice")
    for _ in range(10):
        mezo.step(closure)
        ours.step(closure_two)
    assert same(one, two)


def test_a_step_by_hand():
    theta = nn.Parameter(torch.tensor([0.5, -1.0, 0.25], dtype=torch.float64))
    schedule = QuerySchedule(most=4, start=2)  # two of four columns in use
    optimizer = AdaZeta([("w", theta)], lr=0.1, eps=0.5, queries=schedule, clip=None)
    before = theta.detach().clone()
    optimizer.step(lambda: 0.5 * theta @ theta)
    z = torch.stack([optimizer.noise.values(0, q, 0, 3).double() for q in (0, 1)])
    want = before - 0.1 * ((z @ before).unsqueeze(1) * z).mean(0)
    torch.testing.assert_close(theta.detach(), want, rtol=1e-6, atol=1e-8)
    assert optimizer.log.slopes[0][2:] == [0.0, 0.0] and optimizer.asked == 2


@pytest.mark.parametrize(("d", "n"), [(5, 1), (20, 5), (50, 20)])
def test_mean_square_of_a_step_on_a_quadratic(d, n):
    """E |theta'|^2 / |theta|^2 = 1 - 2 eta lambda + (eta lambda)^2 (Q + d + 1) / Q: above eta = 2 Q / (lambda (Q + d + 1)) it grows."""
    curvature, eta = 3.0, 2 * n / (3.0 * (n + d + 1))
    start = torch.randn(d, generator=torch.Generator().manual_seed(0))
    theta = nn.Parameter(start.clone())
    optimizer = AdaZeta([("w", theta)], lr=eta, eps=0.1, queries=n, clip=None)
    ratios = []
    for _ in range(400 if n < 20 else 150):
        with torch.no_grad():
            theta.copy_(start)
        optimizer.step(lambda: 0.5 * curvature * theta @ theta)
        ratios.append(float(theta.detach().square().sum() / start.square().sum()))
    ratios = torch.tensor(ratios)
    assert abs(ratios.mean() - 1) < 4 * ratios.std() / len(ratios) ** 0.5  # on the edge, exactly
    assert ratios.std() > 0.1


def test_the_estimate_is_unbiased_and_its_second_moment_is_the_formulas():
    from probatum.zeroth.noise import Noise

    d, n, runs = 7, 5, 4000
    g = torch.randn(d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z = Noise(3).values(0, 0, 0, runs * n * d).view(runs, n, d).double()
    estimate = ((z @ g).unsqueeze(2) * z).mean(1)
    error = estimate.std(0) / runs**0.5
    assert ((estimate.mean(0) - g).abs() < 4 * error).all()
    square = estimate.square().sum(1)
    assert abs(square.mean() - g @ g * (n + d + 1) / n) < 4 * square.std() / runs**0.5


@pytest.mark.parametrize("exact", ["copy", "lattice"])
def test_schedule_log_and_replay(exact, tmp_path):
    model, closure = adapted()
    start = copy.deepcopy(model)
    calls = []
    schedule = QuerySchedule.power(20, 10, most=6)
    optimizer = AdaZeta(model.named_parameters(), lr=1e-2, queries=schedule, steps_per_epoch=3, exact=exact)
    for _ in range(30):
        optimizer.step(lambda: calls.append(1) or closure())
    assert len(calls) == 2 * optimizer.asked == 2 * schedule.total(10, steps=3)
    optimizer.log.save(tmp_path / "run.safetensors")
    replay(start, tmp_path / "run.safetensors")
    assert same(start, model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_are_restored_bit_for_bit(dtype):
    theta = nn.Parameter(torch.randn(50, generator=torch.Generator().manual_seed(0)).to(dtype))
    optimizer = AdaZeta([("w", theta)], lr=1e-2, queries=3)
    optimizer.step(lambda: theta.float().square().sum())
    before = theta.detach().clone()
    optimizer.param_groups[0]["lr"] = 0.0
    for _ in range(50):
        optimizer.step(lambda: theta.float().square().sum())
    optimizer.probe(lambda: theta.float().square().sum(), 3)
    assert torch.equal(theta, before)


def test_a_closure_that_raises_leaves_the_weights():
    model, closure = adapted()
    optimizer = AdaZeta(model.named_parameters(), lr=1e-2, queries=2)
    before, calls = copy.deepcopy(model), []

    def broken():
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("stop")
        return closure()

    with pytest.raises(RuntimeError, match="stop"):
        optimizer.step(broken)
    assert same(before, model)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: add_adapters(m, after=["layer*"]), r"after: 'layer\*' matches none of 4 modules"),
        (lambda m: add_adapters(m), "after must be given: the places for Sequential are not known"),
        (lambda m: add_adapters(m, after=["1"], bottleneck=8), "1 is a Tanh, whose output width is not known"),
        (lambda m: add_adapters(m, after=["2"], bottleneck=8), "3 is no product of 3 factors .* nearest sizes are 8 = 2 x 2 x 2"),
        (lambda m: add_adapters(m, after=["0"], bottleneck=8, rank=9), "rank must be from 1 to 8"),
        (lambda m: TTAdapter(12, 8, 2, shape=([3, 2, 2], [4, 2])), "as many factors for in as for out"),
        (lambda m: TTAdapter(12, 8, 2, activation="swish"), "activation must be None or one of relu, tanh, gelu"),
        (lambda m: AdaZeta(m.named_parameters(), lr=1e-2, queries=0), "n must be an integer of 1 or more, got 0"),
        (lambda m: AdaZeta(m.named_parameters(), lr=1e-2, steps_per_epoch=0), "steps_per_epoch must be an integer of 1 or more"),
        (lambda m: AdaZeta(m.named_parameters(), lr=0.0), "lr must be above 0"),
    ],
)
def test_bad_input(call, message):
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))
    before = copy.deepcopy(model)
    with pytest.raises(ProbatumError, match=message):
        call(model)
    assert same(before, model) and all(p.requires_grad for p in model.parameters())


def test_a_second_set_of_adapters_is_refused():
    model, _ = adapted()
    with pytest.raises(ProbatumError, match="has tensor-train adapters already"):
        add_adapters(model, after=["2"])


def test_a_state_or_a_log_of_another_schedule_is_refused():
    model, closure = adapted()
    optimizer = AdaZeta(model.named_parameters(), lr=1e-2, queries=3)
    optimizer.step(closure)
    with pytest.raises(ProbatumError, match="a schedule of up to 3 directions, this optimizer has 2"):
        AdaZeta(model.named_parameters(), lr=1e-2, queries=2).load_state_dict(optimizer.state_dict())
    log = optimizer.log
    broken = Log({**log.head, "seeds": log.head["seeds"][:2], "queries": log.head["queries"][:2]}, log.slopes, log.rates)
    with pytest.raises(ProbatumError, match="seeds, directions and slopes of a step must be equally many, got"):
        replay(adapted()[0], broken)
