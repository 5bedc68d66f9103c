"""The catalog: the 74 papers, the one list from which everything else is enumerated.

>>> from probatum.catalog import catalog
>>> catalog()["mezo"].family
'zeroth'
"""

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from probatum.errors import ProbatumError, did_you_mean

__all__ = [
    "Family", "Paper", "catalog", "comparisons", "families", "family_names", "find_family", "find_paper",
]  # fmt: skip


@dataclass(frozen=True)
class Family:
    """A family of papers that share machinery: `id` is the package, `about` one line on what its systems are for."""

    id: str
    title: str
    about: str


@dataclass(frozen=True)
class Paper:
    """One row of the catalog.

    `public` names what the paper exports from its family, `claims` its claims in order, `extra` the optional dependency group it
    needs. `exempt` maps a contract check to the reason why it does not apply to this paper.
    """

    id: str
    family: str
    title: str
    arxiv: str
    year: int
    idea: str
    use: str
    public: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()
    extra: str | None = None
    exempt: tuple[tuple[str, str], ...] = ()

    @property
    def state(self) -> Literal["planned", "built"]:
        return "built" if self.public else "planned"

    @property
    def module(self) -> str:
        """The module that holds the paper's idea."""
        return f"probatum.{self.family}.{self.id}"

    @property
    def claims_module(self) -> str:
        return f"probatum.claims.{self.family}.{self.id}"


@cache
def _document() -> dict:
    return tomllib.loads(Path(__file__).with_name("catalog.toml").read_text("utf-8"))


@cache
def families() -> dict[str, Family]:
    """All families by id, in the order of the catalog."""
    return {name: Family(name, **row) for name, row in _document()["family"].items()}


@cache
def catalog() -> dict[str, Paper]:
    """All papers by id, family by family."""
    papers = {}
    for name, row in _document()["paper"].items():
        lists = {key: tuple(row.get(key, ())) for key in ("public", "claims")}
        papers[name] = Paper(name, **{**row, **lists, "exempt": tuple(row.get("exempt", {}).items())})
    order = list(families())
    return dict(sorted(papers.items(), key=lambda item: order.index(item[1].family)))


@cache
def comparisons() -> dict[str, str]:
    """Name of each comparison -> the family whose `claims/FAMILY/comparison.py` declares it."""
    return dict(_document().get("comparison", {}))


def family_names(package: str) -> dict[str, str]:
    """Public name -> module, for the papers of a family package such as ``probatum.zeroth``."""
    family = package.rpartition(".")[2]
    return {name: paper.module for paper in catalog().values() if paper.family == family for name in paper.public}


def find_paper(name: str) -> Paper:
    """The paper of this id; an unknown id is told the nearest ones."""
    papers = catalog()
    if name not in papers:
        raise ProbatumError(f"unknown paper {name!r}: {did_you_mean(name, papers) or 'see `probatum list`'}")
    return papers[name]


def find_family(name: str) -> Family:
    """The family of this id; an unknown id is told the nearest ones."""
    if name not in families():
        raise ProbatumError(f"unknown family {name!r}: {did_you_mean(name, families())}")
    return families()[name]
