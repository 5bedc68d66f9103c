"""The site on made-up records: what it says, what it refuses, and how a real browser lays it out."""

import copy
import dataclasses
import json
import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path

import pytest

from probatum import ProbatumError
from probatum.catalog import catalog, families
from probatum.evidence.report import current_hashes, write_site
from probatum.evidence.report.markup import Markup, amount, el, number, prose
from probatum.evidence.report.reading import flags, is_quoted, problem, rank, worst
from probatum.evidence.report.strips import interval_strip, seed_strip, side_that_holds

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> & {{7*7}} \u202e\ud800"


def condition(verdict="holds", value=0.0573, bound=0.0, interval=(0.0188, 0.0958), **more):
    row = {"text": "accuracy of mezo above `linear probe` + 0, on these 300 test items", "kind": "paired"}
    row |= {"value": value, "bound": bound, "interval": list(interval) if interval else None, "verdict": verdict}
    row |= {"p": 0.0143, "half_width": 0.0385, "n": 5, "sd": 0.031, "details": {"df": 4}, "advice": None}
    return row | more


def record(paper="mezo", claim="accuracy", verdict="holds", **more):
    rows = [
        {"system": system, "metric": metric, "seed": seed, "value": base + 0.01 * seed, "unit": unit}
        for metric, unit, base in [("accuracy", "", 0.8), ("peak memory", "bytes", 3 * 2**28)]
        for system in ("mezo", "linear probe", "adam")
        for seed in range(5)
    ]
    made = {
        "format": 1,
        "kind": "claim",
        "probatum": "0.1.0",
        "paper": paper,
        "claim": claim,
        "version": 1,
        "says": "learns where a linear probe cannot follow",
        "source": "Table 1",
        "paper_figure": "89.6 against 81.0 on SST-2",
        "protocol": "Five hundred reviews.\n\nEvery arm takes its rate from a grid of four.",
        "budget": "quick",
        "device": "cpu",
        "seeds": [0, 1, 2, 3, 4],
        "declared": 5,
        "ladder": None,
        "exploratory": None,
        "interrupted": False,
        "started": "2026-10-01T12:00:00+00:00",
        "seconds": 141.2,
        "command": f"probatum check {paper}:{claim} --budget quick",
        "code": {"commit": "a" * 40, "state": "clean", "hash": "f" * 64},
        "calibration": 1.02,
        "measurements": rows,
        "conditions": [condition(verdict)],
        "verdict": verdict,
        "error": None,
        "figures": [],
        "environment": {
            "python": "3.11.9",
            "platform": "Linux-6.1-x86_64-with-glibc2.36",
            "cpu": "AMD EPYC 7B13",
            "cores": 2,
            "memory_bytes": 8 * 2**30,
            "threads": 1,
            "load": [0.5, 0.7, 0.9],
            "libraries": {"numpy": "2.4.0", "torch": "2.13.0"},
            "gpu": None,
        },
        "notes": ["the shipped encoder is used as it is"],
    }
    return made | more


