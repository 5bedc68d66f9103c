"""The documentation is what the catalog says, and it builds without a warning."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from probatum.catalog import catalog, families

ROOT = Path(__file__).parents[1]


def script(name):
    spec = spec_from_file_location(name, ROOT / f"scripts/{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def pages():
    return script("docs_pages")


def test_readme_has_the_table_of_todays_catalog(pages):
    readme = ROOT / "README.md"
    text = readme.read_text("utf-8") if readme.is_file() else ""
    fresh = pages.renewed(text)
    if fresh is None:
        pytest.skip(f"README.md has no {pages.BEGIN} yet")
    assert fresh == text, "run python scripts/docs_pages.py"


def test_evidence_tables_are_those_of_the_committed_records():
    tables = script("evidence_tables")
    for path, table in tables.pages():
        text = path.read_text("utf-8")
        assert tables.renewed(text, table) == text, f"{path.name}: run python scripts/evidence_tables.py"


def test_the_table_names_every_paper_once_in_its_family(pages):
    rows = [line.split(" | ") for line in pages.readme_table().splitlines() if line.startswith("| ")][1:]
    assert len(rows) == len(families())
    for family, (name, _, papers) in zip(families().values(), rows, strict=True):
        assert f"(`{family.id}`)" in name
        listed = [re.sub(r"\*|\[|\].*", "", entry) for entry in papers.removesuffix(" |").split(", ")]
        assert listed == [paper.id for paper in catalog().values() if paper.family == family.id]


def test_the_command_renews_the_table_and_nothing_else(pages, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{pages.BEGIN}\nold\n{pages.END}\nafter\n", "utf-8")
    said = []
    assert pages.main(["--check", "--readme", str(readme)], said.append) == 1 and "not up to date" in said[0]
    assert "old" in readme.read_text("utf-8")
    assert pages.main(["--readme", str(readme)], said.append) == 0
    text = readme.read_text("utf-8")
    assert text == f"before\n{pages.BEGIN}\n{pages.readme_table()}\n{pages.END}\nafter\n"
    assert pages.main(["--check", "--readme", str(readme)], said.append) == 0
    readme.write_text("no markers", "utf-8")
    assert pages.main(["--readme", str(readme)], said.append) == 1 and "has no <!-- catalog -->" in said[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


@pytest.fixture
def one_built(pages, tmp_path, monkeypatch):
    """A checkout in which mezo is built and has a card, and nothing else is."""
    papers = {name: replace(p, public=(), claims=()) for name, p in catalog().items()}
    papers["mezo"] = replace(papers["mezo"], public=("MeZO",), claims=("accuracy",), title="One <b> | two")
    (tmp_path / "docs/cards/zeroth").mkdir(parents=True)
    (tmp_path / "docs/cards/zeroth/mezo.md").write_text("# mezo")
    monkeypatch.setattr(pages, "catalog", lambda: papers)
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    return pages


def test_a_built_paper_enters_table_navigation_and_reference(one_built):
    assert "**[mezo](docs/cards/zeroth/mezo.md)**" in one_built.readme_table()
    assert one_built.readme_table().count("**[") == 1 and "1 of 74 are built" in one_built.readme_table()
    filled = one_built.navigation([{"Home": "index.md"}, "papers", "api"])
    assert filled[0] == {"Home": "index.md"}
    assert filled[1] == {
        "Papers": ["papers/index.md", {"Zeroth-order optimisation": [{"mezo": "cards/zeroth/mezo.md"}]}]
    }
    assert filled[2]["API"][-1] == {"Families": ["api/zeroth.md"]}
    reference = {path: text for _, path, text in one_built.api_pages()}
    assert "::: probatum.zeroth.mezo" in reference["api/zeroth.md"]
    assert "from probatum.zeroth import MeZO" in one_built.api_index()
    page = one_built.papers_page()
    assert "[`mezo`](../cards/zeroth/mezo.md)" in page and "One &lt;b> \\| two" in page
    assert page.count("\n### ") == 74 and page.count("\n## ") == 15


def test_excerpts_are_the_files_own_text(one_built, tmp_path):
    (tmp_path / "a.toml").write_text("[paper.mezo]\nyear = 2023\n\n[paper.mezo2]\nyear = 1\n")
    (tmp_path / "a.py").write_text(
        '"""Idea."""\nX = 1\n\n\n@claim("a", n=1)\ndef b():\n    pass\n\n\ndef test_c(): ...\n'
    )
    block = '```toml title="a.toml"\n[paper.mezo]\nyear = 2023\n```'
    assert one_built.excerpt("a.toml", "[paper.mezo]") == block
    assert one_built.excerpt("a.py", "docstring").splitlines()[1:-1] == ['"""Idea."""']
    assert one_built.excerpt("a.py", "X").splitlines()[1:-1] == ["X = 1"]
    for part in ("b", "@claim"):
        assert one_built.excerpt("a.py", part).splitlines()[1:-1] == ['@claim("a", n=1)', "def b():", "    pass"]
    assert one_built.excerpt("a.py", "test_*").splitlines()[1:-1] == ["def test_c(): ..."]
    for path, part in (("a.py", "d"), ("a.toml", "[paper.carn]"), ("gone.py", None)):
        with pytest.raises(LookupError):
            one_built.excerpt(path, part)


def test_examples_in_docstrings_are_fenced_once():
    pytest.importorskip("griffe", reason="mkdocstrings is not installed (the extra docs brings it)")
    fenced = script("doctest_blocks").fenced
    text = "Idea.\n\n>>> x = 1\n... # more\n1\n\nAfter.\n\n  >>> y[0][1]\n  2"
    assert fenced(text) == (
        "Idea.\n\n\n```python\n>>> x = 1\n... # more\n1\n```\n\nAfter.\n\n\n  ```python\n  >>> y[0][1]\n  2\n  ```"
    )
    given = "```python\n>>> x\n\n>>> y\n```\nno prompt: >>> here"
    assert fenced(given) == given


def test_the_site_builds_strictly_and_asks_no_other_host(tmp_path):
    for package in ("mkdocs", "material", "mkdocstrings"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed (the extra docs brings it)")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    built = list((tmp_path / "site").rglob("*.html"))
    assert {"index.html", "check-a-claim.html", "add-a-paper.html"} <= {path.name for path in built}
    for path in built:
        source = path.read_text("utf-8")
        loaded = re.findall(r"<(?:script|img|iframe)[^>]+src=[\"']?([^\"' >]+)", source)
        loaded += re.findall(r"<link[^>]+rel=[\"']?(?:stylesheet|icon|preconnect)[^>]*href=[\"']?([^\"' >]+)", source)
        assert not [address for address in loaded if re.match(r"(https?:)?//", address)], path


@pytest.mark.parametrize("guide", ["use-a-method", "which-one-for-me"])
def test_the_python_of_a_guide_runs(guide, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / f"docs/guides/{guide}.md").read_text("utf-8"), re.S)
    space = {"__name__": "guide"}
    for block in blocks:
        exec(compile(block, f"{guide}.md", "exec"), space)
