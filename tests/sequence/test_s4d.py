"""S4D held to HiPPO's closed forms, to equality of its three evaluations, and to published counts."""

import math

import pytest
import torch

from probatum import ProbatumError
from probatum.sequence.s4d import (
    S4D,
    DiagonalSSM,
    SequenceModel,
    SSMBlock,
    discretise,
    fft_convolution,
    legs,
    legs_basis,
    normal_eigenvalues,
    normal_part,
    param_groups,
    structured_eigenvalues,
    vandermonde,
)  # fmt: skip

close = torch.testing.assert_close


def seeded(number=0):
    return torch.Generator().manual_seed(number)


CONTRACT = {
    "S4D": lambda: (S4D(5, 6, generator=seeded()), torch.randn(2, 11, 5)),
    "DiagonalSSM": lambda: (DiagonalSSM(3, *structured_eigenvalues("lin", 4), generator=seeded()), torch.randn(2, 7, 3)),
    "SSMBlock": lambda: (SSMBlock(S4D(4, 6, generator=seeded())), torch.randn(2, 9, 4)),
    "SequenceModel": lambda: (
        SequenceModel(3, 7, [SSMBlock(S4D(4, 6, generator=seeded())) for _ in range(2)]), torch.randn(2, 9, 3),
    ),
}  # fmt: skip


def double(layer):
    """A float64 copy that computes in float64."""
    return layer.double().eval()


@pytest.mark.parametrize(("n", "top", "inverse"), [(16, 81.0, 76.4), (64, 1303.3, 1283.4), (256, 20860.2, 20779.3)])
def test_eigenvalues_of_the_normal_part(n, top, inverse):
    values, vectors = normal_eigenvalues(n)
    assert (values.real + 0.5).abs().max() < 1e-10
    close(vectors.conj().T @ vectors, torch.eye(n, dtype=torch.complex128), atol=1e-12, rtol=0)
    close(vectors @ torch.diag(values) @ vectors.conj().T, normal_part(n).to(torch.complex128), atol=1e-8, rtol=0)
    assert float(values.imag.max()) == pytest.approx(top, abs=0.06)
    assert float(structured_eigenvalues("inv", n)[0].imag.max()) == pytest.approx(inverse, abs=0.06)


def test_hippo_by_its_definition_and_its_basis_by_the_matrix_exponential():
    a, b = legs(5)
    assert a[3, 1] == -math.sqrt(7) * math.sqrt(3) and a[1, 3] == 0 and a[2, 2] == -3 and b[4] == 3
    a, b = legs(12)
    times = torch.tensor([0.0, 0.1, 0.7, 2.0], dtype=torch.float64)
    want = torch.stack([torch.linalg.matrix_exp(t * a) @ b for t in times])
    close(legs_basis(12, times), want, atol=1e-11, rtol=0)


@pytest.mark.parametrize(("n", "want"), [(16, 0.421), (32, 0.180), (64, 0.082), (128, 0.039), (256, 0.019)])
def test_the_transfer_ratio_to_hippo_and_its_limit_at_low_frequency(n, want):
    """(s - A_H)^-1 B = (s - A_N)^-1 B / (1 + g), so G_diag / G_LegS = (1 + g) / 2 for every C; it halves as n doubles."""
    a, b = (x.to(torch.complex128) for x in legs(n))
    normal = normal_part(n).to(torch.complex128)
    eye = torch.eye(n, dtype=torch.complex128)
    worst = 0.0
    for frequency in torch.linspace(-5, 5, 41, dtype=torch.float64).tolist():
        s = 1j * frequency
        x, y = torch.linalg.solve(s * eye - a, b), torch.linalg.solve(s * eye - normal, b)
        g = b @ y / 2
        if n <= 64:
            close(x, y / (1 + g), atol=1e-9, rtol=1e-9)
        worst = max(worst, float(((1 + g) / 2 - 1).abs()))
    assert worst == pytest.approx(want, abs=0.003)


