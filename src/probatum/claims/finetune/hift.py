"""Claims of HiFT (arXiv 2401.15207)."""

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

from probatum.evidence import Run, above, as_good, claim, equal, exact

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from probatum.data.digits import ShiftedDigits

MODELS = ("MiniLM", "RoBERTa-base", "Gemma 270M", "LLaMA-7B")
BATCH, LENGTH = 16, 64


@claim(
    "hift", "memory", version=1, budgets={"quick": 1, "full": 1}, source="Abstract; table of the README (LLaMA-7B, AdamW, float32)",
    says="gradients and optimizer state on the device shrink to those of one group of layers",
    reported="LLaMA-7B, float32: parameters, gradients and states 100.4 -> 27.4 GB; 89 % fewer trainable parameters a step on average",
    holds_if=[
        *(exact(f"share of full, {kind}", f"hift, {model}", at_most=0.40) for model in MODELS for kind in ("AdamW", "SGDM")),
        equal("gradient and state", "measured", "predicted"),
        equal("gradient and state, full", "measured", "predicted"),
    ],
)  # fmt: skip
def memory(run: Run, seed: int) -> None:
    """Bytes of gradients and of optimizer state on the device, of one group of layers a step over all weights at once.

    Counted from shapes (models on the meta device, classification heads, float32) for AdamW and SGD with momentum, a layer a group, with
    the gradient and state of embedding tables kept to the distinct tokens of a batch of 16 x 64 (at most 1,024 rows). Beside it, without a
    condition, the default grouping, whose largest group in small models is the whole embedding. On MiniLM the prediction is compared with what a
    real run holds: a step a group on real texts, state on disk, AdamW; and with a step of AdamW on all weights.
    """
    import torch

    from probatum.finetune import HiFT, measure, predict

    for name in run.progress(MODELS[: 1 if run.smoke else None]):
        model, tables = _shape(name, run.smoke)
        groups = _groups(model)
        run.record(f"default grouping, {name}", {"largest group": max(group.numel for group in groups)})
        for kind, make in (("AdamW", _adamw), ("SGDM", _sgdm)):
            full = predict(model, make)
            rows = predict(model, make, groups=groups, rows=tables)
            run.record(f"hift, {name}", {f"share of full, {kind}": rows.tuning / full.tuning})
            run.record(
                f"default grouping, {name}", {f"share of full, {kind}": predict(model, make, groups=groups).tuning / full.tuning}
            )
            run.record(f"hift, {name}", {f"gradient and state, {kind}": rows.tuning}, unit="B")
            run.record(f"full, {name}", {f"gradient and state, {kind}": full.tuning}, unit="B")
    if run.smoke:
        return
    model, inputs, labels = _minilm(run)

    def loss() -> "Tensor":
        return torch.nn.functional.cross_entropy(model(**inputs).logits, labels)

    seen = {f"{label}.weight": _count(model.get_submodule(label), loss) for label in _tables(model)}
    optimizer = HiFT(model, _adamw, state="disk", sparse_embeddings=True)
    found = measure(model, optimizer, loss, steps=optimizer.cycle)
    run.record("measured", {"gradient and state": found.tuning}, unit="B")
    run.record("predicted", {"gradient and state": predict(model, _adamw, groups=optimizer.groups, rows=seen).tuning}, unit="B")
    run.note(f"Waits on disk: {found.off / 2**20:.1f} MiB; saved for backward at most {found.saved / 2**20:.1f} MiB, as without HiFT.")
    optimizer.release()
    run.record("predicted", {"gradient and state, full": predict(model, _adamw).tuning}, unit="B")
    run.record("measured", {"gradient and state, full": measure(model, _adamw(list(model.parameters())), loss).tuning}, unit="B")


@memory.figures
def bytes_by_model(run: Run) -> None:
    names = [name for name in MODELS if f"hift, {name}" in run.table.systems]
    with run.figure("bytes", "Gradient and AdamW state over those of all weights at once", size=(6.4, 3.2)) as figure:
        axes = figure.subplots()
        for at, (arm, colour) in enumerate((("default grouping", "#b5b5b5"), ("hift", "#0b6e4f"))):
            shares = [run.values(f"{arm}, {name}", "share of full, AdamW")[0] for name in names]
            label = "whole tables" if at == 0 else "rows of the batch"
            axes.barh([i + 0.4 * at for i in range(len(names))], shares, 0.38, color=colour, label=label)
        axes.axvline(0.4, color="#8a1c1c", linewidth=0.8)
        axes.set_yticks([i + 0.2 for i in range(len(names))], names)
        axes.set_xlabel("share of full fine-tuning")
        axes.legend(frameon=False)


