"""`probatum report`: the site of all evidence."""

from pathlib import Path
from typing import Annotated

import typer

from probatum.cli.browse import Json
from probatum.cli.output import console, print_json


def add_to(application: typer.Typer) -> None:
    application.command("report")(report)


def report(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the site.")] = Path("probatum-report"),
    open_: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    json: Json = False,
) -> None:
    """Render all records, published and this machine's own, to one folder that opens by double click."""
    from probatum.evidence import store
    from probatum.evidence.report import current_hashes, write_site

    published = store.committed_records()
    records = store.load_records(*([published] if published else []), *(store.home() / kind for kind in store.KINDS))
    index = write_site(records, out, current_hashes=current_hashes())
    if json:
        print_json({"index": str(index), "records": len(records)})
    else:
        console().print(f"{len(records)} records -> {index}")
    if open_:
        typer.launch(str(index))