@pytest.mark.parametrize("disc", ["zoh", "bilinear"])
@pytest.mark.parametrize("init", ["legs", "lin", "inv", "quad", "real", "rand"])
def test_convolution_recurrence_scan_and_chunks_are_one_function(init, disc):
    layer = double(S4D(3, 8, init=init, disc=disc, generator=seeded(1)))
    u = torch.randn(2, 23, 3, dtype=torch.float64, generator=seeded(2))
    y, none = layer(u)
    assert none is None
    state, stepped = None, []
    for t in range(23):
        out, state = layer.step(u[:, t], state)
        stepped.append(out)
    close(torch.stack(stepped, 1), y, atol=1e-10, rtol=0)
    for mode in ("sequential", "tree", "chunked"):
        scanned, states = layer.scan(u, mode=mode)
        close(scanned, y, atol=1e-10, rtol=0)
        close(states[:, -1], state, atol=1e-10, rtol=0)
    carried, parts = layer.initial_state(2), []
    for part in u.split([5, 1, 11, 6], 1):
        out, carried = layer(part, carried)
        parts.append(out)
    close(torch.cat(parts, 1), y, atol=1e-10, rtol=0)
    close(carried, state, atol=1e-10, rtol=0)


def test_the_whole_conjugate_system_gives_the_same_real_output():
    """Half of the pairs and twice the real part equal the full n-state system."""
    layer = double(S4D(2, 6, generator=seeded(3)))
    u = torch.randn(1, 17, 2, dtype=torch.float64, generator=seeded(4))
    a, dt = layer.eigenvalues(), torch.exp(layer.log_dt)[:, None]
    b = torch.view_as_complex(layer.b)
    c = torch.view_as_complex(layer.c)[0]
    full_a, full_b, full_c = (torch.cat([x, x.conj()], -1) for x in (a, b, c))
    discrete, forced = discretise(full_a, full_b, dt, "zoh")
    state, out = torch.zeros(2, 6, dtype=torch.complex128), []
    for t in range(17):
        state = discrete * state + forced * u[0, t, :, None]
        out.append((full_c * state).sum(-1))
    out = torch.stack(out)
    assert out.imag.abs().max() < 1e-12
    close(out.real + layer.d * u[0], layer(u)[0][0], atol=1e-10, rtol=0)


def test_direct_convolution_and_no_circular_leak():
    layer = double(S4D(2, 8, generator=seeded(5)))
    u = torch.randn(1, 31, 2, dtype=torch.float64, generator=seeded(6))
    kernel = layer.kernel(31)[0]
    want = torch.stack([sum(kernel[:, t - s] * u[0, s] for s in range(t + 1)) for t in range(31)]) + layer.d * u[0]
    close(layer(u)[0][0], want, atol=1e-10, rtol=0)
    changed = u.clone()
    changed[:, 20:] = 9
    close(layer(changed)[0][:, :20], layer(u)[0][:, :20], atol=1e-10, rtol=0)


def test_kernel_by_powers_and_by_two_levels():
    a = torch.complex(-torch.rand(3, 4, dtype=torch.float64, generator=seeded(7)), torch.randn(3, 4, dtype=torch.float64))
    c = torch.randn(3, 4, dtype=torch.complex128)
    direct = 2 * torch.einsum("hn,hnl->hl", c, torch.exp(a[..., None] * torch.arange(101))).real
    for block in (1, 7, 10, 101, 300):
        close(vandermonde(c, a, 101, block=block), direct, atol=1e-12, rtol=0)
    single = vandermonde(c.to(torch.complex64), a.to(torch.complex64), 101)
    close(single.double(), direct, atol=2e-5, rtol=2e-5)
    close(vandermonde(3 * c, a, 101), 3 * direct, atol=1e-11, rtol=0)


def test_rate_is_a_longer_step_and_bandlimit_infinity_changes_nothing():
    layer = double(S4D(3, 8, generator=seeded(8)))
    u = torch.randn(1, 19, 3, dtype=torch.float64)
    fast = layer(u, rate=2.0)[0]
    unlimited = double(S4D(3, 8, bandlimit=math.inf, generator=seeded(8)))
    assert torch.equal(unlimited(u)[0], layer(u)[0])
    limited = double(S4D(3, 8, bandlimit=0.001, generator=seeded(8)))
    assert not torch.allclose(limited(u)[0], layer(u)[0])
    with torch.no_grad():
        layer.log_dt += math.log(2)
    close(layer(u)[0], fast, atol=1e-12, rtol=0)


def test_shared_systems():
    shared = S4D(6, 8, n_ssm=2, generator=seeded(9))
    assert shared.a_real.shape == (2, 4) and shared.b.shape == (2, 4, 2)
    whole, each = S4D(6, 8, generator=seeded(9)), S4D(6, 8, n_ssm=6, generator=seeded(9))
    u = torch.randn(1, 9, 6)
    assert torch.equal(whole(u)[0], each(u)[0])


