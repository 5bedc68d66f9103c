"""The checks that a built paper must pass, chosen by what its public objects are; nothing here names a paper.

A public class that is an optimizer, a module or an estimator is built by the paper's own test file, which offers

    CONTRACT = {"MeZO": lambda model: MeZO(model.named_parameters(), lr=1e-3)}   # optimizers get a small model
    CONTRACT = {"CARN": lambda: (CARN(scale=2), torch.rand(1, 3, 8, 9))}         # modules return themselves and an input
    CONTRACT = {"Probe": lambda: Probe()}                                        # estimators need nothing
"""

import ast
import doctest
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from probatum.catalog import Paper
from probatum.cli.browse import card_text
from probatum.evidence.declaration import claims_of

ROOT = Path(__file__).parents[2]
SECTIONS = ["## On your own", "## Options", "## Evidence", "## Cost and limit", "## Differences", "## Citation"]
Check = tuple[str, Callable[[], None]]

# The floor of each form: a battery that shrinks unseen fails.
FLOOR = {"paper": 14, "claim": 5, "optimizer": 5, "module": 5, "estimator": 3, "class": 2, "function": 2, "constant": 1}


def form(thing: object) -> str:
    """What a public object is."""
    torch = sys.modules.get("torch")
    if inspect.isclass(thing):
        if torch and issubclass(thing, torch.optim.Optimizer):
            return "optimizer"
        if torch and issubclass(thing, torch.nn.Module):
            return "module"
        if hasattr(thing, "fit") and hasattr(thing, "get_params"):
            return "estimator"
        return "class"
    return "function" if callable(thing) and hasattr(thing, "__name__") else "constant"


def checks(paper: Paper) -> Iterator[Check]:
    """All checks of a built paper."""
    exempt = dict(paper.exempt)
    everything = [*paper_checks(paper), *claim_checks(paper), *object_checks(paper)]
    yield from (check for check in everything if check[0] not in exempt)


def floor(paper: Paper) -> int:
    total = FLOOR["paper"] + FLOOR["claim"] * len(paper.claims) - len(paper.exempt)
    return total + sum(FLOOR[form(getattr(importlib.import_module(f"probatum.{paper.family}"), n))] for n in paper.public)


def paper_checks(paper: Paper) -> Iterator[Check]:
    family = importlib.import_module(f"probatum.{paper.family}")
    module = importlib.import_module(paper.module)
    text = module.__doc__ or ""
    card = card_text(paper) or ""

    def docstring_names_the_paper():
        assert paper.arxiv in text, f"the docstring of {paper.module} must name arXiv {paper.arxiv}"

    def docstring_has_an_example():
        assert ">>>" in text, f"the docstring of {paper.module} needs a runnable example"

    def doctests_pass():
        result = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
        assert result.attempted > 0 and result.failed == 0

    def public_names_are_exported():
        assert set(paper.public) <= set(module.__all__), "catalog and __all__ disagree"

    def family_offers_them():
        for name in paper.public:
            assert getattr(family, name) is getattr(module, name)

    def no_name_is_a_module():
        modules = {path.stem for path in (ROOT / "src/probatum" / paper.family).glob("*.py")}
        assert not modules & set(paper.public), f"a public name equals a module: {modules & set(paper.public)}"

    def has_tests_of_its_own():
        tree = ast.parse((ROOT / f"tests/{paper.family}/test_{paper.id}.py").read_text("utf-8"))
        tests = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")]
        assert len(tests) >= 8, f"{len(tests)} tests: hold it to its sheet's exact checks and bad input"
        assert any("ProbatumError" in ast.dump(n) for n in tests), "no test of bad input"

    def has_claims():
        assert paper.claims and set(claims_of(paper)) == set(paper.claims)

    def card_has_its_sections_in_order():
        places = [card.find(section) for section in SECTIONS]
        assert -1 not in places and places == sorted(places), f"sections {SECTIONS}, found at {places}"
        assert card.startswith(f"# {paper.id}") and paper.arxiv in card and "**Use it when**" in card and "**Not when**" in card

    def card_shows_every_public_name():
        missing = [name for name in paper.public if not re.search(rf"\b{name}\b", card)]
        assert not missing, f"the card does not show {missing}"

    def card_imports_from_the_family():
        assert f"from probatum.{paper.family} import" in card

    def card_examples_run(tmp=[]):  # noqa: B006
        blocks = re.findall(r"```python\n(.*?)```", card, re.S)
        assert blocks, "the card has no python example"
        space: dict = {"__name__": "card"}
        for block in blocks:
            exec(compile(block, f"{paper.id}.md", "exec"), space)

    def card_has_no_todo():
        assert not re.search(r"TODO|TBD|XXX", card)

    def speed_is_benchmarked_or_not_claimed():
        named = (ROOT / f"benchmarks/{paper.family}.py").is_file() and paper.id in (
            ROOT / f"benchmarks/{paper.family}.py"
        ).read_text("utf-8")
        timed = any(condition.kind == "timing" for claim in claims_of(paper).values() for condition in claim.holds_if)
        assert named or not timed, "a claim about time needs its benchmark"

    for check in (
        docstring_names_the_paper, docstring_has_an_example, doctests_pass, public_names_are_exported, family_offers_them,
        no_name_is_a_module, has_tests_of_its_own, has_claims, card_has_its_sections_in_order, card_shows_every_public_name,
        card_imports_from_the_family, card_examples_run, card_has_no_todo, speed_is_benchmarked_or_not_claimed,
    ):  # fmt: skip
        yield check.__name__, check


