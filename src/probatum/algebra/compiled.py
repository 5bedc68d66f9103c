"""Whether compiled loops can be used here; the only place that asks for numba."""

import functools
import sys
from types import ModuleType

__all__ = ["have_flint", "loops_or_none", "worth_compiling"]


@functools.cache
def loops_or_none() -> ModuleType | None:
    """The module of compiled loops, or None where numba is missing (numpy then does the work)."""
    try:
        from probatum.algebra import loops
    except (ImportError, RuntimeError):  # RuntimeError: numba finds no folder it may keep compiled code in
        return None
    return loops


@functools.cache
def have_flint() -> bool:
    """Whether python-flint is installed (exact polynomials; Python integers otherwise)."""
    try:
        import flint  # noqa: F401
    except ImportError:
        return False
    return True


def worth_compiling(steps: int) -> bool:
    """Importing numba and loading a compiled loop costs about half a second: not for a few thousand steps, unless done
    already."""
    return steps > 50_000 or "probatum.algebra.loops" in sys.modules
