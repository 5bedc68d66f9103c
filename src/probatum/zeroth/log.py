"""A run as its seed and two numbers a step: enough to rebuild the trained weights from the starting ones, bit for bit.

8 bytes a step and direction (4 where the learning rate is constant) and a head: seed, kind of noise, eps, the tensors and a checksum of
what they held at the start. Kept as safetensors, so opening one runs no code.
"""

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from probatum.errors import ProbatumError
from probatum.nn.fingerprint import Fingerprint
from probatum.zeroth.masks import MaskRule, rule_of
from probatum.zeroth.noise import BLOCK, Noise
from probatum.zeroth.rows import UsedRows
from probatum.zeroth.rule import Rule
from probatum.zeroth.weights import Weights

__all__ = ["Log", "apply_updates", "merge", "replay"]

FORMATS = (1, 2)  # 2: with masks or a rule, which a reader of 1 would not heed


@dataclass
class Log:
    """A run.

    Attributes:
        head: "format", "seeds" and "queries" (one of each a direction of a step), "noise", "block", "eps", "exact", "weight_decay" (a
            number a tensor), "groups" (the group of each tensor), "tables" (tensors moved row by row), "device", "torch", "tensors"
            (their fingerprint at the start), and where there are such "masks" and "rule".
        slopes: a row a step, a float32 a direction: the slope that was applied, after clipping; nan: the step was skipped.
        rates: a row a step, a float32 a group: the learning rate.
        rows: one entry a step and direction where tables are moved by row: table -> the rows used.
        mask_arrays: what the head's masks need beside it.
    """

    head: dict[str, Any]
    slopes: list[list[float]] = field(default_factory=list)
    rates: list[list[float]] = field(default_factory=list)
    rows: list[dict[int, Tensor]] = field(default_factory=list)
    mask_arrays: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.slopes)

    def add(self, slopes: list[float], rates: list[float], rows: list[dict[int, Tensor]] = []) -> None:  # noqa: B006 (never changed)
        self.slopes.append(slopes)
        self.rates.append(rates)
        self.rows += rows

    def keep_masks(self, masks: MaskRule) -> None:
        """Say in the head how masks were made."""
        self.head = {**self.head, "format": 2, "masks": masks.to_json()}
        self.mask_arrays = masks.arrays()

    def keep_rule(self, spec: dict[str, Any]) -> None:
        """Say in the head which optimizer took the slopes."""
        self.head = {**self.head, "format": 2, "rule": spec}

    def arrays(self) -> dict[str, Tensor]:
        """The run as few tensors; rates that never change are one row."""
        slopes = torch.tensor(self.slopes, dtype=torch.float32).reshape(len(self), len(self.head["seeds"]))
        rates = torch.tensor(self.rates, dtype=torch.float32).reshape(len(self), max(self.head["groups"]) + 1)
        if len(rates) and bool((rates == rates[:1]).all()):
            rates = rates[:1].clone()
        found = {"slopes": slopes, "rates": rates, **self.mask_arrays}
        if self.head["tables"]:
            parts = [entry.get(i, torch.empty(0, dtype=torch.long)) for entry in self.rows for i in self.head["tables"]]
            found["counts"] = torch.tensor([len(part) for part in parts], dtype=torch.int32)
            found["rows"] = torch.cat(parts).to(torch.int32) if parts else torch.empty(0, dtype=torch.int32)
        return found

    @classmethod
    def of(cls, head: dict[str, Any], arrays: dict[str, Tensor]) -> "Log":
        """The inverse of `arrays`."""
        slopes, rates = arrays["slopes"], arrays["rates"]
        log = cls(head, slopes.tolist(), (rates.expand(len(slopes), -1) if len(rates) == 1 else rates).tolist())
        if head["tables"]:
            parts = arrays["rows"].long().split(arrays["counts"].tolist())
            width = len(head["tables"])
            log.rows = [
                dict(zip(head["tables"], parts[at : at + width], strict=True)) for at in range(0, len(parts), width)
            ]
        log.mask_arrays = {name: array for name, array in arrays.items() if name.startswith("mask.")}
        return log

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it, complete or not at all."""
        from safetensors.torch import save_file

        path = Path(path)
        if path.suffix != ".safetensors":
            raise ProbatumError(f"a log is a .safetensors file, got {path.name!r}")
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        save_file(self.arrays(), partial, {"probatum.zeroth": json.dumps({**self.head, "steps": len(self)})})
        os.replace(partial, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Log":
        """Read one.

        Raises:
            ProbatumError: no such file, no log, truncated, or of a newer format.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(os.fspath(path), "pt") as file:
                text = (file.metadata() or {}).get("probatum.zeroth")
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except FileNotFoundError:
            raise ProbatumError(f"no such log: {path}") from None
        except (SafetensorError, OSError) as error:
            raise ProbatumError(
                f"{path} cannot be read as a log (truncated, or no safetensors file): {error}"
            ) from error
        if text is None:
            raise ProbatumError(f"{path} is a safetensors file, but no log of a zeroth-order run")
        head = json.loads(text)
        if head.get("format") not in FORMATS:
            raise ProbatumError(f"{path} has format {head.get('format')!r}, this version reads {', '.join(map(str, FORMATS))}")
        steps = head.pop("steps")
        if len(arrays["slopes"]) != steps or len(arrays["rates"]) not in (1, steps):
            raise ProbatumError(f"{path} lacks steps: its head says {steps}, it has {len(arrays['slopes'])}")
        return cls.of(head, arrays)

    @property
    def fingerprint(self) -> Fingerprint:
        return Fingerprint.from_json(self.head["tensors"])


