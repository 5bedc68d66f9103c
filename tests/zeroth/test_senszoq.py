"""SensZOQ: scores, counts, the 4-bit forward, equality with MeZO where nothing is quantised, files, replay, and bad input."""

import copy
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from probatum import ProbatumError
from probatum.nn.quantised import PackedEmbedding, PackedLinear
from probatum.zeroth import (
    Log,
    MeZO,
    SensitiveLinear,
    SensZOQ,
    choose,
    load_adapter,
    merge_adapter,
    replay,
    save_adapter,
    sensitivity,
    split,
)
from probatum.zeroth.masks import Indices


def layer():
    base = nn.Linear(10, 6)
    return SensitiveLinear(PackedLinear.of(base, group=4), torch.tensor([1, 13, 58]), base.weight.detach().view(-1)[[1, 13, 58]])


CONTRACT = {
    "SensZOQ": lambda model: SensZOQ(model.named_parameters(), lr=1e-2),
    "SensitiveLinear": lambda: (layer(), torch.randn(3, 10)),
}


class Net(nn.Module):
    """Two linear layers of no common size, an embedding, a norm and a head."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 13)
        self.first, self.second, self.norm = nn.Linear(13, 17), nn.Linear(17, 5, bias=False), nn.LayerNorm(5)
        self.classifier = nn.Linear(5, 2)

    def forward(self, ids):
        return self.classifier(self.norm(self.second(torch.tanh(self.first(self.embed(ids).mean(1))))))


def setting(seed=0):
    torch.manual_seed(seed)
    net = Net().eval()
    ids, labels = torch.randint(9, (12, 4)), torch.randint(2, (12,))
    return net, lambda model, rows=slice(None): nn.functional.cross_entropy(model(ids[rows]), labels[rows]), ids, labels


def chosen_of(net, loss, fraction=0.05, **options):
    return choose(sensitivity(net, [[i] for i in range(12)], loss, **options), fraction)


def tuned(steps=12, **options):
    net, loss, _, _ = setting()
    more = {key: options.pop(key) for key in ("bits", "also", "group", "embeddings") if key in options}
    split(net, chosen_of(net, loss), **more)
    start = copy.deepcopy(net)
    optimizer = SensZOQ(net.named_parameters(), **{"lr": 0.05, **options})
    for _ in range(steps):
        optimizer.step(lambda: loss(net))
    return net, start, optimizer, loss


# Scores and choice.


def test_scores_are_sums_of_squares_of_per_sample_gradients():
    net, loss, ids, labels = setting()
    names = ["first.weight", "second.weight"]
    params = {name: net.get_parameter(name).detach() for name in names}
    rest = {n: p.detach() for n, p in net.named_parameters() if n not in names}

    def one(params, x, y):
        return nn.functional.cross_entropy(torch.func.functional_call(net, {**rest, **params}, (x.unsqueeze(0),)), y.unsqueeze(0))

    each = torch.func.vmap(torch.func.grad(one), (None, 0, 0))(params, ids, labels)
    flags = [p.requires_grad for p in net.parameters()]
    loop = sensitivity(net, [[i] for i in range(12)], loss)
    whole = sensitivity(net, [range(12)], lambda m, rows: nn.functional.cross_entropy(m(ids), labels, reduction="none"))
    mean = sensitivity(net, [[i] for i in range(12)], loss, score="mean_grad")
    assert sorted(loop) == names and flags == [p.requires_grad for p in net.parameters()]
    for name in names:
        torch.testing.assert_close(loop[name], each[name].square().sum(0), rtol=1e-5, atol=1e-9)
        torch.testing.assert_close(whole[name], each[name].square().sum(0), rtol=1e-5, atol=1e-9)
        torch.testing.assert_close(mean[name], each[name].sum(0).abs(), rtol=1e-5, atol=1e-6)
    assert all(p.grad is None for p in net.parameters())


def test_the_counts_of_the_encoder():
    """36 linear weights of MiniLM: 24 of 384 x 384 and 12 of 384 x 1536, the floor of a thousandth of each."""
    with torch.device("meta"):
        sizes = [(384, 384)] * 24 + [(1536, 384)] * 12
    assert sum(o * i for o, i in sizes) == 10_616_832
    parts = [torch.arange(math.floor(o * i / 1000)) for o, i in sizes]
    found = choose({str(k): torch.rand(size) for k, size in enumerate(sizes[::12])}, 1e-3)
    assert [len(part) for part in found.parts] == [147, 147, 589]
    total = sum(map(len, parts))
    assert total == 24 * 147 + 12 * 589 == 10_596 and 4 * total == 42_384  # bytes of positions


def test_counts_are_floors_and_positions_are_row_major():
    net, loss, _, _ = setting()
    scores = sensitivity(net, [[i] for i in range(12)], loss)
    found = choose(scores, 0.05)
    assert [len(part) for part in found.parts] == [math.floor(0.05 * 221), math.floor(0.05 * 85)]
    of_all = choose(scores, 0.05, "global")
    assert of_all.count == math.floor(0.05 * 306)
    kept = sum(float(scores[n].flatten()[p].sum()) for n, p in zip(of_all.names, of_all.parts, strict=True))
    assert kept >= sum(float(scores[n].flatten()[p].sum()) for n, p in zip(found.names, found.parts, strict=True))
    split(net, found, bits=32)
    row, column = divmod(int(found.parts[0][0]), 13)
    with torch.no_grad():
        before = net.first.dense()
        net.first.values[0] += 1
        changed = (net.first.dense() != before).nonzero().tolist()
    assert changed == [[row, column]]


# The split layer.


def test_the_forward_is_the_dense_one_and_the_sparse_sum(monkeypatch):
    from probatum.nn import quantised

    module, x = layer(), torch.randn(4, 10)
    with torch.no_grad():
        module.values.add_(0.3)
    base = module.base.dense()
    assert base.view(-1)[module.positions.long()].abs().max() > 0  # what the base holds there does not count
    scattered = base.clone().view(-1).index_copy(0, module.positions.long(), module.values).view(6, 10)
    torch.testing.assert_close(module(x), nn.functional.linear(x, scattered, module.base.bias), rtol=1e-6, atol=1e-6)
    rest = base.clone().view(-1).index_fill(0, module.positions.long(), 0.0).view(6, 10)
    rows, columns = module.positions.long() // 10, module.positions.long() % 10
    sparse = torch.zeros(4, 6).index_add(1, rows, x[:, columns] * module.values)
    torch.testing.assert_close(module(x), nn.functional.linear(x, rest, module.base.bias) + sparse, rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(quantised, "TILE", 25)
    torch.testing.assert_close(module(x), nn.functional.linear(x, scattered, module.base.bias), rtol=1e-5, atol=1e-6)


def test_chosen_weights_leave_the_range_of_their_group():
    net = setting()[0]
    net.first.weight.data[3, 7] = 50.0
    found = Indices(("first.weight",), ((17, 13),), (torch.tensor([3 * 13 + 7]),))
    before = net.first.weight.detach().clone()
    split(net, found)
    assert (net.first.dense() - before).abs().max() < 0.03 and net.first.dense()[3, 7] == 50.0
    assert net.first.base.dense()[3, 7] == 0


def test_bytes_of_a_split_layer():
    base = nn.Linear(384, 1536, bias=False)
    net = nn.Sequential(base)
    split(net, Indices.random(net.named_parameters(), 1e-3, seed=0), bits=4)
    chosen = 589
    stored = {k: v.numel() * v.element_size() for k, v in net.state_dict().items()}
    assert stored == {"0.values": 4 * chosen, "0.positions": 4 * chosen, "0.base.codes": 294_912, "0.base.scales": 18_432}
    assert sum(stored.values()) / (4 * 589_824) < 0.135


# Training.


@pytest.mark.parametrize("exact", ["lattice", "copy"])
@pytest.mark.parametrize("bits", [16, 32])
def test_with_all_weights_and_no_quantisation_it_is_mezo(bits, exact):
    net, loss, _, _ = setting()
    plain = copy.deepcopy(net)
    split(net, choose(sensitivity(net, [[0]], loss), 1.0), bits=bits)
    ours = SensZOQ(net.named_parameters(), lr=0.02, eps=1e-3, exact=exact, seed=3)
    mezo = MeZO(plain.named_parameters(), lr=0.02, include=("first.weight", "second.weight"), exact=exact, seed=3)
    for _ in range(20):
        assert float(ours.step(lambda: loss(net))) == float(mezo.step(lambda: loss(plain)))
    assert torch.equal(net.first.dense(), plain.first.weight) and torch.equal(net.second.dense(), plain.second.weight)


def test_unchosen_weights_never_change():
    net, start, _, _ = tuned()
    moved = [name for name, p in net.named_parameters() if not torch.equal(p, start.get_parameter(name))]
    assert moved == ["first.values", "second.values"]
    for name, buffer in net.named_buffers():
        assert torch.equal(buffer, start.get_buffer(name))


@pytest.mark.parametrize(
    "options",
    [
        {}, {"exact": "lattice"}, {"n": 2, "noise": "rademacher"}, {"rule": torch.optim.SGD, "rule_options": {"momentum": 0.9}},
        {"rule": torch.optim.AdamW, "rule_options": {"weight_decay": 0.1}, "n": 2, "lr": 1e-3},
    ],
)  # fmt: skip
def test_a_run_is_replayed_and_resumed_bit_for_bit(options, tmp_path):
    net, start, optimizer, loss = tuned(**options)
    optimizer.log.save(tmp_path / "run.safetensors")
    again = copy.deepcopy(start)
    replay(again, Log.load(tmp_path / "run.safetensors"))
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), again.parameters(), strict=True))
    state, other = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(net)
    resumed = SensZOQ(other.named_parameters(), **{"lr": 0.05, **options})
    resumed.load_state_dict(state)
    for _ in range(3):
        optimizer.step(lambda: loss(net))
        resumed.step(lambda: loss(other))
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), other.parameters(), strict=True))


def test_a_rule_sees_p_z_as_its_gradient():
    net, start, optimizer, _ = tuned(1, rule=torch.optim.SGD, rule_options={"momentum": 0.9}, clip=None)
    z = optimizer.noise.values(0, 0, 0, len(net.first.values))
    want = start.first.values - 0.05 * optimizer.log.slopes[0][0] * z
    torch.testing.assert_close(net.first.values, want, rtol=1e-6, atol=1e-7)
    plain, _, _, _ = tuned(1, clip=None)
    torch.testing.assert_close(plain.first.values, net.first.values, rtol=1e-6, atol=1e-7)


def test_steps_too_small_to_see_are_counted():
    net, loss, _, _ = setting()
    split(net, chosen_of(net, loss))
    optimizer = SensZOQ(net.named_parameters(), lr=0.1, eps=1e-9)
    for _ in range(3):
        optimizer.step(lambda: round(float(loss(net)), 4))
    assert optimizer.flat_share == 1


# Files and merging.


@pytest.mark.parametrize("bits", [4, 16])
def test_an_adapter_goes_round_onto_the_base_and_onto_a_split_model(bits, tmp_path):
    path = tmp_path / "task.safetensors"
    net, start, _, _ = tuned(bits=bits, also=("classifier.*",), embeddings=8)
    save_adapter(net, path)
    stored = load_file(path)
    assert set(stored) == {
        "first.positions", "first.values", "second.positions", "second.values", "also.classifier.weight", "also.classifier.bias",
    }  # fmt: skip
    assert stored["first.positions"].dtype == torch.int32
    for model in (setting()[0], start):
        load_adapter(model, path)
        theirs = model.state_dict()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in net.state_dict().items())
    assert isinstance(start.embed, PackedEmbedding)


def test_merging_gives_plain_layers_with_the_same_output(tmp_path):
    net, _, _, _ = tuned(embeddings=4)
    ids = torch.randint(9, (5, 4))
    want = net(ids)
    merge_adapter(net)
    assert type(net.first) is nn.Linear and type(net.embed) is nn.Embedding and torch.equal(net(ids), want)
    assert "first.weight" in net.state_dict()
    with pytest.raises(ProbatumError, match="the model is not split"):
        save_adapter(net, tmp_path / "a.safetensors")


def test_files_of_another_base_are_refused(tmp_path):
    path = tmp_path / "task.safetensors"
    net, _, _, _ = tuned()
    save_adapter(net, path)
    other, loss, _, _ = setting(1)
    with pytest.raises(ProbatumError, match=r"another base: the values of first\.weight differ \(and of 1 more"):
        load_adapter(other, path)
    with pytest.raises(ProbatumError, match=r"this one has no first\.weight"):
        load_adapter(nn.Sequential(nn.Linear(3, 4)), path)
    split(other, chosen_of(other, loss))
    with pytest.raises(ProbatumError, match="another base"):
        load_adapter(other, path)
    same, loss, _, _ = setting()
    split(same, Indices.random([(n, same.get_parameter(n)) for n in ("first.weight", "second.weight")], 0.05, seed=1))
    with pytest.raises(ProbatumError, match=r"other positions in first\.weight"):
        load_adapter(same, path)
    eight, loss, _, _ = setting()
    split(eight, chosen_of(eight, loss), bits=8)
    with pytest.raises(ProbatumError, match="tuned with bits=4, this model is split with 8"):
        load_adapter(eight, path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ProbatumError, match="cannot be read as an adapter"):
        load_adapter(same, path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ProbatumError, match="no adapter of senszoq"):
        load_adapter(same, path)
    with pytest.raises(ProbatumError, match="no such adapter"):
        load_adapter(same, tmp_path / "none.safetensors")
    with pytest.raises(ProbatumError, match=r"an adapter is a \.safetensors file"):
        save_adapter(net, tmp_path / "task.bin")


# Bad input.


def test_what_cannot_be_scored_is_told():
    net, loss, _, _ = setting()
    with pytest.raises(ProbatumError, match="batches is empty: the scores need text"):
        sensitivity(net, [], loss)
    with pytest.raises(ProbatumError, match="score must be fisher or mean_grad"):
        sensitivity(net, [[0]], loss, score="grad")
    with pytest.raises(ProbatumError, match=r"the gradient of first\.weight is not finite"):
        sensitivity(net, [[0]], lambda m, rows: loss(m) * math.nan)
    with pytest.raises(ProbatumError, match="no linear layer is left"):
        sensitivity(net, [[0]], loss, include=("*bias",))
    with pytest.raises(ProbatumError, match=r"0\.weight belongs to Conv2d: only nn.Linear"):
        sensitivity(nn.Sequential(nn.Conv2d(2, 3, 1)), [[0]], loss)
    experts = nn.Module()
    experts.up = nn.Parameter(torch.zeros(2, 3, 4))
    with pytest.raises(ProbatumError, match="up has 3 dimensions"):
        sensitivity(experts, [[0]], loss)
    scores = sensitivity(net, [[0]], loss)
    for fraction, text in ((0.0, "above 0"), (1.2, "at most 1"), (1e-6, "no weight is chosen")):
        with pytest.raises(ProbatumError, match=text):
            choose(scores, fraction)


def test_what_cannot_be_split_is_told_and_left_alone():
    net, loss, _, _ = setting()
    found = chosen_of(net, loss)
    turned = Indices(("first.weight",), ((13, 17),), (torch.arange(3),))
    for call, text in (
        (lambda: split(net, turned), r"first\.weight are of shape \[13, 17\], the weight is \[17, 13\]: they are of the transposed"),
        (lambda: split(net, Indices(("w.weight",), ((3, 4),), (torch.arange(3),))), r"another model: this one has no w\.weight"),
        (lambda: split(net, Indices(("norm.weight",), ((5,),), (torch.arange(3),))), "norm is LayerNorm"),
        (lambda: split(net, found, bits=3), "bits must be 4, 8, 16 or 32"),
        (lambda: split(net, found, embeddings=3), "embeddings must be 4, 8 or None"),
        (lambda: split(net, found, also=("nothing.*",)), "matches none"),
        (lambda: split(net, found, also=("first.bias",)), "of a layer that is split"),
        (lambda: split(net, found, group=3), "group must be an even number"),
    ):
        with pytest.raises(ProbatumError, match=text):
            call()
        assert type(net.first) is nn.Linear and net.first.weight.requires_grad
    alone = nn.Linear(3, 4)
    with pytest.raises(ProbatumError):
        split(alone, Indices(("weight",), ((4, 3),), (torch.arange(3),)))
    split(net, found)
    with pytest.raises(ProbatumError, match="first is quantised already"):
        split(net, found)
    with pytest.raises(ProbatumError, match="quantised already: scores are taken of the base"):
        sensitivity(net, [[0]], loss)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rule": "SGD"}, "rule must be an optimizer class of torch.optim"),
        ({"rule": torch.optim.LBFGS}, "steps without a closure"),
        ({"rule_options": {"momentum": 0.9}}, "rule_options go with rule="),
        ({"rule": torch.optim.SGD, "rule_options": {"speed": 1}}, "rule SGD does not take"),
        ({"rule": torch.optim.SGD, "weight_decay": 0.1}, "weight decay is one of its rule_options"),
        ({"rule": torch.optim.SGD, "exact": "lattice"}, "needs exact='copy', got 'lattice'"),
        ({"lr": 0.0}, "lr must be above 0"),
    ],
)
def test_bad_settings(options, said):
    net, loss, _, _ = setting()
    split(net, chosen_of(net, loss))
    with pytest.raises(ProbatumError, match=said):
        SensZOQ(net.named_parameters(), **{"lr": 1e-2, **options})