def claim_checks(paper: Paper) -> Iterator[Check]:
    from probatum.evidence import store
    from probatum.evidence.engine import Options, check

    for claim in claims_of(paper).values():

        def says_what_and_where(claim=claim):
            assert 10 <= len(claim.says) <= 140 and "\n" not in claim.says
            assert claim.source and claim.reported, "a claim names its table or figure and the paper's own number"

        def protocol_is_told(claim=claim):
            assert len(claim.protocol) >= 80, "the measuring function's docstring tells data, baselines and why this size"

        def smoke_runs_quickly(claim=claim):
            (result,) = check([claim], Options(budget="smoke", jobs=2), _Silent())  # one thread, as tests share the cores
            assert result.verdict == "ran", result.error
            seconds = result.record["seconds"]
            assert seconds < 30, f"smoke took {seconds:.1f} s: 3 s on an idle machine, and ten times that on a shared one"
            recorded = {(m["system"], m["metric"]) for m in result.record["measurements"]}
            assert len(recorded) >= 2, "a claim compares"

        def quick_record_is_committed(claim=claim):
            root = store.committed_records()
            record = root and store.load_record(root / paper.id / store.record_name(claim.name, "quick", "cpu"))
            assert record, f"records/ lacks {claim.id} at quick: make records"
            assert record["version"] == claim.version and record["declared"] == claim.budgets["quick"]
            assert record["code"]["state"] in ("clean", "installed") and record["exploratory"] is None and record["command"]

        def card_quotes_the_record(claim=claim):
            table = (card_text(paper) or "").partition("<!-- evidence -->")[2].partition("<!-- /evidence -->")[0]
            assert f"**{claim.id}**" in table, f"the card lacks {claim.id}: python scripts/evidence_tables.py"

        for function in (says_what_and_where, protocol_is_told, smoke_runs_quickly, quick_record_is_committed, card_quotes_the_record):
            yield f"{function.__name__}[{claim.name}]", function


def object_checks(paper: Paper) -> Iterator[Check]:
    family = importlib.import_module(f"probatum.{paper.family}")
    for name in paper.public:
        thing = getattr(family, name)
        kind = form(thing)

        def has_a_docstring(thing=thing, name=name):
            assert (inspect.getdoc(thing) or "").strip(), f"{name} has no docstring"

        def is_annotated(thing=thing, name=name):
            target = thing.__init__ if inspect.isclass(thing) and "__init__" in vars(thing) else thing
            parameters = list(inspect.signature(target).parameters.values())
            bare = [p.name for p in parameters if p.annotation is p.empty and p.name not in ("self", "cls", "args", "kwargs")]
            assert not bare, f"{name}: no type for {bare}"

        yield f"has_a_docstring[{name}]", has_a_docstring
        if kind != "constant":
            yield f"is_annotated[{name}]", is_annotated
        if kind in ("optimizer", "module", "estimator"):
            from forms import FORMS

            for check_name, function in FORMS[kind](name, lambda name=name: _factory(paper, name)):
                yield f"{check_name}[{name}]", function


def _factory(paper: Paper, name: str) -> Callable:
    """How the paper's own tests build a public object."""
    path = ROOT / f"tests/{paper.family}/test_{paper.id}.py"
    spec = spec_from_file_location(f"contract_{paper.id}", path)
    assert spec and spec.loader
    module = module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    factories = getattr(module, "CONTRACT", {})
    assert name in factories, f"{path.name} must offer CONTRACT[{name!r}], see tests/contract/battery.py"
    return factories[name]


class _Silent:
    def __getattr__(self, name: str) -> Callable:
        return lambda *args: None
