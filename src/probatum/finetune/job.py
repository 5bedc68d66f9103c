"""One fine-tuning from a file of texts to a folder: tuned by any method, stopped and resumed anywhere, saved as safetensors.

The folder holds a checkpoint that transformers opens ("model"), or what was tuned alone ("adapter": of LoRA as peft opens it), or, for
methods that leave a log, the seed and the two numbers a step that rebuild it ("log"); beside each `finetune.json` tells settings and
results.
"""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from probatum.data.encoder import PACKAGED
from probatum.data.texts import Labelled
from probatum.errors import NotHere, ProbatumError
from probatum.files import alone, whole
from probatum.finetune.classify import TextClassifier
from probatum.finetune.methods import Setting, Tuner, method_named

__all__ = ["Job", "Outcome", "Watch", "open_finetuned", "quietly", "run", "split"]

SUMMARY, PROGRESS, HEAD, LOG = "finetune.json", ".unfinished", "head.safetensors", "log.safetensors"


@dataclass(frozen=True)
class Job:
    """What is tuned, on what, and how; two jobs of one folder must agree in all of it.

    Attributes:
        model: a Hugging Face folder, "minilm" or "gemma-3-270m". method: a name of `METHODS`.
        steps, batch, length: steps of `batch` texts, each cut at `length` tokens.
        lr, eps: None takes the method's.
        words, template: of a language model that answers with words; see `TextClassifier`.
        hold_out: share of the texts, class by class, that is kept for measuring.
        save: "model", "adapter" or "log"; None takes the method's usual form.
    """

    model: str
    method: str = "mezo"
    steps: int = 500
    batch: int = 16
    length: int = 128
    lr: float | None = None
    eps: float | None = None
    seed: int = 0
    words: Mapping[str, str] | None = None
    template: str = "{text} It was"
    hold_out: float = 0.2
    save: str | None = None

    def check(self) -> None:
        """Raises ProbatumError for what cannot be meant."""
        method_named(self.method)
        for name, least in (("steps", 1), ("batch", 1), ("length", 2)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ProbatumError(f"{name} must be an integer of {least} or more, got {value!r}")
        for name in ("lr", "eps"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ProbatumError(f"{name} must be above 0 and finite, got {value!r}")
        if not 0 < self.hold_out < 1:
            raise ProbatumError(f"hold_out must lie between 0 and 1, got {self.hold_out!r}")
        forms = method_named(self.method).forms
        if self.save is not None and self.save not in forms:
            raise ProbatumError(f"save must be {' or '.join(forms)} for method {self.method}, got {self.save!r}")

    @property
    def form(self) -> str:
        """What is saved."""
        return self.save or method_named(self.method).forms[0]


@dataclass
class Outcome:
    """What came of it; `before` and `after` are accuracies on the held-out texts."""

    before: float
    after: float
    held_out: int
    trained_on: int
    tuned: int
    seconds: float
    peak_memory: int
    classes: list[str] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    kept: bool = False


class Watch:
    """Whoever looks on: overridden by the command line, which shows progress and knows the process's memory."""

    def start(self) -> None:
        """Training begins now; what was used before does not count."""

    def step(self, step: int, loss: float) -> None:
        """A step was made."""

    def peak_memory(self) -> int:
        """The most bytes in use since `start`; 0 where nobody measures."""
        return 0


def run(
    job: Job, texts: Sequence[Labelled], out: str | os.PathLike[str], *, overwrite: bool = False, watch: Watch | None = None,
    device: str = "cpu", every: float = 20.0,
) -> Outcome:  # fmt: skip
    """Tune and save, or go on where a killed run of the same job stopped.

    Args:
        texts: labelled, of two classes or more.
        out: the folder; made where it is missing.
        overwrite: whether a finished or another job's folder may be replaced.
        watch: told of every step.
        device: torch device that trains. A log drawn on CUDA replays on CUDA alone (Gaussian noise depends on the kind of device).
        every: seconds between two savings of what is unfinished.
    Raises:
        ProbatumError: bad settings; a folder that holds something else; another run in the folder; a loss that is not finite.
    """
    job.check()
    train, held = split(texts, job)
    with _folder(Path(out)) as place:
        model = job.model if job.model in PACKAGED else str(Path(job.model).resolve())
        wanted = {**asdict(job), "model": model, "texts": len(texts)}
        finished = _finished(place, wanted, overwrite)
        if finished is not None:
            return finished
        classes = sorted({row.label for row in texts})
        network = TextClassifier(job.model, classes, words=job.words, template=job.template, length=job.length).to(_device(device))
        network.fit_head([row.text for row in train], [network.classes.index(row.label) for row in train])
        started = {name: value.clone() for name, value in network.named_parameters() if name in network.new_head}
        before = _accuracy(network, held)
        method = method_named(job.method)
        tuner = method.tuner(network, _setting(job, network, train))
        outcome = Outcome(before, before, len(held), len(train), tuner.tuned, 0.0, 0, network.classes)
        _train(job, tuner, network, train, place / PROGRESS, outcome, watch or Watch(), every)
        with torch.no_grad():
            outcome.after = _accuracy(network, held)
        _save(job, tuner, network, place, started, {"job": wanted, "outcome": asdict(outcome)})
        return outcome


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise NotHere(f"--device {name} cannot be used here: {str(error).splitlines()[0]}") from None
    return device


def split(texts: Sequence[Labelled], job: Job) -> tuple[list[Labelled], list[Labelled]]:
    """Training and held-out texts; a class gives its share of both."""
    generator = torch.Generator().manual_seed(job.seed)
    train, held = [], []
    if len({row.label for row in texts}) < 2:
        raise ProbatumError(f"texts must have two classes or more, got {len({row.label for row in texts})}")
    for label in sorted({row.label for row in texts}):
        some = [row for row in texts if row.label == label]
        if len(some) < 2:
            raise ProbatumError(f"the class {label!r} has one text: 2 or more are needed, to train and to measure")
        order = torch.randperm(len(some), generator=generator).tolist()
        count = min(max(1, round(job.hold_out * len(some))), len(some) - 1)
        held += [some[i] for i in order[:count]]
        train += [some[i] for i in order[count:]]
    return train, held


def _accuracy(network: TextClassifier, rows: Sequence[Labelled]) -> float:
    right = network.predict([row.text for row in rows]) == torch.tensor([network.classes.index(row.label) for row in rows])
    return float(right.double().mean())


def _setting(job: Job, network: TextClassifier, train: Sequence[Labelled]) -> Setting:
    """With 32 of the training texts, for methods that choose weights by their gradient."""
    some = [(row.text, network.classes.index(row.label)) for row in _batch(train, job, 0)[:32]]

    def loss(model: Any, sample: tuple[str, int]) -> Tensor:
        return cross_entropy(model(model.batch([sample[0]])).float(), torch.tensor([sample[1]], device=next(model.parameters()).device))

    return Setting(job.lr, job.eps, job.steps, job.seed, network.new_head, some, loss)


def _batch(train: Sequence[Labelled], job: Job, step: int) -> list[Labelled]:
    """The texts of a step: each once an epoch, in an order that depends on seed and epoch alone, so that a run resumes anywhere."""
    size = min(job.batch, len(train))
    epoch, at = divmod(step, len(train) // size)
    return [train[i] for i in _order(len(train), (job.seed << 20) + epoch)[at * size : (at + 1) * size]]


@lru_cache(maxsize=2)
def _order(count: int, seed: int) -> list[int]:
    """The order of an epoch, drawn once."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()


def _train(
    job: Job, tuner: Tuner, network: TextClassifier, train: Sequence[Labelled], unfinished: Path, outcome: Outcome,
    watch: Watch, every: float,
) -> None:  # fmt: skip
    begun, done = _restore(unfinished, tuner, outcome), len(outcome.losses)

    def keep() -> None:
        outcome.seconds = begun + time.monotonic() - clock
        outcome.peak_memory = max(outcome.peak_memory, watch.peak_memory())
        _keep(unfinished, tuner, outcome)

    watch.start()
    clock = saved = time.monotonic()
    warm = max(1, job.steps // 20)
    try:
        for step in range(done, job.steps):
            rows = _batch(train, job, step)
            tokens = network.batch([row.text for row in rows])
            labels = torch.tensor([network.classes.index(row.label) for row in rows], device=next(network.parameters()).device)
            tuner.scale_lr(min((step + 1) / warm, (job.steps - step) / max(1, job.steps - warm)))
            with tuner.seen([row.text for row in rows], tokens["attention_mask"]):
                loss = float(tuner.step(lambda tokens=tokens, labels=labels: cross_entropy(network(tokens).float(), labels)))  # type: ignore[misc]
            if loss != loss and not hasattr(tuner.optimizer, "log"):  # a step by losses alone is skipped and told by itself
                raise ProbatumError(f"step {step}: the loss is not a number; nothing was saved since the last step that was, take a smaller lr")
            outcome.losses.append(loss)
            watch.step(step, loss)
            if time.monotonic() - saved > every:
                keep()
                saved = time.monotonic()
    except KeyboardInterrupt:
        keep()
        raise
    outcome.seconds = begun + time.monotonic() - clock
    outcome.peak_memory = max(outcome.peak_memory, watch.peak_memory())


def _keep(unfinished: Path, tuner: Tuner, outcome: Outcome) -> None:
    """What a resumed run needs: the optimizer's state and the tuned weights."""
    weights = {name: value.detach() for name, value in tuner.weights().items()}
    state = {"optimizer": tuner.optimizer.state_dict(), "weights": weights, "outcome": asdict(outcome), "random": torch.get_rng_state()}

    with whole(unfinished / "state.pt") as partial:
        torch.save(state, partial)


def _restore(unfinished: Path, tuner: Tuner, outcome: Outcome) -> float:
    """Seconds spent so far; weights, optimizer and losses as they were."""
    path = unfinished / "state.pt"
    if not path.exists():
        return 0.0
    try:
        state = torch.load(path, weights_only=True)
        weights = dict(tuner.model.named_parameters())
        with torch.no_grad():
            for name, value in state["weights"].items():
                weights[name].copy_(value)
        tuner.scale_lr(1.0)
        tuner.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        outcome.losses, outcome.seconds = state["outcome"]["losses"], state["outcome"]["seconds"]
        outcome.peak_memory = state["outcome"]["peak_memory"]
    except Exception as error:
        raise ProbatumError(f"{path} is damaged ({str(error).splitlines()[0]}): delete it, or give --overwrite, to start again") from error
    return outcome.seconds


def _save(job: Job, tuner: Tuner, network: TextClassifier, place: Path, started: dict[str, Tensor], summary: dict[str, Any]) -> None:
    """Written beside and renamed, the summary last: a folder with a summary is whole."""
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory(dir=place, prefix=".saving-") as folder:
        made = Path(folder)
        if job.form == "log":
            tuner.optimizer.log.save(made / LOG)
            if started:
                save_file(started, made / HEAD)
        elif job.form == "adapter":
            assert tuner.adapter is not None
            tuner.adapter(made)
        else:
            if tuner.finish is not None:
                tuner.finish()
            quietly(network.model.save_pretrained, made)  # type: ignore[arg-type]
            network.tokenizer.save_pretrained(made)
        for path in sorted(made.iterdir()):
            os.replace(path, place / path.name)
    with whole(place / SUMMARY) as partial:
        partial.write_text(json.dumps(summary, indent=1), encoding="utf-8")
    shutil.rmtree(place / PROGRESS, ignore_errors=True)


def quietly(save: Callable[[Path], object], place: Path) -> None:
    """Without transformers' own bar."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        save(place)
    finally:
        if shown:
            logging.enable_progress_bar()


def open_finetuned(folder: str | os.PathLike[str]) -> TextClassifier:
    """The classifier that `run` saved: a checkpoint, or the base and the log replayed on it.

    Raises:
        ProbatumError: no such folder, an unfinished one, a base that has changed since.
    """
    place = Path(folder)
    try:
        summary = json.loads((place / SUMMARY).read_text(encoding="utf-8"))
        job, outcome = summary["job"], summary["outcome"]
    except FileNotFoundError:
        raise ProbatumError(f"{place} holds no finished fine-tuning ({SUMMARY} is missing)") from None
    except (ValueError, KeyError) as error:
        raise ProbatumError(f"{place / SUMMARY} is damaged: {error}") from None
    method = method_named(job["method"])
    form = job["save"] or method.forms[0]
    network = TextClassifier(
        place if form == "model" else job["model"], outcome["classes"], words=job["words"], template=job["template"], length=job["length"]
    )
    setting = Setting(job["lr"], job["eps"], job["steps"], job["seed"], network.new_head)
    if form == "adapter":
        assert method.attach is not None
        method.attach(network, setting, place)
    elif form == "log":
        from safetensors.torch import load_file

        from probatum.zeroth import replay

        if (place / HEAD).exists():
            parameters = dict(network.named_parameters())
            with torch.no_grad():
                for name, value in load_file(place / HEAD).items():
                    parameters[name].copy_(value)
        tuner = method.tuner(network, setting)
        replay(tuner.model, place / LOG)
        if tuner.finish is not None:
            tuner.finish()
    return network


@contextmanager
def _folder(place: Path) -> Iterator[Path]:
    """The output folder, made, locked, and swept of what killed runs left."""
    with alone(place, "--out", "another fine-tuning"):
        (place / PROGRESS).mkdir(exist_ok=True)
        for left in place.glob(".saving-*"):
            shutil.rmtree(left, ignore_errors=True)
        yield place


def _finished(place: Path, wanted: dict[str, Any], overwrite: bool) -> Outcome | None:
    """What a finished run of the same job found; clears the way for a new one, or refuses."""
    summary, settings = place / SUMMARY, place / PROGRESS / "job.json"
    if overwrite:
        summary.unlink(missing_ok=True)
        (place / PROGRESS / "state.pt").unlink(missing_ok=True)
    elif summary.exists():
        found = json.loads(summary.read_text(encoding="utf-8"))
        if found.get("job") == json.loads(json.dumps(wanted)):
            shutil.rmtree(place / PROGRESS, ignore_errors=True)
            return Outcome(**{**found["outcome"], "kept": True})
        raise ProbatumError(f"--out {place} holds another finished fine-tuning: take another folder, or --overwrite")
    elif settings.exists() and json.loads(settings.read_text(encoding="utf-8")) != json.loads(json.dumps(wanted)):
        raise ProbatumError(f"--out {place} holds an unfinished run with other settings: take those, another folder, or --overwrite")
    elif (place / "config.json").exists():
        raise ProbatumError(f"--out {place} holds a model that this command did not make: take another folder, or --overwrite")
    with whole(settings) as partial:
        partial.write_text(json.dumps(wanted), encoding="utf-8")
    return None
