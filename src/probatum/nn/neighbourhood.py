"""Neighbourhood attention: every pixel attends to the k x k pixels nearest to it (Hassani et al. 2023, arXiv 2204.07143).

At the border the window is shifted inside the image, so that it always has k^2 members; scores get a trained number for each true offset.
Queries are taken in square tiles: the union of a tile's windows is a small block of keys, so a tile is a masked matrix product, and only a
few tiles' scores exist at a time. The backward pass computes them again. No k^2 copies of keys and values are ever made, no kernel is
compiled, and memory does not grow with k.

>>> q, k, v = (torch.randn(1, 2, 9, 11, 4, generator=torch.Generator().manual_seed(i)) for i in range(3))
>>> tuple(neighbourhood_attention(q, k, v, None, 5).shape)
(1, 2, 9, 11, 4)
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from probatum.errors import MissingExtra, ProbatumError

__all__ = ["neighbourhood_attention", "shift2d", "window_start"]

SIDE = 4  # of a tile of queries: the fastest of 2 to 16 on a CPU at kernels of 7 and 13
BUDGET = 1 << 18  # scores that exist at a time, unless one tile of all heads has more; larger is not faster on a CPU


def window_start(length: int, kernel: int) -> Tensor:
    """First member of each position's window along an axis: centred where that is possible, inside always."""
    return (torch.arange(length) - kernel // 2).clamp(0, length - kernel)


def neighbourhood_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, kernel: int, *, scale: float | None = None,
    backend: Literal["tiles", "flex"] = "tiles",
) -> Tensor:  # fmt: skip
    """softmax(scale q . k + bias of the offset) v over the window of each pixel.

    Args:
        q, k, v: (N, heads, H, W, d), the same floating dtype; half precision is computed in float32. Views of (N, H, W, heads d) are best.
        bias: (heads, 2 kernel - 1, 2 kernel - 1), of the offset (row, column) of key minus query plus kernel - 1; None for none.
        kernel: side of the window, odd and at most H and W.
        scale: of the scores; default d ** -0.5.
        backend: "tiles", or "flex": torch's compiled FlexAttention, for CUDA devices, with torch's own backward.
    Returns:
        (N, heads, H, W, d). Gradients of all four inputs; gradients of gradients are not there (tiles).
    Raises:
        ProbatumError: shapes or dtypes that differ, an even kernel or one that is larger than the image, a bias of another shape.
    """
    _check(q, k, v, bias, kernel)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if backend == "flex":
        return _flex(q, k, v, bias, kernel, scale)
    if backend != "tiles":
        raise ProbatumError(f"backend must be tiles or flex, got {backend!r}")
    return _Tiles.apply(q, k, v, bias, kernel, scale)


def _check(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, kernel: int) -> None:
    if q.ndim != 5 or not q.is_floating_point() or any(x.shape != q.shape or x.dtype != q.dtype for x in (k, v)):
        got = ", ".join(f"{tuple(x.shape)} {x.dtype}" for x in (q, k, v))
        raise ProbatumError(f"q, k and v must be floats of one shape (N, heads, H, W, d) and dtype, got {got}")
    if isinstance(kernel, bool) or not isinstance(kernel, int) or kernel < 1 or kernel % 2 == 0:
        raise ProbatumError(f"kernel must be odd, got {kernel!r}")
    if kernel > min(q.shape[2:4]):
        raise ProbatumError(
            f"kernel {kernel} is larger than the image of {q.shape[2]} x {q.shape[3]}: pad it to {kernel} and crop afterwards"
        )
    if bias is not None and bias.shape != (q.shape[1], 2 * kernel - 1, 2 * kernel - 1):
        want = (q.shape[1], 2 * kernel - 1, 2 * kernel - 1)
        raise ProbatumError(f"bias must be (heads, 2 kernel - 1, 2 kernel - 1) = {want}, got {tuple(bias.shape)}")


class _Axis(NamedTuple):
    """Tiles along one axis: positions of queries (n, t) and of keys (n, e); `fresh` (n, t) is False where an earlier tile has the query;
    `offset` (kinds, t, e) is key minus query plus kernel - 1, and -1 outside the window; `kind` (n,) is each tile's row of it."""

    queries: Tensor
    keys: Tensor
    fresh: Tensor
    offset: Tensor
    kind: Tensor


