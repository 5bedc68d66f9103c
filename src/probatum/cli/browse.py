"""Commands that look around: list, show, doctor, data."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from probatum.catalog import Paper, catalog, families, find_family, find_paper
from probatum.cli.output import console, print_json, size, verdict

if TYPE_CHECKING:
    from probatum.evidence.declaration import Claim

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]


def add_to(application: typer.Typer) -> None:
    application.command("list")(list_papers)
    application.command("show")(show)
    application.command("doctor")(doctor)
    data = typer.Typer(help="What real data is at hand, its source and licence.", no_args_is_help=True)
    data.command("list")(data_list)
    data.command("show")(data_show)
    application.add_typer(data, name="data")


def _last_verdicts() -> dict[str, dict[str, str]]:
    """Paper -> claim -> the newest verdict on this machine; clean trees before modified ones."""
    from probatum.evidence import store

    found: dict[str, dict[str, tuple[str, str]]] = {}
    for root in (store.home() / "modified", store.home() / "records"):
        for record in store.load_records(root):
            if record["kind"] != "claim":
                continue
            claims = found.setdefault(record["paper"], {})
            if record["claim"] not in claims or record["started"] >= claims[record["claim"]][0]:
                claims[record["claim"]] = (record["started"], record["verdict"])
    return {paper: {claim: entry[1] for claim, entry in claims.items()} for paper, claims in found.items()}


def _worst(paper: Paper, verdicts: dict[str, str]) -> str | None:
    known = [verdicts[claim] for claim in paper.claims if claim in verdicts]
    return next((word for word in ("error", "fails", "inconclusive", "holds") if word in known), None)


def list_papers(
    family: Annotated[str | None, typer.Option(help="Only this family.")] = None,
    json: Json = False,
) -> None:
    """The 74 papers: what state each is in, and the last verdict on this machine."""
    if family is not None:
        find_family(family)
    verdicts = _last_verdicts()
    papers = [paper for paper in catalog().values() if family in (None, paper.family)]
    if json:
        print_json(
            [
                {
                    "id": p.id, "family": p.family, "title": p.title, "arxiv": p.arxiv, "state": p.state,
                    "verdict": _worst(p, verdicts.get(p.id, {})), "claims": list(p.claims),
                }
                for p in papers
            ]
        )  # fmt: skip
        return
    from rich.table import Table

    out = console()
    wide = out.width >= 120  # a narrow terminal gets a line a paper
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("paper", "family", "state", "verdict") if wide else ("paper", "state", "verdict"):
        table.add_column(column, no_wrap=True)
    table.add_column("idea" if wide else "title", ratio=1, no_wrap=not wide)
    room = max(16, out.width - max(len(p.id) for p in papers) - 25)
    for p in papers:
        word = _worst(p, verdicts.get(p.id, {}))
        state = f"[cyan]{p.state}[/]" if p.state == "built" else f"[dim]{p.state}[/]"
        middle = [f"[dim]{p.family}[/]"] if wide else []
        title = p.title if len(p.title) <= room else p.title[: room - 1] + "…"
        table.add_row(p.id, *middle, state, verdict(word) or "[dim]-[/]", p.idea if wide else title)
    out.print(table)
    built = sum(p.state == "built" for p in papers)
    out.print(f"\n{len(papers)} papers, {built} built. `probatum show PAPER` tells more, `probatum check PAPER` tests its claims.")


def _describe(claim: "Claim") -> dict[str, Any]:
    return {
        "name": claim.name, "says": claim.says, "source": claim.source, "reported": claim.reported or None,
        "version": claim.version, "protocol": claim.protocol, "budgets": dict(claim.budgets),
        "conditions": [condition.text for condition in claim.holds_if],
    }  # fmt: skip


def card_text(paper: Paper) -> str | None:
    """The paper's card as Markdown, in a checkout or an installed wheel; None where it has none yet."""
    from pathlib import Path

    package = Path(__file__).resolve().parents[1]
    for place in (package / "cards", package.parents[1] / "docs" / "cards"):
        card = place / paper.family / f"{paper.id}.md"
        if card.is_file():
            return card.read_text("utf-8")
    return None


