"""The pages of the report: the index, a page a paper, a page a comparison."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from statistics import fmean, stdev
from typing import Any

from probatum import __version__
from probatum.catalog import Family, Paper
from probatum.evidence.report.markup import Markup, amount, el, inline, join, number, prose, short
from probatum.evidence.report.reading import VERDICTS, Record, flags, is_quoted, worst
from probatum.evidence.report.strips import interval_strip, seed_strip

__all__ = ["Comparison", "Entry", "Picture", "Shown", "comparison_page", "index_page", "paper_page"]

CHANCE = "At most 2.5 in 100 claims that are not true hold by chance."
MARKS = {"holds": "✓", "fails": "✗", "inconclusive": "≈", "error": "!", "ran": "·"}


@dataclass(frozen=True)
class Picture:
    """A figure of a record: where the site keeps it (None where the file is missing) and its size in pixels."""

    name: str
    caption: str
    at: str | None
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Shown:
    """A record as the site shows it: `data` and the pictures' `at` are paths from the site's root."""

    record: Record
    data: str
    pictures: tuple[Picture, ...] = ()
    older: bool = False


@dataclass
class Entry:
    """A paper and its records by claim, the one that speaks for the claim first."""

    paper: Paper
    claims: dict[str, list[Shown]] = field(default_factory=dict)

    @property
    def verdict(self) -> str | None:
        return worst(shown[0].record["verdict"] for shown in self.claims.values())


@dataclass(frozen=True)
class Comparison:
    """One comparison: its records, newest first, and the file name of its page."""

    name: str
    title: str
    page: str
    records: tuple[Shown, ...]


def asset(name: str) -> str:
    return files("probatum.evidence.report").joinpath(name).read_text("utf-8")


def page(title: str, body: Markup, *, root: str, script: str = "") -> str:
    """A whole document. The policy lets only this script run, should a record ever smuggle one in."""
    allowed = f"'sha256-{_digest(script)}'" if script else "'none'"
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el(
            "meta",
            http_equiv="Content-Security-Policy",
            content=f"script-src {allowed}; connect-src 'none'; object-src 'none'; base-uri 'none'; form-action 'none'",
        ),
        el("meta", name="color-scheme", content="light dark"),
        el("meta", name="generator", content=f"probatum {__version__}"),
        el("title", title),
        el("link", rel="icon", href="data:,"),
        el("link", rel="stylesheet", href=f"{root}style.css"),
    )
    foot = el(
        "footer",
        f"Written by probatum {__version__}. The records behind every number lie in ",
        el("code", "data/"),
        ".",
    )
    tail = el("script", Markup(script)) if script else ""
    document = el("html", head, el("body", el("main", body, id="top"), foot, tail), lang="en")
    return f"<!doctype html>\n{document}\n"


def _digest(script: str) -> str:
    from base64 import b64encode

    return b64encode(hashlib.sha256(script.encode()).digest()).decode()


def badge(verdict: str | None, *, of: str = "") -> Markup | None:
    """A verdict as mark and word, so that colour is never the only sign."""
    if verdict is None:
        return None
    return el(
        "span",
        el("span", MARKS[verdict], aria_hidden="true"),
        f" {verdict}",
        of and f" {of}",
        class_=f"badge {verdict}",
    )


def plural(n: int, word: str) -> str:
    return f"{n} {word}" + ("" if n == 1 else "s")


# The index


def index_page(
    families: Sequence[Family],
    entries: Sequence[Entry],
    comparisons: Sequence[Comparison],
    left_out: Sequence[tuple[str, str]],
) -> str:
    """All papers by family, the counts of the verdicts, and what was left out and why."""
    script = asset("filter.js")
    speaking = [shown[0].record for entry in entries for shown in entry.claims.values()]
    built = sum(entry.paper.state == "built" for entry in entries)
    body = join(
        el(
            "header",
            el("p", "probatum", class_="eyebrow"),
            el("h1", "Efficient deep learning, tested"),
            el(
                "p",
                f"{len(entries)} published methods as parts to use, each with its claim run again. "
                f"So far {built} built, {plural(len(speaking), 'claim')} measured.",
                class_="lead",
            ),
        ),
        _tally(speaking),
        _comparison_list(comparisons),
        _filter_bar(families, entries),
        [_family(family, [e for e in entries if e.paper.family == family.id]) for family in families],
        el("p", "No paper meets this choice.", id="none", hidden=True),
        left_out and _left_out(left_out),
    )
    return page("probatum: efficient deep learning, tested", body, root="", script=script)


def _tally(speaking: Sequence[Record]) -> Markup:
    """How many claims hold, fail and stay open, counted over records that may be quoted."""
    quoted = [r for r in speaking if is_quoted(r)]
    names = ("holds", "fails", "inconclusive")
    counts = {v: sum(r["verdict"] == v for r in quoted) for v in names}
    rest = len(speaking) - len(quoted)
    bar = el(
        "div",
        [el("span", class_=v, style=f"flex-grow:{counts[v]}") for v in names if counts[v]],
        class_="bar-of-three",
        aria_hidden="true",
    )
    plurals = {"holds": "hold", "fails": "fail"}
    return el(
        "section",
        el("h2", "Verdicts", class_="quiet"),
        el(
            "dl",
            [
                el(
                    "div",
                    el("dt", el("span", MARKS[v], aria_hidden="true"), " ", v if counts[v] == 1 else plurals.get(v, v)),
                    el("dd", counts[v]),
                    class_=v,
                )
                for v in names
            ],
            class_="tally",
        ),
        quoted and bar,
        el(
            "p",
            f"{CHANCE} A claim is counted once, by its latest record from committed code with the declared seeds.",
            f" Not counted: {plural(rest, 'claim')} whose record is a trial run, ended in an error, was stopped,"
            " is exploratory or comes from a modified tree."
            if rest
            else None,
            class_="note",
        ),
        class_="verdicts",
    )


def _comparison_list(comparisons: Sequence[Comparison]) -> Markup | None:
    if not comparisons:
        return None
    rows = [
        el(
            "li",
            el("a", c.title, href=f"comparisons/{c.page}"),
            el("p", short(str(c.records[0].record.get("says") or ""), 200))
            if c.records[0].record.get("says")
            else None,
        )
        for c in comparisons
    ]
    return el("section", el("h2", "Comparisons"), el("ul", rows, class_="papers"), id="comparisons")


def _filter_bar(families: Sequence[Family], entries: Sequence[Entry]) -> Markup:
    """Shown by the script alone, since without it a filter would do nothing."""

    def choose(name: str, label: str, options: Iterable[tuple[str, str]]) -> Markup:
        items = [el("option", shown, value=value) for value, shown in options]
        return el("label", el("span", label), el("select", items, id=name))

    standing = [
        ("built", "built"),
        ("planned", "planned"),
        *((v, v) for v in ("holds", "fails", "inconclusive", "error")),
    ]
    return el(
        "form",
        choose("by-family", "Family", [("", "all"), *((f.id, f.title) for f in families)]),
        choose("by-state", "State", [("", "any"), *standing]),
        el("label", el("span", "Search"), el("input", type="search", id="by-text", autocomplete="off")),
        el("output", plural(len(entries), "paper"), id="shown", for_="by-family by-state by-text"),
        id="filter",
        hidden=True,
        role="search",
    )


def _family(family: Family, entries: Sequence[Entry]) -> Markup:
    return el(
        "section",
        el("h2", family.title, " ", el("span", plural(len(entries), "paper"), class_="count")),
        el("p", family.about[:1].upper() + family.about[1:] + ".", class_="about"),
        el("ul", [_row(entry) for entry in entries], class_="papers"),
        id=f"family-{family.id}",
        class_="family",
        data_family=family.id,
    )


def _row(entry: Entry) -> Markup:
    paper = entry.paper
    marks = {label for shown in entry.claims.values() for label, _ in flags(shown[0].record)}
    if any(shown[0].older for shown in entry.claims.values()):
        marks.add("older code")
    return el(
        "li",
        el("a", paper.title, href=f"papers/{paper.id}.html"),
        el("p", el("code", paper.id), f" · {paper.year} · {paper.idea}"),
        el(
            "p",
            badge(entry.verdict),
            el("span", paper.state, class_=f"badge {paper.state}"),
            [el("span", mark, class_="badge flag") for mark in sorted(marks)],
            class_="badges",
        ),
        data_words=f"{paper.use} {paper.arxiv}",
        data_state=paper.state,
        data_verdict=entry.verdict or "",
    )


def _left_out(left_out: Sequence[tuple[str, str]]) -> Markup:
    items = [el("li", el("code", short(name, 120)), ": ", short(why)) for name, why in left_out]
    return el(
        "details",
        el("summary", f"{plural(len(left_out), 'record')} could not be shown"),
        el("ul", items),
        class_="left-out",
    )


# A page a paper


def paper_page(entry: Entry, family: Family, neighbours: Sequence[Paper]) -> str:
    """A paper: idea and use, then each claim with its evidence. `neighbours`: all papers of the family."""
    paper = entry.paper
    facts = [
        (
            "Paper",
            el("a", f"arXiv {paper.arxiv}", href=f"https://arxiv.org/abs/{paper.arxiv}", rel="noreferrer"),
            f" ({paper.year})",
        ),
        ("Family", el("a", family.title, href=f"../index.html#family-{family.id}")),
        paper.public
        and (
            "Gives",
            join_words(el("code", name) for name in paper.public),
            " in ",
            el("code", f"probatum.{family.id}"),
        ),
    ]
    unmeasured = [claim for claim in paper.claims if claim not in entry.claims]
    body = join(
        _crumbs(family),
        el(
            "header",
            el("p", el("code", paper.id), class_="eyebrow"),
            el("h1", paper.title),
            el("p", badge(entry.verdict), el("span", paper.state, class_=f"badge {paper.state}"), class_="badges"),
        ),
        el(
            "dl",
            el("div", el("dt", "Idea"), el("dd", paper.idea)),
            el("div", el("dt", "Use it to"), el("dd", paper.use[:1].lower() + paper.use[1:])),
            [el("div", el("dt", fact[0]), el("dd", *fact[1:])) for fact in facts if fact],
            class_="facts",
        ),
        [_claim(claim, shown) for claim, shown in entry.claims.items()],
        unmeasured and _unmeasured(paper, unmeasured),
        not entry.claims and not unmeasured and _nothing_yet(paper),
        _neighbours(paper, neighbours),
    )
    return page(f"{paper.id}: {paper.title}", body, root="../")


def join_words(items: Iterable[Markup]) -> Markup:
    return join((", " if at else None, item) for at, item in enumerate(items))


def _crumbs(family: Family | None = None) -> Markup:
    return el(
        "nav",
        el("a", "All papers", href="../index.html"),
        family and (" / ", el("a", family.title, href=f"../index.html#family-{family.id}")),
        class_="crumbs",
        aria_label="You are here",
    )


def _unmeasured(paper: Paper, claims: Sequence[str]) -> Markup:
    return el(
        "section",
        el("h2", "Not measured yet"),
        el("p", "No record was found for ", join_words(el("code", claim) for claim in claims), ". To measure:"),
        el("pre", el("code", "\n".join(f"probatum check {paper.id}:{claim}" for claim in claims)), tabindex=0),
    )


def _nothing_yet(paper: Paper) -> Markup:
    if paper.state == "planned":
        return el("p", "This paper is planned: nothing of it is built yet.", class_="note")
    return el("p", "No record was found. To measure: ", el("code", f"probatum check {paper.id}"), class_="note")


def _neighbours(paper: Paper, papers: Sequence[Paper]) -> Markup | None:
    at = [p.id for p in papers].index(paper.id)
    before, after = papers[at - 1] if at else None, papers[at + 1] if at + 1 < len(papers) else None
    return el(
        "nav",
        before and el("a", f"← {before.id}", href=f"{before.id}.html", rel="prev"),
        after and el("a", f"{after.id} →", href=f"{after.id}.html", rel="next", class_="after"),
        class_="neighbours",
        aria_label="Papers of the family",
    )


def _claim(claim: str, shown: Sequence[Shown]) -> Markup:
    first, *others = shown
    record = first.record
    return el(
        "article",
        el("h2", el("code", claim), " ", badge(record["verdict"])),
        el("p", inline(str(record.get("says") or claim)), class_="says"),
        record_body(first),
        others
        and el(
            "details",
            el("summary", plural(len(others), "more record")),
            [
                el(
                    "section",
                    el("h3", _when(o.record), " ", badge(o.record["verdict"])),
                    record_body(o),
                    class_="another",
                )
                for o in others
            ],
        ),
        class_="claim",
    )


def _when(record: Record) -> str:
    parts = [record.get("budget"), record.get("device"), record.get("version") and f"version {record['version']}"]
    started = str(record.get("started") or "")[:10]
    return ", ".join(str(p) for p in [*parts, started] if p)


def record_body(shown: Shown) -> Markup:
    """Everything one record says: warnings, conditions, figures, measurements, how it was made."""
    record = shown.record
    warnings = flags(record)
    if shown.older:
        warnings.append(("measured by older code", "the claim's, the paper's or the family's files have changed since"))
    paper_says = record.get("paper_figure")
    source = record.get("source")
    return join(
        warnings
        and el("ul", [el("li", el("strong", label), ": ", short(text)) for label, text in warnings], class_="warnings"),
        record.get("error")
        and join(
            el("p", el("strong", "It could not run:")),
            el("pre", short(str(record["error"]), 4000), tabindex=0, class_="error"),
        ),
        _summary(record),
        (paper_says or source)
        and el(
            "p",
            el("strong", "The paper's own figure: "),
            inline(str(paper_says)) if paper_says else "none given",
            source and f" ({source})",
            class_="own",
        ),
        _conditions(record.get("conditions", [])),
        [_picture(p, at) for at, p in enumerate(shown.pictures)],
        _measurements(record.get("measurements", [])),
        record.get("protocol") and el("details", el("summary", "What is compared, and how"), prose(record["protocol"])),
        record.get("notes")
        and el("ul", [el("li", inline(short(str(n), 1000))) for n in record["notes"]], class_="notes"),
        _making(shown),
    )


def _summary(record: Record) -> Markup:
    seeds = record.get("seeds", [])
    seconds = record.get("seconds")
    parts = [
        f"budget {record['budget']}" if record.get("budget") else None,
        f"on {record['device']}" if record.get("device") else None,
        plural(len(seeds), "seed") if seeds else None,
        _duration(seconds) if isinstance(seconds, (int, float)) else None,
        str(record.get("started") or "")[:10] or None,
        f"version {record['version']} of the claim" if record.get("version") else None,
    ]
    return el("p", " · ".join(p for p in parts if p), class_="meta")


def _duration(seconds: float) -> str:
    if not 0 <= seconds < 1e8:
        return f"{number(seconds)} s"
    if seconds < 90:
        return f"{number(round(seconds, 1))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{number(round(seconds / 3600, 1))} h"


def _conditions(conditions: Sequence[dict[str, Any]]) -> Markup | None:
    """A table that stacks on a phone: text, the drawing, numbers, verdict."""
    if not conditions:
        return None
    heads = ("Condition", "Interval and bound", "Value", "Interval", "Bound", "Verdict")
    rows = []
    for condition in conditions:
        interval = condition.get("interval")
        cells = [
            join(inline(condition["text"]), _fine_print(condition)),
            interval_strip(condition),
            number(condition.get("value")),
            f"{_end(interval[0], '−')} to {_end(interval[1])}" if interval else "none",
            number(condition.get("bound")),
            badge(condition["verdict"]),
        ]
        kinds = ("text", "drawn", "n", "n", "n", "")
        rows.append(
            el(
                "tr",
                [
                    el("td", cell, data_label=head, class_=kind or None)
                    for head, cell, kind in zip(heads, cells, kinds, strict=True)
                ],
            )
        )
    return el(
        "table",
        el("caption", "Conditions"),
        el("thead", el("tr", [el("th", head, scope="col") for head in heads])),
        el("tbody", rows),
        class_="conditions",
    )


def _end(end: float | None, sign: str = "") -> str:
    """An end of an interval; JSON has null for what is not finite."""
    return f"{sign}∞" if end is None else number(end)


def _fine_print(condition: dict[str, Any]) -> Markup:
    names = {"kind": "kind", "n": "n", "sd": "sd", "half_width": "half-width", "p": "p at the bound"}
    parts = [
        f"{said}\u00a0{number(condition[key], 3)}" for key, said in names.items() if condition.get(key) is not None
    ]
    details = condition.get("details") or {}
    more = [f"{short(str(key), 40)}\u00a0{_detail(value)}" for key, value in details.items()]
    return join(
        el("span", " · ".join(parts + more), class_="fine") if parts or more else None,
        condition.get("advice") and el("span", short(str(condition["advice"])), class_="fine advice"),
    )


def _detail(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(number(v, 3) for v in value[:20]) + (", …" if len(value) > 20 else "")
    return number(value, 3)


def _picture(picture: Picture, at: int) -> Markup:
    caption = picture.caption or picture.name
    if picture.at is None:
        return el(
            "figure",
            el("figcaption", caption, el("span", " The image file is missing.", class_="fine")),
            class_="missing",
        )
    width, height = picture.size or (None, None)
    image = el("img", src=f"../{picture.at}", alt=short(caption), width=width, height=height)
    return el("figure", el("a", image, href=f"../{picture.at}"), el("figcaption", inline(caption)))


def _measurements(rows: Sequence[dict[str, Any]]) -> Markup | None:
    """Mean and standard deviation over seeds of each system, metric by metric, with the seeds drawn on one scale."""
    if not rows:
        return None
    table: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in rows:
        by_system = table.setdefault((row["metric"], row.get("unit") or ""), {})
        by_system.setdefault(row["system"], []).append(float(row["value"]))
    bodies = []
    for (metric, unit), by_system in table.items():
        values = [v for vs in by_system.values() for v in vs]
        scale = (min(values), max(values))
        lines = [
            el(
                "tr",
                el("th", metric, unit and el("span", f" ({unit})", class_="fine-inline"), colspan=5, scope="rowgroup"),
            )
        ]
        for system, vs in by_system.items():
            cells = [
                amount(fmean(vs), _binary(unit)),
                amount(stdev(vs), _binary(unit)) if len(vs) > 1 else "–",
                str(len(vs)),
            ]
            lines.append(
                el(
                    "tr",
                    el("th", system, scope="row"),
                    [el("td", cell, class_="n") for cell in cells],
                    el("td", seed_strip(vs, scale), class_="drawn"),
                )
            )
        bodies.append(el("tbody", lines))
    heads = ("System", "Mean", "Sd", "n", "Seeds")
    return el(
        "div",
        el("h3", "Measurements"),
        el("p", "Mean and standard deviation over n seeds; a dot is one seed, the tick their mean.", class_="fine"),
        el(
            "table",
            el("thead", el("tr", [el("th", head, scope="col") for head in heads])),
            bodies,
            class_="measurements",
        ),
        class_="scroll",
        tabindex=0,
        role="region",
        aria_label="Measurements",
    )


def _binary(unit: str) -> str:
    """The unit where it changes with the size of the number; elsewhere the metric's own line says it once."""
    return unit if unit.lower() in ("b", "byte", "bytes") else ""


