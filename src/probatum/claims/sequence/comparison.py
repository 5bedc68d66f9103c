"""Which layer for classifying series."""

from pathlib import Path
from typing import Any

from probatum.errors import ProbatumError
from probatum.evidence import Arm, ComparisonRun, Metric, comparison

RATES = (1e-2, 3e-2, 9e-2)
ARMS = [
    Arm("GRU", "two layers of 40"),
    Arm("S4 (DPLR)", "HiPPO as it is, by Cauchy kernels"),
    Arm("S4D-LegS", "diagonal, started from LegS", "s4d"),
    Arm("S4D-Lin", "diagonal, evenly spaced", "s4d"),
    Arm("S4D-Inv", "diagonal, inverse spacing", "s4d"),
    Arm("S4-PTD", "diagonal, started from perturbed HiPPO", "ptd"),
]


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
             Metric("peak", "peak memory", "B", "lower"), Metric("rate", "rate chosen"), Metric("parameters", "parameters")],
    seeds={"smoke": 1, "quick": 3, "full": 5},
    takes={"data": "a CSV with a row a series: `label`, and the values in order"},
)  # fmt: skip
def sequence(run: ComparisonRun, arm: str) -> None:
    """The same split, steps (200; full 2,000) and batch (64) for all; each arm's rate is the best of three on a sixth of the training series."""
    import numpy as np
    import torch

    from probatum.claims.sequence.training import train
    from probatum.evidence.process import peak_memory

    series, labels = read_series(run.data) if run.data else embedded()
    order = np.random.default_rng(0).permutation(len(series))
    held, fit = order[: max(20, len(order) // 5)][:400], order[max(20, len(order) // 5) :]
    x, y = torch.tensor(series), torch.tensor(labels)
    count = {"smoke": 3, "quick": 200, "full": 2000}[run.budget]
    validation, fit = fit[: len(fit) // 6], fit[len(fit) // 6 :]
    classes, seed = int(labels.max()) + 1, run.number("training") % 2**31
    trained = []
    for rate in run.progress(RATES, label=arm):
        model, taken = train(arm, x[fit], y[fit], classes, range(count), count, seed, rate)
        with torch.no_grad():
            trained.append((float((model(x[validation]).argmax(-1) == y[validation]).float().mean()), rate, model, taken))
    _, rate, model, taken = max(trained, key=lambda entry: entry[0])
    with torch.no_grad():
        run.record(arm, accuracy=(model(x[held]).argmax(-1) == y[held]).float().tolist())
    run.record(arm, rate=rate)
    run.record(arm, step=float(np.median(taken)), unit="s")
    run.record(arm, peak=peak_memory(), unit="B")
    run.record(arm, parameters=sum(p.numel() for p in model.parameters()))
