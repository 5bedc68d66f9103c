"""Which layer for classifying series."""

from pathlib import Path
from typing import Any

from probatum.errors import ProbatumError
from probatum.evidence import Arm, ComparisonRun, Metric, comparison

ARMS = [
    Arm("GRU", "two layers of 40"),
    Arm("S4 (DPLR)", "HiPPO as it is, by Cauchy kernels"),
    Arm("S4D-LegS", "diagonal, started from LegS", "s4d"),
    Arm("S4D-Lin", "diagonal, evenly spaced", "s4d"),
    Arm("S4D-Inv", "diagonal, inverse spacing", "s4d"),
    Arm("S4-PTD", "diagonal, started from perturbed HiPPO", "ptd"),
]


def build(arm: str, inputs: int, classes: int, generator: Any) -> Any:
    """A classifier of (B, L, inputs): two blocks of width 32 and state 32, or a GRU of about as many parameters."""
    from torch import Tensor, nn

    from probatum.sequence import S4D, S4PTD, SequenceModel, SSMBlock
    from probatum.sequence.dplr import S4

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru, self.head = nn.GRU(inputs, 40, num_layers=2, batch_first=True), nn.Linear(40, classes)

        def forward(self, u: Tensor) -> Tensor:
            return self.head(self.gru(u)[0].mean(1))

    if arm == "GRU":
        return Recurrent()
    make = {
        "S4 (DPLR)": lambda: S4(32, 32, generator=generator),
        "S4D-LegS": lambda: S4D(32, 32, init="legs", generator=generator),
        "S4D-Lin": lambda: S4D(32, 32, init="lin", generator=generator),
        "S4D-Inv": lambda: S4D(32, 32, init="inv", generator=generator),
        "S4-PTD": lambda: S4PTD(32, 32, generator=generator),
    }[arm]
    return SequenceModel(inputs, classes, [SSMBlock(make(), dropout=0.1) for _ in range(2)])


def embedded() -> tuple[Any, Any]:
    """scikit-learn's digits read as 64 grey values: (1797, 64, 1) and labels."""
    import numpy as np
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return (images[..., None] / 8 - 1).astype(np.float32), labels


def read_series(path: str | Path) -> tuple[Any, Any]:
    """Series of one's own: a CSV with a row a series, its class in the column `label`, its values in the others, in order.

    Raises:
        ProbatumError: no such column, fewer than two classes, a cell that is not a number, series too short.
    """
    import csv

    import numpy as np

    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            names, rows = list(reader.fieldnames or []), list(reader)
    except (OSError, UnicodeDecodeError) as error:
        raise ProbatumError(f"--data {path}: {error}") from None
    if "label" not in names:
        raise ProbatumError(f"--data {path}: no column 'label'; it has {', '.join(names[:8]) or 'none'}")
    values = [name for name in names if name != "label"]
    if len(values) < 4:
        raise ProbatumError(f"--data {path}: a series needs 4 values or more, got {len(values)}")
    classes = sorted({row["label"] for row in rows})
    if len(classes) < 2 or len(rows) < 20:
        raise ProbatumError(f"--data {path}: needs two classes and 20 rows, got {len(classes)} and {len(rows)}")
    x = np.empty((len(rows), len(values), 1), np.float32)
    for i, row in enumerate(rows):
        try:
            x[i, :, 0] = [float(row[name]) for name in values]
        except (TypeError, ValueError):
            raise ProbatumError(f"--data {path}, row {i + 2}: a value that is not a number") from None
    x = (x - x.mean()) / (x.std() + 1e-9)
    return x, np.array([classes.index(row["label"]) for row in rows])


@comparison(
    "sequence", title="Which layer for classifying series",
    says="Accuracy on held-out series, time a training step and peak memory, at equal steps, on digits read pixel by pixel or your CSV.",
    arms=ARMS,
    metrics=[Metric("accuracy", "accuracy", "", "higher"), Metric("step", "time a step", "s", "lower"),
             Metric("peak", "peak memory", "B", "lower"), Metric("parameters", "parameters")],
    seeds={"smoke": 1, "quick": 3, "full": 5},
    takes={"data": "a CSV with a row a series: `label`, and the values in order"},
)  # fmt: skip
def sequence(run: ComparisonRun, arm: str) -> None:
    """The same split, steps (250; full 2,000) and batch (64) for all; each arm's rate is the paper's (GRU: half of it)."""
    import time

    import numpy as np
    import torch
    from torch import nn

    from probatum.evidence.process import peak_memory
    from probatum.sequence import param_groups

    series, labels = read_series(run.data) if run.data else embedded()
    order = np.random.default_rng(0).permutation(len(series))
    held, fit = order[: max(20, len(order) // 5)][:400], order[max(20, len(order) // 5) :]
    x, y = torch.tensor(series[fit]), torch.tensor(labels[fit])
    generator = run.generator("training")
    torch.manual_seed(run.number("start") % 2**31)
    model = build(arm, x.shape[2], int(labels.max()) + 1, generator)
    steps = {"smoke": 3, "quick": 250, "full": 2000}[run.budget]
    optimizer = torch.optim.AdamW(param_groups(model, 5e-3 if arm == "GRU" else 1e-2, 0.01))
    rates = [group["lr"] for group in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=steps, pct_start=0.1)
    taken = []
    for _ in run.progress(range(steps), label=arm):
        begun = time.perf_counter()
        batch = torch.randint(len(x), (min(64, len(x)),), generator=generator)
        loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        taken.append(time.perf_counter() - begun)
    model.eval()
    with torch.no_grad():
        right = model(torch.tensor(series[held])).argmax(-1) == torch.tensor(labels[held])
    run.record(arm, accuracy=right.float().tolist())
    run.record(arm, step=float(np.median(taken)), unit="s")
    run.record(arm, peak=peak_memory(), unit="B")
    run.record(arm, parameters=sum(p.numel() for p in model.parameters()))
