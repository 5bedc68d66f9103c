"""What the report needs to know of a record: is its form sound, may it be quoted, which one speaks for a claim."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

__all__ = ["VERDICTS", "current_hashes", "flags", "is_older_code", "is_quoted", "problem", "rank", "worst"]

VERDICTS = ("error", "fails", "inconclusive", "holds", "ran")  # the worst first
BUDGETS = ("smoke", "quick", "full")
FORMAT = 1

Record = dict[str, Any]
Hashes = Mapping[tuple[str, str], str]


def current_hashes() -> dict[tuple[str, str], str]:
    """(paper, claim) -> hash of the files it rests on today, for all built papers."""
    from probatum.catalog import catalog
    from probatum.evidence.code import code_hash

    built = [paper for paper in catalog().values() if paper.claims]
    return {(paper.id, claim): code for paper in built for code in [code_hash(paper)] for claim in paper.claims}


def worst(verdicts: Iterable[str]) -> str | None:
    """The verdict that speaks for several; None for none."""
    return min(verdicts, key=VERDICTS.index, default=None)


def _number(value: object) -> bool:
    """A number that a float can hold; JSON allows longer ones."""
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**300)


def _form(record: Record, papers: Iterable[str]) -> Iterable[tuple[bool, str]]:
    """Checks in order, each with what to say where it is not met."""
    yield record.get("format") == FORMAT, f"its format is {record.get('format')!r}, this version reads {FORMAT}"
    kind = record.get("kind", "claim")
    yield kind in ("claim", "comparison"), f"its kind is {kind!r}"
    if kind == "claim":
        paper = record.get("paper")
        yield isinstance(paper, str) and paper in papers, f"the catalog has no paper {paper!r}"
        yield isinstance(record.get("claim"), str), "it names no claim"
        yield record.get("verdict") in VERDICTS, f"its verdict is {record.get('verdict')!r}"
        yield record.get("budget") in BUDGETS, f"its budget is {record.get('budget')!r}"
    else:
        yield isinstance(record.get("name") or record.get("claim"), str), "it has no name"
    for key in ("measurements", "conditions", "figures", "notes", "seeds"):
        yield isinstance(record.get(key, []), list), f"{key} is no list"
    for key in ("measurements", "conditions", "figures"):
        yield all(isinstance(row, dict) for row in record.get(key, [])), f"a row of {key} is no table"
    for key in ("code", "environment"):
        yield isinstance(record.get(key, {}), dict), f"{key} is no table"
    for row in record.get("measurements", []):
        yield isinstance(row.get("system"), str) and isinstance(row.get("metric"), str), "a measurement has no name"
        yield _number(row.get("value")), "a measurement has no value"
        yield isinstance(row.get("unit", ""), str), "a unit is no text"
    for row in record.get("conditions", []):
        yield isinstance(row.get("text"), str) and row.get("verdict") in VERDICTS, "a condition has no text or verdict"
        yield (
            all(row.get(key) is None or _number(row[key]) for key in ("value", "bound")),
            "a condition's number is no number",
        )
        interval = row.get("interval")
        yield (
            interval is None
            or (isinstance(interval, list) and len(interval) == 2 and all(v is None or _number(v) for v in interval)),
            "an interval is no pair",
        )
        yield isinstance(row.get("details") or {}, dict), "details are no table"
    for row in record.get("figures", []):
        yield isinstance(row.get("file"), str), "a figure has no file"


def problem(record: object, papers: Iterable[str]) -> str | None:
    """Why a record cannot be shown, None if it can. Whatever is not asked about here is shown as text."""
    if not isinstance(record, dict):
        return "it is no table"
    return next((said for met, said in _form(record, papers) if not met), None)


def _off_declared(record: Record) -> bool:
    declared = record.get("declared")
    return isinstance(declared, int) and not record.get("ladder") and len(record.get("seeds", [])) != declared


def flags(record: Record) -> list[tuple[str, str]]:
    """What a reader must know before the numbers, as (label, explanation); empty for a record that may be quoted."""
    code, ladder = record.get("code", {}), record.get("ladder")
    out = []
    if code.get("state") == "modified":
        out.append(("modified tree", "the code had changes that no commit holds"))
    if record.get("interrupted"):
        out.append(("interrupted", "the run was stopped before its last seed"))
    if record.get("exploratory"):
        out.append(("exploratory", str(record["exploratory"])))
    if record.get("budget") == "smoke":
        out.append(("smoke", "a trial run of seconds, never a verdict"))
    elif _off_declared(record):
        out.append(
            ("other seeds", f"{len(record.get('seeds', []))} seeds where the claim declares {record['declared']}")
        )
    if isinstance(ladder, dict) and ladder.get("extended"):
        out.append(("extended after looking", "3.6 % a side, not 2.5"))
    return out


def is_quoted(record: Record) -> bool:
    """Whether the index may count its verdict: clean code, complete, as declared."""
    unquoted = {"modified tree", "interrupted", "exploratory", "smoke", "other seeds"}
    return record.get("verdict") in ("holds", "fails", "inconclusive") and not unquoted & {
        label for label, _ in flags(record)
    }


def is_older_code(record: Record, current: Hashes) -> bool:
    """Whether the files that the record was made by differ from those of today; False where today's are unknown."""
    today = current.get((record.get("paper", ""), record.get("claim", "")))
    return today is not None and record.get("code", {}).get("hash") != today


def rank(record: Record, *, older: bool = False) -> tuple:
    """Sort key by which the greatest record speaks for its claim.

    The newest version of the claim first, then quoted before not, today's code before older, the larger budget, the CPU
    (which every reader has) and last the later start.
    """
    version = record.get("version")
    return (
        version if isinstance(version, int) else 0,
        is_quoted(record),
        not older,
        BUDGETS.index(record["budget"]) if record.get("budget") in BUDGETS else -1,
        record.get("device", "cpu") == "cpu",
        _moment(record.get("started")),
    )


def _moment(stamp: object) -> float:
    try:
        return datetime.fromisoformat(str(stamp)).timestamp()
    except (ValueError, OverflowError, OSError):
        return 0.0
