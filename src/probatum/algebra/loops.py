"""Compiled loops (numba): tables of automata, sparse weighted automata, convolutions and matrix products over odd
semirings.

Each has a slow twin elsewhere in the package that is its specification; tests hold them equal. Tables are flat uint32
arrays whose entries are row offsets (state x width), so that one step is one addition and one load; unsigned, since a
signed index costs a test for negative ones in the one chain of dependent operations. MISSING marks a transition not
built yet: the loop stops there.
"""

import math
from collections.abc import Callable
from types import FunctionType
from typing import Any

import numpy as np
from numba import njit

__all__ = [
    "CONVOLVE",
    "MATMUL",
    "MISSING",
    "OPERATION",
    "convex_merge",
    "convolution_of",
    "forward_float",
    "forward_int",
    "forward_words",
    "longest",
    "marks",
    "run_classes",
    "run_lines",
    "smallest_with_convex",
]

MISSING = np.uint32(0xFFFFFFFF)
REAL, MINPLUS, MAXPLUS, MAXTIMES, LOG = range(5)
OPERATION = {"real": REAL, "minplus": MINPLUS, "maxplus": MAXPLUS, "maxtimes": MAXTIMES, "log": LOG}


@njit(cache=True, nogil=True)
def run_classes(table, classes, data, pos, state):
    """From state along data[pos:]; symbols beyond the table of classes are of its last class. Returns (position,
    state)."""
    n, last = len(data), np.uint32(len(classes) - 1)
    while pos < n:
        symbol = data[pos]
        following = table[state + classes[symbol if symbol < last else last]]
        if following == MISSING:
            break
        state = following
        pos += 1
    return pos, state


