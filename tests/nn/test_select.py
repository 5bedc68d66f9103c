"""Choosing parameters by name."""

import pytest
import torch
from torch import nn

from probatum import ProbatumError
from probatum.nn.select import select


def net():
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 3))
    model.add_module("tail", nn.Linear(3, 7, bias=False))
    return model


def test_order_is_by_name_and_patterns_choose():
    names = [name for name, _ in select(net())]
    assert names == sorted(names) == ["0.bias", "0.weight", "1.bias", "1.weight", "tail.weight"]
    assert [n for n, _ in select(net(), ["1.*", "tail.*"], ["*.bias"])] == ["1.weight", "tail.weight"]
    assert [n for n, _ in select(list(net().named_parameters())[::-1])] == names


def test_tied_weights_stand_once_also_as_two_objects():
    model = net()
    model[1].weight = nn.Parameter(model[0].weight.data)  # same storage, another object, another shape
    model.tail.weight = nn.Parameter(model[1].weight.data)
    assert [n for n, _ in select(model, exclude=["*.bias"])] == ["0.weight"]


def test_equal_shapes_of_one_storage_but_different_parts_are_two():
    base = torch.zeros(2, 4)
    assert len(select([("a", base[0].requires_grad_()), ("b", base[1].requires_grad_())])) == 2


def test_frozen_parameters_are_left_out():
    model = net()
    model[0].requires_grad_(False)
    assert [n for n, _ in select(model)] == ["1.bias", "1.weight", "tail.weight"]
    assert len(select(model, trainable_only=False)) == 5


def test_a_pattern_without_a_match_is_told_the_nearest():
    with pytest.raises(
        ProbatumError, match=r"include='tial\.weight' matches none of the 5 parameters; did you mean tail\.weight"
    ):
        select(net(), ["tial.weight"])


def test_nothing_left_says_why():
    model = net().requires_grad_(False)
    with pytest.raises(ProbatumError, match="no parameter is left of 5: 5 have requires_grad off"):
        select(model)
    with pytest.raises(ProbatumError, match=r"exclude=\['\*'\]"):
        select(net(), exclude="*")
