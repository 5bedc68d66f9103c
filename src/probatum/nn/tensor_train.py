"""Linear maps in tensor-train form: a matrix as a chain of small cores (Oseledets 2011; Novikov et al. 2015, arXiv 1509.06569).

With in = n_1 ... n_m and out = n_m+1 ... n_2m, W[(i_1 .. i_m), (j_1 .. j_m)] = G_1[i_1] ... G_2m[j_m], where G_k is (r_k-1, n_k, r_k) and
r_0 = r_2m = 1. The matrix has rank r_m at most, and W is never formed unless it is asked for.

>>> layer = TTLinear(4096, 64, rank=5)
>>> layer.shape, layer.numel                                    # instead of 262,144
(([16, 16, 16], [4, 4, 4]), 1100)
>>> x = torch.randn(7, 4096)
>>> torch.allclose(layer(x), x @ layer.matrix(), atol=1e-4)
True
"""

import math
from collections.abc import Sequence
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from probatum.errors import ProbatumError

__all__ = ["Contraction", "TTLinear", "factorise", "tt_matrix", "tt_svd"]

Contraction = Literal["auto", "halves", "sequential", "dense"]


def factorise(n: int, parts: int = 3) -> list[int]:
    """n as a product of `parts` factors of 2 or more, as equal as possible (least sum), the largest first.

    >>> factorise(4096), factorise(1024), factorise(384), factorise(64)
    ([16, 16, 16], [16, 8, 8], [8, 8, 6], [4, 4, 4])

    Raises:
        ProbatumError: n has fewer prime factors than `parts`; the message names the nearest sizes that have enough.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 2 or parts < 1:
        raise ProbatumError(f"n must be an integer of 2 or more and parts 1 or more, got {n!r} and {parts!r}")
    found = _balanced(n, parts, 2)
    if found is None:
        least = 2**parts
        below = next((k for k in range(n - 1, least - 1, -1) if _balanced(k, parts, 2)), None)
        above = next(k for k in range(max(n + 1, least), 2 * n + least + 1) if _balanced(k, parts, 2))
        near = [f"{k} = {' x '.join(map(str, factorise(k, parts)))}" for k in (below, above) if k]
        raise ProbatumError(
            f"{n} is no product of {parts} factors of 2 or more; the nearest sizes are {' and '.join(near)}: give a shape of your "
            "own or another number of parts"
        )
    return sorted(found, reverse=True)


@cache
def _balanced(n: int, parts: int, least: int) -> tuple[int, ...] | None:
    """Ascending factors from `least` on with the smallest sum."""
    if parts == 1:
        return (n,) if n >= least else None
    best = None
    for factor in range(least, round(n ** (1 / parts)) + 2):
        if n % factor == 0 and factor**parts <= n:
            rest = _balanced(n // factor, parts - 1, factor)
            if rest and (best is None or factor + sum(rest) < sum(best)):
                best = (factor, *rest)
    return best


class TTLinear(nn.Module):
    """(..., in) -> (..., out), y = x W + bias with W in tensor-train form.

    Args:
        in_features, out_features: sizes.
        rank: r_1 .. r_2m-1, all the same.
        shape: ([n_1 .. n_m], [n_m+1 .. n_2m]); default `factorise` in three parts each.
        bias: add a bias (out,), which at these sizes is most of the layer.
        contraction: "halves": x (G_1 .. G_m) (G_m+1 .. G_2m), both halves formed once a call; "sequential": x core by core, no set-up;
            "dense": W formed; "auto": the one of the first two with fewer operations at the number of rows.
        zero: start with a last core of zeros, so that the map is 0.
        generator: of the initial cores: normal with variance (in + out)^(-1/2m) / r_k, so that entries of W have variance 1 / (in + out).
    Raises:
        ProbatumError: a shape that does not multiply to the sizes or has other numbers of factors for in and out (an odd chain has no
            middle), a rank above min(in, out).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int = 5,
        *,
        shape: tuple[Sequence[int], Sequence[int]] | None = None,
        bias: bool = False,
        contraction: Contraction = "auto",
        zero: bool = False,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        inner, outer = shape or (factorise(in_features), factorise(out_features))
        self.shape = [int(n) for n in inner], [int(n) for n in outer]
        _check(in_features, out_features, rank, self.shape, contraction)
        self.in_features, self.out_features, self.contraction = in_features, out_features, contraction
        sizes = [*self.shape[0], *self.shape[1]]
        ranks = [1, *[rank] * (len(sizes) - 1), 1]
        self.cores = nn.ParameterList(
            nn.Parameter(torch.empty(ranks[k], n, ranks[k + 1], device=device, dtype=dtype)) for k, n in enumerate(sizes)
        )
        self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        self._turn: float | None = None  # rows above which halves take fewer operations
        self.reset_parameters(zero, generator)

    @torch.no_grad()
    def reset_parameters(self, zero: bool = False, generator: torch.Generator | None = None) -> None:
        """Draw the cores anew; with `zero` the last core and the bias are 0."""
        scale = (1 / (self.in_features + self.out_features)) ** (1 / (2 * len(self.cores)))
        for core in self.cores:
            core.normal_(0, scale / math.sqrt(core.shape[2]), generator=generator)
        if zero:
            self.cores[-1].zero_()
        if self.bias is not None:
            bound = 0.0 if zero else 1 / math.sqrt(self.out_features)
            self.bias.uniform_(-bound, bound, generator=generator)

    @property
    def numel(self) -> int:
        """Entries of the cores and the bias."""
        return sum(parameter.numel() for parameter in self.parameters())

    def flops(self, rows: int, contraction: Contraction = "halves") -> int:
        """Operations (a multiplication and an addition are two) for `rows` inputs, forming halves or W included."""
        return _flops(tuple(tuple(core.shape) for core in self.cores), len(self.shape[0]), rows, contraction)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.in_features:
            raise ProbatumError(f"x must be (..., {self.in_features}), got {list(x.shape)}")
        way = self.contraction
        if way == "auto":
            if self._turn is None:
                once, row = self.flops(0), self.flops(1) - self.flops(0)
                self._turn = once / max(1, self.flops(1, "sequential") - row)
            way = "halves" if x.numel() > self._turn * self.in_features else "sequential"
        cores: list[Tensor] = list(self.cores._parameters.values())  # type: ignore[arg-type]  # a ParameterList takes ten times as long to walk
        half = len(self.shape[0])
        if way == "halves":
            y = x @ _chain(cores[:half]).flatten(0, -2) @ _chain(cores[half:]).flatten(1)
        elif way == "dense":
            y = x @ tt_matrix(cores, half)
        else:
            y = self._sequential(x, cores, half)
        return y if self.bias is None else y + self.bias

    def _sequential(self, x: Tensor, cores: list[Tensor], half: int) -> Tensor:
        """The rows through one core after the other: (rows, r, rest of in), then (rows, out so far, r)."""
        y = x.reshape(-1, 1, self.in_features)
        for core in cores[:half]:
            y = torch.einsum("brna,rns->bsa", y.unflatten(2, (core.shape[1], -1)), core)
        y = y.transpose(1, 2)
        for core in cores[half:]:
            y = torch.einsum("bjr,rns->bjns", y, core).flatten(1, 2)
        return y.reshape(*x.shape[:-1], self.out_features)

    def matrix(self) -> Tensor:
        """W (in, out)."""
        return tt_matrix(list(self.cores), len(self.shape[0]))

    @torch.no_grad()
    def merge(self) -> nn.Linear:
        """The same map as an ordinary linear layer."""
        core = self.cores[0]
        linear = nn.Linear(
            self.in_features, self.out_features, self.bias is not None, device=core.device, dtype=core.dtype
        )
        linear.weight.copy_(self.matrix().t())
        if self.bias is not None:
            linear.bias.copy_(self.bias)
        return linear

    @classmethod
    @torch.no_grad()
    def from_matrix(
        cls, matrix: Tensor, rank: int | None = None, *, shape: tuple[Sequence[int], Sequence[int]] | None = None
    ) -> "TTLinear":
        """The nearest train by successive SVDs of W (in, out); `rank` None keeps all ranks, which reproduces W."""
        n, out = matrix.shape
        layer = cls(n, out, rank or 1, shape=shape, device=matrix.device, dtype=matrix.dtype)
        cores = tt_svd(matrix, [*layer.shape[0], *layer.shape[1]], rank)
        layer.cores = nn.ParameterList(nn.Parameter(core) for core in cores)
        return layer

    def extra_repr(self) -> str:
        ranks = [core.shape[2] for core in list(self.cores)[:-1]]
        return f"{self.in_features}, {self.out_features}, shape={self.shape}, ranks={ranks}, bias={self.bias is not None}"


