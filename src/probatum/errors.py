"""The one exception that a user can cause, and the near-miss hint that goes into it."""

from collections.abc import Iterable

__all__ = ["ProbatumError", "did_you_mean"]


class ProbatumError(ValueError):
    """Bad input: the message names the argument, what was given and what is allowed."""


class MissingExtra(ProbatumError):
    """An optional dependency is not installed; the message says which extra brings it."""


class NotHere(ProbatumError):
    """This machine lacks what was asked for (a device, memory)."""


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """A clause naming the nearest allowed words, or all of them when there are few; empty when nothing is near."""
    from difflib import get_close_matches

    words = sorted(allowed)
    near = get_close_matches(given.lower(), words, n=3, cutoff=0.5) or [w for w in words if given and given.lower() in w][:3]
    if near:
        return "did you mean " + " or ".join(near) + "?"
    return "one of " + ", ".join(words) if 0 < len(words) <= 16 else ""
