"""Fingerprints tell weights apart and name the tensor."""

import json
import zlib

import pytest
import torch

from probatum import ProbatumError
from probatum.nn.fingerprint import Fingerprint


def pairs(**changes):
    found = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(5), "c": torch.zeros(2, dtype=torch.bfloat16)}
    return list((found | changes).items())


def test_checksum_is_that_of_the_bytes_in_row_major_order():
    row = Fingerprint.of([("t", torch.arange(6.0).view(2, 3).t())]).rows[0]
    assert row == ("t", (3, 2), "float32", zlib.crc32(torch.tensor([0.0, 3, 1, 4, 2, 5]).numpy().tobytes()))


def test_travels_as_json():
    mine = Fingerprint.of(pairs())
    assert Fingerprint.from_json(json.loads(json.dumps(mine.to_json()))) == mine
    with pytest.raises(ProbatumError, match="no fingerprint"):
        Fingerprint.from_json([["a", 3]])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"b": torch.ones(6)}, r"the shape of b differs: \[5\] against \[6\]"),
        ({"b": torch.ones(5).double()}, "the dtype of b differs: float32 against float64"),
        ({"b": torch.tensor([1.0, 1, 1, 1, 1 + 2**-23])}, "the values of b differ"),
        ({"d": torch.ones(1)}, "only the second has d"),
        ({}, None),
    ],
)
def test_difference_names_the_first_tensor_concerned(changes, said):
    found = Fingerprint.of(pairs()).difference(Fingerprint.of(pairs(**changes)))
    if said is None:
        assert found is None
    else:
        import re

        assert re.search(said, found)


def test_names_may_be_ignored():
    renamed = [("module." + name, tensor) for name, tensor in pairs()]
    assert Fingerprint.of(pairs()).difference(Fingerprint.of(renamed)) is not None
    assert Fingerprint.of(pairs()).difference(Fingerprint.of(renamed), names=False) is None
    assert "3 tensors against 2" in Fingerprint.of(pairs()).difference(Fingerprint.of(renamed[:2]), names=False)
