"""Fine-tuning a real language model on real texts by forward passes and by backpropagation: what the claim of MeZO and its recipe share.

`python -m probatum.claims.zeroth.language ARM` trains the run of an arm that comes with the package (resumable, about half an hour on two
cores), and writes it to weights/zeroth/language.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probatum.data.texts import Labelled
    from probatum.evidence import Run
    from probatum.finetune.classify import TextClassifier
    from probatum.finetune.job import Job, Watch

__all__ = ["ARMS", "measure", "shipped", "texts", "train"]

MODEL, LENGTH, BATCH = "gemma-3-270m", 32, 8
WORDS = {"negative": "terrible", "positive": "great"}  # MeZO's words for sentiment, and its template
LABELLED, TESTED, PILOT = 400, 200, 100  # texts a class; steps of a pilot run
# arm -> (method, steps, learning rates, what is kept). A backward pass counts as two forwards, so all runs ask for 3,000 forwards.
ARMS: dict[str, tuple[str, int, tuple[float, float, float], str]] = {
    "adamw, last layer": ("lora_last", 1000, (3e-4, 1e-3, 3e-3), "adapter"),
    "mezo, last layer": ("mezo_last", 1500, (1e-4, 3e-4, 1e-3), "log"),
    "adamw, lora": ("lora", 1000, (1e-4, 3e-4, 1e-3), "adapter"),
    "mezo, lora": ("mezo_lora", 1500, (1e-3, 3e-3, 1e-2), "log"),
}
SHIPPED = ("adamw, last layer", "mezo, last layer")  # the others are hours on a CPU, and run at full


def texts(seed: int, labelled: int = LABELLED, tested: int = TESTED) -> "list[Labelled]":
    """Positive and negative tweets of at most twelve words, drawn by the seed, as many of either class."""
    import numpy as np

    from probatum.data.texts import sentiments

    rows = [row for row in sentiments() if row.label in WORDS and len(row.text.split()) <= 12]
    order, found = np.random.default_rng([seed, 270]).permutation(len(rows)), []
    for label in sorted(WORDS):
        found += [rows[i] for i in order if rows[i].label == label][: labelled + tested]
    return found


def _job(arm: str, seed: int, **settings: Any) -> "Job":
    from probatum.finetune.job import Job

    method, steps, _, form = ARMS[arm]
    fixed = {"model": MODEL, "steps": steps, "batch": BATCH, "length": LENGTH, "seed": seed, "words": WORDS, "save": form}
    return Job(**{"method": method, "hold_out": TESTED / (LABELLED + TESTED), **fixed, **settings})


def train(arm: str, seed: int, folder: Path, watch: "Watch | None" = None) -> None:
    """Choose the rate by short runs on the labelled texts, four fifths to learn from and the rest to choose on; then the run itself.

    Killed runs go on where they stopped.
    """
    from probatum.finetune.job import run, split
    from probatum.home import home

    labelled, _ = split(texts(seed), _job(arm, seed))
    losses, pilots = {}, home() / "artifacts" / "mezo" / "language-pilots"
    for lr in ARMS[arm][2]:
        pilot = _job(arm, seed, lr=lr, steps=PILOT, hold_out=0.2)
        place = pilots / f"{_name(arm)}-{seed}-{lr:g}"
        run(pilot, labelled, place, watch=watch)
        losses[lr] = _loss(place, split(labelled, pilot)[1])
    run(_job(arm, seed, lr=min(losses, key=losses.__getitem__)), texts(seed), folder, watch=watch)


def _loss(place: Path, rows: "Sequence[Labelled]") -> float:
    import torch
    from torch.nn.functional import cross_entropy

    from probatum.finetune.job import open_finetuned

    network = open_finetuned(place)
    labels = torch.tensor([network.classes.index(row.label) for row in rows])
    with torch.no_grad():
        logits = torch.cat([network(network.batch([row.text for row in rows[at : at + 32]])) for at in range(0, len(rows), 32)])
    return float(cross_entropy(logits, labels))


def measure(run: "Run", seed: int) -> None:
    """Accuracy of every arm on the held-out texts: runs that come with the package at quick, trained here at full."""
    import json
    import tempfile

    import torch

    from probatum.finetune.classify import TextClassifier
    from probatum.finetune.job import open_finetuned, split

    torch.set_num_threads(run.threads)
    with tempfile.TemporaryDirectory() as scratch:
        model, rows, arms = (_tiny if run.smoke else _runs)(run, seed, Path(scratch))
        labelled, held = split(rows, _job("mezo, last layer", seed))
        for arm in run.progress(["zero-shot", "linear probe", *arms]):
            if arm == "zero-shot":
                start = TextClassifier(model, sorted(WORDS), words=WORDS, length=LENGTH)
                run.record(arm, accuracy=_right(start, held))
            elif arm == "linear probe":
                run.record(arm, accuracy=_probe(start, labelled, held))
                del start
            else:
                settings = json.loads((arms[arm] / "finetune.json").read_text("utf-8"))
                job, outcome = settings["job"], settings["outcome"]
                right = _right(open_finetuned(arms[arm]), held)
                run.record(arm, accuracy=right, chosen=job["lr"], tuned=outcome["tuned"], steps=job["steps"])
                run.record(arm, {"differs from training": abs(sum(right) / len(right) - outcome["after"])})
                run.record(arm, {"what is kept": _kept(arms[arm])}, unit="B")


def _runs(run: "Run", seed: int, scratch: Path) -> "tuple[str, list[Labelled], dict[str, Path]]":
    """Model, texts, and the folder of each finished run: shipped, or made here."""
    from probatum.home import home

    if run.budget == "quick":
        return MODEL, texts(seed), {arm: shipped(arm) for arm in SHIPPED}
    made = {arm: home() / "artifacts" / "mezo" / f"language-{seed}-{run.code[:12]}" / _name(arm) for arm in ARMS}
    for arm, folder in run.progress(list(made.items()), label="training"):
        train(arm, seed, folder)
    return MODEL, texts(seed), made


def _tiny(run: "Run", seed: int, scratch: Path) -> "tuple[str, list[Labelled], dict[str, Path]]":
    """The same with a language model of two layers that knows nothing, two steps an arm."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from probatum.data.encoder import encoder_folder
    from probatum.finetune.job import quietly
    from probatum.finetune.job import run as finetune

    tokenizer = AutoTokenizer.from_pretrained(str(encoder_folder()))
    sizes: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        quietly(LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained, scratch / "model")
    tokenizer.save_pretrained(scratch / "model")
    model, rows = str(scratch / "model"), texts(seed, 20, 10)
    for arm, (_, _, rates, _) in ARMS.items():
        finetune(_job(arm, seed, model=model, steps=2, lr=rates[0]), rows, scratch / _name(arm))
    return model, rows, {arm: scratch / _name(arm) for arm in ARMS}


