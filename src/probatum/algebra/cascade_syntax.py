"""The notation of cascades: text -> statements, with errors that name line and column.

A cascade is a list of extended Einsums. `Y[i,j] = expression :: max(k)` evaluates the expression at every point of the
indices it mentions and reduces those that the left side lacks: as named after `::`, else by a sum, sums first. Index
variables are lower case and their extents the same name in upper case (`m`, `M`); `m_` is a second variable
of the same rank; tensors begin with an upper-case letter.

    extents: M0 = 512                      defaults and equations between extents (optional)
    init:    RM[0,p] = -inf                once, before an iteration
    do:      LM[m1,p] = X[M0*m1+m0,p] :: max(m0)
             RM[m1+1,p] = max(RM[m1,p], LM[m1,p])          m1+1 on the left makes m1 an iterative rank
             Y[p] = RM[M1,p]                                the extent as an index: after the last step
    until    m1 >= M1                                       optional: that is the default

A filter `A[k : k <= i, ...]` keeps only those points of the statement; elsewhere it contributes the identity of its
reduction, or 0 where nothing is reduced. Filters compare index arithmetic, extents and tensors (`m < L[b]`), joined by `and`.

Source: FuseMax, section II-C (EDGE notation); the grammar is ours, since TeAAL's has only +, * and take.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from probatum.errors import MissingExtra, ProbatumError, did_you_mean

__all__ = [
    "FUNCTIONS", "REDUCTIONS", "Apply", "Condition", "Coordinate", "Description", "Extent", "Index", "Number", "Place",
    "Reference", "Statement", "parse", "parse_filter", "references", "variables",
]  # fmt: skip

REDUCTIONS = ("sum", "max", "min", "prod", "lse")
FUNCTIONS = {
    "exp": 1, "log": 1, "sqrt": 1, "rsqrt": 1, "tanh": 1, "sigmoid": 1, "relu": 1, "abs": 1, "sin": 1, "cos": 1, "erf": 1,
    "square": 1, "max": 2, "min": 2,
}  # fmt: skip

GRAMMAR = r"""
start: extents? init? _DO statement+ until?
extents: _EXTENTS equation ("," equation)*
equation: UPPER "=" expr
init: _INIT statement+
until: UNTIL condition
statement: ref "=" expr ("::" reduction+)?
reduction: LOWER "(" LOWER ("," LOWER)* ")"
ref: UPPER ("[" index ("," index)* "]")?
index: expr (":" filter)?
filter: condition (AND condition)*
condition: expr COMPARE expr
?expr: term | expr PLUS term
?term: factor | term TIMES factor
?factor: PLUS factor -> negative | atom
?atom: NUMBER -> number
     | INF -> infinite
     | LOWER "(" expr ("," expr)* ")" -> call
     | LOWER -> coordinate
     | ref
     | "(" expr ")"