def _axis(length: int, kernel: int) -> _Axis:
    side = min(SIDE, length)
    reach = min(length, side + kernel - 1)
    begin = torch.arange(0, length, side)
    first = begin.clamp(max=length - side)  # the last tile overlaps the one before
    queries = first[:, None] + torch.arange(side)
    keys = (first - kernel // 2).clamp(0, length - reach)[:, None] + torch.arange(reach)
    start = window_start(length, kernel)[queries][..., None]
    apart = keys[:, None] - queries[..., None] + kernel - 1
    apart = torch.where((keys[:, None] >= start) & (keys[:, None] < start + kernel), apart, -1)
    offset, kind = torch.unique(apart, dim=0, return_inverse=True)
    return _Axis(queries, keys, queries >= begin[:, None], offset, kind)


class _Group(NamedTuple):
    """Tiles that share a pattern: their rows and columns (n,) and `place` (T, E), where in the flat table of biases each pair of query and
    key looks, one past its end outside the window."""

    rows: Tensor
    columns: Tensor
    place: Tensor


class _Piece(NamedTuple):
    """Some tiles of a group: flat pixels of queries (n, T) and keys (n, E), which queries no earlier tile has (n, T), and the group's place."""

    queries: Tensor
    keys: Tensor
    fresh: Tensor
    place: Tensor


@lru_cache(16)
def _plan(height: int, width: int, kernel: int, device: torch.device) -> tuple[_Axis, _Axis, list[_Group]]:
    """Made of tables along the axes, so that it stays small beside the image: the pixels of tiles are worked out piece by piece."""
    with torch.inference_mode(False):
        rows, columns, size = _axis(height, kernel), _axis(width, kernel), 2 * kernel - 1
        groups = []
        for i in range(len(rows.offset)):
            for j in range(len(columns.offset)):
                at = torch.cartesian_prod((rows.kind == i).nonzero()[:, 0], (columns.kind == j).nonzero()[:, 0])
                dy, dx = rows.offset[i][:, None, :, None], columns.offset[j][None, :, None, :]
                place = torch.where((dy < 0) | (dx < 0), size**2, dy * size + dx).flatten(0, 1).flatten(1)
                groups.append(_Group(*(x.to(device) for x in (*at.T.contiguous(), place))))
        return _Axis(*(x.to(device) for x in rows)), _Axis(*(x.to(device) for x in columns)), groups


def _pieces(shape: torch.Size, kernel: int, device: torch.device) -> Iterator[_Piece]:
    """All tiles, in pieces of one pattern and of at most BUDGET scores."""
    n, heads, height, width, _ = shape
    rows, columns, groups = _plan(height, width, kernel, device)

    def pixels(y: Tensor, x: Tensor) -> Tensor:
        return (y[:, :, None] * width + x[:, None, :]).flatten(1)

    for group in groups:
        count = max(1, BUDGET // (n * heads * group.place.numel()))
        for y, x in zip(group.rows.split(count), group.columns.split(count), strict=True):
            yield _Piece(
                pixels(rows.queries[y], columns.queries[x]), pixels(rows.keys[y], columns.keys[x]),
                (rows.fresh[y][:, :, None] & columns.fresh[x][:, None, :]).flatten(1), group.place,
            )  # fmt: skip


def _flat(x: Tensor) -> Tensor:
    """(N, heads, H, W, d) -> (N, H W, heads d): pixels whose channels lie together, no copy of channels-last maps."""
    return x.permute(0, 2, 3, 1, 4).flatten(3).flatten(1, 2)


def _take(x: Tensor, pixels: Tensor, heads: int) -> Tensor:
    """(N, H W, C) at (n, T) -> (N, n, heads, T, d), floats."""
    y = x.index_select(1, pixels.flatten()).unflatten(1, pixels.shape).unflatten(3, (heads, -1)).transpose(2, 3)
    return y if y.dtype == torch.float64 else y.float()


def _give(total: Tensor, pixels: Tensor, part: Tensor) -> None:
    """Add (N, n, heads, T, d) into (N, H W, C)."""
    total.index_add_(1, pixels.flatten(), part.transpose(2, 3).flatten(3).flatten(1, 2))


class _Tiles(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, kernel: int, scale: float) -> Tensor:
        heads, shape = q.shape[1], q.shape
        flat = [_flat(x) for x in (q, k, v)]
        out = torch.empty_like(flat[0], memory_format=torch.contiguous_format)
        table = _table(bias, heads, kernel, q)
        place: Tensor | None = None
        for piece in _pieces(shape, kernel, q.device):
            if piece.place is not place:
                place, pattern = piece.place, table[:, piece.place]
            queries, keys = piece.queries, piece.keys
            a, b, c = (_take(x, at, heads) for x, at in zip(flat, (queries, keys, keys), strict=True))
            weights = torch.add(pattern, a @ b.transpose(3, 4), alpha=scale).softmax(4)
            part = (weights @ c).transpose(2, 3).flatten(3).flatten(1, 2)
            out.index_copy_(1, queries.flatten(), part.to(out.dtype))
        ctx.save_for_backward(q, k, v, bias, out)
        ctx.kernel, ctx.scale = kernel, scale
        return out.view(shape[0], *shape[2:4], heads, -1).permute(0, 3, 1, 2, 4)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, out = ctx.saved_tensors
        heads, shape, kernel, scale = q.shape[1], q.shape, ctx.kernel, ctx.scale
        kind = torch.float64 if q.dtype == torch.float64 else torch.float32
        flat = [*(_flat(x) for x in (q, k, v)), out, _flat(grad)]
        to_q, to_k, to_v = (torch.zeros(flat[0].shape, dtype=kind, device=q.device) for _ in range(3))
        table = _table(bias, heads, kernel, q)
        to_table = torch.zeros_like(table)
        place: Tensor | None = None
        for piece in _pieces(shape, kernel, q.device):
            if piece.place is not place:
                place, pattern = piece.place, table[:, piece.place]
            queries, keys = piece.queries, piece.keys
            a, b, c, o, g = (_take(x, at, heads) for x, at in zip(flat, (queries, keys, keys, queries, queries), strict=True))
            g = g * piece.fresh[:, None, :, None]  # a query of two tiles counts once
            weights = torch.add(pattern, a @ b.transpose(3, 4), alpha=scale).softmax(4)
            _give(to_v, keys, weights.transpose(3, 4) @ g)
            inner = (g @ c.transpose(3, 4)).sub_((g * o).sum(4, keepdim=True)).mul_(weights)
            _give(to_q, queries, inner @ b)
            _give(to_k, keys, inner.transpose(3, 4) @ a)
            if bias is not None:
                to_table.index_add_(1, piece.place.flatten(), inner.sum((0, 1)).flatten(1))
        grads = [
            (x.mul_(factor) if factor != 1 else x).to(q.dtype).view(shape[0], *shape[2:4], heads, -1).permute(0, 3, 1, 2, 4)
            for x, factor in ((to_q, scale), (to_k, scale), (to_v, 1.0))
        ]
        to_bias = None if bias is None else to_table[:, :-1].view(bias.shape).to(bias.dtype)
        return *grads, to_bias, None, None


def _table(bias: Tensor | None, heads: int, kernel: int, like: Tensor) -> Tensor:
    """(heads, (2 kernel - 1)^2 + 1): biases by place, and minus infinity for what is outside."""
    kind = torch.float64 if like.dtype == torch.float64 else torch.float32
    size = (2 * kernel - 1) ** 2
    table = torch.full((heads, size + 1), -torch.inf, dtype=kind, device=like.device)
    table[:, :size] = 0 if bias is None else bias.detach().flatten(1)
    return table


def _flex(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, kernel: int, scale: float, *, compiled: bool = True) -> Tensor:
    """The same by torch's FlexAttention, which masks blocks of the full matrix of scores and skips those that are empty."""
    if compiled and q.device.type != "cuda":
        raise ProbatumError(f"backend 'flex' is for CUDA devices, got tensors on {q.device.type}: use 'tiles'")
    try:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    except ImportError:
        raise MissingExtra("backend 'flex' needs a torch with torch.nn.attention.flex_attention (2.5 or newer)") from None
    height, width, d = q.shape[2:]
    rows, columns = (window_start(n, kernel).to(q.device) for n in (height, width))

    def inside(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        dy, dx = j // width - rows[i // width], j % width - columns[i % width]
        return (dy >= 0) & (dy < kernel) & (dx >= 0) & (dx < kernel)

    def score(s: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        assert bias is not None
        dy = (j // width - i // width + kernel - 1).clamp(0, 2 * kernel - 2)
        dx = (j % width - i % width + kernel - 1).clamp(0, 2 * kernel - 2)
        return s + bias[h, dy, dx]

    size = height * width
    mask = create_block_mask(inside, None, None, size, size, device=q.device)
    pad = max(0, 16 - d)  # its kernels want 16 channels a head
    a, b, c = (torch.nn.functional.pad(x.flatten(2, 3), (0, pad)) for x in (q, k, v))
    call = torch.compile(flex_attention, dynamic=False) if compiled else flex_attention
    out = call(a, b, c, score_mod=score if bias is not None else None, block_mask=mask, scale=scale)
    return out[..., :d].unflatten(2, (height, width))


def shift2d(x: Tensor, fill: Literal["zero", "edge"] = "zero") -> Tensor:
    """Move five groups of channels of (N, C, H, W) by one pixel: left, right, up, down, not at all; no parameters.

    Args:
        fill: what comes in at the border: zeros, or the border's own pixels again. Groups differ by at most one channel.
    """
    if x.ndim != 4 or x.shape[1] < 5:
        raise ProbatumError(f"x must be (N, C, H, W) with five channels or more, got {tuple(x.shape)}")
    if fill not in ("zero", "edge"):
        raise ProbatumError(f"fill must be zero or edge, got {fill!r}")
    left, right, up, down, still = x.tensor_split(5, 1)
    out = [_moved(left, 3, -1, fill), _moved(right, 3, 1, fill), _moved(up, 2, -1, fill), _moved(down, 2, 1, fill), still]
    return torch.cat(out, 1)


def _moved(x: Tensor, axis: int, by: int, fill: str) -> Tensor:
    length = x.shape[axis]
    kept = x.narrow(axis, max(0, -by), length - 1)
    edge = x.narrow(axis, length - 1 if by < 0 else 0, 1)
    new = edge if fill == "edge" else torch.zeros_like(edge)
    return torch.cat([kept, new] if by < 0 else [new, kept], axis)
