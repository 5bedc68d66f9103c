"""What a family's ``__init__`` needs: its public names, taken from the catalog and loaded on first use."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

__all__ = ["public_names"]


def public_names(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and ``__dir__`` of a family package.

    A new paper adds a catalog row and a module, and edits no export list.
    """
    from probatum.catalog import family_names

    def load(name: str) -> Any:
        module = family_names(package).get(name)
        if module is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(module), name)

    return load, lambda: sorted(family_names(package))
