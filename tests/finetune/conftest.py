"""Models and texts of one's own, small enough for tests."""

import csv

import pytest
import torch


@pytest.fixture(scope="session")
def own(tmp_path_factory):
    """A tiny encoder and a tiny language model with a tokenizer of whole words, and 60 texts of three classes, told apart by a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("own")
    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "red", "green", "blue", "thing", "number", *map(str, range(60))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    tokens.save_pretrained(folder / "model")
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder / "model")
    decoder = LlamaConfig(
        vocab_size=len(words), hidden_size=12, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, intermediate_size=12,
        max_position_embeddings=64,
    )  # fmt: skip
    LlamaForCausalLM(decoder).save_pretrained(folder / "decoder")
    tokens.save_pretrained(folder / "decoder")
    with open(folder / "data.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        for i in range(60):
            rows.writerow([f"{('red', 'green', 'blue')[i % 3]} thing number {i}", f"colour {i % 3}"])
    return folder
