"""What runs in a worker: one seed of a claim, or its figures. Nothing here writes a record; it returns what the engine stores."""

import os
import re
from base64 import b64encode
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any

from probatum.catalog import find_paper
from probatum.errors import MissingExtra, NotHere
from probatum.evidence.declaration import Claim
from probatum.evidence.environment import environment
from probatum.evidence.measurements import Measurement, Table
from probatum.evidence.run import Picture, Run

__all__ = ["draw_figures", "measure_seed"]


def _claim(module: str, name: str) -> Claim:
    return next(value for value in vars(import_module(module)).values() if isinstance(value, Claim) and value.name == name)


def _pictures(pictures: list[Picture]) -> list[dict[str, str]]:
    return [{"name": p.name, "caption": p.caption, "png": b64encode(p.png).decode()} for p in pictures]


def prepare(device: str) -> None:
    """Make the device usable, or say why it is not."""
    if device == "cpu":
        return
    try:
        import torch
    except ImportError:
        raise MissingExtra(f"--device {device} needs torch, which is not installed") from None
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise NotHere(f"--device {device} cannot be used here: {str(error).splitlines()[0]}; --device cpu can") from None


def missing_module(error: ImportError, extra: str | None) -> MissingExtra:
    """What to tell of an import that failed."""
    name = (error.name or str(error)).partition(".")[0]
    how = f"pip install 'probatum[{extra}]'" if extra else f"pip install {re.sub('_', '-', name)}"
    return MissingExtra(f"needs {name}, which is not installed: {how}")


def measure_seed(
    module: str, name: str, budget: str, seed: int, device: str, code: str, artifacts: str | None
) -> dict[str, Any]:
    """Run one seed of the claim `name` that `module` declares; the document of its measurements."""
    prepare(device)
    threads = int(os.environ.get("PROBATUM_THREADS", "1"))
    claim = _claim(module, name)
    run = Run(claim.paper, name, budget, seed, device, threads, code, Path(artifacts) if artifacts else None)
    begun = perf_counter()
    try:
        claim.measure(run, seed)
    except ImportError as error:
        raise missing_module(error, find_paper(claim.paper).extra) from error
    return {
        "seed": seed,
        "seconds": perf_counter() - begun,
        "environment": environment(threads, device),
        "measurements": [row.to_json() for row in run.table],
        "pictures": _pictures(run.pictures),
        "notes": run.notes,
    }


def draw_figures(module: str, name: str, budget: str, device: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Draw a claim's figures from everything measured."""
    table = Table(map(Measurement.from_json, rows))
    claim = _claim(module, name)
    run = Run(claim.paper, name, budget, table.seeds[0], device, table=table)
    for draw in claim.drawings:
        draw(run)
    return {"pictures": _pictures(run.pictures), "notes": run.notes}
