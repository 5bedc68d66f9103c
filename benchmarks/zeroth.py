"""What a zeroth-order step costs: mezo beside two plain forwards, the paper's loop, first-order training, and the package `mezo`.

    python benchmarks/zeroth.py [rounds]

One process, two threads, the 22.7 M sentence encoder at 16 x 64 tokens of real text. Arms alternate in every round and each is divided by
that round's two forwards; printed are the median of these ratios and its quartiles, for wall time and for CPU time of the process (which
other work on the machine disturbs less). Memory is the peak resident set of a fresh process over that of inference. Targets: 1.35
(Gaussian, in place), 1.5 (lattice), 1.15 (signs), all with embeddings left out; memory 1.05.
"""

import copy
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from statistics import median, quantiles

THREADS = min(2, os.cpu_count() or 1)
os.environ["OMP_NUM_THREADS"] = str(THREADS)  # before torch reads it

import torch  # noqa: E402

from probatum.claims.baselines import lora  # noqa: E402
from probatum.claims.zeroth.mezo import _encoder, _peak, paper_step  # noqa: E402
from probatum.evidence.process import isolated  # noqa: E402
from probatum.zeroth import MeZO  # noqa: E402

TARGETS = {"mezo, gaussian, in place": 1.35, "mezo, gaussian, lattice": 1.5, "mezo, signs, lattice": 1.15}


def arms() -> dict[str, Callable[[], object]]:
    """One step of each arm; all see the same batch."""
    model, batches = _encoder(0)
    inputs, labels = batches[0]

    def loss_of(net: torch.nn.Module) -> Callable[[], torch.Tensor]:
        return lambda: torch.nn.functional.cross_entropy(net(**inputs).logits, labels)

    def forwards() -> None:
        with torch.no_grad():
            loss_of(model)()
            loss_of(model)()

    def ours(**options: object) -> Callable[[], object]:
        net = copy.deepcopy(model)
        optimizer = MeZO(net.named_parameters(), lr=1e-5, seed=1, **options)
        return lambda: optimizer.step(loss_of(net))

    def first_order(net: torch.nn.Module, kind: type[torch.optim.Optimizer]) -> Callable[[], object]:
        optimizer = kind([p for p in net.parameters() if p.requires_grad], lr=1e-6)

        def step() -> None:
            optimizer.zero_grad()
            loss_of(net)().backward()
            optimizer.step()

        return step

    paper = copy.deepcopy(model)
    found = {
        "two forwards": forwards,
        "mezo, gaussian, in place": ours(exact="off"),
        "mezo, gaussian, lattice": ours(exact="lattice"),
        "mezo, signs, in place": ours(exact="off", noise="rademacher"),
        "mezo, signs, lattice": ours(exact="lattice", noise="rademacher"),
        "mezo, gaussian, embeddings too": ours(exact="off", exclude=()),
        "paper's loop (embeddings too)": lambda: paper_step(paper, loss_of(paper), 1e-6, 1e-3),
        "sgd": first_order(copy.deepcopy(model), torch.optim.SGD),
        "adamw": first_order(copy.deepcopy(model), torch.optim.AdamW),
        "adamw, lora": first_order(lora(copy.deepcopy(model)), torch.optim.AdamW),
    }
    return found


def main(rounds: int) -> None:
    torch.set_num_threads(THREADS)
    print(f"torch {torch.__version__}, transformers {version('transformers')}, {THREADS} threads, {rounds} rounds")
    try:
        print(
            f"package mezo {version('mezo')} is here: it wants an older transformers, run it in an environment of its own"
        )
    except PackageNotFoundError:
        print(
            "skipped: the package `mezo` (PyPI) is not installed; it wants an older transformers and its own environment"
        )
    steps = arms()
    for step in steps.values():
        step()
    wall: dict[str, list[float]] = {name: [] for name in steps}
    work: dict[str, list[float]] = {name: [] for name in steps}
    for r in range(rounds):
        names = list(steps) if r % 2 else list(steps)[::-1]
        for name in names:
            begun, busy = time.perf_counter(), time.process_time()
            steps[name]()
            wall[name].append(time.perf_counter() - begun)
            work[name].append(time.process_time() - busy)
    base = "two forwards"
    print(
        f"\n{'step':34}{'ms':>8}{'x two forwards':>16}{'quartiles':>16}{'CPU time':>10}{'quartiles':>16}{'target':>8}"
    )
    for name in steps:
        cells = []
        for taken in (wall, work):
            ratios = [a / b for a, b in zip(taken[name], taken[base], strict=True)]
            low, _, high = quantiles(ratios, n=4)
            cells += [f"{median(ratios):.2f}", f"{low:.2f} to {high:.2f}"]
        print(
            f"{name:34}{1e3 * median(wall[name]):8.0f}{cells[0]:>16}{cells[1]:>16}{cells[2]:>10}{cells[3]:>16}"
            f"{TARGETS.get(name, ''):>8}"
        )
    print(f"\n{'peak memory (fresh process)':34}{'MiB':>8}{'x inference':>16}")
    inference = None
    for name in ("inference", "mezo", "paper's loop", "sgd", "adamw", "adamw, lora"):
        peak, _ = isolated(_peak, name, 0, False, threads=THREADS).value
        inference = inference or peak
        print(f"{name:34}{peak / 2**20:8.0f}{peak / inference:16.2f}" + ("   target 1.05" if name == "mezo" else ""))


def adazeta(rounds: int) -> None:
    """A tensor-train adapter of 4,096 by 64, rank 5, beside the dense bottleneck it stands for, at 1, 16 and 512 rows."""
    from importlib.util import find_spec

    from probatum.zeroth import TTAdapter

    print(f"\nadazeta: adapter 4,096 x 64, rank 5; ms a call, and over the dense bottleneck{'':10}rows")
    if find_spec("tltorch") is None:
        print("skipped: tltorch (tensor-train layers) is not installed")
    dense = torch.nn.Sequential(torch.nn.Linear(4096, 64, bias=False), torch.nn.ReLU(), torch.nn.Linear(64, 4096, bias=False))
    made: dict[str, torch.nn.Module] = {"dense bottleneck": dense}
    made |= {way: TTAdapter(4096, contraction=way) for way in ("halves", "sequential", "dense", "auto")}
    for rows in (1, 16, 512):
        x, times = torch.randn(rows, 4096), {name: list[float]() for name in made}
        with torch.no_grad():
            for r in range(rounds + 1):
                for name in made if r % 2 else reversed(made):
                    begun = time.perf_counter()
                    for _ in range(10):
                        made[name](x)
                    times[name].append((time.perf_counter() - begun) * 100)
        for name, taken in times.items():
            ratio = median(a / b for a, b in zip(taken[1:], times["dense bottleneck"][1:], strict=True))
            print(f"{name:34}{median(taken[1:]):8.2f}{ratio:16.2f}{rows:10}")


if __name__ == "__main__":
    adazeta(int(sys.argv[1]) if len(sys.argv) > 1 else 9)
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 9)
