"""Perturb-then-diagonalise held to the closed forms of rank-one updates, and S5 to its recurrence."""

import math

import pytest
import torch

from probatum import ProbatumError
from probatum.sequence.ptd import (
    S4PTD,
    S5,
    S5PTD,
    Diagonalisation,
    approx_diagonalize,
    conjugate_half,
    transfer,
    transfer_of,
)  # fmt: skip
from probatum.sequence.s4d import S4D, legs, normal_part, structured_eigenvalues

close = torch.testing.assert_close


def seeded(number=0):
    return torch.Generator().manual_seed(number)


CONTRACT = {
    "S4PTD": lambda: (S4PTD(5, 6, generator=seeded()), torch.randn(2, 11, 5)),
    "S5": lambda: (S5(5, 8, generator=seeded()), torch.randn(2, 11, 5)),
    "S5PTD": lambda: (S5PTD(5, 8, blocks=2, generator=seeded()), torch.randn(2, 11, 5)),
}


def test_the_normal_part_is_normal_and_hippo_itself_cannot_be_diagonalised():
    normal = normal_part(64)
    commutator = normal @ normal.T - normal.T @ normal
    assert commutator.norm() / normal.norm() ** 2 < 1e-15
    assert approx_diagonalize(64, method="normal").condition == pytest.approx(1, abs=1e-9)
    _, vectors = torch.linalg.eig(legs(16)[0])
    values = torch.linalg.svdvals(vectors / vectors.norm(dim=0))
    assert values[0] / values[-1] > 1e10


@pytest.mark.parametrize("n", [16, 64, 256])
@pytest.mark.parametrize(("size", "low", "high"), [(0.01, 160, 200), (0.05, 31, 38), (0.1, 16, 19), (0.2, 8, 9), (0.5, 3, 3)])
def test_rank_one_conditioning_does_not_depend_on_the_size(n, size, low, high):
    made = approx_diagonalize(n, size=size)
    assert low <= round(made.condition) <= high
    assert made.size == pytest.approx(math.pi / 4 * size, rel=0.02)
    assert -1.2 < float(made.eigenvalues.real.max()) < -0.5
    a, b = legs(n)
    back = made.vectors @ torch.diag(made.eigenvalues) @ made.inverse
    want = a + size / 2 * torch.outer(b, b)
    assert (back - want).norm() / want.norm() < 5e-13 * 10


def frequencies_of(n):
    """A grid that meets the spikes of S4D: its eigenfrequencies and points between."""
    top = structured_eigenvalues("legs", n)[0].imag
    return torch.cat([top, -top, torch.linspace(-3 * float(top.max()), 3 * float(top.max()), 2001, dtype=torch.float64)])


def hippo_transfer(n, c, frequencies):
    """C (i w - A_H)^-1 B with A_H lower triangular: by substitution, which stays accurate."""
    a, b = (x.to(torch.complex128) for x in legs(n))
    shifted = 1j * frequencies.to(torch.complex128)[:, None, None] * torch.eye(n, dtype=torch.complex128) - a
    solved = torch.linalg.solve_triangular(shifted, b[None, :, None].expand(len(frequencies), -1, -1), upper=False)
    return solved[..., 0] @ c.to(torch.complex128)