def tt_matrix(cores: Sequence[Tensor], half: int) -> Tensor:
    """The matrix of a train whose first `half` cores carry the rows."""
    left, right = _chain(cores[:half]).flatten(0, -2), _chain(cores[half:]).flatten(1)
    return left @ right


def tt_svd(matrix: Tensor, sizes: Sequence[int], rank: int | None = None) -> list[Tensor]:
    """Cores of the matrix's entries, read row by row as an array of these sizes, by successive SVDs (Oseledets 2011, Algorithm 1).

    Ranks are those of the unfoldings, at most `rank`.
    """
    if math.prod(sizes) != matrix.numel():
        raise ProbatumError(f"sizes must multiply to {matrix.numel()}, got {list(sizes)}")
    cores, rest, r = [], matrix.reshape(1, -1), 1
    for n in list(sizes)[:-1]:
        u, s, v = torch.linalg.svd(rest.reshape(r * n, -1), full_matrices=False)
        keep = len(s) if rank is None else min(rank, len(s))
        cores.append(u[:, :keep].reshape(r, n, keep))
        rest, r = s[:keep].unsqueeze(1) * v[:keep], keep
    cores.append(rest.reshape(r, sizes[-1], 1))
    return [core.contiguous() for core in cores]


def _chain(cores: Sequence[Tensor]) -> Tensor:
    """The product of neighbouring cores: (r, n .., s), with sizes of 1 at the ends of the whole train dropped."""
    product = cores[0].reshape(-1, cores[0].shape[2])  # (r n, s)
    for core in cores[1:]:
        product = (product @ core.flatten(1)).view(-1, core.shape[2])
    r, s = cores[0].shape[0], cores[-1].shape[2]
    return product.view(-1, s) if r == 1 else product.view(r, -1, s).squeeze(2) if s == 1 else product.view(r, -1, s)


