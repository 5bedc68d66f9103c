"""What a claim is: a statement of a paper, the run that measures it, and the conditions that decide, all fixed before anything runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING

from probatum.catalog import Paper, find_paper
from probatum.errors import ProbatumError, did_you_mean

if TYPE_CHECKING:
    from probatum.evidence.conditions import Condition
    from probatum.evidence.run import Run

__all__ = ["BUDGETS", "Claim", "claim", "claims_of", "find_claim"]

BUDGETS = ("smoke", "quick", "full")

Measure = Callable[["Run", int], None]
Draw = Callable[["Run"], None]


@dataclass
class Claim:
    """A declared claim. `budgets` maps quick and full to their number of seeds; smoke has one and gives no verdict.

    `alone`: it times things, so nothing else may run beside it. `reported`: the paper's own figure, shown beside ours.
    """

    paper: str
    name: str
    version: int
    says: str
    source: str
    reported: str
    budgets: Mapping[str, int]
    holds_if: Sequence["Condition"]
    measure: Measure
    first_seed: int = 0
    drawings: list[Draw] = field(default_factory=list)

    @property
    def id(self) -> str:
        return f"{self.paper}:{self.name}"

    @property
    def module(self) -> str:
        """The module that declares it, from which workers load it."""
        return self.measure.__module__

    @property
    def protocol(self) -> str:
        """The text of the measuring function: what is compared, on what data, and why this size shows the effect."""
        from inspect import cleandoc

        return cleandoc(self.measure.__doc__ or "")

    @property
    def alone(self) -> bool:
        return any(condition.kind == "timing" for condition in self.holds_if)

    def seeds(self, count: int) -> list[int]:
        """The first `count` seeds of the claim's one list."""
        return list(range(self.first_seed, self.first_seed + count))

    def figures(self, draw: Draw) -> Draw:
        """Decorator: `draw(run)` makes pictures once, after all seeds, from what was measured."""
        self.drawings.append(draw)
        return draw


def claim(
    paper: str,
    name: str,
    *,
    version: int,
    says: str,
    source: str,
    holds_if: Sequence["Condition"],
    budgets: Mapping[str, int],
    reported: str = "",
    first_seed: int = 0,
) -> Callable[[Measure], Claim]:
    """Declare the decorated function as a claim of a paper.

    Args:
        version: raised whenever the protocol changes; records of different versions never share a table.
        says: the claim in one line, as the paper's reader would put it.
        source: where the paper says so (section, table, figure).
        holds_if: conditions, all of which must hold.
        budgets: seeds of "quick" and "full", at least the minimum of every condition.
        reported: the paper's own figure, shown beside ours.
        first_seed: where earlier seeds were used to find the setting.
    Raises:
        ProbatumError: a budget that is missing or below the minimum of a condition.
    """
    if set(budgets) != {"quick", "full"}:
        raise ProbatumError(f"budgets of {paper}:{name} must name quick and full, got {sorted(budgets)}")
    if not holds_if:
        raise ProbatumError(f"holds_if of {paper}:{name} is empty: a claim needs a condition")
    for condition in holds_if:
        for budget, count in budgets.items():
            if count < condition.minimum["seeds"]:
                raise ProbatumError(
                    f"budgets[{budget!r}] of {paper}:{name} is {count}, but a condition of kind {condition.kind} needs at least "
                    f"{condition.minimum['seeds']} seeds"
                )

    def declare(measure: Measure) -> Claim:
        return Claim(paper, name, version, says, source, reported, dict(budgets), tuple(holds_if), measure, first_seed)

    return declare


def claims_of(paper: Paper) -> dict[str, Claim]:
    """The claims of a paper by name, in the order of the catalog; empty where it is planned."""
    if not paper.claims:
        return {}
    module = import_module(paper.claims_module)
    found = {value.name: value for value in vars(module).values() if isinstance(value, Claim) and value.paper == paper.id}
    if set(found) != set(paper.claims):
        raise ProbatumError(f"the catalog lists the claims {list(paper.claims)} of {paper.id}, its module declares {list(found)}")
    return {name: found[name] for name in paper.claims}


def find_claim(name: str) -> list[Claim]:
    """The claims meant by PAPER or PAPER:CLAIM."""
    paper_id, _, wanted = name.partition(":")
    paper = find_paper(paper_id)
    if not paper.claims:
        raise ProbatumError(f"{paper_id} is {paper.state}: it has no claim to check yet")
    claims = claims_of(paper)
    if not wanted:
        return list(claims.values())
    if wanted not in claims:
        raise ProbatumError(f"unknown claim {wanted!r} of {paper_id}: {did_you_mean(wanted, claims)}")
    return [claims[wanted]]
