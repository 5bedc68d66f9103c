"""Estimates of gradients of functions of vectors, against closed forms."""

import pytest
import torch

from probatum import ProbatumError
from probatum.zeroth.functions import cge, rge, zo_backward
from probatum.zeroth.noise import Noise

D = 50


def vectors(samples, d=D, seed=0):
    return torch.randn(samples, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def linear(c):
    return lambda points: (points * c).sum(-1)


@pytest.mark.parametrize("two_sided", [False, True])
def test_coordinates_give_the_gradient_of_a_linear_function(two_sided):
    c, x = vectors(3), vectors(3, seed=1)
    found = cge(linear(c), x, mu=0.1, two_sided=two_sided)
    torch.testing.assert_close(found.gradient, c, rtol=0, atol=1e-9)
    assert found.rows == 3 * (2 * D if two_sided else D + 1)
    torch.testing.assert_close(found.value, (x * c).sum(-1), rtol=1e-9, atol=1e-9)


def test_one_sided_differences_of_a_quadratic_are_off_by_half_mu_times_the_diagonal_and_central_ones_are_exact():
    a = vectors(7, 7)
    a, b, x, mu = a + a.T, vectors(1, 7, seed=1)[0], vectors(2, 7, seed=2), 0.03

    def f(points):
        return 0.5 * torch.einsum("rbi,ij,rbj->rb", points, a, points) + points @ b

    gradient = x @ a + b
    torch.testing.assert_close(cge(f, x, mu=mu).gradient, gradient, rtol=0, atol=1e-9)
    one = cge(f, x, mu=mu, two_sided=False).gradient
    torch.testing.assert_close(one, gradient + mu / 2 * a.diagonal(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("q", [1, 5])
def test_moments_of_sphere_directions(q):
    samples = 100_000 // q
    c = vectors(1).expand(samples, D)
    g = rge(linear(c), torch.zeros(samples, D, dtype=torch.float64), q, 0.01, noise=Noise(3)).gradient
    error = g.std(0) / samples**0.5
    assert ((g.mean(0) - c[0]).abs() <= 4.5 * error).all()
    want = float(c[0] @ c[0]) * D / q * (1 + (q - 1) / D)
    assert float(g.square().sum(1).mean()) == pytest.approx(want, rel=0.02)


@pytest.mark.parametrize(("direction", "extra"), [("gaussian", 2), ("rademacher", 0)])
def test_moments_of_gaussian_directions_and_signs(direction, extra):
    samples, noise = 40_000, Noise(4, "rademacher" if direction == "rademacher" else "gaussian")
    c = vectors(1).expand(samples, D)
    found = rge(linear(c), torch.zeros(samples, D).double(), 1, 0.01, noise=noise, direction=direction, two_sided=True)
    assert float(found.gradient.square().sum(1).mean()) == pytest.approx(float(c[0] @ c[0]) * (D + extra), rel=0.02)
    assert found.rows == 2 * samples


def test_every_sample_has_its_own_directions_and_a_step_its_own():
    f, x = linear(torch.ones(3, D).double()), torch.zeros(3, D).double()
    a, again, b = (rge(f, x, 2, 0.1, noise=Noise(1), step=step).gradient for step in (0, 0, 1))
    assert torch.equal(a, again) and not torch.allclose(a, b) and not torch.allclose(a[0], a[1])


@pytest.mark.parametrize("two_sided", [False, True])
def test_trials_bound_the_calls_and_change_no_bit(two_sided):
    c, sizes = vectors(4), []

    def f(points):
        sizes.append(len(points))
        return (points * c).sin().sum(-1)

    whole = rge(f, vectors(4, seed=1), 7, 0.1, noise=Noise(1), two_sided=two_sided).gradient
    sizes.clear()
    parts = rge(f, vectors(4, seed=1), 7, 0.1, noise=Noise(1), two_sided=two_sided, trials=3).gradient
    assert torch.equal(whole, parts) and max(sizes) == (6 if two_sided else 3)
    assert torch.equal(cge(f, vectors(4), mu=0.1).gradient, cge(f, vectors(4), mu=0.1, trials=11).gradient)


def test_chosen_coordinates_and_zero_elsewhere_in_any_order():
    c, x = vectors(2), vectors(2, seed=1)
    some = torch.tensor([17, 3, 41])
    g = cge(linear(c), x, some, 0.1).gradient
    rest = torch.ones(D, dtype=torch.bool)
    rest[some] = False
    torch.testing.assert_close(g[:, some], c[:, some], rtol=0, atol=1e-9)
    assert torch.equal(g[:, rest], torch.zeros(2, D - 3).double())
    assert torch.equal(g, cge(linear(c), x, some.flip(0), 0.1).gradient)


def test_flat_counts_differences_that_vanish():
    assert cge(lambda points: points.sum(-1).round(), torch.zeros(2, 5), mu=1e-3).flat == 1
    assert cge(lambda points: points[..., 0], torch.zeros(2, 5), mu=1e-3).flat == 0.8


@pytest.mark.parametrize("two_sided", [False, True])
def test_the_surrogate_is_backpropagation_up_to_the_order_of_the_difference(two_sided):
    """Halving mu divides the error by 2 one-sided and by 4 with central differences; with exact a it is the chain rule."""
    torch.manual_seed(0)
    layer, tail = torch.nn.Linear(6, 4).double(), torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh()).double()
    x = vectors(5, 6)

    def f(points):
        return tail(points).square().sum(-1)

    def of(a):
        layer.zero_grad()
        zo_backward(layer(x), a)
        return layer.weight.grad.clone()

    layer.zero_grad()
    f(layer(x)).mean().backward()
    want = layer.weight.grad.clone()
    r = layer(x).detach().requires_grad_()
    (exact,) = torch.autograd.grad(f(r).sum(), r)
    torch.testing.assert_close(of(exact), want, rtol=1e-6, atol=1e-9)
    errors = [(of(cge(f, r.detach(), mu=mu, two_sided=two_sided).gradient) - want).norm() for mu in (1e-2, 5e-3)]
    assert float(errors[0] / errors[1]) == pytest.approx(4 if two_sided else 2, rel=0.02)


BAD = {
    "mu must be positive": {"mu": 0.0},
    "q must be an integer": {"q": 0},
    "direction must be one of": {"direction": "cube"},
    "does not go with noise": {"direction": "rademacher"},
    "trials must be 1": {"trials": 0},
    "x must be floating": {"x": torch.zeros(2, 3, dtype=torch.long)},
    "one value a point": {"f": lambda points: points},
    "not finite": {"f": lambda points: points.sum(-1) / 0},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message):
    arguments = {"f": linear(torch.ones(2, 3)), "x": torch.ones(2, 3), "q": 2, "mu": 0.1, **BAD[message]}
    f, x = arguments.pop("f"), arguments.pop("x")
    with pytest.raises(ProbatumError, match=message):
        rge(f, x, noise=Noise(0), **arguments)


def test_bad_coordinates_and_a_surrogate_without_a_graph():
    f, x = linear(torch.ones(2, 3)), torch.ones(2, 3)
    for indices, message in ((torch.tensor([3]), "from 0 to 2"), (torch.tensor([1, 1]), "repeat")):
        with pytest.raises(ProbatumError, match=message):
            cge(f, x, indices)
    with pytest.raises(ProbatumError, match="must have a graph"):
        zo_backward(x, x)
    with pytest.raises(ProbatumError, match="one row a sample"):
        zo_backward(x.clone().requires_grad_(), x[:1])
