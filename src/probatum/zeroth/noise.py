"""Random directions that are never stored: z is a pure function of (seed, step, query, tensor, position).

Because every block of z is drawn from its own address, threads, shards, masks and replay one tensor at a time all see the same z, in
any order, and the global generators are never touched.

>>> noise = Noise(seed=7)
>>> z = noise.values(step=0, query=0, tensor=2, n=40_000)
>>> torch.equal(z[16_384:32_768], noise.block(step=0, query=0, tensor=2, block=1, n=16_384))
True
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from probatum.errors import ProbatumError

__all__ = ["BLOCK", "KINDS", "Kind", "Noise"]

Kind = Literal["gaussian", "rademacher"]
KINDS = ("gaussian", "rademacher")

# Below 32,768 torch's kernels do not split over OpenMP threads, and a multiple of 16 keeps normal_ on its vectorised path.
BLOCK = 16_384
CUDA_BLOCK = 1 << 20  # a device generator pays by the launch, not by the cache line
SPAN = 32 * BLOCK  # what one job of a pass covers: the Rademacher hash is vectorised over it
WORD, LOW = (1 << 64) - 1, 0xFFFFFFFF


def mix(x: int) -> int:
    """splitmix64's finaliser: a bijection of 64-bit numbers, every output bit depends on every input bit."""
    x = (x + 0x9E3779B97F4A7C15) & WORD
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & WORD
    return x ^ (x >> 31)