@pytest.mark.parametrize("n", [16, 64])
@pytest.mark.parametrize("size", [0.05, 0.1, 0.2, 0.5])
def test_the_uniform_bound_at_every_frequency(n, size):
    """|G / G_HiPPO - 1| <= (size / 2) / (1 - size), and the exact ratio where g is known."""
    frequencies = frequencies_of(n)
    c = torch.randn(n, dtype=torch.float64, generator=seeded(n))
    made = approx_diagonalize(n, size=size)
    ours = transfer(made.eigenvalues, made.b, c.to(torch.complex128) @ made.vectors, frequencies)
    ratio = ours / hippo_transfer(n, c, frequencies)
    bound = size / 2 / (1 - size)
    assert {0.05: 0.0263, 0.1: 0.0556, 0.2: 0.125, 0.5: 0.5}[size] == pytest.approx(bound, abs=1e-4)
    assert float((ratio - 1).abs().max()) <= bound + 1e-6
    b = legs(n)[1].to(torch.complex128)
    normal, eye = normal_part(n).to(torch.complex128), torch.eye(n, dtype=torch.complex128)
    some = frequencies[-40:]
    g = torch.stack([b @ torch.linalg.solve(1j * w * eye - normal, b) / 2 for w in some])
    close(ratio[-40:], (1 - size / 2) * (1 + g) / (1 + (1 - size) * g), atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize(("n", "state_error", "ratio"), [(16, 0.627, 51.7), (64, 0.636, 830), (256, 0.637, 13280)])
def test_s4d_is_off_by_a_constant_that_does_not_vanish(n, state_error, ratio):
    """Worst state error -> 2 / pi, worst ratio four times as large with every doubling."""
    frequencies = structured_eigenvalues("legs", n)[0].imag
    a, b = (x.to(torch.complex128) for x in legs(n))
    normal = normal_part(n).to(torch.complex128)
    shift = 1j * frequencies.to(torch.complex128)[:, None, None] * torch.eye(n, dtype=torch.complex128)
    wide = b.expand(len(frequencies), -1)[..., None]
    x = torch.linalg.solve_triangular(shift - a, wide, upper=False)[..., 0]
    y = torch.linalg.solve(shift - normal, wide)[..., 0] / 2
    worst = ((y - x).norm(dim=1) / b.norm()).max()
    assert float(worst) == pytest.approx(state_error, abs=0.002)
    g = torch.einsum("n,fn->f", b, y)
    assert float(((1 + g) / 2 - 1).abs().max()) == pytest.approx(ratio, rel=0.02)


def test_limits_of_rank_one():
    whole = approx_diagonalize(16, size=1.0)
    values, b = conjugate_half(whole)
    want, want_b = structured_eigenvalues("legs", 16)
    close(values, want, atol=1e-8, rtol=0)
    close(b.abs(), (want_b / 2).abs(), atol=1e-8, rtol=0)  # the vectors' phase is free
    small = approx_diagonalize(16, size=1e-3)
    assert small.size < 1e-3


def test_the_papers_descent_reaches_a_good_trade():
    made = approx_diagonalize(16, method="gradient", steps=200, generator=seeded(0))
    assert made.condition < 12 and made.size < 0.2 and float(made.eigenvalues.real.max()) < 0
    again = approx_diagonalize(16, method="gradient", steps=200, generator=seeded(0))
    assert torch.equal(made.eigenvalues, again.eigenvalues)


def test_a_random_perturbation_of_useful_size_is_unstable():
    made = approx_diagonalize(64, method="random", size=0.1, generator=seeded(0))
    assert float(made.eigenvalues.real.max()) > 1


def test_a_matrix_of_ones_own():
    a = torch.tensor([[-1.0, 1.0, 0.0], [0.0, -1.0, 1.0], [0.0, 0.0, -1.0]])  # a Jordan block
    made = approx_diagonalize(a, torch.ones(3), method="random", size=0.05, generator=seeded(1))
    assert made.condition < 1e4 and isinstance(made, Diagonalisation)


@pytest.mark.parametrize("layer", ["s4ptd", "s5", "s5ptd", "s5ptd blocks"])
def test_steps_scans_and_chunks_agree(layer):
    made = {
        "s4ptd": lambda: S4PTD(3, 8, generator=seeded(1)), "s5": lambda: S5(3, 8, generator=seeded(1)),
        "s5ptd": lambda: S5PTD(3, 8, hippo_b=True, generator=seeded(1)),
        "s5ptd blocks": lambda: S5PTD(3, 16, blocks=4, generator=seeded(1)),
    }[layer]().double().eval()  # fmt: skip
    u = torch.randn(2, 21, 3, dtype=torch.float64, generator=seeded(2))
    y, _ = made(u)
    state, stepped = None, []
    for t in range(21):
        out, state = made.step(u[:, t], state)
        stepped.append(out)
    close(torch.stack(stepped, 1), y, atol=1e-10, rtol=0)
    carried, parts = made.initial_state(2), []
    for part in u.split([4, 10, 7], 1):
        out, carried = made(part, carried)
        parts.append(out)
    close(torch.cat(parts, 1), y, atol=1e-10, rtol=0)
    close(carried, state, atol=1e-10, rtol=0)


def test_s5_modes_lengths_and_both_directions():
    layer = S5(3, 8, bidirectional=True, generator=seeded(3)).double()
    u = torch.randn(2, 12, 3, dtype=torch.float64)
    want = layer(u, mode="sequential")[0]
    close(layer(u, mode="tree")[0], want, atol=1e-10, rtol=0)
    one_way = S5(3, 8, generator=seeded(4)).double()
    padded = torch.cat([u, torch.ones(2, 5, 3, dtype=torch.float64)], 1)
    y, end = one_way(padded, lengths=torch.tensor([12, 7]))
    close(y[1, :7], one_way(u[1:, :7])[0][0], atol=1e-10, rtol=0)
    close(end[1:], one_way(u[1:, :7])[1], atol=1e-10, rtol=0)


def test_parameters_equal_those_of_s4d_and_s5():
    def count(layer):
        return sum(p.numel() for p in layer.parameters())

    assert count(S4PTD(12, 16)) == count(S4D(12, 16))
    assert count(S5PTD(12, 16, blocks=2)) == count(S5(12, 16, blocks=2)) == 8 * 2 + 2 * 8 * 12 * 2 + 12 + 8


def test_the_transfer_function_of_a_layer():
    layer = S4PTD(2, 16, size=0.1, generator=seeded(0))
    frequencies = torch.tensor([0.0, 1.0, 30.0], dtype=torch.float64)
    a, b = layer.eigenvalues().to(torch.complex128), torch.view_as_complex(layer.b).to(torch.complex128)
    c = torch.view_as_complex(layer.c)[0].to(torch.complex128)
    for h in range(2):
        full = [torch.cat([x[h], x[h].conj()]) for x in (a, b, c)]
        close(transfer_of(layer, frequencies)[h], transfer(*full, frequencies))
        assert transfer_of(layer, frequencies)[h, 0].imag.abs() < 1e-9


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: approx_diagonalize(16, size=0.0), "size must be above 0 and at most 1"),
        (lambda: approx_diagonalize(16, size=1.5), "size must be above 0"), (lambda: approx_diagonalize(1), "n must be 2"),
        (lambda: approx_diagonalize(16, method="gradient", gamma=0.0), "gamma must be above 0"),
        (lambda: approx_diagonalize(16, method="gradient", steps=0), "steps must be 1"),
        (lambda: approx_diagonalize(16, method="schur"), "method must be rank_one, gradient"),
        (lambda: approx_diagonalize(torch.zeros(2, 3), torch.zeros(2)), "square matrix"),
        (lambda: approx_diagonalize(torch.eye(3)), "b must be a vector of 3"),
        (lambda: approx_diagonalize(torch.eye(3), torch.ones(3), size=0.1), r"unstable: an eigenvalue has real part 1\."),
        (lambda: S4PTD(4, 7), "must be even"), (lambda: S4PTD(4, 8, n_ssm=3), "n_ssm must divide"),
        (lambda: S5(4, 10, blocks=2), "multiple of twice the blocks"),
        (lambda: S5(4, 8, diagonalisation=approx_diagonalize(4)), "of size state / blocks = 8"),
        (lambda: S5(4, 8)(torch.zeros(2, 0, 4)), "L at least 1"), (lambda: S5(4, 8, bidirectional=True).step(torch.zeros(1, 4)), "no step"),
        (lambda: S5(4, 8)(torch.zeros(1, 3, 4), lengths=torch.tensor([4])), "lengths must be from 1 to 3"),
    ],
)  # fmt: skip
def test_bad_input(call, text):
    with pytest.raises(ProbatumError, match=text):
        call()
