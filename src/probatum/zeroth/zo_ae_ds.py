"""ZO-AE-DS: make a model that can only be queried certifiably robust (Zhang et al. 2022, arXiv 2203.14195).

A denoiser in front of the black box is trained on noisy inputs by queried gradients; an auto-encoder between them, whose decoder counts as
part of the black box, makes what is perturbed a short latent vector, so that few queries give a sharp gradient. The whole is smoothed and
certified. For classifiers and image reconstructors behind a function or an address; where you can differentiate the model, do (`FO`).

>>> import torch
>>> from probatum.zeroth.networks import AutoEncoder, Denoiser
>>> torch.manual_seed(0)  # doctest: +ELLIPSIS
<torch...>
>>> images, w = torch.rand(64, 1, 4, 4), torch.randn(16, 3)
>>> box = BlackBox(lambda x: x.flatten(1) @ w)
>>> auto = train_autoencoder(images, AutoEncoder((1, 4, 4), latent=5, width=16), steps=50)
>>> defence = Defence(Denoiser(1, width=4, depth=3), auto, sigma=0.25)
>>> robustify(defence, box, images, estimator="CGE", steps=3, batch=8)["rows"] == 3 * 8 * 2 * 5
True
>>> defence.certify(box, images[:1], n0=10, n=200)[0].n
200
"""

import json
import math
import os
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probatum.errors import ProbatumError
from probatum.metrics.certify import Certificate, certified_accuracy, certify
from probatum.nn.fingerprint import Fingerprint
from probatum.zeroth.black_box import BlackBox
from probatum.zeroth.functions import Estimate, cge, rge, zo_backward
from probatum.zeroth.networks import AutoEncoder, Denoiser
from probatum.zeroth.noise import Noise

__all__ = [
    "BlackBox", "Defence", "QueryPlan", "certified_accuracy", "plan_queries", "robustify", "train_autoencoder", "zo_backward",
]  # fmt: skip

Estimator = Literal["FO", "RGE", "CGE"]
Target = Callable[[Tensor], Any]


