"""What the documentation takes from the catalog: its navigation, the page of papers, the API reference, README's table.

As an mkdocs hook it adds pages in memory and never writes into docs/. As a command it renews the table between the
markers of README.md:

    python scripts/docs_pages.py            write it
    python scripts/docs_pages.py --check    exit 1 if it is out of date
"""

import argparse
import ast
import logging
import re
import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from probatum.catalog import Family, Paper, catalog, families  # noqa: E402

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

BEGIN, END = "<!-- catalog -->", "<!-- /catalog -->"

# What a person who checks claims or adds a paper calls, in the order of a claim's life; modules that a checkout lacks
# are left out, so that the site builds at every stage of the project.
API = {
    "Evidence": [
        "evidence.declaration", "evidence.conditions", "evidence.run", "evidence.measurements", "evidence.judges",
        "evidence.ladder", "evidence.engine", "evidence.store", "evidence.report",
    ],
    "Catalog": ["catalog", "errors"],
    "Data": ["data"],
}  # fmt: skip

log = logging.getLogger("mkdocs.hooks.docs_pages")


def papers_of(family: Family) -> list[Paper]:
    return [paper for paper in catalog().values() if paper.family == family.id]


def card(paper: Paper) -> str | None:
    """Path of the paper's card from docs/; None where it has none yet."""
    path = f"cards/{paper.family}/{paper.id}.md"
    return path if (ROOT / "docs" / path).is_file() else None


def cell(text: str) -> str:
    """Text that a Markdown table and HTML leave as it is."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


# README's table


def readme_table() -> str:
    """Families with what they are for and their papers; those that are built are links to their cards."""
    built = sum(paper.state == "built" for paper in catalog().values())
    lines = [
        f"{built} of {len(catalog())} are built (**bold**); "
        "`probatum list` shows which, and the verdicts on your machine.",
        "",
    ]
    lines += ["| family | for | papers |", "|---|---|---|"]
    for family in families().values():
        papers = ", ".join(_readme_name(paper) for paper in papers_of(family))
        lines.append(f"| {cell(family.title)} (`{family.id}`) | {cell(family.about)} | {papers} |")
    return "\n".join(lines)


def _readme_name(paper: Paper) -> str:
    if paper.state == "planned":
        return paper.id
    path = card(paper)
    return f"**[{paper.id}](docs/{path})**" if path else f"**{paper.id}**"


def renewed(readme: str) -> str | None:
    """README with the table of today's catalog between its markers; None where the markers are not there."""
    start, end = readme.find(BEGIN), readme.find(END)
    if start < 0 or end < start:
        return None
    return f"{readme[: start + len(BEGIN)]}\n{readme_table()}\n{readme[end:]}"


# Pages of the site


def papers_page() -> str:
    """All papers by family, with idea, use and the card of those that are built."""
    lines = ["# All papers", ""]
    lines += [
        f"{len(catalog())} papers in {len(families())} families. A name that is a link leads to the paper's card.",
        "",
    ]
    for family in families().values():
        lines += [f"## {family.title} {{ #{family.id} }}", "", family.about[:1].upper() + family.about[1:] + ".", ""]
        for paper in papers_of(family):
            path = card(paper)
            name = f"[`{paper.id}`](../{path})" if path else f"`{paper.id}`"
            address = f"[arXiv {paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})"
            lines += [
                f"### {name} {{ #{paper.id} }}",
                "",
                f"*{cell(paper.title)}* · {address} · {paper.year} · {paper.state}",
                "",
                f"{cell(paper.idea)} **Use:** {cell(paper.use)}",
                "",
            ]
    return "\n".join(lines)


def api_pages() -> Iterator[tuple[str, str, str]]:
    """Section, path and text of each page of the reference."""
    for section, modules in API.items():
        names = [name for name in modules if _has(name)]
        if names:
            yield "", f"api/{section.lower()}.md", _reference(section, [f"probatum.{name}" for name in names])
    for family in families().values():
        built = [paper for paper in papers_of(family) if paper.state == "built"]
        if built:
            yield "Families", f"api/{family.id}.md", _family_reference(family, built)