def _making(shown: Shown) -> Markup:
    """Machine, code and command: what somebody needs to measure it again."""
    record, code, machine = shown.record, shown.record.get("code", {}), shown.record.get("environment", {})
    cores, load = machine.get("cores"), machine.get("load")
    memory = machine.get("memory_bytes")
    libraries = machine.get("libraries")
    ladder = record.get("ladder")
    rows = [
        (
            "Code",
            " ".join(
                str(p) for p in (code.get("commit") or "no commit", code.get("state") and f"({code['state']})") if p
            ),
        ),
        ("Hash of its files", code.get("hash")),
        ("probatum", record.get("probatum")),
        ("Machine", ", ".join(str(p) for p in (machine.get("cpu"), cores and f"{cores} cores") if p)),
        ("Memory", amount(memory, "B") if isinstance(memory, (int, float)) else None),
        ("GPU", machine.get("gpu")),
        ("System", machine.get("platform")),
        ("Python", machine.get("python")),
        ("Threads", machine.get("threads")),
        ("Load", ", ".join(number(v) for v in load) if isinstance(load, list) else load is not None and number(load)),
        ("Libraries", ", ".join(f"{k} {v}" for k, v in libraries.items()) if isinstance(libraries, dict) else None),
        ("Seeds", ", ".join(str(s) for s in record.get("seeds", [])[:60])),
        ("Looks", ", ".join(map(str, ladder.get("looks") or [])) if isinstance(ladder, dict) else None),
    ]
    facts = [el("div", el("dt", name), el("dd", value)) for name, value in rows if value not in (None, "", False)]
    return el(
        "details",
        el("summary", "How it was made"),
        record.get("command") and el("pre", el("code", record["command"]), tabindex=0),
        el("dl", facts, class_="facts small"),
        el("p", el("a", "The record as JSON", href=f"../{shown.data}")),
    )


# Comparisons


def comparison_page(comparison: Comparison) -> str:
    """One comparison: the newest record in full, older ones folded."""
    first, *others = comparison.records
    record = first.record
    body = join(
        _crumbs(),
        el("header", el("p", "comparison", class_="eyebrow"), el("h1", comparison.title)),
        record.get("says") and el("p", inline(str(record["says"])), class_="says"),
        record_body(first),
        others
        and el(
            "details",
            el("summary", plural(len(others), "more record")),
            [el("section", el("h3", _when(o.record)), record_body(o), class_="another") for o in others],
        ),
    )
    return page(f"{comparison.title}: a comparison", body, root="../")


assert set(MARKS) == set(VERDICTS)
