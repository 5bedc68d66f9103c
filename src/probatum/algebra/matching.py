"""Match, count, score and parse lines or files by one weighted pattern: what `probatum match` does.

Yes or no runs as a table automaton over blocks of bytes, in time linear in the file whatever the pattern, and in the
memory of one block. Leftmost-longest spans take one pass from the right (where can a match begin) and one from each
beginning.

>>> finder = Matcher("[0-9]+(ms|s)")
>>> finder.spans("took 12ms, then 3s")
[(5, 9), (16, 18)]
>>> finder.found("nothing here"), Matcher("a*a*", NAT, search=False).weight("aaa")
(False, 4)
"""

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from probatum.algebra.automata import Table, codes
from probatum.algebra.compiled import loops_or_none, worth_compiling
from probatum.algebra.generalized_convolution import Series, grammar, regex
from probatum.algebra.semirings import BOOL, NAT, Semiring
from probatum.algebra.terms import Term, reverse, sequence, symbols
from probatum.algebra.words import Language, Parse, Words
from probatum.errors import ProbatumError

__all__ = ["NAT", "FileCount", "Found", "Matcher", "compile_pattern", "count_files", "match_files"]

_ANY = Term("star", None, (symbols((), negated=True),))


@dataclass(frozen=True)
class Found:
    """A line (or a whole file) that matched.

    Attributes:
        path: file, "-" for standard input. line: from 1; 0 for a whole file.
        text: of the line, without its end; empty for a whole file.
        spans: (start, end) in symbols, leftmost-longest, where asked for. weight: in the semiring, where asked for.
        parses: best first, where asked for.
    """

    path: str
    line: int
    text: str
    spans: tuple[tuple[int, int], ...] = ()
    weight: Any = None
    parses: tuple[Parse, ...] = ()


@dataclass(frozen=True)
class FileCount:
    """How many lines of a file match, of how many, and its size in bytes."""

    path: str
    matched: int
    lines: int
    bytes: int


def compile_pattern(source: str | Path | Series, semiring: Semiring = BOOL) -> Series:
    """A pattern, or (a Path, or text that begins with @) a grammar file, as a Series over words.

    Raises:
        ProbatumError: not in the notation, or a file that cannot be read.
    """
    if isinstance(source, Series):
        return source if source.semiring is semiring else source.over(semiring)
    if isinstance(source, Path) or source.startswith("@"):
        path = Path(source[1:]) if isinstance(source, str) else source
        try:
            return grammar(path.read_text("utf-8"), semiring)
        except (OSError, UnicodeDecodeError) as error:
            raise ProbatumError(f"grammar file {path}: {error}") from None
    return regex(source, semiring)


