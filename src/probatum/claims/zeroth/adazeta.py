"""Claims of AdaZeta (arXiv 2406.18060)."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from probatum.evidence import Run, above, claim

if TYPE_CHECKING:
    from torch import Tensor, nn

    from probatum.data.digits import ShiftedDigits
    from probatum.zeroth import AdaZeta, QuerySchedule

BATCH = 16
QUARTERS = [10 ** (-k / 4) for k in range(4, 23)]  # 0.1 down to 3e-6
FRESH = "on fresh draws of pre-training, labels and directions"


@claim(
    "adazeta", "stability", version=1, first_seed=40, budgets={"quick": 5, "full": 10}, source="Figure 1",
    says="averaging more directions a step is stable at learning rates where a single direction diverges",
    reported="Figure 1 (Llama-2-7B, lr 1e-4): MeZO-LoRA diverges on SST-2 after 6,000 steps, AdaZeta does not",
    holds_if=[
        above(
            "log10 of the largest stable rate", f"{kind}, Q = 10", f"{kind}, Q = 1", kind="paired", margin=math.log10(3), on=FRESH,
            resolution=1 / 32,
        )
        for kind in ("lora", "tt")
    ],
)  # fmt: skip
def stability(run: Run, seed: int) -> None:
    """The largest learning rate that survives, with 1 and with 10 directions a step, at the same 500 queries of batch 16 (3,000 in full).

    An MLP 196-128-128-10 trained on upright digits meets digits turned by 90 degrees (640 labelled), where its loss is large and curved.
    LoRA factors of rank 8 or tensor-train adapters of rank 5 are tuned by two-point queries (eps 1e-3, Gaussian, no clip). The rate is sought from
    0.1 down in quarter decades, then by three halvings between the first stable one and the last that was not; a rate is stable if no batch leaves 10 times the starting loss and the loss of all labelled images ends at
    most a tenth above the start. On a quadratic the edge is 2 Q / (lambda (Q + d + 1)) in mean square, so that ten directions should lift it by up to a
    decade; the bound is a factor of 3. In full, without a condition, a number of directions
    that grows from 1 to 15 stands beside.
    """
    from probatum.zeroth import QuerySchedule

    data, start = _start(run, 90.0, 64)
    queries = {"smoke": 60, "quick": 500, "full": 3_000}[run.budget]
    schedules = {"Q = 1": (QuerySchedule.constant(1), 1), "Q = 10": (QuerySchedule.constant(10), 1)}
    if run.budget == "full":
        schedules["Q 1 to 15"] = _growing(queries)
    rates = QUARTERS[:: 6 if run.smoke else 1]
    for kind in run.progress(["lora", "tt"]):
        for name, (schedule, per) in schedules.items():

            def holds(lr: float, kind: str = kind, schedule: "QuerySchedule" = schedule, per: int = per) -> bool:
                return _run(run, start, data, kind, lr, schedule, per, queries, clip=None).stable

            stable = next((lr for lr in rates if holds(lr)), rates[-1] / 2)
            broken = stable * 10**0.25
            for _ in range(0 if run.smoke else 3):
                middle = math.sqrt(stable * broken)
                stable, broken = (middle, broken) if holds(middle) else (stable, middle)
            run.record(f"{kind}, {name}", {"log10 of the largest stable rate": math.log10(stable), "largest stable rate": stable})


@stability.figures
def rates(run: Run) -> None:
    arms = run.table.systems
    with run.figure("rates", "Largest stable learning rate; a dot a seed", size=(6.4, 3.0)) as figure:
        axes = figure.subplots()
        for i, arm in enumerate(arms):
            values = run.values(arm, "largest stable rate")
            axes.semilogx(values, [i] * len(values), "o", color="#0b6e4f", alpha=0.4)
        axes.set_yticks(range(len(arms)), arms)
        axes.invert_yaxis()


LRS = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)


@claim(
    "adazeta", "accuracy", version=3, first_seed=80, budgets={"quick": 5, "full": 10}, source="Figure 1",
    says="tensor-train adapters with a growing number of directions learn as much as MeZO on LoRA from as many forward passes",
    reported="Llama-2-7B, equal steps: SST-2 loss about .20 against MeZO-LoRA's .23 (batch 64) and divergence (batch 16)",
    holds_if=[above("accuracy", "adazeta", "mezo, lora", kind="paired", on=FRESH, resolution=0.001)],
)  # fmt: skip
def accuracy(run: Run, seed: int) -> None:
    """Digits turned by 40 degrees, 16 labelled a class, 1,000 to test on; every zeroth-order arm asks 1,000 queries of
    batch 16 (4,000 in full).

    The MLP of `stability`, where it starts above chance. Arms: MeZO on LoRA of rank 8 with one direction a step and with the growing
    schedule; tensor-train adapters of rank 5 with one direction and with the schedule (AdaZeta); the head alone by MeZO; logistic
    regression on the last hidden layer; AdamW on all weights (400 steps of 64), the ceiling. Each zeroth-order arm takes its
    learning rate from five values by 500 validation images, AdamW and the probe (C) from three; p is clipped alike. Versions 1 and 2 had three
    and four, of which AdaZeta always chose the highest; these seeds are new. The paper compares at equal steps and equal rate: MeZO on LoRA
    with AdaZeta's rate and number of steps is recorded with the queries it took. The claim is about language models of billions of
    weights, where the schedule may matter more than here; a sentence encoder leaves about 100 queries an arm in this time.
    """
    from probatum.claims.baselines import best_on, linear_probe
    from probatum.zeroth import QuerySchedule

    data, start = _start(run, 40.0, 16)
    queries = {"smoke": 60, "quick": 1_000, "full": 4_000}[run.budget]
    one, growing = (QuerySchedule.constant(1), 1), _growing(queries)
    arms = {"mezo, lora": ("lora", one), "mezo, lora, schedule": ("lora", growing), "tt, Q = 1": ("tt", one), "adazeta": ("tt", growing)}
    run.record("as it is", accuracy=_accuracy(lambda x: start(x), data.test_x, data.test_y))
    for name, (kind, (schedule, per)) in run.progress(list(arms.items())):
        lr, best = best_on(
            LRS[-1:] if run.smoke else LRS,
            lambda lr, kind=kind, schedule=schedule, per=per: _run(run, start, data, kind, lr, schedule, per, queries),  # type: ignore[misc]
            lambda result: _accuracy(result.forward, data.validation_x, data.validation_y),
        )
        run.record(
            name, accuracy=_accuracy(best.forward, data.test_x, data.test_y), chosen=lr, queries=best.queries, tuned=best.tuned, steps=best.steps,
        )  # fmt: skip
    equal = _run(run, start, data, "lora", lr, *one, queries=best.steps)
    run.record("mezo, lora, equal steps", accuracy=_accuracy(equal.forward, data.test_x, data.test_y), queries=equal.queries, steps=equal.steps)
    if run.smoke:
        return
    _, head = best_on(
        (1e-3, 3e-3, 1e-2, 3e-2),
        lambda lr: _run(run, start, data, "head", lr, *one, queries=queries),
        lambda result: _accuracy(result.forward, data.validation_x, data.validation_y),
    )
    run.record("mezo, head", accuracy=_accuracy(head.forward, data.test_x, data.test_y), queries=head.queries)
    features = _features(start)
    strength, probe = best_on(
        [1.0, 10.0, 100.0],
        lambda strength: linear_probe(features(data.x), data.y, strength),
        lambda probe: probe.score(features(data.validation_x), data.validation_y),
    )
    run.record("linear probe", accuracy=float(probe.score(features(data.test_x), data.test_y)), chosen=strength)
    lr, net = best_on(
        (1e-3, 3e-3, 1e-2),
        lambda lr: _adamw(run, start, data, lr),
        lambda net: _accuracy(net, data.validation_x, data.validation_y),
    )
    run.record("adamw, all weights", accuracy=_accuracy(net, data.test_x, data.test_y), chosen=lr)


@accuracy.figures
def by_arm(run: Run) -> None:
    arms = run.table.systems
    with run.figure("accuracy", "Test accuracy, digits turned by 40 degrees; a dot a seed", size=(6.4, 3.6)) as figure:
        axes = figure.subplots()
        for i, arm in enumerate(arms):
            values = run.values(arm, "accuracy")
            axes.plot(values, [i] * len(values), ".", color="#b5b5b5")
            axes.plot(sum(values) / len(values), i, "|", color="#0b6e4f", markersize=16, markeredgewidth=3)
        axes.set_yticks(range(len(arms)), arms)
        axes.invert_yaxis()


class _Result:
    """What a zeroth-order run came to."""

    def __init__(self, forward: "Callable[[Tensor], Tensor]", optimizer: "AdaZeta", stable: bool, tuned: int) -> None:
        self.forward, self.stable, self.tuned = forward, stable, tuned
        self.queries, self.steps = optimizer.asked, optimizer.steps


def _growing(queries: int) -> "tuple[QuerySchedule, int]":
    """1 to 15 over as many steps as spend the queries (8 directions a step in the mean), and steps an epoch."""
    from probatum.zeroth import QuerySchedule

    epochs = 15 if queries > 200 else 3
    schedule = QuerySchedule.linear(1, 15, epochs)
    return schedule, max(1, round(queries / schedule.total(epochs)))


def _run(
    run: Run, start: "nn.Sequential", data: "ShiftedDigits", kind: str, lr: float, schedule: "QuerySchedule", per: int, queries: int,
    clip: float | None = 2.0,
) -> _Result:  # fmt: skip
    """Tune one kind of few weights until the queries are spent, or the loss has grown tenfold."""
    import warnings

    import torch
    from torch.nn.functional import cross_entropy

    from probatum.errors import ProbatumError
    from probatum.zeroth import AdaZeta

    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    named, forward = {"lora": _lora, "tt": _trains, "head": _head}[kind](run, start)
    optimizer = AdaZeta(named, lr=lr, eps=1e-3, queries=schedule, steps_per_epoch=per, seed=run.number("z"), clip=clip)
    generator, asked, loss = run.generator("batches"), 0, 0.0
    with torch.no_grad():
        first = float(cross_entropy(forward(x), y))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        while asked + len(optimizer.queries(optimizer.steps)) <= queries:
            asked += len(optimizer.queries(optimizer.steps))
            rows = torch.randint(len(x), (BATCH,), generator=generator)
            inputs, labels = x[rows], y[rows]
            try:
                loss = float(optimizer.step(lambda x=inputs, y=labels: cross_entropy(forward(x), y)))
            except ProbatumError:  # twenty losses in a row that are not finite
                loss = math.inf
            if not loss <= 10 * max(first, 1.0):
                loss = math.inf
                break
    with torch.no_grad():
        last = float(cross_entropy(forward(x), y))
    return _Result(forward, optimizer, math.isfinite(loss) and last <= 1.1 * first, sum(t.numel() for _, t in named))


Tuned = tuple[list[tuple[str, "nn.Parameter"]], Callable[["Tensor"], "Tensor"]]


def _lora(run: Run, start: "nn.Sequential") -> Tuned:
    """Rank 8, alpha 16 on all three layers, drawn as peft draws them; written out, since calling modules costs as much as the arithmetic."""
    import torch
    from torch.nn.functional import linear, relu

    generator, named, pairs = run.generator("adapters"), [], []  # type: ignore[var-annotated]
    for i, layer in enumerate(list(start)[::2]):
        assert isinstance(layer, torch.nn.Linear)
        bound = 1 / math.sqrt(layer.in_features)
        down = torch.nn.Parameter(torch.empty(8, layer.in_features).uniform_(-bound, bound, generator=generator))
        up = torch.nn.Parameter(torch.zeros(layer.out_features, 8))
        named += [(f"{i}.down", down), (f"{i}.up", up)]
        pairs.append((layer.weight.detach(), layer.bias.detach(), down, up))

    def forward(x: "Tensor") -> "Tensor":
        for i, (weight, bias, down, up) in enumerate(pairs):
            x = linear(x, weight, bias) + 2 * linear(linear(x, down), up)
            x = relu(x) if i < 2 else x
        return x

    return named, forward


def _trains(run: Run, start: "nn.Sequential") -> Tuned:
    """Adapters of bottleneck 64 and rank 5 after the first and the second layer."""
    import copy

    from probatum.zeroth import add_adapters

    net = copy.deepcopy(start)
    add_adapters(net, after=["0", "2"], generator=run.generator("adapters"), contraction="halves")
    return [(name, p) for name, p in net.named_parameters() if p.requires_grad], net


def _head(run: Run, start: "nn.Sequential") -> Tuned:
    import copy

    net = copy.deepcopy(start)
    return [(f"4.{name}", p) for name, p in net[4].named_parameters()], net


def _adamw(run: Run, start: "nn.Sequential", data: "ShiftedDigits", lr: float) -> "nn.Sequential":
    import copy

    import torch

    from probatum.claims.baselines import adamw

    net, generator = copy.deepcopy(start), run.generator("adamw")
    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)

    def loss() -> "Tensor":
        rows = torch.randint(len(x), (64,), generator=generator)
        return torch.nn.functional.cross_entropy(net(x[rows]), y[rows])

    adamw(list(net.parameters()), loss, 400, lr)
    return net


def _start(run: Run, angle: float, k: int) -> "tuple[ShiftedDigits, nn.Sequential]":
    from probatum.claims.baselines import pretrain
    from probatum.data.digits import shifted_digits

    data = shifted_digits(angle, k, run.seed)
    return data, pretrain(data.source_x, data.source_y, run.generator("pretrain"), 0 if run.smoke else 1500)


def _features(start: "nn.Sequential") -> Callable[[Any], Any]:
    import torch

    def features(x: Any) -> Any:
        with torch.no_grad():
            return start[:4](torch.from_numpy(x)).numpy()

    return features


def _accuracy(forward: "Callable[[Tensor], Tensor]", x: Any, y: Any) -> float:
    import torch

    with torch.no_grad():
        return float((forward(torch.from_numpy(x)).argmax(1) == torch.from_numpy(y)).double().mean())
