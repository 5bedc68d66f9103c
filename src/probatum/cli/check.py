"""`probatum check`: re-run claims, watch them, and say what came of them."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from probatum import __version__
from probatum.catalog import catalog, find_family
from probatum.cli.browse import Json
from probatum.cli.output import console, duration, interruptible, print_json, progress_bar, verdict
from probatum.errors import ProbatumError

if TYPE_CHECKING:
    from probatum.evidence.declaration import Claim
    from probatum.evidence.engine import Result


def add_to(application: typer.Typer) -> None:
    application.command("check")(check)


def check(
    papers: Annotated[list[str] | None, typer.Argument(metavar="PAPER[:CLAIM]...", help="Papers, or single claims.")] = None,
    family: Annotated[str | None, typer.Option(help="All built papers of a family.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="All built papers.")] = False,
    budget: Annotated[str, typer.Option(help="smoke (seconds, no verdict), quick (minutes) or full.")] = "quick",
    seeds: Annotated[int | None, typer.Option(help="Another number of seeds; the record is labelled and never quoted.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N, mps.")] = "cpu",
    jobs: Annotated[int, typer.Option("--jobs", "-j", help="Worker processes.")] = 1,
    cluster: Annotated[str | None, typer.Option(help="Address of a Ray cluster; `local` starts one here.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start again, do not resume.")] = False,
    until_decided: Annotated[bool, typer.Option("--until-decided", help="Look again at twice and four times the seeds.")] = False,
    keep: Annotated[Path | None, typer.Option(help="Also write the records here, to publish them.")] = None,
    json: Json = False,
) -> None:
    """Re-run claims of papers: holds, fails or inconclusive, with numbers and pictures.

    Exit status: 0 every verdict holds; 1 some do not; 2 bad usage or input; 3 something could not run.
    """
    from probatum.evidence.declaration import find_claim
    from probatum.evidence.engine import Options
    from probatum.evidence.engine import check as run_checks

    if sum((bool(papers), family is not None, all_)) != 1:
        raise ProbatumError("name papers, or give --family F, or --all (one of the three)")
    names = list(papers or ())
    if family is not None:
        find_family(family)
        names = [p.id for p in catalog().values() if p.family == family and p.claims]
        if not names:
            raise ProbatumError(f"--family {family}: none of its papers is built yet")
    if all_:
        names = [p.id for p in catalog().values() if p.claims]
    claims = {claim.id: claim for name in names for claim in find_claim(name)}
    command = "probatum " + " ".join(sys.argv[1:])
    options = Options(budget, seeds, device, jobs, cluster, fresh, until_decided, keep, command)
    with interruptible(), Screen(list(claims.values()), json) as screen:
        results = run_checks(claims.values(), options, screen)
    if json:
        print_json(document(results, budget))
    else:
        summary(results)
    if any(result.error for result in results):
        raise SystemExit(3)
    raise SystemExit(0 if all(result.verdict in ("holds", "ran") for result in results) else 1)


def document(results: "list[Result]", budget: str) -> dict[str, Any]:
    """The JSON of `check`, as the design fixes it."""
    rows = []
    for result in results:
        record = result.record
        rows.append(
            {
                "paper": record["paper"], "claim": record["claim"], "says": record["says"], "verdict": result.verdict,
                "seconds": record["seconds"], "seeds": record["seeds"], "conditions": record["conditions"],
                "measurements": [
                    {"system": m["system"], "metric": m["metric"], "unit": m.get("unit", ""), "seed": m["seed"], "value": m["value"]}
                    for m in record["measurements"]
                ],
                "figures": result.figures, "error": result.error,
            }
        )  # fmt: skip
    environment = results[0].record["environment"] if results else {}
    return {"probatum": __version__, "budget": budget, "results": rows, "environment": environment}


def summary(results: "list[Result]") -> None:
    """The verdict table."""
    from rich.markup import escape
    from rich.table import Table

    out = console()
    for result in results:
        record = result.record
        out.print(f"\n[bold]{result.claim.id}[/]  {verdict(result.verdict)}  {escape(record['says'])}")
        if result.error:
            out.print(f"  {escape(result.error.strip())}", style="magenta")
            continue
        if result.verdict == "ran":
            out.print(f"  ran one seed in {duration(record['seconds'])}; smoke gives no verdict", style="dim")
            continue
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 2), header_style="dim")
        for column in ("condition", "value", "95% interval", "bound", ""):
            table.add_column(column)
        for row in record["conditions"]:
            interval = "" if row["interval"] is None else f"{row['interval'][0]:.4g} to {row['interval'][1]:.4g}"
            value = "" if row["value"] is None else f"{row['value']:.4g}"
            bound = "" if row["bound"] is None else f"{row['bound']:.4g}"
            table.add_row(escape(row["text"]), value, interval, bound, verdict(row["verdict"]))
        out.print(table)
        for row in record["conditions"]:
            if row.get("advice"):
                out.print(f"  {escape(row['advice'])}", style="yellow")
        if record["paper_figure"]:
            out.print(f"  paper ({escape(record['source'])}): {escape(record['paper_figure'])}", style="dim")
        for note in record["notes"]:
            out.print(f"  note: {escape(note)}", style="dim")
        for figure in result.figures:
            out.print(f"  picture: {escape(figure)}", style="dim", soft_wrap=True)


class Screen:
    """What a person sees while claims run: a bar with time left on a terminal, a line an event elsewhere."""

    def __init__(self, claims: "list[Claim]", json: bool) -> None:
        self.out = console(to_stderr=json)
        self.live = self.out.is_terminal
        self.bar = progress_bar(self.out)
        self.task = self.bar.add_task("starting", total=0)
        self.seeds: dict[tuple[str, int], float] = {}
        self.total = 0
        self.begun: set[str] = set()
        self.expected: float | None = 0.0
        self.started = self.spoken = time.monotonic()

    def __enter__(self) -> "Screen":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def expect(self, claim: "Claim", seeds_left: int, seconds: float | None, prospects: list[str]) -> None:
        self.total += seeds_left
        self.bar.update(self.task, total=self.total)
        left = "nothing left to run" if not seeds_left else f"{seeds_left} seed{'s' * (seeds_left != 1)}, " + (
            f"about {duration(seconds)}" if seconds is not None else "no record yet to tell how long"
        )  # fmt: skip
        self.out.print(f"{claim.id}: {left}", markup=False)
        for text in prospects:
            self.out.print(f"  {text}", style="dim", markup=False)

    def begin(self, claim: "Claim", seed: int) -> None:
        if claim.id not in self.begun:
            self.begun.add(claim.id)
            self.out.print(f"{claim.id} begins: {claim.says}", markup=False)
        self.seeds.setdefault((claim.id, seed), 0.0)
        self._redraw(f"{claim.id} seed {seed}")

    def progress(self, message: dict[str, Any]) -> None:
        key = (message["claim"], message["seed"])
        self.seeds[key] = message["done"] / max(message["total"], 1)
        text = f"{message['claim']} seed {message['seed']} {message['label']}"
        self._redraw(text.strip())
        if not self.live and time.monotonic() - self.spoken > 30:
            self.spoken = time.monotonic()
            share = sum(self.seeds.values()) / max(self.total, 1)
            gone = self.spoken - self.started
            left = f", about {duration(gone / share - gone)} left" if share > 0.02 else ""
            self.out.print(f"  {text.strip()}: {message['done']} of {message['total']}{left}", markup=False)

    def seed_done(self, claim: "Claim", seed: int, done: int, planned: int) -> None:
        self.seeds[claim.id, seed] = 1.0
        self.total = max(self.total, len(self.seeds))
        self._redraw(claim.id)
        if not self.live:
            self.out.print(f"  {claim.id} seed {seed} done ({done} of {planned})", markup=False)

    def note(self, text: str) -> None:
        self.out.print(text, markup=False)

    def tick(self) -> None:
        pass

    def end(self, result: "Result") -> None:
        self.out.print(f"{result.claim.id}: {verdict(result.verdict)}")

    def _redraw(self, text: str) -> None:
        self.bar.update(self.task, description=text, completed=sum(self.seeds.values()), total=max(self.total, len(self.seeds)))
