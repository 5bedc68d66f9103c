"""Claims of SensZOQ (arXiv 2406.02913)."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from probatum.evidence import Run, above, as_good, claim, exact, ratio

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from probatum.data.digits import ShiftedDigits

TASKS = ("polarity", "opinion", "three")
LAYERS = ("encoder.encoder.layer.*weight",)  # of the classifier; "*Norm*" left out: 36 matrices, 10.6 M weights
FRACTION = 1e-3
ON = "on these tasks and this encoder"
FRESH = "on fresh draws of pre-training, labels and test split"


@claim(
    "senszoq", "transfer", version=1, first_seed=10, budgets={"quick": 5, "full": 20}, source="Figure 2 (cumulative squared gradient)",
    says="a thousandth of the weights, chosen on generic text, holds most of what the task's own choice holds of its gradient",
    reported="0.1 % of the weights hold about half of the squared gradient of commonsense tasks, about 0.3 in mathematics",
    holds_if=[
        *(ratio(f"share, {task}", "generic text", "task", kind="paired", at_least=0.7, on=ON) for task in TASKS),
        *(ratio(f"share, {task}", "generic text", "random", kind="paired", at_least=20, on=ON) for task in TASKS),
    ],
)  # fmt: skip
def transfer(run: Run, seed: int) -> None:
    """Share of the squared gradient of one batch of a task (16 tweets, label sentences) in a thousandth of each of 36 encoder matrices.

    "generic text": squared gradients of 48 Bible verses (World English), summed over batches of 8; their loss is contrastive, the even words of
    a verse against its odd words, in place of a language-model loss, which this encoder has no head for. "task": squared gradient of
    another batch of 16 of the same task. Three tasks are made of the same crowd-labelled tweets: negative or positive, neutral or an
    opinion, all three. Beside them a random thousandth, the largest weights, verses ranked by the absolute summed gradient ("mean_grad", the
    published code), 16 verses only, tweets in place of verses, and the best possible: the batch's own gradient, best over all matrices. Full
    adds 200 verses. Smoke: the digit network.
    """
    from probatum.zeroth.masks import Indices
    from probatum.zeroth.senszoq import choose

    if run.smoke:
        _transfer_of_digits(run)
        return
    from probatum.claims.zeroth import tasks
    from probatum.data.text import verses
    from probatum.data.texts import sentiments

    counts = {"generic text": 48, "16 verses": 16, **({"200 verses": 200} if run.budget == "full" else {})}
    first = tasks.bench(TASKS[0])
    chosen: dict[str, Indices] = {}
    sources = {"verses": [v.text for v in verses() if len(v.text) > 60], "tweets": [row.text for row in sentiments() if len(row.text) > 60]}
    for name, texts in sources.items():
        order = _order(run, len(texts), name)
        some = [texts[i] for i in order[:200]]
        for arm, count in counts.items() if name == "verses" else (("tweets", 48),):
            chosen[arm] = choose(_generic(first, some[:count], "fisher"), FRACTION)
        if name == "verses":
            chosen["mean_grad"] = choose(_generic(first, some[:48], "mean_grad"), FRACTION)
    weights = {name: first.model.get_parameter(name) for name in chosen["generic text"].names}
    chosen["random"] = Indices.random(weights.items(), FRACTION, seed=run.number("random"))
    chosen["largest weights"] = choose({name: weight.detach().abs() for name, weight in weights.items()}, FRACTION)
    for task in run.progress(TASKS):
        bench = tasks.bench(task)
        tweets = bench.balanced(32, run.generator(f"batches, {task}"))
        squared, other = (_squared(bench.model, bench.loss(bench.batch(part))) for part in (tweets[:16], tweets[16:]))
        _record(run, f"share, {task}", squared, {**chosen, "task": choose(other, FRACTION), "best possible": choose(squared, FRACTION, "global")})


@transfer.figures
def shares(run: Run) -> None:
    arms = ["best possible", "task", "generic text", "mean_grad", "16 verses", "tweets", "largest weights", "random"]
    with run.figure("shares", "Share of a task's squared gradient in a thousandth of the weights; a dot a batch", size=(6.4, 3.6)) as figure:
        axes = figure.subplots()
        for t, task in enumerate(TASKS):
            for a, arm in enumerate(arms):
                values = run.values(arm, f"share, {task}")
                axes.plot(values, [a + 0.2 * (t - 1)] * len(values), ".", color=("#0b6e4f", "#c1554d", "#4d6ec1")[t], label=None if a else task)
        axes.set_yticks(range(len(arms)), arms)
        axes.set_xscale("log")
        axes.invert_yaxis()
        axes.legend()


@claim(
    "senszoq", "memory", version=1, first_seed=10, budgets={"quick": 5, "full": 10}, source="Section 4 (7B in less than 8 GiB)",
    says="4 bits and a thousandth in full precision take a seventh of float32, and the base answers as well before it is tuned",
    reported="Llama2-7B tuned in less than 8 GiB; the thousandth of weights in 16 bits",
    holds_if=[
        exact("of float32", "4 bits", at_most=0.2),
        exact("of float32", "4 bits, tables too", at_most=0.2),
        as_good("accuracy", "4 bits", "float32", kind="items", within=0.02),
    ],
)  # fmt: skip
def memory(run: Run, seed: int) -> None:
    """Bytes of weights, scales, positions, tuned values and the copy that a step keeps of them, over the same weights in float32.

    "4 bits": the 36 matrices of all-MiniLM-L6-v2 (10.6 M weights), a random thousandth kept out; "4 bits, tables too": with the embeddings
    (22.6 M of its 22.7 M weights). Bytes are those of the tensors that the forward reads; there is no other copy of a weight. Accuracy: a
    logistic regression on the frozen output of each base, fitted to 200 tweets of the seed (of 400, half negative, half positive), on 600 others that are
    the same in every seed (C = 1). In smoke the network is the digit network, and its table none.
    """
    if run.smoke:
        _memory_of_digits(run)
        return
    import torch
    from safetensors.torch import load_file

    from probatum.claims.baselines import linear_probe
    from probatum.claims.zeroth import tasks

    bench = tasks.bench("polarity", length=40)
    texts = bench.balanced(1000, torch.Generator().manual_seed(0))
    labels = [label for _, label in texts]
    pool = _order(run, 400, "labelled")[:200]
    for arm, tables in (("float32", False), ("4 bits", False), ("4 bits, tables too", True)):
        found = load_file(run.artifact("features.safetensors", _features, arm=arm, tables=tables))
        x = found["features"].numpy()
        probe = linear_probe(x[pool], [labels[i] for i in pool], 1.0)  # type: ignore[arg-type]
        run.record(arm, accuracy=[float(right) for right in probe.predict(x[400:]) == labels[400:]])
        run.record(arm, {"of float32": float(found["bytes"][0] / found["bytes"][1])})
        run.record(arm, {"weights": float(found["bytes"][0])}, unit="B")


@claim(
    "senszoq", "tuning", version=2, first_seed=40, budgets={"quick": 5, "full": 10}, source="Figure 3, Table 1",
    says="tuning the weights chosen by the pre-training loss beats random ones and is no worse than tuning all",
    reported="Llama2-7B: sensitive 0.1 % over 4 bits above full zeroth-order tuning and in-context learning (figures in its tables)",
    holds_if=[
        above("accuracy", "pre-training loss", "random", kind="paired", on=FRESH, resolution=0.001),
        as_good("accuracy", "pre-training loss", "all weights", kind="paired", within=0.02, on=FRESH, resolution=0.001),
    ],
)  # fmt: skip
def tuning(run: Run, seed: int) -> None:
    """Digits turned by 40 degrees, 64 labelled images a class, 1,000 to test on; the network (43,018 weights) knows them upright.

    1,000 steps of 64 images (2,000 queries of a batch; full 20,000 steps), lr falling linearly to 0. Four arms tune a hundredth of each matrix
    (425 weights: a thousandth of so small a network is 41) over a base in 4 bits: chosen by the squared gradients of the pre-training loss on 200
    upright images; by the task's own labelled images; by size; at random. Beside them MeZO on all weights and on the last layer, in float32.
    Each arm takes the best of four learning rates by 500 validation images, a factor of 2 apart; eps 1e-2 for few weights, 1e-3 for MeZO.
    Version 1 had three, and for the weights chosen by gradients the lowest was often the best: all grids now reach one step lower, and these
    seeds are new.
    """
    import copy

    from probatum.claims.baselines import best_on, pretrain
    from probatum.data.digits import shifted_digits
    from probatum.zeroth.masks import Indices
    from probatum.zeroth.senszoq import choose, split

    data = shifted_digits(40.0, 64, seed)
    start = pretrain(data.source_x, data.source_y, run.generator("pretrain"), 0 if run.smoke else 1500)
    steps = {"smoke": 20, "quick": 1000, "full": 20_000}[run.budget]
    named = [(name, p) for name, p in start.named_parameters() if p.ndim > 1]
    made: dict[str, Callable[[], Indices]] = {
        "pre-training loss": lambda: choose(_scores_of_digits(start, data.source_x[:200], data.source_y[:200]), 0.01),
        "task": lambda: choose(_scores_of_digits(start, data.x[:200], data.y[:200]), 0.01),
        "largest weights": lambda: choose({name: p.detach().abs() for name, p in named}, 0.01),
        "random": lambda: Indices.random(named, 0.01, seed=run.number("random")),
    }
    arms = [*made, "all weights", "last layer"]
    run.record("as it is", accuracy=_score(start, data.test_x, data.test_y))
    for arm in arms[:1] + arms[4:5] if run.smoke else arms:

        def fit(lr: float, arm: str = arm) -> "nn.Module":
            net = copy.deepcopy(start)
            if arm in made:
                split(net, made[arm]())
            return _trained(run, net, data, arm, lr, steps)

        lr, net = best_on(RATES[arm][: 1 if run.smoke else None], fit, lambda net: _score(net, data.validation_x, data.validation_y))
        tuned = [p for name, p in net.named_parameters() if p.requires_grad and (arm != "last layer" or name.startswith("4."))]
        run.record(arm, accuracy=_score(net, data.test_x, data.test_y), chosen=lr, tuned=sum(p.numel() for p in tuned))


RATES = {
    "pre-training loss": (2.5e-2, 5e-2, 1e-1, 2e-1), "task": (2.5e-2, 5e-2, 1e-1, 2e-1), "largest weights": (7.5e-2, 1.5e-1, 3e-1, 6e-1),
    "random": (7.5e-2, 1.5e-1, 3e-1, 6e-1), "all weights": (5e-4, 1e-3, 2e-3, 4e-3), "last layer": (2.5e-3, 5e-3, 1e-2, 2e-2),
}  # fmt: skip


@tuning.figures
def by_seed(run: Run) -> None:
    arms = [arm for arm in ("as it is", *RATES) if run.values(arm, "accuracy")]
    with run.figure("accuracy", "Test accuracy, digits turned by 40 degrees, k = 64; a line a seed", size=(6.4, 3.6)) as figure:
        axes = figure.subplots()
        for seed in run.table.seeds:
            axes.plot([run.table.of(arm, "accuracy")[seed].value for arm in arms], range(len(arms)), "o-", color="#b5b5b5", linewidth=0.8)
        axes.set_yticks(range(len(arms)), arms)
        axes.invert_yaxis()


def _order(run: Run, count: int, purpose: str) -> list[int]:
    """A permutation of this seed."""
    import torch

    return torch.randperm(count, generator=run.generator(purpose)).tolist()


def _generic(bench: Any, texts: list[str], score: str) -> "dict[str, Tensor]":
    """Scores of the encoder's matrices on texts: a contrastive loss of the even against the odd words of each, in batches of 8."""
    import torch

    from probatum.data.encoder import mean_pool
    from probatum.zeroth.senszoq import sensitivity

    def loss(model: Any, some: list[str]) -> "Tensor":
        halves = []
        for k in (0, 1):
            tokens = bench.tokenizer(
                [" ".join(text.split()[k::2]) for text in some], padding=True, truncation=True, max_length=32, return_tensors="pt"
            )
            halves.append(torch.nn.functional.normalize(mean_pool(model.encoder(**tokens).last_hidden_state, tokens["attention_mask"]), dim=-1))
        return torch.nn.functional.cross_entropy(20 * halves[0] @ halves[1].t(), torch.arange(len(some)))

    batches = [texts[at : at + 8] for at in range(0, len(texts), 8)]
    return sensitivity(bench.model, batches, loss, score=score, include=LAYERS, exclude=("*Norm*",))  # type: ignore[arg-type]


