"""Sparse MeZO: perturb and update the small weights alone (Liu et al. 2024, arXiv 2402.15751).

The noise of a zeroth-order step hurts more on large weights than on small ones. Each matrix gets a threshold before training; weights
above it are left alone, and the mask is found anew from the weights at every step, so that it costs no memory worth naming. Use it where
you would use MeZO on all weights and have the steps to tune its learning rate: it wants a larger one.

>>> import torch
>>> net = torch.nn.Linear(30, 20)
>>> x, y = torch.randn(64, 30), torch.randint(20, (64,))
>>> optimizer = SparseMeZO(net.named_parameters(), lr=0.1, sparsity=0.75, seed=1)
>>> loss = optimizer.step(lambda: torch.nn.functional.cross_entropy(net(x), y))
>>> optimizer.active_share            # of the matrix: the bias stays as it is
0.25
"""

import math
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from probatum.errors import ProbatumError
from probatum.zeroth.log import Log
from probatum.zeroth.masks import Fixed, Indices, MaskRule, Random, Threshold, thresholds
from probatum.zeroth.optimizer import ZerothOrder, packed_mask

__all__ = ["SparseMeZO"]

Kind = Literal["smallest", "largest", "random"]
KINDS = ("smallest", "largest", "random")


class SparseMeZO(ZerothOrder):
    """MeZO on the small weights of each matrix: theta -= lr p (m z) with m = 1 where |theta| <= h, h fixed at the first step.

    The threshold h of a tensor is the (1 - sparsity) quantile of its magnitudes. The mask is taken at theta, before the perturbation:
    one bit a weight while a step lasts (`exact` "lattice", "copy" or "off"), or nothing at all with "scratch", which leaves theta
    unperturbed and is what half precision takes. A weight that is pushed over h freezes and one above it never returns, so the active
    share can only fall: `active_share` is that of the last step, `active_shares` of all. With "lattice", weights that are left alone
    are still rounded to it (3e-8 of a tensor's largest); with the other modes no bit of them changes.

    Args:
        params: `model.named_parameters()`, or groups of such.
        lr: step size. Several times MeZO's: as long a step with fewer weights.
        sparsity: share of each tensor that is left alone, in [0, 1). 0 is MeZO. Paper: 0.5 to 0.8.
        eps, n: as `ZerothOrder`.
        mask: "smallest"; "largest" and "random" of the same number are controls; or your own: a boolean tensor by name, or `Indices`
            (tensors that it does not name are left alone).
        every: steps after which the mask is found anew. None: 1 by magnitude (the paper's dynamic mask), 0 at random. 0: once, and kept
            (by magnitude 0 or 1).
        thresholds: h by name, or the log of an earlier run of this model (or its file), whose thresholds are kept.
        include: patterns of parameter names; None: all with two or more dimensions, since the paper's thresholds are of matrices.
        options: further arguments of `ZerothOrder`.
    Raises:
        ProbatumError: sparsity out of range, a mask that fits no tensor, thresholds of another model, and as `ZerothOrder`.
    """

    def __init__(
        self,
        params: Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]],
        lr: float,
        sparsity: float = 0.75,
        eps: float = 1e-3,
        n: int = 1,
        *,
        mask: Kind | Mapping[str, Tensor] | Indices = "smallest",
        every: int | None = None,
        thresholds: "Mapping[str, float] | Log | str | os.PathLike[str] | None" = None,
        include: Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        if isinstance(sparsity, bool) or not isinstance(sparsity, (int, float)) or not 0 <= sparsity < 1:
            raise ProbatumError(f"sparsity must be from 0 (all weights move) to below 1, got {sparsity!r}: it is the share left alone")
        own = not isinstance(mask, str)
        if not own and mask not in KINDS:
            raise ProbatumError(f"mask must be one of {', '.join(KINDS)}, boolean tensors by name or Indices, got {mask!r}")
        if every is not None and (isinstance(every, bool) or not isinstance(every, int) or every < 0):
            raise ProbatumError(f"every must be 0 (once) or a number of steps, got {every!r}")
        if every is not None and mask != "random" and every > (0 if own else 1):
            raise ProbatumError(f"every={every} goes with mask='random': a mask of one's own is fixed, one by magnitude is found at each step or once")
        if thresholds is not None and mask not in ("smallest", "largest"):
            raise ProbatumError("thresholds go with mask 'smallest' or 'largest'")
        self.sparsity, self.every = float(sparsity), (0 if own or mask == "random" else 1) if every is None else every
        self._kind, self._given = mask, thresholds
        self.active_shares: list[float] = []
        super().__init__(_chosen(params, include, mask), lr, eps, n, include=include or ("*",), **options)

    def masks(self) -> MaskRule:
        """The rule of this optimizer (asked once, at the first step)."""
        if not isinstance(self._kind, str):
            given = self._kind.masks() if isinstance(self._kind, Indices) else self._kind
            return Fixed({i: packed_mask(name, t, given[name]) for i, (name, t) in enumerate(zip(self._names, self._tensors, strict=True))})
        share = 1 - self.sparsity
        if self._kind == "random":
            return Random([share] * len(self._tensors), self.noise.seed, self.every)
        side: Literal["smallest", "largest"] = "largest" if self._kind == "largest" else "smallest"
        if not self.sparsity and self._given is None:
            return Threshold([math.inf] * len(self._tensors), side)  # not the largest weight: it would freeze as soon as it grew
        told = self._warn_of_equal_magnitudes()
        levels = thresholds(self._tensors, share, side) if self._given is None else self._levels()
        rule = Threshold(levels, side)
        masks = rule.at(0, self._tensors)
        active, total = sum(mask.count for mask in masks.values()), sum(t.numel() for t in self._tensors)
        if self._given is None and not told and active > share * total + len(self._tensors) + 0.01 * total:
            text = f"{active / total:.1%} of the weights are active where {share:.1%} were asked for: many equal the threshold (pruned zeros?)"
            warnings.warn(text, stacklevel=5)
        return Fixed(rule.at(0, self._tensors)) if self.every == 0 else rule  # type: ignore[arg-type]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Tensor:  # type: ignore[override]
        """As `ZerothOrder.step`; the active share is kept."""
        before = self.steps
        loss = super().step(closure)
        if self.steps > before:
            self.active_shares.append(self.active_share)
        return loss

    def _levels(self) -> list[float]:
        given = self._given
        if isinstance(given, (str, os.PathLike)):
            given = Log.load(given)
        if isinstance(given, Log):
            head, rows = given.head.get("masks") or {}, given.fingerprint.rows
            if head.get("kind") != "threshold":
                raise ProbatumError("the log given as thresholds is of a run without them")
            theirs = [(row[0], row[1]) for row in rows]
            if theirs != [(name, tuple(t.shape)) for name, t in zip(self._names, self._tensors, strict=True)]:
                raise ProbatumError(f"the thresholds are of another model: {len(theirs)} tensors from {theirs[0][0]} on")
            given = {name: level for (name, _), level in zip(theirs, head["levels"], strict=True)}
        assert given is not None
        missing = [name for name in self._names if name not in given]
        if missing:
            raise ProbatumError(f"the thresholds are of another model: there is none for {missing[0]} (and {len(missing) - 1} more)")
        return [float(given[name]) for name in self._names]

    def _warn_of_equal_magnitudes(self) -> bool:
        equal = [name for name, t in zip(self._names, self._tensors, strict=True) if t.numel() > 1 and bool(t.abs().min() == t.abs().max())]
        for name in equal:
            warnings.warn(f"all weights of {name} have one magnitude: its mask is all or nothing; exclude it", stacklevel=6)
        return bool(equal)


def _chosen(params: Any, include: Sequence[str] | None, mask: Any) -> list[Any]:
    """What of the parameters is tuned: matrices where nothing else is asked for, or what a mask of one's own names."""
    given = list(params)
    groups = given if given and isinstance(given[0], dict) else [{"params": given}]
    named: set[str] = set()
    own = None if isinstance(mask, str) else set(mask.names if isinstance(mask, Indices) else mask)
    found = []
    for group in groups:
        pairs = list(group["params"])
        if all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
            named |= {name for name, _ in pairs}
            if own is not None:
                pairs = [pair for pair in pairs if pair[0] in own]
            elif include is None:
                pairs = [pair for pair in pairs if pair[1].ndim > 1]
        found.append({**group, "params": pairs})
    if own is not None and own - named:
        raise ProbatumError(f"the mask names {min(own - named)}, which is no parameter of the model")
    if given and not any(group["params"] for group in found):
        raise ProbatumError("no parameter has two or more dimensions: name what is to be tuned with include=")
    return found
