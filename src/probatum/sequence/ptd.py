"""S4-PTD and S5-PTD: perturb HiPPO a little, then diagonalise (Yu et al. 2024, arXiv 2310.01698).

S4D drops the rank-one part of HiPPO-LegS to make it diagonal; at some frequencies its transfer function is then wrong by a constant
that never vanishes, and a sinusoid there breaks the model. Perturb-then-diagonalise, A_H + E = V L V^-1 with a small E and a well
conditioned V, stays uniformly near HiPPO at no run-time cost. For S4D or S5 models that meet noise at unknown frequencies.

>>> made = approx_diagonalize(64, method="rank_one", size=0.1)
>>> round(made.condition, 1), float(made.eigenvalues.real.max()) < -0.5
(18.2, True)
>>> layer = S4PTD(8, state=64)
>>> layer(torch.zeros(1, 20, 8))[0].shape
torch.Size([1, 20, 8])
"""

import functools
import math
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from probatum.algebra.monoids import AFFINE, scan
from probatum.errors import ProbatumError
from probatum.sequence.hippo import legs, normal_eigenvalues
from probatum.sequence.ssm import DiagonalSSM, Mode, discretise, raised

__all__ = ["S4PTD", "S5", "S5PTD", "Diagonalisation", "approx_diagonalize", "conjugate_half", "transfer", "transfer_of"]

Method = Literal["rank_one", "gradient", "random", "normal"]


@dataclass(frozen=True)
class Diagonalisation:
    """A_H + E = V diag(eigenvalues) V^-1, complex128, columns of V of unit length.

    Attributes:
        b: input vector in the eigenbasis, V^-1 B (scaled as the method asks).
        size: |E| / |A_H| in the spectral norm. condition: of V.
    """

    eigenvalues: Tensor
    vectors: Tensor
    inverse: Tensor
    b: Tensor
    size: float
    condition: float


def approx_diagonalize(
    a: int | Tensor,
    b: Tensor | None = None,
    *,
    method: Method = "rank_one",
    size: float = 0.1,
    gamma: float = 3.0,
    steps: int = 300,
    generator: torch.Generator | None = None,
) -> Diagonalisation:
    """Perturb a matrix a little and diagonalise it well (Sec. 3), in float64.

    Args:
        a: n for HiPPO-LegS of that size, or any real (n, n).
        b: (n,) input vector; for an integer `a`, HiPPO's.
        method: "rank_one": E = size/2 B B' and B (1 - size/2), ours, stable for HiPPO with a uniform bound (size/2) / (1 - size) on the
            relative error of the transfer function; size from 0 (HiPPO) to 1 (S4D). "gradient": the paper's, minimises
            log cond(V) + gamma |E|/|A| with a hinge that keeps real parts below -.01. "random": a Gaussian E of relative size `size`,
            which is often unstable. "normal": E = B B' / 2 with B / 2, S4D's own choice.
        size: strength; for "gradient" it is found by the descent and `size` is ignored.
        gamma, steps: of "gradient"; Adam at 1e-3 |A|.
        generator: of "random" and of the descent's start.
    Raises:
        ProbatumError: size outside (0, 1], gamma or n out of range, a matrix that is not square, a result that is not stable.
    """
    if isinstance(a, int):
        if a < 2:
            raise ProbatumError(f"n must be 2 or more, got {a}")
        matrix, vector = legs(a)
        if method in ("rank_one", "normal") and b is None:
            return _hippo(a, method, size)
        vector = vector if b is None else b.to(torch.float64)
    else:
        if a.ndim != 2 or a.shape[0] != a.shape[1] or len(a) < 2:
            raise ProbatumError(f"a must be a square matrix of size 2 or more, got {tuple(a.shape)}")
        if b is None or b.shape != (len(a),):
            raise ProbatumError(f"b must be a vector of {len(a)} for a matrix of one's own, got {None if b is None else tuple(b.shape)}")
        matrix, vector = a.to(torch.float64), b.to(torch.float64)
    return _diagonalise(matrix, vector, method, size, gamma, steps, generator)


@functools.lru_cache(maxsize=32)
def _hippo(n: int, method: str, size: float) -> Diagonalisation:
    matrix, vector = legs(n)
    return _diagonalise(matrix, vector, method, size, 1.0, 0, None)


