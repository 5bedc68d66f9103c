"""HTML by construction: `el` escapes every child and attribute that is not already markup, so a page cannot forget to.

>>> el("p", "a < b", el("b", 3), class_="note")
'<p class="note">a &lt; b<b>3</b></p>'
"""

import math
import re
from collections.abc import Iterable
from html import escape

__all__ = ["Markup", "amount", "el", "join", "number", "prose", "short"]

VOID = {"br", "img", "input", "link", "meta"}  # of HTML alone: a <line> never closed would hold its siblings


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Child = object  # Markup as it is; None and False vanish; iterables are flattened; anything else is escaped as text


def _render(child: Child) -> str:
    if child is None or child is False:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, (list, tuple)) or (isinstance(child, Iterable) and not isinstance(child, (str, bytes, dict))):
        return "".join(map(_render, child))
    return escape(str(child))


def join(*children: Child) -> Markup:
    """Children one after another."""
    return Markup(_render(children))


def el(tag: str, *children: Child, **attributes: object) -> Markup:
    """One element. Attribute names lose a trailing underscore, others become hyphens; None and False leave one out."""
    shown = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    return Markup(f"<{tag}{shown}>" + ("" if tag in VOID else f"{_render(children)}</{tag}>"))


def prose(text: object) -> Markup:
    """A docstring's text as paragraphs: blank lines part them, `backticks` become code."""
    paragraphs = re.split(r"\n\s*\n", str(text).strip())
    return join(el("p", inline(" ".join(p.split()))) for p in paragraphs if p.strip())


def inline(text: str) -> Markup:
    """One line, with `backticks` as code."""
    parts = re.split(r"`+([^`]+)`+", text)
    return join(el("code", part) if i % 2 else part for i, part in enumerate(parts))


def short(text: str, limit: int = 300) -> str:
    """Text cut to a length that a label can carry."""
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def number(value: object, digits: int = 4) -> str:
    """A number as a reader wants it: whole numbers exactly, others to some digits, a real minus sign."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, (int, float)):
        return "–" if value is None else short(str(value), 60)
    if isinstance(value, float) and not math.isfinite(value):
        return "not a number" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    if isinstance(value, int) and abs(value) >= 10**15:  # perhaps more than a float can hold
        return short(str(value), 24).replace("-", "−")
    if value == int(value) and abs(value) < 1e15:
        shown = f"{int(value):,}"
    elif abs(value) >= 1e4:
        shown = f"{value:,.0f}" if abs(value) < 1e15 else f"{value:.4g}"
    else:
        shown = f"{value:.{digits}g}"
    return shown.replace("-", "−")


def amount(value: float, unit: str = "") -> str:
    """A number with its unit; bytes become KiB, MiB or GiB."""
    if unit.lower() in ("b", "byte", "bytes") and math.isfinite(value):
        for size, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
            if abs(value) >= size:
                return f"{number(float(f'{value / size:.4g}'))} {name}"
        return f"{number(value)} B"
    return f"{number(value)} {unit}".strip()
