"""The diagonal state-space model: x' = A x + B u, y = 2 Re(C x) + D u, evaluated by FFT, by scan, or step by step.

The three are one function (tested): a convolution for training, a scan where states are wanted or given, a step for streaming. Shapes are
(B, L, H): batch, time, channels; the state is (B, H, N/2), complex, one of each conjugate pair.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from probatum.algebra.monoids import AFFINE, scan
from probatum.errors import ProbatumError

__all__ = ["DiagonalSSM", "discretise", "fft_convolution", "param_groups", "vandermonde"]

Discretisation = Literal["zoh", "bilinear", "dss"]
Mode = Literal["sequential", "tree", "chunked"]


def discretise(a: Tensor, b: Tensor, dt: Tensor, how: str) -> tuple[Tensor, Tensor]:
    """Continuous (A, B) and step dt -> discrete (A, B), all complex, broadcast.

    zoh: exp(dt A), (exp(dt A) - 1) / A B, by a series near A = 0. bilinear: (1 + dt A/2) / (1 - dt A/2), dt B / (1 - dt A/2).
    """
    z = a * dt
    if how == "zoh":
        small = z.abs() < 1e-4
        safe = torch.where(small, torch.ones_like(z), z)
        ratio = torch.where(small, 1 + z / 2 + z * z / 6, (torch.exp(safe) - 1) / safe)
        return torch.exp(z), ratio * dt * b
    if how == "bilinear":
        return (1 + z / 2) / (1 - z / 2), dt * b / (1 - z / 2)
    raise ProbatumError(f"disc must be zoh, bilinear or dss, got {how!r}")


def vandermonde(c: Tensor, log_a: Tensor, length: int, *, block: int | None = None) -> Tensor:
    """K_l = 2 Re sum_n c_n exp(log_a_n l) for l = 0 .. length - 1: (..., N) -> (..., length).

    By two levels, exp(log_a (l0 + l)) = exp(log_a l0) exp(log_a l), so that about N sqrt(L) exponentials are taken and N x L is never held
    a channel at a time more than `block`; powers of a rounded base are never taken.
    """
    if length < 1:
        raise ProbatumError(f"the length must be 1 or more, got {length}")
    block = block or max(1, math.isqrt(length))
    inner = torch.arange(block, device=c.device, dtype=log_a.real.dtype)
    outer = torch.arange(-(-length // block), device=c.device, dtype=log_a.real.dtype) * block
    fine = torch.exp(log_a[..., None] * inner)  # (..., N, block)
    coarse = c[..., None] * torch.exp(log_a[..., None] * outer)  # (..., N, L / block)
    kernel = 2 * torch.einsum("...nk,...nl->...kl", coarse, fine).real
    return kernel.flatten(-2)[..., :length]


def fft_convolution(u: Tensor, kernel: Tensor, backward: Tensor | None = None) -> Tensor:
    """Causal convolution along the last axis, padded to 2 L (no leak from the end to the start).

    Args:
        u: (..., L). kernel: (..., L).
        backward: (..., L) kernel of the reversed sequence, for a bidirectional layer; both in one transform.
    """
    length = u.shape[-1]
    size = 2 * length
    if backward is not None:
        kernel = nn.functional.pad(kernel, (0, length)) + nn.functional.pad(backward.flip(-1), (length, 0))
    spectrum = torch.fft.rfft(kernel, n=size) * torch.fft.rfft(u, n=size)
    return torch.fft.irfft(spectrum, n=size)[..., :length]


def raised(x: Tensor) -> Tensor:
    """Half precision raised to single: complex numbers have none."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


