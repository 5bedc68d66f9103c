"""The specification that every fast recogniser must equal, and random terms to try it on."""

import functools
import itertools
import random

from probatum.algebra.semirings import BOOL, MINPLUS, NAT, PROB, RAT, STRINGS
from probatum.algebra.terms import EPSILON, Term, alternatives, sequence, symbols, value

WORDS = ["".join(w) for n in range(7) for w in itertools.product("ab", repeat=n)]
WEIGHTS = {
    BOOL: [False, True],
    NAT: [0, 2, 3],
    MINPLUS: [1.0, 2.0, float("inf")],
    STRINGS: ["x", "yz", frozenset({"u", "v"})],
    RAT: [2, -1],
    PROB: [0.5, 0.25],
}


@functools.cache
def weigh(s, term, word):
    """The weight of a word by trying all splits (stars: of parts that do not accept the empty word)."""
    kind, parts = term.kind, term.parts
    if kind == "symbols":
        return s.one if len(word) == 1 and word in term.payload else s.zero
    if kind == "value":
        return s.element(term.payload) if word == "" else s.zero
    if kind == "sum":
        return s.sum(weigh(s, part, word) for part in parts)
    if kind == "both":
        return s.mul(weigh(s, parts[0], word), weigh(s, parts[1], word))
    if kind == "product":
        if not parts:
            return s.one if word == "" else s.zero
        rest = tail(term)
        return s.sum(s.mul(weigh(s, parts[0], word[:i]), weigh(s, rest, word[i:])) for i in range(len(word) + 1))
    if word == "":
        return s.star(weigh(s, parts[0], ""))
    return s.sum(s.mul(weigh(s, parts[0], word[:i]), weigh(s, term, word[i:])) for i in range(1, len(word) + 1))


@functools.cache
def tail(term):
    return Term("product", None, term.parts[1:])


def random_term(rng: random.Random, s, size, nullable=True):
    """A term of about `size` nodes; stars only over parts without the empty word, so that they exist in every semiring."""
    if size <= 1:
        choice = rng.random()
        if choice < 0.75 or not nullable:
            return symbols(rng.choice(["a", "b", "ab"]))
        return EPSILON if choice < 0.85 else value(rng.choice(WEIGHTS[s]))
    kind = rng.choice(["sum", "product", "product", "star", "weighted"])
    if kind == "star" and nullable:
        return Term("star", None, (random_term(rng, s, size - 1, nullable=False),))
    if kind == "weighted":
        return sequence([value(rng.choice(WEIGHTS[s])), random_term(rng, s, size - 1, nullable)])
    left = rng.randint(1, size - 1)
    if kind == "sum":
        return alternatives([random_term(rng, s, left, nullable), random_term(rng, s, size - left, nullable)])
    return sequence([random_term(rng, s, left, nullable), random_term(rng, s, size - left, nullable)])


def letters(term):
    """How many symbol sets are written in the term, shared parts counted each time."""
    return (term.kind == "symbols") + sum(map(letters, term.parts))