class Defence(nn.Module):
    """What stands in front of the black box, as one object that is trained, stored, certified and deployed together.

    Args:
        denoiser: (B, *shape) -> the same.
        auto: with `encoder` and `decoder` (an `AutoEncoder`, or any module that has both); None makes it DS instead of AE-DS.
        sigma: standard deviation of the noise it is trained and certified for, in units of the input.
        query: where the gradient is asked for: "latent" (the paper's: the decoder belongs to the black box) or "image" (what the black box
            itself receives; with an auto-encoder a control that only adds weights). DS has no latent and asks in the image.
    `forward` is (B, *shape) -> what the black box is given, of the same shape.
    """

    def __init__(
        self, denoiser: nn.Module, auto: nn.Module | None = None, *, sigma: float, query: Literal["latent", "image"] | None = None
    ) -> None:
        super().__init__()
        if not 0 < sigma < math.inf:
            raise ProbatumError(f"sigma must be positive and finite, got {sigma!r}")
        for part in ("encoder", "decoder"):
            if auto is not None and not isinstance(getattr(auto, part, None), nn.Module):
                raise ProbatumError(f"auto must have an encoder and a decoder, got {type(auto).__name__} without {part}")
        query = query or ("image" if auto is None else "latent")
        if query not in ("latent", "image") or (query == "latent" and auto is None):
            raise ProbatumError(f"query must be 'latent' (with an auto-encoder) or 'image', got {query!r}")
        self.denoiser, self.auto, self.sigma, self.query = denoiser, auto, sigma, query
        self._latent: tuple[int, ...] = ()

    @property
    def method(self) -> str:
        return "DS" if self.auto is None else "AE-DS" if self.query == "latent" else "DS + AE"

    def front(self, x: Tensor) -> Tensor:
        """The white-box part: (B, *shape) -> (B, d), what is perturbed by queries."""
        r = self.denoiser(x)
        if self.auto is not None:
            r = self.auto.encoder(r)  # type: ignore[operator,union-attr]
            if self.query == "image":
                r = self.auto.decoder(r)  # type: ignore[operator,union-attr]
        self._latent = tuple(r.shape[1:])
        return r.flatten(1)

    def back(self, r: Tensor) -> Tensor:
        """(N, d) -> the black box's input."""
        r = r.view(-1, *self._latent)
        return self.auto.decoder(r) if self.query == "latent" and self.auto is not None else r  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        return self.back(self.front(x))

    def deployed(self, black_box: Target) -> Target:
        """The whole as a function of a batch, in eval mode and without gradients: what may be certified."""

        def answer(x: Tensor) -> Any:
            with _evaluating(self), torch.no_grad():
                return black_box(self(x))

        return answer

    def certify(self, black_box: Target, images: Tensor, **options: Any) -> list[Certificate]:
        """Certificates of the whole deployed pipeline; arguments as `probatum.metrics.certify.certify`, sigma being the defence's own.

        With `store` the table goes on after a kill; it remembers which weights it was made for.
        """
        if "sigma" in options:
            raise ProbatumError(f"sigma is the defence's own, {self.sigma:g}: leave it out")
        rows = Fingerprint.of(self.state_dict().items()).to_json()
        name = f"{self.method} {zlib.crc32(json.dumps(rows).encode()):08x}"
        return certify(self.deployed(black_box), images, sigma=self.sigma, **{"name": name, **options})

    def save(self, path: str | Path) -> None:
        """One .safetensors file: all weights, and in its head a JSON text of how to build the parts."""
        from safetensors.torch import save_file

        head = {
            "format": 1, "method": self.method, "sigma": self.sigma, "query": self.query, "latent": list(self._latent),
            "denoiser": getattr(self.denoiser, "config", None), "auto": getattr(self.auto, "config", None),
        }  # fmt: skip
        tensors = {name: value.contiguous() for name, value in self.state_dict().items()}
        path = Path(path)
        partial = path.with_name(f".{path.name}.partial")
        save_file(tensors, partial, {"defence": json.dumps(head)})
        os.replace(partial, path)

    @classmethod
    def load(cls, path: str | Path, *, denoiser: nn.Module | None = None, auto: nn.Module | None = None) -> "Defence":
        """Read a defence.

        Args:
            denoiser, auto: modules of one's own to fill; `Denoiser` and `AutoEncoder` are built from the file's head.
        Raises:
            ProbatumError: no such file, or one of another kind; parts that the file needs or has not; weights that do not fit.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ProbatumError(f"cannot read {str(path)!r}: {error}") from None
        if "defence" not in metadata:
            raise ProbatumError(f"{str(path)!r} holds no defence: its head lacks one")
        head = json.loads(metadata["defence"])
        denoiser = denoiser or (Denoiser(**head["denoiser"]) if head["denoiser"] else None)
        if head["method"] != "DS":
            auto = auto or (AutoEncoder(**head["auto"]) if head["auto"] else None)
            if auto is None:
                raise ProbatumError(f"{str(path)!r} is {head['method']}: give its auto-encoder (auto=), a module of your own")
        elif auto is not None:
            raise ProbatumError(f"{str(path)!r} is DS and has no auto-encoder, but auto was given")
        if denoiser is None:
            raise ProbatumError(f"{str(path)!r} needs its denoiser (denoiser=), a module of your own")
        found = cls(denoiser, auto, sigma=head["sigma"], query=head["query"])
        found._latent = tuple(head["latent"])
        try:
            found.load_state_dict(tensors)
        except RuntimeError as error:
            raise ProbatumError(f"the weights of {str(path)!r} do not fit: {str(error).splitlines()[-1].strip()}") from None
        return found.eval()


@dataclass(frozen=True)
class QueryPlan:
    """Rows that training will ask of the black box: a step, in all (labels included), and seconds at the rate that was measured."""

    rows_a_step: int
    rows: int
    seconds: float | None

    def __str__(self) -> str:
        took = "" if self.seconds is None else f", about {self.seconds / 3600:.2g} hours at the rate measured"
        return f"{self.rows_a_step:,} rows a step, {self.rows:,} in all{took}"


def plan_queries(
    defence: Defence, images: Tensor, *, estimator: Estimator = "CGE", q: int = 20, steps: int = 500, batch: int = 64, labels: bool = True,
    black_box: Target | None = None,
) -> QueryPlan:  # fmt: skip
    """What `robustify` will ask, before it does.

    Args:
        labels: whether the black box's own labels of all images are to be asked for (no targets given).
        black_box: if given, it is asked for one batch, which is timed.
    """
    with torch.no_grad(), _evaluating(defence):
        d = defence.front(images[:1]).shape[1]
    each = {"FO": 1, "RGE": q + 1, "CGE": 2 * d}[estimator]
    batch = min(batch, len(images))
    rows = steps * batch * each + (len(images) if labels else 0)
    seconds = None
    if black_box is not None:
        begun = time.perf_counter()
        black_box(images[:batch])
        seconds = (time.perf_counter() - begun) / batch * rows
    return QueryPlan(batch * each, rows, seconds)


def train_autoencoder(
    images: Tensor, auto: AutoEncoder, *, steps: int = 2000, batch: int = 128, lr: float = 1e-3, generator: torch.Generator | None = None
) -> AutoEncoder:
    """Train an auto-encoder to reproduce images (N, *shape) in 0..1, by Adam on the mean squared error; no query is asked."""
    _images(images, auto)
    generator = generator or torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(auto.parameters(), lr=lr)
    auto.train()
    for _ in range(steps):
        rows = images[torch.randint(len(images), (batch,), generator=generator)]
        optimizer.zero_grad()
        F.mse_loss(auto(rows), rows).backward()
        optimizer.step()
    return auto.eval()


def robustify(
    defence: Defence,
    black_box: Target,
    images: Tensor,
    *,
    estimator: Estimator = "CGE",
    task: Literal["classification", "reconstruction"] = "classification",
    targets: Tensor | None = None,
    outputs: Literal["logits", "probabilities"] = "logits",
    q: int = 20,
    mu: float = 5e-3,
    steps: int = 500,
    batch: int = 64,
    lr: float = 1e-3,
    weight_decay: float = 1e-4,
    train: Literal["whole", "part", "whole_plus"] = "whole",
    trials: int | None = None,
    seed: int = 0,
    store: str | Path | None = None,
    every: int = 50,
    progress: Callable[[int, float], object] | None = None,
) -> dict[str, Any]:
    """Train a defence in front of a black box, in place, by Adam with a cosine schedule.

    Each step draws one noise an image, shared by all queries of that image; the gradient a_i of the image's own loss with respect to what
    the white-box part put out is asked for, and mean <a_i, r_i> is propagated through that part.

    Args:
        black_box: (N, *shape) -> logits or probabilities (N, C), or images; a `BlackBox` brings budget, cache and retries. `FO` needs a
            torch function that can be differentiated.
        images: (N, *shape) in 0..1.
        estimator: "RGE": q sphere directions, q + 1 queries an image; "CGE": central differences in every coordinate, 2 d queries; "FO".
        task: "classification": cross-entropy to the target; "reconstruction": mean squared error of the answer to the target.
        targets: labels (N,) or images; None takes the black box's own labels of the clean images (asked once each), or the images.
        q, mu: directions, and length of the perturbation.
        train: "whole": denoiser and encoder; "part": the denoiser alone; "whole_plus": the decoder too, which must then not belong to
            the black box (query="image").
        trials: perturbations of the batch asked in one call; None asks for all at once.
        store: file that is rewritten every `every` steps; with it a run that was killed goes on.
        progress: called with (steps done, loss).
    Returns:
        {"losses": one a step, "rows": asked by the estimator, "label_rows": asked for targets, "flat": share of zero differences}.
    Raises:
        ProbatumError: an argument out of range, images of another size or range than the auto-encoder's, a black box that answers labels
            or so coarsely that most differences are zero, losses that are not finite.
    """
    _arguments(estimator, task, outputs, train, steps, batch, every)
    if train == "whole_plus" and defence.query == "latent":
        raise ProbatumError("train='whole_plus' trains the decoder, which the black box then cannot hold: make the defence with query='image'")
    if train == "whole_plus" and defence.auto is None:
        raise ProbatumError("train='whole_plus' needs an auto-encoder, whose decoder it trains")
    if estimator == "FO" and isinstance(black_box, BlackBox):
        raise ProbatumError("estimator='FO' needs a function that can be differentiated, got a BlackBox: use 'RGE' or 'CGE'")
    _images(images, defence.auto)
    label_rows = 0
    if targets is None:
        targets = _own_targets(black_box, images, task, batch)
        label_rows = len(images) if task == "classification" else 0
    if len(targets) != len(images):
        raise ProbatumError(f"targets must be one an image, got {len(targets)} for {len(images)}")

    trained = _trained(defence, train)
    optimizer = torch.optim.Adam(trained, lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator, noise = torch.Generator().manual_seed(seed), Noise(seed)
    done: dict[str, Any] = {"losses": [], "rows": 0, "label_rows": label_rows, "flat": 0.0}
    head = {"seed": seed, "steps": steps, "estimator": estimator, "q": q, "mu": mu, "batch": batch, "lr": lr, "images": len(images)}
    _resume(store, head, defence, optimizer, schedule, generator, done)
    loss_of = _loss(task, outputs)
    for step in range(len(done["losses"]), steps):
        _training(defence, train)
        rows = torch.randint(len(images), (min(batch, len(images)),), generator=generator)
        clean, target = images[rows], targets[rows]
        delta = torch.randn(clean.shape, generator=generator).to(clean)
        optimizer.zero_grad()
        r = defence.front(clean + defence.sigma * delta)
        if estimator == "FO":
            losses = loss_of(black_box(defence.back(r)), target)
            losses.mean().backward()
            value, asked, flat = losses.detach(), len(rows), 0.0
        else:
            found = _estimate(defence, black_box, loss_of, target, r.detach(), estimator, q, mu, noise, step, trials)
            if step == 0 and found.flat > 0.5:
                raise ProbatumError(
                    f"{100 * found.flat:.0f} % of the differences are exactly zero: the black box rounds its answers or gives labels only; "
                    f"raise mu (now {mu:g})"
                )
            zo_backward(r, found.gradient)
            value, asked, flat = found.value, found.rows, found.flat
        optimizer.step()
        schedule.step()
        done["losses"].append(float(value.mean()))
        done["rows"] += asked
        done["flat"] = flat
        if progress:
            progress(step + 1, done["losses"][-1])
        if store is not None and ((step + 1) % every == 0 or step + 1 == steps):
            _keep(store, head, defence, optimizer, schedule, generator, done)
    defence.eval()
    return done


def _estimate(
    defence: Defence, black_box: Target, loss_of: Callable[[Any, Tensor], Tensor], target: Tensor, r: Tensor, estimator: str, q: int,
    mu: float, noise: Noise, step: int, trials: int | None,
) -> Estimate:  # fmt: skip
    """a_i = d loss_i / d r_i of every image, from queries."""

    def f(points: Tensor) -> Tensor:
        count = len(points)
        answer = black_box(defence.back(points.flatten(0, 1)))
        return loss_of(answer, target.repeat(count, *[1] * (target.ndim - 1))).view(count, -1)

    if estimator == "RGE":
        return rge(f, r, q, mu, noise=noise, step=step, trials=trials)
    return cge(f, r, mu=mu, trials=trials)


def _loss(task: str, outputs: str) -> Callable[[Any, Tensor], Tensor]:
    """(answers, targets) -> one loss a row."""

    def classification(answer: Any, target: Tensor) -> Tensor:
        answer = torch.as_tensor(answer)
        if answer.ndim != 2:
            raise ProbatumError(f"the black box must answer scores (N, C), got {list(answer.shape)}: labels alone have no slope")
        if outputs == "probabilities":
            return F.nll_loss(answer.clamp(min=1e-12).log(), target, reduction="none")
        return F.cross_entropy(answer, target, reduction="none")

    def reconstruction(answer: Any, target: Tensor) -> Tensor:
        answer = torch.as_tensor(answer)
        if answer.numel() != target.numel():
            raise ProbatumError(f"the black box must answer images like the targets {list(target.shape)}, got {list(answer.shape)}")
        return (answer.reshape(target.shape) - target).square().flatten(1).mean(1)

    return classification if task == "classification" else reconstruction


def _own_targets(black_box: Target, images: Tensor, task: str, batch: int) -> Tensor:
    if task == "reconstruction":
        return images
    with torch.no_grad():
        answers = [torch.as_tensor(black_box(part)) for part in images.split(max(batch, 256))]
    if answers[0].ndim != 2:
        raise ProbatumError(f"the black box must answer scores (N, C), got {list(answers[0].shape)}: labels alone have no slope")
    return torch.cat([answer.argmax(1) for answer in answers])


def _trained(defence: Defence, train: str) -> list[nn.Parameter]:
    parts = [defence.denoiser]
    if defence.auto is not None and train != "part":
        parts.append(defence.auto.encoder)  # type: ignore[arg-type]
        if train == "whole_plus":
            parts.append(defence.auto.decoder)  # type: ignore[arg-type]
    return [p for part in parts for p in part.parameters()]


def _training(defence: Defence, train: str) -> None:
    """What is trained in training mode; the decoder stays as it was fitted."""
    defence.denoiser.train()
    if defence.auto is not None:
        defence.auto.eval()
        if train != "part":
            defence.auto.encoder.train()  # type: ignore[union-attr]
        if train == "whole_plus":
            defence.auto.decoder.train()  # type: ignore[union-attr]


def _images(images: Tensor, auto: nn.Module | None) -> None:
    if images.ndim < 2 or not images.is_floating_point() or not len(images):
        raise ProbatumError(f"images must be floating (N, ...), got {images.dtype} {list(images.shape)}")
    shape = getattr(auto, "config", {}).get("shape") if auto is not None else None
    if shape is not None and list(images.shape[1:]) != list(shape):
        raise ProbatumError(f"the auto-encoder is made for images {list(shape)}, got {list(images.shape[1:])}")
    low, high = float(images.min()), float(images.max())
    if isinstance(auto, AutoEncoder) and (low < 0 or high > 1):
        raise ProbatumError(f"images must be in 0..1, the range of the auto-encoder, got {low:.3g} to {high:.3g}")


def _arguments(estimator: str, task: str, outputs: str, train: str, steps: int, batch: int, every: int) -> None:
    for name, value, allowed in (
        ("estimator", estimator, ("FO", "RGE", "CGE")), ("task", task, ("classification", "reconstruction")),
        ("outputs", outputs, ("logits", "probabilities")), ("train", train, ("whole", "part", "whole_plus")),
    ):  # fmt: skip
        if value not in allowed:
            raise ProbatumError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    for name, number in (("steps", steps), ("batch", batch), ("every", every)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ProbatumError(f"{name} must be an integer of 1 or more, got {number!r}")


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, training in modes:
            m.training = training


def _keep(
    store: str | Path, head: dict, defence: Defence, optimizer: torch.optim.Optimizer, schedule: Any, generator: torch.Generator, done: dict
) -> None:
    path = Path(store)
    partial = path.with_name(f".{path.name}.partial")
    state = {
        "head": head, "defence": defence.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(),
        "generator": generator.get_state(), "done": done,
    }  # fmt: skip
    torch.save(state, partial)
    os.replace(partial, path)


def _resume(
    store: str | Path | None, head: dict, defence: Defence, optimizer: torch.optim.Optimizer, schedule: Any, generator: torch.Generator,
    done: dict,
) -> None:  # fmt: skip
    if store is None or not Path(store).exists():
        return
    try:
        state = torch.load(store, weights_only=True)
        saved = state["head"]
    except Exception as error:
        raise ProbatumError(f"store={str(store)!r} is no training of a defence: {error}") from None
    other = [name for name in head if saved.get(name) != head[name]]
    if other:
        raise ProbatumError(
            f"store={str(store)!r} belongs to another training: its {other[0]} is {saved.get(other[0])!r}, here {head[other[0]]!r}"
        )
    defence.load_state_dict(state["defence"])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    generator.set_state(state["generator"])
    done.update(state["done"])
