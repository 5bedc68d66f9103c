"""The three modes of scan give one result, on numpy, torch and lists; gradients; closed forms."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from probatum import ProbatumError
from probatum.algebra.monoids import (
    ADDITION,
    AFFINE,
    CONCATENATION,
    SOFTMAX,
    fold,
    matrices,
    scan,
    scan_stream,
    under_add,
    under_mul,
)  # fmt: skip
from probatum.algebra.semirings import BOOL, LOG, MAXPLUS, MINPLUS, REAL, STRINGS

MODES = ("sequential", "tree", "chunked")


def arrays(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("backend", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 12])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("reverse", "exclusive"), [(False, False), (False, True), (True, False), (True, True)])
def test_modes_agree_on_affine_maps(backend, n, axis, reverse, exclusive):
    shape = [5, 5, 3]
    shape[axis] = n
    xs = (backend(arrays(n, *shape)), backend(arrays(n + 1, *shape)))
    out = [scan(AFFINE, xs, axis, mode, reverse=reverse, exclusive=exclusive, chunk=5) for mode in MODES]
    h, steps = np.zeros([s for i, s in enumerate(shape) if i != axis]), []
    order = range(n - 1, -1, -1) if reverse else range(n)
    a, b = (np.moveaxis(np.asarray(x), axis, 0) for x in xs)
    # reversed, the maps apply from position t on in their order: the constant term is built from the other side
    scale = np.ones_like(h)
    for t in order:
        before = h
        if reverse:
            h, scale = scale * b[t] + h, scale * a[t]
        else:
            h = a[t] * h + b[t]
        steps.append(before if exclusive else h)
    expected = np.moveaxis(np.stack(steps[::-1] if reverse else steps), 0, axis)
    for result in out:
        np.testing.assert_allclose(np.asarray(result[1]), expected, atol=1e-12)
        np.testing.assert_allclose(np.asarray(result[0]), np.asarray(out[0][0]), atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text("ab", max_size=2), min_size=1, max_size=20), st.integers(1, 7), st.booleans(), st.booleans())
def test_lists_keep_order(words, chunk, reverse, exclusive):
    """Strings do not commute: any wrong order shows."""
    n = len(words)
    span = [(i + exclusive, n) if reverse else (0, i + 1 - exclusive) for i in range(n)]
    expected = ["".join(words[a:b]) for a, b in span]
    for mode in MODES:
        assert scan(CONCATENATION, words, mode=mode, reverse=reverse, exclusive=exclusive, chunk=chunk) == expected
    assert fold(CONCATENATION, words) == "".join(words)
    sets = [frozenset({w, "x"}) for w in words[:6]]
    assert scan(under_mul(STRINGS), sets, mode="tree") == scan(under_mul(STRINGS), sets, mode="sequential")


@pytest.mark.parametrize("s", [BOOL, REAL, LOG, MINPLUS, MAXPLUS], ids=repr)
@pytest.mark.parametrize("backend", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
def test_modes_agree_on_semiring_matrices(s, backend):
    x = arrays(0, 11, 3, 3)
    x = backend(x > 0 if s is BOOL else x)
    expected = [x[0]]
    for t in range(1, 11):
        row = [[s.sum(s.mul(expected[-1][i, k].item(), x[t, k, j].item()) for k in range(3)) for j in range(3)] for i in range(3)]
        expected.append(np.array(row))
    for mode in MODES:
        np.testing.assert_allclose(np.asarray(scan(matrices(s), x, mode=mode, chunk=4)).astype(float), np.array(expected, float), rtol=1e-9)
    np.testing.assert_allclose(np.asarray(fold(matrices(s), x)).astype(float), np.array(expected[-1], float), rtol=1e-9)


def test_sums_against_numpy():
    x = arrays(3, 6, 1025)
    for mode in MODES:
        np.testing.assert_allclose(scan(ADDITION, x, 1, mode, chunk=100), np.cumsum(x, 1), rtol=1e-9, atol=1e-9)
        np.testing.assert_array_equal(scan(under_add(MAXPLUS), x, 1, mode, chunk=100), np.maximum.accumulate(x, 1))
    assert fold(under_add(MINPLUS), x, 1).tolist() == x.min(1).tolist()


def test_softmax_state_is_one_pass_attention():
    score, value = torch.tensor(arrays(1, 13, 5)), torch.tensor(arrays(2, 13, 5, 7))
    score[:4, 0] = -torch.inf  # a masked beginning
    m, d, n = scan(SOFTMAX, (score, torch.ones_like(score), value), mode="tree")
    weights = torch.softmax(score, 0)
    torch.testing.assert_close(n[-1] / d[-1][..., None], (weights[..., None] * value).sum(0), rtol=1e-12, atol=1e-12)
    whole = fold(SOFTMAX, (score, torch.ones_like(score), value))
    torch.testing.assert_close(whole[0] + whole[1].log(), torch.logsumexp(score, 0), rtol=1e-12, atol=1e-12)
    assert not torch.isnan(n).any() and not torch.isnan(d).any() and m[3, 0] == -torch.inf


@pytest.mark.parametrize("mode", MODES)
def test_gradients_go_through_every_mode(mode):
    a = torch.tensor(arrays(4, 7, 2)).mul(0.5).requires_grad_()
    b = torch.tensor(arrays(5, 7, 2)).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: scan(AFFINE, (a, b), mode=mode, chunk=3)[1], (a, b))


def test_prefix_times_suffix_is_the_marginal():
    """Best path through each state of a chain: forward and reverse scans of max-plus matrices against brute force."""
    x = arrays(6, 5, 3, 3)
    before = scan(matrices(MAXPLUS), x, exclusive=True)
    after = scan(matrices(MAXPLUS), x, reverse=True)
    marginal = before.max(1) + after.max(2)  # best into state s at time t, plus best onward
    for t in range(5):
        for s in range(3):
            best = max(sum(x[i, p[i], p[i + 1]] for i in range(5)) for p in itertools.product(range(3), repeat=6) if p[t] == s)
            assert abs(marginal[t, s] - best) < 1e-12


def test_streaming_equals_the_whole():
    x = (arrays(7, 20, 2), arrays(8, 20, 2))
    parts = list(scan_stream(AFFINE, ((x[0][i : i + 6], x[1][i : i + 6]) for i in range(0, 20, 6))))
    np.testing.assert_allclose(np.concatenate([p[1] for p in parts]), scan(AFFINE, x)[1], atol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scan(ADDITION, np.ones(3), mode="fast"), "mode must be sequential, tree or chunked, got 'fast'"),
        (lambda: scan(ADDITION, np.ones(0)), "at least 1"),
        (lambda: scan(AFFINE, (np.ones(3), np.ones(4))), r"one length .* got \[3, 4\]"),
        (lambda: scan(ADDITION, np.ones((3, 2)), -1), "axis counts from the front"),
        (lambda: scan(ADDITION, np.ones(3), chunk=0), "chunk must be at least 1"),
        (lambda: fold(CONCATENATION, []), "at least 1"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ProbatumError, match=message):
        call()
