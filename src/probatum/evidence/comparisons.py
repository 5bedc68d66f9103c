"""Comparisons: several papers and what a user would pick instead, under one protocol, on embedded data or the user's own.

An arm of one seed is a task in a process of its own, so that its peak memory and its time are its own. A comparison has no verdict; it
ends with picks: the best arm, and the cheapest of those that cannot be told from it.
"""

import hashlib
import os
import time
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

from probatum import __version__
from probatum.catalog import Paper, catalog, comparisons
from probatum.errors import ProbatumError, did_you_mean
from probatum.evidence import judges, store
from probatum.evidence.code import code_state
from probatum.evidence.engine import write_record
from probatum.evidence.environment import cores, environment
from probatum.evidence.measurements import Measurement, Table
from probatum.evidence.pool import LocalPool
from probatum.evidence.run import Run
from probatum.evidence.seeds import missing_module, prepare

__all__ = ["Arm", "Comparison", "Metric", "Setting", "compare", "comparison", "find_comparison"]


@dataclass(frozen=True)
class Metric:
    """A column: what is measured, in which unit, and which direction is better (None: shown, not judged)."""

    name: str
    label: str
    unit: str = ""
    better: Literal["higher", "lower"] | None = None


@dataclass(frozen=True)
class Arm:
    """A row: a way to do the job. `paper` is its catalog id, None for what a user would pick instead."""

    name: str
    about: str
    paper: str | None = None


class ComparisonRun(Run):
    """A run that also knows what the user brought."""

    model: str | None = None
    data: str | None = None


@dataclass
class Comparison:
    """A declared comparison. The first metric is the quality that picks go by; `takes` says what --model and --data accept."""

    name: str
    title: str
    says: str
    arms: Sequence[Arm]
    metrics: Sequence[Metric]
    seeds: Mapping[str, int]
    takes: Mapping[str, str]
    measure: Callable[[ComparisonRun, str], None]

    @property
    def quality(self) -> Metric:
        return self.metrics[0]

    @property
    def module(self) -> str:
        return self.measure.__module__


def comparison(
    name: str,
    *,
    title: str,
    says: str,
    arms: Sequence[Arm],
    metrics: Sequence[Metric],
    seeds: Mapping[str, int],
    takes: Mapping[str, str],
) -> Callable[[Callable[[ComparisonRun, str], None]], Comparison]:
    """Declare the decorated `measure(run, arm)` as a comparison.

    Args:
        metrics: columns; the first is the quality, judged per item where items are recorded.
        seeds: seeds of smoke, quick and full.
        takes: "model" and "data" -> what may be given, in words; a missing key means the option is refused.
    """
    if set(seeds) != {"smoke", "quick", "full"} or metrics[0].better is None:
        raise ProbatumError(f"comparison {name}: seeds must name smoke, quick and full, and the first metric a better direction")
    return lambda measure: Comparison(name, title, says, tuple(arms), tuple(metrics), dict(seeds), dict(takes), measure)


def find_comparison(name: str) -> Comparison:
    """The comparison of this name; an unknown one is told the nearest."""
    known = comparisons()
    if name not in known:
        raise ProbatumError(f"unknown comparison {name!r}: {did_you_mean(name, known) or 'none is built yet'}")
    module = import_module(f"probatum.claims.{known[name]}.comparison")
    return next(value for value in vars(module).values() if isinstance(value, Comparison) and value.name == name)


def measure_arm(
    module: str, name: str, arm: str, budget: str, seed: int, device: str, code: str, model: str | None, data: str | None
) -> dict[str, Any]:
    """Run one arm of one seed; the document of its measurements."""
    prepare(device)
    threads = int(os.environ.get("PROBATUM_THREADS", "1"))
    found = next(v for v in vars(import_module(module)).values() if isinstance(v, Comparison) and v.name == name)
    run = ComparisonRun("compare", name, budget, seed, device, threads, code, store.home() / "artifacts")
    run.model, run.data = model, data
    begun = time.perf_counter()
    try:
        found.measure(run, arm)
    except ImportError as error:
        paper = next(entry.paper for entry in found.arms if entry.name == arm)
        raise missing_module(error, catalog()[paper].extra if paper else None) from error
    return {
        "arm": arm, "seed": seed, "seconds": time.perf_counter() - begun, "environment": environment(threads, device),
        "measurements": [row.to_json() for row in run.table], "notes": run.notes,
        "pictures": [{"name": p.name, "caption": p.caption, "png": b64encode(p.png).decode()} for p in run.pictures],
    }  # fmt: skip


