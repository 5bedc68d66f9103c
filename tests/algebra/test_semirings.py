"""Semiring laws on random elements, arrays equal to scalars, stars, and what is refused."""

import itertools
import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch

from probatum import ProbatumError
from probatum.algebra.semirings import (
    BOOL,
    COMPLEX,
    INT,
    LOG,
    MAXPLUS,
    MAXTIMES,
    MINPLUS,
    NAT,
    PARSES,
    PROB,
    RAT,
    REAL,
    STRINGS,
    VITERBI,
    Trail,
    find_semiring,
    nbest,
    polynomials,
    product,
    semirings,
    weighted,
)  # fmt: skip

ELEMENTS = {
    BOOL: [False, True],
    NAT: [0, 1, 2, 5],
    INT: [0, 1, -3, 7],
    RAT: [Fraction(0), Fraction(1), Fraction(-2, 3), Fraction(5, 7)],
    REAL: [0.0, 1.0, -0.5, 2.0],
    COMPLEX: [0j, 1 + 0j, 2j, 1 - 1j],
    PROB: [0.0, 1.0, 0.25, 3.0],
    LOG: [-math.inf, 0.0, -1.5, 2.0],
    MINPLUS: [math.inf, 0.0, 3.0, -1.0],
    MAXPLUS: [-math.inf, 0.0, 3.0, -1.0],
    MAXTIMES: [0.0, 1.0, 0.5, 0.25],
    STRINGS: [frozenset(), frozenset({""}), frozenset({"a", "bc"}), frozenset({"", "ab"})],
    PARSES: [(0, frozenset()), (1, frozenset({""})), (3, frozenset({"a", "ab"}))],
    VITERBI: [(), weighted(1.0), weighted(0.5, "a"), weighted(0.5, "b", "c"), weighted(0.25, "a")],
    nbest(3, MINPLUS): [(), weighted(0.0), weighted(2.0, "a"), weighted(1.0, "b") + weighted(2.0, "c"), weighted(2.0, "b", "a")],
    product(NAT, MINPLUS): [(0, math.inf), (1, 0.0), (2, 3.0)],
    polynomials(INT): [(), (1,), (2, -1), (0, 0, 3)],
    polynomials(polynomials(NAT)): [(), ((1,),), ((0, 1),), ((), (2, 1))],
}


def same(a, b):
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, (float, complex)) and a == a and abs(a) != math.inf:
        return abs(a - b) < 1e-12
    return a == b


@pytest.mark.parametrize("s", ELEMENTS, ids=repr)
def test_laws(s):
    for a, b, c in itertools.product(ELEMENTS[s], repeat=3):
        assert same(s.add(a, b), s.add(b, a))
        assert same(s.add(s.add(a, b), c), s.add(a, s.add(b, c)))
        assert same(s.mul(s.mul(a, b), c), s.mul(a, s.mul(b, c)))
        assert same(s.mul(a, s.add(b, c)), s.add(s.mul(a, b), s.mul(a, c)))
        assert same(s.mul(s.add(a, b), c), s.add(s.mul(a, c), s.mul(b, c)))
        if s.commutative:
            assert same(s.mul(a, b), s.mul(b, a))
    for a in ELEMENTS[s]:
        assert s.add(a, s.zero) == a == s.mul(a, s.one) == s.mul(s.one, a)
        assert s.mul(a, s.zero) == s.zero == s.mul(s.zero, a)
        assert same(s.add(a, a), a) or not s.idempotent
        assert s.negate is None or same(s.add(a, s.negate(a)), s.zero)
        assert s.element(a) == a
        assert same(s.power(a, 3), s.mul(a, s.mul(a, a)))


@pytest.mark.parametrize("s", ELEMENTS, ids=repr)
def test_star_solves_its_equation_or_is_refused(s):
    solved = 0
    for a in ELEMENTS[s]:
        try:
            star = s.star(a)
        except ProbatumError as error:
            assert "does not exist" in str(error)
            continue
        solved += 1
        assert same(star, s.add(s.one, s.mul(a, star)))
    assert solved >= 1 and same(s.star(s.zero), s.one)


def test_stars_of_one():
    assert BOOL.star(True) is True and MINPLUS.star(2.0) == 0.0 == MAXPLUS.star(-1.0) and MAXTIMES.star(1.0) == 1.0
    for s in (NAT, INT, RAT, REAL, PROB, LOG):
        with pytest.raises(ProbatumError, match=rf"star\(.*\) does not exist in {s.name}"):
            s.star(s.one)
    assert RAT.star(Fraction(1, 3)) == Fraction(3, 2)
    assert math.isclose(math.exp(LOG.star(math.log(0.5))), 2.0)