def new_head(
    named: list[tuple[str, Tensor]], noise: Noise, queries: list[int], eps: float, exact: str, decay: list[float], groups: list[int],
    tables: list[int],
) -> dict[str, Any]:  # fmt: skip
    return {
        "format": 1, "seeds": [noise.seed] * len(queries), "queries": queries, "noise": noise.kind, "block": BLOCK, "eps": eps,
        "exact": exact, "weight_decay": decay, "groups": groups, "tables": tables, "device": named[0][1].device.type,
        "torch": torch.__version__.partition("+")[0], "tensors": Fingerprint.of(named).to_json(),
    }  # fmt: skip


def float32(x: float) -> float:
    """The value a log keeps: what is applied must be what is written."""
    return float(np.float32(x))


def apply_updates(
    weights: list[Weights], step: int, head: dict[str, Any], slopes: list[float], rates: list[float],
    rows: list[dict[int, Tensor]] | None = None, *, standing: int = 0, rule: Rule | None = None,
) -> None:  # fmt: skip
    """theta -= rate / D sum_d slope_d z_d, then weight decay; the one function that training and replay write weights with.

    With `rule` that optimizer takes the step instead, from theta.

    Args:
        weights: the same tensors with the noise of each direction.
        rows: the rows of each direction, where theta was left (after the last query the tables know them).
        standing: multiples of eps z_last by which theta still stands away; with one direction, going back is the same pass.
    """
    count = len(slopes)
    skipped = not all(map(math.isfinite, slopes))
    if skipped or count > 1 or rule is not None:
        if standing:
            weights[-1].move(-standing)
        standing = 0
    if not skipped and rule is not None:
        rule.step(weights, step, head["queries"], slopes, rates)
    elif not skipped:
        for d, (query, slope) in enumerate(zip(head["queries"], slopes, strict=True)):
            at = weights[d]
            if not standing and at.address != (step, query):
                at.begin(step, query)
                if at.rows and rows:
                    at.rows.set_rows(at, rows[d])
            at.finish(-standing, [-rates[g] * slope / count for g in head["groups"]])
        if any(head["weight_decay"]):
            weights[0].decay([decay * rates[g] for decay, g in zip(head["weight_decay"], head["groups"], strict=True)])


def replay(
    model: nn.Module | Iterable[tuple[str, Tensor]], log: Log | str | os.PathLike[str], *, steps: int | None = None
) -> None:
    """Bring a model from the weights a run started with to those it ended with.

    With exact="lattice", "scratch" or "copy" each step is one pass (the update); with "off" the pair of perturbations is repeated as well, since
    their rounding stays in the weights. Gaussian noise needs the device kind of the run; sign noise replays anywhere.

    Args:
        model: holds the starting weights, and is changed in place.
        log: or its file.
        steps: stop after so many; default all.
    Raises:
        ProbatumError: another model or other starting weights (says which tensor differs), another device kind or block size,
            or fewer steps in the log than asked for. Nothing is changed then.
    """
    log = log if isinstance(log, Log) else Log.load(log)
    head, wanted = log.head, len(log) if steps is None else steps
    if not 0 <= wanted <= len(log):
        raise ProbatumError(f"steps must be from 0 to {len(log)}, what the log has, got {steps}")
    widths = {len(head["seeds"]), len(head["queries"]), *map(len, log.slopes)}
    if len(widths) > 1:
        raise ProbatumError(f"the log is broken: seeds, directions and slopes of a step must be equally many, got {sorted(widths)}")
    if head["block"] != BLOCK:
        raise ProbatumError(
            f"the log was drawn in blocks of {head['block']}, this version draws {BLOCK}: its noise cannot be repeated"
        )
    here = dict(model.named_parameters() if isinstance(model, nn.Module) else model)
    fingerprint = log.fingerprint
    missing = [row[0] for row in fingerprint.rows if row[0] not in here]
    if missing:
        raise ProbatumError(f"the log is of another model: this one has no {missing[0]} (and {len(missing) - 1} more)")
    named = [(row[0], here[row[0]]) for row in fingerprint.rows]
    different = fingerprint.difference(Fingerprint.of(named))
    if different:
        raise ProbatumError(f"the log starts from other weights than this model has: {different}")
    device = named[0][1].device.type
    if head["noise"] == "gaussian" and device != head["device"]:
        raise ProbatumError(
            f"Gaussian noise drawn on {head['device']} cannot be repeated on {device}: replay there, or use sign noise"
        )
    with torch.no_grad():
        _replay(named, log, wanted)


