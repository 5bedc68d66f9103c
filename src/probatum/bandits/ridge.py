"""Weighted ridge regression, one observation at a time: the sufficient statistics of every linear bandit."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import cho_factor, cho_solve

from probatum.errors import ProbatumError

__all__ = ["Ridge"]

Array = NDArray[np.float64]


class Ridge:
    """Statistics of theta = argmin sum w (y - x' theta)^2 + gamma |theta|^2, kept in float64.

    G = gamma I + sum w x x' and its inverse are kept by Sherman-Morrison and refreshed by Cholesky every 100 d observations, so that
    rounding does not drift.

    Args:
        d: length of a context, 1 or more.
        gamma: regularisation, above 0. With small |theta| (rare successes) rescale contexts or lower it.
    Raises:
        ProbatumError: d or gamma out of range; later, contexts of another length, not finite numbers, negative weights.
    """

    def __init__(self, d: int, gamma: float = 1.0) -> None:
        if d < 1:
            raise ProbatumError(f"d must be 1 or more, got {d!r}")
        if not gamma > 0 or not np.isfinite(gamma):
            raise ProbatumError(f"gamma must be positive and finite, got {gamma!r}")
        self.d, self.gamma = d, float(gamma)
        self.gram: Array = gamma * np.eye(d)
        self.inverse: Array = np.eye(d) / gamma
        self.b: Array = np.zeros(d)
        self.count = 0

    def _contexts(self, x: ArrayLike) -> Array:
        x = np.atleast_2d(np.asarray(x, float))
        if x.ndim != 2 or x.shape[1] != self.d:
            raise ProbatumError(f"contexts must be (m, {self.d}), as the policy began, got {x.shape}")
        if not np.isfinite(x).all():
            raise ProbatumError("contexts hold numbers that are not finite")
        return x

    def update(self, x: ArrayLike, y: ArrayLike, w: ArrayLike = 1.0) -> None:
        """Add observations: x (n, d), outcomes y (n,), weights w (n,) or one number."""
        x = self._contexts(x)
        y, w = np.broadcast_to(np.asarray(y, float), len(x)), np.broadcast_to(np.asarray(w, float), len(x))
        if not np.isfinite(y).all() or not (np.isfinite(w).all() and (w >= 0).all()):
            raise ProbatumError("outcomes must be finite, and weights finite and not negative")
        self.gram += (x.T * w) @ x
        self.b += x.T @ (w * y)
        before, self.count = self.count, self.count + len(x)
        if before // (100 * self.d) != self.count // (100 * self.d) or len(x) > self.d:
            self.refresh()
            return
        for row, weight in zip(x, w, strict=True):
            z = self.inverse @ row
            self.inverse -= np.outer(z, z) * (weight / (1 + weight * float(row @ z)))

    def refresh(self) -> None:
        """Invert G anew."""
        self.inverse = cho_solve(cho_factor(self.gram), np.eye(self.d))

    @property
    def theta(self) -> Array:
        """The estimate G^-1 b, (d,)."""
        return self.inverse @ self.b

    def mean(self, x: ArrayLike) -> Array:
        """x' theta for contexts (m, d)."""
        return self._contexts(x) @ self.theta

    def width(self, x: ArrayLike) -> Array:
        """|x| in the norm of G^-1 for contexts (m, d): how little is known in each direction."""
        x = self._contexts(x)
        return np.sqrt(np.maximum(np.einsum("md,md->m", x @ self.inverse, x), 0.0))

    def merge(self, other: "Ridge") -> None:
        """Add another's observations: delayed or distributed updates. Both began from the same gamma."""
        if (other.d, other.gamma) != (self.d, self.gamma):
            raise ProbatumError(f"merge needs equal d and gamma, got {(other.d, other.gamma)} and {(self.d, self.gamma)}")
        self.gram += other.gram - self.gamma * np.eye(self.d)
        self.b += other.b
        self.count += other.count
        self.refresh()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a reloaded one needs to go on exactly."""
        return {
            "d": self.d, "gamma": self.gamma, "gram": self.gram.copy(), "inverse": self.inverse.copy(), "b": self.b.copy(),
            "count": self.count,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["d"] != self.d:
            raise ProbatumError(f"the saved state has d = {state['d']}, this ridge {self.d}")
        self.gamma, self.count = float(state["gamma"]), int(state["count"])
        self.gram, self.inverse, self.b = (np.array(state[name], float) for name in ("gram", "inverse", "b"))