def _diagonalise(
    a: Tensor, b: Tensor, method: str, size: float, gamma: float, steps: int, generator: torch.Generator | None
) -> Diagonalisation:
    scale = float(torch.linalg.matrix_norm(a, 2))
    factor = 1.0
    if method in ("rank_one", "random") and not 0 < size <= 1:
        raise ProbatumError(f"size must be above 0 and at most 1, got {size!r}")
    if method == "rank_one":
        perturbation, factor = size / 2 * torch.outer(b, b), 1 - size / 2
    elif method == "normal":
        perturbation, factor = torch.outer(b, b) / 2, 0.5
    elif method == "random":
        noise = torch.randn(a.shape, dtype=torch.float64, generator=generator)
        perturbation = noise * (size * scale / float(torch.linalg.matrix_norm(noise, 2)))
    elif method == "gradient":
        perturbation = _descend(a, scale, gamma, steps, generator)
    else:
        raise ProbatumError(f"method must be rank_one, gradient, random or normal, got {method!r}")
    if method == "normal" and torch.equal(a, legs(len(a))[0]):
        values, vectors = normal_eigenvalues(len(a))
    else:
        values, vectors = torch.linalg.eig(a + perturbation)
    if method != "random" and float(values.real.max()) >= 0:
        raise ProbatumError(f"the perturbed matrix is unstable: an eigenvalue has real part {float(values.real.max()):.3g}")
    vectors = vectors / torch.linalg.vector_norm(vectors, dim=0)
    inverse = torch.linalg.inv(vectors)
    spread = torch.linalg.svdvals(vectors)
    return Diagonalisation(
        values, vectors, inverse, inverse @ (factor * b).to(torch.complex128),
        float(torch.linalg.matrix_norm(perturbation, 2)) / scale, float(spread[0] / spread[-1]),
    )  # fmt: skip


def _descend(a: Tensor, scale: float, gamma: float, steps: int, generator: torch.Generator | None) -> Tensor:
    """The paper's perturbation: log cond(V) + gamma |E| / |A| + a hinge on stability, by Adam from a small Gaussian."""
    if not gamma > 0:
        raise ProbatumError(f"gamma must be above 0, got {gamma!r}")
    if steps < 1:
        raise ProbatumError(f"steps must be 1 or more, got {steps}")
    n = len(a)
    if n > 512:
        warnings.warn(f"descent at n = {n} takes about {8e-3 * (n / 64) ** 3 * steps:.0f} s on a CPU", stacklevel=4)
    start = torch.randn(n, n, dtype=torch.float64, generator=generator)
    perturbation = (start * (0.01 * scale / float(torch.linalg.matrix_norm(start, 2)))).requires_grad_()
    adam = torch.optim.Adam([perturbation], lr=1e-3 * scale)
    best, kept = math.inf, perturbation.detach().clone()  # the start, until something stable is found
    for _ in range(steps):
        values, vectors = torch.linalg.eig(a + perturbation)
        vectors = vectors / torch.linalg.vector_norm(vectors, dim=0)
        spread = torch.linalg.svdvals(vectors)
        condition = torch.log(spread[0] / spread[-1])
        hinge = torch.relu(values.real.max() + 0.01)
        loss = condition + gamma * torch.linalg.matrix_norm(perturbation, 2) / scale + 10 * hinge
        if float(loss.detach()) < best and float(hinge.detach()) == 0:
            best, kept = float(loss.detach()), perturbation.detach().clone()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return kept


def conjugate_half(made: Diagonalisation) -> tuple[Tensor, Tensor]:
    """One of each conjugate pair: eigenvalues (n/2,) and b (n/2,), by ascending imaginary part.

    Raises:
        ProbatumError: real eigenvalues, which have no partner; an odd size.
    """
    keep = made.eigenvalues.imag > 1e-9
    if 2 * int(keep.sum()) != len(keep):
        raise ProbatumError(f"{len(keep) - 2 * int(keep.sum())} of {len(keep)} eigenvalues are real: no conjugate pairs to halve")
    order = torch.argsort(made.eigenvalues.imag[keep])
    return made.eigenvalues[keep][order], made.b[keep][order]


class S4PTD(DiagonalSSM):
    """S4D started from perturbed HiPPO: same layer, same parameters, another beginning.

    Args:
        channels: H. state: N, even.
        method, size, gamma, steps: of `approx_diagonalize`.
        n_ssm: sets of (A, B) shared over the channels; None is one a channel.
        options: of `DiagonalSSM`.
    """

    def __init__(
        self, channels: int, state: int = 64, *, method: Method = "rank_one", size: float = 0.1, gamma: float = 3.0, steps: int = 300,
        n_ssm: int | None = None, **options: Any,
    ) -> None:  # fmt: skip
        if state % 2:
            raise ProbatumError(f"the state size must be even (conjugate pairs), got {state}")
        sets = channels if n_ssm is None else n_ssm
        if sets < 1 or channels % sets:
            raise ProbatumError(f"n_ssm must divide the {channels} channels, got {sets}")
        made = approx_diagonalize(state, method=method, size=size, gamma=gamma, steps=steps, generator=options.get("generator"))
        values, b = conjugate_half(made)
        super().__init__(channels, values.expand(sets, -1).clone(), b.expand(sets, -1).clone(), **options)


