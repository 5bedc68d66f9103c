"""Meters: wall time, and peak memory of torch's allocations, of the process, and of a CUDA device."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

from probatum.evidence.process import peak_memory, reset_peak_memory

__all__ = ["Memory", "Timer", "calibrate", "memory", "timer"]


@dataclass
class Timer:
    """Seconds of wall time of the block, valid after it."""

    seconds: float = float("nan")


@contextmanager
def timer(device: str = "cpu") -> Iterator[Timer]:
    """Wall time of a block; a CUDA device is synchronised at both ends."""
    result = Timer()
    _synchronise(device)
    begun = perf_counter()
    yield result
    _synchronise(device)
    result.seconds = perf_counter() - begun


def _synchronise(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)


@dataclass
class Memory:
    """Peak bytes over a block, valid after it.

    `allocated`: the most bytes that torch tensors and workspaces of the device held at once, above those at the start (nan without
    torch). `process`: the most resident bytes of the process during the block (of its whole life where the system cannot reset it).
    """

    allocated: float = float("nan")
    process: int = 0


@contextmanager
def memory(device: str = "cpu") -> Iterator[Memory]:
    """Peak memory of a block. On the CPU the allocator's events are read from torch's profiler: use it around steps, not epochs."""
    result = Memory()
    reset_peak_memory()
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        start = torch.cuda.memory_allocated(device)
        yield result
        torch.cuda.synchronize(device)
        result.allocated = torch.cuda.max_memory_allocated(device) - start
    else:
        try:
            from torch.profiler import ProfilerActivity, profile
        except ImportError:
            yield result
        else:
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
                yield result
            result.allocated = _peak_of_events(profiler)
    result.process = peak_memory()


def _peak_of_events(profiler) -> float:
    results = profiler.profiler.kineto_results
    changes = sorted((e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]")
    held = most = 0
    for _, change in changes:
        held += change
        most = max(most, held)
    return float(most)


def calibrate() -> float:
    """How fast this machine is now: rounds a second of a fixed mix of interpreter and matrix work, measured for about half a second.

    Only ratios mean anything: an expected duration is scaled by the calibration of the machine that made the record.
    """
    import numpy as np

    a = np.full((192, 192), 0.5, dtype=np.float32)
    rounds, begun = 0, perf_counter()
    while perf_counter() - begun < 0.5:
        total = 0
        for i in range(20_000):
            total += i * i % 7
        for _ in range(8):
            a = a @ a * np.float32(1 / 96)
        rounds += 1
    return rounds / (perf_counter() - begun)