def _squared(model: "nn.Module", loss: "Callable[[], Tensor]") -> "dict[str, Tensor]":
    """Squared gradient of a closure's loss by the encoder's matrices."""
    from probatum.zeroth.senszoq import sensitivity

    return sensitivity(model, [None], lambda _, __: loss(), include=LAYERS, exclude=("*Norm*",))


def _record(run: Run, metric: str, squared: "dict[str, Tensor]", chosen: dict[str, Any]) -> None:
    total = sum(float(score.double().sum()) for score in squared.values())
    for arm, indices in chosen.items():
        kept = sum(float(squared[n].double().flatten()[part].sum()) for n, part in zip(indices.names, indices.parts, strict=True))
        run.record(arm, {metric: kept / total})


def _features(path: "Path", arm: str, tables: bool) -> None:
    """Features of the 1,000 tweets by one base, and its bytes beside those of float32."""
    import torch
    from safetensors.torch import save_file

    from probatum.claims.zeroth import tasks
    from probatum.zeroth.masks import Indices
    from probatum.zeroth.senszoq import split

    bench = tasks.bench("polarity", length=40)
    texts = [text for text, _ in bench.balanced(1000, torch.Generator().manual_seed(0))]
    named = [(n, p) for n, p in bench.model.named_parameters() if any(part in n for part in (".layer.",)) and p.ndim > 1]
    before = sum(p.numel() * 4 for _, p in named)
    if tables:
        before = sum(p.numel() * 4 for p in bench.model.parameters())
    held = before
    if arm != "float32":
        split(bench.model, Indices.random(named, FRACTION, seed=0), bits=4, embeddings=4 if tables else None)
        held = sum(_bytes(bench.model, tables))
    save_file({"features": bench.features(texts), "bytes": torch.tensor([held, before], dtype=torch.float64)}, path)


