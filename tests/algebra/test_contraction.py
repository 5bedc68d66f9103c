"""Einsum over semirings against a loop over all indices, in numpy and torch."""

import itertools
import math

import numpy as np
import pytest
import torch

from probatum import ProbatumError
from probatum.algebra import contraction
from probatum.algebra.contraction import contract, matmul
from probatum.algebra.semirings import BOOL, INT, LOG, MAXPLUS, MAXTIMES, MINPLUS, NAT, PROB, REAL, STRINGS, namespace

SPECS = ["ij,jk->ik", "bij,bjk->ikb", "ij,jk,kl->il", "i,j->ji", "ii,ij->j", "ij->", "ij,ij->i", "ij,k->i", "ijk,kj->i"]
EXTENTS = dict(zip("bijkl", (2, 3, 4, 5, 2), strict=True))
NUMERIC = [BOOL, REAL, PROB, LOG, MINPLUS, MAXPLUS, MAXTIMES]


def brute(s, spec, *ops):
    left, out = spec.split("->")
    ins = left.split(",")
    letters = sorted(set("".join(ins)))
    result = np.empty([EXTENTS[c] for c in out], object)
    for where in np.ndindex(result.shape):
        result[where] = s.zero
    for values in itertools.product(*(range(EXTENTS[c]) for c in letters)):
        at = dict(zip(letters, values, strict=True))
        term = s.prod(op[tuple(at[c] for c in part)] for part, op in zip(ins, ops, strict=True))
        where = tuple(at[c] for c in out)
        result[where] = s.add(result[where], term)
    return result


def operands(s, spec, seed=0):
    rng = np.random.default_rng(seed)
    for part in spec.split("->")[0].split(","):
        x = rng.normal(size=[EXTENTS[c] for c in part])
        if s is BOOL:
            x = x > 0.7
        elif s in (PROB, MAXTIMES):
            x = np.abs(x)
        elif s in (NAT, INT):
            x = np.array(np.floor(np.abs(x) * 4), int).astype(object)
        yield x


@pytest.mark.parametrize("s", [*NUMERIC, NAT, INT], ids=repr)
@pytest.mark.parametrize("spec", SPECS)
def test_equals_the_definition(s, spec):
    ops = list(operands(s, spec))
    expected = brute(s, spec, *ops)
    np.testing.assert_allclose(np.asarray(contract(s, spec, *ops), float), expected.astype(float), rtol=1e-10)
    if s in NUMERIC and s is not BOOL:
        result = contract(s, spec, *map(torch.tensor, ops))
        np.testing.assert_allclose(result.numpy(), expected.astype(float), rtol=1e-10)


def test_order_is_kept_where_products_do_not_commute():
    cells = [np.empty((2, 2), object) for _ in range(3)]
    for k, cell in enumerate(cells):
        for where in np.ndindex(2, 2):
            cell[where] = frozenset({f"{'abc'[k]}{where[0]}{where[1]}"})
    result = contract(STRINGS, "ij,jk,kl->il", *cells)
    assert result[1, 0] == {f"a1{j}b{j}{k}c{k}0" for j in (0, 1) for k in (0, 1)}


def test_integers_beyond_64_bits_stay_exact():
    a = np.array([[10**30, 1], [0, 7]], object)
    assert contract(NAT, "ij,jk->ik", a, a)[0, 0] == 10**60


@pytest.mark.parametrize("s", [MINPLUS, MAXPLUS, MAXTIMES, LOG], ids=repr)
def test_compiled_and_blocked_matmul_equal_the_broadcast(s, monkeypatch):
    rng = np.random.default_rng(1)
    a, b = rng.random((3, 17, 23)), rng.random((23, 31))
    cube = s.mul(a[..., :, :, None], b[None, None])
    expected = s.total(cube, 2)
    np.testing.assert_allclose(matmul(s, a, b), expected, rtol=1e-13)
    monkeypatch.setattr(contraction, "_BLOCK", 1000)
    np.testing.assert_allclose(matmul(s, torch.tensor(a), torch.tensor(b)).numpy(), expected, rtol=1e-13)


@pytest.mark.parametrize("backend", [np.asarray, lambda x: torch.tensor(x, dtype=torch.float64)], ids=["numpy", "torch"])
def test_log_where_the_shift_would_underflow(backend):
    """Row and column maxima at different k: exp(0 - 1000) is 0, the sum is not."""
    a, b = backend([[0.0, -1000.0]]), backend([[-1000.0], [0.0]])
    assert math.isclose(float(matmul(LOG, a, b)[0, 0]), -1000 + math.log(2))
    dead = backend([[-math.inf, -math.inf]])
    assert float(matmul(LOG, dead, b)[0, 0]) == -math.inf


def test_log_gradient_is_the_posterior():
    a = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    b = torch.randn(4, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda a: contract(LOG, "ij,jk->ik", a, b), (a,))
    (grad,) = torch.autograd.grad(contract(LOG, "ij,jk->ik", a, b)[:, 0].sum(), a)
    torch.testing.assert_close(grad, torch.softmax(a + b[:, 0], 1))


@pytest.mark.parametrize(
    ("spec", "shapes", "message"),
    [
        ("ij,jk", [(2, 3), (3, 2)], "spec must look like"),
        ("ij->kk", [(2, 3)], "every output index once"),
        ("ij->z", [(2, 3)], "on the left"),
        ("ij,jk->ik", [(2, 3)], "has 2 operands, got 1"),
        ("ij,jk->ik", [(2, 3), (4, 2)], "index 'j' .* extents 3 and 4"),
        ("ij->i", [(2, 3, 4)], "wants 2 axes"),
    ],
)
def test_bad_input(spec, shapes, message):
    with pytest.raises(ProbatumError, match=message):
        contract(MINPLUS, spec, *map(np.zeros, shapes))


def test_namespace_follows_the_operands():
    assert namespace(1.0, np.ones(2)) is np and namespace(1.0, torch.ones(2)) is torch
