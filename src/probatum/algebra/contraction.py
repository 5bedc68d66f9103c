"""Einsum over any semiring, and the matrix product that everything else is brought to.

Rings go to numpy's or torch's einsum (BLAS); LOG to a shifted matrix product that falls back where the shift would
underflow; min-plus, max-plus and the rest to compiled loops (numpy) or blocked broadcasting (torch, differentiable).

>>> import numpy as np
>>> from probatum.algebra.semirings import BOOL, MINPLUS
>>> steps = np.array([[0.0, 1.0, 9.0], [np.inf, 0.0, 2.0], [np.inf, np.inf, 0.0]])
>>> contract(MINPLUS, "ij,jk->ik", steps, steps)[0].tolist()                 # shortest paths of at most two steps
[0.0, 1.0, 3.0]
>>> contract(BOOL, "ij,jk,k->i", steps < 9, steps < 9, np.array([False, False, True])).tolist()
[True, True, True]
"""

import math
from typing import Any

import numpy as np

from probatum.algebra.semirings import Semiring, namespace
from probatum.errors import ProbatumError

__all__ = ["contract", "matmul"]

_BLOCK = 1 << 22  # entries of a broadcast block: 32 MB of float64


def contract(semiring: Semiring, spec: str, *ops: Any) -> Any:
    """Sum over the indices that the output lacks of the product of the operands, in the operands' order.

    Args:
        semiring: what sums and multiplies. Without `dtype` the arrays hold Python objects (numpy only).
        spec: as for einsum with an explicit output, letters only: "bij,jk->bik". A repeated letter in one operand is
            its diagonal.
        ops: arrays, or tensors of one device.
    Returns:
        Array or tensor with the output's indices.
    Raises:
        ProbatumError: malformed spec, wrong number of operands or axes, extents that disagree.
    """
    ins, out = _parse(spec, ops)
    xp = namespace(*ops)
    ops = tuple(op if xp is not np else np.asarray(op, dtype=semiring.dtype or object) for op in ops)
    if semiring.ring or semiring.name in ("NAT", "PROB"):
        if semiring.dtype is None:
            return np.einsum(spec, *ops) if len(ops) < 3 else _pairwise(semiring, xp, ins, out, list(ops))
        return xp.einsum(spec, *ops) if xp is not np else np.einsum(spec, *ops, optimize=True)
    return _pairwise(semiring, xp, ins, out, list(ops))


def _parse(spec: str, ops: tuple) -> tuple[list[str], str]:
    left, arrow, out = spec.replace(" ", "").partition("->")
    ins = left.split(",")
    letters = set("".join(ins))
    if not arrow or not all(part.isalpha() or not part for part in [*ins, out]) or len(set(out)) < len(out) or not set(out) <= letters:
        raise ProbatumError(f"spec must look like 'ij,jk->ik' with every output index once and on the left, got {spec!r}")
    if len(ins) != len(ops):
        raise ProbatumError(f"spec {spec!r} has {len(ins)} operands, got {len(ops)}")
    extents: dict[str, int] = {}
    for part, op in zip(ins, ops, strict=True):
        if len(part) != len(np.shape(op)):
            raise ProbatumError(f"operand {part!r} of {spec!r} wants {len(part)} axes, got shape {tuple(np.shape(op))}")
        for letter, extent in zip(part, np.shape(op), strict=True):
            if extents.setdefault(letter, extent) != extent:
                raise ProbatumError(f"index {letter!r} of {spec!r} has extents {extents[letter]} and {extent}")
    return ins, out


def _pairwise(semiring: Semiring, xp: Any, ins: list[str], out: str, ops: list) -> Any:
    """Neighbours first, smallest intermediate first, so that a non-commutative product keeps its order."""
    for i, part in enumerate(ins):
        unique = "".join(dict.fromkeys(part))
        if unique != part:
            ops[i], ins[i] = xp.einsum(f"{part}->{unique}", ops[i]), unique
    while len(ops) > 1:
        extents = {c: n for part, op in zip(ins, ops, strict=True) for c, n in zip(part, op.shape, strict=True)}

        def kept(i: int) -> str:
            elsewhere = set(out).union(*ins[:i], *ins[i + 2 :])
            return "".join(c for c in dict.fromkeys(ins[i] + ins[i + 1]) if c in elsewhere)

        i = min(range(len(ops) - 1), key=lambda i: math.prod(extents[c] for c in kept(i)))
        result = kept(i)
        ops[i : i + 2] = [_pair(semiring, xp, ins[i], ins[i + 1], result, ops[i], ops[i + 1], extents)]
        ins[i : i + 2] = [result]
    part, op = ins[0], ops[0]
    for axis in reversed(range(len(part))):
        if part[axis] not in out:
            op, part = semiring.total(op, axis), part[:axis] + part[axis + 1 :]
    return xp.permute_dims(op, [part.index(c) for c in out]) if xp is np else op.permute([part.index(c) for c in out])