def _bytes(model: "nn.Module", everything: bool) -> "Iterator[int]":
    """Of the split layers (or of all tensors), with the second copy of the tuned values that a step keeps."""
    from probatum.zeroth.senszoq import SensitiveLinear

    for module in model.modules():
        if isinstance(module, SensitiveLinear):
            yield module.positions.numel() * 4 + 2 * module.values.numel() * 4
            yield sum(b.numel() * b.element_size() for b in module.base.buffers())
    if everything:
        split = {id(t) for m in model.modules() if isinstance(m, SensitiveLinear) for t in (*m.base.buffers(), m.positions, m.values)}
        yield sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()) if id(t) not in split)


def _score(net: "nn.Module", x: Any, y: Any) -> float:
    import torch

    with torch.no_grad():
        return float((net(torch.from_numpy(x)).argmax(1) == torch.from_numpy(y)).double().mean())


def _scores_of_digits(net: "nn.Module", x: Any, y: Any) -> "dict[str, Tensor]":
    """Per-image squared gradients."""
    import torch

    from probatum.zeroth.senszoq import sensitivity

    images, labels = torch.from_numpy(x), torch.from_numpy(y)
    return sensitivity(net, [None], lambda model, _: torch.nn.functional.cross_entropy(model(images), labels, reduction="none"))