def test_zoh_at_eigenvalue_zero_has_its_limit():
    a = torch.tensor([0.0, 1e-7, 1e-3], dtype=torch.float64).to(torch.complex128)
    _, b = discretise(a, torch.ones(3, dtype=torch.complex128), torch.tensor(0.5, dtype=torch.float64), "zoh")
    want = [0.5, math.expm1(0.5e-7) / 1e-7, math.expm1(0.5e-3) / 1e-3]
    close(b.real, torch.tensor(want, dtype=torch.float64), atol=1e-12, rtol=1e-12)


def test_bidirectional_is_two_kernels_and_padding_never_matters():
    layer = double(S4D(2, 8, bidirectional=True, generator=seeded(10)))
    u = torch.randn(2, 13, 2, dtype=torch.float64, generator=seeded(11))
    kernel = layer.kernel(13)
    forward = fft_convolution(u.transpose(1, 2), kernel[0])
    # The backward kernel at lag l meets the input l + 1 steps ahead.
    ahead = torch.nn.functional.pad(u.transpose(1, 2)[..., 1:], (0, 1))
    backward = fft_convolution(ahead.flip(-1), kernel[1]).flip(-1)
    close(layer(u)[0], (forward + backward).transpose(1, 2) + layer.d * u, atol=1e-10, rtol=0)
    padded = torch.cat([u, torch.full((2, 6, 2), 7.0, dtype=torch.float64)], 1)
    lengths = torch.tensor([13, 9])
    out = layer(padded, lengths=lengths)[0]
    close(out[0, :13], layer(u)[0][0], atol=1e-10, rtol=0)
    close(out[1, :9], layer(u[1:, :9])[0][0], atol=1e-10, rtol=0)


def test_states_at_each_items_own_end():
    layer = double(S4D(2, 8, generator=seeded(12)))
    u = torch.randn(3, 14, 2, dtype=torch.float64)
    start = torch.randn(3, 2, 4, dtype=torch.complex128)
    lengths = torch.tensor([14, 1, 6])
    _, states = layer(u, start, lengths=lengths)
    for item, length in enumerate(lengths.tolist()):
        want = layer(u[item : item + 1, :length], start[item : item + 1])[1]
        close(states[item : item + 1], want, atol=1e-10, rtol=0)


@pytest.mark.parametrize("norm", ["layer", "batch"])
@pytest.mark.parametrize("prenorm", [False, True])
def test_a_model_steps_as_it_runs(norm, prenorm):
    blocks = [SSMBlock(S4D(6, 8, generator=seeded(i)), norm=norm, prenorm=prenorm, dropout=0.2) for i in range(2)]
    model = SequenceModel(3, 4, blocks, pool=False)
    model.train()
    model(torch.randn(5, 12, 3))  # batch statistics
    model = double(model)
    u = torch.randn(5, 12, 3, dtype=torch.float64)
    states, stepped = None, []
    for t in range(12):
        out, states = model.step(u[:, t], states)
        stepped.append(out)
    close(torch.stack(stepped, 1), model(u), atol=1e-9, rtol=0)
    model.train()
    model(u)
    model.eval()
    close(model.step(u[:, 0])[0], model(u[:, :1])[:, 0], atol=1e-9, rtol=0)


def test_published_parameter_counts():
    """49,664 in a block without B at H = 128, N = 64, and 201,482 in the README's 4-layer model; B adds H N."""
    block = SSMBlock(S4D(128, 64))
    count = sum(p.numel() for name, p in block.named_parameters() if not name.startswith("norm"))
    h, n = 128, 64
    assert count == h * n // 2 * 6 + 2 * h + 2 * h * h + 2 * h and count - h * n == 49_664
    model = SequenceModel(3, 10, [SSMBlock(S4D(128, 64)) for _ in range(4)])
    assert sum(p.numel() for p in model.parameters()) - 4 * h * n == 201_482


def test_optimizer_groups():
    model = SequenceModel(3, 10, [SSMBlock(S4D(8, 4, ssm_lr=1e-3))])
    groups = param_groups(model, lr=1e-2, weight_decay=0.05)
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [(1e-2, 0.05), (1e-3, 0.0)]
    assert len(groups[1]["params"]) == 4 and sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
    assert param_groups(model, lr=1e-4, weight_decay=0.05)[1]["lr"] == 1e-4
    torch.optim.AdamW(groups)