def _pair(semiring: Semiring, xp: Any, left: str, right: str, out: str, a: Any, b: Any, extents: dict[str, int]) -> Any:
    """Two operands as a batched matrix product (batch, I, K) x (batch, K, J)."""
    for letters, other in (
        (left, right),
        (right, left),
    ):  # indices of one operand alone are summed first: distributivity
        for axis in reversed(range(len(letters))):
            if letters[axis] not in out and letters[axis] not in other:
                if letters is left:
                    a, left = semiring.total(a, axis), left[:axis] + left[axis + 1 :]
                else:
                    b, right = semiring.total(b, axis), right[:axis] + right[axis + 1 :]
    batch = [c for c in left if c in right and c in out]
    inner = [c for c in left if c in right and c not in out]
    rows = [c for c in left if c not in right]
    columns = [c for c in right if c not in left]

    def arrange(op: Any, letters: str, *groups: list[str]) -> Any:
        order = [letters.index(c) for group in groups for c in group]
        op = np.transpose(op, order) if xp is np else op.permute(order)
        return op.reshape([math.prod(extents[c] for c in group) for group in groups])

    c = matmul(semiring, arrange(a, left, batch, rows, inner), arrange(b, right, batch, inner, columns))
    order = batch + rows + columns
    c = c.reshape([extents[x] for x in order])
    back = [order.index(x) for x in out]
    return np.transpose(c, back) if xp is np else c.permute(back)


def matmul(semiring: Semiring, a: Any, b: Any) -> Any:
    """(..., I, K) x (..., K, J) -> (..., I, J) over a semiring; numpy (object arrays where `dtype` is None) or
    torch."""
    xp = namespace(a, b)
    if semiring.ring or semiring.name in ("NAT", "PROB"):
        return a @ b
    if semiring.name == "LOG":
        return _log_matmul(semiring, xp, a, b)
    if semiring.dtype is None:
        return _object_matmul(semiring, a, b)
    if xp is np:
        from probatum.algebra.compiled import loops_or_none

        loops = loops_or_none()
        a, b = np.asarray(a, semiring.dtype), np.asarray(b, semiring.dtype)
        if semiring.name == "BOOL":
            return np.matmul(a.astype(np.float32), b.astype(np.float32)) > 0.5 if a.shape[-1] < 1 << 24 else np.matmul(a, b)
        if loops is not None and semiring.loop in loops.MATMUL and a.size * b.shape[-1] > 4096:
            batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
            a3 = np.broadcast_to(a, batch + a.shape[-2:]).reshape(-1, *a.shape[-2:])
            b3 = np.broadcast_to(b, batch + b.shape[-2:]).reshape(-1, *b.shape[-2:])
            out = loops.MATMUL[semiring.loop](np.ascontiguousarray(a3), np.ascontiguousarray(b3))
            return out.reshape(*batch, a.shape[-2], b.shape[-1])
    return _broadcast_matmul(semiring, xp, a, b)


def _broadcast_matmul(semiring: Semiring, xp: Any, a: Any, b: Any) -> Any:
    """The definition, in blocks of rows: sum over k of a[i, k] b[k, j]."""
    if not a.shape[-1]:
        return xp.zeros_like(a[..., :1].sum(-1, keepdims=True) + b[..., :1, :].sum(-2, keepdims=True)) + semiring.zero
    per_row = max(1, math.prod(np.broadcast_shapes(tuple(a.shape[:-2]), tuple(b.shape[:-2]))) * a.shape[-1] * b.shape[-1])
    rows = max(1, _BLOCK // per_row)
    parts = []
    for start in range(0, a.shape[-2], rows):
        cube = semiring.mul(a[..., start : start + rows, :, None], b[..., None, :, :])
        parts.append(semiring.total(cube, cube.ndim - 2))
    return parts[0] if len(parts) == 1 else xp.concatenate(parts, -2)


def _log_matmul(semiring: Semiring, xp: Any, a: Any, b: Any) -> Any:
    """exp-shifted product; where a row's and a column's maxima sit at different k the shift underflows, and the sum is
    redone."""
    if not a.shape[-1] or not a.shape[-2] or not b.shape[-1]:
        return _broadcast_matmul(semiring, xp, a, b)

    def top(x: Any, axis: int) -> Any:
        m = x.max(axis=axis, keepdims=True) if xp is np else x.detach().amax(axis, keepdim=True)
        return xp.where(xp.isfinite(m), m, xp.zeros_like(m)), xp.isfinite(m)

    (row, row_live), (column, column_live) = top(a, -1), top(b, -2)
    product = xp.exp(a - row) @ xp.exp(b - column)
    floor = 1e-140 if "64" in str(product.dtype) else 1e-12
    if bool(((product < floor) & row_live & column_live).any()):
        return _broadcast_matmul(semiring, xp, a, b)
    dead = product == 0
    out = xp.log(xp.where(dead, xp.ones_like(product), product)) + row + column
    return xp.where(dead, xp.full_like(out, -math.inf), out)


def _object_matmul(semiring: Semiring, a: Any, b: Any) -> Any:
    mul = np.frompyfunc(semiring.mul, 2, 1)
    a, b = np.asarray(a, object), np.asarray(b, object)
    cube = mul(a[..., :, :, None], b[..., None, :, :])
    return semiring.total(cube, cube.ndim - 2)
