"""Schedules of the number of directions, against the paper's script."""

import math

import pytest

from probatum import ProbatumError
from probatum.zeroth.schedules import QuerySchedule


def test_the_scripts_schedule():
    schedule = QuerySchedule.power(end=20, epochs=160)
    found = [schedule(epoch) for epoch in range(160)]
    assert schedule.alpha == pytest.approx(0.62229, abs=5e-6)
    assert found[:12] == [1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]
    assert found.index(15) == 101 and max(found) == 15
    assert sum(found) / 160 == 11.0125 and schedule.total(160, steps=3) == 3 * sum(found)


def test_without_a_cap_it_reaches_its_end():
    schedule = QuerySchedule.power(end=20, epochs=160, most=1000)
    assert schedule.beta * 160**schedule.alpha == pytest.approx(20)
    assert all(schedule(e) == max(1, int(0.85 * e ** (math.log(20 / 0.85) / math.log(160)))) for e in range(160))


@pytest.mark.parametrize(("start", "end", "epochs"), [(1, 15, 30), (1, 15, 1000), (3, 3, 2), (9, 2, 7)])
def test_linear_from_start_to_end(start, end, epochs):
    schedule = QuerySchedule.linear(start, end, epochs)
    found = [schedule(epoch) for epoch in range(epochs)]
    assert found[0] == start and found[-1] == end
    assert found in (sorted(found), sorted(found, reverse=True))


def test_constant():
    schedule = QuerySchedule.constant(7)
    assert {schedule(epoch) for epoch in range(1000)} == {7}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QuerySchedule.constant(0), "n must be an integer of 1 or more, got 0"),
        (lambda: QuerySchedule.power(20, 160, most=0), "most must be an integer of 1 or more, got 0"),
        (lambda: QuerySchedule.power(20, 160, beta=0), "beta must be above 0 and finite, got 0"),
        (lambda: QuerySchedule.power(20, 160, beta=-0.1), "beta must be above 0"),
        (lambda: QuerySchedule.power(0.5, 160), "end must be above beta = 0.85"),
        (lambda: QuerySchedule.power(20, 1), "epochs must be an integer of 2 or more, got 1: over one epoch nothing can grow"),
        (lambda: QuerySchedule.linear(1, 2.5, 10), "end must be an integer"),
        (lambda: QuerySchedule.constant(3)(-1), "epoch must be 0 or more"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ProbatumError, match=message):
        make()
