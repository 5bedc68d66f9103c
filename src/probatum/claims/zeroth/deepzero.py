"""Claims of DeepZero (arXiv 2310.02025)."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from probatum.evidence import Run, above, as_good, claim

if TYPE_CHECKING:
    import torch
    from torch import nn

# Learning rates: the best of GRID by accuracy on 250 validation images of development seed 0 (first order: seeds 0 and 1), at 600 steps (dense:
# 100) or, for the arms along directions, 13,000 queries (spsa) and 22,000 (rge). Claims start at seed 10 and read the test images once.
GRID = {"sgd": (0.1, 0.2, 0.4), "rge": (0.001, 0.003, 0.01), "spsa": (0.001, 0.003, 0.01)}
RATES = {
    "first order": 0.2, "first order, same masks": 0.2, "cge, 90% sparse": 0.2, "cge, uniform": 0.2, "cge, dense": 0.2, "rge": 0.003,
    "spsa": 0.003,
}  # fmt: skip
BATCH, MU, SPARSITY, REFRESH = 64, 1e-3, 0.9, 25
FRESH = "on fresh draws of split, weights and batches"


@claim(
    "deepzero", "accuracy", version=1, first_seed=10, budgets={"quick": 5, "full": 10}, source="Table of ResNet-20 on CIFAR-10",
    says="trained from losses of a tenth of the coordinates, a CNN comes near to training by backpropagation",
    reported="ResNet-20, CIFAR-10: first order 92.85, with the same sparse gradients 88.55, DeepZero 86.46 (90 % sparse); authors' slides",
    holds_if=[
        as_good("accuracy", "cge, 90% sparse", "first order", kind="paired", within=0.03, on=FRESH, resolution=0.0028),
        as_good("accuracy", "cge, 90% sparse", "first order, same masks", kind="paired", within=0.02, on=FRESH, resolution=0.0028),
    ],
)  # fmt: skip
def accuracy(run: Run, seed: int) -> None:
    """scikit-learn's digits (8 x 8, 359 of 1,797 to test on), a CNN of 1,898 weights from scratch, 1,000 steps of batch 64.

    SGD with momentum 0.9, weight decay 5e-4 and a cosine schedule on: backpropagation; backpropagation with all but the drawn coordinates
    set to zero; one-sided differences along these coordinates (a tenth of the weights by ERK ratios, drawn anew every 25 steps, and all
    biases). Full adds uniform ratios, without a condition. Every arm has the best of three learning rates, chosen once on validation images
    of two other seeds. A network this small is where 220,000 queries are affordable; what the paper shows on ResNet-20 costs 10^4 times
    more.
    """
    steps = 12 if run.smoke else 1000
    arms = ["first order", "first order, same masks", "cge, 90% sparse"] + (["cge, uniform"] if run.budget == "full" else [])
    _compare(run, arms, steps)


@claim(
    "deepzero", "coordinates", version=2, first_seed=30, budgets={"quick": 3, "full": 10}, source="Figure 1 (authors' slides)",
    says="at equal queries, coordinates train a network better than random directions",
    reported="CNNs of 730 to 12,610 weights, CIFAR-10: CGE 41.65 to 76.95, RGE 37.53 to 68.38 %",
    holds_if=[above("accuracy", "cge, 90% sparse", ["rge", "spsa"], kind="paired", margin=0.03, on=FRESH, resolution=0.0028)],
)  # fmt: skip
def coordinates(run: Run, seed: int) -> None:
    """The digits and network of `accuracy`, 200 steps of sparse coordinates (44,000 queries; full: 300 steps) against as many along directions.

    "rge": 192 Gaussian directions a step and one base, as the paper has it; "spsa": 16 pairs of queries a step, so six times more steps.
    Both have the same momentum and schedule, use all weights, in the unscaled form (a direction times the difference over mu), and took their
    learning rate from three values as every other arm did. Version 1 had 300 steps at quick, which took more than three minutes; the seeds are new.
    """
    _compare(run, ["cge, 90% sparse", "rge", "spsa"], {"smoke": 3, "quick": 200, "full": 300}[run.budget])


@claim(
    "deepzero", "dense", version=1, first_seed=10, budgets={"quick": 5, "full": 10}, source="Figure 1 (authors' slides)",
    says="with all coordinates, finite differences train as well as backpropagation",
    reported="CNNs of 730 to 12,610 weights, CIFAR-10: CGE 41.65 to 76.95, first order 42.09 to 77.01 %",
    holds_if=[as_good("accuracy", "cge, dense", "first order", kind="paired", within=0.02, on=FRESH, resolution=0.0028)],
)  # fmt: skip
def dense(run: Run, seed: int) -> None:
    """The digits and network of `accuracy`, 100 steps with all 1,898 coordinates (190,000 queries) and 100 steps of backpropagation."""
    _compare(run, ["first order", "cge, dense"], 2 if run.smoke else 100)


@accuracy.figures
def by_arm(run: Run) -> None:
    _dots(run, "Test accuracy on digits after 1,000 steps")


@coordinates.figures
def by_direction(run: Run) -> None:
    _dots(run, "Test accuracy on digits at equal queries")


def _dots(run: Run, caption: str) -> None:
    with run.figure("accuracy", caption + "; a line a seed", size=(6.4, 3.4)) as figure:
        axes = figure.subplots()
        arms = [arm for arm in run.table.systems if run.values(arm, "accuracy")]
        values = {arm: run.table.of(arm, "accuracy") for arm in arms}
        for seed in run.table.seeds:
            axes.plot(range(len(arms)), [values[arm][seed].value for arm in arms], color="#b5b5b5", linewidth=0.8, marker=".")
        means = [sum(run.values(arm, "accuracy")) / len(run.values(arm, "accuracy")) for arm in arms]
        axes.plot(range(len(arms)), means, "_", color="#0b6e4f", markersize=22, markeredgewidth=3)
        axes.set_xticks(range(len(arms)), [arm.replace(", ", ",\n") for arm in arms])
        axes.set_ylabel("test accuracy")


# The network, the images and the arms.


def _compare(run: Run, arms: Iterable[str], steps: int) -> None:
    images, labels, test = digits(run.seed)
    asked = 0
    for arm in run.progress(list(arms)):
        budget = asked if arm in ("rge", "spsa") else None
        net, queries = train(arm, RATES[arm], images[~test], labels[~test], steps, run.number("run"), budget)
        asked = asked or queries
        right = (score(net, images[test]) == labels[test]).double()
        run.record(arm, accuracy=float(right.mean()), queries=queries, chosen=RATES[arm])


def digits(seed: int) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
    """(1797, 1, 8, 8) in 0..1, labels, and which 359 are to test on."""
    import torch
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    test = torch.zeros(len(labels), dtype=torch.bool)
    test[order[:359]] = True
    return torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.from_numpy(labels).long(), test


def score(net: "nn.Module", images: "torch.Tensor") -> "torch.Tensor":
    import torch

    with torch.no_grad():
        return net(images).argmax(1)


def train(
    arm: str, lr: float, images: "torch.Tensor", labels: "torch.Tensor", steps: int, seed: int, budget: int | None = None
) -> "tuple[nn.Module, int]":
    """A digit CNN from scratch by one arm, and the queries it asked; `budget` stands in for the steps of arms along directions."""
    import torch
    from torch.nn.functional import cross_entropy

    from probatum.zeroth import DeepZero
    from probatum.zeroth.functions import rge
    from probatum.zeroth.networks import digit_cnn
    from probatum.zeroth.noise import Noise

    generator = torch.Generator().manual_seed(seed)
    net = digit_cnn()
    with torch.no_grad():
        for p in net.parameters():  # torch's own scale, from our generator
            fan = p[0].numel() if p.ndim > 1 else fan  # type: ignore[has-type]  # noqa: F821
            p.uniform_(-(fan**-0.5), fan**-0.5, generator=generator)
    q = {"rge": 192, "spsa": 16}.get(arm, 0)
    if q:
        assert budget
        steps = max(1, budget // (2 * q if arm == "spsa" else q + 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    options = {"mu": MU, "refresh": REFRESH, "seed": seed, "sparsity": 0.0 if "dense" in arm else SPARSITY}
    zo = DeepZero(net, cross_entropy, **options, ratios="uniform" if "uniform" in arm else "erk")  # type: ignore[arg-type]
    noise, asked, order = Noise(seed), 0, torch.empty(0, dtype=torch.long)
    sizes = [p.numel() for _, p in zo.named]
    for step in range(steps):
        if len(order) < BATCH:
            order = torch.randperm(len(labels), generator=generator)
        rows, order = order[:BATCH], order[BATCH:]
        optimizer.zero_grad()
        if arm.startswith("cge"):
            zo.backward(images[rows], labels[rows])
        elif q:
            theta = torch.cat([p.detach().reshape(-1) for _, p in zo.named]).unsqueeze(0)
            f = _many(images[rows], labels[rows])
            found = rge(f, theta, q, MU, noise=noise, step=step, direction="gaussian", two_sided=arm == "spsa", trials=8)
            asked += found.rows
            for (_, p), part in zip(zo.named, found.gradient[0].split(sizes), strict=True):
                p.grad = part.view(p.shape)
        else:
            cross_entropy(net(images[rows]), labels[rows]).backward()
            if "masks" in arm:
                _keep(dict(zo.named), zo.coordinates_at(step))
        optimizer.step()
        schedule.step()
    return net, asked or zo.queries or steps


def _many(x: "torch.Tensor", y: "torch.Tensor") -> "Callable[[torch.Tensor], torch.Tensor]":
    """`loss_of_weights` of the digit CNN written out, (R, 1, 1898) -> (R, 1): matrix products instead of grouped convolutions, twice as fast."""
    import torch
    from torch.nn import functional as F

    size = len(x)
    seen = F.unfold(x, 3, padding=1).permute(1, 0, 2).reshape(9, -1)

    def pooled(z: torch.Tensor) -> torch.Tensor:
        z = torch.maximum(z[..., ::2, :], z[..., 1::2, :])
        return torch.maximum(z[..., ::2], z[..., 1::2]).relu_()

    def f(points: torch.Tensor) -> torch.Tensor:
        count = len(points)
        b0, w0, b3, w3, b7, w7 = points[:, 0].split([8, 72, 16, 1152, 10, 640], 1)
        z = pooled((w0.reshape(-1, 9) @ seen).view(count, 8, size, 8, 8) + b0.view(count, 8, 1, 1, 1))
        z = F.pad(z, (1, 1, 1, 1))
        a, b, c, d, e = z.stride()
        z = z.as_strided((count, 8, 3, 3, size, 4, 4), (a, b, d, e, c, d, e)).reshape(count, 72, -1)
        z = pooled(torch.bmm(w3.view(count, 16, 72), z).view(count, 16, size, 4, 4) + b3.view(count, 16, 1, 1, 1))
        z = z.permute(0, 2, 1, 3, 4).reshape(count, size, 64)
        z = torch.baddbmm(b7.view(count, 1, 10), z, w7.view(count, 10, 64).transpose(1, 2))
        return F.cross_entropy(z.flatten(0, 1), y.repeat(count), reduction="none").view(count, size).mean(1, keepdim=True)

    return f


def _keep(named: "dict[str, torch.Tensor]", coordinates: "dict[str, torch.Tensor]") -> None:
    """Set the gradient to zero outside of the coordinates."""
    import torch

    for name, p in named.items():
        assert p.grad is not None
        flat = p.grad.view(-1)
        kept = torch.zeros_like(flat)
        kept[coordinates[name]] = flat[coordinates[name]]
        flat.copy_(kept)