def show(paper: Annotated[str, typer.Argument(help="Id of a paper.")], json: Json = False) -> None:
    """A paper: idea, use, public names, claims with their conditions, the card."""
    from probatum.evidence.declaration import claims_of

    row = find_paper(paper)
    claims = [_describe(claim) for claim in claims_of(row).values()]
    verdicts = _last_verdicts().get(row.id, {})
    if json:
        print_json(
            {
                "id": row.id, "family": row.family, "title": row.title, "arxiv": row.arxiv, "year": row.year, "state": row.state,
                "idea": row.idea, "use": row.use, "public": list(row.public), "extra": row.extra,
                "claims": [{**claim, "verdict": verdicts.get(claim["name"])} for claim in claims], "card": card_text(row),
            }
        )  # fmt: skip
        return
    from rich.markdown import Markdown
    from rich.markup import escape

    out = console()
    out.print(f"[bold]{row.id}[/] · {escape(row.title)} · arXiv {row.arxiv} · {row.year} · family {row.family}\n")
    out.print(f"[bold]Idea[/]  {escape(row.idea)}")
    out.print(f"[bold]Use[/]   {escape(row.use)}")
    if row.state == "planned":
        out.print("\nPlanned: nothing to import or check yet.")
        return
    out.print(f"[bold]From[/]  from probatum.{row.family} import {', '.join(row.public)}")
    for claim in claims:
        word = verdicts.get(claim["name"])
        out.print(f"\n[bold]{row.id}:{claim['name']}[/]  {escape(claim['says'])}  {verdict(word)}")
        if claim["reported"]:
            out.print(f"  paper ({escape(claim['source'])}): {escape(claim['reported'])}", style="dim")
        for text in claim["conditions"]:
            out.print(f"  · {escape(text)}")
    card = card_text(row)
    if card:
        out.print()
        out.print(Markdown(card))


def extras() -> dict[str, list[str]]:
    """Optional dependency group -> distributions it brings, from the installed metadata."""
    import re
    from importlib.metadata import PackageNotFoundError, requires

    try:
        lines = requires("probatum") or []
    except PackageNotFoundError:
        return {}
    groups: dict[str, list[str]] = {}
    for line in lines:
        group = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        name = re.match(r"[\w.-]+", line)
        if group and name and name[0] != "probatum":
            groups.setdefault(group[1], []).append(name[0])
    return groups


def doctor(json: Json = False) -> None:
    """What of the catalog can run here: extras, devices, memory, cores, and what to install for the rest."""
    from importlib.metadata import PackageNotFoundError, version

    from probatum.evidence.environment import cores, cpu_name, memory_bytes

    def installed(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    groups = {
        group: {"installed": {n: v for n in names if (v := installed(n))}, "missing": [n for n in names if not installed(n)]}
        for group, names in extras().items()
        if group not in ("dev", "docs")
    }
    devices = ["cpu"]
    if installed("torch"):
        import torch

        devices += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
        devices += ["mps"] if torch.backends.mps.is_available() else []
    built = [p for p in catalog().values() if p.state == "built"]
    blocked = {p.id: p.extra for p in built if p.extra and groups.get(p.extra, {}).get("missing")}
    document: dict[str, Any] = {
        "cpu": cpu_name(), "cores": cores(), "memory_bytes": memory_bytes(), "devices": devices, "extras": groups,
        "runs": [p.id for p in built if p.id not in blocked], "blocked": blocked,
        "planned": sum(p.state == "planned" for p in catalog().values()),
    }  # fmt: skip
    if json:
        print_json(document)
        return
    out = console()
    out.print(f"{document['cpu']}, {document['cores']} cores, {size(document['memory_bytes'])} memory; devices: {', '.join(devices)}\n")
    for group, state in groups.items():
        missing = state["missing"]
        told = f"[yellow]lacks {', '.join(missing)}[/]: pip install 'probatum\\[{group}]'" if missing else "[green]complete[/]"
        out.print(f"  extra {group:<15} {told}")
    out.print(f"\nCan run here: {', '.join(document['runs']) or 'nothing yet'}")
    for paper, extra in blocked.items():
        out.print(f"Cannot run: {paper} (install the extra {extra})")
    out.print(f"{document['planned']} of {len(catalog())} papers in {len(families())} families are planned.")


def data_list(json: Json = False) -> None:
    """The data sets that loaders of this package know."""
    from probatum.data import datasets

    rows = [entry.describe() for entry in datasets().values()]
    if json:
        print_json(rows)
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("name", "here", "shape", "licence"):
        table.add_column(column)
    for row in rows:
        here = "[green]yes[/]" if row["here"] else "[yellow]no[/]"
        table.add_row(row["name"], here, row["shape"], row["licence"])
    console().print(table)


def data_show(name: Annotated[str, typer.Argument(help="Name of a data set.")], json: Json = False) -> None:
    """One data set: what it is, where it comes from, its licence, how to load it."""
    from probatum.data import find_dataset

    row = find_dataset(name).describe()
    if json:
        print_json(row)
        return
    out = console()
    for key, value in row.items():
        out.print(f"[bold]{key:<9}[/] {value}", markup=True)
