"""C2MAB-T: contextual combinatorial bandits with probabilistically triggered arms (Liu et al. 2023, arXiv 2303.17110).

Each round an offline oracle picks a super arm (a list, a set, seeds) from optimistic scores of linear base arms; a random part of it is
triggered and observed. C2-UCB-T has no 1 / p_min in its regret; VAC2-UCB also weighs observations by the inverse of their largest
plausible variance, which removes the batch size K. For ranked lists, chains, routes, seed sets and coverage, from a simulator or a log.
Not for: one arm a round with plenty of data (any LinUCB will do), means that are not linear in the contexts.

>>> import numpy as np
>>> rng = np.random.default_rng(0)
>>> policy = VAC2UCB(d=4, oracle=TopK(2))
>>> for _ in range(3):
...     x = rng.random((6, 4)) / 2                       # contexts of 6 base arms
...     shown = policy.choose(x)                         # a ranked list of two
...     clicks = np.array([0.0, 1.0])                    # the first was passed over, the second clicked
...     policy.update(x, shown, observed=shown, outcomes=clicks)
>>> policy.ridge.count
6
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probatum.bandits.compiled import compiled_cascade
from probatum.bandits.logs import Estimate, Log, read_log, replay
from probatum.bandits.oracles import GreedySpread, Matroid, MaxCover, ShortestPath, TopK
from probatum.bandits.policies import Policy, epsilon_greedy, ones, position, thompson, ucb, variance, variance_bound
from probatum.bandits.ridge import Ridge
from probatum.bandits.simulation import Environment, Regret, linear_contexts, play, simulate
from probatum.bandits.triggers import Conjunctive, Coverage, Disjunctive, Full, IndependentCascade
from probatum.errors import ProbatumError

__all__ = [
    "C2UCBT",
    "C3UCB",
    "CUCB",
    "VAC2UCB",
    "CascadeTS",
    "Conjunctive",
    "Coverage",
    "Disjunctive",
    "Environment",
    "Estimate",
    "Full",
    "GreedySpread",
    "IndependentCascade",
    "Log",
    "Matroid",
    "MaxCover",
    "Policy",
    "Regret",
    "Ridge",
    "ShortestPath",
    "TopK",
    "compiled_cascade",
    "epsilon_greedy",
    "linear_contexts",
    "ones",
    "play",
    "position",
    "radius_c2ucbt",
    "radius_vac2ucb",
    "read_log",
    "replay",
    "simulate",
    "thompson",
    "ucb",
    "variance",
    "variance_bound",
]  # fmt: skip

Radius = float | Callable[[int], float]


def C2UCBT(d: int, oracle: Callable, *, gamma: float = 1.0, alpha: Radius = 1.0, seed: int = 0) -> Policy:
    """C2-UCB-T (Alg. 1): upper confidence scores, every observation of weight 1.

    Args:
        d: length of a context.
        oracle: scores -> super arm, as `TopK(6)`.
        gamma: ridge regularisation.
        alpha: radius, a constant or a function of the round; `radius_c2ucbt` is the one of the proof, far too wide in practice.
    """
    return Policy(Ridge(d, gamma), ucb(alpha), ones, oracle, seed=seed)  # type: ignore[arg-type]


def VAC2UCB(
    d: int, oracle: Callable, *, gamma: float = 1.0, alpha: float = 1.0, floor: float = 1e-3, seed: int = 0
) -> Policy:
    """VAC2-UCB (Alg. 2): as C2-UCB-T, with observations weighted by the inverse of their optimistic variance.

    Args:
        floor: least variance, so that one sample cannot dominate (ours; the paper needs none in theory).
    """
    return Policy(Ridge(d, gamma), ucb(alpha), variance(alpha, floor), oracle, seed=seed)  # type: ignore[arg-type]


def C3UCB(d: int, oracle: Callable, *, gamma: float = 1.0, alpha: float = 1.0, discount: float = 0.9, seed: int = 0) -> Policy:
    """C3-UCB (Li et al. 2016), the baseline for cascades: positions discounted; `discount=1` is C2-UCB-T."""
    return Policy(Ridge(d, gamma), ucb(alpha), position(discount), oracle, seed=seed)  # type: ignore[arg-type]


def CascadeTS(d: int, oracle: Callable, *, gamma: float = 1.0, v: float = 0.5, seed: int = 0) -> Policy:
    """CascadeLinTS: a draw from the posterior instead of an upper bound."""
    return Policy(Ridge(d, gamma), thompson(v), ones, oracle, seed=seed)  # type: ignore[arg-type]


class CUCB(Policy):
    """Combinatorial UCB without contexts: a mean and a count for each of m base arms, mean + sqrt(1.5 log t / n).

    With contexts that change every round its counts mean nothing; it is a baseline.
    """

    def __init__(self, m: int, oracle: Callable, *, seed: int = 0) -> None:
        if m < 1:
            raise ProbatumError(f"m must be 1 or more, got {m}")
        super().__init__(Ridge(1), ucb(0.0), ones, oracle, seed=seed)  # type: ignore[arg-type]
        self.sums: NDArray[np.float64] = np.zeros(m)
        self.counts: NDArray[np.float64] = np.zeros(m)

    def choose(self, contexts: ArrayLike) -> NDArray[np.int64]:
        if len(np.asarray(contexts)) != len(self.sums):
            raise ProbatumError(f"contexts must be of the {len(self.sums)} base arms, got {len(np.asarray(contexts))}")
        self.t += 1
        n = np.maximum(self.counts, 1)
        bonus = np.sqrt(1.5 * math.log(max(self.t, 2)) / n)
        scores = np.where(self.counts > 0, self.sums / n + bonus, 2.0 + self.rng.random(len(n)))
        return self.oracle(np.clip(scores, 0, 1), scores)

    def update(self, contexts: ArrayLike, arms: ArrayLike, *, observed: ArrayLike, outcomes: ArrayLike) -> None:
        observed = np.asarray(observed, np.int64)
        np.add.at(self.sums, observed, np.asarray(outcomes, float))
        np.add.at(self.counts, observed, 1.0)


def radius_c2ucbt(d: int, k: int, rounds: int, gamma: float = 1.0) -> float:
    """rho = sqrt(log((gamma + K T / d)^d / (gamma^d delta^2))) + sqrt(gamma), delta = 1 / T (formula from memory of the paper)."""
    return math.sqrt(d * math.log((gamma + k * rounds / d) / gamma) + 2 * math.log(rounds)) + math.sqrt(gamma)


def radius_vac2ucb(d: int, k: int, rounds: int, gamma: float = 1.0) -> float:
    """rho = 1 + sqrt(gamma) + 4 sqrt(log(6 T N / delta) log(3 T N / delta)), N = (4 d^2 K^4 T^4)^d, delta = 1 / T (from memory)."""
    log_n = d * math.log(4 * d**2 * k**4 * rounds**4)
    a, b = (math.log(c * rounds * rounds) + log_n for c in (6, 3))
    return 1 + math.sqrt(gamma) + 4 * math.sqrt(a * b)
