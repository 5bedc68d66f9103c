"""Comparisons: an arm a process, resumed, with picks among what cannot be told apart."""

import json

import made_comparison
import pytest
from test_engine import Quiet, trace

from probatum import ProbatumError
from probatum.evidence import store
from probatum.evidence.comparisons import Setting, compare, find_comparison, tied_with_best
from probatum.evidence.measurements import Measurement, Table


def test_picks_errors_figures_and_the_record(own_home):
    record = compare(made_comparison.made, Setting(jobs=2), Quiet())
    picks = [note for note in record["notes"] if "Best" in note or "Least" in note]
    assert picks[0].startswith(("Best score: good", "Best score: cheap")) and "plain" not in picks[0]
    assert picks[1] == "Least cost among those: cheap."
    errors = {arm["name"]: arm["error"] for arm in record["arms"]}
    assert "no such luck" in errors["broken"] and errors["good"] is None
    assert trace(own_home).count("broken 0") == 1 and "broken 2" not in trace(own_home)  # one failure is enough
    (figure,) = record["_figures"]
    assert figure.endswith("tradeoff.png")
    (stored,) = store.load_records(own_home / "home" / "records", own_home / "home" / "modified")
    assert stored["kind"] == "comparison" and stored["name"] == "made"
    json.dumps(stored)


def test_finished_arms_are_kept_and_changed_data_is_measured_again(own_home):
    data = own_home / "numbers"
    data.mkdir()
    (data / "a").write_text("1")
    setting = Setting(data=str(data))
    assert any(str(data) in note for note in compare(made_comparison.made, setting, Quiet())["notes"])
    ran = len(trace(own_home))
    compare(made_comparison.made, setting, Quiet())
    assert len(trace(own_home)) == ran + 1  # only the arm that cannot run is tried again
    (data / "a").write_text("12")
    compare(made_comparison.made, setting, Quiet())
    assert len(trace(own_home)) == 2 * ran + 1


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({"budget": "fast"}, "--budget must be one of smoke, quick, full"), ({"model": "."}, "takes no --model"),
        ({"data": "not/there"}, "a folder of numbers"),
    ],
)  # fmt: skip
def test_bad_settings(setting, text):
    with pytest.raises(ProbatumError, match=text):
        compare(made_comparison.made, Setting(**setting), Quiet())


def test_an_unknown_comparison():
    with pytest.raises(ProbatumError, match="unknown comparison 'nothing'"):
        find_comparison("nothing")


def test_arms_are_told_apart_on_items_not_on_repetitions():
    """A deterministic arm measured three times is one measurement: 5 photos do not become 15."""

    def table(shift):
        rows = []
        for seed in range(3):
            base = [30.0, 31.0, 29.0, 33.0, 28.0]
            rows.append(Measurement("a", "score", seed, sum(base) / 5, samples=tuple(base), of="item"))
            moved = [b + s for b, s in zip(base, shift, strict=True)]
            rows.append(Measurement("b", "score", seed, sum(moved) / 5, samples=tuple(moved), of="item"))
        return Table(rows)

    assert tied_with_best(made_comparison.made, table([0.5, -0.3, 0.6, -0.2, 0.4])) == ("b", ["b", "a"])
    assert tied_with_best(made_comparison.made, table([0.5, 0.4, 0.6, 0.45, 0.55])) == ("b", ["b"])
