"""Series over (names -> N): polynomials in several variables, exact over integers and rationals through flint where it
is installed."""

import ast
import operator
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from typing import Any

from probatum.algebra.carriers import Carrier
from probatum.algebra.compiled import have_flint
from probatum.algebra.semirings import Semiring
from probatum.errors import ProbatumError, did_you_mean

__all__ = ["Monomials", "parse_polynomial"]


class Monomials(Carrier):
    """Exponent tuples in the order of `names`. Data is a dict {exponents: coefficient} or, over INT, NAT and RAT, a
    flint polynomial."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(names)
        if not self.names or len(set(self.names)) < len(self.names) or not all(isinstance(n, str) and n.isidentifier() for n in self.names):
            raise ProbatumError(f"names must be distinct identifiers, at least one, got {self.names!r}")
        self.name = f"Monomials({', '.join(self.names)})"

    def unit(self) -> tuple[int, ...]:
        return (0,) * len(self.names)

    def index(self, index: Any) -> tuple[int, ...]:
        """Exponents from a tuple, a dict {name: exponent}, a name, or (one variable) an integer."""
        if isinstance(index, str):
            index = {index: 1} if index else {}
        if isinstance(index, dict):
            for name in index:
                if name not in self.names:
                    raise ProbatumError(f"unknown variable {name!r}: {did_you_mean(name, self.names)}")
            index = tuple(index.get(name, 0) for name in self.names)
        elif isinstance(index, int):
            index = (index,)
        if len(index) != len(self.names) or any(e != int(e) or e < 0 for e in index):
            raise ProbatumError(f"an index of {self} is {len(self.names)} exponents of at least 0, got {index!r}")
        return tuple(int(e) for e in index)

    def merge(self, u: Any, v: Any) -> tuple[int, ...]:
        return tuple(map(operator.add, self.index(u), self.index(v)))

    def split(self, index: Any) -> Iterator[tuple[Any, Any]]:
        from probatum.algebra.dense import Dense

        return Dense(len(self.names)).split(self.index(index))

    def _context(self, semiring: Semiring) -> Any:
        """flint's context for this semiring, or None."""
        if semiring.name not in ("INT", "NAT", "RAT") or not have_flint():
            return None
        import flint

        kind = flint.fmpq_mpoly_ctx if semiring.name == "RAT" else flint.fmpz_mpoly_ctx
        return kind.get(self.names, flint.Ordering.lex)

    def from_items(self, semiring: Semiring, items: Iterable[tuple[Any, Any]]) -> Any:
        out: dict[tuple[int, ...], Any] = {}
        for index, weight in items:
            index, weight = self.index(index), semiring.element(weight)
            out[index] = semiring.add(out[index], weight) if index in out else weight
        return self._pack(semiring, {index: weight for index, weight in out.items() if weight != semiring.zero})

    def _pack(self, semiring: Semiring, terms: dict) -> Any:
        context = self._context(semiring)
        if context is None:
            return terms
        if semiring.name == "RAT":
            import flint

            terms = {index: flint.fmpq(w.numerator, w.denominator) for index, w in terms.items()}
        return context.from_dict(terms)

    def terms(self, semiring: Semiring, a: Any) -> dict[tuple[int, ...], Any]:
        """{exponents: coefficient} with Python numbers."""
        if isinstance(a, dict):
            return a
        return {tuple(map(int, index)): semiring.coerce(w) if semiring.name == "RAT" else int(w) for index, w in a.to_dict().items()}

    def add(self, semiring: Semiring, a: Any, b: Any) -> Any:
        if not isinstance(a, dict):
            return a + b
        out = dict(a)
        for index, weight in b.items():
            out[index] = semiring.add(out[index], weight) if index in out else weight
        return {index: weight for index, weight in out.items() if weight != semiring.zero}

    def multiply(self, semiring: Semiring, a: Any, b: Any) -> Any:
        if not isinstance(a, dict):
            return a * b
        out: dict[tuple[int, ...], Any] = {}
        for i, v in a.items():
            for j, w in b.items():
                index = tuple(map(operator.add, i, j))
                weight = semiring.mul(v, w)
                out[index] = semiring.add(out[index], weight) if index in out else weight
        return {index: weight for index, weight in out.items() if weight != semiring.zero}

    def power(self, semiring: Semiring, a: Any, exponent: int) -> Any:
        return a**exponent if not isinstance(a, dict) else None

    def pointwise(self, semiring: Semiring, a: Any, b: Any) -> Any:
        left, right = self.terms(semiring, a), self.terms(semiring, b)
        return self.from_items(semiring, [(i, semiring.mul(w, right[i])) for i, w in left.items() if i in right])

    def star(self, semiring: Semiring, a: Any) -> Any:
        terms = self.terms(semiring, a)
        others = [index for index in terms if any(index)]
        if others:
            raise ProbatumError(f"star of this polynomial is not finite in {semiring}: exponents {others[0]}; use a Stream")
        return self.from_items(semiring, [(self.unit(), semiring.star(terms.get(self.unit(), semiring.zero)))])

    def at(self, semiring: Semiring, a: Any, index: Any) -> Any:
        index = self.index(index)
        if isinstance(a, dict):
            return a.get(index, semiring.zero)
        weight = a[index]
        return semiring.coerce(weight) if semiring.name == "RAT" else int(weight)

    def items(self, semiring: Semiring, a: Any, bound: int | None) -> Iterator[tuple[Any, Any]]:
        for index, weight in sorted(self.terms(semiring, a).items(), key=lambda item: (sum(item[0]), [-e for e in item[0]])):
            if bound is None or sum(index) <= bound:
                yield index, weight

    def evaluate(self, semiring: Semiring, a: Any, values: dict[str, Any]) -> Any:
        """sum of coefficient . product of value^exponent."""
        powers: dict[tuple[int, int], Any] = {}
        point = [values[name] for name in self.names]
        total = semiring.zero
        for index, weight in self.terms(semiring, a).items():
            for i, e in enumerate(index):
                if e:
                    if (i, e) not in powers:
                        powers[i, e] = semiring.power(point[i], e)
                    weight = semiring.mul(weight, powers[i, e])
            total = semiring.add(total, weight)
        return total

    def convert(self, semiring: Semiring, a: Any, target: Carrier) -> Any:
        from probatum.algebra.dense import Dense
        from probatum.algebra.streams import Stream

        terms = self.terms(semiring, a)
        if isinstance(target, Dense) and target.dims == len(self.names):
            return target.from_items(semiring, terms.items())
        if isinstance(target, Monomials) and set(self.names) <= set(target.names):
            return target.from_items(semiring, [(dict(zip(self.names, i, strict=True)), w) for i, w in terms.items()])
        if isinstance(target, Stream) and len(self.names) == 1:
            top = max((i[0] for i in terms), default=-1)
            return target.from_list(semiring, [terms.get((i,), semiring.zero) for i in range(top + 1)])
        return super().convert(semiring, a, target)

    def plan(self, semiring: Semiring, a: Any) -> str:
        if isinstance(a, dict):
            why = "python-flint is not installed" if semiring.name in ("INT", "NAT", "RAT") else f"coefficients in {semiring}"
            return f"{self} over {semiring}, {len(a)} terms: product by a dictionary ({why})"
        return f"{self} over {semiring}, {len(a)} terms: product by flint (exact {type(a).__name__})"


