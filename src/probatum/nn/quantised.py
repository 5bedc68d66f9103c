"""Frozen weights that really lie in 4 or 8 bits: a scale for every group of inputs, and layers that compute from the packed form.

A group of 64 inputs of one output shares a scale in half precision; 4-bit codes lie two in a byte: 4.25 bits a weight. A layer's forward
unpacks a tile of rows, multiplies and drops it, so that no float copy of the weight is ever kept.

>>> layer = torch.nn.Linear(128, 6)
>>> packed = PackedLinear.of(layer)
>>> packed.bits_per_weight, packed.codes.dtype
(4.25, torch.uint8)
>>> bool((packed.dense() - layer.weight).abs().max() <= layer.weight.abs().max() / 14 * 1.001)
True
"""

from collections.abc import Callable
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn

from probatum.errors import ProbatumError

__all__ = ["Clip", "PackedEmbedding", "PackedLinear", "dequantise", "quantise"]

Clip = Literal["absmax", "mse"]
TILE = 1 << 20  # values unpacked at once: 4 MB
SHRINK = [1 - k / 32 for k in range(21)]  # of a group's largest value, tried by "mse"


def quantise(
    weight: Tensor, bits: int = 4, group: int = 64, clip: Clip = "absmax", skip: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Symmetric codes and scales of a matrix.

    Args:
        weight: (O, I), floating point.
        bits: 4 (codes -7 to 7) or 8 (-127 to 127).
        group: inputs that share a scale; even.
        clip: "absmax": the scale fits the group's largest value; "mse": the scale of 21, from it down to 0.375 of it, with the least
            squared error.
        skip: positions (flat) that do not count for the range; they get the code of 0.
    Returns:
        Codes, uint8 (O, ceil(I / group) group / 2), the even column in the low four bits, or int8 (O, ceil(I / group) group); and the
        scales, half precision (O, ceil(I / group)). What is dequantised is a fixed point: it has the same codes again.
    Raises:
        ProbatumError: no matrix, values that are not finite or whose scale is beyond half precision, bits or group that do not exist.
    """
    if weight.ndim != 2 or not weight.is_floating_point():
        raise ProbatumError(f"weight must be a floating-point matrix, got {weight.dtype} of shape {list(weight.shape)}")
    if bits not in (4, 8):
        raise ProbatumError(f"bits must be 4 or 8, got {bits!r}")
    if isinstance(group, bool) or not isinstance(group, int) or group < 2 or group % 2:
        raise ProbatumError(f"group must be an even number of inputs, 2 or more, got {group!r}")
    if clip not in ("absmax", "mse"):
        raise ProbatumError(f"clip must be absmax or mse, got {clip!r}")
    top = 7 if bits == 4 else 127
    values = weight.detach().float()
    if skip is not None:
        values = values.clone().view(-1).index_fill_(0, skip.long(), 0.0).view_as(weight)
    values = nn.functional.pad(values, (0, -weight.shape[1] % group)).unflatten(1, (-1, group))
    largest = values.abs().amax(-1)
    if not bool((largest < top * 65504.0).all()):
        raise ProbatumError(f"weights are not finite, or above {top * 65504.0:g}: the scale of a group is beyond half precision")
    scales, least = torch.zeros_like(largest), torch.full_like(largest, torch.inf)
    for shrink in SHRINK if clip == "mse" else (1.0,):
        scale = (largest * (shrink / top)).half().float()
        error = (_codes(values, scale, top) * scale.unsqueeze(-1) - values).square_().sum(-1)
        better = error < least
        scales, least = torch.where(better, scale, scales), torch.where(better, error, least)
    codes = _codes(values, scales, top).flatten(1)
    if bits == 8:
        return codes.to(torch.int8), scales.half()
    whole = (codes + 8).to(torch.uint8)
    return whole[:, 0::2] | (whole[:, 1::2] << 4), scales.half()


def dequantise(codes: Tensor, scales: Tensor, columns: int) -> Tensor:
    """The float32 matrix of codes (uint8: two a byte, int8: one) and scales; leading dimensions are kept."""
    if codes.dtype == torch.uint8:
        values = torch.index_select(_pairs(codes.device), 0, codes.flatten().int())
    else:
        values = codes.float()
    grouped = values.view(*scales.shape, -1)
    whole = grouped.mul_(scales.float().unsqueeze(-1)).flatten(-2)
    return whole if whole.shape[-1] == columns else whole[..., :columns].contiguous()


class _Packed(nn.Module):
    """Codes and scales as buffers."""

    codes: Tensor
    scales: Tensor

    def __init__(self, codes: Tensor, scales: Tensor, rows: int, columns: int) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns
        self.register_buffer("codes", codes)
        # As integers: `module.bfloat16()` would round them.
        self.register_buffer("scales", scales.view(torch.int16))

    def tile(self, begin: int, end: int) -> Tensor:
        """Rows begin to end, float32."""
        return dequantise(self.codes[begin:end], self.scales[begin:end].view(torch.float16), self.columns)

    def dense(self) -> Tensor:
        """The whole weight, float32."""
        return self.tile(0, self.rows)

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return sum(t.numel() * t.element_size() for t in (self.codes, self.scales))

    @property
    def bits_per_weight(self) -> float:
        """What is stored, scales and padding of the last group included."""
        return 8 * self.nbytes / (self.rows * self.columns)


class PackedLinear(_Packed):
    """A linear layer (I to O) whose weight is stored in 4 or 8 bits and unpacked tile by tile in each forward; the bias stays as it is.

    Gradients pass through to the input; the weight has none.
    """

    def __init__(self, codes: Tensor, scales: Tensor, in_features: int, bias: Tensor | None) -> None:
        super().__init__(codes, scales, codes.shape[0], in_features)
        self.in_features, self.out_features = in_features, codes.shape[0]
        self.bias = None if bias is None else bias if isinstance(bias, nn.Parameter) else nn.Parameter(bias, requires_grad=False)

    @classmethod
    def of(
        cls, layer: nn.Linear, bits: int = 4, group: int = 64, clip: Clip = "absmax", skip: Tensor | None = None
    ) -> "PackedLinear":
        """Of a linear layer, whose bias it takes over; arguments as `quantise`."""
        return cls(*quantise(layer.weight, bits, group, clip, skip), layer.in_features, layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        return by_tiles(self.tile, x, self.bias, self.out_features)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={self.bits_per_weight:.3g}"


class PackedEmbedding(_Packed):
    """A table of vectors (N, D) in 4 or 8 bits; the rows that are looked up are unpacked."""

    def __init__(self, codes: Tensor, scales: Tensor, width: int, dtype: torch.dtype) -> None:
        super().__init__(codes, scales, codes.shape[0], width)
        self.dtype = dtype

    @classmethod
    def of(cls, table: nn.Embedding, bits: int = 4, group: int = 64, clip: Clip = "absmax") -> "PackedEmbedding":
        """Of an embedding; arguments as `quantise`."""
        if table.max_norm is not None:
            raise ProbatumError("an embedding with max_norm rewrites its rows as they are read: it cannot be packed")
        return cls(*quantise(table.weight, bits, group, clip), table.embedding_dim, table.weight.dtype)

    def forward(self, ids: Tensor) -> Tensor:
        """(...) integers -> (..., D)."""
        picked = ids.flatten()
        rows = dequantise(self.codes[picked], self.scales[picked].view(torch.float16), self.columns)
        return rows.view(*ids.shape, self.columns).to(self.dtype)

    def extra_repr(self) -> str:
        return f"{self.rows}, {self.columns}, bits={self.bits_per_weight:.3g}"


def by_tiles(tile: Callable[[int, int], Tensor], x: Tensor, bias: Tensor | None, rows: int) -> Tensor:
    """x W' + bias with W given by `tile(begin, end)`, a few rows at a time."""
    some = max(1, TILE // x.shape[-1])
    parts = [
        nn.functional.linear(x, tile(at, min(at + some, rows)).to(x.dtype), None if bias is None else bias[at : at + some].to(x.dtype))
        for at in range(0, rows, some)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def _codes(values: Tensor, scale: Tensor, top: int) -> Tensor:
    """Rounded multiples of the scale, -top to top; 0 where the scale is 0."""
    inverse = torch.where(scale > 0, 1 / scale, 0.0)
    return (values * inverse.unsqueeze(-1)).round_().clamp_(-top, top)


@cache
def _pairs(device: torch.device) -> Tensor:
    """(256, 2): the two values of a byte, the low four bits first."""
    byte = torch.arange(256)
    return (torch.stack([byte & 15, byte >> 4], 1) - 8).float().to(device)