class Matcher:
    """A pattern compiled for lines and files.

    Args:
        pattern: text, @grammar-file, Path of a grammar, or Series over words.
        semiring: of `weight`.
        search: the pattern may stand anywhere in the text; False: it must be the whole text.
    """

    def __init__(self, pattern: str | Path | Series, semiring: Semiring = BOOL, *, search: bool = True) -> None:
        self.series = compile_pattern(pattern, semiring)
        if not isinstance(self.series.carrier, Words) or self.series.carrier.alphabet is not None:
            raise ProbatumError("pattern must be a series over words of an open alphabet")
        self.semiring, self.search = semiring, search
        language: Language = self.series.data
        self._term, self._rules, self._recursive = language.term, language.rules, language.recursive
        if search:
            self._weighed = Language(sequence([_ANY, language.term, _ANY]), language.rules, semiring, None)
        else:
            self._weighed = language
        boolean = self.series.data if semiring is BOOL else self.series.over(BOOL, lambda weight: weight != semiring.zero).data
        self._plain = boolean
        self._yes = Language(sequence([_ANY, boolean.term, _ANY]), boolean.rules, BOOL, None) if search else boolean
        self._backward: Table | None = None

    def plan(self) -> str:
        """Which evaluation runs, and why."""
        return Words().plan(BOOL, self._yes)

    def found(self, text: str) -> bool:
        """Whether the text matches."""
        return bool(self._yes.weight(text))

    def weight(self, text: str) -> Any:
        """The weight of the text; with search, the sum over all places of the pattern."""
        return self._weighed.weight(text)

    def parses(self, text: str, n: int = 1) -> list[Parse]:
        """The n best derivations of the whole text (with search: of the first span)."""
        if not self.search:
            return self.series.parses(text, n)
        spans = self.spans(text, most=1)
        return self.series.parses(text[slice(*spans[0])], n) if spans else []

    def spans(self, text: str, most: int | None = None) -> list[tuple[int, int]]:
        """Leftmost-longest matches that do not overlap, left to right; empty ones are left out.

        Args:
            most: stop after so many.
        """
        if not self.search:
            return [(0, len(text))] if text and self.found(text) else []
        if self._recursive:
            return self._spans_by_trial(text, most)
        if loops_or_none() is None or not worth_compiling(20 * len(text)):
            return self._spans_by_table(text, most)
        return self._spans_compiled(text, most)

    def _tables(self) -> tuple[Table, Table]:
        if self._backward is None:
            self._backward = Table(Language(sequence([_ANY, reverse(self._plain.term)]), {}, BOOL, None).automaton)
        forward = self._plain.table
        assert forward is not None
        return forward, self._backward

    def _spans_by_table(self, text: str, most: int | None) -> list[tuple[int, int]]:
        """The specification of the compiled passes."""
        forward, backward = self._tables()
        begins, row = [False] * len(text), backward.start
        for i in range(len(text) - 1, -1, -1):
            row = backward.follow(row, backward.automaton.class_numbers(text[i])[0])
            begins[i] = bool(backward.accepts[row])
        spans: list[tuple[int, int]] = []
        at = 0
        numbers = forward.automaton.class_numbers(text)
        while at < len(text) and (most is None or len(spans) < most):
            end = at
            if begins[at]:
                row = forward.start
                for i in range(at, len(text)):
                    row = forward.follow(row, numbers[i])
                    if row == forward.dead:
                        break
                    if forward.accepts[row]:
                        end = i + 1
            if end > at:
                spans.append((at, end))
            at = max(end, at + 1)
        return spans

    def _spans_compiled(self, text: str, most: int | None) -> list[tuple[int, int]]:
        loops = loops_or_none()
        assert loops is not None
        forward, backward = self._tables()
        data = codes(text)
        begins = np.zeros(len(data), np.bool_)
        pos, state = len(data), np.uint32(backward.start * backward.width)
        while True:
            pos, state = loops.marks(backward.table, backward.class_table, data, pos, state, backward.accepts, backward.width, begins)
            if pos == 0:
                break
            state = backward.advance(state, data[pos - 1])
            pos -= 1
            begins[pos] = backward.accepts[int(state) // backward.width]
        spans: list[tuple[int, int]] = []
        reached = 0
        for at in np.flatnonzero(begins).tolist():
            if at < reached:
                continue
            pos, state, best = at, np.uint32(forward.start * forward.width), at
            while True:
                pos, state, best, done = loops.longest(
                    forward.table,
                    forward.class_table,
                    data,
                    pos,
                    len(data),
                    state,
                    forward.accepts,
                    forward.width,
                    np.uint32(forward.dead * forward.width),
                    best,
                )
                if done:
                    break
                state = forward.advance(state, data[pos])
                pos += 1
                if forward.accepts[int(state) // forward.width]:
                    best = pos
            if best > at:
                spans.append((at, best))
                reached = best
                if len(spans) == most:
                    break
        return spans

    def _spans_by_trial(self, text: str, most: int | None) -> list[tuple[int, int]]:
        """Recursive rules: read on from each position as long as anything is alive."""
        automaton = self._plain.automaton
        numbers, at = automaton.class_numbers(text), 0
        spans: list[tuple[int, int]] = []
        while at < len(text) and (most is None or len(spans) < most):
            end = at
            for i, weight in enumerate(self._plain.prefix_weights(numbers[at:])):
                if weight:
                    end = at + i
            if end > at:
                spans.append((at, end))
            at = max(end, at + 1)
        return spans

    def flags(self, block: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray | bytes]:
        """Whole lines of UTF-8, the last one ended: (ends, flags) by line, and the symbols that ends count in."""
        data: np.ndarray = np.frombuffer(block, np.uint8)
        if not block.isascii():
            data = codes(block.decode("utf-8", "surrogateescape"))
        ends = np.flatnonzero(data == 10)
        flags = np.zeros(len(ends), np.bool_)
        table = self._yes.table
        loops = loops_or_none() if worth_compiling(len(data)) else None
        if loops is None or table is None:
            start = 0
            for i, end in enumerate(ends.tolist()):
                flags[i] = bool(self._yes.weight(_text(data[start:end])))
                start = end + 1
            return ends, flags, data
        pos, state, count = 0, np.uint32(table.start * table.width), 0
        out = np.empty(len(ends), np.int64)
        while True:
            pos, state, count = loops.run_lines(
                table.table,
                table.class_table,
                data,
                pos,
                state,
                np.uint32(table.start * table.width),
                table.accepts,
                table.width,
                out,
                flags,
                count,
            )
            if pos == len(data):
                return ends, flags, data
            state = table.advance(state, data[pos])
            pos += 1


def _text(symbols_: np.ndarray) -> str:
    if symbols_.dtype == np.uint8:
        return symbols_.tobytes().decode("latin-1")
    return symbols_.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")


def _blocks(stream: IO[bytes], size: int) -> Iterator[bytes]:
    """Blocks of whole lines; the last line gets an end if it has none."""
    rest: list[bytes] = []
    while block := stream.read(size):
        cut = block.rfind(b"\n") + 1
        if cut:
            yield b"".join([*rest, block[:cut]])
            rest = []
        if cut < len(block):
            rest.append(block[cut:])
    if rest:
        yield b"".join(rest) + b"\n"


def _open(path: str | Path | IO[bytes]) -> tuple[str, IO[bytes]]:
    if not isinstance(path, (str, Path)):
        return "-", path
    try:
        return str(path), open(path, "rb")
    except OSError as error:
        raise ProbatumError(f"file {path}: {error.strerror}") from None


def match_files(
    matcher: Matcher,
    paths: Iterable[str | Path | IO[bytes]],
    *,
    unit: Literal["line", "file"] = "line",
    invert: bool = False,
    spans: bool = False,
    weights: bool = False,
    parses: int = 0,
    block: int = 1 << 22,
) -> Iterator[Found]:
    """The lines (or files) that match, as they are found; files are read block by block.

    Args:
        matcher: what to look for.
        paths: files, or binary streams (shown as "-").
        unit: "file" takes each file as one text, with its line ends.
        invert: what does not match instead (then without spans, weights, parses).
        spans, weights: fill these fields. parses: how many derivations to fill in.
        block: bytes read at a time.
    Raises:
        ProbatumError: a file that cannot be read; unit or numbers out of range.
    """
    if unit not in ("line", "file") or parses < 0 or block < 1:
        raise ProbatumError(f"unit must be line or file, parses at least 0 and block at least 1, got {unit!r}, {parses}, {block}")

    def found(path: str, line: int, text: str, keep: bool) -> Found:
        if invert:
            return Found(path, line, text if keep else "")
        return Found(
            path,
            line,
            text if keep else "",
            tuple(matcher.spans(text)) if spans else (),
            matcher.weight(text) if weights else None,
            tuple(matcher.parses(text, parses)) if parses else (),
        )

    for path in paths:
        name, stream = _open(path)
        try:
            if unit == "file":
                text = stream.read().decode("utf-8", "surrogateescape")
                if matcher.found(text) is not invert:
                    yield found(name, 0, text, False)
                continue
            before = 0
            for part in _blocks(stream, block):
                ends, flags, data = matcher.flags(part)
                for i in np.flatnonzero(flags != invert).tolist():
                    start = int(ends[i - 1]) + 1 if i else 0
                    yield found(name, before + i + 1, _text(data[start : int(ends[i])]), True)  # type: ignore[arg-type]
                before += len(ends)
        finally:
            if not isinstance(stream, io.BytesIO) and name != "-":
                stream.close()


def count_files(matcher: Matcher, paths: Iterable[str | Path | IO[bytes]], *, block: int = 1 << 22) -> Iterator[FileCount]:
    """Matching lines a file, counted without looking at their text."""
    for path in paths:
        name, stream = _open(path)
        try:
            matched = lines = size = 0
            for part in _blocks(stream, block):
                _, flags, _ = matcher.flags(part)
                matched, lines, size = matched + int(flags.sum()), lines + len(flags), size + len(part)
            yield FileCount(name, matched, lines, size)
        finally:
            if name != "-":
                stream.close()
