"""Layer groups: every trainable parameter once, in the order of the forward pass."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from probatum import ProbatumError
from probatum.nn.groups import layer_groups

BLOCK = 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096  # of LLaMA-7B


def meta(config, kind):
    import transformers

    with torch.device("meta"):
        return getattr(transformers, kind)(config)


def minilm():
    from transformers import BertConfig

    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    return meta(config, "BertModel")


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(7, 3)
        self.blocks = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))
        self.head = nn.Linear(3, 7, bias=False)
        self.head.weight = self.table.weight


def test_minilm_counts():
    found = layer_groups(minilm())
    assert [group.numel for group in found] == [11_918_592, *[1_774_464] * 6, 147_840]
    assert found[0].name == "embeddings" and found[-1].name == "pooler.dense"
    assert sum(group.bytes for group in found) == 4 * 22_713_216


def test_llama_7b_blocks():
    from transformers import LlamaConfig

    found = layer_groups(meta(LlamaConfig(), "LlamaForCausalLM"))
    assert BLOCK == 202_383_360 and [group.numel for group in found[1:-1]] == [BLOCK] * 32
    assert sum(group.numel for group in found) == 6_738_415_616


def test_an_encoder_and_a_decoder_are_two_stacks_with_what_stands_between():
    from transformers import T5Config

    config = T5Config(d_model=8, d_kv=4, d_ff=12, num_layers=2, num_decoder_layers=3, num_heads=2, vocab_size=11)
    names = [group.name for group in layer_groups(meta(config, "T5ForConditionalGeneration"))]
    assert [name.split(".")[0] for name in names] == ["shared", *["encoder"] * 3, *["decoder"] * 4]


@pytest.mark.parametrize(("m", "sizes"), [(1, 8), (3, 3), (8, 1)])
def test_m_layers_a_group(m, sizes):
    found = layer_groups(minilm(), m=m)
    assert len(found) == sizes and sum(len(group.parameters) for group in found) == len(list(minilm().parameters()))


def test_without_a_stack_every_module_with_parameters_is_a_layer():
    net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))
    assert [group.names for group in layer_groups(net)] == [["0.weight", "0.bias"], ["2.weight", "2.bias"]]


def test_tied_weights_belong_to_their_first_user():
    found = layer_groups(Tied())
    assert [group.name for group in found] == ["table", "blocks.0", "blocks.1"]
    clone = Tied()
    clone.head.weight = nn.Parameter(clone.table.weight.detach())  # another object on the same memory
    assert [group.name for group in layer_groups(clone)] == ["table", "blocks.0", "blocks.1"]


def test_frozen_parameters_stand_in_no_group():
    net = Tied()
    net.blocks[0].requires_grad_(False)
    assert [group.name for group in layer_groups(net)] == ["table", "blocks.1"]
    with pytest.raises(ProbatumError, match="Tied has no trainable parameter: requires_grad is off everywhere"):
        layer_groups(net.requires_grad_(False))


@pytest.mark.parametrize("limit", [1, 600_000 * 4, 1_000_000 * 4, 2_000_000 * 4, 10**9])
def test_a_limit_splits_large_layers_and_joins_small_ones(limit):
    found = layer_groups(minilm(), max_bytes=limit)
    assert all(group.bytes <= limit or len(group.parameters) == 1 for group in found)
    assert [name for group in found for name in group.names] == [name for name, _ in minilm().named_parameters()]
    assert all(a.bytes + b.bytes > limit for a, b in pairwise(found))
    if limit == 600_000 * 4:  # attention and both halves of the MLP of each block, one by one
        assert len(found) == 1 + 1 + 6 * 3 + 1
    if limit == 10**9:
        assert len(found) == 1


def test_own_groups_by_pattern():
    net = Tied()
    found = layer_groups(net, groups=["*.bias", ["table.weight", "blocks.*.weight"]])
    assert [group.names for group in found] == [
        ["blocks.0.bias", "blocks.1.bias"], ["table.weight", "blocks.0.weight", "blocks.1.weight"],
    ]  # fmt: skip
    assert found[0].tensors[0] is net.blocks[0].bias


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": ["table.*"]}, r"groups leave out 4 trainable parameters: blocks.0.weight, .* add them, or freeze them"),
        ({"groups": ["*", "*.bias"]}, r"groups\[0\] and groups\[1\] both hold blocks.0.bias"),
        ({"groups": [["table.*", "blocks.*"], "head.weight"]}, r"both hold head.weight \(tied to table.weight\)"),
        ({"groups": ["*", "haed.*"]}, r"groups\[1\]: 'haed.\*' matches none of 5 trainable parameters"),
        ({"m": 4}, "m must be at most 3, the number of layers, got 4"),
        ({"m": 0}, "m must be an integer of 1 or more, got 0"),
        ({"max_bytes": 0}, "max_bytes must be 1 or more, got 0"),
        ({"max_bytes": 10, "m": 2}, "max_bytes makes the groups itself"),
        ({"groups": ["*"], "m": 2}, "leave it out with groups"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ProbatumError, match=message):
        layer_groups(Tied(), **options)
