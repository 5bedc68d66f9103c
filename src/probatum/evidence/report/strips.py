"""Small inline drawings: an interval against its bound, the seeds of a metric. Colours come from the style sheet."""

import math
from collections.abc import Sequence
from typing import TypeGuard

from probatum.evidence.report.markup import Markup, el, number

__all__ = ["interval_strip", "seed_strip", "side_that_holds"]

WIDTH, HEIGHT, EDGE = 240, 40, 8


def _finite(x: object) -> TypeGuard[float]:
    return isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x)


def side_that_holds(condition: dict) -> str | None:
    """``"above"`` or ``"below"`` the bound: as the record says, else as a decided verdict shows; else None."""
    for place in (condition, condition.get("details") or {}):
        if place.get("direction") in ("above", "below"):
            return place["direction"]
    value, bound = condition.get("value"), condition.get("bound")
    if not (_finite(value) and _finite(bound)) or value == bound or condition["verdict"] not in ("holds", "fails"):
        return None
    return "above" if (value > bound) == (condition["verdict"] == "holds") else "below"


def interval_strip(condition: dict) -> Markup | None:
    """Value and interval against the bound, with the side that holds shaded. None without finite numbers."""
    value, bound = condition.get("value"), condition.get("bound")
    low, high = condition.get("interval") or (None, None)
    points = [p for p in (value, bound, low, high) if _finite(p)]
    if not _finite(bound) or len(points) < 2:
        return None
    least, most = min(points), max(points)
    pad = (most - least or abs(most) or 1.0) * 0.12
    least, most = least - pad, most + pad

    def x(v: float | None, otherwise: float) -> float:
        at = (v - least) / (most - least) if _finite(v) else otherwise
        return round(EDGE + at * (WIDTH - 2 * EDGE), 1)

    at = x(bound, 0)
    side = side_that_holds(condition)
    shade = {"above": (at, WIDTH - at), "below": (0, at)}.get(side or "")
    bar = None
    if low is not None or high is not None:
        left, right = x(low, 0), x(high, 1)
        bar = (
            el("line", x1=left, x2=right, y1=15, y2=15, class_="bar"),
            [el("line", x1=end, x2=end, y1=10, y2=20, class_="bar cap") for end in (left, right)],
        )
    anchor = "start" if at < 40 else "end" if at > WIDTH - 40 else "middle"
    said = f"value {number(value)}" + (
        f", interval {number(-math.inf if low is None else low)} to {number(math.inf if high is None else high)}"
        if bar
        else ""
    )
    said += f", bound {number(bound)}" + (f", holds {side} it" if side else "")
    return el(
        "svg",
        shade and el("rect", x=shade[0], width=round(shade[1], 1), y=3, height=24, class_="shade"),
        el("line", x1=0, x2=WIDTH, y1=15, y2=15, class_="axis"),
        el("line", x1=at, x2=at, y1=1, y2=29, class_="bound"),
        el("text", number(bound), x=at, y=38, text_anchor=anchor),
        bar,
        _finite(value) and el("circle", cx=x(value, 0), cy=15, r=3.5, class_="dot"),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        class_=f"strip {condition['verdict']}",
        role="img",
        aria_label=said,
    )


def seed_strip(values: Sequence[float], scale: tuple[float, float]) -> Markup | None:
    """One dot a seed and a tick at the mean, on the scale that all systems of the metric share."""
    values = [v for v in values if _finite(v)]
    least, most = scale
    if not values or not _finite(least) or not _finite(most) or least == most:
        return None

    def x(v: float) -> float:
        return round(4 + (v - least) / (most - least) * 112, 1)

    mean = x(sum(values) / len(values))
    return el(
        "svg",
        el("line", x1=0, x2=120, y1=8, y2=8, class_="axis"),
        [el("circle", cx=x(v), cy=8, r=2.6, class_="seed") for v in values[:200]],
        el("line", x1=mean, x2=mean, y1=2, y2=14, class_="mean"),
        viewBox="0 0 120 16",
        class_="seeds",
        aria_hidden="true",
    )