ORDERS = {"hift": "down2up", "hift, top down": "up2down", "hift, random": "random"}
GRID = (1e-3, 3e-3, 1e-2, 3e-2)
STEPS, TURN = 200, 20
FRESH = "on fresh draws of pre-training, labels and test split"


@claim(
    "hift", "accuracy", version=2, first_seed=40, budgets={"quick": 5, "full": 10}, source="Abstract",
    says="one group of layers a step reaches the accuracy of training all of them at once",
    reported="comparable accuracy with 89.18 % fewer trainable parameters a step, on average over six models",
    holds_if=[
        as_good("accuracy", "hift", "adamw", kind="paired", within=0.02, on=FRESH, resolution=0.001),
        above("accuracy", "hift", "linear probe", kind="paired", on=FRESH, resolution=0.001),
    ],
)  # fmt: skip
def accuracy(run: Run, seed: int) -> None:
    """Digits turned by 75 degrees, 16 labelled images a class, 1,000 to test on, from a network trained upright in the run.

    An MLP 196-128-128-128-128-128-10 (six layers, a layer a group) whose head alone cannot follow the turn, so that what separates full
    from partial training shows. AdamW on all weights makes 200 steps of 64; HiFT 400, since a step of one layer costs about half (input
    gradients from it upward and one weight gradient), and, without a condition, 200. Beside them other orders; BAdam (20 steps a layer, its
    state dropped at each change); LoRA of rank 8 beside a trained head, and AdamW on the last hidden layer and the head (400 steps each);
    logistic regression on the last hidden layer (three values of C) and on the raw pixels. Every trained arm takes its
    learning rate from the same four values by 500 validation images; version 1 had three, and AdamW often chose the highest (these seeds are
    new). The texts of the paper would need a
    gradient step of a real encoder at each of some 8,000 steps of a seed, an hour on two cores, so that they are not here.
    """
    from probatum.data.digits import shifted_digits

    data = shifted_digits(75.0, 16, seed)
    start = _start(run, data)
    run.record("as it is", accuracy=_score(start, data.test_x, data.test_y))
    steps = 12 if run.smoke else STEPS
    arms: dict[str, tuple[Callable[..., nn.Module], int]] = {
        "adamw": (_fit_all, steps),
        **{name: (_rotating(order), 2 * steps) for name, order in ORDERS.items()},
        "hift, equal steps": (_rotating("down2up"), steps),
        "badam": (_fit_badam, 2 * steps),
        "lora": (_fit_lora, 2 * steps),
        "last two layers": (_fit_last, 2 * steps),
    }
    from probatum.claims.baselines import best_on

    for name, (fit, count) in run.progress(list(arms.items())[: 2 if run.smoke else None]):
        lr, net = best_on(
            GRID[: 1 if run.smoke else None],
            lambda lr, fit=fit, count=count: fit(run, start, data, lr, count),  # type: ignore[misc]
            lambda net: _score(net, data.validation_x, data.validation_y),
        )
        run.record(name, accuracy=_score(net, data.test_x, data.test_y), chosen=lr, steps=count)
    if run.smoke:  # neither peft nor scikit-learn, which take longer to load than all the rest
        return
    for name, probe in {"linear probe": _features(start), "raw pixels": lambda x: x}.items():
        run.record(name, _probe(probe, data))


@accuracy.figures
def by_arm(run: Run) -> None:
    arms = [a for a in run.table.systems if a != "as it is"]
    with run.figure("accuracy", "Test accuracy, digits turned by 75 degrees, k = 16; a dot a seed", size=(6.4, 3.6)) as figure:
        axes = figure.subplots()
        for i, arm in enumerate(arms):
            values = run.values(arm, "accuracy")
            axes.plot(values, [i] * len(values), ".", color="#b5b5b5")
            axes.plot(sum(values) / len(values), i, "|", color="#0b6e4f", markersize=16, markeredgewidth=3)
        axes.set_yticks(range(len(arms)), arms)
        axes.invert_yaxis()


# Memory.


def _adamw(parameters: "list[nn.Parameter]") -> "torch.optim.Optimizer":
    import torch

    return torch.optim.AdamW(parameters, lr=1e-5)