class Watch(Protocol):
    """What a comparison tells while it works."""

    def start(self, tasks: int, done: int) -> None: ...

    def begin(self, arm: str, seed: int) -> None: ...

    def progress(self, message: dict[str, Any]) -> None: ...

    def end(self, arm: str, seed: int, error: str | None) -> None: ...


@dataclass(frozen=True)
class Setting:
    """How to compare: `model` and `data` are paths of the user's own, None for the embedded ones."""

    budget: str = "quick"
    model: str | None = None
    data: str | None = None
    device: str = "cpu"
    jobs: int = 1
    fresh: bool = False
    command: str = ""

    def checked(self, found: Comparison) -> "Setting":
        """The same with absolute paths.

        Raises:
            ProbatumError: a budget that is not there, a model or data that the comparison does not take or that does not exist.
        """
        if self.budget not in found.seeds:
            raise ProbatumError(f"--budget must be one of {', '.join(found.seeds)}, got {self.budget!r}")
        paths: dict[str, str | None] = {}
        for option, given in (("model", self.model), ("data", self.data)):
            if given is not None and option not in found.takes:
                raise ProbatumError(f"compare {found.name} takes no --{option}")
            if given is not None and not Path(given).exists():
                raise ProbatumError(f"--{option} {given}: no such file or folder; it takes {found.takes[option]}")
            paths[option] = str(Path(given).resolve()) if given else None
        return replace(self, model=paths["model"], data=paths["data"])

    def stem(self, name: str) -> str:
        """What its record is called."""
        given = "\0".join((self.model or "", self.data or ""))
        own = "" if given == "\0" else f"-{hashlib.sha256(given.encode()).hexdigest()[:8]}"
        return f"{name}{own}.{self.budget}.{self.device.partition(':')[0]}"

    def contents(self) -> str:
        """A hash of names, sizes and times of the user's files: what was measured on other contents is not used again."""
        total = hashlib.sha256()
        for root in filter(None, (self.model, self.data)):
            for path in sorted(Path(root).rglob("*")) if Path(root).is_dir() else [Path(root)]:
                if path.is_file():
                    total.update(f"{path}\0{path.stat().st_size}\0{path.stat().st_mtime_ns}\0".encode())
        return total.hexdigest()[:12]


def compare(found: Comparison, setting: Setting, watch: Watch) -> dict[str, Any]:
    """Run a comparison and write its record, which it returns with `_figures` (paths); finished arms of an interrupted run are kept.

    Raises:
        ProbatumError: a bad setting; no arm could run; another run of this comparison is under way.
    """
    setting = setting.checked(found)
    code = _code(found)
    stem = setting.stem(found.name)
    key = f"{code['hash'][:12]}-{setting.contents()}-{code['state']}"
    folder = store.home() / "runs" / "compare" / stem / key
    with store.lock(f"compare-{found.name}", f"another `compare {found.name}` is running; wait for it or stop it"):
        documents = {} if setting.fresh else _finished(folder)
        tasks = [(arm.name, seed) for seed in range(found.seeds[setting.budget]) for arm in found.arms]
        watch.start(len(tasks), sum(task in documents for task in tasks))
        errors = _run(found, setting, [task for task in tasks if task not in documents], folder, documents, watch, code["hash"])
        if not documents:
            raise ProbatumError(f"no arm of {found.name} could run: " + "; ".join(f"{a}: {e}" for a, e in errors.items()))
        record = _record(found, setting, documents, errors, code)
        pictures = [p for document in documents.values() if document["seed"] == 0 for p in document["pictures"]]
        pictures += _draw(found, Table(map(Measurement.from_json, record["measurements"])))
        record["figures"] = [{"name": p["name"], "caption": p["caption"], "file": f"{p['name']}.png"} for p in pictures]
        place = store.home() / ("modified" if code["state"] == "modified" else "records") / "compare"
        figures = write_record(place, stem, record, pictures) if setting.budget != "smoke" else []
    return {**record, "_figures": figures}