@cache
def _flops(cores: tuple[tuple[int, ...], ...], half: int, rows: int, contraction: str) -> int:
    def formed(part: tuple[tuple[int, ...], ...]) -> int:
        total, size = 0, part[0][0] * part[0][1]
        for r, n, s in part[1:]:
            total, size = total + 2 * size * r * n * s, size * n
        return total

    n, out, r = math.prod(c[1] for c in cores[:half]), math.prod(c[1] for c in cores[half:]), cores[half][0]
    setup = formed(cores[:half]) + formed(cores[half:])
    if contraction == "halves":
        return setup + 2 * rows * r * (n + out)
    if contraction == "dense":
        return setup + 2 * n * r * out + 2 * rows * n * out
    total, rest, made = 0, n, 1
    for a, size, s in cores[:half]:
        rest //= size
        total += 2 * rest * a * size * s
    for a, size, s in cores[half:]:
        total, made = total + 2 * made * a * size * s, made * size
    return rows * total


def _check(n: int, out: int, rank: int, shape: tuple[list[int], list[int]], contraction: str) -> None:
    for name, size, factors in (("in_features", n, shape[0]), ("out_features", out, shape[1])):
        if math.prod(factors) != size or any(f < 1 for f in factors):
            raise ProbatumError(f"{name} is {size}, but its shape {factors} multiplies to {math.prod(factors)}")
    if len(shape[0]) != len(shape[1]):
        raise ProbatumError(
            f"shape must have as many factors for in as for out, got {shape[0]} and {shape[1]}: the chain is cut in the middle"
        )
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= min(n, out):
        raise ProbatumError(f"rank must be from 1 to {min(n, out)}, the largest rank of a {n} x {out} matrix, got {rank!r}")
    if contraction not in get_args(Contraction):
        raise ProbatumError(f"contraction must be one of {', '.join(get_args(Contraction))}, got {contraction!r}")
