"""Hugging Face's Trainer, with steps from forward passes."""

import copy

import pytest
import torch

from probatum import ProbatumError
from probatum.zeroth import MeZOTrainer, error_rate, replay

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore:.*pin_memory.*:UserWarning", "ignore::DeprecationWarning"
)


class Rows(torch.utils.data.Dataset):
    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(50, (24, 6), generator=generator)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        return {"input_ids": self.ids[i], "labels": int(self.ids[i, 0] > 25)}


def model():
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=50,
            hidden_size=12,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=12,
            max_position_embeddings=8,
        )
    )


def trainer(folder, net, steps=4, objective=None, options=None, **more):
    from transformers import TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=8, learning_rate=1e-3, report_to=[], disable_tqdm=True,
        save_steps=2, use_cpu=True, lr_scheduler_type="constant", **more,
    )  # fmt: skip
    return MeZOTrainer(net, arguments, train_dataset=Rows(), objective=objective, options=options)


def same(one, other):
    return all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


def test_a_run_its_log_and_a_resumed_run(tmp_path):
    net = model()
    start = copy.deepcopy(net)
    whole = trainer(tmp_path / "a", net)
    calls = []
    net.register_forward_hook(lambda *_: calls.append(net.training))
    whole.train()
    assert calls == [False] * 8, "two forwards a step, in evaluation mode, and none besides"
    log = whole.optimizer.optimizer.log if hasattr(whole.optimizer, "optimizer") else whole.optimizer.log
    assert len(log) == 4
    again = copy.deepcopy(start)
    replay(again, log)
    assert same(again, net)
    resumed_net = copy.deepcopy(start)
    resumed = trainer(tmp_path / "b", resumed_net)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert same(resumed_net, net)


def test_an_objective_replaces_the_loss(tmp_path):
    seen = []

    def objective(outputs, inputs):
        seen.append(error_rate(outputs.logits, inputs["labels"]))
        return seen[-1]

    trainer(tmp_path, model(), steps=2, objective=objective, options={"noise": "rademacher"}).train()
    assert len(seen) == 4


def test_accumulation_and_other_optimizers_are_refused(tmp_path):
    with pytest.raises(ProbatumError, match="gradient_accumulation_steps must be 1, got 2"):
        trainer(tmp_path, model(), gradient_accumulation_steps=2)
    from transformers import TrainingArguments

    net = model()
    with pytest.raises(ProbatumError, match="must be a zeroth-order one"):
        MeZOTrainer(
            net, TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True), train_dataset=Rows(),
            optimizers=(torch.optim.SGD(net.parameters(), lr=0.1), None),
        )  # fmt: skip
