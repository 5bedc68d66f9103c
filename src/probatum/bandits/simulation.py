"""Environments and regret: policies play the same rounds (common random numbers) and are held against the best super arm."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probatum.bandits.oracles import Oracle
from probatum.bandits.policies import Policy
from probatum.bandits.triggers import Trigger
from probatum.errors import ProbatumError

__all__ = ["Environment", "Regret", "linear_contexts", "play", "simulate"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Environment:
    """Rounds of contexts with linear means under a trigger.

    Attributes:
        theta: (d,) of the means mu = x' theta.
        contexts: (rng) -> (m, d), one round's.
        trigger: how a super arm is observed and rewarded.
        oracle: the best super arm of a round's true means; regret is against its alpha beta times its reward.
    """

    theta: Array
    contexts: Callable[[np.random.Generator], Array]
    trigger: Trigger
    oracle: Oracle

    def rounds(self, count: int, seed: int) -> Iterator[tuple[Array, Array, Array]]:
        """Contexts (m, d), means (m,) and outcomes (m,) of each round; they depend on the seed alone."""
        rng = np.random.default_rng(seed)
        for _ in range(count):
            x = self.contexts(rng)
            mu = x @ self.theta
            if mu.min() < -1e-9 or mu.max() > 1 + 1e-9:
                raise ProbatumError(f"means must be probabilities, got {mu.min():.3g} to {mu.max():.3g}: rescale theta or contexts")
            mu = np.clip(mu, 0, 1)
            yield x, mu, (rng.random(len(mu)) < mu).astype(float)


def linear_contexts(m: int, d: int, power: float = 6.0) -> Callable[[np.random.Generator], Array]:
    """Fresh contexts a round, on the simplex: uniforms to a power, normalised to sum 1 (higher powers: more varied means)."""

    def draw(rng: np.random.Generator) -> Array:
        x = rng.random((m, d)) ** power
        return x / x.sum(axis=1, keepdims=True)

    return draw


@dataclass(frozen=True)
class Regret:
    """Regret of one policy: `rounds` (seeds, T), each alpha beta r(best) - r(chosen), and `observed` (seeds, T) counts of feedback."""

    rounds: Array
    observed: NDArray[np.int64]

    @property
    def total(self) -> Array:
        """Cumulative regret at the end, a number a seed."""
        return self.rounds.sum(axis=1)

    @property
    def curve(self) -> tuple[Array, Array]:
        """Mean cumulative regret (T,) and its standard error over seeds."""
        cumulative = self.rounds.cumsum(axis=1)
        n = len(cumulative)
        error = cumulative.std(axis=0, ddof=1) / np.sqrt(n) if n > 1 else np.zeros(cumulative.shape[1])
        return cumulative.mean(axis=0), error


def simulate(policy: Policy, environment: Environment, rounds: int, seed: int) -> tuple[Array, NDArray[np.int64]]:
    """One policy through one seed: regret and number of observed arms, a round each."""
    regret, seen = np.zeros(rounds), np.zeros(rounds, np.int64)
    trigger, oracle = environment.trigger, environment.oracle
    for t, (x, mu, outcomes) in enumerate(environment.rounds(rounds, seed)):
        arms = policy.choose(x)
        best = trigger.reward(oracle(mu, mu), mu) * oracle.alpha * oracle.beta
        regret[t] = best - trigger.reward(arms, mu)
        observed = trigger.observed(arms, outcomes)
        policy.update(x, arms, observed=observed, outcomes=outcomes[observed])
        seen[t] = len(observed)
    return regret, seen


def play(
    policies: Mapping[str, Callable[[int], Policy]],
    environment: Environment | Callable[[int], Environment],
    rounds: int,
    seeds: Sequence[int],
) -> dict[str, Regret]:
    """Let policies play the same rounds.

    Args:
        policies: name -> function of the seed that makes a fresh policy.
        environment: one for all seeds, or a function of the seed.
        rounds: T.
        seeds: of environments, outcomes and policies.
    Returns:
        name -> regret over seeds and rounds.
    """
    if rounds < 1 or not len(seeds):
        raise ProbatumError(f"rounds must be 1 or more and seeds not empty, got {rounds} and {list(seeds)}")
    found = {}
    for name, make in policies.items():
        runs = [simulate(make(seed), environment(seed) if callable(environment) else environment, rounds, seed) for seed in seeds]
        found[name] = Regret(np.stack([run[0] for run in runs]), np.stack([run[1] for run in runs]))
    return found