@njit(cache=True, nogil=True)
def run_lines(table, classes, data, pos, state, start, accepts, width, ends, flags, count):
    """Whether each line (ending in byte 10) is accepted; fills ends and flags. Stops before a missing transition or
    when they are full."""
    n, last = len(data), np.uint32(len(classes) - 1)
    while pos < n:
        symbol = data[pos]
        if symbol == 10:
            if count == len(ends):
                break
            ends[count] = pos
            flags[count] = accepts[state // width]
            count += 1
            state = start
        else:
            following = table[state + classes[symbol if symbol < last else last]]
            if following == MISSING:
                break
            state = following
        pos += 1
    return pos, state, count


@njit(cache=True, nogil=True)
def longest(table, classes, data, pos, stop, state, accepts, width, dead, best):
    """The end of the longest accepted stretch from pos: (position reached, state, best end so far); stops at the dead
    state."""
    last = np.uint32(len(classes) - 1)
    while pos < stop:
        symbol = data[pos]
        following = table[state + classes[symbol if symbol < last else last]]
        if following == MISSING:
            return pos, state, best, False
        state = following
        if state == dead:
            break
        pos += 1
        if accepts[state // width]:
            best = pos
    return pos, state, best, True


@njit(cache=True, nogil=True)
def marks(table, classes, data, pos, state, accepts, width, out):
    """Right to left: out[i] = whether the automaton accepts what it read down to position i. Stops before a missing
    transition."""
    last = np.uint32(len(classes) - 1)
    while pos > 0:
        symbol = data[pos - 1]
        following = table[state + classes[symbol if symbol < last else last]]
        if following == MISSING:
            break
        state = following
        pos -= 1
        out[pos] = accepts[state // width]
    return pos, state


@njit(cache=True, inline="always")
def _plus(op, a, b):
    if op == REAL:
        return a + b
    if op == MINPLUS:
        return a if a <= b else b
    if op == LOG:
        if a < b:
            a, b = b, a
        return a if b == -math.inf else a + math.log1p(math.exp(b - a))
    return a if a >= b else b


@njit(cache=True, inline="always")
def _times(op, a, b):
    if op in (REAL, MAXTIMES):
        return a * b
    return a + b


@njit(cache=True, nogil=True)
def forward_float(op, zero, pointer, target, weight, states, data, vector):
    """vector <- vector . T[c] along data (class numbers), T sparse by (class, source)."""
    following = np.empty_like(vector)
    for t in range(len(data)):
        following[:] = zero
        row = data[t] * states
        for s in range(states):
            v = vector[s]
            if v != zero:
                for k in range(pointer[row + s], pointer[row + s + 1]):
                    d = target[k]
                    following[d] = _plus(op, following[d], _times(op, v, weight[k]))
        vector, following = following, vector
    return vector


@njit(cache=True, nogil=True)
def forward_int(limit, pointer, target, weight, states, data, pos, vector):
    """Exact 64-bit sums of products; stops at the position where an entry exceeds `limit`, for Python integers to go
    on."""
    following = np.empty_like(vector)
    n = len(data)
    while pos < n:
        following[:] = 0
        row = data[pos] * states
        for s in range(states):
            v = vector[s]
            if v != 0:
                if v > limit or v < -limit:
                    return pos, vector
                for k in range(pointer[row + s], pointer[row + s + 1]):
                    following[target[k]] += v * weight[k]
        vector, following = following, vector
        pos += 1
    return pos, vector


@njit(cache=True, nogil=True)
def forward_words(op, zero, pointer, target, weight, states, data, offsets, initial, final, out):
    """The weight of each word data[offsets[i]:offsets[i + 1]]."""
    vector, following = np.empty_like(initial), np.empty_like(initial)
    for i in range(len(out)):
        vector[:] = initial
        for t in range(offsets[i], offsets[i + 1]):
            following[:] = zero
            row = data[t] * states
            for s in range(states):
                v = vector[s]
                if v != zero:
                    for k in range(pointer[row + s], pointer[row + s + 1]):
                        d = target[k]
                        following[d] = _plus(op, following[d], _times(op, v, weight[k]))
            vector, following = following, vector
        total = zero
        for s in range(states):
            total = _plus(op, total, _times(op, vector[s], final[s]))
        out[i] = total


@njit(cache=True, nogil=True, fastmath={"nnan", "nsz"})  # without nan a minimum is one vector instruction
def _convolve_minplus(a, b):
    n, m = len(a), len(b)
    out = np.full(n + m - 1, np.inf)
    for start in range(0, m, 2048):  # a block of b and of out stay in the first-level cache
        stop = min(m, start + 2048)
        part = b[start:stop]
        for i in range(n):
            x = a[i]
            into = out[i + start : i + stop]
            for j in range(len(part)):
                into[j] = min(into[j], x + part[j])
    return out


@njit(cache=True, nogil=True, fastmath={"nnan", "nsz"})
def _convolve_maxtimes(a, b):
    n, m = len(a), len(b)
    out = np.zeros(n + m - 1)
    for i in range(n):
        x = a[i]
        into = out[i : i + m]
        for j in range(m):
            into[j] = max(into[j], x * b[j])
    return out


@njit(cache=True, nogil=True)
def _convolve_log(a, b):
    n, m = len(a), len(b)
    top = -_convolve_minplus(-a, -b)
    total = np.zeros(n + m - 1)
    for i in range(n):
        x = a[i]
        if x == -np.inf:
            continue
        for j in range(m):
            if top[i + j] > -np.inf:
                total[i + j] += np.exp(x + b[j] - top[i + j])
    for k in range(n + m - 1):
        if top[k] > -np.inf:
            top[k] += np.log(total[k])
    return top


def _convolve_maxplus(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return -_convolve_minplus(-a, -b)


CONVOLVE: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "minplus": _convolve_minplus,
    "maxplus": _convolve_maxplus,
    "maxtimes": _convolve_maxtimes,
    "log": _convolve_log,
}


@njit(cache=True, nogil=True)
def convex_merge(a, b):
    """Min-plus product of two convex sequences: their slopes merged. O(n + m)."""
    n, m = len(a), len(b)
    out = np.empty(n + m - 1)
    i = j = 0
    out[0] = a[0] + b[0]
    for k in range(1, n + m - 1):
        if j == m - 1 or (i < n - 1 and a[i + 1] - a[i] <= b[j + 1] - b[j]):
            i += 1
        else:
            j += 1
        out[k] = a[i] + b[j]
    return out


@njit(cache=True, nogil=True)
def smallest_with_convex(a, b):
    """Min-plus product of a convex `a` with any `b`: the best position in b moves right, so each lies between its
    neighbours'."""
    n, m = len(a), len(b)
    size = n + m - 1
    out = np.empty(size)
    best = np.empty(size, np.int64)
    step = 1
    while step < size:
        step *= 2
    while step >= 1:
        for k in range(step - 1, size, 2 * step):
            low = max(0, k - n + 1)
            high = min(m - 1, k)
            if k - step >= 0:
                low = max(low, best[k - step])
            if k + step < size:
                high = min(high, best[k + step])
            value, where = a[k - low] + b[low], low
            for i in range(low + 1, high + 1):
                candidate = a[k - i] + b[i]
                if candidate < value:
                    value, where = candidate, i
            out[k], best[k] = value, where
        step //= 2
    return out


def _wrapped(f: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """A builtin such as min, which numba compiles only inside a function."""
    return njit(lambda a, b: f(a, b))


def convolution_of(
    add: Callable[[Any, Any], Any], mul: Callable[[Any, Any], Any], zero: Any
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """A compiled double loop for a user's own scalar operations."""
    plus, times = (njit(f) if isinstance(f, FunctionType) else _wrapped(f) for f in (add, mul))

    @njit
    def convolve(a, b):
        n, m = len(a), len(b)
        out = np.full(n + m - 1, zero, a.dtype)
        for i in range(n):
            for j in range(m):
                out[i + j] = plus(out[i + j], times(a[i], b[j]))
        return out

    return convolve


@njit(cache=True, nogil=True, fastmath={"nnan", "nsz"})
def _matmul_minplus(a, b):
    batch, rows, inner = a.shape
    columns = b.shape[2]
    out = np.full((batch, rows, columns), np.inf)
    for p in range(batch):
        for i in range(rows):
            into = out[p, i]
            for k in range(inner):
                x = a[p, i, k]
                row = b[p, k]
                for j in range(columns):
                    into[j] = min(into[j], x + row[j])
    return out


@njit(cache=True, nogil=True, fastmath={"nnan", "nsz"})
def _matmul_maxtimes(a, b):
    batch, rows, inner = a.shape
    columns = b.shape[2]
    out = np.zeros((batch, rows, columns))
    for p in range(batch):
        for i in range(rows):
            into = out[p, i]
            for k in range(inner):
                x = a[p, i, k]
                row = b[p, k]
                for j in range(columns):
                    into[j] = max(into[j], x * row[j])
    return out


MATMUL: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "minplus": _matmul_minplus,
    "maxplus": lambda a, b: -_matmul_minplus(-a, -b),
    "maxtimes": _matmul_maxtimes,
}
