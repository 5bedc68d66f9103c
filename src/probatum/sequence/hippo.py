"""HiPPO-LegS and its diagonalisable relatives, in float64: where state-space models get their memory from.

A_H is lower triangular and cannot be diagonalised in floating point (the condition number of its eigenvectors grows exponentially);
A_N = A_H + B B' / 2 is -1/2 plus a skew matrix, so normal, with unitary eigenvectors.
"""

import math

import torch
from torch import Tensor

from probatum.errors import ProbatumError

__all__ = ["legs", "legs_basis", "normal_eigenvalues", "normal_part", "structured_eigenvalues"]

STRUCTURED = ("legs", "lin", "inv", "quad")
UNSTRUCTURED = ("real", "rand")


def legs(n: int) -> tuple[Tensor, Tensor]:
    """HiPPO-LegS: A (n, n) and B (n,), float64.

    A_ij = -sqrt(2i+1) sqrt(2j+1) below the diagonal, -(i+1) on it, 0 above; B_i = sqrt(2i+1).
    """
    if n < 1:
        raise ProbatumError(f"n must be 1 or more, got {n}")
    b = torch.sqrt(2 * torch.arange(n, dtype=torch.float64) + 1)
    a = -torch.tril(torch.outer(b, b), -1) - torch.diag(torch.arange(1, n + 1, dtype=torch.float64))
    return a, b


def normal_part(n: int) -> Tensor:
    """A_N = A_H + B B' / 2, (n, n) float64: normal, all its eigenvalues on the line of real part -1/2."""
    a, b = legs(n)
    return a + torch.outer(b, b) / 2


def normal_eigenvalues(n: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues (n,) and unitary eigenvectors (n, n) of A_N, complex128, imaginary parts ascending.

    Through the Hermitian -i (A_N + 1/2), which is well conditioned; so real parts are -1/2 exactly.
    """
    skew = normal_part(n) + 0.5 * torch.eye(n, dtype=torch.float64)
    imaginary, vectors = torch.linalg.eigh(-1j * skew.to(torch.complex128))
    return torch.complex(torch.full_like(imaginary, -0.5), imaginary), vectors


def structured_eigenvalues(init: str, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """One eigenvalue of each conjugate pair (n/2,) and the matching B (n/2,), complex128.

    Args:
        init: "legs" (of A_N, with its rotated B), "lin" (-1/2 + i pi k), "inv" (-1/2 + i n/pi (n/(2k+1) - 1)), "quad"
            (-1/2 + i (1+2k)^2/pi), "real" (-(k+1)), "rand" (imaginary parts exp(N(0,1))).
        n: size of the real state, even.
        generator: of "rand".
    """
    if n < 2 or n % 2:
        raise ProbatumError(f"the state size must be even (conjugate pairs) and 2 or more, got {n}")
    k = torch.arange(n // 2, dtype=torch.float64)
    half, one = torch.full_like(k, -0.5), torch.ones(n // 2, dtype=torch.complex128)
    if init == "legs":
        values, vectors = normal_eigenvalues(n)
        _, b = legs(n)
        return values[n // 2 :], (vectors.conj().T @ b.to(torch.complex128))[n // 2 :]
    imaginary = {
        "lin": math.pi * k,
        "inv": n / math.pi * (n / (2 * k + 1) - 1),
        "quad": (1 + 2 * k) ** 2 / math.pi,
        "real": 0 * k,
    }.get(init)
    if init == "rand":
        imaginary = torch.exp(torch.randn(n // 2, dtype=torch.float64, generator=generator))
    if imaginary is None:
        raise ProbatumError(f"init must be one of {', '.join((*STRUCTURED, *UNSTRUCTURED))}, got {init!r}")
    return torch.complex(-(k + 1) if init == "real" else half, imaginary), one


def legs_basis(n: int, t: Tensor) -> Tensor:
    """e^(tA) B in closed form: sqrt(2k+1) e^-t P_k(2 e^-t - 1), (..., n) for times t (...)."""
    x = 2 * torch.exp(-t) - 1
    legendre = [torch.ones_like(x), x]
    for k in range(1, n - 1):
        legendre.append(((2 * k + 1) * x * legendre[k] - k * legendre[k - 1]) / (k + 1))
    scale = torch.sqrt(2 * torch.arange(n, dtype=t.dtype) + 1)
    return torch.stack(legendre[:n], -1) * scale * torch.exp(-t)[..., None]
