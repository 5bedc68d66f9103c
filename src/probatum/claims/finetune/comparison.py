"""Which way to fine-tune an encoder on a few labelled texts: `probatum compare finetune`."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from probatum.errors import ProbatumError
from probatum.evidence import Arm, ComparisonRun, Metric, comparison
from probatum.finetune.methods import METHODS  # the table alone: nothing heavy is loaded

if TYPE_CHECKING:
    from torch import Tensor, nn

    from probatum.data.texts import Labelled
    from probatum.finetune.methods import Tuner

__all__ = ["finetune"]

BATCH, LENGTH = 16, 64
FORWARDS = {"smoke": 6, "quick": 60, "full": 6000}  # forward passes of one batch a run; a backward counts as two
PROMPTS = {"positive": "it was great .", "negative": "it was terrible ."}

STRENGTHS = (0.1, 1.0, 10.0)  # of the linear probe
PAIRS = {"smoke": 4, "quick": 32, "full": 200}  # directions for the gain a query


@comparison(
    "finetune",
    title="Fine-tune a small encoder on a few labelled texts",
    says="The same texts, the same start, the same number of forward passes: what each way reaches, and what it costs.",
    arms=[
        Arm("zero-shot", "nearest label sentence, nothing is trained"),
        Arm("linear probe", "logistic regression on the frozen encoder's output"),
        *(Arm(method.name, method.about, method.paper) for method in METHODS.values()),
    ],
    metrics=[
        Metric("accuracy", "accuracy", "", "higher"),
        Metric("memory", "peak memory", "B", "lower"),
        Metric("seconds", "training time", "s", "lower"),
        Metric("tuned", "weights tuned"),
        Metric("gain", "gain a query", "", "higher"),
    ],
    seeds={"smoke": 1, "quick": 3, "full": 5},
    takes={
        "model": "a Hugging Face folder (encoder or decoder) with safetensors weights and a tokenizer",
        "data": "a .csv, .tsv or .jsonl file with the columns text and label",
    },
)
def finetune(run: ComparisonRun, arm: str) -> None:
    """An arm of one seed: settings from a grid of three by validation, then the test texts, once.

    Embedded: all-MiniLM-L6-v2 and crowd-labelled tweets, positive or negative, 32 labelled a class, 100 to choose on, 300 to test on
    (balanced). Own data: 64 labelled a class at quick, all at full; a fifth is kept for choosing (100 at most) and three tenths for testing (300 at
    most). The test texts are the same in every seed, the labelled draw and the noise change. Every trained arm starts from the
    zero-shot head. Peak memory and time are those of the chosen training (of answering, where nothing is trained). Where a
    method moves along random directions, the gain a query is |g|^2 / (2 trace H) of the coordinates it moves, from forward passes at the
    start: what the best step along one direction takes off the loss, so what more queries are worth (first seed only).
    """
    import torch

    torch.set_num_threads(run.threads)
    texts = _texts(run)
    start = _Start(run, texts)
    measure = {"zero-shot": _zero_shot, "linear probe": _probe}.get(arm) or partial(_trained, arm)
    right, tuned, seconds, peak = measure(run, start, texts)
    run.record(arm, accuracy=[float(x) for x in right])
    run.record(arm, unit="B", memory=peak)
    run.record(arm, unit="s", seconds=seconds)
    run.record(arm, tuned=tuned)
    if arm == "zero-shot" and run.seed == 0:
        counts = f"{len(texts.train)} labelled, {len(texts.validation)} to choose on, {len(texts.test)} to test on"
        run.note(
            f"Texts: {counts}, classes {', '.join(texts.classes)}. Budget of a run: {FORWARDS[run.budget]} forward passes of {BATCH}."
        )


@dataclass(frozen=True)
class _Texts:
    classes: list[str]
    train: "list[Labelled]"
    validation: "list[Labelled]"
    test: "list[Labelled]"


def _texts(run: ComparisonRun) -> _Texts:
    """The draw of this seed; the test texts do not depend on it."""
    import numpy as np

    from probatum.data.texts import read_labelled, sentiments

    fixed, rng = np.random.default_rng(0), np.random.default_rng([run.seed, 1])
    rows = list(read_labelled(run.data) if run.data else (row for row in sentiments() if row.label != "neutral"))
    rows = [rows[i] for i in fixed.permutation(len(rows))]
    classes = sorted({row.label for row in rows})
    of = {label: [row for row in rows if row.label == label] for label in classes}
    if run.data is None:
        tested, chosen, k = (20, 10, 8) if run.smoke else (150, 50, 32)
    else:
        least = min(of, key=lambda label: len(of[label]))
        if len(of[least]) < 10:
            raise ProbatumError(
                f"--data: the class {least!r} has {len(of[least])} texts, 10 of each are needed to train, choose and test"
            )
        if len(classes) > 100:
            raise ProbatumError(f"--data: {len(classes)} classes, 100 at most: is `label` a class?")
        tested = chosen = 0  # by share of each class
        k = 8 if run.smoke else 64 if run.budget == "quick" else len(rows)
    train, validation, test = [], [], []
    for label in classes:
        some = of[label]
        t = tested or min(max(2, round(0.3 * len(some))), max(2, 300 // len(classes)))
        test += some[:t]
        rest = [some[t:][i] for i in rng.permutation(len(some) - t)]
        v = chosen or min(max(2, round(0.2 * len(some))), max(2, 100 // len(classes)))
        validation += rest[:v]
        train += rest[v : v + k]
    return _Texts(classes, train, validation, test)


class _Start:
    """The encoder, its tokenizer, and the zero-shot head."""

    def __init__(self, run: ComparisonRun, texts: _Texts) -> None:
        from probatum.data.encoder import encode, encoder_folder, open_model

        self.folder = run.model or encoder_folder()
        self.encoder, self.tokenizer = open_model(self.folder)
        prompts = [PROMPTS.get(label, f"This text is about: {label}.") for label in texts.classes]
        self.sentences = encode(self.encoder, self.tokenizer, prompts, length=LENGTH)

    def open(self) -> "nn.Module":
        """The encoder with its own weights; the one used so far is given up."""
        from probatum.data.encoder import open_model

        del self.encoder
        self.encoder, _ = open_model(self.folder)
        return self.encoder

    def features(self, rows: "list[Labelled]") -> "Tensor":
        from probatum.data.encoder import encode

        return encode(self.encoder, self.tokenizer, [row.text for row in rows], length=LENGTH, batch=BATCH)

    def batch(self, rows: "list[Labelled]") -> dict[str, Any]:
        return dict(
            self.tokenizer(
                [row.text for row in rows], padding=True, truncation=True, max_length=LENGTH, return_tensors="pt"
            )
        )


def _answers(texts: _Texts, rows: "list[Labelled]", predicted: Sequence[int]) -> list[bool]:
    return [texts.classes[int(p)] == row.label for p, row in zip(predicted, rows, strict=True)]


Result = tuple[list[bool], int, float, int]  # right answers, weights tuned, seconds and peak bytes of the training


def _zero_shot(run: ComparisonRun, start: _Start, texts: _Texts) -> Result:
    from probatum.evidence.process import peak_memory, reset_peak_memory

    reset_peak_memory()
    predicted = (start.features(texts.test) @ start.sentences.t()).argmax(1).tolist()
    return _answers(texts, texts.test, predicted), 0, 0.0, peak_memory()


def _probe(run: ComparisonRun, start: _Start, texts: _Texts) -> Result:
    from probatum.claims.baselines import best_on, linear_probe
    from probatum.evidence.process import peak_memory, reset_peak_memory

    reset_peak_memory()
    with run.timer() as timer:
        x, labels = start.features(texts.train).numpy(), [texts.classes.index(row.label) for row in texts.train]
        v, wanted = (
            start.features(texts.validation).numpy(),
            [texts.classes.index(row.label) for row in texts.validation],
        )
        _, probe = best_on(
            STRENGTHS, lambda strength: linear_probe(x, labels, strength), lambda probe: probe.score(v, wanted)  # type: ignore[arg-type]
        )
    predicted = probe.predict(start.features(texts.test).numpy()).tolist()
    return _answers(texts, texts.test, predicted), x.shape[1] * len(texts.classes), timer.seconds, peak_memory()


def _trained(arm: str, run: ComparisonRun, start: _Start, texts: _Texts) -> Result:
    """Every rate from a model opened anew (a copy kept aside would count as memory); validation alone decides which counts."""
    from probatum.evidence.process import peak_memory, reset_peak_memory
    grid, best = METHODS[arm].grid[: 1 if run.smoke else None], None
    for number, lr in enumerate(grid):
        tuner = _tuner(run, arm, start, texts, lr)
        if number == 0 and run.seed == 0:
            _gain(run, arm, tuner, start, texts)
        reset_peak_memory()
        with run.timer() as timer:
            _fit(run, arm, tuner, start, texts)
        peak = peak_memory()
        right = sum(_predict(start, tuner.model, texts, texts.validation)) if len(grid) > 1 else 0
        if best is None or right > best[0]:
            best = right, (_predict(start, tuner.model, texts, texts.test), tuner.tuned, timer.seconds, peak)
    assert best is not None
    return best[1]


def _tuner(run: ComparisonRun, arm: str, start: _Start, texts: _Texts, lr: float) -> "Tuner":
    """The classifier as it starts, prepared for a method; what chooses weights by their gradient sees a batch of the labelled texts."""
    from torch.nn.functional import cross_entropy

    from probatum.claims.baselines import label_head, sentence_classifier
    from probatum.finetune.methods import Setting

    method = METHODS[arm]
    model = sentence_classifier(start.open(), label_head(start.sentences))
    _, _, inputs, labels = next(_batches(run, start, texts, 1))
    samples = [({name: value[i : i + 1] for name, value in inputs.items()}, labels[i : i + 1]) for i in range(len(labels))]
    setting = Setting(
        lr, None, _steps(run, arm), run.number("z"), ("head.weight",), samples, lambda net, sample: cross_entropy(net(sample[0]), sample[1])
    )
    return method.tuner(model, setting)


def _steps(run: ComparisonRun, arm: str) -> int:
    return max(1, round(FORWARDS[run.budget] / METHODS[arm].forwards))


def _gain(run: ComparisonRun, arm: str, tuner: "Tuner", start: _Start, texts: _Texts) -> None:
    """The gain a query of the start, on one batch; nothing where the trace of the Hessian is lost in its noise."""
    from torch.nn.functional import cross_entropy

    if not hasattr(tuner.optimizer, "probe"):
        return
    from probatum.zeroth.meter import gain

    _, _, inputs, labels = next(_batches(run, start, texts, 1))
    try:
        found = gain({arm: tuner.optimizer}, lambda: cross_entropy(tuner.model(inputs), labels), PAIRS[run.budget])
    except ProbatumError:
        return
    run.record(arm, gain=found[arm].value)


def _predict(start: _Start, model: "nn.Module", texts: _Texts, rows: "list[Labelled]") -> list[bool]:
    import torch

    order = sorted(range(len(rows)), key=lambda i: len(rows[i].text))
    found = [0] * len(rows)
    with torch.no_grad():
        for at in range(0, len(order), BATCH):
            some = order[at : at + BATCH]
            for i, p in zip(some, model(start.batch([rows[i] for i in some])).argmax(1).tolist(), strict=True):
                found[i] = p
    return _answers(texts, rows, found)


def _batches(run: ComparisonRun, start: _Start, texts: _Texts, steps: int) -> Any:
    """Batches in a random order, each text once an epoch."""
    import torch

    generator, order = run.generator("batches"), []  # type: ignore[var-annotated]
    size = min(BATCH, len(texts.train))
    for step in run.progress(range(steps)):
        if len(order) < size:
            order = torch.randperm(len(texts.train), generator=generator).tolist()
        rows, order = [texts.train[i] for i in order[:size]], order[size:]
        yield step, [row.text for row in rows], start.batch(rows), torch.tensor([texts.classes.index(row.label) for row in rows])


def _fit(run: ComparisonRun, arm: str, tuner: "Tuner", start: _Start, texts: _Texts) -> None:
    """The run's budget of forward passes; the rate rises over a twentieth of the steps and falls to 0."""
    from torch.nn.functional import cross_entropy

    steps = _steps(run, arm)
    warm = max(1, steps // 20)
    for step, some, inputs, labels in _batches(run, start, texts, steps):
        tuner.scale_lr(min((step + 1) / warm, (steps - step) / max(1, steps - warm)))
        with tuner.seen(some, inputs["attention_mask"]):
            tuner.step(lambda inputs=inputs, labels=labels: cross_entropy(tuner.model(inputs), labels))  # type: ignore[misc]
    tuner.model.zero_grad(set_to_none=True)