def png(path: Path, width=7, height=5) -> Path:
    """A real PNG of one colour, written by hand."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + b"\x40\x80\xa0" * width for _ in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    return path


class Page(HTMLParser):
    """What a browser would see: elements with attributes, and the text."""

    VOID = frozenset({"br", "img", "input", "link", "meta"})

    def __init__(self, source):
        super().__init__()
        self.elements, self.words, self.open = [], [], []
        self.feed(source)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


def read(path):
    return Page(path.read_text("utf-8"))


def pages_of(root):
    return {path: read(path) for path in root.rglob("*.html")}


# Markup


def test_text_is_escaped_and_markup_is_not():
    inner = el("b", "<i>")
    assert inner == "<b>&lt;i&gt;</b>"
    assert el("p", inner, ["&", None, False, 0], title='"><x', class_="a") == (
        '<p title="&quot;&gt;&lt;x" class="a"><b>&lt;i&gt;</b>&amp;0</p>'
    )
    assert el("img", alt="x", hidden=True, width=None) == '<img alt="x" hidden>'
    assert isinstance(inner, Markup)


def test_prose_keeps_paragraphs_and_code():
    assert prose("one\n  two\n\n`a<b`") == "<p>one two</p><p><code>a&lt;b</code></p>"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0573333, "0.05733"),
        (-0.5, "−0.5"),
        (12345678, "12,345,678"),
        (3.0, "3"),
        (123456.7, "123,457"),
        (1.5e-7, "1.5e−07"),
        (10**40, "1" + "0" * 22 + "…"),
        (float("nan"), "not a number"),
        (float("-inf"), "−∞"),
        (True, "yes"),
        (None, "–"),
    ],
)
def test_numbers(value, shown):
    assert number(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(1023, "1,023 B"), (1024, "1 KiB"), (3 * 2**28, "768 MiB"), (2**33, "8 GiB")]
)
def test_bytes_are_shown_in_powers_of_two(value, shown):
    assert amount(value, "bytes") == shown


# Strips


def test_a_strip_puts_value_bound_and_interval_in_their_order():
    strip = interval_strip(condition(value=3.0, bound=1.0, interval=(2.0, 4.0)))
    lines = [
        {k: float(v) for k, v in re.findall(r'\b(x1|x2)="([\d.]+)"', line)} for line in re.findall("<line[^>]*>", strip)
    ]
    _, bound, bar, *_ = lines
    dot = float(re.search(r'cx="([\d.]+)"', strip)[1])
    assert 0 < bound["x1"] < bar["x1"] < dot < bar["x2"] < 240
    # linear: value - low = low - bound = 1 in the data
    assert dot - bar["x1"] == pytest.approx(bar["x1"] - bound["x1"], abs=0.2)
    assert 'aria-label="value 3, interval 2 to 4, bound 1, holds above it"' in strip


@pytest.mark.parametrize(
    ("value", "verdict", "side"),
    [
        (2, "holds", "above"),
        (0, "fails", "above"),
        (0, "holds", "below"),
        (2, "fails", "below"),
        (2, "inconclusive", None),
    ],
)
def test_the_side_that_holds_is_read_off_a_decided_verdict(value, verdict, side):
    assert side_that_holds({"value": value, "bound": 1, "verdict": verdict}) == side
    assert side_that_holds({"value": value, "bound": 1, "verdict": verdict, "direction": "below"}) == "below"


@pytest.mark.parametrize("bound", [None, float("nan"), float("inf")])
def test_no_strip_without_a_bound(bound):
    assert interval_strip(condition(bound=bound)) is None


def test_strips_survive_degenerate_numbers():
    assert interval_strip(condition(value=1.0, bound=1.0, interval=None))
    assert interval_strip(condition(value=0.0, bound=0.0, interval=(0.0, 0.0)))
    for end in (float("inf"), None):  # a record has null for what is not finite
        one_sided = interval_strip(condition(value=2.0, bound=1.0, interval=(1.5, end)))
        assert "interval 1.5 to ∞" in one_sided and "nan" not in one_sided
    assert seed_strip([1.0, 1.0], (1.0, 1.0)) is None
    assert seed_strip([0.0, float("nan")], (0.0, 1.0)).count("<circle") == 1


# Which records count


def test_the_worst_verdict_speaks():
    assert worst(["holds", "inconclusive", "fails"]) == "fails"
    assert worst(["holds", "fails", "error"]) == "error"
    assert worst(["holds", "inconclusive"]) == "inconclusive"
    assert worst([]) is None


@pytest.mark.parametrize(
    ("change", "label"),
    [
        ({"code": {"commit": "a", "state": "modified", "hash": "f"}}, "modified tree"),
        ({"interrupted": True}, "interrupted"),
        ({"exploratory": "--fresh after looking"}, "exploratory"),
        ({"budget": "smoke", "verdict": "ran"}, "smoke"),
        ({"seeds": [0, 1, 2]}, "other seeds"),
    ],
)
def test_records_that_are_not_quoted_say_why(change, label, tmp_path):
    made = record(**change)
    assert [name for name, _ in flags(made)] == [label]
    assert not is_quoted(made)
    index = read(write_site([made], tmp_path / "site"))
    assert "Not counted: 1 claim" in index.text and label in index.text
    assert label in read(tmp_path / "site/papers/mezo.html").text


def test_a_ladder_may_use_other_seeds_and_says_when_it_was_extended():
    assert is_quoted(record(seeds=[0] * 10, ladder={"looks": [5, 10, 20], "look": 2, "extended": False}))
    extended = record(seeds=[0] * 10, ladder={"looks": [5, 10, 20], "look": 2, "extended": True})
    assert flags(extended)[0][0] == "extended after looking" and is_quoted(extended)


def test_the_record_that_speaks():
    def order(*pairs):
        ranks = [rank(r, older=older) for r, older in pairs]
        assert ranks == sorted(ranks) and len(set(ranks)) == len(ranks)

    modified = {"commit": "a", "state": "modified", "hash": "f"}
    order(
        (record(version=1, budget="full"), False),
        (record(version=2, code=modified, budget="full"), False),
        (record(version=2), True),
        (record(version=2, device="cuda"), False),
        (record(version=2, started="2026-10-01T12:00:00+00:00"), False),
        (record(version=2, started="2026-10-01T12:30:00+02:00", budget="full"), False),
        (record(version=2, started="2026-10-01T10:31:00+00:00", budget="full"), False),
    )


def test_older_code_is_marked_only_where_today_is_known(tmp_path):
    made = [record(), record("carn", "quality")]
    current = {("mezo", "accuracy"): "0" * 64}
    index = read(write_site(made, tmp_path / "site", current))
    assert index.text.count("older code") == 1
    assert "measured by older code" in read(tmp_path / "site/papers/mezo.html").text
    assert "measured by older code" not in read(tmp_path / "site/papers/carn.html").text
    write_site(made, tmp_path / "site", {("mezo", "accuracy"): "f" * 64})
    assert "older code" not in read(tmp_path / "site/index.html").text


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"format": 2}, "format is 2"),
        ({"paper": "meso"}, "no paper 'meso'"),
        ({"paper": ["mezo"]}, "no paper"),
        ({"verdict": "maybe"}, "verdict is 'maybe'"),
        ({"budget": None}, "budget is None"),
        ({"kind": "rumour"}, "kind is 'rumour'"),
        ({"measurements": {}}, "measurements is no list"),
        ({"measurements": [3]}, "a row of measurements"),
        ({"measurements": [{"system": "a", "metric": "b", "value": "1"}]}, "no value"),
        ({"conditions": [condition(interval=(1, 2, 3))]}, "no pair"),
        ({"conditions": [condition(bound="0")]}, "no number"),
        ({"figures": [{"name": "curve"}]}, "figure has no file"),
        ({"environment": "a laptop"}, "environment is no table"),
        ({"code": None}, "code is no table"),
        ({"measurements": [{"system": "a", "metric": "b", "value": 10**400}]}, "no value"),
    ],
)
def test_a_damaged_record_is_left_out_and_named(change, why, tmp_path):
    assert why in problem(record(**change), catalog())
    index = read(
        write_site([record("carn", "quality"), record(**change, _path=str(tmp_path / "bad.json"))], tmp_path / "site")
    )
    assert "1 record could not be shown" in index.text
    assert why in index.text and "bad.json" in index.text
    assert "1 ✓ holds" in index.text.replace("✓ holds 1", "1 ✓ holds")


def test_records_that_are_no_tables_are_left_out(tmp_path):
    assert "2 records could not be shown" in read(write_site([None, "x"], tmp_path / "site")).text


def test_a_record_with_the_least_it_may_have(tmp_path):
    least = {"format": 1, "paper": "mezo", "claim": "accuracy", "budget": "quick", "verdict": "inconclusive"}
    write_site([least], tmp_path / "site")
    assert "inconclusive" in read(tmp_path / "site/papers/mezo.html").text


# What the pages say


@pytest.fixture
def made(tmp_path):
    """Records of all kinds, with figures beside two of them."""
    where = tmp_path / "records"
    path = where / "zeroth/mezo/accuracy-quick.json"
    png(path.with_suffix("") / "curve.png")
    png(path.with_suffix("") / "samples.png", 640, 320)
    figures = [
        {"name": "curve", "caption": "loss by step, five seeds", "file": "curve.png"},
        {"name": "samples", "caption": "what it reads", "file": "samples.png"},
        {"name": "gone", "caption": "a lost figure", "file": "gone.png"},
    ]
    both = [condition(), condition("inconclusive", -0.012, -0.01, (-0.03, 0.006), advice="about 14 seeds")]
    long = "a very long condition " * 12 + "unbreakable" * 20
    return [
        record(figures=figures, conditions=both, verdict="inconclusive", _path=str(path)),
        record(budget="full", code={"commit": "b" * 40, "state": "modified", "hash": "f"}, conditions=both),
        record("carn", "quality"),
        record("carn", "size", conditions=[condition(kind="exact", value=1592115, bound=1592115, interval=None)]),
        record("dare", "merge", "fails", conditions=[condition("fails", -0.4, -0.1, (-0.5, -0.3), text=long)]),
        record("s4d", "scaling", "error", error="RuntimeError: no kernel\n  at line 3", conditions=[], measurements=[]),
        record("s4d", "kernel", "ran", budget="smoke", seeds=[0], conditions=[]),
        record(paper="var", claim="x" * 90, says="wide " * 80),
        {
            "format": 1, "kind": "comparison", "name": "finetune", "title": "Fine-tuning: which one for me", "family":
            "finetune", "says": "equal forward passes on one encoder", "budget": "quick", "seeds": [0, 1, 2], "started":
            "2026-10-02", "measurements": record()["measurements"], "command": "probatum compare finetune", "figures":
            [figures[0]], "_path": str(where / "zeroth/mezo/accuracy-quick.json"),
        },
    ]  # fmt: skip


def test_index_lists_every_paper_under_its_family_with_its_state(made, tmp_path):
    index = read(write_site(made, tmp_path / "site"))
    links = [a["href"] for a in index.all("a") if a["href"].startswith("papers/")]
    assert links == [f"papers/{paper}.html" for paper in catalog()]
    assert [s["data-family"] for s in index.all("section") if "data-family" in s] == list(families())
    states = [li["data-state"] for li in index.all("li") if "data-state" in li]
    assert states == [paper.state for paper in catalog().values()]
    by_paper = dict(zip(catalog(), (li["data-verdict"] for li in index.all("li") if "data-verdict" in li), strict=True))
    assert {p: v for p, v in by_paper.items() if v} == {
        "mezo": "inconclusive", "carn": "holds", "dare": "fails", "s4d": "error", "var": "holds",
    }  # fmt: skip


def test_index_counts_the_three_verdicts_and_says_how_far_to_trust_them(made, tmp_path):
    text = read(write_site(made, tmp_path / "site")).text
    assert "At most 2.5 in 100 claims that are not true hold by chance." in text
    # claims, not records: mezo has two records and counts once, s4d's error and smoke run do not count
    assert "✓ hold 3 ✗ fails 1 ≈ inconclusive 1" in text
    assert "Not counted: 2 claims" in text
    assert "7 claims measured" in text


def test_a_paper_page_carries_all_its_evidence(made, tmp_path):
    write_site(made, tmp_path / "site")
    page = read(tmp_path / "site/papers/mezo.html")
    paper = catalog()["mezo"]
    for said in [
        paper.title, paper.idea, paper.use[1:], "learns where a linear probe cannot follow", "Table 1",
        "89.6 against 81.0 on SST-2", "0.0188 to 0.0958", "p at the bound 0.0143", "about 14 seeds",
        "Five hundred reviews.",
        "probatum check mezo:accuracy", "AMD EPYC 7B13, 2 cores", "8 GiB", "0.5, 0.7, 0.9", "numpy 2.4.0, torch 2.13.0",
        "a" * 40 + " (clean)", "2 min", "1 more record", "modified tree", "loss by step, five seeds",
        "The image file is missing.", "the shipped encoder is used",
    ]:  # fmt: skip
        assert said in page.text, said
    assert {"href": "https://arxiv.org/abs/2305.17333", "rel": "noreferrer"} in page.all("a")


def test_measurements_are_summarised_over_seeds(made, tmp_path):
    write_site(made, tmp_path / "site")
    # 0.80 ... 0.84: mean 0.82, sample sd sqrt(0.00025) = 0.0158113883
    assert "mezo 0.82 0.01581 5" in read(tmp_path / "site/papers/carn.html").text
    # 3 * 2**28 bytes is 768 MiB; the seeds add 0 to 0.04 bytes
    assert "peak memory (bytes) mezo 768 MiB 0.01581 B 5" in read(tmp_path / "site/papers/carn.html").text


def test_images_lie_in_the_site_with_words_and_sizes(made, tmp_path):
    write_site(made, tmp_path / "site")
    page = tmp_path / "site/papers/mezo.html"
    images = read(page).all("img")
    assert [(i["alt"], i["width"], i["height"]) for i in images] == [
        ("loss by step, five seeds", "7", "5"),
        ("what it reads", "640", "320"),
    ]
    for image in images:
        target = (page.parent / image["src"]).resolve()
        assert target.is_relative_to(tmp_path / "site/data") and target.read_bytes()[:4] == b"\x89PNG"


def test_data_is_the_records_themselves(made, tmp_path):
    write_site(made, tmp_path / "site")
    stored = [json.loads(path.read_text("utf-8")) for path in (tmp_path / "site/data").rglob("*.json")]
    given = [{key: value for key, value in r.items() if not key.startswith("_")} for r in made]
    key = json.dumps
    assert sorted(stored, key=key) == sorted(given, key=key)


def test_the_data_folder_is_a_records_folder_that_loads_again(tmp_path):
    store = pytest.importorskip("probatum.evidence.store")
    path = tmp_path / "records/mezo/accuracy.quick.cpu.json"
    png(path.with_suffix("") / "curve.png")
    store.write_json(path, record(figures=[{"name": "curve", "caption": "c", "file": "curve.png"}]))
    root = write_site(store.load_records(tmp_path / "records"), tmp_path / "site").parent
    again = store.load_records(root / "data")
    assert [r["_path"] for r in again] == [str(root / "data/mezo/accuracy.quick.cpu.json")]
    write_site(again, tmp_path / "second")
    assert (tmp_path / "second/papers/mezo.html").read_bytes() == (root / "papers/mezo.html").read_bytes()


def test_todays_hashes_are_those_a_record_of_today_has(monkeypatch):
    code = pytest.importorskip("probatum.evidence.code")
    paper = dataclasses.replace(catalog()["mezo"], public=("MeZO",), claims=("accuracy", "memory"))
    monkeypatch.setattr("probatum.catalog.catalog", lambda: {"mezo": paper, "carn": catalog()["carn"]})
    today = code.code_hash(paper)
    found = {key: value for key, value in current_hashes().items() if key[0] == "mezo"}
    assert found == {("mezo", "accuracy"): today, ("mezo", "memory"): today}


def test_every_link_within_the_site_leads_somewhere(made, tmp_path):
    root = write_site(made, tmp_path / "site").parent
    pages = pages_of(root)
    assert len(pages) == 1 + 74 + 1
    for path, page in pages.items():
        for tag, name in (("a", "href"), ("img", "src"), ("link", "href")):
            for attrs in page.all(tag):
                address = attrs[name]
                if address.startswith(("https://arxiv.org/abs/", "data:,")):
                    continue
                file, _, anchor = address.partition("#")
                target = (path.parent / file).resolve() if file else path
                assert target.is_relative_to(root.resolve()) and target.is_file(), (path, address)
                assert not anchor or anchor in {attrs.get("id") for _, attrs in pages[target].elements}


def test_comparisons_have_their_own_page(made, tmp_path):
    index = read(write_site(made, tmp_path / "site"))
    assert "Fine-tuning: which one for me" in index.text
    page = read(tmp_path / "site/comparisons/finetune.html")
    assert "equal forward passes on one encoder" in page.text and "linear probe 0.82" in page.text
    assert len(page.all("img")) == 1


def test_a_site_without_records_shows_all_papers_as_they_are(tmp_path):
    index = read(write_site([], tmp_path / "site"))
    assert "0 claims measured" in index.text
    planned = next(p for p in catalog().values() if p.state == "planned")
    assert "planned: nothing of it is built yet" in read(tmp_path / f"site/papers/{planned.id}.html").text


def test_the_same_records_give_the_same_bytes(made, tmp_path):
    one, two = write_site(made, tmp_path / "a").parent, write_site(copy.deepcopy(made), tmp_path / "b").parent
    files = {p.relative_to(one): p.read_bytes() for p in one.rglob("*") if p.is_file()}
    assert files == {p.relative_to(two): p.read_bytes() for p in two.rglob("*") if p.is_file()}


# Hostile and unlucky input


def test_hostile_text_stays_text(tmp_path):
    h = HOSTILE
    bad = record(
        claim=h, says=h, source=h, paper_figure=h, protocol=h, command=h, notes=[h], error=h, exploratory=h, seeds=[h],
        device=h, started=h, version=h, probatum=h, seconds=h, ladder={"looks": [h], "extended": True},
        code={"commit": h, "state": h, "hash": h},
        conditions=[condition(text=h, kind=h, advice=h, details={h: h, "list": [h]}, n=h)],
        measurements=[{"system": h, "metric": h, "seed": h, "value": 1.0, "unit": h}],
        figures=[{"name": h, "caption": h, "file": h}],
        environment={"python": h, "platform": h, "cpu": h, "cores": h, "memory_bytes": h, "threads": h, "load": h,
        "libraries": {h: h}},
    )  # fmt: skip
    compared = {"format": 1, "kind": "comparison", "name": h, "title": h, "says": h}
    root = write_site([bad, compared, record(paper=h)], tmp_path / "site").parent
    script = (Path(sys.modules["probatum.evidence.report"].__file__).parent / "filter.js").read_text("utf-8")
    for path, page in pages_of(root).items():
        source = path.read_text("utf-8")
        assert source.count("<script") == source.count(f"<script>{script}</script>") == (path.name == "index.html")
        assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)
        assert all(i["src"].startswith("../data/") for i in page.all("img"))
    assert "<script>alert(1)</script>" in read(root / "papers/mezo.html").text  # still readable as text


@pytest.mark.parametrize(
    "file",
    [
        "../secret.png",
        "../../secret.png",
        "/etc/passwd",
        "link.png",
        "page.html",
        "sub",
        "a\0b.png",
        "x" * 300 + ".png",
    ],
)
def test_figures_come_from_the_records_own_folder_alone(file, tmp_path):
    path = tmp_path / "records/mezo/accuracy.json"
    folder = path.with_suffix("")
    png(tmp_path / "records/secret.png")
    png(tmp_path / "records/mezo/secret.png")
    (folder / "sub").mkdir(parents=True)
    (folder / "page.html").write_text("<script>alert(1)</script>")
    (folder / "link.png").symlink_to(tmp_path / "records/secret.png")
    bad = record(figures=[{"name": "f", "caption": "c", "file": file}], _path=str(path))
    root = write_site([bad], tmp_path / "site").parent
    assert read(root / "papers/mezo.html").all("img") == []
    assert [p for p in (root / "data").rglob("*") if p.is_file() and p.suffix != ".json"] == []


def test_records_of_one_name_do_not_overwrite_each_other(tmp_path):
    made = [
        record(_path="/a/x.json"),
        record(_path="/b/X.json", budget="full"),
        record(claim="../../up"),
        record(claim=".."),
    ]
    root = write_site(made, tmp_path / "site").parent
    data = [p.relative_to(root).as_posix() for p in root.rglob("*.json")]
    assert len(data) == 4 + 1 and len({d.lower() for d in data}) == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["site"]


def test_a_report_is_replaced_and_nothing_is_left_beside_it(tmp_path):
    write_site([record()], tmp_path / "site")
    write_site([record("carn", "quality")], tmp_path / "site")
    assert not (tmp_path / "site/data/mezo").exists() and (tmp_path / "site/data/carn").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["site"]


def test_folders_that_are_not_ours_are_left_alone(tmp_path):
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(ProbatumError, match=r"out: .*photos is not a report of probatum and is left alone"):
        write_site([], foreign)
    assert [p.name for p in foreign.iterdir()] == ["holiday.jpg"]

    site = write_site([], tmp_path / "site").parent
    (site / "my notes.txt").write_text("mine")
    with pytest.raises(ProbatumError, match=r"out: .*site holds my notes.txt, which is not of the report"):
        write_site([], site)
    assert (site / "my notes.txt").read_text() == "mine"

    (tmp_path / "file").write_text("x")
    with pytest.raises(ProbatumError, match=r"out: .*file is a file; give a folder"):
        write_site([], tmp_path / "file")
    with pytest.raises(ProbatumError, match=r"out: cannot write the report to .*below"):
        write_site([], tmp_path / "file" / "below")


def test_an_empty_folder_and_what_a_file_manager_leaves_are_no_obstacle(tmp_path):
    (tmp_path / "site").mkdir()
    write_site([], tmp_path / "site")
    (tmp_path / "site/.DS_Store").write_bytes(b"x")
    assert write_site([], tmp_path / "site").is_file()
    (tmp_path / "link").symlink_to(tmp_path / "site")
    write_site([record()], tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "site/data/mezo").is_dir()


def test_a_full_disk_leaves_the_old_report_and_no_litter(tmp_path):
    write_site([record()], tmp_path / "site")
    before = (tmp_path / "site/index.html").read_bytes()
    code = (
        "import sys; from pathlib import Path; from probatum import ProbatumError\n"
        "from probatum.evidence.report import write_site\n"
        "try: write_site([], Path(sys.argv[1]))\n"
        "except ProbatumError as e: print(e)\n"
    )

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    paths = os.pathsep.join(p for p in sys.path if p)
    run = subprocess.run(
        [sys.executable, "-B", "-c", code, str(tmp_path / "site")],
        env={**os.environ, "PYTHONPATH": paths}, preexec_fn=limit, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert re.match("out: cannot write the report to .*: File too large", run.stdout)
    assert (tmp_path / "site/index.html").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["site"]


def test_leftovers_of_a_killed_run_are_swept_when_they_are_old(tmp_path):
    old, young = tmp_path / ".site.1-aaaa.draft", tmp_path / ".site.2-bbbb.draft"
    old.mkdir(), young.mkdir()
    os.utime(old, (0, 0))
    write_site([], tmp_path / "site")
    assert sorted(p.name for p in tmp_path.iterdir()) == [young.name, "site"]


# The style sheet


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_text_contrast_meets_wcag_aa(mode):
    css = (Path(sys.modules["probatum.evidence.report"].__file__).parent / "style.css").read_text("utf-8")
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block)) for block in re.findall(r":root \{(.*?)\}", css, re.S)
    )
    colours = light if mode == "light" else dark
    assert set(light) == set(dark)
    pairs = [(ink, ground) for ink in ("ink", "muted", "link") for ground in ("paper", "card")]
    pairs += [(tone, f"{tone}-bg") for tone in ("holds", "fails", "inconclusive", "error", "plain")]
    pairs += [(tone, "paper") for tone in ("holds", "fails", "inconclusive")] + [("ink", "plain-bg")]
    for ink, ground in pairs:
        bright, dim = sorted((luminance(colours[ink]), luminance(colours[ground])), reverse=True)
        assert (bright + 0.05) / (dim + 0.05) >= 4.5, (ink, ground)


# A real browser


FLAGS = [
    "--no-sandbox", "--headless=new", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


def find_browser():
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A Chromium with an empty profile; the driver sets the size, since a window-size flag stops at 500 px."""
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (the extra dev brings it)"
    )
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    with sync_api.sync_playwright() as driver:
        profile = tmp_path_factory.mktemp("profile")
        context = driver.chromium.launch_persistent_context(
            profile, executable_path=program, args=FLAGS, ignore_default_args=["--headless"], headless=True
        )
        yield context
        context.close()


