"""`probatum cascade`: passes, buffers and cost of a kernel written as a cascade of extended Einsums."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from probatum.cli.browse import Json
from probatum.cli.output import console, print_json, size
from probatum.errors import ProbatumError, did_you_mean
from probatum.files import whole

if TYPE_CHECKING:
    from probatum.algebra.fusemax import Cascade


def cascade(
    source: Annotated[
        str, typer.Argument(metavar="NAME|FILE", help="A cascade by name (see --list), or a text file with one; - is standard input.")
    ] = "",
    listing: Annotated[bool, typer.Option("--list", help="The cascades known by name, with their passes.")] = False,
    family: Annotated[
        str | None, typer.Option(help="Rank family to count passes over, as m or m1,m0. Default: the one that matters most.")
    ] = None,
    extent: Annotated[list[str] | None, typer.Option("--extent", "-x", help="Size of a rank, as P=4096; repeat. Needed for cost.")] = None,
    machine: Annotated[
        str | None, typer.Option(help="Cost on a machine: fusemax, flat, h100, laptop, or a TOML file (clock, matrix_lanes, ...).")
    ] = None,
    where: Annotated[list[str] | None, typer.Option(help="A mask, as 'QK: m <= p'; repeat.")] = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Draw the dependence graph with its pass boundaries into a PNG or SVG file.")
    ] = None,
    triton: Annotated[Path | None, typer.Option("--triton", help="Write a Triton kernel of a 1-pass cascade into a file.")] = None,
    run: Annotated[Path | None, typer.Option("--run", help="Run on tensors: an .npz file with an array an input.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Where the results of --run go (.npz).")] = None,
    plan: Annotated[str, typer.Option(help="auto, reference or blocked, for --run.")] = "auto",
    json: Json = False,
) -> None:
    """How often a kernel must go over its data, what it must keep, and what that costs on a machine."""
    from probatum.algebra.fusemax import TAXONOMY, Cascade

    if listing:
        _list(json)
        return
    if not source:
        raise ProbatumError("give the NAME of a cascade or a FILE with one; --list shows the names")
    if output is not None and run is None:
        raise ProbatumError("-o is for the results of --run: give --run FILE.npz")
    found = Cascade(_text(source, TAXONOMY))
    for mask in where or ():
        tensor, colon, condition = mask.partition(":")
        if not colon:
            raise ProbatumError(f"--where must look like 'QK: m <= p', got {mask!r}")
        found = found.where(tensor.strip(), condition.strip())
    extents = _extents(extent or [])
    ranks = tuple(part.strip() for part in family.split(",")) if family else found.family
    document = _analyse(found, ranks, extents)
    if machine is not None:
        cost = found.cost(machine, extents, *ranks)
        document["cost"] = {**vars(cost), "bound": cost.bound, "machine": machine}
    if picture is not None:
        _draw(found, ranks, picture)
        document["picture"] = str(picture)
    if triton is not None:
        triton.write_text(found.triton(extents), encoding="utf-8")
        document["triton"] = str(triton)
    if run is not None:
        document["run"] = _run(found, run, output, extents, plan)
    if json:
        print_json(document)
    else:
        _print(found, document, ranks)


def _text(source: str, names: Any) -> str:
    if source in names:
        return names[source]
    if source == "-":
        return sys.stdin.read()
    path = Path(source)
    if not path.is_file():
        raise ProbatumError(f"{source}: no such file, and no cascade of that name: {did_you_mean(source, names) or 'see --list'}")
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ProbatumError(f"{source}: not a text file in UTF-8: {error}") from None


def _extents(given: list[str]) -> dict[str, int]:
    found = {}
    for part in given:
        name, equals, value = part.partition("=")
        if not equals or not value.strip().isdigit():
            raise ProbatumError(f"--extent must look like P=4096, got {part!r}")
        found[name.strip()] = int(value)
    return found


def _analyse(found: "Cascade", ranks: tuple[str, ...], extents: dict[str, int]) -> dict[str, Any]:
    passes = found.passes(*ranks)
    known = found.graph.solve(extents)
    complete = all(v.upper() in known for v in found.graph.variables)
    return {
        "inputs": list(found.inputs),
        "outputs": list(found.outputs),
        "family": list(ranks),
        "passes": passes.count,
        "by_family": {",".join(f): found.passes(*f).count for f in found.graph.families},
        "statements": [
            {"text": str(s), "pass": p, "role": role}
            for s, p, role in zip(found.graph.statements, passes.of_statement, found.graph.roles, strict=True)
        ],
        "buffers": [
            {
                "tensor": f.name, "role": f.role, "read_in": list(f.passes), "needs": f.needs, "live": list(f.live),
                "live_words": f.live_words, "words": f.words,
            }
            for f in found.footprints(*ranks, extents=extents)
        ],
        "extents": known,
        "operations": dict(found.operations(extents)) if complete else None,
        "plan": found.plan(),
    }  # fmt: skip


def _draw(found: "Cascade", ranks: tuple[str, ...], path: Path) -> None:
    from matplotlib.figure import Figure

    if path.suffix not in (".png", ".svg", ".pdf"):
        raise ProbatumError(f"--picture must end in .png, .svg or .pdf, got {path.name!r}")
    figure = Figure(figsize=(7, 1.5 + 0.55 * len(found.graph.statements)), layout="constrained")
    found.picture(figure, *ranks)
    figure.savefig(path, dpi=120)


def _run(found: "Cascade", source: Path, output: Path | None, extents: dict[str, int], plan: str) -> dict[str, Any]:
    from time import perf_counter

    import numpy as np
    import torch

    try:
        with np.load(source, allow_pickle=False) as archive:
            inputs = {name: torch.from_numpy(archive[name]) for name in archive.files}
    except (OSError, ValueError, TypeError) as error:
        raise ProbatumError(f"--run {source}: not an .npz file of plain arrays: {error}") from None
    begun = perf_counter()
    results = found.run(inputs, extents, plan=plan)  # type: ignore[arg-type]
    seconds = perf_counter() - begun
    if output is not None:
        if output.suffix != ".npz":
            raise ProbatumError(f"-o must end in .npz, got {output.name!r}")
        with whole(output) as partial:
            np.savez(partial, **{name: value.numpy() for name, value in results.items()})  # type: ignore[arg-type]
    rows = {
        name: {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch."), "mean": float(value.double().mean())}
        for name, value in results.items()
    }
    return {"plan": plan, "seconds": seconds, "outputs": rows, "written": str(output) if output else None}


def _list(json: bool) -> None:
    from probatum.algebra.fusemax import TAXONOMY, Cascade

    rows = []
    for name in TAXONOMY:
        found = Cascade.named(name)
        rows.append(
            {
                "name": name,
                "passes": found.passes().count,
                "family": list(found.family),
                "inputs": list(found.inputs),
                "outputs": list(found.outputs),
            }
        )
    if json:
        print_json(rows)
        return
    from rich.table import Table

    table = Table("name", "passes", "over", "inputs", "outputs")
    for row in rows:
        table.add_row(row["name"], str(row["passes"]), ", ".join(row["family"]), ", ".join(row["inputs"]), ", ".join(row["outputs"]))  # type: ignore[arg-type]
    console().print(table)


def _print(found: "Cascade", document: dict[str, Any], ranks: tuple[str, ...]) -> None:
    from rich.markup import escape
    from rich.table import Table

    screen = console()
    count = document["passes"]
    screen.print(f"[bold]{count} pass{'es' if count != 1 else ''}[/] over {{{', '.join(ranks)}}}    {escape(document['plan'])}")
    others = [f"{{{name}}} {n}" for name, n in document["by_family"].items() if name != ",".join(ranks) and n > 1]
    if others:
        screen.print(f"passes over other ranks: {', '.join(others)}")
    print(found.lines(*ranks))
    table = Table("tensor", "role", "read in pass", "needs", "live for each other point", "words in all")
    for row in document["buffers"]:
        if row["needs"] == "stream":
            continue
        live = " * ".join(row["live"]) or "1"
        live += f" = {row['live_words']:,}" if row["live_words"] is not None and row["live"] else ""
        table.add_row(
            row["tensor"],
            row["role"],
            ", ".join(map(str, row["read_in"])),
            row["needs"],
            live,
            f"{row['words']:,}" if row["words"] is not None else "",
        )
    if table.row_count:
        screen.print(table)
    if document["operations"]:
        screen.print("operations: " + ", ".join(f"{kind} {n:,}" for kind, n in sorted(document["operations"].items(), key=lambda e: -e[1])))
    if cost := document.get("cost"):
        screen.print(
            f"on {cost['machine']}: [bold]{cost['seconds']:.4g} s[/], bound by {cost['bound']} (matrix {cost['matrix_seconds']:.4g}, "
            f"vector {cost['vector_seconds']:.4g}, memory {cost['memory_seconds']:.4g} s); {size(cost['bytes'])} moved"
            + (f", {cost['joules']:.4g} J" if cost["joules"] is not None else "")
        )
        if cost["outer"]:
            screen.print(
                f"{cost['outer']} in {cost['tiles']} tile{'s' if cost['tiles'] != 1 else ''}"
                + (f"; spilled: {', '.join(cost['spilled'])}" if cost["spilled"] else "")
            )
    for what in ("picture", "triton"):
        if what in document:
            screen.print(f"wrote {document[what]}")
    if done := document.get("run"):
        for name, row in done["outputs"].items():
            screen.print(f"{name}: {row['dtype']} {tuple(row['shape'])}, mean {row['mean']:.6g}, in {done['seconds']:.3g} s")
