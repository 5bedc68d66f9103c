"""S4 with its diagonal-plus-low-rank state matrix (Gu et al. 2022, arXiv 2111.00396): the baseline that S4D simplifies.

A_H = V (L - p p*) V*, L the eigenvalues of the normal part and p = V* B / sqrt(2). The kernel is evaluated through its generating function
at the roots of unity, by Cauchy products and Woodbury, under the bilinear discretisation; C absorbs (1 - A^L), as in the reference.
"""

import math

import torch
from torch import Tensor, nn

from probatum.errors import ProbatumError
from probatum.sequence.hippo import legs, normal_eigenvalues
from probatum.sequence.ssm import fft_convolution

__all__ = ["S4"]


class S4(nn.Module):
    """H independent DPLR systems started from HiPPO-LegS; a convolution only.

    Args:
        channels: H. state: N, even.
        dt_min, dt_max: of the initial step. ssm_lr: hint for `param_groups`. generator: of dt, C and D.
    """

    def __init__(
        self, channels: int, state: int = 64, *, dt_min: float = 1e-3, dt_max: float = 1e-1, ssm_lr: float = 1e-3,
        generator: torch.Generator | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if state < 2 or state % 2:
            raise ProbatumError(f"the state size must be even (conjugate pairs) and 2 or more, got {state}")
        values, vectors = normal_eigenvalues(state)
        b = (vectors.conj().T @ legs(state)[1].to(torch.complex128))[state // 2 :]
        half = values[state // 2 :]
        self.channels = channels
        self.a_real = nn.Parameter(torch.log(-half.real).float().repeat(channels, 1))
        self.a_imag = nn.Parameter(half.imag.float().repeat(channels, 1))
        self.p = nn.Parameter(torch.view_as_real((b / math.sqrt(2)).to(torch.complex64)).repeat(channels, 1, 1))
        self.b = nn.Parameter(torch.view_as_real(b.to(torch.complex64)).repeat(channels, 1, 1))
        self.c = nn.Parameter(torch.randn(channels, state // 2, 2, generator=generator) * 0.5**0.5)
        self.d = nn.Parameter(torch.randn(channels, generator=generator))
        low, high = math.log(dt_min), math.log(dt_max)
        self.log_dt = nn.Parameter(low + (high - low) * torch.rand(channels, generator=generator))
        for parameter in (self.a_real, self.a_imag, self.p, self.b, self.log_dt):
            parameter._optim = {"lr": ssm_lr, "weight_decay": 0.0}  # type: ignore[attr-defined]

    def kernel(self, length: int) -> Tensor:
        """K (H, L), real."""

        def whole(x: Tensor) -> Tensor:
            return torch.cat([x, x.conj()], -1)

        a = whole(torch.complex(-torch.exp(self.a_real), self.a_imag))
        p, b, c = (whole(torch.view_as_complex(x)) for x in (self.p, self.b, self.c))
        dt = torch.exp(self.log_dt)[:, None]
        root = torch.exp(-2j * math.pi * torch.arange(length // 2 + 1, device=a.device, dtype=a.real.dtype) / length)
        # At z = -1 the bilinear map has its pole, where only the first term keeps a limit, dt/2 CB.
        safe = torch.where((1 + root).abs() < 1e-6, torch.ones_like(root), root)
        g = 2 / dt * (1 - safe) / (1 + safe)  # (H, F)
        cauchy = 1 / (g[..., None] - a[:, None])  # (H, F, N)

        def product(left: Tensor, right: Tensor) -> Tensor:
            return ((left * right)[:, None] * cauchy).sum(-1)

        middle = product(c, b) - product(c, p) * product(p.conj(), b) / (1 + product(p.conj(), p))
        spectrum = torch.where((1 + root).abs() < 1e-6, dt / 2 * (c * b).sum(-1, keepdim=True), 2 / (1 + safe) * middle)
        return torch.fft.irfft(spectrum, n=length)

    def forward(self, u: Tensor, state: None = None, *, lengths: None = None, rate: float = 1.0) -> tuple[Tensor, None]:
        """u (B, L, H) -> (B, L, H)."""
        if state is not None or lengths is not None or rate != 1.0:
            raise ProbatumError("S4 is here as a convolution baseline: no state, lengths or rate")
        if u.ndim != 3 or u.shape[2] != self.channels:
            raise ProbatumError(f"the input must be (B, L, {self.channels}), got {tuple(u.shape)}")
        x = u.transpose(1, 2)
        return (fft_convolution(x, self.kernel(u.shape[1])) + self.d[:, None] * x).transpose(1, 2), None
