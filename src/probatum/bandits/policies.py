"""A combinatorial linear bandit policy as a composition: ridge, index, weight, oracle, trigger.

Only observed base arms update; the trigger of a simulation or the caller says which they were.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probatum.bandits.oracles import Oracle, checked
from probatum.bandits.ridge import Ridge
from probatum.errors import ProbatumError

__all__ = ["Index", "Policy", "Weight", "epsilon_greedy", "ones", "position", "thompson", "ucb", "variance"]

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
Index = Callable[[Ridge, Array, int, np.random.Generator], Array]
Weight = Callable[[Ridge, Array, Indices], Array]


def ucb(alpha: float | Callable[[int], float] = 1.0) -> Index:
    """theta' x + rho |x|, rho a constant or a function of the round t (from 1)."""
    if not callable(alpha) and not alpha >= 0:
        raise ProbatumError(f"alpha must be 0 or more, got {alpha!r}")

    def index(ridge: Ridge, x: Array, t: int, rng: np.random.Generator) -> Array:
        rho = alpha(t) if callable(alpha) else alpha
        return ridge.mean(x) + rho * ridge.width(x)

    return index


def thompson(v: float = 1.0) -> Index:
    """x' theta~ with theta~ drawn from N(theta, v^2 G^-1) once a round (CascadeLinTS)."""

    def index(ridge: Ridge, x: Array, t: int, rng: np.random.Generator) -> Array:
        root = np.linalg.cholesky(ridge.inverse)
        drawn: Array = ridge.theta + v * (root @ rng.standard_normal(ridge.d))
        return x @ drawn

    return index


def epsilon_greedy(epsilon: float = 0.05) -> Index:
    """The estimate, or with probability epsilon a random order."""
    if not 0 <= epsilon <= 1:
        raise ProbatumError(f"epsilon must be from 0 to 1, got {epsilon!r}")

    def index(ridge: Ridge, x: Array, t: int, rng: np.random.Generator) -> Array:
        draw, order = rng.random(), rng.random(len(x))
        return order if draw < epsilon else ridge.mean(x)

    return index


def ones(ridge: Ridge, x: Array, place: Indices) -> Array:
    """Every observation counts the same (C2-UCB-T)."""
    return np.ones(len(x))


def variance(alpha: float = 1.0, floor: float = 1e-3) -> Weight:
    """1 / V, V the largest mu (1 - mu) within theta' x +- 2 alpha |x|, at least `floor` (VAC2-UCB)."""
    if not floor > 0:
        raise ProbatumError(f"floor must be above 0, got {floor!r}")

    def weight(ridge: Ridge, x: Array, place: Indices) -> Array:
        middle, half = ridge.mean(x), 2 * alpha * ridge.width(x)
        return 1 / np.maximum(variance_bound(middle - half, middle + half), floor)

    return weight


def variance_bound(low: ArrayLike, high: ArrayLike) -> Array:
    """The largest mu (1 - mu) for mu in [low, high] within [0, 1]."""
    low, high = np.clip(low, 0, 1), np.clip(high, 0, 1)
    return np.where(high <= 0.5, high * (1 - high), np.where(low >= 0.5, low * (1 - low), 0.25))


def position(discount: float = 1.0) -> Weight:
    """discount^(2 k) at position k from 0 (C3-UCB's discounted contexts; 1 makes it C2-UCB-T)."""

    def weight(ridge: Ridge, x: Array, place: Indices) -> Array:
        return np.power(discount, 2.0 * place).astype(float)

    return weight


class Policy:
    """Chooses a super arm from contexts and learns from what was observed.

    Args:
        ridge: the statistics; they are the policy's own from then on.
        index: optimistic score of each base arm.
        weight: of an observation.
        oracle: scores -> super arm.
        seed: of random indices.
        clip: scores the oracle sees are clipped to [0, 1]; ties are broken by the unclipped ones.

    >>> from probatum.bandits.oracles import TopK
    >>> policy = Policy(Ridge(2), ucb(1.0), ones, TopK(1))
    >>> x = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> arms = policy.choose(x)
    >>> policy.update(x, arms, observed=arms, outcomes=[1.0])
    >>> policy.ridge.count
    1
    """

    def __init__(self, ridge: Ridge, index: Index, weight: Weight, oracle: Oracle, *, seed: int = 0, clip: bool = True) -> None:
        self.ridge, self.index, self.weight, self.oracle, self.clip = ridge, index, weight, oracle, clip
        self.rng = np.random.default_rng(seed)
        self.t = 0

    def choose(self, contexts: ArrayLike) -> Indices:
        """The super arm for contexts (m, d): numbers of base arms, an order where the oracle gives one.

        Contexts outside the unit ball are scaled onto it, all by the same factor, with a warning.
        Raises:
            ProbatumError: contexts of another length, not finite; k above m; an oracle that repeats arms.
        """
        x = _in_ball(self.ridge._contexts(contexts))
        self.t += 1
        scores = self.index(self.ridge, x, self.t, self.rng)
        arms = self.oracle(np.clip(scores, 0, 1) if self.clip else scores, scores)
        return checked(arms, self._arms(len(x)))

    def _arms(self, m: int) -> int:
        trigger = getattr(self.oracle, "trigger", None)
        if trigger is None:
            return m
        return getattr(trigger, "nodes", None) or int(trigger.edges[:, 0].max()) + 1

    def update(self, contexts: ArrayLike, arms: ArrayLike, *, observed: ArrayLike, outcomes: ArrayLike) -> None:
        """Learn from one round (rounds may come late and in any order).

        Args:
            contexts: (m, d) of that round.
            arms: the super arm that was played.
            observed: base arms whose outcomes were seen, in order; for cascades a prefix of `arms`.
            outcomes: their outcomes in [0, 1].
        Raises:
            ProbatumError: outcomes out of range or of another number; an observed arm that was not shown.
        """
        x = _in_ball(self.ridge._contexts(contexts))
        observed, y = np.asarray(observed, np.int64).reshape(-1), np.asarray(outcomes, float).reshape(-1)
        if len(observed) != len(y):
            raise ProbatumError(f"outcomes must be one for each of the {len(observed)} observed arms, got {len(y)}")
        if not len(observed):
            return
        if not ((y >= 0) & (y <= 1)).all():
            raise ProbatumError(f"outcomes must be in [0, 1], got {y[~((y >= 0) & (y <= 1))][0]}")
        if observed.min() < 0 or observed.max() >= len(x):
            raise ProbatumError(f"observed must name base arms from 0 to {len(x) - 1}, got {observed.tolist()}")
        if getattr(self.oracle, "trigger", None) is None and not np.isin(observed, arms).all():
            raise ProbatumError(f"observed arms must have been shown: {observed.tolist()} against {np.asarray(arms).tolist()}")
        rows = x[observed]
        self.ridge.update(rows, y, self.weight(self.ridge, rows, np.arange(len(rows))))

    def state_dict(self) -> dict[str, Any]:
        """What a reloaded policy needs to make the same choices; arrays and plain values."""
        return {"ridge": self.ridge.state_dict(), "t": self.t, "rng": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.ridge.load_state_dict(state["ridge"])
        self.t = int(state["t"])
        self.rng.bit_generator.state = state["rng"]


def _in_ball(x: Array) -> Array:
    longest = float(np.sqrt((x * x).sum(axis=1).max())) if len(x) else 0.0
    if longest <= 1 + 1e-9:
        return x
    warnings.warn(f"contexts reach a length of {longest:.3g}; scaled into the unit ball that the theory asks for", stacklevel=3)
    return x / longest