def _trained(run: Run, net: "nn.Module", data: "ShiftedDigits", arm: str, lr: float, steps: int) -> "nn.Module":
    import warnings

    import torch

    from probatum.zeroth import MeZO, SensZOQ

    x, y, generator = torch.from_numpy(data.x), torch.from_numpy(data.y), run.generator("batches")
    options: dict[str, Any] = {"seed": run.number("z")}
    if arm in ("all weights", "last layer"):
        include = ("*",) if arm == "all weights" else ("4.*",)
        optimizer: Any = MeZO(net.named_parameters(), lr, include=include, **options)
    else:
        optimizer = SensZOQ(net.named_parameters(), lr, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for step in run.progress(range(steps), label=f"{arm}, lr {lr:g}"):
            rows = torch.randint(len(x), (64,), generator=generator)
            optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
            optimizer.step(lambda rows=rows: torch.nn.functional.cross_entropy(net(x[rows]), y[rows]))
    return net


def _transfer_of_digits(run: Run) -> None:
    """Smoke: the same measurement on the untrained digit network."""
    from probatum.claims.baselines import pretrain
    from probatum.data.digits import shifted_digits
    from probatum.zeroth.masks import Indices
    from probatum.zeroth.senszoq import choose

    data = shifted_digits(40.0, 4, run.seed)
    net = pretrain(data.source_x, data.source_y, run.generator("pretrain"), 0)
    squared = _scores_of_digits(net, data.x[:8], data.y[:8])
    named = [(name, net.get_parameter(name)) for name in squared]
    chosen = {
        "generic text": choose(_scores_of_digits(net, data.source_x[:8], data.source_y[:8]), 0.01),
        "random": Indices.random(named, 0.01, seed=run.number("random")),
        "best possible": choose(squared, 0.01, "global"),
    }
    _record(run, f"share, {TASKS[0]}", squared, chosen)


def _memory_of_digits(run: Run) -> None:
    """Smoke: the bytes of the digit network, and whether its packed form answers alike."""
    from probatum.claims.baselines import pretrain
    from probatum.data.digits import shifted_digits
    from probatum.zeroth.masks import Indices
    from probatum.zeroth.senszoq import split

    data = shifted_digits(40.0, 4, run.seed)
    net = pretrain(data.source_x, data.source_y, run.generator("pretrain"), 0)
    run.record("float32", accuracy=_score(net, data.test_x, data.test_y))
    named = [(name, p) for name, p in net.named_parameters() if p.ndim > 1]
    split(net, Indices.random(named, 0.01, seed=0))
    run.record("4 bits", {"of float32": sum(_bytes(net, False)) / sum(p.numel() * 4 for _, p in named)})
    run.record("4 bits", accuracy=_score(net, data.test_x, data.test_y))
