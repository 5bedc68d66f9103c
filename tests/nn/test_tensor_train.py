"""Tensor trains against their matrices, published counts, and brute force."""

import itertools
import math

import pytest
import torch

from probatum import ProbatumError
from probatum.nn.tensor_train import TTLinear, factorise, tt_svd

SHAPE = ([5, 3, 2], [2, 7, 3])  # 30 -> 42


def layer(contraction="auto", **options):
    generator = torch.Generator().manual_seed(3)
    return TTLinear(30, 42, 4, shape=SHAPE, contraction=contraction, generator=generator, dtype=torch.float64, **options)


@pytest.mark.parametrize(
    ("n", "out", "count"),
    [(4096, 64, 1100), (384, 64, 610), (1024, 64, 700)],
)
def test_published_counts(n, out, count):
    made = TTLinear(n, out, 5, device="meta")
    assert made.numel == count and math.prod(made.shape[0]) == n


def test_balanced_factors():
    assert [factorise(n) for n in (4096, 384, 1024, 64)] == [[16, 16, 16], [8, 8, 6], [16, 8, 8], [4, 4, 4]]
    for n, parts in itertools.product([24, 100, 210, 768], [1, 2, 3]):
        every = [c for c in itertools.combinations_with_replacement(range(2, n + 1), parts - 1)
                 if n % math.prod(c) == 0 and n // math.prod(c) >= 2]  # fmt: skip
        assert sum(factorise(n, parts)) == min(sum(c) + n // math.prod(c) for c in every)


def test_entries_are_products_of_slices():
    made = layer()
    matrix = made.matrix()
    for i, j in [((4, 0, 1), (1, 6, 2)), ((0, 2, 0), (0, 3, 1))]:
        product = torch.eye(1, dtype=torch.float64)
        for core, index in zip(made.cores, [*i, *j], strict=True):
            product = product @ core[:, index]
        row = (i[0] * 3 + i[1]) * 2 + i[2]
        column = (j[0] * 7 + j[1]) * 3 + j[2]
        torch.testing.assert_close(matrix[row, column], product[0, 0], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(30,), (1, 30), (4, 1, 30), (2, 3, 30)])
def test_all_contractions_agree_with_einsum_and_so_do_their_gradients(shape, bias):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64)
    weight = torch.randn(*shape[:-1], 42, dtype=torch.float64)
    reference = layer(bias=bias)
    whole = torch.einsum("aib,bjc,ckd,dle,emf,fng->ijklmn", *reference.cores).reshape(30, 42)
    want = x @ whole + (reference.bias if bias else 0)
    grads = torch.autograd.grad((want * weight).sum(), list(reference.parameters()))
    for way in ("halves", "sequential", "dense", "auto"):
        made = layer(way, bias=bias)
        got = made(x)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
        for a, b in zip(torch.autograd.grad((got * weight).sum(), list(made.parameters())), grads, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_the_matrix_has_the_rank_of_the_middle_bond():
    assert torch.linalg.matrix_rank(layer().matrix()) == 4


def test_operations_a_row_and_once():
    made = TTLinear(4096, 64, 5, device="meta")
    once = made.flops(0)
    assert made.flops(1) - once == 41_600 and made.flops(1, "sequential") == 56_200
    assert made.flops(1, "dense") - made.flops(0, "dense") == 524_288
    assert once == 217_600 + 7_200  # the left half as published, and the right one
    assert min(rows for rows in range(1, 100) if made.flops(rows) < made.flops(rows, "sequential")) == 16


@pytest.mark.parametrize(("rows", "way"), [(15, "sequential"), (16, "halves")])
def test_auto_takes_what_is_cheaper(rows, way, monkeypatch):
    made, taken = TTLinear(4096, 64, 5), []
    sequential = TTLinear._sequential
    monkeypatch.setattr(TTLinear, "_sequential", lambda *args: taken.append(1) or sequential(*args))
    made(torch.randn(rows, 4096))
    assert bool(taken) == (way == "sequential")


def test_svd_of_a_matrix_at_full_ranks_gives_it_back():
    torch.manual_seed(1)
    matrix = torch.randn(30, 42, dtype=torch.float64)
    torch.testing.assert_close(TTLinear.from_matrix(matrix, shape=SHAPE).matrix(), matrix, rtol=1e-12, atol=1e-12)
    low = layer().matrix().detach()
    again = TTLinear.from_matrix(low, 4, shape=SHAPE)
    torch.testing.assert_close(again.matrix(), low, rtol=1e-10, atol=1e-12)
    assert [core.shape[2] for core in again.cores] == [4, 4, 4, 4, 3, 1]  # the last unfolding has no rank above 3


def test_a_cut_train_is_as_near_as_its_singular_values_say():
    torch.manual_seed(2)
    matrix = torch.randn(12, 10, dtype=torch.float64)
    cut = TTLinear.from_matrix(matrix, 3, shape=([12], [10])).matrix()
    values = torch.linalg.svdvals(matrix)
    torch.testing.assert_close((matrix - cut).norm(), values[3:].norm(), rtol=1e-10, atol=0)


def test_merged_is_unmerged():
    made = layer(bias=True)
    x = torch.randn(5, 30, dtype=torch.float64)
    torch.testing.assert_close(made.merge()(x), made(x), rtol=1e-12, atol=1e-12)


def test_initial_entries_have_the_variance_of_the_sizes():
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([TTLinear(30, 42, 4, shape=SHAPE, generator=generator).matrix().square().mean() for _ in range(400)])
    assert abs(draws.mean() - 1 / 72) < 4 * draws.std() / 20


def test_zero_start():
    made = layer(zero=True, bias=True)
    assert not made(torch.randn(3, 30, dtype=torch.float64)).any()
    assert sum(bool(core.any()) for core in made.cores) == 5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: factorise(389), r"389 is no product of 3 factors .* nearest sizes are 388 = 97 x 2 x 2 and 390 = 13 x 6 x 5"),
        (lambda: factorise(5), r"nearest sizes are 8 = 2 x 2 x 2"),
        (lambda: factorise(0), "n must be an integer of 2 or more"),
        (lambda: TTLinear(30, 42, 31, shape=SHAPE), "rank must be from 1 to 30"),
        (lambda: TTLinear(30, 42, 0, shape=SHAPE), "rank must be from 1 to 30"),
        (lambda: TTLinear(31, 42, 4, shape=SHAPE), r"in_features is 31, but its shape \[5, 3, 2\] multiplies to 30"),
        (lambda: TTLinear(30, 42, 4, shape=([5, 3, 2], [6, 7])), "as many factors for in as for out"),
        (lambda: TTLinear(30, 42, 4, shape=SHAPE, contraction="fast"), "contraction must be one of auto, halves"),
        (lambda: layer()(torch.randn(3, 31)), r"x must be \(..., 30\), got \[3, 31\]"),
        (lambda: tt_svd(torch.randn(3, 4), [3, 5]), "sizes must multiply to 12"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ProbatumError, match=message):
        make()