def _sgdm(parameters: "list[nn.Parameter]") -> "torch.optim.Optimizer":
    import torch

    return torch.optim.SGD(parameters, lr=1e-4, momentum=0.9)


def _shape(name: str, smoke: bool) -> "tuple[nn.Module, dict[str, int]]":
    """A classifier without values, and the rows a batch can look up in each table."""
    import torch

    if smoke:  # without transformers, which takes longer to load than all the rest
        with torch.device("meta"):
            blocks = torch.nn.ModuleList(torch.nn.Linear(64, 64) for _ in range(4))
            return torch.nn.ModuleDict({"table": torch.nn.Embedding(5000, 64), "blocks": blocks}), {"table.weight": BATCH * LENGTH}
    import transformers as t

    configs = {
        "MiniLM": lambda: t.BertConfig(
            hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
        ),
        "RoBERTa-base": lambda: t.RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1),
        "Gemma 270M": lambda: t.Gemma3TextConfig(
            vocab_size=262144, hidden_size=640, intermediate_size=2048, num_hidden_layers=18, num_attention_heads=4,
            num_key_value_heads=1, head_dim=256,
        ),
        "LLaMA-7B": lambda: t.LlamaConfig(),
    }  # fmt: skip
    kinds = {
        "MiniLM": "BertForSequenceClassification", "RoBERTa-base": "RobertaForSequenceClassification",
        "Gemma 270M": "Gemma3TextForSequenceClassification", "LLaMA-7B": "LlamaForSequenceClassification",
    }  # fmt: skip
    with torch.device("meta"):
        model = getattr(t, kinds[name])(configs[name]())
    rows = {f"{label}.weight": model.get_submodule(label).num_embeddings for label in _tables(model)}
    return model, {label: min(count, BATCH * LENGTH) for label, count in rows.items()}


def _tables(model: "nn.Module") -> list[str]:
    from torch import nn

    return [label for label, module in model.named_modules() if isinstance(module, nn.Embedding)]


def _groups(model: "nn.Module") -> list:
    from probatum.nn.groups import layer_groups

    return layer_groups(model)


def _minilm(run: Run) -> "tuple[nn.Module, dict[str, Tensor], Tensor]":
    """The encoder with a head of two classes, and a batch of 16 x 64 real tokens."""
    import torch

    from probatum.data.encoder import load_classifier
    from probatum.data.texts import sentiments

    model, tokenizer = load_classifier(2)
    rows = [row for row in sentiments() if row.label != "neutral" and len(row.text) > 100]
    chosen = torch.randperm(len(rows), generator=run.generator("texts"))[:BATCH].tolist()
    inputs = tokenizer([rows[i].text for i in chosen], padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
    return model, dict(inputs), torch.tensor([int(rows[i].label == "positive") for i in chosen])


def _count(module: "nn.Module", loss: "Callable[[], Tensor]") -> int:
    """Distinct rows that a forward looks up."""
    import torch

    found: list[int] = []
    handle = module.register_forward_hook(lambda module, inputs, output: found.append(len(inputs[0].unique())))
    with torch.no_grad():
        loss()
    handle.remove()
    return found[0]


# Accuracy.


def _start(run: Run, data: "ShiftedDigits") -> "nn.Sequential":
    """The network, trained on upright digits with Adam (lr 1e-3, 1,500 steps of 64)."""
    import torch

    widths = [196, 128, 128, 128, 128, 128, 10]
    generator = run.generator("pretrain")
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layer = torch.nn.Linear(a, b)
        with torch.no_grad():
            layer.weight.normal_(0, (2 / a) ** 0.5, generator=generator)
            layer.bias.zero_()
        layers += [layer, torch.nn.ReLU()]
    net = torch.nn.Sequential(*layers[:-1])
    x, y = torch.from_numpy(data.source_x), torch.from_numpy(data.source_y)
    if run.smoke:
        return net
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(1500):
        rows = torch.randint(len(x), (64,), generator=generator)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()
    return net


def _score(net: "nn.Module", x: object, y: object) -> float:
    import torch

    with torch.no_grad():
        return float((net(torch.from_numpy(x)).argmax(1) == torch.from_numpy(y)).double().mean())


def _descend(
    run: Run, net: "nn.Module", data: "ShiftedDigits", steps: int, optimizer_at: "Callable[[int], torch.optim.Optimizer]", lr: float,
    cycle: int = 1,
) -> "nn.Module":  # fmt: skip
    """Steps of 64 images; warm-up over a tenth, then a linear fall to 0, held still within `cycle` steps."""
    import torch

    from probatum.finetune.hift import by_cycle

    x, y, generator = torch.from_numpy(data.x), torch.from_numpy(data.y), run.generator("batches")
    warm = max(1, steps // 10)
    factor = by_cycle(lambda step: min((step + 1) / warm, (steps - step) / max(1, steps - warm)), cycle, steps)
    for step in range(steps):
        optimizer = optimizer_at(step)
        for group in optimizer.param_groups:
            group["lr"] = lr * factor(step)
        rows = torch.randint(len(x), (64,), generator=generator)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()
    return net


def _fit_all(run: Run, start: "nn.Module", data: "ShiftedDigits", lr: float, steps: int) -> "nn.Module":
    import copy

    import torch

    net = copy.deepcopy(start)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.0)
    return _descend(run, net, data, steps, lambda step: optimizer, lr)


def _rotating(order: str) -> "Callable[..., nn.Module]":
    def fit(run: Run, start: "nn.Module", data: "ShiftedDigits", lr: float, steps: int) -> "nn.Module":
        import copy

        import torch

        from probatum.finetune import HiFT

        net = copy.deepcopy(start)
        inner = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.0)
        optimizer = HiFT(net, inner, order=order, seed=run.seed)  # type: ignore[arg-type]
        _descend(run, net, data, steps, lambda step: optimizer, lr, optimizer.cycle)
        optimizer.release()
        return net

    return fit


