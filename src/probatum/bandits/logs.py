"""Off-policy evaluation: what a policy would have earned, from a log of what another one showed."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probatum.bandits.policies import Policy
from probatum.errors import ProbatumError

__all__ = ["Estimate", "Log", "replay"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Log:
    """Rounds in which one base arm was shown.

    Attributes:
        contexts: (n, m, d), or (m, d) where they never change.
        chosen: (n,) base arms shown.
        rewards: (n,) in [0, 1].
        propensity: (n,) probability with which the logging policy chose them; None for uniform.
    """

    contexts: Array
    chosen: NDArray[np.int64]
    rewards: Array
    propensity: Array | None = None

    def __post_init__(self) -> None:
        n, m = len(self.chosen), self.contexts.shape[-2]
        if len(self.rewards) != n or (self.propensity is not None and len(self.propensity) != n):
            raise ProbatumError(f"a log needs as many rewards and propensities as choices ({n}), got {len(self.rewards)}")
        if self.contexts.ndim == 3 and len(self.contexts) != n:
            raise ProbatumError(f"contexts must be (m, d) or one (m, d) a round, got {self.contexts.shape} for {n} rounds")
        if not ((self.rewards >= 0) & (self.rewards <= 1)).all():
            raise ProbatumError("rewards of a log must be in [0, 1]")
        if n and (self.chosen.min() < 0 or self.chosen.max() >= m):
            raise ProbatumError(f"chosen must name base arms from 0 to {m - 1}, got {self.chosen.min()} to {self.chosen.max()}")
        if self.propensity is not None and not ((self.propensity > 0) & (self.propensity <= 1)).all():
            raise ProbatumError("propensities must be above 0 and at most 1")

    def round(self, t: int) -> Array:
        return self.contexts[t] if self.contexts.ndim == 3 else self.contexts


@dataclass(frozen=True)
class Estimate:
    """Estimated reward a round: `value`, its standard `error`, and on how many `matched` rounds it rests."""

    value: float
    error: float
    matched: int


def replay(policy: Policy, log: Log) -> Estimate:
    """Rejection replay (Li et al. 2011): rounds where the policy chooses what was shown count and teach it, the others are skipped.

    Unbiased for a uniform logging policy; with propensities the matched rounds are weighted by their inverse (self-normalised). The policy
    must choose one arm a round (TopK(1)).
    """
    rewards, weights = [], []
    for t in range(len(log.chosen)):
        x = log.round(t)
        arms = policy.choose(x)
        if len(arms) != 1:
            raise ProbatumError(f"replay needs a policy that chooses one arm a round, got {len(arms)}: use TopK(1)")
        if arms[0] != log.chosen[t]:
            continue
        policy.update(x, arms, observed=arms, outcomes=log.rewards[t : t + 1])
        rewards.append(log.rewards[t])
        weights.append(1.0 if log.propensity is None else 1 / log.propensity[t])
    if not rewards:
        return Estimate(float("nan"), float("nan"), 0)
    y, w = np.array(rewards), np.array(weights)
    value = float((w * y).sum() / w.sum())
    error = float(np.sqrt((w**2 * (y - value) ** 2).sum()) / w.sum())
    return Estimate(value, error, len(y))