class Noise:
    """z ~ N(0, I) or uniform signs, by address.

    Args:
        seed: any integer from 0 to 2^63 - 1. torch's CPU generator keeps 32 bits of a seed, so 5 and 5 + 2^32 would be one stream;
            here the whole address is hashed and they are two.
        kind: "gaussian": blocks of 16,384 values, each `normal_` of a generator seeded with the block's hash, so the values depend on
            torch's generator of that device kind. "rademacher": signs from an integer hash of a counter, the same on every
            device, version and thread count, and four times cheaper.
        threads: threads that draw; default torch's. It does not change a bit.
    """

    def __init__(self, seed: int, kind: Kind = "gaussian", *, threads: int | None = None) -> None:
        if kind not in KINDS:
            raise ProbatumError(f"noise must be one of {', '.join(KINDS)}, got {kind!r}")
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 63:
            raise ProbatumError(f"seed must be an integer from 0 to 2^63 - 1, got {seed!r}")
        self.seed, self.kind, self.threads = seed, kind, threads
        self._workers: list[_Worker] = []

    def key(self, step: int, query: int, tensor: int) -> int:
        """The 64-bit hash of an address."""
        return mix(self._direction(step, query) ^ tensor)

    def _direction(self, step: int, query: int) -> int:
        return mix(mix(mix(self.seed) ^ step) ^ (query + 1))

    def block(self, step: int, query: int, tensor: int, block: int, n: int) -> Tensor:
        """The first n values (float32, CPU) of one block of 16,384."""
        return self._worker(0).block(self.key(step, query, tensor), block, n).clone()

    def values(self, step: int, query: int, tensor: int, n: int, device: torch.device | str = "cpu") -> Tensor:
        """All n values of one tensor (float32)."""
        out = torch.empty(n, device=device)
        self.walk([out], [tensor], step, query, lambda i, part, z: part.copy_(z))
        return out

    def rows(self, step: int, query: int, tensor: int, rows: Tensor, width: int) -> Tensor:
        """Values of some rows of a tensor that is addressed row by row: (R,) int64 -> (R, width). Another z than `values`."""
        key = mix(self.key(step, query, tensor))
        if self.kind == "rademacher":
            words = -(-width // 32)
            counter = (rows.unsqueeze(1) * words + torch.arange(words, device=rows.device)).flatten()
            return _signs(_hash(counter, key)).view(len(rows), -1)[:, :width]
        padded = -(-width // 16) * 16
        out = torch.empty(len(rows), padded, device=rows.device)
        generator = torch.Generator(rows.device)
        for row, line in zip(rows.tolist(), out, strict=True):
            line.normal_(generator=generator.manual_seed(mix(key ^ row) & LOW))
        return out[:, :width]

    def fill(self, parts: Sequence[tuple[Tensor, int, int]], step: int, query: int) -> None:
        """Draw blocks straight into memory: (view, tensor, block) with views whose length is a multiple of 16, on the CPU."""
        direction, keys = self._direction(step, query), dict[int, int]()
        for _, tensor, _ in parts:
            if tensor not in keys:
                keys[tensor] = mix(direction ^ tensor)
        count = min(self.threads or torch.get_num_threads(), len(parts) // 4)
        if count <= 1:
            self._worker(0).fill(parts, keys)
            return
        workers = [self._worker(number) for number in range(count)]
        waiting = [
            _pool(count - 1).submit(workers[number].fill, parts[number::count], keys) for number in range(1, count)
        ]
        workers[0].fill(parts[::count], keys)
        for future in waiting:
            future.result()

    def walk(
        self,
        tensors: Sequence[Tensor],
        ids: Sequence[int],
        step: int,
        query: int,
        apply: Callable[[int, Tensor, Tensor], object],
        scales: Sequence[float] | None = None,
    ) -> None:
        """Call `apply(i, part, z)` for every block of every tensor: `part` is a flat view of tensor i, `z` its values in a buffer.

        Threads share the blocks; a buffer is only valid during its call, and `apply` may change it. With `scales` (Rademacher only) z
        comes multiplied by the scale of its tensor.
        """
        jobs, direction = [], self._direction(step, query)
        for i, tensor in enumerate(tensors):
            flat = tensor.detach().view(-1)
            key = mix(direction ^ ids[i])
            scale = 1.0 if scales is None else scales[i]
            jobs += [(i, flat, key, at, scale) for at in range(0, flat.numel(), SPAN)]
        count = min(self.threads or torch.get_num_threads(), len(jobs))
        if count <= 1 or any(tensor.device.type != "cpu" for tensor in tensors):
            for job in jobs:
                self._worker(0).run(*job, apply)
            return
        shares = _shares(jobs, count)
        for number in range(count):
            self._worker(number)
        waiting = [
            _pool(count - 1).submit(self._run, number, share, apply) for number, share in enumerate(shares) if number
        ]
        self._run(0, shares[0], apply)
        for future in waiting:
            future.result()

    def _run(self, number: int, jobs: list, apply: Callable) -> None:
        for job in jobs:
            self._workers[number].run(*job, apply)  # type: ignore[call-arg]

    def _worker(self, number: int) -> "_Worker":
        while len(self._workers) <= number:
            self._workers.append(_Worker(self.kind))
        return self._workers[number]

    def __getstate__(self) -> dict:
        return {**vars(self), "_workers": []}


class _Worker:
    """What one thread needs: a generator and a block of memory a device."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self._own: dict[torch.device, tuple[torch.Generator, Tensor]] = {}
        self._table: tuple[float, Tensor] = (0.0, torch.empty(0))

    def own(self, device: torch.device) -> tuple[torch.Generator, Tensor]:
        if device not in self._own:
            size = BLOCK if device.type == "cpu" else CUDA_BLOCK
            self._own[device] = torch.Generator(device), torch.empty(size, device=device)
        return self._own[device]

    def block(self, key: int, block: int, n: int) -> Tensor:
        if self.kind == "rademacher":
            words = _hash_words(np.arange(block * BLOCK // 32, block * BLOCK // 32 - (-n // 32), dtype=np.uint32), key)
            return _patterns()[torch.from_numpy(words.view(np.uint8).astype(np.int32))].view(-1)[:n]
        generator, buffer = self.own(torch.device("cpu"))
        return _normal(buffer, n, generator, key, block)

    def fill(self, parts: Sequence[tuple[Tensor, int, int]], keys: dict[int, int]) -> None:
        if self.kind == "rademacher":
            for view, tensor, block in parts:
                view.copy_(self.block(keys[tensor], block, len(view)))
            return
        generator, _ = self.own(torch.device("cpu"))
        for view, tensor, block in parts:
            view.normal_(generator=generator.manual_seed(mix(keys[tensor] ^ block) & LOW))

    def run(
        self, i: int, flat: Tensor, key: int, at: int, scale: float, apply: Callable[[int, Tensor, Tensor], object]
    ) -> None:
        """One span of one tensor."""
        end = min(at + SPAN, flat.numel())
        if self.kind == "rademacher" and flat.device.type == "cpu":
            self._span_of_signs(i, flat, key, at, end, scale, apply)
            return
        generator, buffer = self.own(flat.device)
        size = len(buffer)
        for block in range(
            -(-at // size), -(-end // size)
        ):  # a device block may be longer than a span: the span it starts in has it
            begin = block * size
            n = min(size, flat.numel() - begin)
            if self.kind == "gaussian":
                z = _normal(buffer, n, generator, key, block)
            else:
                z = _signs(_hash(torch.arange(begin // 32, begin // 32 - (-n // 32), device=flat.device), key))[
                    :n
                ].mul_(scale)
            apply(i, flat[begin : begin + n], z)

    def _span_of_signs(self, i: int, flat: Tensor, key: int, at: int, end: int, scale: float, apply: Callable) -> None:
        """Signs through a table of the 256 patterns of a byte: a third of the cost of shifting 32 planes."""
        if self._table[0] != scale:
            self._table = scale, _patterns() * scale
        table = self._table[1]
        words = _hash_words(np.arange(at // 32, -(-end // 32), dtype=np.uint32), key)
        index = torch.from_numpy(words.view(np.uint8).astype(np.int32))
        _, buffer = self.own(flat.device)
        whole = buffer.view(-1, 8)
        for part, picked in zip(flat[at:end].split(BLOCK), index.split(BLOCK // 8), strict=True):
            n = part.numel()
            if n == BLOCK:
                torch.index_select(table, 0, picked, out=whole)
                apply(i, part, buffer)
            else:
                size = -(-n // 8)
                torch.index_select(table, 0, picked[:size], out=whole[:size])
                apply(i, part, buffer[:n])


def _normal(buffer: Tensor, n: int, generator: torch.Generator, key: int, block: int) -> Tensor:
    # A length that is no multiple of 16 takes another path in torch: draw the rest and drop it.
    generator.manual_seed(mix(key ^ block) & LOW)
    return buffer[: -(-n // 16) * 16].normal_(generator=generator)[:n]


def _hash_words(x: np.ndarray, key: int) -> np.ndarray:
    """32-bit counters -> 32-bit hashes (uint32, in place): two rounds of a tested integer hash, keyed by 64 bits."""
    for part in (key & LOW, key >> 32):
        x += np.uint32(part)
        x ^= x >> np.uint32(16)
        x *= np.uint32(0x21F0AAAD)
        x ^= x >> np.uint32(15)
        x *= np.uint32(0x735A2D97)
        x ^= x >> np.uint32(15)
    return x.astype("<u4", copy=False)


def _hash(x: Tensor, key: int) -> Tensor:
    """`_hash_words` on any device, in int64 (both factors are below 2^31, so no product overflows)."""
    for part in (key & LOW, key >> 32):
        x = (x + part) & LOW
        x = x ^ (x >> 16)
        x = (x * 0x21F0AAAD) & LOW
        x = x ^ (x >> 15)
        x = (x * 0x735A2D97) & LOW
        x = x ^ (x >> 15)
    return x


def _signs(words: Tensor) -> Tensor:
    """(W,) words -> (32 W,) floats: bit b of word w, from the lowest, is the sign of value 32 w + b."""
    bits = (words.unsqueeze(1) >> torch.arange(32, device=words.device)) & 1
    return bits.flatten().float().mul_(2).sub_(1)


@cache
def _patterns() -> Tensor:
    """(256, 8): the signs of a byte, lowest bit first."""
    return ((torch.arange(256).unsqueeze(1) >> torch.arange(8)) & 1).float().mul_(2).sub_(1)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="probatum-noise")


def _shares(jobs: list, count: int) -> list[list]:
    """Jobs dealt out so that the shares hold about as many values each: the largest first, always to the lightest."""
    shares: list[list] = [[] for _ in range(count)]
    load = [0] * count
    for job in sorted(jobs, key=lambda job: -min(SPAN, job[1].numel() - job[3])):
        lightest = load.index(min(load))
        shares[lightest].append(job)
        load[lightest] += min(SPAN, job[1].numel() - job[3])
    return shares
