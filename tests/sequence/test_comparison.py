"""The comparison of sequence layers takes a user's table, and says what is wrong with it."""

import pytest

from probatum import ProbatumError
from probatum.claims.sequence.comparison import ARMS, read_series
from probatum.claims.sequence.training import classifier


def test_every_arm_is_built_with_about_as_many_parameters():
    import torch

    counts = {}
    for arm in ARMS:
        model = classifier(arm.name, 1, 10, torch.Generator().manual_seed(0))
        counts[arm.name] = sum(p.numel() for p in model.parameters())
        assert model(torch.zeros(2, 16, 1)).shape == (2, 10)
    assert max(counts.values()) < 1.6 * min(counts.values()), counts


def test_a_table_of_series(tmp_path):
    path = tmp_path / "series.csv"
    header = "label,t0,t1,t2,t3\n"
    path.write_text(header + "up,1,2,3,4\ndown,4,3,2,1\n" * 15)
    x, y = read_series(path)
    assert x.shape == (30, 4, 1) and y.tolist()[:2] == [1, 0] and abs(float(x.mean())) < 1e-6
    for text, error in (
        ("class,t0\n", "no column 'label'; it has class, t0"), ("label,t0\n", "4 values or more"),
        (header + "up,1,2,3,4\n" * 30, "two classes"), (header + "up,1,2,3,4\ndown,4,x,2,1\n" * 15, "row 3: a value that is not a number"),
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(ProbatumError, match=error):
            read_series(path)
    with pytest.raises(ProbatumError, match="--data"):
        read_series(tmp_path / "none.csv")