def parse_polynomial(text: str) -> tuple[tuple[str, ...], Any]:
    """Variables in order of appearance, and the syntax tree; `^` is power.

    Raises:
        ProbatumError: not an expression of names, numbers, + - * ^ / and brackets.
    """
    try:
        tree = ast.parse(text.replace("^", "**"), mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise ProbatumError(f"{text!r} is not a polynomial: {error}") from None
    names: dict[str, None] = {}
    allowed = (
        ast.BinOp, ast.UnaryOp, ast.Name, ast.Constant, ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow, ast.UAdd, ast.USub, ast.Load,
    )  # fmt: skip
    for node in ast.walk(tree):
        if not isinstance(node, allowed):
            raise ProbatumError(f"{text!r} is not a polynomial: {type(node).__name__} is not allowed")
        if isinstance(node, ast.Constant) and (isinstance(node.value, bool) or not isinstance(node.value, (int, float))):
            raise ProbatumError(f"{text!r} is not a polynomial: {node.value!r} is not a number")
    found = [(node.lineno, node.col_offset, node.id) for node in ast.walk(tree) if isinstance(node, ast.Name)]
    for *_, name in sorted(found):
        names[name] = None
    return tuple(names), tree


def build_polynomial(tree: Any, leaf: Callable[[Any], Any]) -> Any:
    """Evaluate a tree of `parse_polynomial`: leaf(name or Fraction) gives series, which add, multiply and take powers."""
    done: dict[ast.AST, Any] = {}
    stack = [tree]
    while stack:  # a sum of a thousand terms is a thousand levels deep
        node = stack[-1]
        if node in done:
            stack.pop()
        elif isinstance(node, ast.Name):
            done[node] = leaf(node.id)
        elif isinstance(node, ast.Constant):
            done[node] = leaf(Fraction(str(node.value)))
        elif isinstance(node, ast.UnaryOp):
            if node.operand not in done:
                stack.append(node.operand)
            else:
                done[node] = done[node.operand] if isinstance(node.op, ast.UAdd) else -done[node.operand]
        elif node.left not in done:
            stack.append(node.left)
        elif isinstance(node.op, (ast.Pow, ast.Div)):
            number = node.right.value if isinstance(node.right, ast.Constant) else None
            if isinstance(node.op, ast.Pow):
                if not isinstance(number, int):
                    raise ProbatumError("an exponent must be an integer of at least 0")
                done[node] = done[node.left] ** number
            elif not number:
                raise ProbatumError("a divisor must be a number other than 0")
            else:
                done[node] = done[node.left] * leaf(1 / Fraction(str(number)))
        elif node.right not in done:
            stack.append(node.right)
        else:
            left, right = done[node.left], done[node.right]
            done[node] = left * right if isinstance(node.op, ast.Mult) else left + right if isinstance(node.op, ast.Add) else left - right
    return done[tree]