@pytest.mark.parametrize("s", [BOOL, REAL, PROB, LOG, MINPLUS, MAXPLUS, MAXTIMES], ids=repr)
def test_arrays_and_tensors_agree_with_scalars(s):
    values = ELEMENTS[s]
    a, b = (np.array(x, s.dtype) for x in zip(*itertools.product(values, repeat=2), strict=True))
    for f in (s.add, s.mul):
        expected = [f(x, y) for x, y in itertools.product(values, repeat=2)]
        np.testing.assert_allclose(f(a, b).astype(float), np.array(expected, float), rtol=1e-14)
        np.testing.assert_allclose(f(torch.tensor(a), torch.tensor(b)).double().numpy(), np.array(expected, float), rtol=1e-14)
    grid = a.reshape(len(values), len(values))
    for axis in (0, 1):
        expected = [s.sum(x.item() for x in row) for row in np.moveaxis(grid, axis, -1)]
        np.testing.assert_allclose(np.asarray(s.total(grid, axis), float), np.array(expected, float), rtol=1e-13)
        np.testing.assert_allclose(s.total(torch.tensor(grid), axis).double().numpy(), np.array(expected, float), rtol=1e-13)


def test_log_gradients_are_finite_where_everything_is_impossible():
    x = torch.tensor([[-math.inf, -math.inf], [0.0, -math.inf]], dtype=torch.float64, requires_grad=True)
    total = LOG.total(x, 1)
    total[1].backward(retain_graph=True)
    assert total.tolist() == [-math.inf, 0.0]
    assert torch.equal(x.grad, torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float64))
    y = torch.full((2,), -math.inf, dtype=torch.float64, requires_grad=True)
    LOG.add(y[0], y[1]).backward()
    assert torch.equal(y.grad, torch.zeros(2, dtype=torch.float64))


def test_halving_total_keeps_order():
    """The derived sum over an axis: strings in order, any length."""
    for n in range(1, 9):
        words = np.empty((n, 1), object)
        words[:, 0] = [frozenset({c}) for c in "abcdefgh"[:n]]
        assert STRINGS.total(words, 0)[0] == frozenset("abcdefgh"[:n])


def test_trails():
    deep = Trail()
    for i in range(5000):
        deep = deep + Trail(i)
    assert list(deep) == list(range(5000)) and len(deep) == 5000
    left, right = (Trail("a") + Trail("b")) + Trail("c"), Trail("a") + (Trail("b") + Trail("c"))
    assert left == right and hash(left) == hash(right) and Trail("z") < Trail("a", "a") and Trail("a") < Trail("b")
    assert Trail(1) != Trail("1") and (Trail("a") == 3) is False


def test_viterbi_breaks_ties_the_same_way_in_any_order():
    a, b = weighted(0.5, "a"), weighted(0.5, "b")
    assert VITERBI.add(a, b) == VITERBI.add(b, a) == a
    three = nbest(3, MAXTIMES)
    assert three.add(three.add(b, a), weighted(0.9, "c")) == weighted(0.9, "c") + a + b
    assert three.mul(a + b, weighted(0.5, "x")) == weighted(0.25, "a", "x") + weighted(0.25, "b", "x")


@pytest.mark.parametrize("s", ELEMENTS, ids=repr)
def test_semirings_survive_pickling_as_themselves(s):
    assert pickle.loads(pickle.dumps(s)) is s


@pytest.mark.parametrize(
    ("s", "bad"),
    [(NAT, -1), (NAT, 0.5), (INT, "3"), (REAL, float("nan")), (REAL, "x"), (PROB, -0.1), (BOOL, "yes"), (RAT, "1/2"),
     (STRINGS, [1]), (VITERBI, ((1, 2),)), (product(NAT, REAL), (1,)), (MINPLUS, None)],
)  # fmt: skip
def test_what_is_not_a_weight_is_refused(s, bad):
    with pytest.raises(ProbatumError, match="is not a weight of"):
        s.element(bad)


def test_bad_constructions():
    with pytest.raises(ProbatumError, match="at least 1, got 0"):
        nbest(0)
    with pytest.raises(ProbatumError, match="MAXTIMES, MAXPLUS or MINPLUS, got REAL"):
        nbest(2, REAL)
    with pytest.raises(ProbatumError, match="at least two"):
        product(NAT)
    with pytest.raises(ProbatumError, match="unknown semiring 'minplux': did you mean minplus"):
        find_semiring("minplux")
    assert find_semiring("min-plus") is MINPLUS and len(semirings()) == 14
