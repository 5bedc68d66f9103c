"""Two notations for terms: regular expressions in the manner of `re`, and grammars of named rules.

Pattern: literals, `.` (all but newline), `[a-z]` `[^...]`, `\\d \\w \\s` and their complements (ASCII), `\\n \\t \\r
\\f \\v \\0 \\xHH \\uHHHH`, `( )` `(?: )`, `(?P<name> )` (a part that parses show), `|`, `* + ?`, `{m} {m,} {m,n}`;
beyond `re`: `(?&name)` refers to a rule (recursion allowed) and `(?=0.5)` is a weight. A pattern always describes whole
words. No look-around, back-references or anchors, since they are not regular.

Grammar: one rule a line, `name = body`; lines that begin with a blank go on; `#` starts a comment. In a body blanks
separate, "text" and 'text' are literal, a bare name refers to a rule, `<0.5>` is a weight, the rest is as in a pattern.
The first rule is where words start.

>>> rules = parse_grammar('''
... sum  = term ("+" sum)?      # a sum of terms
... term = [0-9]+ <0.75> | "(" sum ")" <0.25>
... ''')
>>> list(rules)
['sum', 'term']
"""

import re
from typing import Any

from probatum.algebra.terms import (
    EPSILON,
    NOTHING,
    Term,
    alternatives,
    mark,
    reference,
    repeat,
    sequence,
    symbols,
    value,
)
from probatum.errors import ProbatumError

__all__ = ["parse_grammar", "parse_pattern"]

_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "0": "\0"}
_DIGITS = frozenset("0123456789")
_SETS = {
    "d": _DIGITS,
    "w": _DIGITS | frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_"),
    "s": frozenset(" \t\n\r\f\v"),
}
_NAME = re.compile(r"[A-Za-z_]\w*")
_NUMBER = r"[+-]?(?:inf|\d+/\d+|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
_COUNT = re.compile(r"\{(\d+)(?:(,)(\d*))?\}")
_MOST = 10_000


def parse_pattern(text: str) -> Term:
    """The term of a pattern.

    Raises:
        ProbatumError: not in the notation; shows the position.
    """
    return _Parser(text, grammar=False).parse()


def parse_grammar(text: str) -> dict[str, Term]:
    """Rule name -> term, in the order written.

    Raises:
        ProbatumError: no rules, a name defined twice, a body that is not in the notation.
    """
    bodies: dict[str, str] = {}
    name = None
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        head = re.match(r"([A-Za-z_]\w*)\s*(?:=|->|::=)(.*)", line)
        if line[0].isspace() and name is not None:
            bodies[name] += "\n" + line
        elif head is None:
            raise ProbatumError(f"grammar line {number} must be 'name = body' or begin with a blank to continue, got {line!r}")
        elif head[1] in bodies:
            raise ProbatumError(f"grammar line {number} defines rule {head[1]!r} twice; write its alternatives with |")
        else:
            name = head[1]
            bodies[name] = head[2]
    if not bodies:
        raise ProbatumError("the grammar has no rules: a rule is a line 'name = body'")
    return {name: _Parser(body, grammar=True).parse() for name, body in bodies.items()}


def _number(text: str) -> Any:
    from fractions import Fraction

    if "/" in text:
        return Fraction(text)
    return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)