class DiagonalSSM(nn.Module):
    """H independent diagonal systems.

    Args:
        channels: H.
        eigenvalues, b: (n,) one of each conjugate pair and its input vector, as `hippo` gives them; or (S, n) for S sets, repeated over
            the channels.
        dt_min, dt_max: log-uniform range of the initial step.
        disc: "zoh", "bilinear", or "dss" (kernel normalised by its own sum; no step, no state).
        real_transform: how the real part stays negative: "exp", "relu" or "none" (may become unstable).
        bidirectional: a second kernel reads the sequence from its end; then no step and no state.
        bandlimit: zero modes faster than this share of the Nyquist rate; None keeps all.
        ssm_lr: learning rate that `param_groups` gives to A, B and dt, without weight decay.
        generator: of dt, C and D.
    """

    def __init__(
        self,
        channels: int,
        eigenvalues: Tensor,
        b: Tensor,
        *,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        disc: Discretisation = "zoh",
        real_transform: Literal["exp", "relu", "none"] = "exp",
        bidirectional: bool = False,
        bandlimit: float | None = None,
        ssm_lr: float = 1e-3,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if channels < 1:
            raise ProbatumError(f"channels must be 1 or more, got {channels}")
        if not 0 < dt_min <= dt_max:
            raise ProbatumError(f"dt_min and dt_max must satisfy 0 < dt_min <= dt_max, got {dt_min} and {dt_max}")
        if disc not in ("zoh", "bilinear", "dss"):
            raise ProbatumError(f"disc must be zoh, bilinear or dss, got {disc!r}")
        sets = torch.atleast_2d(eigenvalues)
        if channels % len(sets):
            raise ProbatumError(f"n_ssm ({len(sets)}) must divide the {channels} channels")
        if real_transform != "none" and sets.real.max() >= 0:
            raise ProbatumError(f"eigenvalues must have negative real parts, got up to {sets.real.max():.3g}: the system is unstable")
        self.channels, self.disc, self.real_transform = channels, disc, real_transform
        self.bidirectional, self.bandlimit = bidirectional, bandlimit
        n, directions = sets.shape[1], 1 + bidirectional
        decay = {"exp": torch.log(-sets.real), "relu": -sets.real, "none": sets.real}[real_transform]
        self.a_real = nn.Parameter(decay.float())
        self.a_imag = nn.Parameter(sets.imag.float().clone())
        self.b = nn.Parameter(torch.view_as_real(torch.atleast_2d(b).to(torch.complex64)).clone())
        low, high = math.log(dt_min), math.log(dt_max)
        self.log_dt = nn.Parameter(low + (high - low) * torch.rand(channels, generator=generator))
        self.c = nn.Parameter(torch.randn(directions, channels, n, 2, generator=generator) * 0.5**0.5)
        self.d = nn.Parameter(torch.randn(channels, generator=generator))
        for parameter in (self.a_real, self.a_imag, self.b, self.log_dt):
            parameter._optim = {"lr": ssm_lr, "weight_decay": 0.0}  # type: ignore[attr-defined]

    @property
    def state_size(self) -> int:
        """Complex numbers of a channel's state, half the real state."""
        return self.a_real.shape[1]

    def eigenvalues(self) -> Tensor:
        """A, (H, n) complex."""
        decay = raised(self.a_real)
        real = {"exp": -torch.exp(decay), "relu": -torch.relu(decay), "none": decay}[self.real_transform]
        return torch.complex(real, raised(self.a_imag)).repeat(self.channels // len(self.a_real), 1)

    def _system(self, rate: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """log of the discrete A (exact for zoh), discrete A and B, C: (H, n), (H, n), (H, n), (directions, H, n)."""
        a = self.eigenvalues()
        b = torch.view_as_complex(raised(self.b)).repeat(self.channels // len(self.b), 1)
        c = torch.view_as_complex(raised(self.c))
        dt = torch.exp(raised(self.log_dt))[:, None] * rate
        if self.bandlimit is not None:
            c = c * (a.imag.abs() * dt / (2 * math.pi) <= self.bandlimit / 2)
        if self.disc == "dss":
            return a * dt, torch.exp(a * dt), b, c
        discrete, forced = discretise(a, b, dt, self.disc)
        return (a * dt if self.disc == "zoh" else torch.log(discrete)), discrete, forced, c

    def kernel(self, length: int, rate: float = 1.0) -> Tensor:
        """K (directions, H, L) float: the response to a unit impulse, without D. `rate` multiplies the step: another sampling rate."""
        log_a, _, b, c = self._system(rate)
        if self.disc == "dss":
            steps = torch.arange(length, device=log_a.device)
            weights = torch.exp(log_a[..., None] * steps)
            weights = weights / weights.sum(-1, keepdim=True)
            return 2 * torch.einsum("xhn,hnl->xhl", c * b, weights).real
        return vandermonde(c * b, log_a, length)

    def forward(
        self, u: Tensor, state: Tensor | None = None, *, lengths: Tensor | None = None, rate: float = 1.0
    ) -> tuple[Tensor, Tensor | None]:
        """u (B, L, H) -> y (B, L, H) and the state after it.

        Args:
            state: (B, H, n) to begin from, as `initial_state` or an earlier call gives it; None is zero, and then no state is computed,
                which training does not need.
            lengths: (B,) valid lengths: what follows is taken as zero, and the state is that after each item's own end.
        Raises:
            ProbatumError: another number of channels, an empty sequence, lengths out of range, a state where there is none.
        """
        x = self._input(u, lengths)
        length = x.shape[1]
        if (self.bidirectional or self.disc == "dss") and state is not None:
            raise ProbatumError("a bidirectional or dss layer has no state to begin from")
        kernel = self.kernel(length, rate)
        columns = x.transpose(1, 2)
        y = fft_convolution(columns, kernel[0], kernel[1] if self.bidirectional else None)
        y = y + raised(self.d)[:, None] * columns
        end = None
        if state is not None:
            log_a, _, b, c = self._system(rate)
            past = torch.exp(log_a[..., None] * torch.arange(1, length + 1, device=x.device))
            y = y + 2 * torch.einsum("bhn,hnl->bhl", state * c[0], past).real
            end = self._final(columns, lengths, log_a) * b
            ends = torch.full((len(x),), length, device=x.device) if lengths is None else lengths.to(x.device)
            end = end + state * torch.exp(log_a * ends[:, None, None])
        y = y.transpose(1, 2)
        return (y.to(u.dtype) if u.is_floating_point() else y), end

    def _final(self, columns: Tensor, lengths: Tensor | None, log_a: Tensor) -> Tensor:
        """sum_k A^(end-1-k) u_k for columns (B, H, L): (B, H, n), by two levels as the kernel, no loop over time."""
        length = columns.shape[-1]
        if lengths is not None:  # move every item to the right, so that all end together
            index = torch.arange(length, device=columns.device) - (length - lengths.to(columns.device))[:, None]
            columns = columns.gather(2, index.clamp(min=0)[:, None].expand_as(columns)) * (index >= 0)[:, None]
        block = max(1, math.isqrt(length))
        blocks = -(-length // block)
        columns = nn.functional.pad(columns, (blocks * block - length, 0)).unflatten(-1, (blocks, block))
        inner = torch.exp(log_a[..., None] * torch.arange(block - 1, -1, -1, device=columns.device))
        outer = torch.exp(log_a[..., None] * (block * torch.arange(blocks - 1, -1, -1, device=columns.device)))
        return torch.einsum("bhkl,hnl,hnk->bhn", columns.to(inner.dtype), inner, outer)

    def initial_state(self, batch: int) -> Tensor:
        """Zeros (B, H, n)."""
        dtype = torch.complex128 if self.log_dt.dtype == torch.float64 else torch.complex64
        return torch.zeros(batch, self.channels, self.state_size, dtype=dtype, device=self.log_dt.device)

    def scan(self, u: Tensor, state: Tensor | None = None, *, rate: float = 1.0, mode: Mode = "tree") -> tuple[Tensor, Tensor]:
        """u (B, L, H) -> y (B, L, H) and the states of every step (B, L, H, n), by an associative scan of affine maps."""
        x = self._input(u, None)
        _, discrete, b, c = self._recurrence(rate)
        forced = x[..., None].to(b.dtype) * b  # (B, L, H, n)
        if state is not None:
            forced = torch.cat([(forced[:, 0] + discrete * state)[:, None], forced[:, 1:]], 1)
        _, states = scan(AFFINE, (discrete.expand(forced.shape), forced), axis=1, mode=mode)
        y = 2 * torch.einsum("blhn,hn->blh", states, c[0]).real + raised(self.d) * x
        return y, states

    def step(self, u: Tensor, state: Tensor | None = None, *, rate: float = 1.0) -> tuple[Tensor, Tensor]:
        """One step: u (B, H) and state (B, H, n) -> y (B, H) and the next state."""
        if u.ndim != 2 or u.shape[1] != self.channels:
            raise ProbatumError(f"step takes (B, {self.channels}), got {tuple(u.shape)}")
        _, discrete, b, c = self._recurrence(rate)
        x = self._single(u)
        state = self.initial_state(len(u)) if state is None else state
        state = discrete * state + b * x[..., None]
        return 2 * (state * c[0]).sum(-1).real + raised(self.d) * x, state

    def _recurrence(self, rate: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if self.bidirectional:
            raise ProbatumError("a bidirectional layer needs the whole sequence: no step and no scan")
        if self.disc == "dss":
            raise ProbatumError("disc='dss' normalises by the whole length: no step and no scan; use zoh or bilinear")
        return self._system(rate)

    def _single(self, u: Tensor) -> Tensor:
        """Complex kernels never run in half precision: inputs are raised to the parameters' precision, the output comes back in theirs."""
        return u.to(raised(self.log_dt).dtype)

    def _input(self, u: Tensor, lengths: Tensor | None) -> Tensor:
        if u.ndim != 3 or u.shape[2] != self.channels:
            swapped = " (is it channels-first? give (B, L, H))" if u.ndim == 3 and u.shape[1] == self.channels else ""
            raise ProbatumError(f"the input must be (B, L, {self.channels}), got {tuple(u.shape)}{swapped}")
        if u.shape[1] < 1:
            raise ProbatumError("the input has length 0")
        x = self._single(u)
        if lengths is None:
            return x
        if lengths.shape != (len(u),) or int(lengths.min()) < 1 or int(lengths.max()) > u.shape[1]:
            raise ProbatumError(f"lengths must be one of 1 to {u.shape[1]} for each of the {len(u)} items, got {lengths.tolist()}")
        valid = torch.arange(u.shape[1], device=u.device)[None] < lengths.to(u.device)[:, None]
        return x * valid[..., None]


def param_groups(model: nn.Module, lr: float, weight_decay: float) -> list[dict]:
    """Groups for an optimizer: parameters that carry a hint (`_optim`) get theirs, capped at `lr`; the others `lr` and `weight_decay`."""
    plain: list[nn.Parameter] = []
    hinted: dict[tuple, list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        hint = getattr(parameter, "_optim", None)
        if hint is None:
            plain.append(parameter)
        else:
            hinted.setdefault((min(lr, hint["lr"]), hint["weight_decay"]), []).append(parameter)
    groups: list[dict] = [{"params": plain, "lr": lr, "weight_decay": weight_decay}] if plain else []
    return groups + [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in hinted.items()]