def test_half_precision_input_runs_a_single_precision_kernel():
    layer = S4D(3, 8, generator=seeded(1)).eval()
    u = torch.randn(1, 33, 3)
    low = layer(u.to(torch.bfloat16))[0]
    assert low.dtype == torch.bfloat16
    close(low.float(), layer(u.to(torch.bfloat16).float())[0], atol=0.05, rtol=0.02)


def test_dss_normalises_each_mode():
    layer = double(S4D(2, 4, disc="dss", generator=seeded(3)))
    a = layer.eigenvalues() * torch.exp(layer.log_dt)[:, None]
    weights = torch.exp(a[..., None] * torch.arange(9))
    weights = weights / weights.sum(-1, keepdim=True)
    close(weights.sum(-1), torch.ones(2, 2, dtype=torch.complex128))
    want = 2 * torch.einsum("hn,hnl->hl", torch.view_as_complex(layer.c)[0] * torch.view_as_complex(layer.b), weights).real
    close(layer.kernel(9)[0], want, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: S4D(4, 7), "must be even"), (lambda: S4D(4, 8, init="hippo"), "init must be one of legs, lin"),
        (lambda: S4D(4, 8, n_ssm=3), "n_ssm must divide the 4 channels"), (lambda: S4D(0, 8), "channels"),
        (lambda: S4D(4, 8, disc="euler"), "disc must be zoh, bilinear or dss"), (lambda: S4D(4, 8, dt_min=0), "dt_min"),
        (lambda: DiagonalSSM(2, torch.tensor([1.0 + 1j]), torch.ones(1)), "unstable"),
        (lambda: S4D(4, 8)(torch.zeros(2, 4, 9)), "channels-first"), (lambda: S4D(4, 8)(torch.zeros(2, 0, 4)), "length 0"),
        (lambda: S4D(4, 8)(torch.zeros(2, 5, 4), lengths=torch.tensor([5, 6])), "lengths must be one of 1 to 5"),
        (lambda: S4D(4, 8, bidirectional=True).step(torch.zeros(2, 4)), "bidirectional layer needs the whole sequence"),
        (lambda: S4D(4, 8, bidirectional=True)(torch.zeros(2, 5, 4), torch.zeros(2, 4, 4)), "no state"),
        (lambda: S4D(4, 8, disc="dss").step(torch.zeros(2, 4)), "normalises by the whole length"),
        (lambda: S4D(4, 8).step(torch.zeros(2, 5)), r"step takes \(B, 4\)"), (lambda: legs(0), "n must be 1"),
        (lambda: SSMBlock(S4D(4, 8), norm="rms"), "norm must be layer or batch"), (lambda: SSMBlock(S4D(4, 8), dropout=1), "dropout"),
        (lambda: SequenceModel(3, 4, []), "blocks must be one or more"),
        (lambda: SequenceModel(3, 4, [SSMBlock(S4D(4, 8))]).step(torch.zeros(2, 3)), "pool=False"),
    ],
)  # fmt: skip
def test_bad_input(call, text):
    with pytest.raises(ProbatumError, match=text):
        call()


def test_the_dplr_kernel_is_the_recurrence_of_hippo():
    """By powers of the dense, bilinear-discretised matrix, with C as the trained one stands for C (1 - A^L)."""
    from probatum.sequence.dplr import S4

    n, length = 8, 24
    layer = S4(2, n, generator=seeded(1)).double().requires_grad_(False)
    a, b = (x.to(torch.complex128) for x in legs(n))
    _, vectors = normal_eigenvalues(n)
    order = torch.cat([torch.arange(n // 2, n), torch.arange(n // 2 - 1, -1, -1)])  # pairs: eigenvalue k and its conjugate
    basis = vectors[:, order]
    basis[:, n // 2 :] = basis[:, : n // 2].conj()
    for h in range(2):
        dt = float(torch.exp(layer.log_dt[h]))
        eye = torch.eye(n, dtype=torch.complex128)
        discrete = torch.linalg.solve(eye - dt / 2 * a, eye + dt / 2 * a)
        forced = torch.linalg.solve(eye - dt / 2 * a, dt * b)
        half = torch.view_as_complex(layer.c)[h]
        trained = torch.cat([half, half.conj()]) @ torch.linalg.inv(basis)
        c = torch.linalg.solve((eye - torch.linalg.matrix_power(discrete, length)).T, trained)
        want = torch.stack([c @ torch.linalg.matrix_power(discrete, k) @ forced for k in range(length)])
        assert want.imag.abs().max() < 1e-8
        close(layer.kernel(length)[h], want.real, atol=1e-5, rtol=1e-4)
