"""Sequences: s4d and ptd beside the plain formula and a GRU of equal width: time and peak memory, as ratios in one run.

    python benchmarks/sequence.py

Every row is measured in a process of its own: the allocator never gives memory back.
"""

import statistics
import time

import torch
from torch import nn

from probatum.evidence.process import isolated
from probatum.sequence import S4D, S4PTD, S5PTD

WIDTH, STATE = 128, 64


def plain_kernel(layer: S4D, length: int) -> torch.Tensor:
    """The published formula in plain torch: all of exp(dt A l), (H, N/2, L) complex numbers, then one sum over N."""
    log_a, _, b, c = layer._system(1.0)
    powers = torch.exp(log_a[..., None] * torch.arange(length))
    return 2 * torch.einsum("hn,hnl->hl", (c * b)[0], powers).real[None]


def plain_forward(layer: S4D, u: torch.Tensor) -> torch.Tensor:
    """What a user would write: that kernel, an FFT of twice the length, D u."""
    columns = u.transpose(1, 2)
    size = 2 * u.shape[1]
    spectrum = torch.fft.rfft(plain_kernel(layer, u.shape[1])[0], n=size) * torch.fft.rfft(columns, n=size)
    return (torch.fft.irfft(spectrum, n=size)[..., : u.shape[1]] + layer.d[:, None] * columns).transpose(1, 2)


def arm(name: str, what: str, length: int, batch: int = 4) -> tuple[float, int]:
    """Median seconds of a pass, and the peak of memory above the model and its input."""
    from probatum.evidence.process import peak_memory, reset_peak_memory

    generator = torch.Generator().manual_seed(0)
    layers = {
        "S4D": lambda: S4D(WIDTH, STATE, generator=generator),
        "plain formula": lambda: S4D(WIDTH, STATE, generator=generator),
        "S4-PTD": lambda: S4PTD(WIDTH, STATE, generator=generator),
        "S5-PTD": lambda: S5PTD(WIDTH, STATE, generator=generator),
        "GRU": lambda: nn.GRU(WIDTH, WIDTH, batch_first=True),
        "limit: FFTs alone": lambda: S4D(WIDTH, STATE, generator=generator),
    }
    layer = layers[name]()
    u = torch.randn(batch, length, WIDTH, generator=generator)
    fixed = torch.randn(WIDTH, length, generator=generator)

    def forward() -> torch.Tensor:
        if name == "plain formula":
            return plain_forward(layer, u)
        if name == "limit: FFTs alone":
            from probatum.sequence import fft_convolution

            return fft_convolution(u.transpose(1, 2), fixed)
        return layer(u)[0]

    def once() -> None:
        if what == "forward":
            with torch.no_grad():
                forward()
        elif what == "kernel":
            with torch.no_grad():
                plain_kernel(layer, length) if name == "plain formula" else layer.kernel(length)
        elif what == "training":
            for parameter in layer.parameters():
                parameter.grad = None
            out = forward()
            if out.requires_grad:
                out.square().mean().backward()
        else:
            state, x = None, u[:, 0]
            with torch.no_grad():
                for _ in range(100):
                    if name == "GRU":
                        _, state = layer(x[:, None], state)
                    else:
                        _, state = layer.step(x, state)

    reset_peak_memory()
    loaded = peak_memory()
    once()
    peak, taken = peak_memory() - loaded, []
    for _ in range(3 if length > 8192 else 7):
        begun = time.perf_counter()
        once()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken) / (100 if what == "step" else 1), peak


def table(what: str, names: list[str], lengths: list[int]) -> None:
    print(f"{what}, H = {WIDTH}, N = {STATE}, batch 4; time and peak memory, and their ratio to the first row")
    for length in lengths:
        base = None
        for name in names:
            seconds, peak = isolated(arm, name, what, length, threads=2).value
            base = base or (seconds, peak)
            of = f"{seconds / base[0]:6.2f} x   {peak / max(1, base[1]):6.2f} x"
            unit = f"{seconds * 1e6:9.0f} us" if what == "step" else f"{seconds * 1e3:9.1f} ms"
            print(f"  L = {length:<6} {name:<18} {unit}   {peak / 2**20:8.1f} MiB   {of}", flush=True)


def main() -> None:
    lengths = [1024, 4096, 16384]
    table("kernel", ["S4D", "plain formula", "S4-PTD"], lengths)
    table("forward", ["S4D", "plain formula", "S4-PTD", "S5-PTD", "GRU", "limit: FFTs alone"], lengths)
    table("training", ["S4D", "plain formula", "S4-PTD", "S5-PTD", "GRU"], lengths[:2])
    table("step", ["S4D", "S4-PTD", "S5-PTD", "GRU"], [1])


if __name__ == "__main__":
    # children call functions by module name, and this file is no package
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).parent))
    import sequence

    sequence.main()
