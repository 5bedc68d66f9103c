"""Lines, spans and files against re2 and Python's own re; streaming in blocks; n-best."""

import io
import random
import re

import pytest

from probatum import ProbatumError
from probatum.algebra import matching
from probatum.algebra.matching import Matcher, count_files, match_files
from probatum.algebra.semirings import BOOL, MINPLUS, NAT, PROB

TEXT = "one fish\ntwo\n\nred fish, bläu fish\nfi sh\r\nfish"


def test_lines_of_a_file(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text(TEXT, "utf-8", newline="")
    for block in (1, 3, 7, 1 << 20):
        found = list(match_files(Matcher("fish"), [path], spans=True, block=block))
        assert [(f.line, f.text, f.spans) for f in found] == [
            (1, "one fish", ((4, 8),)),
            (4, "red fish, bläu fish", ((4, 8), (15, 19))),
            (6, "fish", ((0, 4),)),
        ]
        (count,) = count_files(Matcher("fish"), [path], block=block)
        assert (count.matched, count.lines) == (3, 6)
        assert [f.line for f in match_files(Matcher("fish"), [path], invert=True, block=block)] == [2, 3, 5]
        assert [f.line for f in match_files(Matcher("(one|two) ?.*", search=False), [path], block=block)] == [1, 2]
    assert [f.path for f in match_files(Matcher("sh"), [io.BytesIO(b"x\nsh")])] == ["-"]
    (whole,) = match_files(Matcher("two\n\nred"), [path], unit="file")
    assert (whole.line, whole.text) == (0, "")
    assert not list(match_files(Matcher("two.*red"), [path], unit="file"))


@pytest.mark.parametrize("compiled", [True, False])
def test_against_re_on_random_lines(compiled, monkeypatch):
    monkeypatch.setattr(matching, "worth_compiling", lambda steps: compiled)
    rng = random.Random(0)
    lines = ["".join(rng.choices("abcé 01", k=rng.randint(0, 12))) for _ in range(400)]
    blob = "\n".join(lines).encode()
    for pattern in ("a[bc]*a", "é", "0|1", "(ab|b)(é| )", "[^a-cé]{2}", "a*"):
        expected = [i + 1 for i, line in enumerate(lines) if re.search(pattern, line)]
        assert [f.line for f in match_files(Matcher(pattern), [io.BytesIO(blob)], block=97)] == expected
        exact = [i + 1 for i, line in enumerate(lines) if re.fullmatch(pattern, line)]
        assert [f.line for f in match_files(Matcher(pattern, search=False), [io.BytesIO(blob)], block=97)] == exact


@pytest.mark.parametrize("compiled", [True, False])
def test_leftmost_longest_spans_against_re2(compiled, monkeypatch):
    re2 = pytest.importorskip("re2")
    monkeypatch.setattr(matching, "worth_compiling", lambda steps: compiled)
    options = re2.Options()
    options.longest_match = True
    rng = random.Random(1)
    for pattern in ("a|ab|abc", "(a|b)*c", "b+|ba", "c(a*b)*", "ab?c?a", "[ab]c|b"):
        ours, theirs = Matcher(pattern), re2.compile(pattern, options)
        for _ in range(60):
            text = "".join(rng.choices("abc", k=rng.randint(0, 25)))
            expected = [m.span() for m in theirs.finditer(text) if m.end() > m.start()]
            assert ours.spans(text) == expected, (pattern, text)
            assert ours.spans(text, most=1) == expected[:1]
            assert ours.found(text) == (theirs.search(text) is not None)


def test_spans_and_lines_with_a_full_table():
    small, large = Matcher("[ab]*a[ab]{5}c|b"), Matcher("[ab]*a[ab]{5}c|b")
    small._yes.table.limit = 5
    for table in small._tables():
        table.limit = 5
    rng = random.Random(4)
    texts = ["".join(rng.choices("abbac", k=200)) for _ in range(20)]
    assert [small._spans_compiled(t, None) for t in texts] == [large._spans_by_table(t, None) for t in texts]
    blob = "\n".join(texts).encode() + b"\n"
    assert (small.flags(blob * 20)[1] == large.flags(blob * 20)[1]).all()


def test_weights_over_all_places():
    assert Matcher("a*a*", NAT, search=False).weight("aaaa") == 5
    assert Matcher("ana", NAT).weight("banana") == 2  # overlapping places count
    assert Matcher("(?=3)a|(?=1)b", MINPLUS).weight("xxaxb") == 1.0
    (found,) = match_files(Matcher("ana", NAT), [io.BytesIO(b"banana\n")], weights=True, spans=True)
    assert found.weight == 2 and found.spans == ((1, 4),)


def test_grammar_files_and_parses(tmp_path):
    path = tmp_path / "calls.grammar"
    path.write_text('call = name "(" (call ("," call)*)? ")" <0.5> | name <0.5>\nname = [a-z]+\n')
    matcher = Matcher(path, PROB, search=False)
    assert matcher.weight("f(x,g(y))") == 0.5**4 and not matcher.found("f(x")
    (found,) = match_files(matcher, [io.BytesIO(b"f(\nf(x)\n")], parses=1)
    (tree,) = found.parses
    assert (found.line, tree.name, [p.name for p in tree.parts]) == (2, "call", ["name", "call"])
    finder = Matcher(f"@{path}", BOOL)
    assert finder.spans("1 f(x) + g") == [(2, 6), (9, 10)]
    assert finder.found("1+1") is False and finder.parses("1 f(x)")[0].name == "call"


def test_pathological_patterns_stay_linear():
    """(a*)*b on a^n takes a backtracking matcher 2^n steps."""
    matcher = Matcher("(a*)*b")
    assert not matcher.found("a" * 200_000) and matcher.found("a" * 200_000 + "b")


def test_reading_goes_on_from_block_to_block():
    class Slow(io.BytesIO):
        largest = 0

        def read(self, size=-1):
            Slow.largest = max(Slow.largest, size)
            return super().read(size)

    data = b"".join(b"line %d\n" % i for i in range(5000))
    (count,) = count_files(Matcher("9$".replace("$", "")), [Slow(data)], block=512)
    assert count.lines == 5000 and Slow.largest == 512 and count.bytes == len(data)
    assert count.matched == sum("9" in str(i) for i in range(5000))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Matcher("@/nowhere/x.grammar"), "grammar file /nowhere/x.grammar"),
        (lambda: list(match_files(Matcher("a"), ["/nowhere/file"])), "file /nowhere/file: No such file"),
        (lambda: list(match_files(Matcher("a"), [], unit="word")), "unit must be line or file"),
        (lambda: list(match_files(Matcher("a"), [], parses=-1)), "parses at least 0"),
        (lambda: Matcher("(a"), "not closed"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ProbatumError, match=message):
        call()
