"""The frozen prefix: the same answers, each text run through it once, and what is refused."""

import pytest
import torch
from torch import nn

from probatum import ProbatumError
from probatum.zeroth import MeZO, replay
from probatum.zeroth.suffix import FrozenPrefix


@pytest.fixture
def bert():
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32)
    model = BertForSequenceClassification(config).eval().requires_grad_(False)
    for part in (model.bert.encoder.layer[3], model.bert.pooler, model.classifier):
        part.requires_grad_(True)
    return model


def batch(rows, lengths):
    mask = torch.arange(max(lengths[i] for i in rows)) < torch.tensor([[lengths[i]] for i in rows])
    ids = torch.stack([torch.randint(1, 40, (mask.shape[1],), generator=torch.Generator().manual_seed(i)) for i in rows])
    return {"input_ids": ids * mask, "attention_mask": mask.long()}


def test_same_answers_in_any_company_and_one_run_a_text(bert):
    lengths, calls = [3, 7, 5, 9, 4], []
    prefix = FrozenPrefix(bert, "bert.encoder.layer.3")
    bert.bert.encoder.layer[0].attention.register_forward_hook(lambda module, inputs, output: calls.append(1))
    with torch.no_grad():
        for rows in ([0, 1, 2], [3, 4], [2, 3], [4, 0, 1]):
            tokens = batch(rows, lengths)
            before = len(calls)
            with prefix.of(rows, tokens["attention_mask"]):
                got = bert(**tokens).logits
            run = len(calls) - before
            # a text alone or among longer ones is the same text
            assert torch.allclose(got, bert(**tokens).logits, atol=1e-6)
            assert run == (1 if rows in ([0, 1, 2], [3, 4]) else 0)
    assert len(prefix) == 5 and prefix.bytes == sum(lengths) * 16 * 4
    prefix.clear()
    assert prefix.bytes == 0


def test_a_run_over_it_replays_on_the_whole_model(bert):
    import copy

    start, lengths = copy.deepcopy(bert), [4, 6, 5, 3]
    prefix, labels = FrozenPrefix(bert, "bert.encoder.layer.3"), torch.tensor([0, 1, 1, 0])
    optimizer = MeZO(bert.named_parameters(), lr=1e-2, seed=3)
    tokens = batch(range(4), lengths)
    for _ in range(5):
        with prefix.of(range(4), tokens["attention_mask"]):
            optimizer.step(lambda: nn.functional.cross_entropy(bert(**tokens).logits, labels))
    replay(start, optimizer.log)
    with torch.no_grad():
        assert torch.allclose(start(**tokens).logits, bert(**tokens).logits, atol=1e-6)


def test_what_is_refused(bert):
    for at, message in (
        ("bert.encoder.layer.0", "not its first"), ("bert.encoder.layer.9", "not its first"), ("bert.pooler", "a block of a stack"),
    ):  # fmt: skip
        with pytest.raises(ProbatumError, match=message):
            FrozenPrefix(bert, at)
    bert.bert.encoder.layer[1].output.dense.weight.requires_grad_(True)
    with pytest.raises(ProbatumError, match=r"layer\.1\.output\.dense\.weight is trainable and lies before"):
        FrozenPrefix(bert, "bert.encoder.layer.3")
    bert.bert.encoder.layer[1].requires_grad_(False)
    prefix, tokens = FrozenPrefix(bert, "bert.encoder.layer.3"), batch([0, 1], [3, 4])
    with pytest.raises(ProbatumError, match="keys and mask must be of one batch, got 1 and 2"), prefix.of([0], tokens["attention_mask"]):
        pass
    bert.train()
    with pytest.raises(ProbatumError, match=r"call model\.eval\(\) first"), prefix.of([0, 1], tokens["attention_mask"]):
        pass  # pragma: no cover