def shipped(arm: str) -> Path:
    """The folder of the run that comes with the package."""
    from importlib.resources import files

    return Path(str(files("probatum"))) / "weights" / "zeroth" / "language" / _name(arm)


def _name(arm: str) -> str:
    return arm.replace(", ", "_").replace(" ", "_")


def _kept(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _right(network: "TextClassifier", rows: "Sequence[Labelled]") -> list[bool]:
    predicted = network.predict([row.text for row in rows]).tolist()
    return [network.classes[i] == row.label for i, row in zip(predicted, rows, strict=True)]


def _probe(network: "TextClassifier", labelled: "Sequence[Labelled]", held: "Sequence[Labelled]") -> list[bool]:
    """Logistic regression on the last hidden state of the last token; C by a fifth of the labelled texts."""
    import torch

    from probatum.claims.baselines import best_on, linear_probe

    def features(rows: "Sequence[Labelled]") -> Any:
        found = []
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].text))
        with torch.no_grad():
            for at in range(0, len(rows), 32):
                tokens = network.batch([rows[i].text for i in order[at : at + 32]])
                body = network.model.model  # type: ignore[union-attr]
                found.append(body(tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state[:, -1])  # type: ignore[operator]
        back = torch.empty(len(rows), dtype=torch.long)
        back[torch.tensor(order)] = torch.arange(len(rows))
        return torch.cat(found)[back].numpy()

    x, labels = features(labelled), [row.label for row in labelled]
    fifth = slice(0, None, 5)
    keep = [i for i in range(len(labelled)) if i % 5]
    strength, _ = best_on(
        (1e-3, 1e-2, 1e-1),
        lambda strength: linear_probe(x[keep], [labels[i] for i in keep], strength),  # type: ignore[arg-type]
        lambda probe: probe.score(x[fifth], labels[fifth]),
    )
    answers = linear_probe(x, labels, strength).predict(features(held))  # type: ignore[arg-type]
    return [answer == row.label for answer, row in zip(answers, held, strict=True)]


if __name__ == "__main__":
    import sys

    train(sys.argv[1], 0, shipped(sys.argv[1]))