@pytest.mark.browser
@pytest.mark.parametrize("width", [360, 1280])
def test_the_site_in_a_browser(width, made, tmp_path, browser):
    index = write_site(made, tmp_path / "site")
    page = browser.new_page()
    page.set_viewport_size({"width": width, "height": 800})
    troubles, requests = [], []
    page.on("console", lambda message: troubles.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))

    def fits():
        wide, inner = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        assert inner == width and wide <= inner

    page.goto(index.as_uri())
    fits()
    assert page.locator("section.family li").count() == 74
    page.select_option("#by-family", "zeroth")
    zeroth = [p.id for p in catalog().values() if p.family == "zeroth"]
    seen = page.locator("section.family li:visible code").all_text_contents()
    assert seen == zeroth
    assert page.locator("#shown").text_content() == f"{len(zeroth)} papers"
    page.fill("#by-text", "forward MEMORY inference")
    assert page.locator("section.family li:visible code").all_text_contents() == ["mezo"]
    page.fill("#by-text", "no such words")
    assert page.locator("#none").is_visible()
    page.fill("#by-text", "")
    page.select_option("#by-family", "")
    page.select_option("#by-state", "fails")
    assert page.locator("section.family li:visible code").all_text_contents() == ["dare"]

    for name in (
        "papers/mezo.html",
        "papers/dare.html",
        "papers/var.html",
        "papers/s4d.html",
        "comparisons/finetune.html",
    ):
        page.goto((index.parent / name).as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        fits()
        assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        assert page.evaluate("document.styleSheets.length") == 1
    page.goto((index.parent / "papers/mezo.html").as_uri())
    assert page.locator("img").count() == 2
    assert page.locator("svg.strip").count() == 4
    # drawn, not only written: each part of a strip takes room on the screen, where an unclosed sibling would hide it
    parts = "[...document.querySelector('svg.strip').children].map(p => [p.tagName, p.getBoundingClientRect().height])"
    drawn = page.evaluate(parts)
    assert {"line", "rect", "circle", "text"} == {name for name, _ in drawn}
    assert all(height > 0 for name, height in drawn if name in ("rect", "circle", "text"))
    page.click("nav.crumbs a >> nth=0")
    assert page.url == index.as_uri()

    assert troubles == []
    assert requests and all(url.startswith(("file://", "data:")) for url in requests)
    page.close()
