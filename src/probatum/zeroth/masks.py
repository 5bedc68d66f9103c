"""Which weights move: sorted positions of each tensor, and masks of one bit a weight that may change from step to step.

>>> net = torch.nn.Linear(5, 4)
>>> some = Indices.random(net.named_parameters(), {"weight": 0.25, "bias": 0.5}, seed=3)
>>> [len(part) for part in some.parts], round(some.share, 3)
([5, 2], 0.292)

`Indices.random(..., draw=step // every)` is a pure function, so a subset that is drawn anew every so many steps needs no state.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from probatum.errors import ProbatumError
from probatum.zeroth.noise import Noise, _hash_words

__all__ = ["Bits", "Fixed", "Indices", "MaskRule", "Random", "Threshold", "flat", "rule_of", "subset", "thresholds"]

CHUNK = 1 << 17  # values compared at once: what is written in between stays in the cache
SUBSET = (1 << 32) + 1  # the query under which subsets are drawn: no direction of any step has it
Side = Literal["smallest", "largest"]


@dataclass(frozen=True)
class Indices:
    """Positions in tensors: for each name and shape an increasing int64 tensor of positions in row-major order, each once.

    Raises:
        ProbatumError: positions that are not increasing or lie outside.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    parts: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        for name, shape, part in zip(self.names, self.shapes, self.parts, strict=True):
            if part.dtype != torch.int64 or part.ndim != 1 or (len(part) and not bool((part.diff() > 0).all())):
                raise ProbatumError(f"positions in {name} must be increasing int64, each once (a repeated one would be added once)")
            if len(part) and not 0 <= int(part[0]) <= int(part[-1]) < math.prod(shape):
                raise ProbatumError(f"positions in {name} must lie in 0 to {math.prod(shape) - 1}, got {int(part[0])} to {int(part[-1])}")

    @property
    def count(self) -> int:
        return sum(map(len, self.parts))

    @property
    def share(self) -> float:
        """Chosen positions over all of these tensors."""
        return self.count / max(1, sum(map(math.prod, self.shapes)))

    def masks(self) -> dict[str, Tensor]:
        """Boolean tensors by name."""
        found = {}
        for name, shape, part in zip(self.names, self.shapes, self.parts, strict=True):
            mask = torch.zeros(math.prod(shape), dtype=torch.bool, device=part.device)
            mask[part] = True
            found[name] = mask.view(shape)
        return found

    @classmethod
    def random(
        cls, named: nn.Module | Iterable[tuple[str, Tensor]], shares: float | Mapping[str, float], *, seed: int, draw: int = 0
    ) -> "Indices":
        """Exactly floor(share n) positions of each tensor, all sets equally likely.

        Args:
            named: a model, or (name, tensor) pairs; their order decides the draw.
            shares: from 0 to 1, for all tensors or by name (all names).
            draw: its number; another number is another subset.
        Raises:
            ProbatumError: a share out of range or missing.
        """
        pairs = list(named.named_parameters() if isinstance(named, nn.Module) else named)
        noise, parts = Noise(seed), []
        for i, (name, tensor) in enumerate(pairs):
            if isinstance(shares, Mapping) and name not in shares:
                raise ProbatumError(f"shares lacks {name}: it has {', '.join(list(shares)[:3]) or 'nothing'}, one a tensor is needed")
            share = _share("shares", shares[name] if isinstance(shares, Mapping) else shares)
            parts.append(subset(tensor.numel(), _floor(share * tensor.numel()), noise.key(draw, SUBSET, i)))
        return cls(tuple(n for n, _ in pairs), tuple(tuple(t.shape) for _, t in pairs), tuple(parts))

    @classmethod
    def top(cls, scores: Mapping[str, Tensor], fraction: float, scope: Literal["tensor", "global"] = "tensor") -> "Indices":
        """The floor(fraction n) positions of highest score, of each tensor or of all together; of equals the first.

        Raises:
            ProbatumError: fraction outside (0, 1], nothing chosen, scores that are not finite.
        """
        if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 < fraction <= 1:
            raise ProbatumError(f"fraction must be above 0 and at most 1, got {fraction!r}")
        if scope not in ("tensor", "global"):
            raise ProbatumError(f"scope must be tensor or global, got {scope!r}")
        for name, score in scores.items():
            if not bool(torch.isfinite(score).all()):
                raise ProbatumError(f"the scores of {name} are not finite: its gradients overflow; score in float32")
        flats = [score.reshape(-1) for score in scores.values()]
        if scope == "tensor":
            parts = [_top(score, _floor(fraction * len(score))) for score in flats]
        else:
            edges = np.cumsum([0, *map(len, flats)])
            chosen = _top(torch.cat(flats), _floor(fraction * int(edges[-1])))
            cuts = torch.searchsorted(chosen, torch.from_numpy(edges).to(chosen.device)).tolist()
            parts = [chosen[a:b] - int(edge) for a, b, edge in zip(cuts[:-1], cuts[1:], edges[:-1], strict=True)]
        found = cls(tuple(scores), tuple(tuple(score.shape) for score in scores.values()), tuple(parts))
        if not found.count:
            largest = max(map(len, flats), default=0)
            raise ProbatumError(f"no weight is chosen: fraction={fraction:g} of the largest tensor, {largest} weights, is below one")
        return found