def _run(
    found: Comparison, setting: Setting, tasks: list[tuple[str, int]], folder: Path, documents: dict, watch: Watch, code: str
) -> dict[str, str]:
    """Run the tasks, a fresh process each; an arm that fails once is not tried again. Returns arm -> error."""
    errors: dict[str, str] = {}
    pool = LocalPool(setting.jobs, max(1, cores() // setting.jobs), reuse=False)
    try:
        while tasks or pool.busy:
            while tasks and pool.accepts(alone=False):
                arm, seed = tasks.pop(0)
                if arm in errors:
                    watch.end(arm, seed, errors[arm])
                    continue
                watch.begin(arm, seed)
                args = (found.module, found.name, arm, setting.budget, seed, setting.device, code, setting.model, setting.data)
                pool.submit((arm, seed), measure_arm, args)
            for token, kind, content in pool.events(0.2):
                arm, seed = token  # type: ignore[misc]
                if kind == "progress":
                    watch.progress({**content, "label": arm})
                    continue
                if kind == "done":
                    if setting.budget != "smoke":
                        store.write_json(folder / f"{hashlib.sha256(arm.encode()).hexdigest()[:8]}-{seed}.json", content)
                    documents[arm, seed] = content
                else:
                    errors[arm] = str(content).strip().splitlines()[-1]
                watch.end(arm, seed, errors.get(arm))
    finally:
        pool.close()
    return errors


def _finished(folder: Path) -> dict[tuple[str, int], dict[str, Any]]:
    found = {}
    for path in sorted(folder.glob("*.json")):
        document = store.read_json(path)
        if document is not None:
            found[document["arm"], int(document["seed"])] = document
    return found


def _code(found: Comparison) -> dict[str, Any]:
    """The code of the comparison: its own module and every paper's that is an arm."""
    papers: list[Paper] = [catalog()[arm.paper] for arm in found.arms if arm.paper]
    states = [code_state(paper) for paper in papers]
    own = Path(import_module(found.module).__file__ or "").read_bytes()
    total = hashlib.sha256(own + "".join(state["hash"] for state in states).encode()).hexdigest()
    return {**states[0], "hash": total} if states else {"commit": None, "state": "modified", "hash": total}


def _record(
    found: Comparison, setting: Setting, documents: dict, errors: dict[str, str], code: dict[str, Any]
) -> dict[str, Any]:
    order = sorted(documents, key=lambda key: ([a.name for a in found.arms].index(key[0]), key[1]))
    rows = [row for key in order for row in documents[key]["measurements"]]
    table = Table(map(Measurement.from_json, rows))
    notes = picks(found, table)
    notes += list(dict.fromkeys(note for key in order for note in documents[key]["notes"]))
    notes += [f"{arm} could not run: {error}" for arm, error in errors.items()]
    first = documents[order[0]] if order else {"environment": environment()}
    return {
        "format": 1, "kind": "comparison", "probatum": __version__, "paper": "compare", "claim": setting.stem(found.name).split(".")[0],
        "name": found.name, "title": found.title, "says": found.says, "budget": setting.budget, "device": setting.device,
        "model": Path(setting.model).name if setting.model else None, "data": Path(setting.data).name if setting.data else None,
        "arms": [{"name": a.name, "about": a.about, "paper": a.paper, "error": errors.get(a.name)} for a in found.arms],
        "metrics": [vars(metric) for metric in found.metrics], "seeds": sorted({key[1] for key in order}),
        "started": datetime.now(UTC).isoformat(timespec="seconds"), "seconds": sum(documents[key]["seconds"] for key in order),
        "command": setting.command or f"probatum compare {found.name}", "code": code, "measurements": rows, "notes": notes,
        "figures": [], "environment": first["environment"],
    }  # fmt: skip


def means(table: Table, metric: str) -> dict[str, float]:
    """System -> mean over seeds."""
    found = {}
    for system in table.systems:
        values = [row.value for row in table.of(system, metric).values()]
        if values:
            found[system] = sum(values) / len(values)
    return found


def tied_with_best(found: Comparison, table: Table) -> tuple[str, list[str]] | None:
    """The best arm by quality, and every arm whose difference from it is not resolved (its 95 % interval contains 0)."""
    quality = found.quality
    sign = 1 if quality.better == "higher" else -1
    scores = {system: sign * mean for system, mean in means(table, quality.name).items()}
    if not scores:
        return None
    best = max(scores, key=lambda system: scores[system])
    tied = [best]
    for system in scores:
        if system != best and not _resolved(table.of(best, quality.name), table.of(system, quality.name)):
            tied.append(system)
    return best, tied


def _resolved(a: Mapping[int, Measurement], b: Mapping[int, Measurement]) -> bool:
    """Whether two arms are told apart: on items where both have them, else over seeds; fewer than 3 of both cannot."""
    import numpy as np

    seeds = [seed for seed in a if seed in b]
    items = [(a[s].samples or (), b[s].samples or ()) for s in seeds]
    if items and all(len(x) == len(y) and len(x) >= 5 for x, y in items):
        d = np.array([np.subtract(x, y) for x, y in items])
        if np.all(d == d[:1]):  # nothing depends on the seed: one repetition is all there is
            d = d[:1]
        binary = bool(np.isin([list(x) for pair in items for x in pair], (0.0, 1.0)).all())
        interval = judges.items(d, binary=binary)
    elif len(seeds) >= 3:
        interval = judges.paired([a[s].value - b[s].value for s in seeds])
    else:
        return False
    return not interval.low <= 0 <= interval.high


def picks(found: Comparison, table: Table) -> list[str]:
    """Which one to take, in sentences."""
    result = tied_with_best(found, table)
    if result is None:
        return []
    best, tied = result
    said = [f"Best {found.quality.label}: {best}" + (f"; not told apart from it: {', '.join(tied[1:])}." if tied[1:] else ".")]
    for metric in found.metrics[1:]:
        costs = means(table, metric.name)
        among = [system for system in tied if system in costs]
        if metric.better and len(among) > 1:
            take = (max if metric.better == "higher" else min)(among, key=lambda system: costs[system])
            word = "Most" if metric.better == "higher" else "Least"
            said.append(f"{word} {metric.label} among those: {take}.")
    return said


def _draw(found: Comparison, table: Table) -> list[dict[str, str]]:
    """Quality against every cost, an arm a point."""
    quality = found.quality
    y = means(table, quality.name)
    costs = [metric for metric in found.metrics[1:] if metric.better == "lower" and means(table, metric.name)]
    if not y or not costs:
        return []
    run = Run("compare", found.name, "quick", 0)
    caption = f"{quality.label} against " + " and ".join(metric.label for metric in costs)
    with run.figure("tradeoff", caption, size=(5.2 * len(costs), 4.2)) as figure:
        for axes, metric in zip(figure.subplots(1, len(costs), squeeze=False)[0], costs, strict=True):
            x = means(table, metric.name)
            for system in (s for s in y if s in x):
                paper = next((arm.paper for arm in found.arms if arm.name == system), None)
                values = [row.value for row in table.of(system, quality.name).values()]
                axes.errorbar(
                    x[system], y[system], yerr=[[y[system] - min(values)], [max(values) - y[system]]], fmt="o" if paper else "s",
                    color="#0b6e4f" if paper else "#8a8a8a", capsize=3,
                )  # fmt: skip
                axes.annotate(system, (x[system], y[system]), textcoords="offset points", xytext=(6, 5), fontsize=8)
            axes.set_xlabel(f"{metric.label}" + (f" ({metric.unit})" if metric.unit else ""))
            axes.set_ylabel(quality.label + (f" ({quality.unit})" if quality.unit else ""))
            positive = [value for value in x.values() if value > 0]
            if positive and max(positive) > 8 * min(positive):
                axes.set_xscale("log")
            axes.margins(0.18)
    (picture,) = run.pictures
    return [{"name": picture.name, "caption": picture.caption, "png": b64encode(picture.png).decode()}]

