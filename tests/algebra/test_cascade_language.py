"""The notation: what it means point by point, and that a written cascade reads back as itself."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from probatum import ProbatumError
from probatum.algebra import TAXONOMY, Cascade
from probatum.algebra.cascade_syntax import parse

X = torch.arange(12, dtype=torch.float64).reshape(3, 4) - 5


def run(text, extents=None, **inputs):
    (result,) = Cascade(text).run(inputs, extents).values()
    return result


@pytest.mark.parametrize("name", TAXONOMY)
def test_written_text_reads_back(name):
    first = Cascade.named(name)
    again = Cascade(str(first))
    assert [str(s) for s in again.graph.statements] == [str(s) for s in first.graph.statements] and str(again) == str(first)


def test_reductions():
    assert_close(run("do: Y[i] = X[i,j]", X=X), X.sum(1))
    assert_close(run("do: Y[j] = X[i,j] :: max(i)", X=X), X.amax(0))
    assert_close(run("do: Y = X[i,j] :: min(i,j)", X=X), X.min())
    assert_close(run("do: Y[i] = X[i,j] :: prod(j)", X=X), X.prod(1))
    assert_close(run("do: Y[i] = X[i,j] :: lse(j)", X=X), X.logsumexp(1))
    assert_close(run("do: Y = X[i,j] :: max(j)", X=X), X.sum(0).amax())  # sums that are not written come first


def test_products_over_the_tropical_semirings():
    a, b = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for how, torch_reduce in (("max", torch.amax), ("min", torch.amin), ("lse", torch.logsumexp)):
        got = run(f"do: Y[i,k] = A[i,j] + B[k,j] + 1 :: {how}(j)", A=a, B=b)
        assert_close(got, torch_reduce(a[:, None] + b[None] + 1, -1))


def test_indices():
    assert_close(run("do: Y[i] = X[i,i]", X=X[:, :3]), X[:, :3].diagonal())
    assert_close(run("do: Y[i,j] = X[i,1+j]", {"J": 3}, X=X), X[:, 1:])
    assert_close(run("do: Y[i] = X[i,2]", X=X), X[:, 2])
    assert_close(run("do: Y[i,j1] = X[i,J0*j1+j0] :: max(j0)", {"J0": 2}, X=X), X.unflatten(1, (2, 2)).amax(-1))
    signal, taps = torch.randn(11, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    want = torch.nn.functional.conv1d(signal[None, None], taps[None, None])[0, 0]
    assert_close(run("do: Y[t] = S[t+r]*W[r]", {"T": 9}, S=signal, W=taps), want)
    assert_close(run("do: Y[t] = S[2*t+r]*W[r]", {"T": 5}, S=signal, W=taps), want[::2])
    assert_close(run("do: Z[i] = X[i,j]  Y[i,i_] = Z[i] - Z[i_]", X=X), X.sum(1)[:, None] - X.sum(1)[None])


def test_coordinates_and_filters():
    i, j = torch.meshgrid(torch.arange(3), torch.arange(4), indexing="ij")
    assert_close(run("do: Y[i,j] = X[i,j]*(i - 2*j)", X=X), X * (i - 2 * j))
    assert_close(run("do: Y[i] = X[i, j : j <= i]", X=X), torch.where(j <= i, X, 0).sum(1))
    assert_close(run("do: Y[i] = X[i, j : j > i and j != 3] :: max(j)", X=X), torch.where((j > i) & (j != 3), X, -math.inf).amax(1))
    assert_close(
        run("do: Y[i] = X[i, j : j < L[i]]", X=X, L=torch.tensor([0, 2, 9])), torch.where(j < torch.tensor([[0], [2], [9]]), X, 0).sum(1)
    )


def test_division_touches_nothing_where_the_divisor_is_zero():
    a, b = torch.tensor([1.0, 0.0, 3.0], requires_grad=True), torch.tensor([2.0, 0.0, 0.0], requires_grad=True)
    y = run("do: Y[i] = A[i]/B[i]", A=a, B=b)
    assert y.tolist() == [0.5, 0.0, 0.0]
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(y.sum(), (a, b)))


def test_iteration_and_until():
    steps = "init: S[0] = 0  do: S[i+1] = S[i] + A[i]  Y = S[I]"
    a = torch.arange(6, dtype=torch.float64)
    assert run(steps, A=a) == 15 and run(steps + " until i >= 4", A=a) == 6
    history = Cascade("init: S[0] = 0  do: S[i+1] = S[i] + A[i]").run({"A": a})["S"]
    assert history.tolist() == [0, 0, 1, 3, 6, 10, 15]
    with pytest.raises(ProbatumError, match="until compares the iterative variable"):
        Cascade("do: Y = A[i] until i >= 4")


def test_comments_semicolons_and_extents():
    description = parse("extents: M0 = 2*K, K = 4 # a comment\ndo: Y = A[m1*M0+m0]; Z = Y*Y")
    assert len(description.statements) == 2 and [name for name, _ in description.extents] == ["M0", "K"]
    cascade = Cascade("extents: M0 = 4\ndo: Y[m1] = A[m1*M0+m0]")
    assert cascade.run({"A": torch.ones(12)})["Y"].tolist() == [4, 4, 4]
    assert cascade.run({"A": torch.ones(12)}, {"M0": 6})["Y"].tolist() == [6, 6]  # given ones stand above the text's


def points(expression, space, sizes):
    """The specification: an expression at every point, by Python."""
    for place in itertools.product(*(range(sizes[v]) for v in space)):
        yield place, expression(dict(zip(space, place, strict=True)))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3), st.integers(-3, 3), st.sampled_from(["sum", "max", "min", "prod"]))
def test_a_filtered_reduction_equals_its_definition(i, j, k, shift, how):
    generator = torch.Generator().manual_seed(i + 10 * j + 100 * k)
    a, b = torch.randn(i, j, dtype=torch.float64, generator=generator), torch.randn(j, k, dtype=torch.float64, generator=generator)
    got = run(f"do: Y[k,i] = A[i,j : j <= i + {shift} + k]*B[j,k] - A[i,j]/2 :: {how}(j)", A=a, B=b)
    combine = {"sum": sum, "max": lambda v: max(v, default=-math.inf), "min": lambda v: min(v, default=math.inf), "prod": math.prod}[how]
    for (kk, ii), _ in points(lambda at: None, "ki", {"k": k, "i": i}):
        kept = [float(a[ii, jj] * b[jj, kk] - a[ii, jj] / 2) for jj in range(j) if jj <= ii + shift + kk]
        assert_close(float(got[kk, ii]), float(combine(kept)))


def test_tiles_without_a_point_are_skipped(monkeypatch):
    from probatum.algebra import cascade_execution

    calls = []
    monkeypatch.setattr(cascade_execution, "contract", lambda *a, whole=cascade_execution.contract: calls.append(a) or whole(*a))
    inputs = {n: torch.randn(1, 2, 16, 3) for n in "QKV"}
    cascade = Cascade.named("attention-1pass").where("BQK", "m1*M0+m0 <= p")
    got = cascade.run(inputs, {"M0": 4}, tile={"p": 4})["AV"]
    assert len(calls) == 2 * (4 + 3 + 2 + 1)  # two products in each tile on or below the diagonal
    assert_close(got, torch.nn.functional.scaled_dot_product_attention(*inputs.values(), is_causal=True))


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 7), st.integers(1, 5), st.integers(1, 4), st.integers(1, 7), st.booleans())
def test_blocked_equals_reference(p, steps, size, tile, causal):
    generator = torch.Generator().manual_seed(p + 10 * steps + 100 * size)
    shapes = {"Q": (1, 2, p, 3), "K": (1, 2, steps * size, 3), "V": (1, 2, steps * size, 2)}
    inputs = {n: torch.randn(s, dtype=torch.float64, generator=generator) for n, s in shapes.items()}
    cascade = Cascade.named("attention-1pass")
    if causal:
        cascade = cascade.where("BQK", "m1*M0+m0 <= p")
    a = cascade.run(inputs, {"M0": size}, plan="reference")["AV"]
    b = cascade.run(inputs, {"M0": size}, plan="blocked", tile={"p": tile})["AV"]
    assert_close(a, b, atol=1e-13, rtol=0)
