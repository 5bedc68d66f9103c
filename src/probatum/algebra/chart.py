"""Recursive rules in polynomial time: one frame for each (rule, position) that is called, shared by all who call it.

The vector of `Automaton` holds whole continuations, which for rules that begin alike (`sum = term | term "+" sum`) double with every
level of nesting. Here a frame holds only what is left of one rule's body; where a rule is reached, a frame is opened at this position or
joined, and its callers are noted with the weight so far. When the frame's words end, its weight returns to all of them, in order, so that
products need not commute. Cubic in the word at worst, linear for grammars that a predictive parser could take.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from probatum.algebra.automata import BOTH, ONE, PRODUCT, REFERENCE, STAR, SUM, SYMBOLS, VALUE, Automaton

__all__ = ["Chart"]

Heads = tuple[tuple[Any, int, Any], ...]  # (set number or rule name, rest, weight)


class _Frame:
    __slots__ = ("callers", "rank", "start", "vector")

    def __init__(self, start: int, rank: int, vector: dict[int, Any]) -> None:
        self.start, self.rank, self.vector = start, rank, vector
        self.callers: dict[tuple[int, int], tuple[_Frame, int, Any]] = {}


class Chart:
    """Runs an automaton's term with shared frames.

    Args:
        automaton: its expressions are used and added to.
    """

    def __init__(self, automaton: Automaton) -> None:
        self.automaton = automaton
        self._memo: dict[int, Heads] = {}
        self._full: dict[int, Heads] = {}
        self._rank = self._ranks()

    @staticmethod
    def can_run(automaton: Automaton) -> bool:
        """Pointwise products would need pairs of frames."""
        return all(node.kind != "both" for body in automaton.rules.values() for node in body.walk()) and BOTH not in automaton._kind

    def _ranks(self) -> dict[str, int]:
        """A rule that may begin with another ranks below it; there are no cycles, since left recursion was refused."""
        after = {name: {head for head, _, _ in self.heads(body) if isinstance(head, str)} for name, body in self.automaton._bodies.items()}
        ranks: dict[str, int] = {}
        for root in after:
            stack = [root]
            while stack:
                name = stack[-1]
                missing = [other for other in after[name] if other not in ranks]
                if missing:
                    stack += missing
                    continue
                ranks[name] = 1 + max((ranks[other] for other in after[name]), default=0)
                stack.pop()
        return {name: -rank for name, rank in ranks.items()}

    def heads(self, e: int) -> Heads:
        """e = weight of the empty word + sum of weight . head . rest, heads being sets of symbols or rules (without their empty word)."""
        memo, a = self._memo, self.automaton
        s, kinds, lefts, rights = a.semiring, a._kind, a._left, a._right
        stack = [e]
        while stack:
            x = stack[-1]
            kind, left, right = kinds[x], lefts[x], rights[x]
            parts = left if kind == SUM else (left,) if kind == STAR else (left, right) if kind == PRODUCT and x != ONE else ()
            missing = [part for part in parts if part not in memo]
            if missing:
                stack += missing
                continue
            found: dict[tuple[Any, int], Any] = {}

            def put(head: Any, rest: int, weight: Any) -> None:
                key = head, rest
                found[key] = s.add(found[key], weight) if key in found else weight  # noqa: B023

            if kind == SYMBOLS:
                put(left, ONE, s.one if a.labels is None else a.labels[2])
            elif kind == REFERENCE:
                put(left, ONE, s.one)
            elif kind == SUM:
                for part in left:
                    for head, rest, weight in memo[part]:
                        put(head, rest, weight)
            elif kind == STAR:
                again = s.star(a.empty(left))
                for head, rest, weight in memo[left]:
                    put(head, a._product(rest, x), s.mul(again, weight))
            elif kind == PRODUCT and x != ONE:
                for head, rest, weight in memo[left]:
                    put(head, a._product(rest, right), weight)
                skip = lefts[left] if kinds[left] == VALUE else a.empty(left)
                if skip != s.zero:
                    for head, rest, weight in memo[right]:
                        put(head, rest, s.mul(skip, weight))
            memo[x] = tuple((head, rest, weight) for (head, rest), weight in found.items() if weight != s.zero)
            stack.pop()
        return memo[e]

    def _unfolded(self, e: int) -> Heads:
        """Heads with rules in last position replaced by their own heads: a last call needs no frame to return to."""
        full = self._full.get(e)
        if full is None:
            s, found, todo = self.automaton.semiring, [], list(self.heads(e))
            while todo:
                head, rest, weight = todo.pop()
                if rest == ONE and isinstance(head, str):
                    todo += [(h, r, s.mul(weight, w)) for h, r, w in self.heads(self.automaton._bodies[head])]
                else:
                    found.append((head, rest, weight))
            full = self._full[e] = tuple(found)
        return full

    def prefixes(self, numbers: Sequence[int]) -> Iterator[Any]:
        """The weight of each prefix of a word of class numbers, the empty one first; ends early when no longer word can have weight."""
        a = self.automaton
        s, masks, zero = a.semiring, a.class_masks, a.semiring.zero
        add, mul = s.add, s.mul
        root = _Frame(-1, 0, dict(a.start))
        yield a.value(root.vector)
        alive = [root]
        for t, c in enumerate(numbers):
            mask = masks[c]
            called: dict[str, _Frame] = {}
            moved: dict[int, tuple[_Frame, dict[int, Any]]] = {}
            for frame in alive:  # grows while rules are called at this position
                vector: dict[int, Any] = {}
                for e, v in frame.vector.items():
                    for head, rest, weight in self._unfolded(e):
                        if isinstance(head, str):
                            callee = called.get(head)
                            if callee is None:
                                w, body = a._linear(a._bodies[head])
                                callee = called[head] = _Frame(t, self._rank[head], {body: w})
                                alive.append(callee)
                            key, product = (id(frame), rest), mul(v, weight)
                            if key in callee.callers:
                                product = add(callee.callers[key][2], product)
                            callee.callers[key] = (frame, rest, product)
                        elif mask >> head & 1:
                            self._put(vector, rest, mul(v, weight))
                if vector:
                    moved[id(frame)] = (frame, vector)
            # Weights return, innermost frames first; callers may come alive by that.
            pending = {frame for frame, _ in moved.values()}
            alive = []
            while pending:
                frame = max(pending, key=lambda f: (f.start, f.rank))
                pending.discard(frame)
                vector = moved[id(frame)][1]
                value = a.value(vector) if frame is not root else zero
                if value != zero:
                    for caller, rest, weight in frame.callers.values():
                        if id(caller) not in moved:
                            moved[id(caller)] = (caller, {})
                        self._put(moved[id(caller)][1], rest, mul(weight, value))
                        pending.add(caller)
                frame.vector = vector
                alive.append(frame)
            if not alive:
                return
            yield a.value(root.vector) if root in alive else zero

    def _put(self, vector: dict[int, Any], e: int, weight: Any) -> None:
        a = self.automaton
        w, rest = a._linear(e)
        if w is not a.semiring.one:
            weight = a.semiring.mul(weight, w)
        vector[rest] = a.semiring.add(vector[rest], weight) if rest in vector else weight

    def run(self, numbers: Sequence[int]) -> Any:
        """The weight of a word of class numbers."""
        last, count = self.automaton.semiring.zero, 0
        for value in self.prefixes(numbers):
            last, count = value, count + 1
        return last if count == len(numbers) + 1 else self.automaton.semiring.zero