def _replay(named: list[tuple[str, Tensor]], log: Log, wanted: int) -> None:
    head = log.head
    names, tensors = [name for name, _ in named], [tensor for _, tensor in named]
    made: dict[int, Weights] = {}
    for seed in head["seeds"]:
        if seed not in made:
            rows = UsedRows(None, {i: tensors[i] for i in head["tables"]}) if head["tables"] else None
            masks = rule_of(head.get("masks"), log.mask_arrays, tensors[0].device)
            made[seed] = Weights(names, tensors, Noise(seed, head["noise"]), head["eps"], head["exact"], masks=masks, rows=rows)
    first, *others = made.values()
    if head["exact"] == "lattice":
        first.snap()
        for other in others:  # one lattice, whoever writes
            other.steps, other.room = first.steps, first.room
    weights, count = [made[seed] for seed in head["seeds"]], len(head["seeds"])
    rule = Rule(tensors, head["groups"], head["rule"]) if "rule" in head else None
    for step in range(wanted):
        first.choose(step)
        for other in others:
            other.masks = first.masks  # theta is about to move
        rows = log.rows[step * count : (step + 1) * count] if head["tables"] else None  # type: ignore[assignment]
        if head["exact"] == "off":
            for d, query in enumerate(head["queries"]):
                weights[d].begin(step, query)
                if rows and weights[d].rows:
                    weights[d].rows.set_rows(weights[d], rows[d])  # type: ignore[index, union-attr]
                weights[d].move(1)
                weights[d].move(-2)
                if count > 1:
                    weights[d].move(1)
            apply_updates(
                weights, step, head, log.slopes[step], log.rates[step], rows, standing=-1 if count == 1 else 0  # type: ignore[arg-type]
            )
        else:
            apply_updates(weights, step, head, log.slopes[step], log.rates[step], rows, rule=rule)  # type: ignore[arg-type]


def merge(a: Log, b: Log) -> Log:
    """The run of two workers that made the same steps from the same weights with their own seeds: each step takes the mean of both.

    Raises:
        ProbatumError: logs of different models, settings, rates or lengths.
    """
    same = ("noise", "block", "eps", "exact", "weight_decay", "groups", "tables", "masks", "rule")
    for key in same:
        if a.head.get(key) != b.head.get(key):
            raise ProbatumError(f"logs that are merged must agree in {key}: {a.head.get(key)!r} against {b.head.get(key)!r}")
    if any(not torch.equal(array, b.mask_arrays[name]) for name, array in a.mask_arrays.items()):
        raise ProbatumError("logs that are merged must have the same masks")
    different = a.fingerprint.difference(b.fingerprint)
    if different:
        raise ProbatumError(f"logs that are merged must start from the same weights: {different}")
    if len(a) != len(b) or a.rates != b.rates:
        raise ProbatumError(
            f"logs that are merged must have the same steps and learning rates: {len(a)} and {len(b)} steps"
        )
    if set(zip(a.head["seeds"], a.head["queries"], strict=True)) & set(
        zip(b.head["seeds"], b.head["queries"], strict=True)
    ):
        raise ProbatumError(
            "both logs have the same seed: their directions are the same and the mean is no second opinion"
        )
    head = {**a.head, "seeds": a.head["seeds"] + b.head["seeds"], "queries": a.head["queries"] + b.head["queries"]}
    merged = Log(head, [x + y for x, y in zip(a.slopes, b.slopes, strict=True)], [list(rate) for rate in a.rates])
    merged.mask_arrays = a.mask_arrays
    if head["tables"]:
        n, m = len(a.head["seeds"]), len(b.head["seeds"])
        for step in range(len(a)):
            merged.rows += a.rows[step * n : (step + 1) * n] + b.rows[step * m : (step + 1) * m]
    return merged
