"""`probatum match`: match, count, score and parse text by a weighted pattern or grammar."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from probatum.cli.browse import Json
from probatum.cli.output import interruptible, print_json
from probatum.errors import ProbatumError, did_you_mean

if TYPE_CHECKING:
    from probatum.algebra.matching import Found

# What people call them -> the name in probatum.algebra.
SEMIRINGS = {
    "count": "NAT", "probability": "PROB", "log": "LOG", "min-plus": "MINPLUS", "max-plus": "MAXPLUS", "best": "MAXTIMES",
    "exact": "RAT", "real": "REAL",
}  # fmt: skip


def match(
    pattern: Annotated[str, typer.Argument(help="A pattern, or @FILE: a grammar, one `name = body` a line.")],
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Text files or folders of them; - is standard input.")],
    count: Annotated[bool, typer.Option("--count", "-c", help="Only how many lines match, by file.")] = False,
    spans: Annotated[bool, typer.Option("--spans", "-o", help="Only the parts that match, leftmost and longest.")] = False,
    whole: Annotated[bool, typer.Option("--whole", "-x", help="The pattern must be the whole line.")] = False,
    invert: Annotated[bool, typer.Option("--invert", "-v", help="Lines that do not match.")] = False,
    weight: Annotated[
        str | None, typer.Option(help="Weigh each line: " + ", ".join(SEMIRINGS) + ". With search, the sum over all places.")
    ] = None,
    parses: Annotated[int, typer.Option(help="Show the N best parses.", min=0)] = 0,
    unit: Annotated[str, typer.Option(help="line, or file: each file is one text.")] = "line",
    plan: Annotated[bool, typer.Option("--plan", help="Say which evaluation runs, and why.")] = False,
    json: Json = False,
) -> None:
    """Find lines by a pattern, and count, weigh or parse them; linear in the text whatever the pattern.

    Exit status, as of grep: 0 something matched, 1 nothing did, 2 bad input.
    """
    from probatum import algebra
    from probatum.algebra.matching import Matcher, count_files, match_files

    if weight is not None and weight not in SEMIRINGS:
        raise ProbatumError(f"--weight must be one of {', '.join(SEMIRINGS)}, got {weight!r}: {did_you_mean(weight, SEMIRINGS)}")
    if unit not in ("line", "file"):
        raise ProbatumError(f"--unit must be line or file, got {unit!r}")
    if count and (spans or parses or weight is not None):
        raise ProbatumError("--count only counts: leave --spans, --weight and --parses out")
    if invert and (spans or parses or weight is not None):
        raise ProbatumError("--invert shows lines without a match, which have no --spans, --weight or --parses")
    semiring = algebra.BOOL if weight is None else getattr(algebra, SEMIRINGS[weight])
    if parses and weight is None:
        semiring = algebra.MAXTIMES
    matcher = Matcher(pattern, semiring, search=not whole)
    if plan:
        print(matcher.plan(), file=sys.stderr)
    paths = list(_paths(files))
    several = len(paths) > 1
    with interruptible("matches so far were printed; nothing is stored"):
        if count:
            rows = [
                {"path": f.path, "matched": f.lines - f.matched if invert else f.matched, "lines": f.lines, "bytes": f.bytes}
                for f in count_files(matcher, paths)
            ]
            if json:
                print_json(rows)
            else:
                for row in rows:
                    print(f"{row['path']}:{row['matched']}" if several else row["matched"])
            raise SystemExit(0 if any(row["matched"] for row in rows) else 1)
        found = match_files(
            matcher, paths, unit="file" if unit == "file" else "line", invert=invert, spans=spans or bool(parses),
            weights=weight is not None, parses=parses,
        )
        matched = False
        rows = []
        for hit in found:
            matched = True
            if json:
                rows.append(_row(hit))
            else:
                _print(hit, spans, several)
        if json:
            print_json(rows)
    raise SystemExit(0 if matched else 1)


def _paths(files: list[str]) -> Iterator[Any]:
    """Files in the order given; a folder's in theirs, without hidden ones."""
    for name in files:
        path = Path(name)
        if name == "-":
            yield sys.stdin.buffer
        elif path.is_dir():
            below = sorted(p for p in path.rglob("*") if p.is_file() and not any(part[0] == "." for part in p.relative_to(path).parts))
            if not below:
                raise ProbatumError(f"FILE {name}: a folder without files")
            yield from below
        elif not path.exists():
            raise ProbatumError(f"FILE {name}: no such file or folder")
        else:
            yield path


def _row(hit: "Found") -> dict[str, Any]:
    def tree(parse: Any) -> dict[str, Any]:
        return {"name": parse.name, "start": parse.start, "end": parse.end, "parts": [tree(p) for p in parse.parts]}

    weight = hit.weight if hit.weight is None or isinstance(hit.weight, (int, float)) else str(hit.weight)
    parses = [{**tree(parse), "weight": parse.weight} for parse in hit.parses]
    return {
        "path": hit.path, "line": hit.line, "text": hit.text, "spans": [list(span) for span in hit.spans], "weight": weight,
        "parses": parses,
    }  # fmt: skip


def _print(hit: "Found", spans: bool, several: bool) -> None:
    place = (f"{hit.path}:" if several else "") + (f"{hit.line}:" if hit.line and several else "")
    weight = "" if hit.weight is None else f"{hit.weight:g}\t" if isinstance(hit.weight, float) else f"{hit.weight}\t"
    if spans:
        for start, end in hit.spans:
            print(f"{place}{weight}{hit.text[start:end]}")
    else:
        print(f"{place}{weight}{hit.text}" if hit.line else f"{weight}{hit.path}")
    for parse in hit.parses:
        first = hit.text[slice(*hit.spans[0])] if hit.spans else hit.text
        print(parse.show(first, 2))
