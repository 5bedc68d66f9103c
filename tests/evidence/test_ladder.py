"""The ladder's figures (evidence sheet, sections 7 and 8)."""

import pytest

from probatum.errors import ProbatumError
from probatum.evidence.conditions import above, as_good
from probatum.evidence.ladder import Looks, critical_value, expected_half_width, seeds_needed, settle
from probatum.evidence.measurements import Measurement, Table


@pytest.mark.parametrize("first, expected", [(3, (6.21, 3.57, 2.84)), (5, (3.50, 2.96, 2.64))])
def test_critical_values(first, expected):
    looks = Looks(first)
    found = [critical_value(n, looks.level(n)) for n in looks.counts]
    assert found == pytest.approx(expected, abs=0.005)


def test_counts_levels_and_notes():
    looks = Looks(5)
    assert looks.counts == (5, 10, 20)
    assert [looks.level(n) for n in looks.counts] == [0.0125, 0.008, 0.008]
    extended = Looks(5, extended=True)
    assert [extended.level(n) for n in extended.counts] == [0.025, 0.008, 0.008]
    assert extended.note == "extended after looking: 3.6 % a side, not 2.5"
    assert "5, 10, 20" in looks.note


@pytest.mark.parametrize("count", [3, 6, 15, 21])
def test_off_ladder_counts_are_refused(count):
    with pytest.raises(ProbatumError, match=f"{count} seeds is off the ladder.*5, 10, 20"):
        Looks(5).level(count)


def test_first_must_be_a_count():
    with pytest.raises(ProbatumError, match="first"):
        Looks(0)


def test_seeds_needed_is_the_smallest():
    for sd, distance in [(1, 1), (0.05, 0.02), (1, 3)]:
        n = seeds_needed(sd, distance)
        assert expected_half_width(sd, n) <= distance < expected_half_width(sd, n - 1)
    assert seeds_needed(1, 0.1) is None
    # sheet, section 5: sd .05 dB gives .11 at 3 seeds (.12 rounded up), .06 at 5, .035 at 10
    assert [expected_half_width(0.05, n) for n in (3, 5, 10)] == pytest.approx([0.124, 0.062, 0.0358], abs=5e-4)


def table(differences):
    rows = []
    for seed, d in enumerate(differences):
        rows += [
            Measurement("ours", "score", seed, 1 + d + 0.01 * seed),
            Measurement("theirs", "score", seed, 1 + 0.01 * seed),
        ]
    return Table(rows)


def test_a_decided_condition_stays_decided_while_the_others_go_on():
    # Clear over the first three seeds, then gone: the first look's verdict stands.
    differences = [0.50, 0.52, 0.51, -0.9, 0.4, -0.6, 0.2, -0.3, 0.1, -0.2, 0.3, -0.1]
    conditions = [
        above("score", "ours", "theirs", kind="paired"),
        as_good("score", "theirs", "ours", kind="paired", within=0.2),
    ]
    looks, data, seeds = Looks(3), table(differences), list(range(12))
    first = looks.judge(conditions, data, seeds[:3])
    assert [o.verdict for o in first] == ["holds", "fails"]
    assert conditions[0].judge(data.first(seeds[:6]), 0.008)[0].verdict == "inconclusive"
    assert looks.judge(conditions, data, seeds[:6]) == first
    assert looks.judge(conditions, data, seeds) == first


def test_a_later_look_decides_what_was_open():
    differences = [0.5, 0.1, 0.9, 0.5, 0.4, 0.6, 0.5, 0.5, 0.6, 0.4, 0.5, 0.5]
    condition = above("score", "ours", "theirs", kind="paired")
    looks, data, seeds = Looks(3), table(differences), list(range(12))
    assert looks.judge([condition], data, seeds[:3])[0].verdict == "inconclusive"
    (found,) = looks.judge([condition], data, seeds[:6])
    assert found == condition.judge(data.first(seeds[:6]), 0.008)[0]
    assert found.verdict == "holds"
    with pytest.raises(ProbatumError, match="off the ladder"):
        looks.judge([condition], data, seeds[:7])


def test_settle_wants_the_same_conditions():
    (outcome,) = above("score", "ours", "theirs", kind="paired").judge(table([0.5, 0.1, 0.9]))
    assert settle([], [outcome]) == [outcome]
    with pytest.raises(ProbatumError, match="same conditions"):
        settle([outcome], [outcome, outcome])