class Bits:
    """The mask of one tensor, one bit a weight, in the order of the tensor's memory."""

    def __init__(self, data: Tensor, n: int) -> None:
        self.data, self.n = data, n

    @classmethod
    def of(cls, mask: Tensor) -> "Bits":
        """Pack a flat boolean tensor."""
        if mask.device.type == "cpu":
            return cls(torch.from_numpy(np.packbits(mask.numpy(), bitorder="little")), len(mask))
        padded = nn.functional.pad(mask.to(torch.uint8), (0, -len(mask) % 8)).view(-1, 8)
        return cls((padded << torch.arange(8, dtype=torch.uint8, device=mask.device)).sum(1, dtype=torch.uint8), len(mask))

    @property
    def nbytes(self) -> int:
        return self.data.numel()

    @property
    def count(self) -> int:
        return int(np.bitwise_count(self.data.cpu().numpy()).sum(dtype=np.int64))

    def dense(self) -> Tensor:
        """The flat boolean tensor again."""
        return _patterns(self.data.device)[self.data.int()].view(-1)[: self.n] > 0

    def mul_(self, z: Tensor, at: int, part: Tensor) -> None:
        """z *= mask of the values from `at` on (a multiple of 8); `part`, those values, is not needed."""
        some = self.data[at // 8 : -(-(at + len(z)) // 8)]
        if z.device.type == "cpu":  # a third of the cost of torch's look-up
            values = z.numpy()
            np.multiply(values, np.unpackbits(some.numpy(), count=len(z), bitorder="little"), out=values)
        else:
            z.mul_(torch.index_select(_patterns(z.device), 0, some.int()).view(-1)[: len(z)])


class Compared:
    """The mask of one tensor, found from its values whenever it is asked for: no memory, but they must stand at theta."""

    def __init__(self, level: float, side: Side, count: int) -> None:
        self.level, self.side, self.count = level, side, count
        self.nbytes = 0

    def mul_(self, z: Tensor, at: int, part: Tensor) -> None:
        """z *= mask of `part`."""
        z.mul_(_compare(part, self.level, self.side))


class MaskRule(Protocol):
    """Says where z may differ from 0, step by step.

    `at` is asked once a step, at theta; tensors that are not in what it returns move whole. `to_json` and `arrays` are what a log keeps
    so that a replay finds the same masks.
    """

    def at(self, step: int, tensors: Sequence[Tensor], *, live: bool = False) -> Mapping[int, Bits | Compared]: ...

    def to_json(self) -> dict[str, Any]: ...

    def arrays(self) -> dict[str, Tensor]: ...


class Threshold:
    """The weights whose magnitude is at most (or at least) a level of their tensor, compared anew at each step.

    Args:
        levels: one a tensor; a value that is not finite leaves the tensor whole.
    """

    def __init__(self, levels: Sequence[float], side: Side = "smallest") -> None:
        self.levels, self.side = list(levels), side

    def at(self, step: int, tensors: Sequence[Tensor], *, live: bool = False) -> dict[int, Bits | Compared]:
        """`live`: theta is not perturbed while the masks are in use, so none is stored."""
        found: dict[int, Bits | Compared] = {}
        for i, (tensor, level) in enumerate(zip(tensors, self.levels, strict=True)):
            if math.isfinite(level):
                values = flat(tensor, f"tensor {i}")
                if live:
                    count = sum(int(_compare(part, level, self.side).sum()) for part in values.split(CHUNK))
                    found[i] = Compared(level, self.side, count)
                else:
                    mask = torch.empty(len(values), dtype=torch.bool, device=tensor.device)
                    for part, out in zip(values.split(CHUNK), mask.split(CHUNK), strict=True):
                        out.copy_(_compare(part, level, self.side))
                    found[i] = Bits.of(mask)
        return found

    def to_json(self) -> dict[str, Any]:
        return {"kind": "threshold", "levels": [x if math.isfinite(x) else None for x in self.levels], "side": self.side}

    def arrays(self) -> dict[str, Tensor]:
        return {}


class Random:
    """A random share of each tensor, drawn anew every so many steps (0: once).

    Args:
        shares: one a tensor, from 0 to 1.
    """

    def __init__(self, shares: Sequence[float], seed: int, every: int = 0) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 0:
            raise ProbatumError(f"every must be 0 (drawn once) or a number of steps, got {every!r}")
        self.shares, self.seed, self.every = [_share("shares", x) for x in shares], seed, every
        self._drawn: tuple[int, dict[int, Bits]] | None = None

    def at(self, step: int, tensors: Sequence[Tensor], *, live: bool = False) -> Mapping[int, Bits | Compared]:
        draw = step // self.every if self.every else 0
        if self._drawn is None or self._drawn[0] != draw:
            named = [(str(i), t) for i, t in enumerate(tensors)]
            by_name = {str(i): share for i, share in enumerate(self.shares)}
            masks = Indices.random(named, by_name, seed=self.seed, draw=draw).masks().values()
            self._drawn = draw, {i: Bits.of(m.flatten().to(tensors[i].device)) for i, m in enumerate(masks) if self.shares[i] < 1}
        return self._drawn[1]

    def to_json(self) -> dict[str, Any]:
        return {"kind": "random", "shares": self.shares, "seed": self.seed, "every": self.every}

    def arrays(self) -> dict[str, Tensor]:
        return {}


class Fixed:
    """Masks that never change; a log keeps them whole (a bit a weight)."""

    def __init__(self, bits: Mapping[int, Bits]) -> None:
        self.bits = dict(bits)

    def at(self, step: int, tensors: Sequence[Tensor], *, live: bool = False) -> Mapping[int, Bits | Compared]:
        return self.bits

    def to_json(self) -> dict[str, Any]:
        return {"kind": "fixed", "sizes": [[i, bits.n] for i, bits in self.bits.items()]}

    def arrays(self) -> dict[str, Tensor]:
        return {f"mask.{i}": bits.data.cpu() for i, bits in self.bits.items()}


def rule_of(head: Mapping[str, Any] | None, arrays: Mapping[str, Tensor], device: torch.device | str = "cpu") -> MaskRule | None:
    """The rule that a log keeps; None where it has none.

    Raises:
        ProbatumError: a kind that this version does not know.
    """
    if head is None:
        return None
    if head["kind"] == "threshold":
        return Threshold([math.inf if x is None else x for x in head["levels"]], head["side"])
    if head["kind"] == "random":
        return Random(head["shares"], head["seed"], head["every"])
    if head["kind"] == "fixed":
        return Fixed({i: Bits(arrays[f"mask.{i}"].to(device), n) for i, n in head["sizes"]})
    raise ProbatumError(f"the log has masks of kind {head['kind']!r}, this version knows threshold, random and fixed")


def thresholds(tensors: Iterable[Tensor], share: float, side: Side = "smallest") -> list[float]:
    """The level of each tensor at which ceil(share n) weights are active; more where several weights equal it."""
    found = []
    for tensor in tensors:
        n = tensor.numel()
        k = min(n, max(1, math.ceil(round(share * n, 6))))
        size = flat(tensor, "a tensor").abs().float() if tensor.dtype != torch.float64 else flat(tensor, "a tensor").abs()
        found.append(float(size.kthvalue(k if side == "smallest" else n - k + 1).values))
    return found


def flat(tensor: Tensor, name: str) -> Tensor:
    """A one-dimensional view of a dense tensor in the order of its memory."""
    tensor = tensor.detach()
    if not tensor.is_contiguous():
        tensor = tensor.permute(sorted(range(tensor.ndim), key=lambda d: -tensor.stride(d)))  # type: ignore[operator]
        if not tensor.is_contiguous():
            raise ProbatumError(f"{name} is a strided view with gaps: make it contiguous before it is tuned")
    return tensor.view(-1)


def _compare(part: Tensor, level: float, side: Side) -> Tensor:
    return part.abs() <= level if side == "smallest" else part.abs() >= level


def _share(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ProbatumError(f"{name} must be from 0 to 1, got {value!r}")
    return float(value)


def _floor(x: float) -> int:
    """floor, where a product such as 0.29 x 100 = 28.999999999999996 counts as 29."""
    return math.floor(round(x, 6))


def subset(n: int, k: int, key: int) -> Tensor:
    """k of n positions, increasing, a pure function of the key: those whose hash is smallest. The hash is a bijection of 32-bit numbers, so none are equal."""
    if k >= n:
        return torch.arange(n)
    if k == 0:
        return torch.empty(0, dtype=torch.int64)
    words = _hash_words(np.arange(n, dtype=np.uint32), key)
    return torch.from_numpy(np.flatnonzero(words <= np.partition(words, k - 1)[k - 1]))


def _top(score: Tensor, k: int) -> Tensor:
    """The k highest, in increasing order of position; of equal scores at the border the first positions."""
    if k == 0:
        return torch.empty(0, dtype=torch.int64, device=score.device)
    border = score.topk(k, sorted=True).values[-1]
    above = (score > border).nonzero().view(-1)
    return torch.cat([above, (score == border).nonzero().view(-1)[: k - len(above)]]).sort().values


@cache
def _patterns(device: torch.device) -> Tensor:
    """(256, 8): the bits of a byte as 0.0 and 1.0, lowest first."""
    return ((torch.arange(256).unsqueeze(1) >> torch.arange(8)) & 1).float().to(device)
