"""Fill the evidence tables of cards and README from the committed records, so that no quoted number is typed by hand.

    python scripts/evidence_tables.py           # renew
    python scripts/evidence_tables.py --check   # change nothing, exit 1 if something is out of date

A table stands between <!-- evidence --> and <!-- /evidence -->: in a card its paper's claims with every condition and the figures of the
record, in README a line a claim, in the guide "which one for me" the comparisons.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from probatum.catalog import catalog
from probatum.evidence.store import load_record

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- evidence -->", "<!-- /evidence -->"


def records(paper: str) -> Iterator[dict[str, Any]]:
    """The committed records of a paper, in the order of its claims."""
    for claim in catalog()[paper].claims:
        for path in sorted((ROOT / "records" / paper).glob(f"{claim}.*.json")):
            record = load_record(path)
            if record is not None:
                yield record


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def card_table(paper: str) -> str:
    """Every condition of every claim of a paper, with the command that measured it."""
    parts = []
    for record in records(paper):
        path = Path(record["_path"]).relative_to(ROOT).as_posix()
        lines = [
            f"**{paper}:{record['claim']}** ({record['budget']}, {len(record['seeds'])} seeds) **{record['verdict']}**: {record['says']}.",
            "",
            "| condition | value | 95 % interval | bound | |",
            "|---|---|---|---|---|",
        ]
        for row in record["conditions"]:
            interval = "" if row["interval"] is None else f"{number(row['interval'][0])} to {number(row['interval'][1])}"
            lines.append(f"| {cell(row['text'])} | {number(row['value'])} | {interval} | {number(row['bound'])} | {row['verdict']} |")
        environment = record["environment"]
        lines += ["", f"Paper ({record['source']}): {record['paper_figure']}"]
        lines += [f"Note: {note}" for note in record["notes"]]
        for figure in record["figures"]:
            lines += ["", f"![{cell(figure['caption'])}](../../../{path.removesuffix('.json')}/{figure['file']})"]
        lines += ["", f"`{path}`, by `{record['command']}` on {environment['cpu']}, {environment['threads']} threads."]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def readme_table() -> str:
    """A line a claim."""
    lines = ["| claim | here | says |", "|---|---|---|"]
    for paper in catalog().values():
        for record in records(paper.id):
            lines.append(f"| `{paper.id}:{record['claim']}` | {record['verdict']} | {cell(record['says'])} |")
    return "\n".join(lines)


def comparison_tables() -> str:
    """Every committed comparison: a line an arm, its picks and its picture."""
    from probatum.cli.compare import shown
    from probatum.evidence.comparisons import means
    from probatum.evidence.measurements import Measurement, Table

    parts = []
    for path in sorted((ROOT / "records/compare").glob("*.json")):
        record = load_record(path)
        if record is None:
            continue
        table, metrics = Table(map(Measurement.from_json, record["measurements"])), record["metrics"]
        columns = {metric["name"]: means(table, metric["name"]) for metric in metrics}
        lines = [
            f"### {record['title']}", "", f"`{record['command']}`, {len(record['seeds'])} seeds. {record['says']}", "",
            f"| | {' | '.join(cell(metric['label']) for metric in metrics)} | |", "|---" * (len(metrics) + 2) + "|",
        ]  # fmt: skip
        for arm in record["arms"]:
            cells = [shown(column[arm["name"]], metric["unit"]) if arm["name"] in (column := columns[metric["name"]]) else "" for metric in metrics]
            lines.append(f"| {cell(arm['name'])} | {' | '.join(cells)} | {cell(arm['about'])} |")
        lines += ["", *record["notes"]]
        for figure in record["figures"]:
            lines += ["", f"![{cell(figure['caption'])}](../../{path.relative_to(ROOT).with_suffix('').as_posix()}/{figure['file']})"]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def renewed(text: str, table: str) -> str:
    """The text with this table between its markers; unchanged where it has none."""
    start, end = text.find(BEGIN), text.find(END)
    if start < 0 or end < start:
        return text
    return f"{text[: start + len(BEGIN)]}\n{table}\n{text[end:]}"


def pages() -> Iterator[tuple[Path, str]]:
    """Every page with a table, and what it should say."""
    yield ROOT / "README.md", readme_table()
    yield ROOT / "docs/guides/which-one-for-me.md", comparison_tables()
    for paper in catalog().values():
        card = ROOT / "docs/cards" / paper.family / f"{paper.id}.md"
        if card.is_file():
            yield card, card_table(paper.id)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fill the evidence tables of cards and README from the committed records.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if something is out of date")
    options = parser.parse_args(arguments)
    stale = 0
    for path, table in pages():
        text = path.read_text("utf-8")
        fresh = renewed(text, table)
        if fresh == text:
            continue
        stale += 1
        print(f"{path.relative_to(ROOT)} {'is out of date' if options.check else 'renewed'}")
        if not options.check:
            partial = path.with_name(f".{path.name}.partial")
            partial.write_text(fresh, "utf-8")
            partial.replace(path)
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
