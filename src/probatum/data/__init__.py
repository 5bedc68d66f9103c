"""Real data that packages ship, as typed, documented loaders; nothing is fetched from a network at run time.

Each loader's module declares its data sets; `datasets()` finds them all.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from probatum.errors import MissingExtra, ProbatumError, did_you_mean

__all__ = ["Dataset", "datasets", "find_dataset", "packaged_file"]


@dataclass(frozen=True)
class Dataset:
    """A data set: what it is, where it comes from, and the function that loads it.

    `package` is the distribution that carries it, `file` how its path ends there, `sha256` the sum that is checked on loading.
    """

    name: str
    about: str
    source: str
    licence: str
    shape: str
    package: str
    file: str
    sha256: str
    load: Callable[..., Any]

    def path(self) -> Path:
        """The file in the installed package, checked against its sum."""
        return packaged_file(self.package, self.file, self.sha256)

    @property
    def here(self) -> bool:
        try:
            packaged_file(self.package, self.file)
        except MissingExtra:
            return False
        return True

    def describe(self) -> dict[str, Any]:
        call = f"from {self.load.__module__} import {self.load.__name__}"
        return {
            "name": self.name, "about": self.about, "source": self.source, "licence": self.licence, "shape": self.shape,
            "package": self.package, "file": self.file, "sha256": self.sha256, "load": call, "here": self.here,
        }  # fmt: skip


@cache
def datasets() -> dict[str, Dataset]:
    """All data sets by name."""
    found = {}
    for module in iter_modules(__path__):
        for value in vars(import_module(f"{__name__}.{module.name}")).values():
            if isinstance(value, Dataset):
                found[value.name] = value
    return dict(sorted(found.items()))


def find_dataset(name: str) -> Dataset:
    """The data set of this name; an unknown one is told the nearest."""
    if name not in datasets():
        raise ProbatumError(f"unknown data set {name!r}: {did_you_mean(name, datasets())}")
    return datasets()[name]


@cache
def packaged_file(package: str, ending: str, sha256: str | None = None) -> Path:
    """Path of a file that a distribution installed, found without importing the package.

    Args:
        ending: how the file's path ends.
        sha256: its expected sum; None does not check.
    Raises:
        MissingExtra: the distribution is not installed.
        ProbatumError: no such file, or another content than the loader was written for.
    """
    try:
        listed = files(package) or []
    except PackageNotFoundError:
        raise MissingExtra(f"this data comes with {package}, which is not installed: pip install {package}") from None
    for entry in listed:
        if str(entry).endswith(ending):
            path = Path(str(entry.locate()))
            break
    else:
        raise ProbatumError(f"{package} is installed but has no file {ending}: another version than this loader knows")
    if sha256 is not None:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != sha256:
            raise ProbatumError(f"{path.name} of {package} has other content than this loader knows (sha256 {found[:12]}...)")
    return path