def _fit_badam(run: Run, start: "nn.Module", data: "ShiftedDigits", lr: float, steps: int) -> "nn.Module":
    """Block coordinate descent: a layer for 50 steps in random order, each time with a new Adam (Luo et al. 2024)."""
    import copy

    import torch

    from probatum.nn.groups import layer_groups

    net = copy.deepcopy(start)
    groups = layer_groups(net)
    turns = -(-steps // (TURN * len(groups)))
    generator = run.generator("blocks")
    order = [i for _ in range(turns) for i in torch.randperm(len(groups), generator=generator).tolist()]
    made: dict[int, torch.optim.Optimizer] = {}

    def optimizer_at(step: int) -> "torch.optim.Optimizer":
        turn = step // TURN
        if turn not in made:
            made.clear()
            net.requires_grad_(False)
            for tensor in groups[order[turn]].tensors:
                tensor.requires_grad_(True)
            made[turn] = torch.optim.AdamW(groups[order[turn]].tensors, lr=lr, weight_decay=0.0)
        return made[turn]

    _descend(run, net, data, steps, optimizer_at, lr)
    return net


def _fit_lora(run: Run, start: "nn.Module", data: "ShiftedDigits", lr: float, steps: int) -> "nn.Module":
    import copy
    import warnings

    import torch
    from peft import LoraConfig, get_peft_model

    net = copy.deepcopy(start)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=()):
        warnings.simplefilter("ignore")
        torch.manual_seed(run.number("lora") % 2**32)
        targets = [str(i) for i in range(0, len(list(net)) - 1, 2)]  # type: ignore[call-overload]
        config = LoraConfig(r=8, lora_alpha=16, target_modules=targets, modules_to_save=[str(len(list(net)) - 1)])  # type: ignore[call-overload]
        tuned = get_peft_model(net, config)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    return _descend(run, tuned, data, steps, lambda step: optimizer, lr)


def _fit_last(run: Run, start: "nn.Module", data: "ShiftedDigits", lr: float, steps: int) -> "nn.Module":
    import copy

    import torch

    net = copy.deepcopy(start).requires_grad_(False)
    last = list(net)[-3:]  # type: ignore[call-overload]
    parameters = [p.requires_grad_(True) for layer in last for p in layer.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    return _descend(run, net, data, steps, lambda step: optimizer, lr)


def _features(start: "nn.Module") -> Callable:
    import torch

    def features(x: object) -> object:
        with torch.no_grad():
            return start[:-1](torch.from_numpy(x)).numpy()  # type: ignore[index]

    return features


def _probe(features: Callable, data: "ShiftedDigits") -> dict[str, float]:
    from probatum.claims.baselines import best_on, linear_probe

    strength, probe = best_on(
        [1.0, 10.0, 100.0],
        lambda strength: linear_probe(features(data.x), data.y, strength),
        lambda probe: probe.score(features(data.validation_x), data.validation_y),
    )
    return {"accuracy": float(probe.score(features(data.test_x), data.test_y)), "chosen": strength}
