"""FuseMax: pass counts, equality with torch, the published tables, bad input."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from probatum import ProbatumError
from probatum.algebra import TAXONOMY, Cascade, Machine, attention, design, headline, published

B, H, P, M, E, V = 2, 3, 10, 24, 7, 5  # all different, so that a transposition shows
PASSES = {
    "cascade-1": 2, "cascade-2": 1, "cascade-3": 1, "attention-3pass": 3, "attention-deferred": 2, "attention-2pass": 2,
    "attention-1pass": 1,
    "attention-gqa-1pass": 1, "softmax": 3, "softmax-online": 2, "layernorm": 3, "layernorm-moments": 2, "rmsnorm": 2, "cross-entropy": 2,
    "cross-entropy-1pass": 1, "cross-entropy-lse": 1, "matmul": 1,
}  # fmt: skip
ATTENTION = ["attention-3pass", "attention-deferred", "attention-2pass", "attention-1pass"]
TILED = {"attention-2pass", "attention-1pass"}


def qkv(dtype=torch.float64, grad=False, p=P):
    generator = torch.Generator().manual_seed(0)
    shapes = (B, H, p, E), (B, H, M, E), (B, H, M, V)
    return [torch.randn(s, dtype=dtype, generator=generator).requires_grad_(grad) for s in shapes]


# Passes


@pytest.mark.parametrize("name", TAXONOMY)
def test_passes_of_the_taxonomy(name):
    assert Cascade.named(name).passes().count == PASSES[name]


def test_passes_are_relative_to_the_family():
    one = Cascade.named("attention-1pass")
    assert one.passes("m1", "m0").count == 1 and one.passes("m0").count == 2
    two = Cascade.named("attention-2pass").passes("m1", "m0")
    assert two.of_tensor["SLN"] == (1, 2) and two.buffered("SLN") and not two.buffered("SLD")
    with pytest.raises(ProbatumError, match="unknown rank 'z'"):
        one.passes("z")


def test_pass_boundaries_stand_where_the_paper_draws_them():
    three = Cascade.named("attention-3pass")
    passes = dict(zip([s.target.name for s in three.graph.statements], three.passes("m").of_statement, strict=True))
    assert passes == {"QK": 1, "GM": 1, "SN": 2, "SD": 2, "A": 3, "AV": 3}


def test_footprints_name_what_must_be_kept():
    needs = {f.name: (f.needs, f.live) for f in Cascade.named("attention-3pass").footprints("m")}
    assert {n for n, (kind, _) in needs.items() if kind == "fibre"} == {"QK", "SN"} and needs["QK"][1] == ("M",)
    one = {f.name: f.needs for f in Cascade.named("attention-1pass").footprints("m1", "m0")}
    assert one["BQK"] == "tile" and {n for n, kind in one.items() if kind == "state"} == {"RM", "RD", "RNV"} and "fibre" not in one.values()
    words = Cascade.named("attention-3pass").footprints("m", extents={"B": 1, "H": 2, "P": 3, "M": 5, "E": 7, "F": 7})
    assert next(f.words for f in words if f.name == "SN") == 1 * 2 * 3 * 5


def test_deferred_division_divides_once_a_result():
    extents = {"B": 1, "H": 1, "P": 11, "M": 13, "E": 5, "F": 3}
    assert Cascade.named("attention-3pass").operations(extents)["/"] == 13 * 11
    assert Cascade.named("attention-deferred").operations(extents)["/"] == 3 * 11
    assert Cascade.named("matmul").operations({"M": 2, "N": 3, "K": 5}) == {"*": 30, "+": 30}


# Execution


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_cascades_equal_torch(name):
    q, k, v = qkv()
    want = F.scaled_dot_product_attention(q, k, v)
    for plan in ("reference", "blocked") if name == "attention-1pass" else ("reference",):
        got = Cascade.named(name).run({"Q": q, "K": k, "V": v}, {"M0": 8} if name in TILED else None, plan=plan)["AV"]
        assert_close(got, want, atol=3e-13, rtol=0)


@pytest.mark.parametrize("tile", [None, {"p": 4}, {"p": 3, "h": 2, "b": 1}, {"f": 2}])
def test_blocked_gradients_equal_torch(tile):
    q, k, v = qkv(grad=True)
    want = F.scaled_dot_product_attention(q, k, v)
    got = Cascade.named("attention-1pass").run({"Q": q, "K": k, "V": v}, {"M0": 6}, plan="blocked", tile=tile)["AV"]
    assert_close(got, want, atol=3e-13, rtol=0)
    weight = torch.randn(want.shape, dtype=want.dtype, generator=torch.Generator().manual_seed(1))
    for ours, theirs in zip(torch.autograd.grad(got, (q, k, v), weight), torch.autograd.grad(want, (q, k, v), weight), strict=True):
        assert_close(ours, theirs, atol=1e-12, rtol=0)


def masked(q, k, v, mask, change=lambda s: s):
    score = change(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).masked_fill(~mask, -math.inf)
    return torch.nan_to_num(score.softmax(-1)) @ v


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"causal": True},
        {"window": 3},
        {"causal": True, "window": 4},
        {"softcap": 2.0},
        {"lengths": (24, 7)},
        {"alibi": True},
        {"bias": True},
    ],
    ids=str,
)
def test_attention_masks_equal_dense_attention(options, splits):
    q, k, v = qkv(grad=True)
    i, j = torch.arange(P)[:, None] + M - P, torch.arange(M)[None]
    mask, change = torch.ones(B, 1, P, M, dtype=torch.bool), lambda s: s
    options = dict(options)
    if options.get("causal"):
        mask = mask & (j <= i)
    if "window" in options:
        mask = mask & ((i - j).abs() < options["window"])
    if "softcap" in options:
        change = lambda s: 2 * torch.tanh(s / 2)  # noqa: E731
    if "lengths" in options:
        options["lengths"] = torch.tensor(options["lengths"])
        mask = mask & (j < options["lengths"][:, None, None, None])
    if "alibi" in options:
        options["alibi"] = slopes = torch.tensor([0.5, 0.25, 0.125], dtype=torch.float64)
        change = lambda s: s - slopes[:, None, None] * (i - j).abs()  # noqa: E731
    if "bias" in options:
        options["bias"] = bias = torch.randn(B, H, P, M, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        change = lambda s: s + bias  # noqa: E731
    got, want = attention(q, k, v, block=5, splits=splits, **options), masked(q, k, v, mask, change)
    assert_close(got, want, atol=3e-13, rtol=0)
    for ours, theirs in zip(torch.autograd.grad(got.sum(), (q, k, v)), torch.autograd.grad(want.sum(), (q, k, v)), strict=True):
        assert_close(ours, theirs, atol=1e-12, rtol=0)


def test_a_query_without_keys_gives_zero_and_no_nan():
    q, k, v = qkv(grad=True)
    out = attention(q, k, v, lengths=torch.tensor([0, 24]), block=8)
    assert torch.equal(out[0], torch.zeros_like(out[0])) and torch.isfinite(out).all()
    grads = torch.autograd.grad(out.sum(), (q, k, v))
    assert all(torch.isfinite(g).all() and not g[0].any() for g in grads)


def test_grouped_queries_share_keys():
    q, k, v = qkv()
    q = q.repeat(1, 4, 1, 1) + torch.arange(12, dtype=torch.float64)[:, None, None]
    want = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    assert_close(attention(q, k, v, block=8), want, atol=3e-13, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_errs_at_most_twice_as_much_as_torch(dtype):
    q, k, v = (t.to(dtype) for t in qkv(p=M))
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    ours, theirs = attention(q, k, v, block=8), (q @ k.transpose(-1, -2) / math.sqrt(E)).softmax(-1) @ v
    assert ours.dtype == dtype
    assert (ours - exact).abs().max() <= 2 * (theirs - exact).abs().max() + torch.finfo(dtype).eps


def test_other_cascades_equal_torch():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 12, dtype=torch.float64, generator=generator)
    g, b = torch.rand(2, 12, dtype=torch.float64, generator=generator)
    t = torch.tensor([1, 5, 11, 0])

    def run(name, **inputs):
        (result,) = Cascade.named(name).run(inputs, {"C0": 4} if name == "cross-entropy-1pass" else {}).values()
        return result

    for name in ("layernorm", "layernorm-moments"):
        assert_close(run(name, X=x, G=g, B=b), F.layer_norm(x, (12,), g, b), atol=1e-12, rtol=0)
    assert_close(run("rmsnorm", X=x, G=g), F.rms_norm(x, (12,), g, 1e-5), atol=1e-12, rtol=0)
    for name in ("softmax", "softmax-online"):
        assert_close(run(name, X=x), x.softmax(-1), atol=1e-13, rtol=0)
    for name in ("cross-entropy", "cross-entropy-1pass", "cross-entropy-lse"):
        assert_close(run(name, X=x, T=t), F.cross_entropy(x, t, reduction="none"), atol=1e-12, rtol=0)
    assert_close(run("matmul", A=x, B=x.T), x @ x.T)


def test_the_first_three_cascades_compute_one_thing():
    a, b = torch.rand(2, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for name in ("cascade-1", "cascade-2", "cascade-3"):
        assert_close(Cascade.named(name).run({"A": a, "B": b})["Z"], (a * b).sum() * a.sum())


def test_carried_state_is_a_monoid():
    """Any cut of the keys, folded by the softmax monoid, gives the whole: split-K."""
    q, k, v = qkv()
    whole = attention(q, k, v, block=4)
    for splits in (2, 3, 6):
        assert_close(attention(q, k, v, block=4, splits=splits), whole, atol=1e-13, rtol=0)


def test_the_plan_is_told():
    assert Cascade.named("attention-1pass").plan().startswith("blocked: 1 pass over {m1, m0}")
    assert "SN needs GM" in Cascade.named("attention-3pass").plan()


# The published tables


@pytest.mark.parametrize("name", ["flat", "cascade", "architecture", "binding"])
def test_closed_forms_equal_the_published_points(name):
    ours, theirs = design(name), published(name)
    for column in ("traffic", "latency", "util_2d"):
        np.testing.assert_allclose(ours[column], theirs[column], rtol=1e-14)


def test_linear_layers_unfused_and_energy_are_near_the_published_points():
    for name in ("linear-flat", "linear-fusemax"):
        np.testing.assert_allclose(design(name)["latency"], published(name)["latency"], rtol=1e-14)
    ours, theirs = design("unfused"), published("unfused")
    np.testing.assert_allclose(ours["latency"], theirs["latency"], rtol=4e-3)
    np.testing.assert_allclose(ours["latency"][:4], theirs["latency"][:4], rtol=1e-14)  # BERT, exact to 64K
    for name, tolerance in (("binding", 4e-3), ("architecture", 4e-3), ("flat", 4.3e-2)):
        np.testing.assert_allclose(design(name)["energy"], published(name)["energy"], rtol=tolerance)


def test_figures_of_single_points():
    ours, flat = design("binding"), design("flat")
    cycles = ours["latency"][0] * 940e6
    assert cycles == pytest.approx(154 * 12288, rel=1e-14) and ours["latency"][0] == pytest.approx(2.0131404e-3, rel=1e-7)
    assert ours["util_2d"][0] == pytest.approx(137 / 154, rel=1e-14) and ours["traffic"][0] == 402_653_184
    assert flat["latency"][0] == pytest.approx(13.3860766e-3, rel=1e-7) and flat["util_2d"][0] == 0.125
    assert flat["traffic"][0] == 1_308_622_848 and flat["traffic"][4] == 435_458_144_206_848
    assert flat["latency"][4] == pytest.approx(1013.88, rel=1e-5) and flat["latency"][4] == flat["memory"][4]
    assert ours["util_2d"][5] == pytest.approx(137 / (138 + 64 * 256 / 2**20), rel=1e-14)  # to 137/138 as N grows
    assert design("linear-flat")["latency"][0] == pytest.approx(7.5296681e-3, rel=1e-7)


@pytest.mark.parametrize("source", ["model", "published"])
def test_headline_means(source):
    means = headline(source)
    attention_speedup, network = means["attention speedup over flat"], means["network speedup over flat"]
    assert attention_speedup["arithmetic"] == pytest.approx(6.7226, abs=5e-5) and attention_speedup["geometric"] == pytest.approx(
        6.46, abs=5e-3
    )
    assert network["arithmetic"] == pytest.approx(5.3017, abs=5e-5) and network["geometric"] == pytest.approx(4.60, abs=5e-3)
    assert means["utilisation, fusemax"]["arithmetic"] == pytest.approx(0.9700, abs=5e-5)
    assert means["utilisation, flat"]["arithmetic"] == pytest.approx(0.1487, abs=5e-5)
    assert means["attention energy against flat"]["arithmetic"] == pytest.approx(0.787, abs=1e-3)


# Bad input


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("do: Y[i] = A[k]", "line 1, column 7: the left index 'i' does not occur on the right of Y"),
        ("do: Y[i = 3", "line 1, column 9: unexpected '='"),
        ("do:\n  Y = A[k]\n  Z = foo(Y)", "line 3, column 7: unknown function 'foo'"),
        ("do: Y = A[k] :: mux(k)", "unknown reduction 'mux': did you mean max"),
        ("do: Y = A[k] :: max(j)", "unknown rank 'j'"),
        ("do: Y[p] = R[M2,p]", "unknown rank: no index variable has the extent M2"),
        ("do: Y[i] = A[i,k]*Z[i]  Z[i] = Y[i]", "a cycle without an iterative rank: Y <- Z <- Y"),
        ("do: Y[i,j] = A[i,j]  Z[i,j] = Y[j,i]", r"extents disagree: Y\[i,j\] has extent I on index 1, Y\[j,i\] reads it over J"),
        ("do: Y[i] = A[i] + B[i,i]  Z = B[i]", "B has 1 indices here and 2 at"),
        ("do: Y[i] = A[i]  Y[i] = B[i]", "Y is made twice"),
        ("do: Y[i+1] = Y[i] + A[i]", "init: gives it no first value"),
        ("init: Y[0] = 0  do: Y[i+1] = Y[i] + A[i]  Z = Y[3]", "read it at i, i"),
        ("do: Y = A[i*i]", "an index is a sum of variables"),
        ("", "unexpected the end of the text; expected do:"),
    ],
)
def test_bad_texts_are_told_where(text, message):
    with pytest.raises(ProbatumError, match=message):
        Cascade(text)


def test_bad_tensors_are_named():
    q, k, v = qkv()
    three, one = Cascade.named("attention-3pass"), Cascade.named("attention-1pass")
    with pytest.raises(ProbatumError, match=r"extents disagree: M is 24 by K, axis 2 .*but 20 by V, axis 2"):
        three.run({"Q": q, "K": k, "V": v[:, :, :20]})
    with pytest.raises(ProbatumError, match=r"24 is not divisible by M0 = 7 .*take one of 4, 6, 8, or pad K"):
        one.run({"Q": q, "K": k, "V": v}, {"M0": 7})
    with pytest.raises(ProbatumError, match=r"needs a cascade of one pass.*3 passes over {m}, since SN needs GM"):
        three.run({"Q": q, "K": k, "V": v}, plan="blocked")
    with pytest.raises(ProbatumError, match=r"missing \['V'\], unknown \['W'\]"):
        three.run({"Q": q, "K": k, "W": v})
    with pytest.raises(ProbatumError, match="input K has 4 indices"):
        three.run({"Q": q, "K": k[0], "V": v})
    with pytest.raises(ProbatumError, match="'Z' is no rank"):
        one.run({"Q": q, "K": k, "V": v}, {"Z": 7})
    with pytest.raises(ProbatumError, match="tile: 'm0' cannot be cut"):
        one.run({"Q": q, "K": k, "V": v}, {"M0": 8}, tile={"m0": 2})
    with pytest.raises(ProbatumError, match="unknown cascade 'attention-4pass': did you mean"):
        Cascade.named("attention-4pass")
    with pytest.raises(ProbatumError, match="unknown rank 'x', QK has"):
        three.where("QK", "x <= p")


def test_bad_attention_arguments():
    q, k, v = qkv()
    for bad, message in (
        ({"splits": 0}, "splits must be"), ({"block": 0}, "block must be"), ({"softcap": -1.0}, "softcap must be"),
        ({"lengths": torch.ones(3)}, r"lengths must have shape \(2,\)"),
        ({"alibi": torch.ones(3), "bias": torch.ones(B, H, P, M)}, "not both"),
    ):  # fmt: skip
        with pytest.raises(ProbatumError, match=message):
            attention(q, k, v, **bad)
    with pytest.raises(ProbatumError, match="must fit query"):
        attention(q, k[:, :2], v[:, :2])


# Machines and the command


def test_machine_files(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("clock = 1e9\nmatrix_lanes = 1024\nvector_lanes = 64\nbandwidth = 1e10\nbuffer = 1e6\n[cycles]\nexp = 8\n")
    machine = Machine.load(path)
    assert machine.name == "mine" and machine.cycles == {"exp": 8}
    extents = {"M": 64, "N": 64, "K": 64}
    cost = Cascade.named("matmul").cost(machine, extents)
    assert cost.maccs == 64**3 and cost.bytes == 2 * 3 * 64 * 64 and cost.seconds == max(64**3 / 1024 / 1e9, 24576 / 1e10)
    for text, message in (
        ("clock = 1", "lacks"),
        ("clock = -1", "positive|lacks"),
        ("speed = 1", "unknown key 'speed'"),
        ("x = [", "not a TOML"),
    ):
        path.write_text(text)
        with pytest.raises(ProbatumError, match=message):
            Machine.load(path)
    with pytest.raises(ProbatumError, match="no machine of that name: did you mean fusemax"):
        Machine.load("fuse")


def test_fewer_passes_move_fewer_bytes_when_fibres_do_not_fit():
    extents = {"B": 1, "H": 1, "P": 1 << 20, "E": 64, "F": 64}
    machine = Machine("small", 1e9, 1 << 16, 256, 1e11, 1 << 20)
    three = Cascade.named("attention-3pass").cost(machine, {**extents, "M": 1 << 20})
    one = Cascade.named("attention-1pass").cost(machine, {**extents, "M1": 1 << 12, "M0": 256})
    assert three.spilled == ("QK", "SN") and not one.spilled and three.bytes > 4 * 2 * 2**40 and one.bytes < three.bytes / 10


def test_command(tmp_path):
    from typer.testing import CliRunner

    from probatum.cli import app

    run = CliRunner().invoke
    q, k, v = qkv(torch.float32)
    np.savez(tmp_path / "in.npz", Q=q, K=k, V=v)
    arguments = [
        "cascade", "attention-1pass", "--run", str(tmp_path / "in.npz"), "-o", str(tmp_path / "out.npz"), "-x", "M0=8", "-x", "P=10",
        "-x", "M1=3",
        "-x", "B=2", "-x", "H=3", "-x", "E=7", "-x", "F=5", "--machine", "fusemax", "--picture", str(tmp_path / "graph.svg"), "--json",
    ]  # fmt: skip
    result = run(app(), arguments)
    assert result.exit_code == 0, result.output
    document = json.loads(result.output)
    assert document["passes"] == 1 and document["run"]["outputs"]["AV"]["shape"] == [2, 3, 10, 5] and document["cost"]["seconds"] > 0
    assert "pass 1" in (tmp_path / "graph.svg").read_text() or (tmp_path / "graph.svg").stat().st_size > 2000
    assert_close(torch.from_numpy(np.load(tmp_path / "out.npz")["AV"]), F.scaled_dot_product_attention(q, k, v), atol=1e-5, rtol=1e-5)
    (tmp_path / "mine.txt").write_text("do: Y[b] = X[b,d] :: max(d)\n")
    shown = run(app(), ["cascade", str(tmp_path / "mine.txt"), "--json"])
    assert json.loads(shown.output)["by_family"] == {"b": 1, "d": 1}
