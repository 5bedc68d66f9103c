"""Triggering: which base arms a super arm makes observable, with what probability, and what it earns.

A trigger is both the simulator of a round and the reading of its feedback. `mu` are the means of all m base arms, `arms` the super arm
(an ordered list for cascades).
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probatum.errors import ProbatumError

__all__ = ["Conjunctive", "Coverage", "Disjunctive", "Full", "IndependentCascade", "Trigger"]

Array = NDArray[np.float64]
Indices = NDArray[np.int64]


class Trigger(Protocol):
    """How a super arm is played."""

    def reward(self, arms: ArrayLike, mu: ArrayLike) -> float:
        """Expected reward r(S; mu)."""

    def probability(self, arms: ArrayLike, mu: ArrayLike) -> Array:
        """P(base arm is triggered) for all m base arms."""

    def observed(self, arms: ArrayLike, outcomes: ArrayLike) -> Indices:
        """Base arms whose outcomes are seen when all m `outcomes` are as given."""

    def earned(self, arms: ArrayLike, outcomes: ArrayLike) -> float:
        """The reward of these outcomes."""


def _list(arms: ArrayLike) -> Indices:
    return np.asarray(arms, np.int64)


@dataclass(frozen=True)
class Disjunctive:
    """A ranked list, read until the first success: r = 1 - prod(1 - mu); without a success the whole list is observed as failures."""

    def reward(self, arms: ArrayLike, mu: ArrayLike) -> float:
        return float(1 - np.prod(1 - np.asarray(mu)[_list(arms)]))

    def probability(self, arms: ArrayLike, mu: ArrayLike) -> Array:
        return _cascade(arms, mu, 1 - np.asarray(mu))

    def observed(self, arms: ArrayLike, outcomes: ArrayLike) -> Indices:
        return _prefix(_list(arms), np.asarray(outcomes)[_list(arms)] >= 0.5)

    def earned(self, arms: ArrayLike, outcomes: ArrayLike) -> float:
        return float(np.max(np.asarray(outcomes)[_list(arms)]) >= 0.5)


@dataclass(frozen=True)
class Conjunctive:
    """A chain, followed until the first failure: r = prod(mu)."""

    def reward(self, arms: ArrayLike, mu: ArrayLike) -> float:
        return float(np.prod(np.asarray(mu)[_list(arms)]))

    def probability(self, arms: ArrayLike, mu: ArrayLike) -> Array:
        return _cascade(arms, mu, np.asarray(mu))

    def observed(self, arms: ArrayLike, outcomes: ArrayLike) -> Indices:
        return _prefix(_list(arms), np.asarray(outcomes)[_list(arms)] < 0.5)

    def earned(self, arms: ArrayLike, outcomes: ArrayLike) -> float:
        return float(np.min(np.asarray(outcomes)[_list(arms)]) >= 0.5)


@dataclass(frozen=True)
class Full:
    """A semi-bandit: every chosen arm is observed, r = sum(mu)."""

    def reward(self, arms: ArrayLike, mu: ArrayLike) -> float:
        return float(np.sum(np.asarray(mu)[_list(arms)]))

    def probability(self, arms: ArrayLike, mu: ArrayLike) -> Array:
        p = np.zeros(len(np.asarray(mu)))
        p[_list(arms)] = 1.0
        return p

    def observed(self, arms: ArrayLike, outcomes: ArrayLike) -> Indices:
        return _list(arms)

    def earned(self, arms: ArrayLike, outcomes: ArrayLike) -> float:
        return float(np.sum(np.asarray(outcomes)[_list(arms)]))


@dataclass(frozen=True)
class Coverage:
    """Probabilistic maximum coverage: base arms are the edges (u, v) of a bipartite graph, super arms sets of left nodes u.

    r = sum over v of 1 - prod over chosen u of (1 - mu_uv); the edges of every chosen u are observed.

    Args:
        edges: (m, 2) of left and right node numbers from 0.
    """

    edges: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "edges", _edges(self.edges))

    def chosen(self, arms: ArrayLike) -> Indices:
        """Edges of these left nodes."""
        return np.flatnonzero(np.isin(self.edges[:, 0], _list(arms)))

    def reward(self, arms: ArrayLike, mu: ArrayLike) -> float:
        missed = np.ones(int(self.edges[:, 1].max()) + 1)
        edges = self.chosen(arms)
        np.multiply.at(missed, self.edges[edges, 1], 1 - np.asarray(mu, float)[edges])
        return float(np.sum(1 - missed))

    def probability(self, arms: ArrayLike, mu: ArrayLike) -> Array:
        p = np.zeros(len(self.edges))
        p[self.chosen(arms)] = 1.0
        return p

    def observed(self, arms: ArrayLike, outcomes: ArrayLike) -> Indices:
        return self.chosen(arms)

    def earned(self, arms: ArrayLike, outcomes: ArrayLike) -> float:
        edges = self.chosen(arms)
        return float(len(np.unique(self.edges[edges, 1][np.asarray(outcomes)[edges] >= 0.5])))


@dataclass(frozen=True)
class IndependentCascade:
    """Influence spread: base arms are the directed edges of a graph, super arms seed sets of nodes.

    An active node tries each of its edges once; an edge is triggered (observed) when its tail is active. r = expected number of active
    nodes, estimated over `samples` live-edge graphs, the same in every call, or exactly over all 2^m where m <= 14.

    Args:
        edges: (m, 2) of tail and head node numbers from 0.
        nodes: number of nodes.
        samples: live-edge graphs of an estimate.
        seed: of these graphs.
    """

    edges: Any
    nodes: int
    samples: int = 400
    seed: int = 0

    def __post_init__(self) -> None:
        if self.nodes < 1:
            raise ProbatumError(f"nodes must be 1 or more, got {self.nodes}")
        edges = _edges(self.edges)
        if edges.max() >= self.nodes:
            raise ProbatumError(f"edges name node {edges.max()}, but there are {self.nodes} nodes, numbered from 0")
        object.__setattr__(self, "edges", edges)

    def reached(self, arms: ArrayLike, live: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Active nodes at the end: live (..., m) edges -> (..., nodes)."""
        active = np.zeros((*live.shape[:-1], self.nodes), bool)
        active[..., _list(arms)] = True
        tails, heads = self.edges[:, 0], self.edges[:, 1]
        while True:
            tried = live & active[..., tails]
            grown = active.copy()
            index = np.nonzero(tried)
            grown[(*index[:-1], heads[index[-1]])] = True
            if (grown == active).all():
                return active
            active = grown

    def worlds(self, mu: ArrayLike) -> tuple[NDArray[np.bool_], Array]:
        """Live-edge graphs (n, m) and their weights (n,): all of them where there are few, else samples."""
        mu = np.asarray(mu, float)
        if len(mu) <= 14:
            live = (np.arange(2 ** len(mu))[:, None] >> np.arange(len(mu)) & 1).astype(bool)
            return live, np.prod(np.where(live, mu, 1 - mu), axis=1)
        draws = np.random.default_rng(self.seed).random((self.samples, len(mu)))
        return draws < mu, np.full(self.samples, 1 / self.samples)

    def reward(self, arms: ArrayLike, mu: ArrayLike) -> float:
        live, weight = self.worlds(mu)
        return float(weight @ self.reached(arms, live).sum(axis=1))

    def probability(self, arms: ArrayLike, mu: ArrayLike) -> Array:
        live, weight = self.worlds(mu)
        return weight @ self.reached(arms, live)[:, self.edges[:, 0]]

    def observed(self, arms: ArrayLike, outcomes: ArrayLike) -> Indices:
        active = self.reached(arms, np.asarray(outcomes) >= 0.5)
        return np.flatnonzero(active[self.edges[:, 0]])

    def earned(self, arms: ArrayLike, outcomes: ArrayLike) -> float:
        return float(self.reached(arms, np.asarray(outcomes) >= 0.5).sum())


def _edges(edges: Any) -> Indices:
    array = np.asarray(edges, np.int64)
    if array.ndim != 2 or array.shape[1:] != (2,) or not len(array) or array.min() < 0:
        raise ProbatumError(f"edges must be a non-empty (m, 2) of node numbers from 0, got shape {array.shape}")
    return array


def _prefix(arms: Indices, stops: NDArray[np.bool_]) -> Indices:
    at = np.flatnonzero(stops)
    return arms[: at[0] + 1] if len(at) else arms


def _cascade(arms: ArrayLike, mu: ArrayLike, go_on: Array) -> Array:
    p = np.zeros(len(np.asarray(mu)))
    chain = go_on[_list(arms)]
    p[_list(arms)] = np.concatenate([[1.0], np.cumprod(chain[:-1])])
    return p