class _Parser:
    """One pass with a stack of open groups; each group is (name, finished alternatives, the sequence being read)."""

    def __init__(self, text: str, grammar: bool) -> None:
        self.text, self.at, self.grammar = text, 0, grammar
        self.groups: list[tuple[str | None, list[Term], list[Term]]] = [(None, [], [])]

    def fail(self, why: str) -> ProbatumError:
        return ProbatumError(f"{'grammar' if self.grammar else 'pattern'} {self.text.strip()!r}, position {self.at}: {why}")

    def take(self, pattern: str) -> re.Match | None:
        found = re.compile(pattern).match(self.text, self.at)
        if found:
            self.at = found.end()
        return found

    def parse(self) -> Term:
        while self.at < len(self.text):
            self.item()
        if len(self.groups) > 1:
            raise self.fail("a '(' is not closed")
        return self.close()

    def close(self) -> Term:
        name, done, current = self.groups.pop()
        term = alternatives([*done, sequence(current) if current else EPSILON])
        return term if name is None else mark(name, term)

    def put(self, term: Term) -> None:
        self.groups[-1][2].append(term)

    def item(self) -> None:
        start, c = self.at, self.text[self.at]
        if self.grammar and (c.isspace() or c == "#"):
            self.take(r"\s+|#[^\n]*")
            return
        if found := self.take(r"\(\?&([A-Za-z_]\w*)\)"):
            self.put(reference(found[1]))
        elif (found := self.take(rf"\(\?=({_NUMBER})\)")) or (self.grammar and (found := self.take(rf"<\s*({_NUMBER})\s*>"))):
            self.put(value(_number(found[1])))
        elif found := self.take(r"\(\?P?<([A-Za-z_]\w*)>"):
            self.groups.append((found[1], [], []))
        elif self.take(r"\(\?:") or (c == "(" and not self.text.startswith("(?", self.at) and self.take(r"\(")):
            self.groups.append((None, [], []))
        elif c == ")":
            if len(self.groups) == 1:
                raise self.fail("a ')' has no '('")
            self.at += 1
            self.put(self.close())
        elif c == "|":
            self.at += 1
            name, done, current = self.groups.pop()
            self.groups.append((name, [*done, sequence(current) if current else EPSILON], []))
        elif c in "*+?" or (c == "{" and _COUNT.match(self.text, self.at)):
            self.quantifier(c)
        elif c == "[":
            self.put(self.char_set())
        elif c == ".":
            self.at += 1
            self.put(symbols("\n", negated=True))
        elif c == "\\":
            self.put(self.escape())
        elif self.grammar and c in "\"'":
            self.quoted(c)
        elif self.grammar and (found := self.take(_NAME.pattern)):
            self.put(reference(found[0]))
        elif c == "(":
            raise self.fail("after '(?' expected ':', 'P<name>', '&rule)' or '=weight)'; look-around is not regular")
        elif c in "^$" and not self.grammar:
            raise self.fail(f"{c!r} is an anchor, and a pattern describes whole words; write '\\{c}' for the character")
        elif self.grammar:
            raise self.fail(f"{c!r} must be quoted")
        else:
            self.at += 1
            self.put(symbols(c))
        assert self.at > start

    def quantifier(self, c: str) -> None:
        current = self.groups[-1][2]
        if not current:
            raise self.fail(f"nothing to repeat before {c!r}")
        if found := _COUNT.match(self.text, self.at):
            least, most = int(found[1]), int(found[1]) if not found[2] else int(found[3]) if found[3] else None
            if max(least, most or 0) > _MOST or (most is not None and most < least):
                raise self.fail(f"repetition {found[0]} must have m <= n <= {_MOST}")
            self.at = found.end()
        else:
            least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[c]
            self.at += 1
        if self.text[self.at : self.at + 1] in ("?", "+") and not self.grammar:
            raise self.fail("lazy and possessive repetition mean nothing for whole words")
        current[-1] = repeat(current[-1], least, most)

    def escape_symbol(self) -> str | None:
        """The character of an escape; None, with the cursor unmoved, for a set such as \\d."""
        if found := self.take(r"\\x([0-9A-Fa-f]{2})|\\u([0-9A-Fa-f]{4})|\\U([0-9A-Fa-f]{8})"):
            return chr(int(found[1] or found[2] or found[3], 16))
        c = self.text[self.at + 1 : self.at + 2]
        if not c:
            raise self.fail("a lone backslash at the end")
        if c.lower() in _SETS:
            return None
        if c.isalnum() and c not in _ESCAPES:
            raise self.fail(f"unknown escape \\{c}; back-references and anchors are not regular")
        self.at += 2
        return _ESCAPES.get(c, c)

    def escape(self) -> Term:
        c = self.escape_symbol()
        if c is not None:
            return symbols(c)
        letter = self.text[self.at + 1]
        self.at += 2
        return symbols(_SETS[letter.lower()], negated=letter.isupper())

    def char_set(self) -> Term:
        opening = self.at
        self.at += 1
        negated = self.take(r"\^") is not None
        members: set[str] = set()
        first = True
        while first or self.text[self.at : self.at + 1] != "]":
            first = False
            c = self.text[self.at : self.at + 1]
            if not c:
                self.at = opening
                raise self.fail("a '[' is not closed")
            low: str | None
            if c == "\\":
                low = self.escape_symbol()
                if low is None:
                    letter = self.text[self.at + 1]
                    self.at += 2
                    if letter.isupper():
                        raise self.fail(f"\\{letter} inside a set is not supported")
                    members |= _SETS[letter]
                    continue
            else:
                low = c
                self.at += 1
            if self.take(r"-(?!\])"):
                if self.text[self.at : self.at + 1] == "\\":
                    high = self.escape_symbol()
                else:
                    high = self.text[self.at : self.at + 1]
                    self.at += 1
                if not high or ord(high) < ord(low):
                    raise self.fail(f"bad range {low}-{high}")
                members |= {chr(code) for code in range(ord(low), ord(high) + 1)}
            else:
                members.add(low)
        self.at += 1
        return symbols(members, negated) if members or negated else NOTHING

    def quoted(self, quote: str) -> None:
        self.at += 1
        word: list[Term] = []
        while self.text[self.at : self.at + 1] != quote:
            if self.at >= len(self.text):
                raise self.fail(f"a {quote} is not closed")
            if self.text[self.at] == "\\":
                word.append(self.escape())
            else:
                word.append(symbols(self.text[self.at]))
                self.at += 1
        self.at += 1
        self.put(sequence(word) if word else EPSILON)
