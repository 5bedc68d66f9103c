"""`probatum compare`: which one for me."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from probatum.cli.browse import Json
from probatum.cli.output import console, duration, interruptible, print_json, progress_bar, size

if TYPE_CHECKING:
    from probatum.evidence.comparisons import Comparison


def add_to(application: typer.Typer) -> None:
    application.command("compare")(compare)


def compare(
    name: Annotated[str | None, typer.Argument(help="Name of a comparison; without one they are listed.")] = None,
    model: Annotated[str | None, typer.Option(help="Your own model, as the comparison takes it.")] = None,
    data: Annotated[str | None, typer.Option(help="Your own data, as the comparison takes it.")] = None,
    budget: Annotated[str, typer.Option(help="smoke, quick or full.")] = "quick",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N, mps.")] = "cpu",
    jobs: Annotated[int, typer.Option("--jobs", "-j", help="Arms at once; times are comparable only at 1.")] = 1,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start again, do not resume.")] = False,
    json: Json = False,
) -> None:
    """Several methods and what you would pick instead, under one protocol: quality, memory, time, and which one to take."""
    from probatum.evidence.comparisons import Setting, find_comparison
    from probatum.evidence.comparisons import compare as run_comparison

    if name is None:
        _listing(json)
        return
    found = find_comparison(name)
    setting = Setting(budget, model, data, device, jobs, fresh, "probatum " + " ".join(sys.argv[1:]))
    with interruptible(), _Screen(json) as screen:
        record = run_comparison(found, setting, screen)
    figures = record.pop("_figures")
    if json:
        print_json({**record, "figures": figures})
    else:
        show(found, record, figures)
    if any(arm["error"] for arm in record["arms"]):
        raise SystemExit(3)


def _listing(json: bool) -> None:
    from probatum.catalog import comparisons
    from probatum.evidence.comparisons import find_comparison

    rows = [find_comparison(name) for name in comparisons()]
    if json:
        keys = ("name", "title", "says")
        print_json([{**{k: getattr(row, k) for k in keys}, "takes": dict(row.takes), "arms": [a.name for a in row.arms]} for row in rows])
        return
    out = console()
    for row in rows:
        out.print(f"[bold]{row.name}[/]  {row.title}", highlight=False)
        for option, what in row.takes.items():
            out.print(f"  --{option}: {what}", style="dim", markup=False)


def shown(value: float, unit: str) -> str:
    """A number with its unit, as people read it."""
    if unit == "B":
        return size(value)
    if unit == "s":
        return duration(value) if value >= 1 else f"{value * 1000:.3g} ms"
    return f"{value:.4g} {unit}".strip()


def show(found: "Comparison", record: dict[str, Any], figures: list[str]) -> None:
    """The table, the picks, the pictures."""
    from rich.markup import escape
    from rich.table import Table as Grid

    from probatum.evidence.comparisons import means
    from probatum.evidence.measurements import Measurement, Table

    table = Table(map(Measurement.from_json, record["measurements"]))
    columns = {metric.name: means(table, metric.name) for metric in found.metrics}
    out = console()
    out.print(f"\n[bold]{escape(found.title)}[/]")
    grid = Grid(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    grid.add_column("", no_wrap=True)
    for metric in found.metrics:
        grid.add_column(metric.label, justify="right")
    wide = out.width >= 120  # else what an arm is would be wrapped by the syllable: it stands below
    if wide:
        grid.add_column("", style="dim", ratio=1)
    for arm in found.arms:
        cells = [shown(columns[m.name][arm.name], m.unit) if arm.name in columns[m.name] else "-" for m in found.metrics]
        grid.add_row(f"[cyan]{arm.name}[/]" if arm.paper else arm.name, *cells, *([escape(arm.about)] if wide else []))
    out.print(grid)
    for arm in () if wide else found.arms:
        out.print(f"{arm.name}: {escape(arm.about)}", style="dim")
    for note in record["notes"]:
        out.print(escape(note), style="bold" if note.startswith("Best") else "")
    for figure in figures:
        out.print(f"picture: {escape(figure)}", style="dim", soft_wrap=True)


class _Screen:
    """Progress of a comparison: a bar with time left on a terminal, a line an arm elsewhere."""

    def __init__(self, json: bool) -> None:
        self.out = console(to_stderr=json)
        self.bar = progress_bar(self.out)
        self.task = self.bar.add_task("starting", total=1)
        self.done = 0

    def __enter__(self) -> "_Screen":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def start(self, tasks: int, done: int) -> None:
        self.done = done
        self.bar.update(self.task, total=tasks, completed=done)
        self.out.print(f"{tasks - done} runs to do" + (f", {done} kept from before" if done else ""))

    def begin(self, arm: str, seed: int) -> None:
        self.bar.update(self.task, description=f"{arm}, seed {seed}")

    def progress(self, message: dict[str, Any]) -> None:
        self.bar.update(self.task, completed=self.done + message["done"] / max(message["total"], 1))

    def end(self, arm: str, seed: int, error: str | None) -> None:
        self.done += 1
        self.bar.update(self.task, completed=self.done)
        if error or not self.out.is_terminal:
            self.out.print(f"  {arm}, seed {seed}: {error or 'done'}", markup=False)
