"""Oracles: scores of all base arms -> a super arm. Each states its guarantee (alpha, beta): at least alpha times the best with
probability beta. Ties of clipped scores are broken by the unclipped index, else one arbitrary list is shown for long."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probatum.bandits.triggers import Coverage, IndependentCascade
from probatum.errors import ProbatumError

__all__ = ["GreedySpread", "Matroid", "MaxCover", "Oracle", "ShortestPath", "TopK"]

Array = NDArray[np.float64]
Indices = NDArray[np.int64]


class Oracle(Protocol):
    """`alpha`, `beta`: its guarantee."""

    alpha: float
    beta: float

    def __call__(self, scores: Array, ties: Array) -> Indices:
        """The super arm for these clipped scores (m,); `ties` (m,) orders equal ones."""


def ranked(scores: Array, ties: Array) -> Indices:
    """Base arms from best to worst, equal scores by `ties`, then by number."""
    return np.lexsort((np.arange(len(scores)), -ties, -scores))


@dataclass(frozen=True)
class TopK:
    """The k best base arms, best first; exact for both cascades and for sums."""

    k: int
    alpha: float = 1.0
    beta: float = 1.0

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ProbatumError(f"k must be 1 or more, got {self.k}")

    def __call__(self, scores: Array, ties: Array) -> Indices:
        if self.k > len(scores):
            raise ProbatumError(f"k is {self.k}, but there are {len(scores)} base arms")
        return ranked(scores, ties)[: self.k]


@dataclass(frozen=True)
class Matroid:
    """The best base of a matroid by the greedy algorithm; exact for sums.

    Args:
        independent: set of base arms (a tuple) -> whether it is independent.
    """

    independent: Callable[[tuple[int, ...]], bool]
    alpha: float = 1.0
    beta: float = 1.0

    def __call__(self, scores: Array, ties: Array) -> Indices:
        taken: tuple[int, ...] = ()
        for arm in ranked(scores, ties).tolist():
            if self.independent((*taken, arm)):
                taken = (*taken, arm)
        if not taken:
            raise ProbatumError("independent() allows no base arm at all")
        return np.array(taken, np.int64)


@dataclass(frozen=True)
class ShortestPath:
    """The path whose links all work with the highest probability: routing as a conjunctive cascade, by -log of the scores.

    Args:
        edges: (m, 2) tails and heads; base arms are edges.
        source, target: nodes.
    """

    edges: Any
    source: int
    target: int
    alpha: float = 1.0
    beta: float = 1.0

    def __call__(self, scores: Array, ties: Array) -> Indices:
        import networkx

        graph = networkx.DiGraph()
        for arm, (u, v) in enumerate(np.asarray(self.edges).tolist()):
            length = -float(np.log(max(scores[arm], 1e-12)))
            if not graph.has_edge(u, v) or graph[u][v]["length"] > length:
                graph.add_edge(u, v, length=length, arm=arm)
        try:
            path = networkx.shortest_path(graph, self.source, self.target, weight="length")
        except (networkx.NetworkXNoPath, networkx.NodeNotFound):
            raise ProbatumError(f"no path from source {self.source} to target {self.target}") from None
        return np.array([graph[u][v]["arm"] for u, v in itertools.pairwise(path)], np.int64)


@dataclass(frozen=True)
class GreedySpread:
    """k seeds by greedy marginal spread over the trigger's live-edge graphs: (1 - 1/e) of the best on those graphs."""

    trigger: IndependentCascade
    k: int
    alpha: float = 1 - 1 / np.e
    beta: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.trigger.nodes:
            raise ProbatumError(f"k must be 1 to the {self.trigger.nodes} nodes, got {self.k}")

    def __call__(self, scores: Array, ties: Array) -> Indices:
        live, weight = self.trigger.worlds(scores)
        nodes = self.trigger.nodes
        reach = reachability(live, self.trigger.edges, nodes)
        seeds: list[int] = []
        covered = np.zeros((len(live), nodes), bool)
        for _ in range(self.k):
            gain = np.einsum("w,wuv->u", weight, reach & ~covered[:, None, :])
            gain[seeds] = -1
            best = int(np.argmax(gain))
            seeds.append(best)
            covered |= reach[:, best]
        return np.array(seeds, np.int64)


def reachability(live: NDArray[np.bool_], edges: Indices, nodes: int) -> NDArray[np.bool_]:
    """(w, m) live edges -> (w, nodes, nodes): who is reached from whom, by squaring."""
    reach = np.zeros((len(live), nodes, nodes), bool)
    reach[:, np.arange(nodes), np.arange(nodes)] = True
    world, edge = np.nonzero(live)
    reach[world, edges[edge, 0], edges[edge, 1]] = True
    steps = 1
    while steps < nodes:
        grown = np.matmul(reach.astype(np.float32), reach.astype(np.float32)) > 0
        if (grown == reach).all():
            break
        reach, steps = grown, 2 * steps
    return reach


@dataclass(frozen=True)
class MaxCover:
    """k left nodes by greedy marginal coverage: (1 - 1/e) of the best."""

    trigger: Coverage
    k: int
    alpha: float = 1 - 1 / np.e
    beta: float = 1.0

    def __call__(self, scores: Array, ties: Array) -> Indices:
        edges = self.trigger.edges
        left = int(edges[:, 0].max()) + 1
        if not 1 <= self.k <= left:
            raise ProbatumError(f"k must be 1 to the {left} left nodes, got {self.k}")
        misses = np.ones((left, int(edges[:, 1].max()) + 1))
        np.multiply.at(misses, (edges[:, 0], edges[:, 1]), 1 - scores)
        missed = np.ones(misses.shape[1])
        taken: list[int] = []
        for _ in range(self.k):
            gain = (missed * (1 - misses)).sum(axis=1)
            gain[taken] = -1
            taken.append(int(np.argmax(gain)))
            missed = missed * misses[taken[-1]]
        return np.array(taken, np.int64)


def checked(arms: Sequence[int] | ArrayLike, of: int, what: str = "the oracle") -> Indices:
    """A super arm as an oracle of the user's own returned it.

    Raises:
        ProbatumError: it repeats an arm, is empty, or names one that does not exist.
    """
    found = np.asarray(arms, np.int64).reshape(-1)
    if not len(found) or found.min() < 0 or found.max() >= of:
        raise ProbatumError(f"{what} returned {found.tolist()}; allowed are numbers from 0 to {of - 1}, at least one")
    if len(np.unique(found)) != len(found):
        raise ProbatumError(f"{what} returned an arm twice: {found.tolist()}")
    return found