PLUS: "+" | "-"
TIMES: "*" | "/"
COMPARE: "<=" | ">=" | "==" | "!=" | "<" | ">"
_DO.4: "do:"
_INIT.4: "init:"
_EXTENTS.4: "extents:"
UNTIL.3: /until\b/
AND.3: /and\b/
INF.3: /inf\b/
NUMBER: /\d+(\.\d*)?([eE][+-]?\d+)?|\.\d+([eE][+-]?\d+)?/
UPPER: /[A-Z][A-Za-z0-9_]*/
LOWER: /[a-z][A-Za-z0-9_]*/
COMMENT: /#[^\n]*/
%ignore COMMENT
%ignore /[\s;]+/
"""


@dataclass(frozen=True, order=True)
class Place:
    """Where something stands in the text, counted from 1."""

    line: int
    column: int

    def __str__(self) -> str:
        return f"line {self.line}, column {self.column}"


NOWHERE = Place(0, 0)


@dataclass(frozen=True)
class Number:
    value: float


@dataclass(frozen=True)
class Coordinate:
    """An index variable used as a value."""

    name: str
    place: Place = NOWHERE


@dataclass(frozen=True)
class Extent:
    """The extent of a rank used as a value."""

    name: str


@dataclass(frozen=True)
class Apply:
    """An operator or function: + - * / negative, or one of FUNCTIONS."""

    operator: str
    arguments: tuple["Expression", ...]


@dataclass(frozen=True)
class Index:
    """An affine index: the sum of coefficient * variable, plus an offset; coefficients and offset are integers or names of extents."""

    terms: tuple[tuple[int | str, str], ...]
    offset: int | str = 0
    place: Place = NOWHERE

    @functools.cached_property
    def plain(self) -> str | None:
        """The variable, where the index is nothing else."""
        return self.terms[0][1] if len(self.terms) == 1 and self.terms[0][0] == 1 and self.offset == 0 else None

    @functools.cached_property
    def shifted(self) -> tuple[str, int] | None:
        """(variable, k) of an index variable + k."""
        one = len(self.terms) == 1 and self.terms[0][0] == 1 and isinstance(self.offset, int)
        return (self.terms[0][1], self.offset) if one else None  # type: ignore[return-value]

    @functools.cached_property
    def split(self) -> tuple[str, str] | None:
        """(outer, inner) of a partitioned rank, M0*m1+m0."""
        if len(self.terms) == 2 and self.offset == 0:
            for (a, outer), (b, inner) in (self.terms, self.terms[::-1]):
                if b == 1 and a == inner.upper():
                    return outer, inner
        return None

    @functools.cached_property
    def variables(self) -> tuple[str, ...]:
        return tuple(name for _, name in self.terms)

    def __str__(self) -> str:
        parts = [name if a == 1 else f"{a}*{name}" for a, name in self.terms]
        if self.offset != 0 or not parts:
            parts.append(str(self.offset))
        return "+".join(parts).replace("+-", "-")


@dataclass(frozen=True)
class Condition:
    """left COMPARE right, of a filter."""

    left: "Expression"
    comparison: str
    right: "Expression"

    def __str__(self) -> str:
        return f"{show(self.left)} {self.comparison} {show(self.right)}"


@dataclass(frozen=True)
class Reference:
    """A tensor at indices; `filters` are the conditions written inside its brackets."""

    name: str
    indices: tuple[Index, ...] = ()
    filters: tuple[Condition, ...] = ()
    place: Place = NOWHERE

    def __str__(self) -> str:
        inside = ",".join(map(str, self.indices))
        if self.filters:
            inside += " : " + " and ".join(map(str, self.filters))
        return f"{self.name}[{inside}]" if inside else self.name


Expression = Number | Coordinate | Extent | Reference | Apply


@dataclass(frozen=True)
class Statement:
    """target = expression :: reductions."""

    target: Reference
    expression: Expression
    reductions: tuple[tuple[str, tuple[str, ...]], ...] = ()
    initial: bool = False

    @functools.cached_property
    def space(self) -> tuple[str, ...]:
        """The iteration space: variables of the left side, then those that are reduced."""
        named = [v for index in self.target.indices for v in index.variables]
        right = [*variables(self.expression)] + [v for c in self.filters for side in (c.left, c.right) for v in variables(side)]
        return tuple(dict.fromkeys(named + right))

    @functools.cached_property
    def reduced(self) -> tuple[tuple[str, str], ...]:
        """(reduction, variable) in the order they happen: sums that are not written first."""
        kept = {v for index in self.target.indices for v in index.variables}
        named = {v for _, names in self.reductions for v in names}
        sums = [("sum", v) for v in self.space if v not in kept and v not in named]
        return (*sums, *((how, v) for how, names in self.reductions for v in names))

    @functools.cached_property
    def reads(self) -> tuple[Reference, ...]:
        """All tensors on the right, filters included."""
        found = list(references(self.expression))
        for condition in self.filters:
            found += [*references(condition.left), *references(condition.right)]
        return tuple(found)

    @functools.cached_property
    def filters(self) -> tuple[Condition, ...]:
        """Of the whole statement."""
        return tuple(dict.fromkeys(c for ref in (self.target, *references(self.expression)) for c in ref.filters))

    def __str__(self) -> str:
        tail = "".join(f" {how}({','.join(names)})" for how, names in self.reductions)
        return f"{self.target} = {show(self.expression)}" + (f" ::{tail}" if tail else "")


@dataclass(frozen=True)
class Description:
    """A parsed text, not yet checked."""

    statements: tuple[Statement, ...]
    extents: tuple[tuple[str, Expression], ...]
    until: Condition | None
    text: str


def references(node: Expression) -> Iterator[Reference]:
    """Tensors of an expression, left to right; those inside filters are not among them."""
    if isinstance(node, Reference):
        yield node
    elif isinstance(node, Apply):
        for argument in node.arguments:
            yield from references(argument)


def variables(node: Expression) -> tuple[str, ...]:
    """Index variables of an expression, in order of appearance."""
    if isinstance(node, Coordinate):
        return (node.name,)
    if isinstance(node, Reference):
        return tuple(dict.fromkeys(v for index in node.indices for v in index.variables))
    if isinstance(node, Apply):
        return tuple(dict.fromkeys(v for argument in node.arguments for v in variables(argument)))
    return ()


def show(node: Expression, inside: str = "") -> str:
    """An expression as it may be written."""
    if isinstance(node, Number):
        return str(node.value).removesuffix(".0")
    if isinstance(node, (Coordinate, Extent)):
        return node.name
    if isinstance(node, Reference):
        return str(node)
    if node.operator == "negative":
        return f"-{show(node.arguments[0], '*')}"
    if node.operator in "+-*/":
        left, right = node.arguments
        loose = node.operator in "+-"
        text = f"{show(left, '+' if loose else '*')}{f' {node.operator} ' if loose else node.operator}"
        text += show(right, "-" if node.operator == "-" else "*" if loose else "/")
        return f"({text})" if (loose and inside in ("*", "/", "-")) or (not loose and inside == "/") else text
    return f"{node.operator}({', '.join(show(argument) for argument in node.arguments)})"


@functools.cache
def _grammar(start: str) -> Any:
    try:
        from lark import Lark
    except ImportError:
        raise MissingExtra("the notation of cascades needs lark, which is not installed: pip install 'probatum[fusemax]'") from None
    return Lark(GRAMMAR, parser="lalr", start=start, propagate_positions=True)


def parse(text: str) -> Description:
    """Read a whole cascade.

    Raises:
        ProbatumError: what is wrong, and at which line and column.
    """
    return _read(text, "start")


def parse_filter(text: str) -> tuple[Condition, ...]:
    """Read conditions joined by `and`, as they stand in a filter."""
    return _read(text, "filter")


def _read(text: str, start: str) -> Any:
    from lark.exceptions import UnexpectedInput

    grammar = _grammar(start)
    try:
        return _Builder(text).build(grammar.parse(text))
    except UnexpectedInput as error:
        raise _unexpected(text, error) from None


def _unexpected(text: str, error: Any) -> ProbatumError:
    lines = text.splitlines() or [""]
    ends = error.line is None or error.line < 1 or getattr(getattr(error, "token", None), "type", "") == "$END"
    place = Place(len(lines), len(lines[-1]) + 1) if ends else Place(error.line, error.column)
    names = getattr(error, "accepts", None) or getattr(error, "expected", None) or getattr(error, "allowed", None) or ()
    words = sorted({_TERMINALS.get(name, name.lower()) for name in names if not name.startswith("__")} - {"$end"})
    found = "the end of the text" if ends else repr(str(getattr(error, "token", "")) or text[error.pos_in_stream])
    return complaint(text, place, f"unexpected {found}" + (f"; expected {', '.join(words)}" if words else ""))


_TERMINALS = {
    "UPPER": "a tensor or extent", "LOWER": "an index variable or function", "NUMBER": "a number", "INF": "inf", "PLUS": "+ or -",
    "TIMES": "* or /", "COMPARE": "a comparison", "EQUAL": "=", "LSQB": "[", "RSQB": "]", "LPAR": "(", "RPAR": ")", "COMMA": "a comma",
    "COLON": ":", "_DO": "do:", "_INIT": "init:", "_EXTENTS": "extents:", "UNTIL": "until", "AND": "and",
}  # fmt: skip


def complaint(text: str, place: Place, message: str) -> ProbatumError:
    """An error with the line it is about and a caret under the column."""
    lines = text.splitlines()
    if not 1 <= place.line <= len(lines):
        return ProbatumError(message)
    return ProbatumError(f"{place}: {message}\n  {lines[place.line - 1]}\n  {' ' * (place.column - 1)}^")


class _Builder:
    """Lark's tree -> our records."""

    def __init__(self, text: str) -> None:
        self.text = text

    def build(self, tree: Any) -> Any:
        if tree.data == "filter":
            return tuple(self.condition(child) for child in tree.children if not hasattr(child, "type"))
        extents: list[tuple[str, Expression]] = []
        statements: list[Statement] = []
        until = None
        for child in tree.children:
            if child.data == "extents":
                extents += [(str(e.children[0]), self.expression(e.children[1])) for e in child.children]
            elif child.data == "init":
                statements += [replace(self.statement(s), initial=True) for s in child.children]
            elif child.data == "until":
                until = self.condition(child.children[1])
            else:
                statements.append(self.statement(child))
        return Description(tuple(statements), tuple(extents), until, self.text)

    def place(self, node: Any) -> Place:
        meta = node if hasattr(node, "type") else node.meta
        return Place(getattr(meta, "line", 0) or 0, getattr(meta, "column", 0) or 0)

    def fail(self, node: Any, message: str) -> ProbatumError:
        return complaint(self.text, self.place(node), message)

    def statement(self, tree: Any) -> Statement:
        target, expression, *reductions = tree.children
        found = []
        for reduction in reductions:
            how, *names = reduction.children
            if how not in REDUCTIONS:
                raise self.fail(how, f"unknown reduction {str(how)!r}: {did_you_mean(str(how), REDUCTIONS)}")
            found.append((str(how), tuple(map(str, names))))
        return Statement(self.reference(target), self.expression(expression), tuple(found))

    def condition(self, tree: Any) -> Condition:
        left, comparison, right = tree.children
        return Condition(self.expression(left), str(comparison), self.expression(right))

    def reference(self, tree: Any) -> Reference:
        name, *indices = tree.children
        filters = [c for index in indices for c in (self.build(index.children[1]) if len(index.children) > 1 else ())]
        return Reference(str(name), tuple(self.index(index.children[0]) for index in indices), tuple(filters), self.place(name))

    def expression(self, tree: Any) -> Expression:
        kind = tree.data
        if kind == "number":
            return Number(float(tree.children[0]))
        if kind == "infinite":
            return Number(float("inf"))
        if kind == "coordinate":
            return Coordinate(str(tree.children[0]), self.place(tree.children[0]))
        if kind == "ref":
            return self.reference(tree)
        if kind == "negative":
            inner = self.expression(tree.children[1])
            if tree.children[0] == "+":
                return inner
            return Number(-inner.value) if isinstance(inner, Number) else Apply("negative", (inner,))
        if kind == "call":
            name, *arguments = tree.children
            if name not in FUNCTIONS:
                raise self.fail(name, f"unknown function {str(name)!r}: {did_you_mean(str(name), FUNCTIONS)}")
            if len(arguments) < FUNCTIONS[name] or (len(arguments) > 1 and FUNCTIONS[name] == 1):
                wants = "one argument" if FUNCTIONS[name] == 1 else "two arguments or more"
                raise self.fail(name, f"{name} takes {wants}, got {len(arguments)}")
            parts = [self.expression(argument) for argument in arguments]
            if FUNCTIONS[name] == 1:
                return Apply(str(name), (parts[0],))
            return functools.reduce(lambda a, b: Apply(str(name), (a, b)), parts)
        left, operator, right = tree.children
        return Apply(str(operator), (self.expression(left), self.expression(right)))

    def index(self, tree: Any) -> Index:
        terms: dict[str, int | str] = {}
        offset: list[int | str] = []

        def walk(node: Any, sign: int) -> None:
            kind = node.data
            if kind == "expr":
                walk(node.children[0], sign)
                walk(node.children[2], sign if node.children[1] == "+" else -sign)
            elif kind == "coordinate":
                add(node, 1 if sign > 0 else -1, str(node.children[0]))
            elif kind == "term" and node.children[1] == "*":
                coefficient, variable = node.children[0], node.children[2]
                if coefficient.data == "coordinate":
                    coefficient, variable = variable, coefficient
                if variable.data != "coordinate" or sign < 0:
                    raise bad(node)
                add(node, constant(coefficient), str(variable.children[0]))
            else:
                value = constant(node)
                offset.append(value if sign > 0 else -value if isinstance(value, int) else bad(node))  # type: ignore[arg-type]

        def add(node: Any, coefficient: int | str, variable: str) -> None:
            if variable in terms:
                raise self.fail(node, f"index variable {variable!r} occurs twice in one index")
            terms[variable] = coefficient

        def constant(node: Any) -> int | str:
            if node.data == "number" and float(node.children[0]).is_integer():
                return int(float(node.children[0]))
            if node.data == "ref" and len(node.children) == 1:
                return str(node.children[0])
            raise bad(node)

        def bad(node: Any) -> ProbatumError:
            return self.fail(node, "an index is a sum of variables, INT*variable, EXTENT*variable and one INT or EXTENT")

        walk(tree, 1)
        if len(offset) > 1 or (terms and any(isinstance(o, str) for o in offset)):
            raise bad(tree)
        return Index(tuple((a, v) for v, a in terms.items()), offset[0] if offset else 0, self.place(tree))
