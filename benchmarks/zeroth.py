"""What a zeroth-order step costs: mezo, sparse_mezo and senszoq beside two plain forwards, the paper's loop, first-order training, and the
package `mezo`; deepzero beside one forward a coordinate; zo_ae_ds against an endpoint.

    python benchmarks/zeroth.py [rounds]

One process, two threads, the 22.7 M sentence encoder at 16 x 64 tokens of real text. Arms alternate in every round and each is divided by
that round's two forwards; printed are the median of these ratios and its quartiles, for wall time and for CPU time of the process (which
other work on the machine disturbs less). Memory is the peak resident set of a fresh process over that of inference. Targets: 1.35
(Gaussian, in place), 1.5 (lattice), 1.15 (signs), all with embeddings left out; memory 1.05. senszoq's limit is two forwards of its own base
(no noise worth naming), so both are rows; its weights' bytes stand below.
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
from probatum.zeroth import MeZO, SensZOQ, SparseMeZO, split  # noqa: E402
from probatum.zeroth.masks import Indices  # noqa: E402

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

    def sparse(**options: object) -> Callable[[], object]:
        net = copy.deepcopy(model)
        optimizer = SparseMeZO(net.named_parameters(), lr=1e-5, sparsity=0.8, seed=1, model=net, **options)
        return lambda: optimizer.step(loss_of(net))

    def quantised(bits: int, step: bool) -> Callable[[], object]:
        net = quantised_encoder(model, bits)
        if step:
            optimizer = SensZOQ(net.named_parameters(), lr=1e-3, seed=1)
            return lambda: optimizer.step(loss_of(net))

        def both() -> None:
            with torch.no_grad():
                loss_of(net)()
                loss_of(net)()

        return both

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
        "sparse_mezo, gaussian, lattice": sparse(exact="lattice"),
        "sparse_mezo, signs, lattice": sparse(exact="lattice", noise="rademacher"),
        "sparse_mezo, signs, scratch": sparse(exact="scratch", noise="rademacher"),
        "senszoq, 4 bits": quantised(4, True),
        "two forwards, 4 bits": quantised(4, False),
        "senszoq, 32 bits": quantised(32, True),
        "paper's loop (embeddings too)": lambda: paper_step(paper, loss_of(paper), 1e-6, 1e-3),
        "sgd": first_order(copy.deepcopy(model), torch.optim.SGD),
        "adamw": first_order(copy.deepcopy(model), torch.optim.AdamW),
        "adamw, lora": first_order(lora(copy.deepcopy(model)), torch.optim.AdamW),
    }
    return found


def quantised_encoder(model: torch.nn.Module, bits: int) -> torch.nn.Module:
    """A copy with the 36 matrices of the layers split at a random thousandth."""
    net = copy.deepcopy(model)
    named = [(name, p) for name, p in net.named_parameters() if ".layer." in name and p.ndim > 1]
    return split(net, Indices.random(named, 1e-3, seed=0), bits=bits)


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
    model, _ = _encoder(0)
    print(f"\n{'weights held':34}{'MiB':>8}{'x float32':>16}")
    whole = None
    for name, net in (("float32", model), ("senszoq, 4 bits (tables float32)", quantised_encoder(model, 4))):
        held = sum(t.numel() * t.element_size() for t in (*net.parameters(), *net.buffers()))
        whole = whole or held
        print(f"{name:34}{held / 2**20:8.1f}{held / whole:16.2f}")


def coordinates(rounds: int) -> None:
    """deepzero: microseconds a coordinate of the digit CNN, all 1,898 at batch 64; beside it the same passes from each layer on."""
    from torch.func import functional_call, vmap
    from torch.nn.functional import cross_entropy

    from probatum.zeroth import DeepZero
    from probatum.zeroth.networks import digit_cnn

    torch.manual_seed(0)
    net, x, y = digit_cnn(), torch.rand(64, 1, 8, 8), torch.arange(64) % 10
    zo = DeepZero(net, cross_entropy, sparsity=0.0)
    count = sum(len(some) for some in zo.coordinates.values())
    weight = net[3].weight

    def naive() -> None:  # the reference's way, on 64 of the coordinates: write, run whole, write back
        flat = weight.data.view(-1)
        for i in range(64):
            flat[i] += 1e-3
            cross_entropy(net(x), y)
            flat[i] -= 1e-3

    def weights() -> None:  # vmap over copies of the weight
        many = weight.detach().expand(64, *weight.shape).clone()
        vmap(lambda w: cross_entropy(functional_call(net, {"3.weight": w}, (x,)), y))(many)

    tails = [(net[at:], net[:at](x).detach(), sum(p.numel() for p in net[at - 1].parameters())) for at in (1, 4, 8)]

    def tails_alone() -> None:  # as many rows through what stands behind each layer, and nothing else; 64 at a time
        for tail, h, coordinates_there in tails:
            batch = h.repeat(64, *[1] * (h.ndim - 1))
            for _ in range(-(-coordinates_there // 64)):
                tail(batch)

    def backpropagation() -> None:
        cross_entropy(net(x), y).backward()

    arms: dict[str, tuple[Callable[[], object], int]] = {
        "deepzero": (lambda: zo.backward(x, y), count), "one forward a coordinate": (torch.no_grad()(naive), 64),
        "vmap over weights": (torch.no_grad()(weights), 64), "tails of the layers, whole": (torch.no_grad()(tails_alone), count),
        "backpropagation (all at once)": (backpropagation, count),
    }  # fmt: skip
    spent: dict[str, list[float]] = {name: [] for name in arms}
    for r in range(rounds + 1):
        for name in list(arms) if r % 2 else list(arms)[::-1]:
            step, there = arms[name]
            busy = time.process_time()
            step()
            if r:
                spent[name].append((time.process_time() - busy) / there)
    print(f"\n{'deepzero, CPU time a coordinate':34}{'us':>8}{'x deepzero':>12}")
    for name, times in spent.items():
        ratio = median(a / b for a, b in zip(times, spent["deepzero"], strict=True))
        print(f"{name:34}{1e6 * median(times):8.2f}{ratio:12.2f}")
    scaling(rounds)


def scaling(rounds: int) -> None:
    """deepzero on one thread against two worker processes of one thread, wall time of a step with all coordinates at batch 256."""
    from torch.nn.functional import cross_entropy

    from probatum.zeroth import DeepZero
    from probatum.zeroth.networks import digit_cnn

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    net, x, y = digit_cnn(), torch.rand(256, 1, 8, 8), torch.arange(256) % 10
    one, two = (DeepZero(copy.deepcopy(net), cross_entropy, sparsity=0.0, workers=workers) for workers in (1, 2))
    one.backward(x, y)
    two.backward(x, y)
    ratios = []
    for _ in range(rounds):
        begun = time.perf_counter()
        one.backward(x, y)
        middle = time.perf_counter()
        two.backward(x, y)
        ratios.append((middle - begun) / (time.perf_counter() - middle))
    two.close()
    torch.set_num_threads(threads)
    print(f"{'two workers: times as fast as one':34}{median(ratios):8.2f}")


def queries(rounds: int) -> None:
    """zo_ae_ds: rows a second of a local HTTP endpoint through BlackBox, by rows a request, beside the function itself."""
    import json
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    from probatum.zeroth import BlackBox

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(196, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10)).requires_grad_(False)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            rows = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["inputs"]
            body = json.dumps({"outputs": net(torch.tensor(rows)).tolist()}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    x, address = torch.rand(512, 196), f"http://127.0.0.1:{server.server_port}/"
    print(f"\n{'zo_ae_ds, 512 rows of 196 numbers':34}{'rows/s':>10}")
    for name, box in (
        ("function", BlackBox(net)), ("endpoint, 512 rows a request", BlackBox(address)),
        ("endpoint, 32 rows a request", BlackBox(address, rows=32)), ("endpoint, a row a request", BlackBox(address, rows=1)),
    ):  # fmt: skip
        box(x)
        begun = time.perf_counter()
        for _ in range(rounds):
            box(x)
        print(f"{name:34}{rounds * len(x) / (time.perf_counter() - begun):10.0f}")
    server.shutdown()
    server.server_close()


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
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    main(count)
    adazeta(count)
    coordinates(count)
    queries(min(3, count))
