"""Which weights these are: names, shapes, types and a checksum of the values, small enough to travel in a file's head.

>>> a, b = [("w", torch.zeros(3, 5))], [("w", torch.ones(3, 5))]
>>> Fingerprint.of(a).difference(Fingerprint.of(b))
'the values of w differ'
>>> Fingerprint.of(a).difference(Fingerprint.of(a)) is None
True
"""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from probatum.errors import ProbatumError

__all__ = ["Fingerprint"]


@dataclass(frozen=True)
class Fingerprint:
    """One row a tensor, in order: name, shape, dtype, CRC-32 of its bytes in row-major order."""

    rows: tuple[tuple[str, tuple[int, ...], str, int], ...]

    @classmethod
    def of(cls, named: Iterable[tuple[str, Tensor]]) -> "Fingerprint":
        """Of (name, tensor) pairs; contiguous CPU tensors are read in place, without a copy."""
        return cls(tuple((name, tuple(t.shape), str(t.dtype).removeprefix("torch."), _crc(t)) for name, t in named))

    def difference(self, other: "Fingerprint", *, names: bool = True) -> str | None:
        """What sets the other apart, in words and by the first tensor concerned; None where they are the same.

        Args:
            names: whether a different name matters; without it tensors are compared in order.
        """
        if names:
            ours, theirs = [row[0] for row in self.rows], [row[0] for row in other.rows]
            lost = [name for name in ours if name not in theirs] or [name for name in theirs if name not in ours]
            if lost:
                here = "the first" if lost[0] in ours else "the second"
                return f"only {here} has {lost[0]}" + (f" (and {len(lost) - 1} more)" if len(lost) > 1 else "")
        if len(self.rows) != len(other.rows):
            return f"{len(self.rows)} tensors against {len(other.rows)}"
        for mine, yours in zip(self.rows, other.rows, strict=True):
            if mine[1] != yours[1]:
                return f"the shape of {mine[0]} differs: {list(mine[1])} against {list(yours[1])}"
            if mine[2] != yours[2]:
                return f"the dtype of {mine[0]} differs: {mine[2]} against {yours[2]}"
        changed = [mine[0] for mine, yours in zip(self.rows, other.rows, strict=True) if mine[3] != yours[3]]
        if changed:
            return f"the values of {changed[0]} differ" + (
                f" (and of {len(changed) - 1} more tensors)" if len(changed) > 1 else ""
            )
        return None

    def to_json(self) -> list[list[Any]]:
        return [[name, list(shape), dtype, crc] for name, shape, dtype, crc in self.rows]

    @classmethod
    def from_json(cls, rows: Any) -> "Fingerprint":
        try:
            return cls(tuple((str(n), tuple(map(int, shape)), str(dtype), int(crc)) for n, shape, dtype, crc in rows))
        except (TypeError, ValueError) as error:
            raise ProbatumError(
                "this is no fingerprint: rows of name, shape, dtype and checksum are expected"
            ) from error


def _crc(tensor: Tensor) -> int:
    flat = tensor.detach().cpu().contiguous().view(-1)
    return zlib.crc32(memoryview(flat.view(torch.uint8).numpy())) if flat.numel() else 0  # type: ignore[arg-type]
