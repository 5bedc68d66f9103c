"""What a claim is, how it is run, judged, stored and shown.

A claim module imports this package alone at its top, and families inside its functions, so that listing claims loads nothing heavy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probatum.evidence.comparisons import Arm, Comparison, ComparisonRun, Metric, comparison
    from probatum.evidence.conditions import (
        above,
        any_of,
        as_good,
        below,
        equal,
        exact,
        faster,
        product,
        proportion,
        ratio,
        share_of_gain,
        slope,
    )  # fmt: skip
    from probatum.evidence.declaration import Claim, claim
    from probatum.evidence.run import Run

_HOME = {
    "Claim": "declaration",
    "claim": "declaration",
    "Run": "run",
    **dict.fromkeys(["Arm", "Comparison", "ComparisonRun", "Metric", "comparison"], "comparisons"),
    **dict.fromkeys(
        ["above", "any_of", "as_good", "below", "equal", "exact", "faster", "product", "proportion", "ratio",
         "share_of_gain", "slope"],
        "conditions",
    ),
}

__all__ = [
    "Arm", "Claim", "Comparison", "ComparisonRun", "Metric", "Run", "above", "any_of", "as_good", "below", "claim", "comparison",
    "equal", "exact", "faster",
    "product", "proportion", "ratio", "share_of_gain", "slope",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
