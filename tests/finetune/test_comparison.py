"""`compare finetune` on a model and a file of one's own."""

import pytest
import torch

from probatum import ProbatumError
from probatum.evidence import ComparisonRun
from probatum.evidence.comparisons import find_comparison

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def measured(own, arm, seed=0, data="data.csv", model="model"):
    run = ComparisonRun("compare", "finetune", "smoke", seed)
    run.model, run.data = str(own / model), str(own / data)
    find_comparison("finetune").measure(run, arm)
    return {row.metric: row for row in run.table}


def test_every_arm_answers_the_same_test_texts(own):
    found = find_comparison("finetune")
    rows = {arm.name: measured(own, arm.name) for arm in found.arms}
    assert {len(row["accuracy"].samples) for row in rows.values()} == {18}  # three tenths of twenty a class
    for name, row in rows.items():
        assert {metric.name for metric in found.metrics} - {"gain"} <= set(row), name
        assert row["memory"].value > 1e7
    assert rows["zero-shot"]["tuned"].value == 0 and rows["linear probe"]["tuned"].value == 36
    assert rows["lora"]["tuned"].value == rows["mezo_lora"]["tuned"].value == 2 * 2 * 8 * 24 + 36  # two layers, query and value
    assert rows["mezo"]["tuned"].value < rows["adamw"]["tuned"].value


def test_what_cannot_be_compared(own, tmp_path):
    (own / "few.csv").write_text("text,label\n" + "".join(f"t{i},{'a' if i else 'b'}\n" for i in range(40)), "utf-8")
    with pytest.raises(ProbatumError, match="the class 'b' has 1 texts, 10 of each are needed"):
        measured(own, "linear probe", data="few.csv")
    (own / "pickled").mkdir()
    (own / "pickled" / "config.json").write_text("{}")
    (own / "pickled" / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(ProbatumError, match="holds its weights as a pickle"):
        measured(own, "zero-shot", model="pickled")


def test_budgets_count_a_backward_as_two(own, monkeypatch):
    from probatum.claims import baselines
    from probatum.claims.finetune import comparison

    calls = []
    real = baselines.sentence_classifier

    def counting(encoder, head):
        model = real(encoder, head)
        model.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
        return model

    monkeypatch.setattr(baselines, "sentence_classifier", counting)
    monkeypatch.setattr(comparison, "_gain", lambda *_: None)
    for arm, forwards, graded in (("adamw", 2, 2), ("mezo", 6, 0)):
        calls.clear()
        measured(own, arm)
        assert sum(calls) == graded and len(calls) == forwards + 2, (
            "the last two are the 18 test texts in batches of 16"
        )