def _has(module: str) -> bool:
    path = ROOT / "src/probatum" / Path(*module.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def _reference(title: str, modules: list[str]) -> str:
    return "\n\n".join([f"# {title}", *(f"::: {module}" for module in modules)]) + "\n"


def _family_reference(family: Family, papers: list[Paper]) -> str:
    lines = [
        f"# {family.title}",
        "",
        f"Import from `probatum.{family.id}`; the modules below are where the code stands.",
        "",
    ]
    for paper in papers:
        lines += [f"::: {paper.module}", ""]
    return "\n".join(lines)


def api_index() -> str:
    lines = ["# API reference", "", "Every system is imported from its family and loads on first use:", ""]
    lines += ["```python"]
    lines += [f"from probatum.{p.family} import {', '.join(p.public)}" for p in catalog().values() if p.public]
    lines += ["from probatum.evidence import Run, above, claim", "```", ""]
    return "\n".join(lines)


def navigation(given: list[Any]) -> list[Any]:
    """mkdocs.yml's navigation, with `papers` and `api` replaced by what the catalog has."""
    cards: list[Any] = ["papers/index.md"]
    for family in families().values():
        of_family = [{paper.id: path} for paper in papers_of(family) if (path := card(paper))]
        if of_family:
            cards.append({family.title: of_family})
    reference: list[Any] = ["api/index.md"]
    sections: dict[str, list[Any]] = {}
    for section, path, _ in api_pages():
        (sections.setdefault(section, []) if section else reference).append(path)
    reference += [{section: paths} for section, paths in sections.items()]
    filled = {"papers": {"Papers": cards}, "api": {"API": reference}}
    return [filled.get(entry, entry) if isinstance(entry, str) else entry for entry in given]


# Excerpts of real files, so that a guide cannot show code that is no longer there

EXCERPT = re.compile(r"^<!-- excerpt (?P<path>\S+)(?: (?P<part>.+?))? -->$", re.M)


def excerpt(path: str, part: str | None) -> str:
    """A fenced block with a file of the repository or one part of it.

    Args:
        path: from the repository's root.
        part: `[TABLE]` of a TOML file; in a Python file `docstring`, or the first function, class or constant at the
            top whose name fits (`test_*`) or that has this decorator (`@claim`); none takes the file whole.
    Raises:
        LookupError: no such file or part.
    """
    file = ROOT / path
    if not file.is_file():
        raise LookupError("no such file")
    text = file.read_text("utf-8")
    if part:
        text = _table(text, part) if file.suffix == ".toml" else _python(text, part)
    language = {".py": "python", ".toml": "toml"}.get(file.suffix, "text")
    return f'```{language} title="{path}"\n{text.strip()}\n```'


def _table(text: str, part: str) -> str:
    found = re.search(rf"^{re.escape(part)}\n.*?(?=^\[|\Z)", text, re.M | re.S)
    if found is None:
        raise LookupError(f"no table {part}")
    return found[0]


def _python(text: str, part: str) -> str:
    tree, lines = ast.parse(text), text.splitlines()
    for at, node in enumerate(tree.body):
        if part == "docstring" and at == 0 and isinstance(node, ast.Expr):
            return "\n".join(lines[: node.end_lineno])
        decorators = getattr(node, "decorator_list", [])
        names = [getattr(node, "name", ""), *(getattr(target, "id", "") for target in getattr(node, "targets", []))]
        names += [f"@{ast.unparse(d).partition('(')[0]}" for d in decorators]
        if any(fnmatchcase(name, part) for name in names):
            start = min([node.lineno, *(d.lineno for d in decorators)])
            return "\n".join(lines[start - 1 : node.end_lineno])
    raise LookupError(f"no {part} at the top")


# Hooks


def on_config(config: "MkDocsConfig") -> "MkDocsConfig":
    config.nav = navigation(list(config.nav or []))
    return config


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    from mkdocs.structure.files import File

    pages = [("papers/index.md", papers_page()), ("api/index.md", api_index())]
    pages += [(path, text) for _, path, text in api_pages()]
    for path, text in pages:
        files.append(File.generated(config, path, content=text))
    for picture in sorted((ROOT / "records").rglob("*.png")):  # the cards show them from where they are committed
        files.append(File.generated(config, picture.relative_to(ROOT).as_posix(), abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: "Page", **_: Any) -> str:
    def fill(found: re.Match[str]) -> str:
        try:
            return excerpt(found["path"], found["part"])
        except LookupError as error:
            paper = catalog().get(Path(found["path"]).stem.removeprefix("test_"))
            planned = paper is not None and paper.state == "planned"
            tell = log.info if planned else log.warning  # a warning fails a strict build
            tell("%s: excerpt of %s: %s", page.file.src_uri, found["path"], error)
            return f"*{found['path']} comes with the paper, which is planned.*" if planned else ""

    # on the site docs/ is the root, where records/ is put beside the pages
    return re.sub(r"\]\(\.\./((?:\.\./)+records/)", r"](\1", EXCERPT.sub(fill, markdown))


def main(arguments: list[str] | None = None, tell: Callable[[str], None] = print) -> int:
    parser = argparse.ArgumentParser(description="Renew README's table of papers from the catalog.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if it is out of date")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    options = parser.parse_args(arguments)
    readme = options.readme.read_text("utf-8")
    fresh = renewed(readme)
    if fresh is None:
        tell(f"{options.readme} has no {BEGIN} ... {END}")
        return 1
    if fresh == readme:
        return 0
    if options.check:
        tell(f"{options.readme} is not up to date: run python scripts/docs_pages.py")
        return 1
    partial = options.readme.with_name(f".{options.readme.name}.partial")
    partial.write_text(fresh, "utf-8")
    partial.replace(options.readme)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