class S5(nn.Module):
    """One multi-input multi-output diagonal system over all channels, started from blocks of HiPPO's normal part (Smith et al. 2023).

    Args:
        channels: H. state: P, the size of the real state, a multiple of 2 `blocks`.
        blocks: HiPPO blocks on the diagonal at the start.
        diagonalisation: of one block (P / blocks); None is S5's own, the normal part.
        hippo_b: B started from HiPPO's own instead of a random one.
        dt_min, dt_max: of the initial step of each state.
        clip: keep real parts of eigenvalues at most -1e-4.
        bidirectional: a second C reads the states of the reversed sequence.
        ssm_lr: hint for `param_groups`. generator: of everything random.
    """

    def __init__(
        self, channels: int, state: int = 64, *, blocks: int = 1, diagonalisation: Diagonalisation | None = None, hippo_b: bool = False,
        dt_min: float = 1e-3, dt_max: float = 1e-1, clip: bool = False, bidirectional: bool = False, ssm_lr: float = 1e-3,
        generator: torch.Generator | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if blocks < 1 or state % (2 * blocks):
            raise ProbatumError(f"state must be a multiple of twice the blocks ({2 * blocks}), got {state}")
        size = state // blocks
        made = diagonalisation or approx_diagonalize(size, method="normal")
        if len(made.eigenvalues) != size:
            raise ProbatumError(f"diagonalisation must be of size state / blocks = {size}, got {len(made.eigenvalues)}")
        values, _ = conjugate_half(made)
        keep = torch.argsort(made.eigenvalues.imag)[size // 2 :]
        vectors, inverse = made.vectors[:, keep], made.inverse[keep]
        self.channels, self.clip, self.bidirectional = channels, clip, bidirectional
        half = state // 2
        self.a_real = nn.Parameter(values.real.repeat(blocks).float())
        self.a_imag = nn.Parameter(values.imag.repeat(blocks).float())
        if hippo_b:
            raw = legs(size)[1][:, None].repeat(blocks, channels)
        else:
            raw = torch.randn(state, channels, dtype=torch.float64, generator=generator) / math.sqrt(state)
        b = torch.cat([inverse @ part.to(torch.complex128) for part in raw.split(size)])
        outputs = torch.randn(1 + bidirectional, channels, state, dtype=torch.float64, generator=generator) / math.sqrt(state)
        c = torch.cat([part.to(torch.complex128) @ vectors for part in outputs.split(size, -1)], -1)
        self.b = nn.Parameter(torch.view_as_real(b.to(torch.complex64)).clone())
        self.c = nn.Parameter(torch.view_as_real(c.to(torch.complex64)).clone())
        self.d = nn.Parameter(torch.randn(channels, generator=generator))
        low, high = math.log(dt_min), math.log(dt_max)
        self.log_dt = nn.Parameter(low + (high - low) * torch.rand(half, generator=generator))
        for parameter in (self.a_real, self.a_imag, self.b, self.log_dt):
            parameter._optim = {"lr": ssm_lr, "weight_decay": 0.0}  # type: ignore[attr-defined]

    def _system(self, rate: float) -> tuple[Tensor, Tensor, Tensor]:
        """Discrete A (P/2,), B (P/2, H), C (directions, H, P/2)."""
        real = raised(self.a_real).clamp(max=-1e-4) if self.clip else raised(self.a_real)
        a, b = discretise(
            torch.complex(real, raised(self.a_imag))[:, None], torch.view_as_complex(raised(self.b)), torch.exp(raised(self.log_dt))[:, None] * rate, "zoh"
        )
        return a[:, 0], b, torch.view_as_complex(raised(self.c))

    def initial_state(self, batch: int) -> Tensor:
        """Zeros (B, P/2)."""
        dtype = torch.complex128 if self.log_dt.dtype == torch.float64 else torch.complex64
        return torch.zeros(batch, len(self.a_real), dtype=dtype, device=self.log_dt.device)

    def forward(
        self, u: Tensor, state: Tensor | None = None, *, lengths: Tensor | None = None, rate: float = 1.0, mode: Mode = "tree"
    ) -> tuple[Tensor, Tensor | None]:
        """u (B, L, H) -> y (B, L, H) and the state (B, P/2) at each item's end, by an associative scan."""
        if u.ndim != 3 or u.shape[2] != self.channels or not u.shape[1]:
            raise ProbatumError(f"the input must be (B, L, {self.channels}) with L at least 1, got {tuple(u.shape)}")
        if self.bidirectional and state is not None:
            raise ProbatumError("a bidirectional layer has no state to begin from")
        x = u.to(raised(self.log_dt).dtype)
        ends = torch.full((len(u),), u.shape[1], device=u.device) if lengths is None else lengths.to(u.device)
        if int(ends.min()) < 1 or int(ends.max()) > u.shape[1]:
            raise ProbatumError(f"lengths must be from 1 to {u.shape[1]}, got {ends.tolist()}")
        x = x * (torch.arange(u.shape[1], device=u.device)[None] < ends[:, None])[..., None]
        a, b, c = self._system(rate)
        forced = torch.einsum("blh,ph->blp", x.to(b.dtype), b)
        if state is not None:
            forced = torch.cat([(forced[:, 0] + a * state)[:, None], forced[:, 1:]], 1)
        states = scan(AFFINE, (a.expand(forced.shape), forced), axis=1, mode=mode)[1]
        y = 2 * torch.einsum("blp,hp->blh", states, c[0]).real
        if self.bidirectional:
            other = scan(AFFINE, (a.expand(forced.shape), forced.flip(1)), axis=1, mode=mode)[1].flip(1)
            y = y + 2 * torch.einsum("blp,hp->blh", other, c[1]).real
        end = None if self.bidirectional else states[torch.arange(len(u), device=u.device), ends - 1]
        y = y + raised(self.d) * x
        return (y.to(u.dtype) if u.is_floating_point() else y), end

    def step(self, u: Tensor, state: Tensor | None = None, *, rate: float = 1.0) -> tuple[Tensor, Tensor]:
        """One step: (B, H) -> (B, H) and the next state."""
        if self.bidirectional:
            raise ProbatumError("a bidirectional layer needs the whole sequence: no step")
        a, b, c = self._system(rate)
        state = self.initial_state(len(u)) if state is None else state
        state = a * state + torch.einsum("bh,ph->bp", u.to(b.dtype), b)
        return 2 * torch.einsum("bp,hp->bh", state, c[0]).real + raised(self.d) * u, state


class S5PTD(S5):
    """S5 started from perturbed HiPPO.

    Args:
        method, size, gamma, steps: of `approx_diagonalize`, for a block of state / blocks.
        options: of `S5`.
    """

    def __init__(
        self, channels: int, state: int = 64, *, blocks: int = 1, method: Method = "rank_one", size: float = 0.1, gamma: float = 3.0,
        steps: int = 300, **options: Any,
    ) -> None:  # fmt: skip
        made = approx_diagonalize(
            max(state // max(blocks, 1), 2), method=method, size=size, gamma=gamma, steps=steps, generator=options.get("generator")
        )
        super().__init__(channels, state, blocks=blocks, diagonalisation=made, **options)


def transfer(a: Tensor, b: Tensor, c: Tensor, frequencies: Tensor) -> Tensor:
    """G(i w) = C (i w - A)^-1 B at real angular frequencies (F,), complex128; A (n, n) full, or (n,) the diagonal of one."""
    s = 1j * frequencies.to(torch.complex128)
    a, b, c = (x.to(torch.complex128) for x in (a, b, c))
    if a.ndim == 1:
        return (c * b / (s[:, None] - a)).sum(-1)
    eye = torch.eye(len(a), dtype=torch.complex128)
    return torch.linalg.solve(s[:, None, None] * eye - a, b.expand(len(s), -1)[..., None])[..., 0] @ c


def transfer_of(layer: DiagonalSSM, frequencies: Tensor) -> Tensor:
    """Transfer functions (H, F) of a layer as it stands, continuous time: run it again after training, when initial bounds are gone."""
    a = layer.eigenvalues().to(torch.complex128)
    b = torch.view_as_complex(layer.b).to(torch.complex128).repeat(layer.channels // len(layer.b), 1)
    c = torch.view_as_complex(layer.c)[0].to(torch.complex128)
    s = 1j * frequencies.to(torch.complex128)[:, None]
    paired = (c * b)[:, None] / (s - a[:, None]) + (c * b).conj()[:, None] / (s - a.conj()[:, None])
    return paired.sum(-1)
